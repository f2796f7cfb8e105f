# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wherever a generation was left, every VM that can go on does, none does twice, and what is lost is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    agent,
    attach,
    autostart,
    capability_cache,
    fallback,
    guard,
    health,
    kexec,
    lanes,
    monitor,
    recover,
    storage,
    suspend,
    ways_out,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core import request as requests
from ansible_collections.holdfast.kvm.plugins.module_utils._core import restore as restoring
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import Journal, latest, open_journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.standing import Sighting, Step, step_for

GENERATION = "g-20261121T020000-ab12cd"
DB, WEB = "11111111-0000-0000-0000-000000000000", "22222222-0000-0000-0000-000000000000"


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        (Sighting("pending", "running"), Step.NOTHING),
        (Sighting("paused", "paused"), Step.GO_ON),
        (Sighting("paused", "running"), Step.NOTE_RUNNING),
        (Sighting("paused", "paused", busy=True), Step.WAIT),
        (Sighting("paused", state_whole=True), Step.NOTE_SAVED),
        (Sighting("paused"), Step.LOST),
        (Sighting("paused", left=True), Step.LEFT),
        (Sighting("paused", state_whole=True, left=True), Step.NOTE_SAVED),
        (Sighting("suspended", state_whole=True), Step.RESTORE),
        (Sighting("failed", state_whole=True), Step.RESTORE),
        (Sighting("suspended", "paused", state_whole=True), Step.RESTORE_ANEW),
        (Sighting("suspended", "running", state_whole=True), Step.CONTRADICTION),
        (Sighting("resuming", "paused"), Step.GO_ON),
        (Sighting("resuming", "running"), Step.NOTE_RUNNING),
        # The saved state may still be there, but it counts as used: the guest may have run on.
        (Sighting("resuming", state_whole=True), Step.LOST),
        (Sighting("resuming", state_whole=True, left=True), Step.LEFT),
        (Sighting("resumed", "running"), Step.NOTHING),
        (Sighting("lost"), Step.NOTHING),
    ],
)
def test_one_vm_has_one_safe_next_step(seen: Sighting, step: Step) -> None:
    assert step_for(seen) is step


class Guest:
    """A domain of the fake hypervisor."""

    def __init__(self, uuid: str, state: str) -> None:
        self.uuid, self.name, self._state = uuid, uuid[:2], state
        self.id = -1 if state == "shutoff" else 7
        self.started = self.left = False
        self.looks_until_saved = 0

    @property
    def is_listed(self) -> bool:
        return self._state != "gone"

    def state(self) -> str:
        return self._state

    def job(self) -> str:
        self.looks_until_saved -= 1
        return "job type 2" if self.looks_until_saved >= 0 else ""

    def goes_on(self) -> bool:
        return self._state == "running"

    def ended_on_purpose(self) -> bool:
        return self.left

    def start(self) -> None:
        self.started = True

    def pause(self) -> None:
        self._state = "paused"

    def destroy(self) -> None:
        self._state = "gone"


class Scene:
    """One host: a real journal, and stand-ins for libvirt, the pool and the jump that note what was asked of them."""

    def __init__(self, state_dir: Path) -> None:
        self.config = Config(state_dir=state_dir)
        self.guests: list[Guest] = []
        self.defined: list[Guest] = []
        self.whole: set[str] = set()
        self.deeds: list[str] = []
        self.unrestorable: set[str] = set()
        self.problems: list[str] = []
        self.silent: tuple[str, ...] = ()
        self.waited_until: set[float] = set()
        # Its daemon is restarted before or after it says which VMs run for the nth time.
        self.restarted = ("never", 0)
        self.looks, self.connected = 0, True
        self.journal = open_journal(state_dir)
        vms = [
            {"name": "db", "uuid": DB, "priority": 80, "treatment": "in_place", "reason": ""},
            {"name": "web", "uuid": WEB, "priority": 20, "treatment": "in_place", "reason": "", "may_restart": True},
        ]
        kernel = {"from": "6.12", "to": "7.2"}
        self.journal.record(
            "begin",
            generation=GENERATION,
            host="hv1",
            kernel=kernel,
            qemu="10",
            boot_id="old",
            before={"ways_out": ["br0"]},
            vms=vms,
        )
        self.journal.record("suspending")

    def saved(self) -> None:
        for uuid in (DB, WEB):
            self.journal.record("vm_paused", uuid=uuid, was_paused=False)
            self.journal.record("vm_saved", uuid=uuid, ram_bytes=1, state_bytes=1)
            self.whole.add(uuid)
        self.journal.record("suspended")

    def jumped(self) -> None:
        self.saved()
        self.journal.record("jumping")

    def arrived(self, boot_id: str = "new") -> None:
        self.jumped()
        self.journal.record("arrived", boot_id=boot_id, kernel="7.2")
        self.journal.record("attached")

    def recover(self) -> Journal:
        """As the unit would; returns the journal in the end."""
        recover.recover(self.config)
        return latest(self.config.state_dir)

    # What the core asks of libvirt and of the pool.
    def running(self) -> list[Guest]:
        self.looks += 1
        self.connected = self.connected and self.restarted != ("before", self.looks)
        self.ask()
        self.connected = self.restarted != ("after", self.looks)
        return [guest for guest in self.guests if guest.is_listed]

    def domain(self, uuid: str) -> Guest:
        self.ask()
        return next(guest for guest in [*self.guests, *self.defined] if guest.uuid == uuid)

    def find(self, uuid: str) -> Guest | None:
        self.ask()
        return next((guest for guest in [*self.guests, *self.defined] if guest.uuid == uuid), None)

    def ask(self) -> None:
        if not self.connected:
            raise VmError("libvirt does not answer: End of file while reading data")

    def answers(self) -> bool:
        return self.connected

    def attach(self, content: Any) -> None:
        self.deeds.append(f"pool {content.value}")

    def commit(self) -> None:
        self.deeds.append("pool committed")

    def mount_point(self) -> Path:
        return Path("/var/lib/holdfast/pool")

    def release(self, uuid: str) -> None:
        self.deeds.append(f"release {uuid[:2]}")
        self.whole.discard(uuid)

    def ram_of(self, _uuid: str) -> tuple[Path, ...]:
        return ()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = Scene(tmp_path)

    @contextmanager
    def connect() -> Iterator[Scene]:
        scene.connected = True
        yield scene

    def restore(_hypervisor: Any, _pool: Any, journal: Journal, uuid: str, _deadline_s: float, ready: Any) -> None:
        scene.deeds.append(f"restore {uuid[:2]}")
        if uuid in scene.unrestorable:
            raise VmError(f"VM {uuid[:2]}: QEMU refuses its state")
        journal.record("vm_verified", uuid=uuid, ram_verified=True)
        ready(SimpleNamespace(name=uuid[:2], goes_on=lambda: False))
        journal.record("vm_resuming", uuid=uuid)
        journal.record("vm_resumed", uuid=uuid, moment=2.0, qemu="11.1.3")

    def silent(names: list[str], until: float, in_vain: Any) -> tuple[str, ...]:
        assert names == ["br0"]
        scene.waited_until.add(until)
        return scene.silent

    def go_back(_pool: Any, journal: Journal, reason: str) -> None:
        scene.deeds.append("go back")
        journal.record("falling_back", reason=reason)
        raise SystemExit  # what really happens here is that this kernel ends

    for module in (recover, attach):
        monkeypatch.setattr(module, "open_pool", lambda _config: scene)
    monkeypatch.setattr(recover, "connect_patiently", connect)
    monkeypatch.setattr(fallback, "connect", connect)
    monkeypatch.setattr(monitor, "copy_ram_again", lambda domain: scene.deeds.append(f"ram is copied {domain.name}"))
    monkeypatch.setattr(restoring, "state_path", lambda _pool, uuid: tmp_path / uuid)
    monkeypatch.setattr(recover, "restore", restore)
    monkeypatch.setattr(recover, "verify", lambda _pool, _vm: None)
    monkeypatch.setattr(recover.saveimage, "is_whole", lambda path: path in scene.whole)
    monkeypatch.setattr(suspend, "state_path", lambda _pool, uuid: uuid)
    monkeypatch.setattr(suspend, "_evidence", lambda _pool, _uuid, _coverage: {"state_bytes": 1})
    monkeypatch.setattr(suspend, "unpause", lambda _hypervisor, vm: scene.deeds.append(f"go on {vm['uuid'][:2]}"))
    monkeypatch.setattr(monitor, "qemu_version", lambda _domain: "10.0.2")
    monkeypatch.setattr(fallback, "go_back", go_back)
    monkeypatch.setattr(ways_out, "silent", silent)
    monkeypatch.setattr(health, "problems", lambda _wanted, _journal: scene.problems)
    monkeypatch.setattr(attach, "check_owner", lambda _pool, _journal: None)
    monkeypatch.setattr(kexec, "unload", lambda: scene.deeds.append("unload"))
    monkeypatch.setattr(kexec, "running_cmdline", lambda: f"root=/dev/vda1 holdfast.generation={GENERATION}")
    monkeypatch.setattr(kexec, "running_release", lambda: "7.2")
    boots_as(monkeypatch, "old")
    return scene


def boots_as(monkeypatch: pytest.MonkeyPatch, boot_id: str, cmdline: str | None = None) -> None:
    monkeypatch.setattr(kexec, "boot_id", lambda: boot_id)
    if cmdline is not None:
        monkeypatch.setattr(kexec, "running_cmdline", lambda: cmdline)


def ends_without(scene: Scene, monkeypatch: pytest.MonkeyPatch, uuid: str) -> None:
    """A live update that is over, with one VM that did not come back and waits in the pool."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.unrestorable = {uuid}
    with pytest.raises(HoldfastError):
        scene.recover()


def states(journal: Journal) -> dict[str, str]:
    return {vm["name"]: vm["state"] for vm in journal.vms}


def test_nothing_in_flight_is_nothing_to_do(tmp_path: Path) -> None:
    assert recover.recover(Config(state_dir=tmp_path)) == "no generation is in flight"


def test_vms_that_a_killed_agent_had_paused_go_on_where_they_are(scene: Scene) -> None:
    scene.journal.record("vm_paused", uuid=WEB, was_paused=False)
    scene.guests = [Guest(DB, "running"), Guest(WEB, "paused")]
    journal = scene.recover()
    assert scene.deeds == ["pool trusted", "unload", "go on 22", "release 22", "unload"]
    assert (journal.state, states(journal)) == ("aborted", {"db": "pending", "web": "resumed"})
    assert "while it was suspending" in journal.view["reason"]
    assert open_journal(scene.config.state_dir).state == "none"


@pytest.fixture
def saving(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[Guest]:
    """Two VMs that were paused when the agent was killed; the first one is being saved."""
    monkeypatch.setattr(recover, "LOOK_S", 0.0)
    for uuid in (DB, WEB):
        scene.journal.record("vm_paused", uuid=uuid, was_paused=False)
    scene.guests = [Guest(DB, "paused"), Guest(WEB, "paused")]
    scene.guests[0].looks_until_saved = 5
    return scene.guests


def test_nobody_waits_for_a_save_of_another_one(scene: Scene, saving: list[Guest]) -> None:
    assert set(states(scene.recover()).values()) == {"resumed"}
    assert [deed for deed in scene.deeds if deed.startswith("go on")] == ["go on 22", "go on 11"]


def test_one_that_is_suspended_waits_for_no_save_of_another_one_either(scene: Scene, saving: list[Guest]) -> None:
    scene.journal.record("vm_saved", uuid=WEB, ram_bytes=1, state_bytes=1)
    scene.guests = saving[:1]
    assert set(states(scene.recover()).values()) == {"resumed"}
    assert [deed for deed in scene.deeds if deed.startswith(("restore", "go on"))] == ["restore 22", "go on 11"]


def test_one_whose_save_ends_waits_for_no_save_of_another_one(
    scene: Scene, saving: list[Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    saving[0].looks_until_saved = 50
    web = saving[1]
    web.looks_until_saved = 3
    job = web.job

    def ends() -> str:
        if not job():
            web.destroy()
            scene.whole.add(WEB)
        return "job type 2"

    monkeypatch.setattr(web, "job", ends)
    assert set(states(scene.recover()).values()) == {"resumed"}
    assert [deed for deed in scene.deeds if deed.startswith(("restore", "go on"))] == ["restore 22", "go on 11"]


def test_a_save_that_does_not_end_is_named(scene: Scene, saving: list[Guest], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recover, "SAVE_LIMIT_S", 0.1)
    saving[0].looks_until_saved = 10**9
    with pytest.raises(HoldfastError, match="not brought back: db: paused"):
        scene.recover()
    journal = open_journal(scene.config.state_dir)
    assert (states(journal), len(journal.view["warnings"])) == ({"db": "paused", "web": "resumed"}, 1)
    assert "VM db: its state is still being saved after 0 s" in journal.view["warnings"][0]


def test_vms_go_on_even_when_there_is_no_room_to_say_so(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for uuid in (WEB, DB):
        scene.journal.record("vm_paused", uuid=uuid, was_paused=False)
    scene.guests = [Guest(DB, "paused"), Guest(WEB, "paused")]

    def no_room(_journal: Journal, _event: str, **_fields: Any) -> None:
        raise HoldfastError("cannot write journal.jsonl: No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Journal, "record", no_room)
        with pytest.raises(HoldfastError, match="No space left"):
            scene.recover()
    assert [deed for deed in scene.deeds if deed.startswith("go on")] == ["go on 11", "go on 22"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_vms_go_on_although_libvirts_daemon_is_restarted_meanwhile(scene: Scene, when: str) -> None:
    for uuid in (WEB, DB):
        scene.journal.record("vm_paused", uuid=uuid, was_paused=False)
    scene.guests, scene.restarted = [Guest(DB, "paused"), Guest(WEB, "paused")], (when, 1)
    journal = scene.recover()
    assert (journal.state, states(journal)) == ("aborted", {"db": "resumed", "web": "resumed"})


def test_a_trouble_that_nobody_thought_of_keeps_no_other_vm_paused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uuid in (WEB, DB):
        scene.journal.record("vm_paused", uuid=uuid, was_paused=False)
    scene.guests = [Guest(DB, "paused"), Guest(WEB, "paused")]

    def broken() -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(scene.guests[0], "job", broken)
    with pytest.raises(HoldfastError, match="not brought back: db: paused"):
        scene.recover()
    assert "go on 22" in scene.deeds


def test_nobody_is_started_afresh_while_libvirt_does_not_say_why_it_is_off(scene: Scene) -> None:
    """Its policy would let it; but it may have been moved away."""
    scene.journal.record("vm_paused", uuid=WEB, was_paused=False)
    scene.guests, scene.defined = [Guest(DB, "running")], [Guest(WEB, "shutoff")]
    scene.defined[0].left, scene.restarted = True, ("after", 2)
    assert states(scene.recover())["web"] == "lost"
    assert not scene.defined[0].started


def test_one_whose_save_fails_goes_on_even_when_nothing_can_be_put_on_record(
    scene: Scene, saving: list[Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.journal.record("vm_saved", uuid=WEB, ram_bytes=1, state_bytes=1)
    scene.guests = saving[:1]

    def no_room(_journal: Journal, _event: str, **_fields: Any) -> None:
        raise HoldfastError("cannot write journal.jsonl: No space left on device")

    monkeypatch.setattr(Journal, "record", no_room)
    with pytest.raises(HoldfastError, match="No space left"):
        scene.recover()
    assert "go on 11" in scene.deeds


def test_a_vm_that_was_saved_but_not_on_record_is_restored_from_that(scene: Scene) -> None:
    scene.journal.record("vm_paused", uuid=WEB, was_paused=False)
    scene.guests, scene.whole = [Guest(DB, "running")], {WEB}
    journal = scene.recover()
    assert "restore 22" in scene.deeds
    assert (journal.state, states(journal)) == ("aborted", {"db": "pending", "web": "resumed"})


@pytest.mark.parametrize("asked", ["", "sampled", "full"])
def test_what_is_put_on_record_later_is_proven_as_the_operator_asked(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    found: list[str] = []

    def evidence(_pool: Any, _uuid: str, coverage: str) -> dict[str, int]:
        found.append(coverage)
        return {"state_bytes": 1}

    monkeypatch.setattr(suspend, "_evidence", evidence)
    if asked:
        requests.write(scene.config.state_dir, requests.Request(GENERATION, "7.2", verify_ram=asked))
    scene.journal.record("vm_paused", uuid=WEB, was_paused=False)
    scene.guests, scene.whole = [Guest(DB, "running")], {WEB}
    scene.recover()
    assert found == [asked or "sampled"]


def test_a_vm_whose_qemu_died_is_lost_by_name_and_the_others_go_on(scene: Scene) -> None:
    scene.journal.record("vm_paused", uuid=WEB, was_paused=False)
    scene.journal.record("vm_paused", uuid=DB, was_paused=False)
    scene.guests, scene.defined = [Guest(DB, "paused")], [Guest(WEB, "shutoff")]
    journal = scene.recover()
    # Its policy lets it start afresh.
    assert (journal.state, states(journal)) == ("aborted", {"db": "resumed", "web": "restarted"})
    assert scene.defined[0].started


def test_what_a_dead_kernel_kept_of_a_vm_makes_room_for_its_fresh_start(scene: Scene) -> None:
    """It was lost by name early in this boot, when nobody had touched the pool yet."""
    scene.arrived()
    scene.journal.record("restoring")
    scene.journal.record("vm_resumed", uuid=DB, moment=0, qemu="11")
    scene.journal.record("vm_lost", uuid=WEB, error="its kernel ended while it was not suspended")
    scene.guests, scene.defined = [Guest(DB, "running")], [Guest(WEB, "shutoff")]
    scene.recover()
    assert scene.defined[0].started
    assert "release 22" in scene.deeds


def test_a_vm_whose_state_cannot_be_read_just_now_is_not_lost(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its policy would let it start afresh. The other one has its QEMU, and needs no state."""
    scene.journal.record("vm_paused", uuid=WEB, was_paused=False)
    scene.journal.record("vm_paused", uuid=DB, was_paused=False)
    scene.guests, scene.defined = [Guest(DB, "paused")], [Guest(WEB, "shutoff")]

    def unreadable(_path: Path) -> bool:
        raise VmError("the state of a VM cannot be read: Input/output error")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(recover.saveimage, "is_whole", unreadable)
        with pytest.raises(HoldfastError, match="not brought back: web: paused"):
            scene.recover()
    assert states(open_journal(scene.config.state_dir)) == {"db": "resumed", "web": "paused"}
    scene.whole = {WEB}
    assert states(scene.recover()) == {"db": "resumed", "web": "resumed"}
    assert not scene.defined[0].started


def test_a_state_that_an_earlier_generation_left_is_not_restored(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its agent was killed right before it put the state away; and now the guest shuts down before it can be paused."""
    scene.guests, scene.whole = [Guest(DB, "running"), Guest(WEB, "running")], {WEB}

    def ended() -> None:
        scene.defined = [scene.guests.pop()]
        scene.defined[0].left = True
        raise VmError("VM web: cannot pause it: domain is not running")

    monkeypatch.setattr(scene.guests[1], "pause", ended)
    with pytest.raises(VmError):
        suspend.pause(scene, scene, scene.journal, WEB)  # type: ignore[arg-type]
    assert states(scene.recover()) == {"db": "pending", "web": "lost"}
    assert "restore 22" not in scene.deeds


@pytest.mark.parametrize("left", [False, True])
def test_of_a_vm_that_is_lost_nothing_is_kept(scene: Scene, monkeypatch: pytest.MonkeyPatch, left: bool) -> None:
    """Its state might be taken for a newer one some day, and its RAM is wanted when it is started afresh."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.journal.record("restoring")
    scene.journal.record("vm_resuming", uuid=WEB)
    scene.defined = [Guest(WEB, "shutoff")]
    scene.defined[0].left = left
    scene.recover()
    assert WEB not in scene.whole


def test_a_vm_that_somebody_moved_away_is_not_started_a_second_time(scene: Scene) -> None:
    """Its policy would let it start afresh; but it may run on another host by now."""
    scene.journal.record("vm_paused", uuid=WEB, was_paused=False)
    scene.guests, scene.defined = [Guest(DB, "running")], [Guest(WEB, "shutoff")]
    scene.defined[0].left = True
    journal = scene.recover()
    assert (journal.state, states(journal)) == ("aborted", {"db": "pending", "web": "lost"})
    assert "moved it away" in journal.vm(WEB)["error"]
    # Not by a later look, either, and neither by autostart.
    scene.recover()
    assert not journal.vm(WEB)["may_restart"]
    assert not scene.defined[0].started


def test_a_vm_whose_definition_is_gone_as_well_may_have_left(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a migration with --undefinesource leaves it."""
    scene.journal.record("vm_paused", uuid=WEB, was_paused=False)
    scene.guests = [Guest(DB, "running")]

    def domain(uuid: str) -> Guest:
        raise VmError(f"libvirt knows no VM {uuid}")

    monkeypatch.setattr(scene, "domain", domain)
    journal = scene.recover()
    assert states(journal) == {"db": "pending", "web": "lost"}
    assert not journal.vm(WEB)["may_restart"]


def test_a_state_that_was_used_is_not_used_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between using up the saved state and letting the guest go on: its QEMU has all there is."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.journal.record("restoring")
    scene.journal.record("vm_resuming", uuid=DB)
    scene.guests = [Guest(DB, "paused")]
    journal = scene.recover()
    assert [deed for deed in scene.deeds if "11" in deed] == ["go on 11", "release 11"]
    assert (journal.state, states(journal)) == ("restored", {"db": "resumed", "web": "resumed"})


def test_a_qemu_that_never_took_its_state_makes_way(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.guests = [Guest(DB, "paused")]
    assert scene.recover().state == "restored"
    assert scene.guests[0].state() == "gone"


def test_a_state_that_fails_to_be_read_takes_no_other_vm_along(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.saved()
    scene.guests = [Guest(DB, "paused"), Guest(WEB, "paused")]

    def verify(_pool: Any, vm: dict[str, Any]) -> None:
        if vm["uuid"] == DB:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(recover, "verify", verify)
    journal = scene.recover()
    assert "restore 22" in scene.deeds
    assert "Input/output error" in journal.view["warnings"][0]


def test_a_fresh_start_that_cannot_be_noted_takes_no_other_vm_along(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.saved()
    for uuid in (DB, WEB):
        scene.journal.record("vm_lost", uuid=uuid, error="its RAM is gone", may_restart=True)
    scene.defined = [Guest(DB, "shutoff"), Guest(WEB, "shutoff")]
    record = Journal.record

    def without_room(journal: Journal, event: str, **fields: Any) -> None:
        if fields.get("uuid") == DB:
            raise HoldfastError("cannot write journal.jsonl: No space left on device")
        record(journal, event, **fields)

    monkeypatch.setattr(Journal, "record", without_room)
    recover.recover(scene.config)
    assert [guest.started for guest in scene.defined] == [True, True]


class Ending(Guest):
    """One whose QEMU ends after libvirt listed it; ``asked``: the question that fails for it."""

    def __init__(self, uuid: str, asked: str = "") -> None:
        super().__init__(uuid, "shutoff")
        self.asked = asked

    def state(self) -> str:
        self.end("its state")
        return "paused" if self.asked == "its job" else super().state()

    def job(self) -> str:
        self.end("its job")
        return super().job()

    def end(self, asked: str) -> None:
        if asked == self.asked:
            self._state = "gone"
            raise VmError("VM db: domain is not running")


@pytest.fixture(params=["", "its state", "its job"])
def ending(request: pytest.FixtureRequest) -> Ending:
    return Ending(DB, request.param)


def test_a_qemu_that_ends_as_it_is_looked_at_has_not_used_the_state(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, ending: Ending
) -> None:
    """It never took it, as one whose disks are not there."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    saved = scene.config.state_dir / DB
    saved.touch()
    scene.guests = [ending]
    assert states(scene.recover())["db"] == "resumed"
    assert "restore 11" in scene.deeds
    assert saved.exists(), "the stand-in for restore does not use it, and nobody else may"


def test_a_save_that_ends_as_it_is_looked_at_is_restored_from(scene: Scene, ending: Ending) -> None:
    scene.journal.record("vm_paused", uuid=DB, was_paused=False)
    scene.guests, scene.whole = [ending, Guest(WEB, "running")], {DB}
    assert states(scene.recover())["db"] == "resumed"
    assert "restore 11" in scene.deeds


@pytest.mark.parametrize("event", ["vm_paused", "vm_resuming"])
def test_one_whose_qemu_ends_as_it_is_looked_at_is_lost(scene: Scene, ending: Ending, event: str) -> None:
    for name in ("vm_saved", event):
        scene.journal.record(name, uuid=DB, was_paused=False)
    scene.guests, scene.defined = [ending, Guest(WEB, "running")], [Guest(DB, "shutoff")]
    assert states(scene.recover())["db"] == "lost"


def test_a_guest_that_crashed_and_is_kept_for_a_look_had_run(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a QEMU, by its definition's <on_crash>preserve</on_crash>: a person had resumed it."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    saved = scene.config.state_dir / DB
    saved.touch()
    scene.guests = [Guest(DB, "crashed")]
    assert states(scene.recover())["db"] == "resumed"
    assert not saved.exists()


def test_a_pool_is_left_as_it_is_while_the_journal_of_this_kernels_generation_is_missing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.jumped()
    boots_as(monkeypatch, "new")
    kept = scene.journal.path.rename(scene.journal.path.with_suffix(".kept"))
    monkeypatch.setattr(guard, "end", lambda: scene.deeds.append("guard ended"))
    for damage in (lambda: None, scene.journal.path.touch):
        damage()
        for act in (attach.attach, recover.recover):
            with pytest.raises(HoldfastError, match=f"started for live update {GENERATION}, of which there is no"):
                act(scene.config)
    assert scene.deeds == ["guard ended"] * 2
    kept.rename(scene.journal.path)
    assert states(scene.recover()) == {"db": "resumed", "web": "resumed"}
    attach.attach(scene.config)  # it is in the history now, and somebody attaches the pool once more in this boot
    assert scene.deeds[-1] == "pool fresh"


@pytest.mark.parametrize("trouble", [OSError(30, "Read-only file system"), HoldfastError("no device")])
def test_whatever_keeps_the_pool_from_being_attached_the_host_goes_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    scene.jumped()
    boots_as(monkeypatch, "new")

    def refused(*_arguments: Any) -> None:
        raise trouble

    monkeypatch.setattr(scene, "attach", refused)
    monkeypatch.setattr(fallback, "open_pool", lambda _config: scene)
    monkeypatch.setattr(agent.configuration, "load", lambda: scene.config)
    with pytest.raises(SystemExit):
        agent.main(["attach"])
    assert "go back" in scene.deeds
    assert open_journal(scene.config.state_dir).state == "falling_back"


def test_after_the_jump_the_most_important_vm_comes_back_first(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.arrived()
    boots_as(monkeypatch, "new")
    assert scene.recover().state == "restored"
    assert [deed for deed in scene.deeds if deed.startswith("restore")] == ["restore 11", "restore 22"]


def test_libvirt_starts_its_autostart_vms_when_a_host_was_started_and_not_after_a_jump(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.saved()
    boots_as(monkeypatch, "cold", "root=/dev/vda1")
    attach.attach(scene.config)
    assert not autostart.DONE.exists()
    boots_as(monkeypatch, "new", f"root=/dev/vda1 holdfast.generation={GENERATION}")
    attach.attach(scene.config)
    assert autostart.DONE.exists()


def test_what_libvirt_knows_of_qemu_is_taken_over_for_the_restores_and_void_when_they_are_over(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = scene.config.state_dir / "qemu"
    qemu.touch()
    ctime_ns = qemu.stat().st_ctime_ns
    cache = capability_cache.CACHE / "926803.xml"
    cache.parent.mkdir()
    cache.write_text(f"<emulator>{qemu}</emulator><kernelVersion>6.12 #1 SMP</kernelVersion>")
    monkeypatch.setattr(capability_cache.os, "uname", lambda: SimpleNamespace(release="7.2", version="#2 SMP"))
    scene.saved()
    boots_as(monkeypatch, "new", f"root=/dev/vda1 holdfast.generation={GENERATION}")
    attach.attach(scene.config)
    assert "<kernelVersion>7.2 #2 SMP</kernelVersion>" in cache.read_text()
    time.sleep(0.02)
    assert scene.recover().state == "restored"
    assert not cache.exists()
    assert qemu.stat().st_ctime_ns > ctime_ns


def test_whoever_is_started_from_disk_gets_what_this_kernel_offers(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capability_cache, "renew", lambda _state_dir: scene.deeds.append("libvirt may ask"))
    monkeypatch.setattr(recover.restarts, "start", lambda *_: scene.deeds.append("those that were off start"))
    scene.saved()
    boots_as(monkeypatch, "new")
    scene.recover()
    told = [deed for deed in scene.deeds if deed.startswith(("restore", "libvirt", "those"))]
    assert told[:4] == ["restore 11", "restore 22", "libvirt may ask", "those that were off start"]


def test_after_a_power_cut_libvirt_may_ask_before_its_daemon_starts(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capability_cache, "renew", lambda _state_dir: scene.deeds.append("libvirt may ask"))
    scene.arrived()
    boots_as(monkeypatch, "cold", "root=/dev/vda1")
    attach.attach(scene.config)
    assert "libvirt may ask" in scene.deeds


def test_what_libvirt_knows_keeps_nobody_from_coming_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(capability_cache, "take_over", broken)
    monkeypatch.setattr(capability_cache, "renew", broken)
    scene.saved()
    boots_as(monkeypatch, "new")
    journal = scene.recover()
    assert (journal.state, set(states(journal).values())) == ("restored", {"resumed"})
    assert any("Read-only file system" in text for text in journal.view["warnings"])


def test_a_vm_that_fails_is_tried_twice_then_kept_and_may_be_tried_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.unrestorable = {WEB}
    with pytest.raises(HoldfastError, match="QEMU refuses its state"):
        scene.recover()
    assert scene.deeds.count("restore 22") == 2
    journal = open_journal(scene.config.state_dir)
    assert (journal.state, states(journal)) == ("failed", {"db": "resumed", "web": "failed"})
    scene.unrestorable = set()
    assert states(scene.recover()) == {"db": "resumed", "web": "resumed"}


def test_a_kernel_on_which_no_vm_comes_back_is_left(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.unrestorable = {DB, WEB}
    with pytest.raises(SystemExit):
        scene.recover()
    # The old kernel takes over in a boot of its own, restores, and the report will say that the host fell back.
    boots_as(monkeypatch, "back")
    scene.unrestorable = set()
    journal = scene.recover()
    assert (journal.state, journal.view["fell_back"]) == ("restored", True)
    assert states(journal) == {"db": "resumed", "web": "resumed"}
    assert "QEMU refuses its state" in journal.view["reason"]


def test_a_vm_whose_disks_come_late_is_restored_when_they_are_there(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the most important one; nobody waits for it all the same."""
    scene.arrived()
    boots_as(monkeypatch, "new")

    def lacking(vm: Mapping[str, Any]) -> list[str]:
        return ["/srv/db"] if vm["uuid"] == DB and "restore 22" not in scene.deeds else []

    monkeypatch.setattr(storage, "lacking", lacking)
    journal = scene.recover()
    assert [deed for deed in scene.deeds if deed.startswith("restore")] == ["restore 22", "restore 11"]
    assert states(journal) == {"db": "resumed", "web": "resumed"}
    assert "what the disks of db are on is not there yet, and is waited for" in journal.view["warnings"]


def test_a_vm_whose_disks_do_not_come_is_kept(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it cannot do without, libvirt knows; and says so."""
    scene.unrestorable = {DB}
    scene.arrived()
    boots_as(monkeypatch, "new")
    requests.write(scene.config.state_dir, requests.Request(GENERATION, "7.2", storage_s=0.2))
    monkeypatch.setattr(storage, "lacking", lambda vm: ["/srv/db"] if vm["uuid"] == DB else [])
    with pytest.raises(HoldfastError, match="db: VM 11: QEMU refuses its state"):
        scene.recover()
    assert [deed for deed in scene.deeds if deed.startswith("restore")] == ["restore 22", "restore 11", "restore 11"]
    journal = open_journal(scene.config.state_dir)
    assert states(journal) == {"db": "failed", "web": "resumed"}
    assert "VM db: what its disks are on is missing, still after 0 s: /srv/db" in journal.view["warnings"]


@pytest.fixture
def cut_off(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """After the jump, with a network that does not come back."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.silent = ("br0",)
    return scene


def test_a_kernel_that_does_not_get_at_the_network_is_left_before_any_vm_runs_on_it(
    cut_off: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver or a name of a network card that is not what it was: the usual way for a new kernel to fail."""
    monkeypatch.setattr(lanes, "bounded", lambda _wanted: 1)
    with pytest.raises(SystemExit):
        cut_off.recover()
    # No second try, and the other VM is not even begun: both would wait for the same.
    assert cut_off.deeds == ["pool trusted", "restore 11", "go back"]
    # Should it be the switch and not the kernel, the VMs go on all the same.
    boots_as(monkeypatch, "back")
    journal = cut_off.recover()
    assert (journal.state, journal.view["fell_back"]) == ("restored", True)
    assert states(journal) == {"db": "resumed", "web": "resumed"}
    assert "br0 carried the frames of VMs" in journal.view["reason"]
    assert [text for text in journal.view["warnings"] if text.startswith("br0 carried")] != []


def test_vms_go_on_without_a_network_where_going_back_is_forbidden(
    cut_off: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests.write(cut_off.config.state_dir, requests.Request(GENERATION, "7.2", fallback_after=0))
    journal = cut_off.recover()
    assert states(journal) == {"db": "resumed", "web": "resumed"}
    assert [text for text in journal.view["warnings"] if "br0" in text] == [ways_out.lost("br0")]


def test_vms_go_on_without_a_network_where_nobody_wants_them_to_wait(cut_off: Scene) -> None:
    requests.write(cut_off.config.state_dir, requests.Request(GENERATION, "7.2", network_s=0))
    journal = cut_off.recover()
    assert states(journal) == {"db": "resumed", "web": "resumed"}
    assert "go back" not in cut_off.deeds


def test_how_long_vms_wait_for_the_network_is_the_operators_to_say(cut_off: Scene) -> None:
    requests.write(cut_off.config.state_dir, requests.Request(GENERATION, "7.2", network_s=1000.0, fallback_after=0))
    begun = time.monotonic()
    cut_off.recover()
    (until,) = cut_off.waited_until
    assert 900 < until - begun < 1100


def test_vms_go_on_without_a_network_where_there_is_no_way_back_after_all(
    cut_off: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_pool: Any, _journal: Journal, _reason: str) -> None:
        raise HoldfastError("kexec does not load the old kernel")

    monkeypatch.setattr(fallback, "go_back", refused)
    journal = cut_off.recover()
    assert (journal.state, states(journal)) == ("restored", {"db": "resumed", "web": "resumed"})
    assert "cannot go back" in journal.view["warnings"][0]


def test_vms_that_go_on_where_they_were_wait_for_no_network(scene: Scene) -> None:
    scene.saved()
    scene.silent = ("br0",)
    journal = scene.recover()
    assert (journal.state, scene.waited_until) == ("aborted", {0.0})


def test_a_host_goes_back_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.unrestorable = {DB, WEB}
    with pytest.raises(SystemExit):
        scene.recover()
    boots_as(monkeypatch, "back")
    with pytest.raises(HoldfastError, match="not brought back"):
        scene.recover()
    assert scene.deeds.count("go back") == 1


def test_a_way_back_that_fails_is_not_the_end(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """kexec refuses the old kernel: the VMs are restored where they are, and nobody says that it went back."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.problems = ["an oops"]

    def refused(_pool: Any, journal: Journal, reason: str) -> None:
        journal.record("falling_back", reason=reason)
        raise HoldfastError("the jump returned")

    monkeypatch.setattr(fallback, "go_back", refused)
    journal = scene.recover()
    assert (journal.state, journal.view["fell_back"]) == ("restored", False)
    assert "cannot go back" in journal.view["warnings"][0]


@pytest.fixture
def no_way_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """After the jump, when kexec refuses the old kernel; one VM after the other."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    monkeypatch.setattr(lanes, "bounded", lambda _wanted: 1)

    def refused(_pool: Any, _journal: Journal, _reason: str) -> None:
        scene.deeds.append("go back")
        raise HoldfastError("kexec does not load the old kernel")

    monkeypatch.setattr(fallback, "go_back", refused)
    return scene


def test_vms_that_failed_with_no_way_back_are_tried_again_when_the_cause_is_mended(no_way_back: Scene) -> None:
    no_way_back.unrestorable = {DB, WEB}
    with pytest.raises(HoldfastError, match="mend the cause, then run holdfast-agent recover"):
        no_way_back.recover()
    no_way_back.unrestorable = set()
    journal = no_way_back.recover()
    assert (journal.state, states(journal)) == ("restored", {"db": "resumed", "web": "resumed"})
    assert no_way_back.deeds.count("go back") == 1


def test_vms_that_were_left_out_for_a_way_back_that_fails_are_tried_where_they_are(no_way_back: Scene) -> None:
    requests.write(no_way_back.config.state_dir, requests.Request(GENERATION, "7.2", fallback_after=1))
    no_way_back.unrestorable = {DB}
    with pytest.raises(HoldfastError, match="QEMU refuses its state"):
        no_way_back.recover()
    assert states(open_journal(no_way_back.config.state_dir)) == {"db": "failed", "web": "resumed"}
    assert no_way_back.deeds.index("go back") < no_way_back.deeds.index("restore 22")


def test_a_host_goes_back_before_all_have_failed_where_the_operator_says_so(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.arrived()
    boots_as(monkeypatch, "new")
    monkeypatch.setattr(lanes, "bounded", lambda _wanted: 1)
    requests.write(scene.config.state_dir, requests.Request(GENERATION, "7.2", fallback_after=1))
    scene.unrestorable = {DB}
    with pytest.raises(SystemExit):
        scene.recover()
    assert scene.deeds == ["pool trusted", "restore 11", "restore 11", "go back"]


def test_under_the_old_kernel_no_vm_is_left_out_for_the_way_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jump did not come off: there is nowhere to go back to."""
    scene.saved()
    monkeypatch.setattr(lanes, "bounded", lambda _wanted: 1)
    requests.write(scene.config.state_dir, requests.Request(GENERATION, "7.2", fallback_after=1))
    scene.unrestorable = {DB}
    with pytest.raises(HoldfastError, match="QEMU refuses its state"):
        scene.recover()
    assert states(open_journal(scene.config.state_dir)) == {"db": "failed", "web": "resumed"}


def test_a_start_that_hangs_in_libvirt_keeps_no_other_vm_waiting(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on storage that does not answer: no limit of ours reaches what libvirt waits for."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    monkeypatch.setattr(lanes, "bounded", lambda _wanted: 1)
    requests.write(scene.config.state_dir, requests.Request(GENERATION, "7.2", deadline_s=0.05))
    restored = threading.Event()
    restore = recover.restore

    def hangs(*arguments: Any) -> None:
        if DB in arguments:
            assert restored.wait(5)
        restore(*arguments)
        restored.set()

    monkeypatch.setattr(recover, "restore", hangs)
    assert states(scene.recover()) == {"db": "resumed", "web": "resumed"}
    assert [deed for deed in scene.deeds if deed.startswith("restore")] == ["restore 22", "restore 11"]


def test_going_back_can_be_forbidden(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.unrestorable = {DB, WEB}
    requests.write(scene.config.state_dir, requests.Request(GENERATION, "7.2", fallback_after=0))
    with pytest.raises(HoldfastError, match="not brought back"):
        scene.recover()
    assert "go back" not in scene.deeds


def test_a_reboot_after_the_end_does_not_count_vms_as_lost_that_had_come_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_without(scene, monkeypatch, DB)
    boots_as(monkeypatch, "days later", "root=/dev/vda1")
    recover.recover(scene.config)
    assert states(open_journal(scene.config.state_dir)) == {"db": "lost", "web": "resumed"}


def test_an_unhealthy_kernel_is_left_before_any_vm_runs_on_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.problems = ["there is no /dev/kvm"]
    with pytest.raises(SystemExit):
        scene.recover()
    assert not [deed for deed in scene.deeds if deed.startswith("restore")]


def test_after_a_resume_there_is_no_way_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_without(scene, monkeypatch, WEB)
    assert "go back" not in scene.deeds
    assert not fallback.is_possible(open_journal(scene.config.state_dir))


def test_a_vm_that_a_person_resumed_has_used_its_state(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stood paused, with its state, while the agent waited for the network and was killed."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    saved = scene.config.state_dir / DB
    saved.touch()
    scene.guests, scene.unrestorable = [Guest(DB, "running")], {WEB}
    with pytest.raises(HoldfastError, match="web: VM 22"):
        scene.recover()
    assert states(open_journal(scene.config.state_dir))["db"] == "resumed"
    assert not saved.exists()
    # Its QEMU ends: it is nobody's to restore.
    scene.guests, scene.unrestorable, scene.deeds = [], set(), []
    scene.recover()
    assert [deed for deed in scene.deeds if "11" in deed] == []


def test_a_host_does_not_go_back_over_a_vm_that_a_person_started(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.guests = [Guest("99999999-0000-0000-0000-000000000000", "running")]
    scene.problems = ["an oops"]
    journal = scene.recover()
    assert "go back" not in scene.deeds
    assert "VMs were started or moved here meanwhile: 99" in journal.view["warnings"][0]
    assert (journal.state, states(journal)) == ("restored", {"db": "resumed", "web": "resumed"})


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_host_does_not_go_back_while_libvirt_does_not_say_whether_a_vm_runs(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A person resumed it: under the old kernel it would be restored once more, from a state of the past."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    guest = Guest(DB, "running")

    def state() -> str:
        scene.ask()
        return "running"

    monkeypatch.setattr(guest, "state", state)
    monkeypatch.setattr(guest, "goes_on", lambda: scene.connected)
    scene.guests, scene.problems, scene.restarted = [guest], ["an oops"], (when, 1)
    journal = scene.recover()
    assert "go back" not in scene.deeds
    assert (journal.state, states(journal)) == ("restored", {"db": "resumed", "web": "resumed"})


def test_a_host_goes_back_over_a_qemu_that_waits_for_its_state(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.guests, scene.problems = [Guest(DB, "paused")], ["an oops"]
    with pytest.raises(SystemExit):
        scene.recover()


@pytest.mark.parametrize("died", ["in its crash kernel", "by a power cut"])
def test_what_had_come_back_is_not_started_by_us_after_another_boot(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, died: str
) -> None:
    """Its owner may have moved it to another host since."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.journal.record("restoring")
    for event in ("vm_resuming", "vm_resumed"):
        scene.journal.record(event, uuid=WEB, qemu="11")
    scene.defined = [Guest(WEB, "shutoff"), Guest(DB, "shutoff")]
    line = "root=/dev/vda1" + ("" if died == "by a power cut" else f" holdfast.generation={GENERATION} elfcorehdr=0x1")
    boots_as(monkeypatch, "later", line)
    recover.recover(scene.config)
    assert not any(guest.started for guest in scene.defined)
    web = latest(scene.config.state_dir).vm(WEB)
    assert (web["state"], web["may_restart"]) == ("lost", False)
    assert "may have been moved away" in web["error"]


@pytest.fixture
def guarded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """After the jump, with the old kernel loaded as crash kernel."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    monkeypatch.setattr(guard, "forget", lambda _state_dir: scene.deeds.append("no kernel takes over"))
    return scene


def test_no_kernel_takes_over_once_no_vm_would_come_back_in_it(guarded: Scene) -> None:
    """A panic weeks later is none of ours, however long a VM waits for a person's word."""
    guarded.journal.record("vm_lost", uuid=WEB, error="its QEMU died", may_restart=False)
    guarded.recover()
    assert (open_journal(guarded.config.state_dir).state, guarded.deeds[-1]) == ("failed", "no kernel takes over")


def test_the_old_kernel_stays_loaded_for_vms_that_wait_in_the_pool(guarded: Scene) -> None:
    guarded.journal.record("vm_lost", uuid=DB, error="its QEMU died", may_restart=False)
    guarded.unrestorable = {WEB}
    requests.write(guarded.config.state_dir, requests.Request(GENERATION, "7.2", fallback_after=0))
    with pytest.raises(HoldfastError, match="QEMU refuses its state"):
        guarded.recover()
    assert "no kernel takes over" not in guarded.deeds
    assert recover.give_up(guarded.config, ["web"]).endswith("waiting: db (lost)")
    assert guarded.deeds[-1] == "no kernel takes over"


def test_vms_that_are_owed_a_start_need_no_crash_kernel(guarded: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no RAM to spare for them; after a reset they start."""
    guarded.journal.record("vm_shut_down", uuid=WEB)
    monkeypatch.setattr(recover.restarts, "start", lambda *_arguments: None)
    with pytest.raises(HoldfastError, match="not brought back: web: shut_down"):
        guarded.recover()
    assert guarded.deeds[-1] == "no kernel takes over"


def test_a_kernel_that_dies_after_the_end_takes_no_vm_from_its_owner(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One waits in the pool and comes back in the crash kernel; what had come back was its owner's by then."""
    ends_without(scene, monkeypatch, WEB)
    boots_as(monkeypatch, "weeks later", f"root=/dev/vda1 holdfast.generation={GENERATION} elfcorehdr=0x1")

    def refused(*_arguments: Any) -> None:
        raise HoldfastError("no device")

    with monkeypatch.context() as broken:
        broken.setattr(scene, "attach", refused)
        with pytest.raises(HoldfastError, match="no device"):
            attach.attach(scene.config)
    scene.unrestorable = set()
    journal = scene.recover()
    assert (journal.state, states(journal)) == ("restored", {"db": "resumed", "web": "resumed"})


def test_a_kernel_that_somebody_else_jumped_into_before_any_pause_has_kept_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = Journal.load(tmp_path / "begun.jsonl")
    begun.record(
        "begin", generation=GENERATION, host="h", kernel={"from": "6", "to": "7"}, qemu="", boot_id="old", vms=[]
    )
    line = f"holdfast.generation={GENERATION}"
    assert attach.judge_boot(begun, "new", line) is attach.Boot.STRANGE
    begun.record("suspending")
    assert attach.judge_boot(begun, "new", line) is attach.Boot.JUMPED


def test_the_guard_of_a_jump_that_was_somebody_elses_is_disarmed_before_any_vm_runs(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reboot is a kexec where a kernel is loaded, and the initramfs of that one goes by the token."""
    monkeypatch.setattr(guard, "end", lambda: scene.deeds.append("guard ended"))
    scene.saved()
    boots_as(monkeypatch, "cold", "root=/dev/vda1")
    scene.defined = [Guest(DB, "shutoff"), Guest(WEB, "shutoff")]
    attach.attach(scene.config)
    recover.recover(scene.config)
    assert scene.deeds[:3] == ["guard ended", "pool fresh", "guard ended"]


@pytest.mark.parametrize("at", ["its load", "its jump"])
def test_an_attach_that_failed_is_tried_again_after_a_way_back_that_failed_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    scene.jumped()
    boots_as(monkeypatch, "new")

    def refused(*_arguments: Any) -> None:
        raise HoldfastError("no device")

    def stays(_pool: Any, journal: Journal, reason: str) -> None:
        if at == "its jump":
            journal.record("falling_back", reason=reason)
        refused()

    with monkeypatch.context() as broken:
        broken.setattr(scene, "attach", refused)
        broken.setattr(fallback, "go_back", stays)
        broken.setattr(fallback, "open_pool", lambda _config: scene)
        with pytest.raises(HoldfastError) as caught:
            attach.attach(scene.config)
        fallback.after_failed_attach(scene.config, str(caught.value))
    journal = scene.recover()
    assert scene.deeds[0] == "pool trusted"
    assert (journal.state, states(journal)) == ("restored", {"db": "resumed", "web": "resumed"})


def test_one_that_a_person_resumed_after_a_failed_save_sends_its_ram_again(scene: Scene) -> None:
    scene.journal.record("vm_paused", uuid=WEB, was_paused=False)
    scene.guests = [Guest(DB, "running"), Guest(WEB, "running")]
    assert states(scene.recover())["web"] == "resumed"
    assert "ram is copied 22" in scene.deeds


@pytest.mark.parametrize(
    "trouble", [OSError(5, "Input/output error"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")]
)
def test_a_disk_that_fails_is_a_failure_like_any_other(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    scene.arrived()
    boots_as(monkeypatch, "new")
    tried: list[str] = []

    def broken(_hypervisor: Any, _pool: Any, _journal: Journal, uuid: str, *_arguments: Any) -> None:
        tried.append(uuid)
        raise trouble

    monkeypatch.setattr(recover, "restore", broken)
    with pytest.raises(SystemExit):
        scene.recover()
    assert "go back" in scene.deeds
    assert sorted(tried) == [DB, DB, WEB, WEB]


def test_a_boot_without_the_jump_loses_ram_and_only_those_start_that_may(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.saved()
    boots_as(monkeypatch, "cold", "root=/dev/vda1")
    scene.defined = [Guest(DB, "shutoff"), Guest(WEB, "shutoff")]
    for guest in scene.defined:  # libvirt knows no reason then
        guest.left = True
    recover.recover(scene.config)
    journal = open_journal(scene.config.state_dir)
    assert states(journal) == {"db": "lost", "web": "restarted"}
    assert [guest.started for guest in scene.defined] == [False, True]
    assert recover.give_up(scene.config, ["db"]).endswith("failed")
    assert open_journal(scene.config.state_dir).state == "none"


def test_one_that_was_about_to_go_on_when_the_power_went_is_lost_as_well(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where somebody was to see to another one by then."""
    scene.arrived()
    scene.journal.record("restoring")
    scene.journal.record("vm_resuming", uuid=WEB)
    scene.journal.record("failed", reason="db: QEMU refuses its state")
    boots_as(monkeypatch, "cold", "root=/dev/vda1")
    scene.defined = [Guest(DB, "shutoff"), Guest(WEB, "shutoff")]
    # libvirt knows no reason in another boot, which says nothing.
    scene.defined[1].left = True
    recover.recover(scene.config)
    assert states(open_journal(scene.config.state_dir)) == {"db": "lost", "web": "restarted"}


def test_a_vm_that_may_restart_does_so_also_where_another_one_is_left_behind(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt's autostart, which used to do it where it was set, is not there after a jump."""
    scene.arrived()
    boots_as(monkeypatch, "new")
    scene.journal.record("vm_lost", uuid=WEB, error="its QEMU died")
    scene.defined = [Guest(WEB, "shutoff")]
    scene.unrestorable = {DB}
    requests.write(scene.config.state_dir, requests.Request(GENERATION, "7.2", fallback_after=0))
    with pytest.raises(HoldfastError, match="QEMU refuses its state"):
        scene.recover()
    assert scene.defined[0].started
    assert states(open_journal(scene.config.state_dir)) == {"db": "failed", "web": "restarted"}


def test_only_a_vm_that_waits_can_be_given_up(scene: Scene) -> None:
    scene.saved()
    with pytest.raises(HoldfastError, match="no VM ghost waits on this host -- waiting: db, web"):
        recover.give_up(scene.config, ["ghost"])


@pytest.mark.parametrize("event", ["vm_paused", "vm_resuming"])
def test_one_that_has_no_qemu_can_be_given_up_whatever_it_waits_for(scene: Scene, event: str) -> None:
    for name in ("vm_saved", event):
        scene.journal.record(name, uuid=WEB, was_paused=False)
    scene.defined = [Guest(WEB, "shutoff")]
    recover.give_up(scene.config, ["web"])
    assert states(latest(scene.config.state_dir)) == {"db": "pending", "web": "given_up"}
    assert "release 22" in scene.deeds


@pytest.mark.parametrize("state", ["paused", "running", "crashed"])
def test_one_that_has_a_qemu_goes_on_and_is_not_given_up(scene: Scene, state: str) -> None:
    scene.arrived()
    scene.journal.record("vm_resuming", uuid=WEB)
    scene.guests = [Guest(WEB, state)]
    with pytest.raises(HoldfastError, match=f"VM web is not off, it is {state} .*holdfast-agent recover"):
        recover.give_up(scene.config, ["db", "web"])
    assert states(open_journal(scene.config.state_dir)) == {"db": "suspended", "web": "resuming"}
    assert scene.deeds == []


def test_when_all_are_given_up_nothing_stands_in_the_way_of_the_next_live_update(scene: Scene) -> None:
    """The pool could not be attached, so the generation never came to an end by itself."""
    scene.saved()
    scene.journal.record("jumping")
    scene.journal.record("arrived", boot_id="new", kernel="7.2")
    assert recover.give_up(scene.config, ["db"]).endswith("waiting: web (suspended)")
    assert open_journal(scene.config.state_dir).state == "arrived"
    assert recover.give_up(scene.config, ["web"]).endswith("failed")
    assert open_journal(scene.config.state_dir).state == "none"


def test_a_kernel_with_our_token_has_kept_the_ram_however_far_the_last_one_got(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new kernel died while it restored: the VM that ran there is lost, the one that still waited is not."""
    scene.arrived()
    scene.journal.record("restoring")
    scene.journal.record("vm_resuming", uuid=DB)
    scene.journal.record("vm_resumed", uuid=DB, moment=1.0, qemu="11")
    boots_as(monkeypatch, "crash kernel")
    journal = scene.recover()
    assert (journal.state, states(journal)) == ("failed", {"db": "lost", "web": "resumed"})


def test_the_kernels_taint_is_read_bit_by_bit() -> None:
    assert health.damage(1 << 7 | 1) == ["the kernel reports an oops"]
    assert health.damage(0) == []
