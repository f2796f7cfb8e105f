# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fault matrix says what it does: names, moments and verdicts. What really breaks is broken in the lab."""

from __future__ import annotations

import json
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import TRANSITIONS, VM_STATES
from holdfast import command
from holdfast.faults import cli, controller, matrix, strike, table
from holdfast.faults.catalogue import (
    CONTROLLERS,
    EARLY,
    FAULTS,
    HOST_FAILED,
    KILLED,
    LOCKED,
    Controllers,
    Ending,
    Fate,
    Fault,
)
from holdfast.faults.controller import Said
from holdfast.faults.matrix import EmulatorBroke, Planned
from holdfast.faults.record import BROKEN_OFF, Record, Row
from holdfast.lab.guests.definitions import GUESTS
from holdfast.lab.guests.observer import Snapshot
from holdfast.lab.hosts import Host, Lab

PHASES = ("load", "suspend", "jump", "attach", "restore", "verify")
ROW = Row("a fault", "load", True, "aborted", {guest.name: "carried on" for guest in GUESTS}, 0, 0, 12.0, False)


def test_every_fault_has_a_name_of_its_own_and_strikes_at_an_event_that_exists() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    known = {*TRANSITIONS, *VM_STATES, "phase_begin"}
    assert {fault.event.split()[0] for fault in FAULTS if fault.event} <= known


def test_nothing_is_lost_where_everything_survives_and_a_reason_is_given_elsewhere() -> None:
    for fault in FAULTS:
        lost = {guest.name for guest in GUESTS if fault.fate(guest.name) is Fate.STARTED_AFRESH}
        assert bool(lost) == bool(fault.why) == (not fault.ram_survives), fault.name
        assert set(fault.given_up) <= lost, fault.name


def test_controllers_are_killed_and_cut_off_in_each_phase() -> None:
    for how in ("controller killed", "SSH cut"):
        assert tuple(fault.phase for fault in FAULTS if fault.name.startswith(how)) == (*EARLY, *PHASES)
    assert all(fault.controllers for fault in CONTROLLERS)
    # A second kernel on the host comes with the first of them.
    assert FAULTS[-len(CONTROLLERS) :] == CONTROLLERS


def test_deeds_are_shell_scripts() -> None:
    for fault in FAULTS:
        for script in (fault.deed, fault.setup, fault.teardown, fault.mend):
            subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_random_moments_come_again_with_their_seed() -> None:
    assert matrix.moments(50, seed=7) == matrix.moments(50, seed=7)
    assert matrix.moments(50, seed=7) != matrix.moments(50, seed=8)


AT_AN_EVENT = next(fault for fault in FAULTS if fault.name == "agent killed before the first restore")


@pytest.mark.parametrize(
    ("found", "trouble"),
    [
        ({}, "there was no event 'restoring'"),
        ({"agents": [], "status": 0}, "there was no agent to kill"),
        ({"agents": ["12"], "status": 1}, "the deed itself failed"),
        ({"agents": ["12"], "status": 0}, ""),
        ({"agents": ["12"]}, ""),
    ],
)
def test_a_fault_that_did_not_happen_proves_nothing(found: dict[str, Any], trouble: str) -> None:
    assert trouble in "; ".join(strike.unproven(AT_AN_EVENT, found))
    assert bool(strike.unproven(AT_AN_EVENT, found)) == bool(trouble)


def test_the_whole_matrix_has_fifty_random_kills() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert "holdfast faults --output build/faults --kills 50" in makefile


@pytest.mark.parametrize(
    ("journal", "expected"),
    [
        ({"generation": "g", "state": "restored"}, Ending.UPGRADED),
        ({"generation": "g", "state": "restored", "fell_back": True}, Ending.FELL_BACK),
        ({"generation": "g", "state": "aborted"}, Ending.ABORTED),
        ({"generation": "g", "state": "failed"}, Ending.FAILED),
        ({"generation": "another", "state": "restored"}, Ending.REFUSED),
    ],
)
def test_how_it_ended(journal: dict[str, Any], expected: Ending) -> None:
    assert strike.ending(journal, "g") is expected


@pytest.mark.parametrize(
    ("units", "asked", "journal", "works"),
    [
        ("inactive active inactive", "asked", {"state": "none"}, True),
        ("activating active inactive", "asked", {"generation": "g", "state": "suspending"}, True),
        ("inactive activating inactive", "asked", {"generation": "g", "state": "jumping"}, True),
        ("inactive active activating", "asked", {"generation": "g", "state": "failed"}, True),
        ("inactive active inactive", "idle", {"generation": "g", "state": "restored"}, False),
        ("inactive failed failed", "asked", {"generation": "g", "state": "arrived"}, False),
        ("inactive failed inactive", "asked", {"state": "unreadable"}, False),
        ("failed active inactive", "asked", {"generation": "before", "state": "restored"}, False),
    ],
)
def test_when_a_host_is_at_rest(units: str, asked: str, journal: dict[str, Any], works: bool) -> None:
    assert strike._works(units.split(), asked, journal, "g") is works


def test_the_table_names_who_did_not_carry_on_and_what_is_wrong() -> None:
    fates = {"db1": "carried on", "tick1": "started afresh"}
    row = matrix.Row("a RAM file missing", "restore", True, "failed", fates, 1, 0, 41.2, True, ("db1 runs twice",))
    line = table.text([row]).splitlines()[-1]
    assert "tick1 started afresh | 1 | 0 | 41 s *" in line
    assert "db1 runs twice" in line


def test_below_the_table_stands_why() -> None:
    rows = [replace(ROW, operator=True, why="RAM is gone"), replace(ROW, name="another", why="RAM is gone")]
    assert table.notes(rows).splitlines()[-1] == "* a fault; another: RAM is gone."
    assert "did what the report said" in table.notes(rows)
    assert table.notes([ROW]) == ""


def test_a_plan_is_the_faults_and_then_the_random_kills() -> None:
    planned = matrix.plan(FAULTS[:2], kills=2, seed=7)
    assert [one.at is None for one in planned] == [True, True, False, False]
    assert planned == matrix.plan(FAULTS[:2], kills=2, seed=7)
    assert len({one.fault.name for one in planned}) == 4


# What was found stays found


def test_rows_are_on_disk_at_once_and_the_right_ones_are_not_tried_again(tmp_path: Path) -> None:
    record = Record.load(tmp_path / "faults.json")
    wrong = replace(ROW, name="another", trouble=("db1 started afresh",))
    record.add(ROW, took_s=300, left=1)
    record.add(wrong, took_s=300, left=0)
    again = Record.load(tmp_path / "faults.json")
    assert again.rows == [ROW, wrong]
    assert (again.is_done("a fault"), again.is_done("another"), again.is_done("a third")) == (True, False, False)
    again.add(replace(wrong, trouble=()), took_s=1, left=0)
    assert [entry["name"] for entry in json.loads((tmp_path / "faults.json").read_text())] == ["a fault", "another"]
    assert Record.load(tmp_path / "faults.json").is_done("another")


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "faults.json").write_text('{"seed": 1, "faults": []}')
    assert Record.load(tmp_path / "faults.json").rows == []


class Bench:
    """A lab that is not there: ``ends`` says what becomes of each try, a row or what is raised."""

    def __init__(self, ends: list[Any]) -> None:
        self.ends = deque(ends)
        self.hosts, self.tried, self.kinds = 0, list[str](), set[str]()
        self.host = Host("hv1", 0, "tcg", 1, 1, "/nowhere/hv1", "key")

    @contextmanager
    def lab_host(self, _folder: Path, pool_kind: str) -> Iterator[Host]:
        self.hosts += 1
        self.kinds.add(pool_kind)
        yield self.host

    def attempt(self, _host: Host, planned: Planned) -> Row:
        self.tried.append(planned.fault.name)
        end = self.ends.popleft()
        if isinstance(end, Exception):
            raise end
        return replace(end, name=planned.fault.name)


BROKE = EmulatorBroke("assertion failed")


def run(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    ends: list[Any],
    names: str = "ab",
    limit_s: float = 60.0,
    **more: str,
) -> tuple[Bench, Record, matrix.Unjudged]:
    bench, record = Bench(ends), Record(folder / "faults.json")
    monkeypatch.setattr(matrix, "lab_host", bench.lab_host)
    monkeypatch.setattr(matrix, "attempt", bench.attempt)
    monkeypatch.setattr(matrix, "is_sound", lambda _host: False)
    monkeypatch.setattr(Lab, "load", staticmethod(lambda folder: Lab(folder, (bench.host,))))
    planned = [Planned(Fault(name, "load", "", "true", (Ending.ABORTED,))) for name in names]
    return bench, record, matrix.run_matrix(folder, planned, record, limit_s, **more)


def test_every_host_has_the_kind_of_pool_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(monkeypatch, tmp_path, [ROW, BROKE, ROW], pool_kind="devdax")[0].kinds == {"devdax"}
    assert run(monkeypatch, tmp_path, [ROW, ROW])[0].kinds == {"fsdax"}
    assert {str(cli.output_of(kind)) for kind in ("fsdax", "devdax")} == {"build/faults", "build/faults-devdax"}


def test_a_fault_at_which_the_emulator_broke_down_is_repeated_on_a_fresh_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench, record, left = run(monkeypatch, tmp_path, [ROW, BROKE, ROW])
    assert (bench.tried, bench.hosts) == (["a", "b", "b"], 2)
    assert ([row.name for row in record.rows], left) == (["a", "b"], matrix.Unjudged())


def test_a_fault_that_the_emulator_never_bears_is_given_up_and_the_next_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench, record, left = run(monkeypatch, tmp_path, [BROKE, BROKE, BROKE, ROW])
    assert bench.tried == ["a", "a", "a", "b"]
    assert ([row.name for row in record.rows], left.given_up) == (["b"], ("a",))


def test_a_lab_that_always_breaks_down_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(EmulatorBroke):
        run(monkeypatch, tmp_path, [BROKE] * 9, names="abcd")


def test_after_trouble_comes_a_fresh_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench, record, _ = run(monkeypatch, tmp_path, [replace(ROW, trouble=("db1 runs twice",)), ROW])
    assert (bench.hosts, len(record.rows)) == (2, 2)


def test_no_fault_begins_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench, _, left = run(monkeypatch, tmp_path, [], limit_s=0.0)
    assert (bench.hosts, left.not_begun) == (0, ("a", "b"))


def test_a_fault_without_an_end_is_a_row_with_trouble() -> None:
    row = matrix.unfinished(FAULTS[0], HoldfastError("hv1 did not come to an end\nconsole: ..."))
    assert (row.outcome, row.trouble) == (BROKEN_OFF, ("HoldfastError: hv1 did not come to an end",))
    assert "nobody knows" in table.text([row])


def test_a_vm_that_was_started_afresh_has_the_disk_it_had() -> None:
    before = Snapshot("db1", "boot-1", 1.0, 1, "sha", "sha", disk_records=7)
    assert matrix.disk_findings(before, {"records": 7, "errors": []}) == []
    assert len(matrix.disk_findings(before, {"records": 6, "errors": ["ext4 counts 1 errors on vda"]})) == 2


# What controllers say

AGAIN = Said(0, "skipped")


def test_a_controller_that_was_killed_leaves_a_host_that_is_done() -> None:
    asked = Controllers(killed=True, exits=((KILLED,),))
    assert controller.complaints(asked, Ending.UPGRADED, [Said(KILLED)], Said(0), AGAIN) == []


@pytest.mark.parametrize(
    ("found", "killed"),
    [
        ({"agents": ["12"], "status": 0}, True),
        ({"agents": [], "status": 1}, False),
        ({"agents": ["12"], "status": 1}, False),
        ({"agents": ["12"]}, False),
        ({}, False),
    ],
)
def test_a_kill_that_may_have_met_nobody_is_none(found: dict[str, Any], killed: bool) -> None:
    assert strike.killed(found) is killed


def test_a_controllers_phases_are_read_from_its_lines_as_they_are_written() -> None:
    log = 'a warning\n{"kind": "batch", "text": "batch 1"}\n{"kind": "phase", "text": "preflight"}\n{"kind": "ph'
    assert controller.phases(log) == ["preflight"]


def test_one_of_two_controllers_is_content() -> None:
    asked = Controllers(count=2, exits=((0, LOCKED),))
    said = [Said(LOCKED, "skipped"), Said(0, "upgraded")]
    assert controller.complaints(asked, Ending.UPGRADED, said, Said(0), AGAIN) == []
    assert controller.complaints(asked, Ending.UPGRADED, [said[1], said[1]], Said(0), AGAIN)


@pytest.mark.parametrize(
    ("said", "recovered", "again", "told"),
    [
        (Said(0, "skipped"), Said(0), AGAIN, "is content and reports skipped"),
        (Said(HOST_FAILED, "failed"), Said(0), AGAIN, "ended with (2,)"),
        (Said(0, "upgraded"), Said(2), AGAIN, "the controller that went on ended with 2"),
        (Said(0, "upgraded"), Said(0), Said(0, "upgraded"), "again ended with 0 and reports upgraded"),
    ],
)
def test_words_that_are_not_true_are_trouble(said: Said, recovered: Said, again: Said, told: str) -> None:
    (trouble,) = controller.complaints(Controllers(), Ending.UPGRADED, [said], recovered, again)
    assert told in trouble


def test_a_controller_is_killed_with_everything_that_it_started(tmp_path: Path) -> None:
    token = "unit-test-of-kill"
    # A child in a session of its own, as Ansible's workers and SSH's masters are.
    script = "setsid sleep 60 & echo begun; sleep 60"
    process = command.begin(["sh", "-c", script], tmp_path / "log", {controller.TOKEN_VARIABLE: token})
    one = controller.Controller(process, token, tmp_path, tmp_path / "sockets")
    # A program's environment is to be seen a moment after it was begun.
    deadline = time.monotonic() + 30
    while "begun" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid in controller.started_by(token)
    controller.kill(one)
    assert (controller.started_by(token), one.works, process.returncode) == ([], False, KILLED)
    assert controller.ended(one) == Said(KILLED, "")
