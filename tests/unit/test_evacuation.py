# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM that is moved ends at one of two hosts, whatever happens, and is said to be where it is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import away, evacuation, monitor, switchovers
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, HoldfastError, Refused, VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.evacuation import Journey, Move, Outcome, Storage, Way
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import Runs
from ansible_collections.holdfast.kvm.plugins.module_utils._core.images import Copy, CopyPlan, Image
from ansible_collections.holdfast.kvm.plugins.module_utils._core.migration import PostCopy, Whereabouts, Wish
from ansible_collections.holdfast.kvm.plugins.module_utils._core.switchover import Bounds

WISH = Wish("db", "qemu+tls://hv2/system", "hv2", bounds=Bounds(0.3, 2.0, stall_s=0.0), tries=2)
AWAY, HOME, FOR_GOOD = (Journey("hv1", "hv2", way) for way in (Way.AWAY, Way.HOME, Way.FOR_GOOD))
DISK = "/images/db.qcow2"
COPY = CopyPlan(Copy.ALL, (Image("vda", DISK, "qcow2", 1 << 30),))
XML = "<domain type='kvm'><name>db</name><uuid>u</uuid><memory>64</memory><devices/></domain>"
ON_DISK = f"<disk type='file'><driver type='qcow2'/><source file='{DISK}'/><target dev='vda'/></disk>"
LIMIT_S = 5.0
# Long after: many looks.
LATE_S = 0.1


class Fleet:
    """Two hosts and one VM. ``script``: what each call of libvirt's migration does, one after the other."""

    def __init__(self) -> None:
        self.here, self.there = Libvirt(self), Libvirt(self)
        self.vm = Vm(self)
        self.here.vms["u"] = self.vm
        self.script: list[Any] = [self.arrive]
        self.calls: list[tuple[str, ...]] = []
        self.values: list[dict[str, Any]] = []
        self.stats: dict[str, Any] = {"type": 2, "memory_iteration": 1, "memory_total": 100, "memory_remaining": 50}
        self.aborted = threading.Event()
        self.allowed: list[float] = []
        self.stays_in_place = False

    def arrive(self) -> None:
        self.there.vms["u"] = self.here.vms.pop("u")

    def fail(self) -> None:
        raise VmError("VM db: cannot migrate it: connection reset")

    def until_aborted(self) -> None:
        assert self.aborted.wait(LIMIT_S)
        raise VmError("VM db: cannot migrate it: operation aborted")

    def move(self, wish: Wish = WISH, copy: CopyPlan = CopyPlan()) -> Move:  # noqa: B008
        self.vm.disks = ON_DISK if copy.images else ""
        return Move(self.here, self.there, self.vm, wish, Storage(copied=True))  # type: ignore[arg-type]


class Libvirt:
    """One host's libvirt, as ``Hypervisor`` shows it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.vms: dict[str, Vm] = {}
        self.files: set[str] = set()
        self.made: list[str] = []
        self.silent = False

    def find(self, uuid: str) -> Vm | None:
        if self.silent:
            raise HoldfastError("libvirt does not answer")
        return self.vms.get(uuid)

    def running(self) -> list[Vm]:
        return list(self.vms.values())

    def qemu_version(self) -> tuple[int, int, int]:
        return (11, 1, 3)

    def image_exists(self, path: str) -> bool:
        return path in self.files

    def make_image(self, path: str, _xml: str) -> None:
        self.files.add(path)
        self.made.append(path)

    def remove_image(self, path: str) -> None:
        self.files.discard(path)


class Vm:
    """The VM, as ``Domain`` shows it; the same object at both hosts."""

    name, uuid, disks = "db", "u", ""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.state = Runs.RUNS
        self.marks: list[str] = []
        self.resumed = 0
        self.broke = False

    def runs(self) -> Runs:
        return self.state

    def migrate(self, _uri: str, names: Any, values: dict[str, Any]) -> None:
        self.fleet.calls.append(tuple(names))
        self.fleet.values.append(values)
        self.fleet.script.pop(0)()

    def persistent(self) -> bool:
        return True

    def migratable_xml(self) -> str:
        return XML

    def xml(self) -> str:
        return XML.replace("<devices/>", f"<devices>{self.disks}</devices>")

    def disk_capacity(self, _target: str) -> int:
        return 1 << 30

    def job_stats(self) -> dict[str, Any]:
        return self.fleet.stats

    def completed_job_stats(self) -> dict[str, Any]:
        return {"downtime": 210, "memory_total": 4096}

    def cancel_job(self) -> None:
        self.fleet.aborted.set()

    def allow_pause(self, pause_s: float) -> bool:
        self.fleet.allowed.append(pause_s)
        return True

    def start_postcopy(self) -> None:
        self.fleet.aborted.set()

    def postcopy_broke(self) -> bool:
        return self.broke

    def resume(self) -> None:
        self.resumed += 1
        self.state = Runs.RUNS

    def set_metadata(self, _namespace: str, _prefix: str, element: str) -> None:
        self.marks.append(element)


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fleet:
    made = Fleet()
    monkeypatch.setattr(evacuation, "RUN_DIR", tmp_path / "run")
    monkeypatch.setattr(evacuation, "PROGRESS_DIR", tmp_path / "run/migrations")
    for name, seconds in (("LOOK_S", 0.005), ("PAUSE_BETWEEN_TRIES_S", 0.0), ("PROOF_LIMIT_S", 0.05)):
        monkeypatch.setattr(evacuation, name, seconds)
    monkeypatch.setattr(monitor, "qemu_version", lambda _vm: "11.1.3")
    monkeypatch.setattr(monitor, "ram_stays_in_place", lambda _vm: made.stays_in_place)
    monkeypatch.setattr(monitor, "copy_ram_again", lambda _vm: setattr(made, "stays_in_place", False))
    return made


def go(fleet: Fleet, folder: Path, journey: Journey = AWAY, copy: CopyPlan | None = None, **wish: Any) -> Outcome:
    return evacuation.attempted(fleet.move(replace(WISH, **wish), copy or CopyPlan()), journey, folder)


def test_a_vm_is_moved_remembered_and_marked(fleet: Fleet, tmp_path: Path) -> None:
    outcome = go(fleet, tmp_path)
    assert outcome.moved
    assert (outcome.pause_s, outcome.tries, outcome.ram_bytes, outcome.error) == (0.21, 1, 4096, "")
    assert switchovers.read(tmp_path) == (0.21,)
    (one,) = away.read(tmp_path)
    assert (one.name, one.to) == ("db", "hv2")
    (mark,) = fleet.vm.marks
    assert "home='hv1'" in mark


def test_its_memory_is_copied_also_when_it_was_restored_from_the_pool(fleet: Fleet, tmp_path: Path) -> None:
    fleet.stays_in_place = True
    assert go(fleet, tmp_path).moved
    assert fleet.stays_in_place is False


def test_what_fails_is_tried_again_and_then_runs_on_here_as_if_nothing_had_been(fleet: Fleet, tmp_path: Path) -> None:
    fleet.script = [fleet.fail, fleet.fail, fleet.arrive]
    outcome = go(fleet, tmp_path, copy=COPY)
    assert outcome.whereabouts is Whereabouts.SOURCE
    assert (outcome.tries, len(fleet.calls)) == (2, 2)
    assert "connection reset" in outcome.error
    assert away.read(tmp_path) == ()
    assert switchovers.read(tmp_path) == ()
    assert fleet.vm.marks[-1] == ""
    assert fleet.there.files == set()


def test_a_second_try_may_succeed(fleet: Fleet, tmp_path: Path) -> None:
    fleet.script = [fleet.fail, fleet.arrive]
    outcome = go(fleet, tmp_path)
    assert outcome.moved
    assert outcome.tries == 2


def test_a_vm_that_libvirt_left_standing_goes_on_here(fleet: Fleet, tmp_path: Path) -> None:
    def stop_and_fail() -> None:
        fleet.vm.state = Runs.STANDS
        fleet.fail()

    fleet.script = [stop_and_fail]
    assert go(fleet, tmp_path, tries=1).whereabouts is Whereabouts.SOURCE
    assert fleet.vm.resumed == 1


def test_it_does_not_go_on_here_while_nobody_knows_whether_it_runs_there(fleet: Fleet, tmp_path: Path) -> None:
    def stop_and_lose_sight() -> None:
        fleet.vm.state, fleet.there.silent = Runs.STANDS, True
        fleet.fail()

    fleet.script = [stop_and_lose_sight]
    outcome = go(fleet, tmp_path, copy=COPY)
    assert outcome.whereabouts is Whereabouts.UNPROVEN
    assert fleet.vm.resumed == 0
    assert len(away.read(tmp_path)) == 1
    assert fleet.there.files == {DISK}


def test_a_vm_that_was_paused_before_stays_paused(fleet: Fleet, tmp_path: Path) -> None:
    fleet.vm.state, fleet.script = Runs.STANDS, [fleet.fail]
    assert go(fleet, tmp_path, tries=1).whereabouts is Whereabouts.SOURCE
    assert fleet.vm.resumed == 0


def test_it_is_not_tried_again_when_it_may_run_twice(fleet: Fleet, tmp_path: Path) -> None:
    def double() -> None:
        fleet.there.vms["u"] = fleet.vm
        fleet.fail()

    fleet.script = [double, fleet.arrive]
    assert go(fleet, tmp_path).whereabouts is Whereabouts.BOTH
    assert len(fleet.calls) == 1


def test_after_its_deadline_it_stays(fleet: Fleet, tmp_path: Path) -> None:
    fleet.script = [fleet.until_aborted]
    outcome = go(fleet, tmp_path, deadline_s=0.05)
    assert outcome.whereabouts is Whereabouts.SOURCE
    assert "did not end within" in outcome.error
    assert outcome.tries == 1


def test_a_destination_that_takes_nothing_any_more_gets_nobody(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evacuation, "SILENT_LIMIT_S", 0.05)
    fleet.stats = {"type": 2, "memory_iteration": 1, "memory_total": 100, "memory_processed": 40}
    fleet.script = [fleet.until_aborted]
    outcome = go(fleet, tmp_path)
    assert (outcome.whereabouts, outcome.tries) == (Whereabouts.SOURCE, 1)
    assert outcome.error.startswith("nothing was sent for")


def test_who_cancels_it_keeps_the_vm_here(fleet: Fleet, tmp_path: Path) -> None:
    fleet.script = [fleet.until_aborted]
    move = fleet.move()
    threading.Timer(0.05, move.cancel.set).start()
    outcome = evacuation.attempted(move, AWAY, tmp_path)
    assert (outcome.whereabouts, outcome.error, outcome.tries) == (Whereabouts.SOURCE, "cancelled", 1)


def stalling(fleet: Fleet, pause_ms: int) -> None:
    """Rounds go by, and the pause to be expected stays what it is."""
    begun = time.monotonic()

    class Stats(dict):  # type: ignore[type-arg]
        def get(self, name: str, default: Any = None) -> Any:
            if name == "memory_iteration":
                return 2 + int((time.monotonic() - begun) / 0.01)
            return super().get(name, default)

    fleet.stats = Stats(type=2, downtime=pause_ms, memory_total=100, memory_remaining=50)


def test_a_vm_that_writes_too_fast_stays(fleet: Fleet, tmp_path: Path) -> None:
    stalling(fleet, 9000)
    fleet.script = [fleet.until_aborted]
    outcome = go(fleet, tmp_path)
    assert outcome.whereabouts is Whereabouts.SOURCE
    assert "9.0 s, 2.0 s are allowed" in outcome.error


def test_a_longer_pause_is_allowed_when_waiting_does_not_pay(fleet: Fleet, tmp_path: Path) -> None:
    stalling(fleet, 1000)

    def until_allowed() -> None:
        deadline = time.monotonic() + LIMIT_S
        while len(fleet.allowed) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        fleet.arrive()

    fleet.script = [until_allowed]
    assert go(fleet, tmp_path).moved
    assert fleet.allowed[:2] == [0.3, pytest.approx(1.04)]


def test_qemu_aims_at_what_the_vm_can_bear(fleet: Fleet, tmp_path: Path) -> None:
    def until_aimed() -> None:
        deadline = time.monotonic() + LIMIT_S
        while not fleet.allowed and time.monotonic() < deadline:
            time.sleep(0.005)
        fleet.arrive()

    fleet.script = [until_aimed]
    assert go(fleet, tmp_path, bounds=Bounds(0.05, 0.05)).moved
    assert fleet.allowed == [0.05]


def test_each_try_copies_into_a_new_image(fleet: Fleet, tmp_path: Path) -> None:
    fleet.script = [fleet.fail, fleet.arrive]
    assert go(fleet, tmp_path, copy=COPY).moved
    assert fleet.there.made == [DISK, DISK]


def test_postcopy_where_it_is_allowed_and_there_is_no_other_way(fleet: Fleet, tmp_path: Path) -> None:
    stalling(fleet, 9000)

    def until_postcopy() -> None:
        assert fleet.aborted.wait(LIMIT_S)
        fleet.arrive()

    fleet.script = [until_postcopy]
    outcome = go(fleet, tmp_path, postcopy=PostCopy.IF_HOPELESS)
    assert outcome.moved
    assert outcome.postcopy


def test_no_postcopy_into_a_pool(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU at the destination refuses it, or, with a device, loses the VM when it finds out."""
    backing = "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>"
    monkeypatch.setattr(Vm, "xml", lambda _vm: XML.replace("<devices/>", f"{backing}<devices/>"))
    monkeypatch.setattr(Vm, "start_postcopy", lambda _vm: pytest.fail("the VM would be lost"))
    stalling(fleet, 9000)
    fleet.script = [fleet.until_aborted]
    outcome = go(fleet, tmp_path, postcopy=PostCopy.IF_HOPELESS)
    assert (outcome.whereabouts, outcome.postcopy) == (Whereabouts.SOURCE, False)
    assert "POSTCOPY" not in fleet.calls[0]
    assert outcome.remarks == (evacuation.NO_POSTCOPY,)


def test_a_postcopy_migration_that_broke_goes_on_from_there(fleet: Fleet, tmp_path: Path) -> None:
    stalling(fleet, 9000)

    def breaks() -> None:
        assert fleet.aborted.wait(LIMIT_S)
        fleet.vm.state, fleet.vm.broke = Runs.ARRIVING, True
        fleet.fail()

    def heals() -> None:
        fleet.vm.state = Runs.RUNS
        fleet.arrive()

    fleet.script = [breaks, heals]
    assert go(fleet, tmp_path, postcopy=PostCopy.IF_HOPELESS).moved
    assert "POSTCOPY_RESUME" in fleet.calls[1]
    assert fleet.vm.resumed == 0


def test_a_switch_to_postcopy_that_is_refused_leaves_no_migration_behind(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, images = refuses_postcopy(fleet, monkeypatch), []

    def end_late() -> None:
        assert refused.wait(LIMIT_S)
        time.sleep(LATE_S)
        images.append(set(fleet.there.files))
        fleet.fail()

    fleet.script = [end_late]
    outcome = go(fleet, tmp_path, copy=COPY, postcopy=PostCopy.IF_HOPELESS)
    assert (outcome.whereabouts, outcome.tries, outcome.postcopy) == (Whereabouts.SOURCE, 1, False)
    assert "cannot switch" in outcome.error
    assert images == [{DISK}], "an image was removed while the VM was on its way to it"
    assert fleet.there.files == set()


def test_a_vm_that_arrived_before_its_switch_to_postcopy_keeps_its_images(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = refuses_postcopy(fleet, monkeypatch)

    def arrive_late() -> None:
        assert refused.wait(LIMIT_S)
        time.sleep(LATE_S)
        fleet.arrive()

    fleet.script = [arrive_late]
    assert go(fleet, tmp_path, copy=COPY, postcopy=PostCopy.IF_HOPELESS).moved
    assert fleet.there.files == {DISK}


def refuses_postcopy(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A VM that writes too fast, and that libvirt does not switch to post-copy; set once it was asked to."""
    asked = threading.Event()

    def refuse(_vm: Vm) -> None:
        asked.set()
        raise VmError("VM db: cannot switch its migration to post-copy: domain is not being migrated")

    stalling(fleet, 9000)
    monkeypatch.setattr(Vm, "start_postcopy", refuse)
    return asked


def test_no_error_of_ours_lets_go_of_a_migration_that_goes_on(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slipped = threading.Event()

    def slip(_vm: Vm) -> None:
        slipped.set()
        raise KeyError("memory_iteration")

    def arrive_late() -> None:
        assert slipped.wait(LIMIT_S)
        time.sleep(LATE_S)
        fleet.arrive()

    monkeypatch.setattr(Vm, "job_stats", slip)
    fleet.script = [arrive_late]
    with pytest.raises(KeyError):
        go(fleet, tmp_path, copy=COPY)
    assert fleet.aborted.is_set()
    assert set(fleet.there.vms) == {"u"}
    assert fleet.there.files == {DISK}, "nobody knew whether the VM needs it"


def test_images_are_made_there_and_never_written_over(fleet: Fleet, tmp_path: Path) -> None:
    assert go(fleet, tmp_path, copy=COPY).moved
    assert fleet.there.files == {DISK}
    assert away.read(tmp_path)[0].images == (DISK,)
    other = Fleet()
    other.there.files.add(DISK)
    with pytest.raises(Refused, match="not written over"):
        go(other, tmp_path, copy=COPY)
    assert other.calls == []
    assert other.there.files == {DISK}


def test_coming_home_replaces_what_was_left_there_and_clears_up_here(fleet: Fleet, tmp_path: Path) -> None:
    fleet.here.files, fleet.there.files = {DISK}, {DISK}
    assert go(fleet, tmp_path, HOME, COPY).moved
    assert fleet.here.files == set()
    assert fleet.there.files == {DISK}
    assert fleet.vm.marks == [""]
    assert away.read(tmp_path) == ()


def test_an_image_at_home_waits_when_the_vm_does_not_come(fleet: Fleet, tmp_path: Path) -> None:
    fleet.here.files, fleet.there.files, fleet.script = {DISK}, {DISK}, [fleet.fail]
    assert not go(fleet, tmp_path, HOME, COPY, tries=1).moved
    assert fleet.here.files == fleet.there.files == {DISK}


def waits(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Another migration has the host for itself first."""
    alone = evacuation.alone

    @contextmanager
    def after_another() -> Iterator[None]:
        with alone():
            meanwhile()
            yield

    monkeypatch.setattr(evacuation, "alone", after_another)


@pytest.mark.parametrize("journey", [AWAY, HOME, FOR_GOOD], ids=lambda one: str(one.way.value))
def test_a_vm_that_another_one_moved_meanwhile_keeps_its_images_there(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journey: Journey
) -> None:
    fleet.here.files, fleet.there.files = {DISK}, {DISK}
    waits(monkeypatch, fleet.arrive)
    outcome = go(fleet, tmp_path, journey, COPY)
    assert (outcome.whereabouts, outcome.moved, outcome.copied) == (Whereabouts.DESTINATION, False, ())
    assert (outcome.tries, outcome.error) == (0, "")
    assert (fleet.there.made, fleet.calls, fleet.vm.marks) == ([], [], [])
    assert fleet.here.files == fleet.there.files == {DISK}
    assert switchovers.read(tmp_path) == ()


def test_the_record_of_who_moved_it_meanwhile_stays(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = away.Away("u", "db", "hv2", "2026", (DISK,))
    away.note(tmp_path, earlier)
    waits(monkeypatch, fleet.arrive)
    assert not go(fleet, tmp_path).moved
    assert away.read(tmp_path) == (earlier,)


def gone(fleet: Fleet) -> None:
    del fleet.here.vms["u"]


def off(fleet: Fleet) -> None:
    fleet.vm.state = Runs.OFF


def twice(fleet: Fleet) -> None:
    fleet.there.vms["u"] = fleet.vm


def silent_there(fleet: Fleet) -> None:
    fleet.there.silent = True


def silent_here(fleet: Fleet) -> None:
    fleet.here.silent = True


def arriving_there(fleet: Fleet) -> None:
    fleet.there.vms["u"] = Vm(fleet)
    fleet.there.vms["u"].state = Runs.ARRIVING


@pytest.mark.parametrize(
    ("meanwhile", "place", "word"),
    [
        (gone, Whereabouts.NOWHERE, "is not there here"),
        (off, Whereabouts.NOWHERE, "is off here"),
        (twice, Whereabouts.BOTH, "runs at hv2"),
        (silent_there, Whereabouts.SOURCE, "libvirt does not answer at hv2"),
        (silent_here, Whereabouts.UNPROVEN, "libvirt does not answer here"),
        (arriving_there, Whereabouts.SOURCE, "is arriving at hv2"),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_nothing_is_begun_unless_the_vm_is_here_and_nowhere_else(
    fleet: Fleet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[Fleet], None],
    place: Whereabouts,
    word: str,
) -> None:
    fleet.here.files, fleet.there.files = {DISK}, {DISK}
    waits(monkeypatch, lambda: meanwhile(fleet))
    outcome = go(fleet, tmp_path, HOME, COPY)
    assert (outcome.whereabouts, outcome.moved, outcome.tries) == (place, False, 0)
    assert word in outcome.error
    assert (fleet.there.made, fleet.calls, fleet.vm.marks, fleet.vm.resumed) == ([], [], [], 0)
    assert fleet.here.files == fleet.there.files == {DISK}


def test_what_became_of_the_vm_while_it_waited_counts(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed() -> None:
        fleet.vm.disks, fleet.vm.state = ON_DISK, Runs.STANDS

    waits(monkeypatch, changed)
    fleet.script = [fleet.fail, fleet.arrive]
    outcome = go(fleet, tmp_path)
    assert (outcome.moved, outcome.copied, fleet.there.files) == (True, (DISK,), {DISK})
    assert fleet.vm.resumed == 0


def test_an_older_qemu_there_since_it_waited_is_refused(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(monkeypatch, lambda: monkeypatch.setattr(monitor, "qemu_version", lambda _vm: "12.0.0"))
    with pytest.raises(BadInput, match=r"older 11\.1\.3"):
        go(fleet, tmp_path, copy=COPY)
    assert (fleet.there.files, fleet.calls, away.read(tmp_path)) == (set(), [], ())


def test_who_goes_for_good_leaves_nothing_behind(fleet: Fleet, tmp_path: Path) -> None:
    fleet.here.files = {DISK}
    assert go(fleet, tmp_path, FOR_GOOD, COPY).moved
    assert fleet.here.files == set()
    assert away.read(tmp_path) == ()


def test_an_older_qemu_there_is_refused_before_anything_is_made(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "qemu_version", lambda _vm: "12.0.0")
    with pytest.raises(BadInput, match=r"older 11\.1\.3"):
        go(fleet, tmp_path, copy=COPY)
    assert (fleet.there.files, fleet.calls, away.read(tmp_path)) == (set(), [], ())


def test_disks_are_copied_only_when_that_is_allowed(fleet: Fleet) -> None:
    fleet.vm.disks = ON_DISK
    with pytest.raises(Refused, match=f"only this host has {DISK}"):
        evacuation.copy_plan(fleet.vm, Storage())  # type: ignore[arg-type]
    assert evacuation.copy_plan(fleet.vm, Storage(copied=True)) == COPY  # type: ignore[arg-type]
    assert evacuation.copy_plan(fleet.vm, Storage(shared_paths=("/images",))) == CopyPlan()  # type: ignore[arg-type]


def test_progress_can_be_read_while_it_goes_on(fleet: Fleet, tmp_path: Path) -> None:
    seen = tmp_path / "run/migrations/u.json"
    found: list[dict[str, Any]] = []

    def look_and_arrive() -> None:
        deadline = time.monotonic() + LIMIT_S
        while not seen.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        found.append(json.loads(seen.read_text()))
        fleet.arrive()

    fleet.script = [look_and_arrive]
    assert go(fleet, tmp_path).moved
    assert (found[0]["vm"], found[0]["state"], found[0]["percent"]) == ("db", "sending", 50.0)
    assert not seen.exists()
