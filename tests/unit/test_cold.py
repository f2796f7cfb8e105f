# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM that is saved to disk for the upgrade goes on from there once, whatever happens in between, and never older."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from owed import DB, Host

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    cold,
    deadline,
    domain,
    durable,
    fallback,
    guard,
    kexec,
    monitor,
    permit,
    recover,
    saveimage,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import Journal, latest, open_journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.request import Request, VmRequest
from ansible_collections.holdfast.kvm.plugins.module_utils._core.standing import Sighting, Step, step_for

GENERATION = "g-20261122T020000-ab12cd"
OLD, BIG = (f"{digit * 8}-0000-0000-0000-000000000000" for digit in "12")
WANTED = Request(
    GENERATION,
    "7.2",
    (
        VmRequest("old", OLD, priority=20, treatment="cold", may_restart=True),
        VmRequest("big", BIG, priority=80, treatment="cold"),
        VmRequest("db", DB),
    ),
    parallel=1,
)


XML = "<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory></domain>"


class Guest:
    """A domain that libvirt saves and starts; ``refused``: what is not done, or definitions with this text.

    ``waits``: for its state; ``let_go_on``: by somebody else, as soon as it has that.
    """

    def __init__(self, house: House, uuid: str, name: str) -> None:
        self.house, self.uuid, self.name = house, uuid, name
        self.state_now, self.busy, self.refused, self.on_purpose = "running", False, "", False
        self.compressed = self.waits = self.let_go_on = False
        self.stored = XML.format(name=name, uuid=uuid)
        self.starts: list[str] = []

    @property
    def image(self) -> Path:
        return cold.image_of(self.house.config, self.uuid)

    @property
    def id(self) -> int:
        return 7 if self.state_now in ("running", "paused") else -1

    def state(self) -> str:
        return self.state_now

    def goes_on(self) -> bool:
        return self.state_now == "running"

    def ram_bytes(self) -> int:
        return 64 << 20

    def stored_xml(self) -> str:
        return self.stored

    def save(self, path: str) -> None:
        assert self.house.state_of(self.name) == "storing", "on record before it happens"
        if self.refused == "save":
            raise VmError(f"VM {self.name}: cannot save it: no space")
        xml = XML.format(name=self.name, uuid=self.uuid).encode() + b"\0"
        header = saveimage.MAGIC + struct.pack("=5I", 2, len(xml), 1, int(self.compressed), 0)
        stream = self.name.encode() * 4096
        stream = gzip.compress(stream) if self.compressed else stream
        Path(path).write_bytes(header.ljust(saveimage.HEADER_BYTES, b"\0") + xml + stream)
        self.state_now = "shutoff"

    def resume(self) -> None:
        assert self.state_now == "paused"
        assert not self.image.exists(), "a power cut might bring it back"
        assert self.house.synced
        if self.refused == "resume":
            raise VmError(f"VM {self.name}: cannot resume it: a backup has its disk locked")
        self.state_now = "running"

    def destroy(self) -> None:
        self.state_now = "shutoff"

    def job(self) -> str:
        return "saving" if self.busy else ""

    def cancel_job(self) -> None:
        self.busy, self.state_now = False, "running"

    def ended_on_purpose(self) -> bool:
        return self.on_purpose

    def start(self) -> None:
        raise AssertionError("nobody asked for a fresh start")


class House(Host[Guest]):
    """With images in a real directory."""

    def __init__(self, state_dir: Path) -> None:
        self.synced = False
        super().__init__(state_dir, WANTED, Guest)

    def create_paused(self, name: str, xml: str) -> Guest:
        guest = next(guest for guest in self.guests.values() if guest.name == name)
        assert self.journal.state not in ("suspending", "suspended"), "the hook would refuse"
        assert permit.holds(guest.uuid), "the hook would refuse"
        guest.starts.append(xml)
        if guest.refused and guest.refused in xml:
            raise VmError(f"VM {name}: cannot be started for its restore: no room")
        guest.state_now, guest.waits = "paused", True
        return guest

    def find(self, uuid: str) -> Guest | None:
        return self.guests.get(uuid)

    def states(self) -> list[str]:
        return [str(vm["state"]) for vm in latest(self.config.state_dir).vms]

    def load_state(self, guest: Guest, image: Path, offset: int, _deadline_s: float) -> None:
        self.synced = False
        if guest.refused == "state":
            raise VmError(f"VM {guest.name}: QEMU refuses its state")
        if guest.refused == "read":
            raise OSError(5, "Input/output error")
        assert image.read_bytes()[offset:] == guest.name.encode() * 4096
        guest.waits = False
        guest.state_now = "running" if guest.let_go_on else "paused"

    def running(self) -> list[Guest]:
        return [guest for guest in self.guests.values() if guest.id >= 0]

    def store(self) -> None:
        cold.store(self.config, self, self.journal, WANTED)  # type: ignore[arg-type]

    def load(self, uuid: str) -> None:
        cold.load(self.config, self, self.journal, self.journal.vm(uuid), 600)  # type: ignore[arg-type]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(permit, "RUN_DIR", tmp_path / "run")
    house = House(tmp_path / "state")

    def sync(path: Path) -> None:
        house.synced = path == tmp_path / "state" / "stored"

    monkeypatch.setattr(durable, "sync", sync)
    monkeypatch.setattr(deadline, "enforced", lambda _limit_s: nullcontext())
    monkeypatch.setattr(monitor, "ram_stays_in_place", lambda _domain: False)
    monkeypatch.setattr(monitor, "load_state", house.load_state)
    monkeypatch.setattr(monitor, "waits_for_state", lambda guest: guest.waits)
    house.connected(monkeypatch)
    return house


@pytest.fixture
def recovered(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """The same, where the unit looks after it: in the boot that it began in."""

    @contextmanager
    def connect() -> Iterator[House]:
        yield house

    pool = SimpleNamespace(
        attach=lambda _content: None, release=lambda _uuid: None, vault_of=lambda uuid: house.config.state_dir / uuid
    )
    monkeypatch.setattr(recover, "open_pool", lambda _config: pool)
    monkeypatch.setattr(recover, "connect_patiently", connect)
    monkeypatch.setattr(monitor, "copy_ram_again", lambda _domain: None)
    monkeypatch.setattr(kexec, "unload", lambda: None)
    monkeypatch.setattr(kexec, "boot_id", lambda: "old")
    return house


def test_they_are_saved_while_the_others_run_and_are_not_suspended(house: House) -> None:
    house.store()
    assert house.states() == ["stored", "stored", "pending"]
    assert [vm.name for vm in WANTED.staying] == ["db"]
    assert [guest.image.exists() for guest in house.guests.values()] == [True, True, False]
    assert [phase["name"] for phase in house.journal.view["phases"]] == ["store"]


def test_after_the_jump_they_go_on_from_their_images_and_the_journal_closes(house: House) -> None:
    house.store()
    house.arrive()
    house.resume()
    assert recover.close(house.config, house.journal, "restored", "") == f"generation {GENERATION} restored"
    assert [guest.state_now for guest in house.guests.values()][:2] == ["running", "running"]
    assert not any(guest.image.exists() for guest in house.guests.values())
    over = {vm["name"]: vm for vm in latest(house.config.state_dir).vms}
    for name in ("old", "big"):
        found = over[name]
        assert (found["state"], found["ram_verified"], found["qemu"]) == ("resumed", True, "11.1.3")
        assert found["paused_at"] < found["saved_at"] < found["restore_started_at"] < found["resumed_at"]
    assert over["big"]["resumed_at"] < over["old"]["resumed_at"], "the most important one first"


def test_an_aborted_live_update_loads_them_on_the_old_kernel(house: House) -> None:
    house.store()
    recover.close(house.config, house.journal, "aborted", "no kexec")
    assert house.states() == ["resumed", "resumed", "pending"]
    assert latest(house.config.state_dir).state == "aborted"


def test_one_that_cannot_be_saved_ends_the_live_update_and_runs_on(house: House) -> None:
    house.guests[OLD].refused = "save"
    with pytest.raises(HoldfastError, match=r"could not be saved to disk.*old.*no space"):
        house.store()
    assert house.states() == ["storing", "pending", "pending"]
    recover.close(house.config, house.journal, "aborted", "no space")
    assert house.states() == ["resumed", "pending", "pending"]
    assert house.guests[OLD].starts == []


def test_a_save_that_outlived_its_agent_is_cancelled(house: House) -> None:
    house.journal.record("vm_storing", uuid=OLD, was_paused=False)
    house.guests[OLD].busy = True
    house.guests[OLD].state_now = "paused"
    recover.close(house.config, house.journal, "aborted", "the agent was killed")
    assert house.states() == ["resumed", "pending", "pending"]
    assert house.guests[OLD].starts == []


def killed_before_it_was_on_record(house: House) -> None:
    house.journal.record("vm_storing", uuid=OLD, was_paused=False)
    house.guests[OLD].image.parent.mkdir()
    house.guests[OLD].save(str(house.guests[OLD].image))


def test_a_save_that_was_over_when_its_agent_was_killed_is_loaded(house: House) -> None:
    killed_before_it_was_on_record(house)
    recover.close(house.config, house.journal, "aborted", "the agent was killed")
    assert house.states() == ["resumed", "pending", "pending"]
    assert latest(house.config.state_dir).vms[0]["ram_verified"] is False


def test_an_image_that_changed_is_not_loaded(house: House) -> None:
    house.store()
    with house.guests[OLD].image.open("r+b") as image:
        image.seek(100)
        image.write(b"!")
    with pytest.raises(HoldfastError, match=r"not brought back: old: .*is not what was saved"):
        recover.close(house.config, house.journal, "aborted", "")
    assert house.states() == ["stored", "resumed", "pending"]
    assert house.guests[OLD].starts == []


def test_one_that_runs_has_used_its_image_whoever_let_it_go_on(house: House) -> None:
    house.store()
    house.guests[OLD].state_now = "running"
    house.load(OLD)
    assert not house.guests[OLD].image.exists()
    assert house.state_of("old") == "resumed"
    assert "let go on by somebody else" in house.journal.view["warnings"][0]


def test_a_qemu_that_never_took_its_image_is_ended_and_the_image_is_restored(house: House) -> None:
    house.store()
    house.guests[OLD].state_now, house.guests[OLD].waits = "paused", True
    house.load(OLD)
    assert (house.guests[OLD].state_now, len(house.guests[OLD].starts)) == ("running", 1)


def test_a_qemu_that_took_its_image_is_never_ended(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have run: somebody else let it go on, and then it was paused again, by a full disk for example."""
    house.store()
    house.guests[OLD].state_now = "paused"
    monkeypatch.setattr(house.guests[OLD], "destroy", lambda: pytest.fail("its RAM is newer than its image"))
    house.load(OLD)
    assert (house.guests[OLD].state_now, house.guests[OLD].starts) == ("running", [])
    assert (house.state_of("old"), house.guests[OLD].image.exists()) == ("resumed", False)


@pytest.fixture
def full(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """There is no room to put on record that an image is used."""
    record = Journal.record

    def without_room(journal: Journal, event: str, **fields: Any) -> None:
        if event == "vm_resuming":
            raise HoldfastError("cannot write journal.jsonl: No space left on device")
        record(journal, event, **fields)

    house.store()
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Journal, "record", without_room)
        yield meanwhile


def test_one_whose_image_cannot_be_noted_as_used_does_not_stand_there_for_anybody_to_resume(
    house: House, full: pytest.MonkeyPatch
) -> None:
    """Once its guest had run, its image would be restored a second time after the next boot."""
    guest = house.guests[OLD]
    with pytest.raises(HoldfastError, match="No space left"):
        house.load(OLD)
    assert (house.state_of("old"), guest.state_now, guest.image.exists()) == ("stored", "shutoff", True)
    full.undo()
    house.load(OLD)
    assert (house.state_of("old"), guest.state_now, len(guest.starts)) == ("resumed", "running", 2)


@pytest.mark.usefixtures("full")
def test_of_one_that_runs_the_image_is_deleted_also_when_that_cannot_be_noted(house: House) -> None:
    guest = house.guests[OLD]
    guest.let_go_on = True
    with pytest.raises(HoldfastError, match="No space left"):
        house.load(OLD)
    assert (guest.state_now, guest.image.exists(), house.synced) == ("running", False, True)


def test_one_whose_agent_was_killed_right_before_it_ran_goes_on_in_its_qemu(house: House) -> None:
    """Its image counts as used."""
    house.store()
    house.journal.record("vm_resuming", uuid=OLD)
    seen = Sighting(house.state_of("old"), "paused")
    assert step_for(seen) is Step.GO_ON


@pytest.mark.parametrize("saved", [House.store, killed_before_it_was_on_record])
@pytest.mark.parametrize("boot", ["old", "after a power cut"])
def test_one_that_cannot_go_on_yet_does_so_later_in_the_qemu_that_has_its_ram(
    recovered: House, monkeypatch: pytest.MonkeyPatch, saved: Callable[[House], None], boot: str
) -> None:
    """Its image is used and gone: that QEMU is all there is of it."""
    saved(recovered)
    monkeypatch.setattr(kexec, "boot_id", lambda: boot)
    guest = recovered.guests[OLD]
    guest.refused = "resume"
    with suppress(HoldfastError):
        recover.recover(recovered.config)
    found = open_journal(recovered.config.state_dir).vm(OLD)
    assert (found["state"], guest.state_now) == ("resuming", "paused")
    assert "a backup has its disk locked" in found["error"]
    guest.refused = ""
    recover.recover(recovered.config)
    assert (recovered.states()[0], guest.state_now, len(guest.starts)) == ("resumed", "running", 1)


def test_one_that_went_on_and_was_moved_away_is_not_started_here(
    recovered: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its policy would let it start afresh. Only that it went on was not put on record."""
    recovered.store()
    guest = recovered.guests[OLD]

    def busy(_domain: Guest) -> str:
        raise VmError("VM old: QEMU does not take query-version: it is busy")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(monitor, "qemu_version", busy)
        with pytest.raises(HoldfastError, match="it is busy"):
            recover.recover(recovered.config)
    guest.state_now, guest.on_purpose = "shutoff", True
    recover.recover(recovered.config)
    found = open_journal(recovered.config.state_dir).vm(OLD)
    assert (found["state"], found["may_restart"]) == ("lost", False)


def test_a_save_that_was_cancelled_stays_none_when_its_vm_cannot_go_on_yet(recovered: House) -> None:
    recovered.journal.record("vm_storing", uuid=OLD, was_paused=False)
    guest = recovered.guests[OLD]
    guest.state_now, guest.refused, recovered.synced = "paused", "resume", True
    with pytest.raises(HoldfastError, match="a backup has its disk locked"):
        recover.recover(recovered.config)
    assert recovered.states()[0] == "storing"
    guest.refused = ""
    recover.recover(recovered.config)
    assert (recovered.states()[0], guest.state_now, guest.starts) == ("resumed", "running", [])


def test_a_state_that_qemu_refuses_is_kept_and_tried_again(house: House) -> None:
    house.store()
    house.guests[OLD].refused = "state"
    with pytest.raises(HoldfastError, match="not brought back: old: VM old: QEMU refuses its state"):
        recover.close(house.config, house.journal, "aborted", "")
    assert (house.states()[0], house.guests[OLD].state_now) == ("stored", "shutoff")
    house.guests[OLD].refused = ""
    recover.close(house.config, house.journal, "aborted", "")
    assert house.states() == ["resumed", "resumed", "pending"]


def test_a_disk_that_fails_keeps_no_other_one_off(house: House) -> None:
    house.store()
    house.guests[BIG].refused = "read"
    with pytest.raises(HoldfastError, match=r"not brought back: big: .*Input/output error"):
        recover.close(house.config, house.journal, "aborted", "")
    assert house.states()[:2] == ["resumed", "stored"]
    assert (house.guests[BIG].state_now, house.guests[BIG].image.exists()) == ("shutoff", True)


class Pool:
    """A pool of which nothing is wanted here. ``refused``: it cannot be attached."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.refused = folder, ""

    def attach(self, _content: object) -> None:
        if self.refused:
            raise HoldfastError(self.refused)

    def vault_of(self, uuid: str) -> Path:
        return self.folder / uuid


@pytest.fixture
def stored(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """Two VMs are on disk, and the live update is taken back."""
    pool = Pool(tmp_path)
    house.store()
    monkeypatch.setattr(recover, "open_pool", lambda _config: pool)
    monkeypatch.setattr(recover, "connect_patiently", lambda: nullcontext(house))
    monkeypatch.setattr(kexec, "boot_id", lambda: "old")
    monkeypatch.setattr(kexec, "unload", lambda: None)
    return pool


def refuse(*_arguments: object) -> None:
    raise HoldfastError("there is no kexec here any more")


def test_they_go_on_although_the_loaded_kernel_cannot_be_unloaded(
    house: House, stored: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kexec, "unload", refuse)
    with pytest.raises(HoldfastError, match="there is no kexec here any more"):
        recover.recover(house.config)
    assert house.states() == ["resumed", "resumed", "pending"]
    assert not open_journal(house.config.state_dir).is_settled


@pytest.mark.parametrize("boot_id", ["old", "cold"], ids=["before the jump", "after a power cut"])
def test_they_go_on_although_the_pool_cannot_be_attached(
    house: House, stored: Pool, monkeypatch: pytest.MonkeyPatch, boot_id: str
) -> None:
    """They may have their RAM outside of it."""
    monkeypatch.setattr(kexec, "boot_id", lambda: boot_id)
    stored.refused = "this host has no RAM for a pool any more"
    with pytest.raises(HoldfastError, match="no RAM for a pool"):
        recover.recover(house.config)
    assert house.states()[:2] == ["resumed", "resumed"]


def test_what_comes_of_them_does_not_hide_why_nobody_else_goes_on(house: House, stored: Pool) -> None:
    stored.refused = "this host has no RAM for a pool any more"
    house.guests[OLD].refused = "state"
    with pytest.raises(HoldfastError, match="no RAM for a pool"):
        recover.recover(house.config)
    assert house.states() == ["stored", "resumed", "pending"]


def test_nobody_goes_on_in_a_kernel_whose_end_cannot_be_stopped(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """On disk they outlive it, and what they were is used up when they go on."""
    house.store()
    house.arrive()
    monkeypatch.setattr(guard, "end", refuse)
    with pytest.raises(HoldfastError):
        recover.close(house.config, house.journal, "restored", "")
    assert house.states()[:2] == ["stored", "stored"]


def test_one_that_is_given_up_leaves_no_image(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.store()
    monkeypatch.setattr(recover, "open_pool", lambda _: type("Pool", (), {"release": staticmethod(lambda _: None)}))
    recover.give_up(house.config, ["old"])
    assert [house.guests[uuid].image.exists() for uuid in (OLD, BIG)] == [False, True]


def test_a_vm_of_a_converted_definition_comes_back_in_the_pool(house: House) -> None:
    guest = house.guests[OLD]
    guest.stored, _ = domain.to_pool_backing(guest.stored)
    house.store()
    house.load(OLD)
    house.load(BIG)
    assert "<source type='file'/>" in guest.starts[0]
    assert "memoryBacking" not in house.guests[BIG].starts[0]


def test_a_pool_that_is_full_keeps_nobody_off(house: House) -> None:
    guest = house.guests[OLD]
    guest.stored, _ = domain.to_pool_backing(guest.stored)
    guest.refused = "<source type='file'/>"
    house.store()
    house.load(OLD)
    assert house.state_of("old") == "resumed"
    assert ["file" in xml for xml in guest.starts] == [True, False]
    assert "old goes on with its RAM outside the pool" in house.journal.view["warnings"][0]


def test_an_image_that_libvirt_compressed_is_unpacked_beside_itself(house: House) -> None:
    house.guests[OLD].compressed = True
    house.store()
    house.load(OLD)
    assert house.state_of("old") == "resumed"
    assert [path.name for path in house.guests[OLD].image.parent.iterdir()] == [BIG]


def test_what_a_killed_agent_unpacked_goes_with_the_image(house: House) -> None:
    house.store()
    half = house.guests[OLD].image.with_name(f"{OLD}.unpacked")
    half.write_bytes(b"a guest's RAM")
    cold.discard(house.config, OLD)
    assert not half.exists()


def test_no_image_outlives_its_generation(recovered: House) -> None:
    """The agent was killed after it was on record as used, before it was deleted: it is a copy of a guest's RAM."""
    recovered.store()
    guest = recovered.guests[OLD]
    guest.state_now = "running"  # somebody has let it go on since
    recovered.journal.record("vm_resuming", uuid=OLD)
    recover.recover(recovered.config)
    assert (guest.state_now, guest.image.exists()) == ("running", False)


def test_one_that_was_paused_stays_so(house: House) -> None:
    house.guests[OLD].state_now = "paused"
    house.store()
    house.load(OLD)
    assert (house.guests[OLD].state_now, house.state_of("old")) == ("paused", "resumed")


@pytest.mark.parametrize(
    ("boot", "on_purpose", "may_restart"), [("old", True, False), ("old", False, True), ("cut", True, True)]
)
def test_half_an_image_is_not_restored_and_nothing_is_started(
    house: House, monkeypatch: pytest.MonkeyPatch, boot: str, on_purpose: bool, may_restart: bool
) -> None:
    """Its policy may say so; not where somebody may have ended it, for it may run elsewhere.

    Another boot has ended it itself, and libvirt knows no reason there.
    """
    monkeypatch.setattr(kexec, "boot_id", lambda: boot)
    house.journal.record("vm_storing", uuid=OLD, was_paused=False)
    guest = house.guests[OLD]
    guest.state_now, guest.on_purpose = "shutoff", on_purpose
    guest.image.parent.mkdir()
    guest.image.write_bytes(b"LibvirtQemudPart" + b"x" * 8192)
    house.load(OLD)
    assert guest.starts == []
    found = house.journal.vm(OLD)
    assert (found["state"], found["may_restart"]) == ("lost", may_restart)


def put_away(house: House) -> None:
    """As a disk that is not mounted yet."""
    folder = house.guests[OLD].image.parent
    folder.rename(folder.with_name("away"))


def put_out_of_reach(house: House) -> None:
    put_away(house)
    house.guests[OLD].image.parent.write_text("a disk that answers with an error")


def bring_back(house: House) -> None:
    folder = house.guests[OLD].image.parent
    folder.unlink(missing_ok=True)
    folder.with_name("away").rename(folder)


@pytest.mark.parametrize(
    ("saved", "gone"),
    # Of a save that is not on record, nothing tells a disk that is not there from an image that never got onto it.
    [(House.store, put_away), (House.store, put_out_of_reach), (killed_before_it_was_on_record, put_out_of_reach)],
)
def test_one_whose_image_is_out_of_sight_is_kept_until_that_is_back(
    recovered: House, saved: Callable[[House], None], gone: Callable[[House], None]
) -> None:
    """Its policy lets it start afresh, but only where its RAM is truly gone."""
    saved(recovered)
    gone(recovered)
    for _ in range(2):
        with pytest.raises(HoldfastError, match=r"not brought back: old: .*mount"):
            recover.recover(recovered.config)
        assert recovered.states()[0] in ("storing", "stored")
    bring_back(recovered)
    recover.recover(recovered.config)
    assert (recovered.states()[0], len(recovered.guests[OLD].starts)) == ("resumed", 1)


def test_one_that_was_saved_whole_is_kept_when_its_image_is_not(recovered: House) -> None:
    recovered.store()
    recovered.guests[OLD].image.write_bytes(bytes(8192))
    with pytest.raises(HoldfastError, match=r"not brought back: old: .*is missing or not whole"):
        recover.recover(recovered.config)
    assert recovered.states()[0] == "stored"


def test_one_whose_image_no_disk_gives_back_can_still_be_given_up(recovered: House) -> None:
    recovered.store()
    put_out_of_reach(recovered)
    recover.give_up(recovered.config, ["old"])
    journal = open_journal(recovered.config.state_dir)
    assert journal.vm(OLD)["state"] == "given_up"
    assert "old: its saved image is not deleted" in journal.view["warnings"][0]


def test_an_older_image_is_gone_before_it_could_be_taken_for_the_new_one(house: House) -> None:
    guest = house.guests[OLD]
    guest.image.parent.mkdir()
    guest.image.write_bytes(saveimage.MAGIC + b"of another day")
    guest.refused = "save"
    with pytest.raises(HoldfastError):
        house.store()
    assert not guest.image.exists()


def test_under_the_running_kernel_each_waits_for_itself_only(house: House) -> None:
    house.journal.record("restoring")
    cold.renew(house.config, house, house.journal, WANTED)  # type: ignore[arg-type]
    old, big = house.journal.vm(OLD), house.journal.vm(BIG)
    assert old["resumed_at"] < big["paused_at"]
    assert (old["state"], big["state"]) == ("resumed", "resumed")


def test_they_do_not_stand_in_the_way_back(house: House) -> None:
    house.store()
    house.arrive()
    assert fallback.is_possible(house.journal)


def test_a_power_cut_takes_nothing_of_one_that_is_saved(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.store()
    monkeypatch.setattr(kexec, "boot_id", lambda: "cold")
    monkeypatch.setattr(recover, "open_pool", lambda _: type("Pool", (), {"attach": staticmethod(lambda _: None)}))
    recover.recover(house.config)
    assert [vm["state"] for vm in open_journal(house.config.state_dir).vms] == ["resumed", "resumed", "lost"]


def test_a_crash_kernel_leaves_it_on_disk_and_nobody_is_told_to_delete_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.store()
    monkeypatch.setattr(kexec, "running_cmdline", lambda: "root=/dev/vda1 elfcorehdr=0x2e000000")
    with pytest.raises(HoldfastError, match="old: stored"):
        recover.close(house.config, house.journal, "aborted", "")
    (told,) = house.journal.view["warnings"]
    assert "old, big: kept on disk" in told
    assert "give up" not in told
    assert house.guests[OLD].image.exists()


@pytest.mark.parametrize("full", [False, True])
def test_a_crash_kernel_loads_what_gets_its_ram_in_the_pool_and_nothing_beside_it(
    full: bool, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for ever otherwise: the way out of a crash kernel is open when nobody waits any more."""
    guest = house.guests[OLD]
    guest.stored, _ = domain.to_pool_backing(guest.stored)
    guest.refused = "<source type='file'/>" if full else ""
    house.store()
    monkeypatch.setattr(kexec, "running_cmdline", lambda: "root=/dev/vda1 elfcorehdr=0x2e000000")
    with pytest.raises(HoldfastError, match="big: stored"):
        recover.close(house.config, house.journal, "aborted", "")
    assert house.state_of("old") == ("stored" if full else "resumed")
    assert ["file" in xml for xml in guest.starts] == [True]
    assert guest.image.exists() is full
    assert "big: kept on disk" in house.journal.view["warnings"][0]
    assert house.guests[BIG].starts == []
