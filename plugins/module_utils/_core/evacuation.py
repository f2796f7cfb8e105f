# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Move one VM to another host while it runs, and prove where it is afterwards.

Whatever happens, the VM ends at one of the two hosts, and this says at which. What was made for a move that failed is
taken back, and the VM goes on at the source.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from . import away, domain, durable, images, incoming, migration, monitor, switchover, switchovers
from .config import RUN_DIR
from .errors import HoldfastError, Refused, VmError
from .facts import Runs, plain
from .hypervisor import Domain, Hypervisor, reach
from .images import Copy, CopyPlan
from .migration import Ends, PostCopy, Whereabouts, Wish
from .switchover import Act, Sample

LOOK_S = 0.5
# Between two tries; and for how long both sides are asked until they agree.
PAUSE_BETWEEN_TRIES_S = 5.0
PROOF_LIMIT_S = 60.0
# A destination whose network is gone closes no connection, and libvirt may hold on to it until TCP gives up.
SILENT_LIMIT_S = 60.0
PROGRESS_DIR = RUN_DIR / "migrations"
# QEMU asks for tmpfs or hugetlbfs (test_ramblock_postcopiable). The nodes of a pool of devices are on the latter, so it
# would find out only when the guest's CPUs have gone over, and the VM would be lost.
NO_POSTCOPY = "no post-copy: its RAM is a file or a device, of which QEMU fetches no pages; it is moved without"


@dataclass(frozen=True)
class Storage:
    """``shared_paths`` are the same directories on both hosts, images below ``base_paths`` are equal on both.

    ``copied``: disks that only this host has may be copied.
    """

    shared_paths: Tuple[str, ...] = ()
    base_paths: Tuple[str, ...] = ()
    copied: bool = False


class Way(Enum):
    """``AWAY``: it is to come home, and what it leaves here stays. ``HOME``: it comes back from there.

    Images that the VM left at home are replaced when it comes. What was copied ``FOR_GOOD``, or home, is removed here.
    """

    AWAY = "away"
    FOR_GOOD = "for_good"
    HOME = "home"


@dataclass(frozen=True)
class Journey:
    """``origin``: this host, as the inventory calls it; ``to`` likewise for the destination."""

    origin: str
    to: str
    way: Way = Way.AWAY


@dataclass(frozen=True)
class Outcome:
    """How it ended. ``pause_s`` is what QEMU measured, None when the VM was not moved or nobody knows.

    Without ``tries`` nothing was begun: the VM was at the destination before, or somewhere that forbids it.
    """

    whereabouts: Whereabouts
    error: str = ""
    pause_s: Optional[float] = None
    seconds: float = 0.0
    tries: int = 0
    ram_bytes: int = 0
    disk_bytes: int = 0
    encrypted: bool = True
    postcopy: bool = False
    copied: Tuple[str, ...] = ()
    remarks: Tuple[str, ...] = ()

    @property
    def moved(self) -> bool:
        return self.whereabouts is Whereabouts.DESTINATION and self.tries > 0


@dataclass
class _Try:
    """One call of libvirt's, in a thread of its own, and what it raised."""

    error: Optional[HoldfastError] = None

    def run(self, vm: Domain, uri: str, names: Sequence[str], values: Dict[str, Any]) -> None:
        try:
            vm.migrate(uri, names, values)
        except HoldfastError as exc:
            self.error = exc


class Move:
    """The move of one VM. Raises HoldfastError for what is in its way already."""

    def __init__(self, here: Hypervisor, there: Hypervisor, vm: Domain, wish: Wish, storage: Storage) -> None:
        self.here, self.there, self.vm, self.wish, self.storage = here, there, vm, wish, storage
        self.began_at = time.monotonic()
        self.cancel = threading.Event()
        self.samples: List[Sample] = []
        self.allowed_s = wish.bounds.wanted_pause_s
        self.allowed_at_s: Optional[float] = None
        self.aimed = False
        self.postcopy = False
        self.reason = ""
        self.remarks: Tuple[str, ...] = ()
        self.look()

    def look(self) -> None:
        """See what the VM is like now. Raises HoldfastError when it cannot be moved."""
        self.copy = copy_plan(self.vm, self.storage)
        version = tuple(int(part) for part in monitor.qemu_version(self.vm).split("."))
        self.ends = Ends((version[0], version[1], version[2]), self.there.qemu_version())
        self.paused_before = self.vm.runs() is Runs.STANDS
        migration.require_possible(self.wish, self.ends)
        if self.wish.postcopy is not PostCopy.NEVER and domain.ram_in_file(self.vm.xml()):
            self.wish = replace(self.wish, postcopy=PostCopy.NEVER)
            self.remarks = (NO_POSTCOPY,)

    def go(self) -> Tuple[Whereabouts, str, int]:
        """Try as often as wished. Returns where the VM is, why not at the destination, and the number of tries."""
        # Others may have had the host for themselves until now.
        self.began_at = time.monotonic()
        number = 0
        while True:
            number += 1
            try:
                error = self._once(number)
            except HoldfastError as exc:
                error = str(exc)
            place = self._proven()
            if place is not Whereabouts.SOURCE:
                return place, error, number
            self._go_on_here()
            if not error or self.reason or number >= self.wish.tries or self.cancel.is_set():
                return place, self.reason or error, number
            self.cancel.wait(PAUSE_BETWEEN_TRIES_S)

    def _once(self, number: int) -> str:
        """One try; returns libvirt's word for why it failed, or nothing."""
        self.samples, self.allowed_at_s, self.aimed = [], None, False
        self.allowed_s = self.wish.bounds.wanted_pause_s
        if number > 1:
            # What the try before has copied may be stale where the guest has discarded it since.
            for image in self.copy.images:
                self.there.make_image(image.path, domain.image_xml(image))
        # A QEMU that was restored from the pool must send its RAM like any other.
        if monitor.ram_stays_in_place(self.vm):
            monitor.copy_ram_again(self.vm)
        names = migration.flags(self.wish, self.ends, self.copy, self.vm.persistent())
        values = migration.parameters(self.wish, self.ends, self.copy, self._definition())
        attempt = _Try()
        caller = threading.Thread(target=attempt.run, args=(self.vm, self.wish.uri, names, values), daemon=True)
        caller.start()
        try:
            while caller.is_alive():
                caller.join(LOOK_S)
                if caller.is_alive():
                    self._follow(number)
        except BaseException:
            self._abort()
            raise
        finally:
            # While libvirt is at work nobody can say where the VM will be, nor what it needs.
            caller.join()
        if attempt.error is not None and self.postcopy:
            attempt = self._resumed(names, values)
        return str(attempt.error) if attempt.error else ""

    def _definition(self) -> str:
        """What the destination gets instead of the VM's own definition; empty when that is fit."""
        own = self.vm.migratable_xml()
        fit = incoming.without_incoming(own)
        if self.copy.copy is Copy.ALL:
            fit = domain.on_whole_images(fit, self.copy.targets)
        return "" if fit == own else fit

    def _follow(self, number: int) -> None:
        """Follow the migration, and act where that is due."""
        now = time.monotonic()
        stats = self.vm.job_stats()
        if stats.get("type"):
            self.aimed = self.aimed or self.vm.allow_pause(self.allowed_s)
            self.samples.append(switchover.read(stats, now))
            self.tell("sending" if self.samples[-1].round else "copying", number)
        if self.postcopy:
            return
        if not self.reason and self.cancel.is_set():
            self._give_up("cancelled")
        elif not self.reason and now - self.began_at > self.wish.deadline_s:
            self._give_up(f"it did not end within {self.wish.deadline_s:.0f} s")
        elif not self.reason and switchover.silent_for_s(self.samples) > SILENT_LIMIT_S:
            self._give_up(
                f"nothing was sent for {SILENT_LIMIT_S:.0f} s: see whether {self.wish.address} is still there"
            )
        elif self.reason:
            # A job that only just begins may not hear the first word.
            self._abort()
        elif self.samples:
            self._heed(switchover.advise(self.samples, self.wish.bounds, self.allowed_s, self.allowed_at_s), now)

    def _heed(self, advice: switchover.Advice, now: float) -> None:
        if advice.act is Act.ALLOW and self.vm.allow_pause(advice.pause_s):
            self.allowed_s, self.allowed_at_s = advice.pause_s, now
        elif advice.act is Act.HOPELESS and self.wish.postcopy is PostCopy.IF_HOPELESS:
            self._switch_to_postcopy()
        elif advice.act is Act.HOPELESS:
            self._give_up(
                f"{Act.HOPELESS.value}: it would stand still for {advice.pause_s:.1f} s, "
                f"{self.wish.bounds.longest_pause_s:.1f} s are allowed"
            )

    def _switch_to_postcopy(self) -> None:
        try:
            self.vm.start_postcopy()
            self.postcopy = True
        except VmError as exc:  # perhaps it has just arrived
            self._give_up(f"{Act.HOPELESS.value}, and: {exc}")

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._abort()

    def _abort(self) -> None:
        with suppress(VmError):  # it has just ended
            self.vm.cancel_job()

    def _resumed(self, names: List[str], values: Dict[str, Any]) -> _Try:
        """A post-copy migration whose connection broke goes on from there; neither side may be ended before."""
        attempt = _Try()
        for _ in range(self.wish.tries):
            time.sleep(PAUSE_BETWEEN_TRIES_S)
            attempt = _Try()
            attempt.run(self.vm, self.wish.uri, [*names, "POSTCOPY_RESUME"], values)
            if attempt.error is None:
                break
        return attempt

    def _proven(self) -> Whereabouts:
        """Where the VM is by the word of both sides, asked until that is clear, for a minute at most."""
        deadline = time.monotonic() + PROOF_LIMIT_S
        while True:
            place = migration.whereabouts(*self.seen())
            if place in (Whereabouts.SOURCE, Whereabouts.DESTINATION) or time.monotonic() > deadline:
                return place
            time.sleep(LOOK_S)

    def seen(self) -> Tuple[Runs, Runs]:
        """What this host and the destination say of the VM now."""
        return _asked(self.here, self.vm.uuid), self._asked_there()

    def _asked_there(self) -> Runs:
        answer = _asked(self.there, self.vm.uuid)
        if answer is not Runs.SILENT:
            return answer
        # The connection may be what broke.
        with suppress(HoldfastError), reach(self.wish.uri) as again:
            return _asked(again, self.vm.uuid)
        return Runs.SILENT

    def _go_on_here(self) -> None:
        """It is here and nowhere else: if it stands still because of us, it goes on."""
        if not self.paused_before and self.vm.runs() is not Runs.RUNS and not self.vm.postcopy_broke():
            self.vm.resume()

    def tell(self, state: str, number: int) -> None:
        """Put the progress where whoever watches can read it."""
        now = self.samples[-1] if self.samples else Sample(time.monotonic())
        line = {
            "vm": self.vm.name,
            "uuid": self.vm.uuid,
            "to": self.wish.address,
            "state": state,
            "try": number,
            "percent": round(now.moved_percent, 1),
            "allowed_pause_s": round(self.allowed_s, 3),
            "postcopy": self.postcopy,
            "seconds": round(time.monotonic() - self.began_at, 1),
            **{key: value for key, value in asdict(now).items() if key != "at_s"},
        }
        with suppress(HoldfastError):  # a full /run must not end a migration
            durable.write_text(PROGRESS_DIR / f"{self.vm.uuid}.json", json.dumps(line))


def stays(here: Hypervisor, vm: Domain) -> bool:
    """Whether a VM is here and not just arriving, as far as this host knows."""
    return _asked(here, vm.uuid) in (Runs.RUNS, Runs.STANDS)


def find(here: Hypervisor, name: str) -> Optional[Domain]:
    """A VM with a QEMU on this host, by name."""
    return next((one for one in here.running() if one.name == name), None)


def copy_plan(vm: Domain, storage: Storage) -> CopyPlan:
    """What must be copied for this VM. Raises Refused when something must be and nothing may be."""
    sources = [_sized(vm, one) for one in domain.disk_sources(vm.xml())]
    plan = images.plan(sources, storage.shared_paths, storage.base_paths)
    if plan.images and not storage.copied:
        raise Refused(
            f"VM {vm.name}: only this host has {', '.join(image.path for image in plan.images)}",
            "allow disks to be copied, or name directories that all hosts share",
        )
    return plan


def move(move_of: Move, journey: Journey, state_dir: Path) -> Outcome:
    """Move it; remember it, make images, and take both back if it did not move."""
    with alone(), _still_here(move_of), _progress_ends(move_of.vm), _images_made(move_of, journey):
        remarks = (*move_of.remarks, *_remember(move_of, journey, state_dir))
        place, error, tries = move_of.go()
        outcome = Outcome(
            place,
            error="" if place is Whereabouts.DESTINATION else error or place.value,
            tries=tries,
            seconds=time.monotonic() - move_of.began_at,
            encrypted=move_of.wish.encryption is migration.Encryption.TLS,
            postcopy=move_of.postcopy,
            copied=tuple(image.path for image in move_of.copy.images),
            remarks=remarks,
        )
        if not outcome.moved:
            if place is Whereabouts.SOURCE:
                _forget(move_of, journey, state_dir)
            raise _NotMoved(outcome)
    outcome = _settled(move_of, journey, outcome)
    if outcome.pause_s is not None:
        with suppress(HoldfastError):  # only the next plan misses it
            switchovers.note(state_dir, outcome.pause_s)
    return outcome


class _NotMoved(Exception):
    """The VM was not moved. Carries the outcome through the blocks that take things back."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.error)
        self.outcome = outcome


def attempted(move_of: Move, journey: Journey, state_dir: Path) -> Outcome:
    """As ``move``; an outcome, too, when it did not move. Raises HoldfastError for what was found before it began."""
    try:
        return move(move_of, journey, state_dir)
    except _NotMoved as exc:
        return exc.outcome


@contextmanager
def alone() -> Iterator[None]:
    """One migration away from this host at a time: two would share the link, and both would take longer to converge."""
    RUN_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(RUN_DIR / "migrate.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _still_here(move_of: Move) -> Iterator[None]:
    """Look at everything again, before anything is touched: others may have moved the VM while this one waited.

    An image at the destination may be the one that it runs on by now.
    """
    here, there = move_of.seen()
    if not migration.may_begin(here, there):
        place = migration.whereabouts(here, there)
        found = f"{here.value} here, {there.value} at {move_of.wish.address}; nothing was begun"
        raise _NotMoved(Outcome(place, error="" if place is Whereabouts.DESTINATION else found))
    move_of.look()
    yield


@contextmanager
def _progress_ends(vm: Domain) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):
            (PROGRESS_DIR / f"{vm.uuid}.json").unlink()


@contextmanager
def _images_made(move_of: Move, journey: Journey) -> Iterator[None]:
    """Images at the destination, gone again when the VM stays. Raises HoldfastError."""
    made: List[str] = []
    try:
        for image in move_of.copy.images:
            if journey.way is not Way.HOME and move_of.there.image_exists(image.path):
                raise Refused(
                    f"VM {move_of.vm.name}: {journey.to} has a file {image.path} already, which is not written over",
                    "remove it there if it is of no use any more",
                )
            move_of.there.make_image(image.path, domain.image_xml(image))
            made.append(image.path)
        yield
    except _NotMoved as exc:
        # Where it is not clear whether the VM needs them, they stay. At home they are the VM's own, and wait for it.
        if exc.outcome.whereabouts is Whereabouts.SOURCE and journey.way is not Way.HOME:
            _remove(move_of.there, made)
        raise
    except HoldfastError:  # of any other error nobody knows how far the VM is
        if journey.way is not Way.HOME:
            _remove(move_of.there, made)
        raise


def _remove(where: Hypervisor, paths: Sequence[str]) -> Tuple[str, ...]:
    """Delete images; returns what was in the way, in words."""
    trouble = []
    for path in paths:
        try:
            where.remove_image(path)
        except HoldfastError as exc:
            trouble.append(str(exc))
    return tuple(trouble)


def _remember(move_of: Move, journey: Journey, state_dir: Path) -> Tuple[str, ...]:
    """Before it leaves: on this host, and on the VM, which takes it along."""
    if journey.way is not Way.AWAY:
        return ()
    vm, at = move_of.vm, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    left = tuple(image.path for image in move_of.copy.images)
    away.note(state_dir, away.Away(vm.uuid, vm.name, journey.to, at, left))
    try:
        vm.set_metadata(domain.EVACUATED_NAMESPACE, "holdfast-evacuated", domain.evacuated_xml(journey.origin, at))
    except VmError as exc:
        return (f"it does not carry a mark of where it came from: {exc}",)
    return ()


def _forget(move_of: Move, journey: Journey, state_dir: Path) -> None:
    if journey.way is Way.AWAY:
        away.forget(state_dir, move_of.vm.uuid)
        with suppress(VmError):
            move_of.vm.set_metadata(domain.EVACUATED_NAMESPACE, "holdfast-evacuated", "")


def _settled(move_of: Move, journey: Journey, outcome: Outcome) -> Outcome:
    """After it has arrived: what was measured, and what is left to be cleared away."""
    remarks = list(outcome.remarks)
    arrived = move_of.there.find(move_of.vm.uuid)
    stats = arrived.completed_job_stats() if arrived else {}
    if arrived and journey.way is not Way.AWAY:
        try:
            arrived.set_metadata(domain.EVACUATED_NAMESPACE, "holdfast-evacuated", "")
        except VmError as exc:
            remarks.append(str(exc))
        remarks += _remove(move_of.here, outcome.copied)
    last = move_of.samples[-1] if move_of.samples else Sample(0.0)
    return replace(
        outcome,
        pause_s=int(stats["downtime"]) / 1000 if stats.get("downtime") is not None else None,
        ram_bytes=int(stats.get("memory_total") or last.ram_total_bytes),
        disk_bytes=last.disk_total_bytes,
        remarks=tuple(remarks),
    )


def _asked(hypervisor: Hypervisor, uuid: str) -> Runs:
    try:
        vm = hypervisor.find(uuid)
        return vm.runs() if vm else Runs.ABSENT
    except HoldfastError:
        return Runs.SILENT


def _sized(vm: Domain, one: images.Source) -> images.Source:
    try:
        return replace(one, capacity_bytes=vm.disk_capacity(one.target))
    except VmError:  # an empty drive, or a disk behind a network
        return one


def told(outcome: Outcome) -> Dict[str, Any]:
    """The outcome as dictionaries and lists."""
    return dict(plain(outcome))  # type: ignore[call-overload]
