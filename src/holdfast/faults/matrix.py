# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The matrix: every fault on one lab host, one after the other, each judged from outside."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError

from ..command import run, step
from ..lab import scene
from ..lab.guests.definitions import GUESTS, GuestSpec
from ..lab.guests.observer import compare
from ..lab.hosts import Host, Lab, emulator_failed, guest_was_mixed_up
from ..lab.up import Wish, down, up
from ..upgrade import ansible_environment
from . import strike
from .catalogue import KILL_AGENT, Ending, Fate, Fault

# The longest that a live update takes on an emulated host, from its request to its end: when random kills may come.
RANDOM_SPAN_S = 60.0
HOSTS_AT_MOST = 4


@dataclass(frozen=True)
class Row:
    """What one fault did. ``vms``: name to fate; ``trouble``: everything that is not as it has to be."""

    name: str
    phase: str
    ram_survives: bool
    outcome: str
    vms: dict[str, str]
    vms_lost: int
    vms_run_twice: int
    seconds_to_service: float
    operator: bool
    trouble: tuple[str, ...] = ()


class EmulatorBroke(HoldfastError):
    """The emulation of the lab host broke down, by a fault of its own."""


def run_matrix(folder: Path, faults: Sequence[Fault], kills: int = 0, seed: int = 0) -> list[Row]:
    """Every fault, then ``kills`` random ones; writes faults.json after each. Raises HoldfastError."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted: list[tuple[Fault, float | None]] = [(fault, None) for fault in faults]
    wanted += [(random_kill(number, seed), delay) for number, delay in enumerate(delays(kills, seed), 1)]
    rows: list[Row] = []
    for _ in range(HOSTS_AT_MOST):
        try:
            with lab_host(folder / "lab") as host:
                while len(rows) < len(wanted):
                    rows.append(row := one(host, *wanted[len(rows)]))
                    _write(folder / "faults.json", rows, seed)
                    print(f"  {'ok ' if not row.trouble else 'BAD'} {row.outcome:10} {row.seconds_to_service:5.0f} s")
                    for text in row.trouble:
                        print(f"      {text}", flush=True)
            return rows
        except EmulatorBroke as exc:
            print(f"  the emulator broke down, a known fault of it; on with a new host ({exc.message})", flush=True)
    raise EmulatorBroke(f"the emulator broke down {HOSTS_AT_MOST} times", "see the lab's limits in docs/limits.md")


def delays(count: int, seed: int) -> list[float]:
    """Seconds from the request to each random kill; the same for the same seed."""
    source = random.Random(seed)
    return [round(source.uniform(0, RANDOM_SPAN_S), 3) for _ in range(count)]


def random_kill(number: int, seed: int) -> Fault:
    """The agent is killed at a moment that nobody chose; whatever it was doing, every VM carries on."""
    return Fault(
        f"agent killed at random, {number} of seed {seed}", "any", "", KILL_AGENT, (Ending.ABORTED, Ending.UPGRADED)
    )


@contextmanager
def lab_host(folder: Path) -> Iterator[Host]:
    """A prepared lab host with all guests at work and the saboteur on it; taken down at the end."""
    down(folder)
    try:
        up(folder, Wish())
        words = ["ansible-playbook", "-i", str(folder / "inventory/hosts.yml"), "holdfast.kvm.prepare"]
        with step("hv1: prepared"):
            words += ["-e", "prepare_reboot_ok=true"]
            run(words, env=ansible_environment(os.environ), log=folder / "prepare.log", timeout_s=1800)
        host = scene.start_guests(folder)
        strike.install(host)
        yield host
    except HoldfastError as exc:
        if any(emulator_failed(host) or guest_was_mixed_up(host) for host in Lab.load(folder).hosts):
            raise EmulatorBroke(exc.message, exc.hint) from exc
        raise
    finally:
        down(folder)


def one(host: Host, fault: Fault, at: float | None = None) -> Row:
    """Let one fault happen on a host with its guests at work and our saboteur installed, and judge it from outside."""
    with step(f"{fault.name} ({fault.phase})"), scene.watched(host) as watch:
        strike.arm(host, fault, at)
        begun = time.monotonic()
        generation = strike.begin(host, fault)
        journal = strike.wait(host, generation)
        found = strike.ending(journal, generation)
        if fault.needs_operator:
            strike.operate(host, fault)
            last = strike.wait(host, generation)
            found = strike.ending(last, generation) if fault.mend and last["state"] == "restored" else found
        strike.disarm(host)
        trouble = [] if found in fault.ends else [f"it ended as {found}: {journal.get('reason', '')}"]
        twice = sum(_qemus(host, guest) > 1 for guest in GUESTS)
        trouble += ["a VM runs twice"] if twice else []
        vms = {}
        for guest in GUESTS:
            vms[guest.name], more = _fate(host, watch, guest)
            trouble += more if fault.fate(guest.name) is Fate.CARRIED_ON else []
            if vms[guest.name] != fault.fate(guest.name):
                trouble.append(f"{guest.name} {vms[guest.name]}")
        carried = [name for name, fate in vms.items() if fate is Fate.CARRIED_ON]
        silences = [watch.so_far(name)[0].longest_gap_s for name in carried]
        service = max(silences, default=time.monotonic() - begun)
        trouble += [f"the journal is left open: {left}"] if (left := _open_state(host)) != "none" else []
    lost = sum(fate is Fate.STARTED_AFRESH for fate in vms.values())
    told = {name: fate.value for name, fate in vms.items()}
    row = (fault.name, fault.phase, fault.ram_survives, found.value, told, lost, twice, round(service, 1))
    return Row(*row, fault.needs_operator, tuple(trouble))


def _fate(host: Host, watch: scene.Watch, guest: GuestSpec) -> tuple[Fate, list[str]]:
    """What became of a guest, and what is wrong with it if it was to carry on."""
    after = scene.witness(host, guest).wait(scene.GUEST_LIMIT_S)
    if after["boot_id"] != watch.before[guest.name].boot_id:
        return Fate.STARTED_AFRESH, []
    return Fate.CARRIED_ON, compare(watch.before[guest.name], watch.look(guest))


def _qemus(host: Host, guest: GuestSpec) -> int:
    return int(strike.ask(host, f"pgrep -c -f 'guest={guest.name},' || true").strip() or 0)


def _open_state(host: Host) -> str:
    """The state of a journal in flight, none when there is none."""
    return strike.ask(host, "test -e /var/lib/holdfast/journal.jsonl && echo open || echo none").strip()


def _write(path: Path, rows: Sequence[Row], seed: int) -> None:
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps({"seed": seed, "faults": [asdict(row) for row in rows]}, indent=1) + "\n")
    draft.rename(path)
