# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The matrix: every fault on one lab host, one after the other, each judged from outside."""

from __future__ import annotations

import math
import os
import random
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import RedisError

from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import FSDAX
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError

from ..command import run, step
from ..lab import scene
from ..lab.guests.definitions import GUESTS, GuestSpec
from ..lab.guests.observer import Snapshot, compare
from ..lab.hosts import Host, Lab, emulator_failed, guest_was_mixed_up
from ..lab.up import Wish, down, up
from ..upgrade import ansible_environment
from . import controller, strike
from .catalogue import KILL_AGENT, Ending, Fate, Fault, Moment
from .record import BROKEN_OFF, Record, Row

# When random kills may come: the journal of an undisturbed live update of this lab's three VMs has one event more, and
# for so long an agent may be at work from one to the next under emulation. Most follow each other at once.
EVENTS = 33
BETWEEN_EVENTS_S = 30.0
MISSED = "no agent was at work at that moment"
# How often one fault is tried when the emulator breaks down, and how many hosts may break down in a row.
TRIES = 3
HOSTS_IN_A_ROW = 5


@dataclass(frozen=True)
class Planned:
    """A fault; ``at``: when its deed is done, where it has no event of its own."""

    fault: Fault
    at: Moment | None = None


@dataclass(frozen=True)
class Played:
    """A fault that was let happen. ``missed``: no agent was at work at a random moment."""

    found: Ending
    reason: str = ""
    trouble: tuple[str, ...] = ()
    missed: bool = False


@dataclass(frozen=True)
class Unjudged:
    """Names of the faults without a row of this run: given up because of the emulator, and for want of time."""

    given_up: tuple[str, ...] = ()
    not_begun: tuple[str, ...] = ()


class EmulatorBroke(HoldfastError):
    """The emulation of the lab host broke down, by a fault of its own."""


def plan(faults: Sequence[Fault], kills: int, seed: int) -> list[Planned]:
    """The faults in their order, then ``kills`` random ones, the same ones for the same seed. Pure."""
    chosen = enumerate(moments(kills, seed), 1)
    return [*map(Planned, faults), *(Planned(random_kill(number, seed, at), at) for number, at in chosen)]


def moments(count: int, seed: int) -> list[Moment]:
    """When each random kill comes; the same for the same seed. Pure.

    By the journal, since most of the time of a live update is the boot, in which there is no agent to be killed.
    """
    source = random.Random(seed)
    return [Moment(source.randint(1, EVENTS), round(BETWEEN_EVENTS_S * source.random() ** 3, 3)) for _ in range(count)]


def random_kill(number: int, seed: int, at: Moment) -> Fault:
    """The agent is killed at a moment that nobody chose; whatever it was doing, every VM carries on."""
    name = f"agent killed at random, {number} of seed {seed}: {at.delay:.3f} s after event {at.after}"
    # Refused: killed before it had put anything on record.
    return Fault(name, "any", "", KILL_AGENT, (Ending.ABORTED, Ending.UPGRADED, Ending.REFUSED))


def run_matrix(
    folder: Path, planned: Sequence[Planned], record: Record, limit_s: float = math.inf, pool_kind: str = FSDAX
) -> Unjudged:
    """Let every fault happen on a host with such a pool, and record a row for each; begin none after ``limit_s``.

    When the emulator breaks down, the fault is repeated on a fresh host, TRIES times at most. Raises HoldfastError
    when no lab can be had; what was found until then is on record.
    """
    queue, deadline = deque(planned), time.monotonic() + limit_s
    broke: Counter[str] = Counter()
    given_up: list[str] = []
    in_a_row = 0
    while queue and time.monotonic() < deadline:
        rows = record.written
        try:
            with lab_host(folder / "lab", pool_kind) as host:
                _until_host_is_spent(host, queue, record, deadline)
        except EmulatorBroke as exc:
            in_a_row = 1 if record.written > rows else in_a_row + 1
            name = queue[0].fault.name if queue else "its end"
            broke[name] += 1
            print(f"  the emulator broke down, a known fault of it, at '{name}': {_first_line(exc)}", flush=True)
            if in_a_row >= HOSTS_IN_A_ROW:
                raise
            if queue and broke[name] >= TRIES:
                given_up.append(queue.popleft().fault.name)
    return Unjudged(tuple(given_up), tuple(one.fault.name for one in queue))


def _until_host_is_spent(host: Host, queue: deque[Planned], record: Record, deadline: float) -> None:
    """Work on the queue on one host, until there is no more time or nobody knows any longer how the host stands."""
    while queue and time.monotonic() < deadline:
        begun = time.monotonic()
        row = attempt(host, queue[0])
        queue.popleft()
        record.add(row, time.monotonic() - begun, left=len(queue))
        if row.outcome == BROKEN_OFF or (row.trouble and not is_sound(host)):
            print("  the host is not as it was: on with a fresh one", flush=True)
            return


@contextmanager
def lab_host(folder: Path, pool_kind: str = FSDAX) -> Iterator[Host]:
    """A prepared lab host with all guests at work and the saboteur on it; taken down at the end.

    Raises EmulatorBroke for whatever goes wrong while the emulator breaks down.
    """
    down(folder)
    try:
        up(folder, Wish())
        words = ["ansible-playbook", "-i", str(folder / "inventory/hosts.yml"), "holdfast.kvm.prepare"]
        with step("hv1: prepared"):
            words += ["-e", "prepare_reboot_ok=true", "-e", f"prepare_pool_kind={pool_kind}"]
            run(words, env=ansible_environment(os.environ), log=folder / "prepare.log", timeout_s=1800)
        host = scene.start_guests(folder)
        strike.install(host)
        yield host
    except HoldfastError as exc:
        if any(map(broke_down, Lab.load(folder).hosts)):
            raise EmulatorBroke(exc.message, exc.hint) from exc
        raise
    finally:
        down(folder)


def broke_down(host: Host) -> bool:
    """Whether the emulation is to blame for whatever is wrong with this host."""
    return emulator_failed(host) or guest_was_mixed_up(host)


def attempt(host: Host, planned: Planned) -> Row:
    """One fault, and a row for it whatever happens, unless the emulator broke down. Raises EmulatorBroke then."""
    try:
        row = one(host, planned.fault, planned.at)
    except (HoldfastError, RedisError, OSError, ValueError) as exc:
        row = unfinished(planned.fault, exc)
    if row.trouble and broke_down(host):
        raise EmulatorBroke("; ".join(row.trouble))
    return row


def unfinished(fault: Fault, why: Exception) -> Row:
    """The row of a fault whose end nobody saw. Pure."""
    return Row(
        fault.name,
        fault.phase,
        fault.ram_survives,
        BROKEN_OFF,
        vms={},
        vms_lost=0,
        vms_run_twice=0,
        seconds_to_service=0.0,
        operator=fault.needs_operator,
        trouble=(f"{type(why).__name__}: {_first_line(why)}",),
        why=fault.why,
    )


def is_sound(host: Host) -> bool:
    """Whether another fault can be tried here: nothing is in flight, and every guest answers."""
    try:
        for guest in GUESTS:
            scene.witness(host, guest).wait(limit_s=5)
        return not strike.standing(host).in_flight
    except HoldfastError:
        return False


def one(host: Host, fault: Fault, at: Moment | None = None) -> Row:
    """Let one fault happen on a host with its guests at work and our saboteur installed, and judge it from outside.

    Raises HoldfastError when it has no end that could be judged.
    """
    with step(f"{fault.name} ({fault.phase})"), scene.watched(host) as watch:
        begun = time.monotonic()
        return _judged(host, _play(host, fault, at), fault, watch, begun)


def _play(host: Host, fault: Fault, at: Moment | None) -> Played:
    """The fault and everything that follows, until there is nothing more to do."""
    if fault.setup:
        strike.ask(host, fault.setup)
    if fault.controllers:
        story = controller.play(host, fault, fault.controllers)
        return Played(strike.ending(story.journal, story.generation), _why(story.journal), story.trouble)
    kernel = controller.other_release(host) if fault.other_kernel else ""
    strike.arm(host, fault, at)
    generation = strike.begin(host, fault, kernel)
    journal = strike.wait(host, generation)
    found = strike.ending(journal, generation)
    trouble = strike.unproven(fault, done := strike.done(host))
    if fault.needs_operator:
        strike.operate(host, fault)
        last = strike.wait(host, generation)
        found = strike.ending(last, generation) if fault.mend and last["state"] == "restored" else found
    trouble += strike.leave_crash_kernel(host, strike.disarm(host))
    if fault.teardown:
        strike.ask(host, fault.teardown)
    return Played(found, _why(journal), tuple(trouble), missed=at is not None and not strike.killed(done))


def _why(journal: dict[str, Any]) -> str:
    return str(journal.get("reason", ""))


def _judged(host: Host, played: Played, fault: Fault, watch: scene.Watch, begun: float) -> Row:
    """Where everything is in the end, and what of it is not as it has to be."""
    found = played.found
    trouble = [*played.trouble, *([] if found in fault.ends else [f"it ended as {found}: {played.reason}"])]
    vms: dict[str, Fate] = {}
    for guest in GUESTS:
        vms[guest.name], harm = _fate(host, watch, guest)
        trouble += harm
        if vms[guest.name] != fault.fate(guest.name):
            trouble.append(f"{guest.name} {vms[guest.name]}")
    stands = strike.standing(host)
    twice = sum(count > 1 for count in stands.qemus)
    trouble += ["a VM runs twice"] if twice else []
    carried = [name for name, fate in vms.items() if fate is Fate.CARRIED_ON]
    service = max((watch.so_far(name)[0].longest_gap_s for name in carried), default=time.monotonic() - begun)
    trouble += ["the journal is left open"] if stands.in_flight else []
    lost = sum(fate is not Fate.CARRIED_ON for fate in vms.values())
    told = {name: fate.value for name, fate in vms.items()}
    row = (fault.name, fault.phase, fault.ram_survives, found.value, told, lost, twice, round(service, 1))
    return Row(*row, fault.needs_operator, tuple(trouble), MISSED if played.missed else fault.why)


def _fate(host: Host, watch: scene.Watch, guest: GuestSpec) -> tuple[Fate, list[str]]:
    """What became of a guest, and what is wrong with it: all of it if it carried on, else its disk."""
    before = watch.before[guest.name]
    try:
        after = scene.wait_for_guest(host, guest)
    except HoldfastError as exc:
        return Fate.GONE, [f"{guest.name}: {_first_line(exc)}"]
    if after["boot_id"] == before.boot_id:
        return Fate.CARRIED_ON, compare(before, watch.look(guest))
    return Fate.STARTED_AFRESH, disk_findings(before, scene.witness(host, guest).verify())


def disk_findings(before: Snapshot, disk: Mapping[str, Any]) -> list[str]:
    """What a guest that was started afresh has lost of what it had synced to its disk before. Pure."""
    found = [f"{before.name}: disk: {error}" for error in disk["errors"]]
    if disk["records"] < before.disk_records:
        found.append(f"{before.name}: disk: {before.disk_records} records before, {disk['records']} after")
    return found


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [""])[0]
