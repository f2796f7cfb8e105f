# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the bench plans a run, and how it reads what host and guest tell."""

from __future__ import annotations

import json
import threading
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, HoldfastError
from holdfast import cli as command_line
from holdfast.bench import cli, floor, jumps, many, pause, pools, ram, rounds
from holdfast.bench.figures import Measurement, Phase, Subject
from holdfast.bench.rounds import Plan, Record
from holdfast.lab.guests.observer import Held, HoldListener

# Plan


def test_one_guest_and_one_pool_serve_all_sizes(tmp_path: Path) -> None:
    plan = Plan(tmp_path, (4096, 512, 512))
    assert plan.sizes_mib == (512, 4096)
    assert plan.guest.ram_mib == 4608
    assert plan.pool_mib == 5120
    assert plan.host_mib == 8192


@pytest.mark.parametrize(("sizes", "rounds"), [((), 1), ((0,), 1), ((512,), 0)])
def test_nothing_to_measure_is_bad_input(tmp_path: Path, sizes: tuple[int, ...], rounds: int) -> None:
    with pytest.raises(BadInput):
        Plan(tmp_path, sizes, rounds)


def test_sizes_are_read_from_one_word() -> None:
    assert cli.read_sizes("512,4096") == (512, 4096)
    with pytest.raises(BadInput, match="512;4096"):
        cli.read_sizes("512;4096")


def test_only_a_strict_bench_fails_for_a_missed_target() -> None:
    parser = command_line.parser()
    assert parser.parse_args(["bench"]).strict == 0
    assert parser.parse_args(["bench", "--strict"]).strict == 2


def test_what_was_measured_is_on_disk_at_once(tmp_path: Path) -> None:
    record = Record(tmp_path / "bench.json", {"kernel": "6.12"})
    record.add(Measurement(Subject.HOLDFAST, 512, 1, 40.0))
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["ended"] == "no"
    assert written["measurements"][0]["pause_s"] == 40.0


def test_a_host_that_broke_down_costs_nothing_that_was_measured(tmp_path: Path) -> None:
    record = Record(tmp_path / "bench.json")

    def work() -> None:
        if not record.has(Subject.HOLDFAST, 512, 1):
            record.add(Measurement(Subject.HOLDFAST, 512, 1, 40.0))
            raise rounds.EmulatorBroke("corrupted stack")
        record.add(Measurement(Subject.HOLDFAST, 1024, 1, 40.0))

    rounds._with_patience(work, record)
    assert [one.touched_mib for one in record.measured] == [512, 1024]
    assert json.loads(record.path.read_text())["setting"]["breakdowns"] == ["corrupted stack"]


def test_an_emulator_that_breaks_down_again_and_again_is_an_error(tmp_path: Path) -> None:
    def work() -> None:
        raise rounds.EmulatorBroke("corrupted stack")

    with pytest.raises(rounds.EmulatorBroke):
        rounds._with_patience(work, Record(tmp_path / "bench.json"))


# Pause


class Speaker:
    """A listener whose guest has spoken once more at every look, and is silent for a while at the tenth."""

    def __init__(self, error: str = "") -> None:
        self.replies, self.error, self.stopped = count(), error, False

    def start(self) -> None:
        pass

    def so_far(self) -> Held:
        replies = next(self.replies)
        return Held("witness", True, replies, True, 40.0 if replies > 15 else 0.1, 0.0, self.error)

    def stop(self, limit_s: float = 120.0) -> Held:
        self.stopped = True
        return self.so_far()


def observe(speaker: Speaker, acts: list[str], lost: bool = False) -> Held:
    listener = cast(HoldListener, speaker)
    return pause.observe(listener, lambda: acts.append("act"), lambda held: held.longest_gap_s > 3, lambda: lost)


@pytest.fixture
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pause, "LOOK_S", 0)


@pytest.mark.usefixtures("_hurried")
def test_a_pause_is_the_longest_silence() -> None:
    speaker, acts = Speaker(), cast(list[str], [])
    assert observe(speaker, acts).longest_gap_s == 40.0
    assert acts == ["act"]
    assert speaker.stopped


@pytest.mark.usefixtures("_hurried")
def test_a_broken_connection_ends_the_observation() -> None:
    speaker = Speaker(error="reset by peer")
    with pytest.raises(HoldfastError, match="reset by peer"):
        observe(speaker, [])
    assert speaker.stopped


@pytest.mark.usefixtures("_hurried")
def test_nobody_waits_for_a_guest_whose_host_broke_down() -> None:
    with pytest.raises(HoldfastError, match="broke down"):
        observe(Speaker(), [], lost=True)


# What the host noted


def test_the_phases_of_holdfast_come_from_its_journal() -> None:
    view: dict[str, Any] = {
        "state": "restored",
        "phases": [
            {"name": "boot", "start": 100.0, "seconds": 20.0},
            {"name": "attach", "start": 120.0, "seconds": 1.5},
            {"name": "libvirt", "start": 121.5, "seconds": 8.5},
            {"name": "restore", "start": 130.0, "seconds": 12.0},
        ],
        "vms": [{"ram_verified": True, "state_bytes": 450_000}],
    }
    phases, state_bytes = jumps.journal_phases(json.dumps(view))
    assert phases == (Phase("boot", 20.0), Phase("attach", 1.5), Phase("libvirt", 8.5), Phase("restore", 12.0))
    assert state_bytes == 450_000


def test_a_live_update_that_was_not_restored_is_no_measurement() -> None:
    with pytest.raises(HoldfastError, match="aborted: no room"):
        jumps.journal_phases(json.dumps({"state": "aborted", "reason": "no room", "vms": [], "phases": []}))


NOTED = """\
save 100.0
saved 130.5
bytes 600000000
synced 131.0
restore 160.0
up 25.0
restored 180.0
attach_us 15000000
"""


def test_the_phases_of_suspend_to_disk_come_from_its_steps() -> None:
    phases, saved_bytes = jumps.noted_phases(NOTED)
    assert [(phase.name, phase.seconds) for phase in phases] == [
        ("save", 30.5),
        ("sync", 0.5),
        ("boot", 19.0),
        ("libvirt", 10.0),
        ("restore", 20.0),
    ]
    assert saved_bytes == 600_000_000


def test_the_attach_lasts_from_start_to_exit() -> None:
    stamps = ("ExecMainStartTimestampMonotonic=6500000", "ExecMainExitTimestampMonotonic=7750000")
    assert jumps.attach_seconds(*stamps) == 1.25


def test_every_program_for_the_host_is_there_and_is_a_program() -> None:
    assert all(jumps.program(name).startswith("#!") for name in (*jumps.INSTALLED, "minimal-init"))


# Floor


def test_an_archive_entry_is_as_the_kernel_unpacks_it() -> None:
    header = floor.newc_header("minimal-init", 0o100755, 300)
    assert header[:6] == b"070701"
    fields = [int(header[begin : begin + 8], 16) for begin in range(6, 110, 8)]
    assert (fields[1], fields[6], fields[11]) == (0o100755, 300, len("minimal-init") + 1)
    assert len(header) % 4 == 0
    assert header[110:].rstrip(b"\0") == b"minimal-init"


def test_bytes_pass_through_printf() -> None:
    assert floor.printable(b"07%'\\\0x") == "07\\045\\047\\134\\000x"


def test_moments_are_seen_on_the_console_in_their_order(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_text(f"{floor.JUMP}\n{floor.ARRIVED}\n")
    sights = floor.sightings(console, (floor.JUMP, floor.ARRIVED))
    assert next(sights) == 0.0

    def speak() -> None:
        with console.open("a") as log:
            log.write(f"{floor.JUMP}\nbooting\n{floor.ARRIVED}\n")

    threading.Timer(0.05, speak).start()
    began, arrived = next(sights), next(sights)
    assert 0 < began <= arrived


def test_a_jump_that_leads_nowhere_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "JUMP_LIMIT_S", 0.0)
    console = tmp_path / "console.log"
    console.touch()
    sights = floor.sightings(console, (floor.JUMP,))
    next(sights)
    with pytest.raises(HoldfastError, match="was not seen"):
        next(sights)


# Hosts with much RAM


def test_starts_are_compared_with_those_of_the_smallest_host_of_their_kind() -> None:
    found = [
        ram.Start(size, kind, number, init_s, attach_s, described)
        for size, kind, init_s, attach_s, described in (
            (512, "devdax", 6.0, 0.3, 0.0039),
            (8, "devdax", 5.0, 0.25, 0.004),
            (8, "none", 4.0, 0.0, None),
        )
        for number in (1, 2, 3)
    ]
    console = Console(record=True, width=120)
    ram.show(found, console)
    rows = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert rows[-3:] == [
        ["none", "8", "4.00", "0.00", "4.00", "1.00"],
        ["devdax", "40%", "8", "5.00", "0.25", "5.25", "1.00", "0.4000%"],
        ["devdax", "496G", "512", "6.00", "0.30", "6.30", "1.20", "0.3900%"],
    ]


def test_the_median_vm_of_many_is_compared_with_one_alone() -> None:
    found = [many.Stay(1, number, "many1", 50.0 + number, 51.0, 0.0, 50.0 + number) for number in (1, 2, 3)]
    # Paused from the least important one on, and resumed the other way round.
    pauses = ((3.0, 55.0), (2.0, 60.0), (1.0, 65.0))
    found += [many.Stay(3, 1, f"many{n}", end - begin, 60.0, begin, end) for n, (begin, end) in enumerate(pauses, 1)]
    console = Console(record=True, width=120)
    many.show(found, console)
    rows = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert rows[-2:] == [
        ["1", "52.0", "1.00", "52.0", "52.0", "52.0"],
        ["3", "58.0", "1.12", "52.0", "64.0", "64.0"],
    ]
    assert [guest.ip for guest in many.guests(2)] == ["10.0.2.100", "10.0.2.101"]
    with pytest.raises(HoldfastError, match="bench of 41 VMs"):
        many.guests(41)


def test_kinds_of_pools_are_read_from_one_word(tmp_path: Path) -> None:
    assert cli.read_words("none,devdax-1G") == ("none", "devdax-1G")
    assert pools.settings("devdax-1G") == {"prepare_pool_kind": "devdax", "prepare_pool_page": "1G"}
    assert pools.settings("fsdax") == {"prepare_pool_kind": "fsdax"}
    plans = [rounds.Plan(tmp_path, (512,), pool_kind=kind) for kind in pools.KINDS]
    assert [plan.guest.ram_mib for plan in plans] == [1024, 800, 800], "whole pages only"
    with pytest.raises(BadInput, match="fsdax;none"):
        cli.read_words("fsdax;none")
