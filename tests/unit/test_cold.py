# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM that is saved to disk for the upgrade goes on from there once, whatever happens in between, and never older."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    cold,
    deadline,
    durable,
    fallback,
    kexec,
    monitor,
    recover,
    restarts,
    saveimage,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core import request as requests
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import latest, open_journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.request import Request, VmRequest

GENERATION = "g-20261122T020000-ab12cd"
OLD, BIG, DB = (f"{digit * 8}-0000-0000-0000-000000000000" for digit in "123")
WANTED = Request(
    GENERATION,
    "7.2",
    (
        VmRequest("old", OLD, priority=20, treatment="cold"),
        VmRequest("big", BIG, priority=80, treatment="cold"),
        VmRequest("db", DB),
    ),
    parallel=1,
)


class Guest:
    """A domain that libvirt saves and loads; ``refused``: what it does not do."""

    def __init__(self, house: House, uuid: str, name: str) -> None:
        self.house, self.uuid, self.name = house, uuid, name
        self.state_now, self.busy, self.refused, self.on_purpose = "running", False, "", False
        self.starts = 0

    @property
    def image(self) -> Path:
        return saveimage.managed(self.name)

    def state(self) -> str:
        return self.state_now

    def ram_bytes(self) -> int:
        return 64 << 20

    def managed_save(self) -> None:
        assert self.house.state_of(self.name) == "storing", "on record before it happens"
        if self.refused == "save":
            raise VmError(f"VM {self.name}: cannot save it: no space")
        self.image.write_bytes(saveimage.MAGIC + self.name.encode() * 4096)
        self.state_now = "shutoff"

    def start_paused(self) -> None:
        assert self.house.journal.state not in ("suspending", "suspended"), "the hook would refuse"
        self.starts += 1
        if self.refused == "start":
            raise VmError(f"VM {self.name}: cannot start it: no network")
        self.image.unlink()
        self.house.synced = False
        self.state_now = "paused"

    def resume(self) -> None:
        assert self.state_now == "paused"
        assert self.house.synced, "a power cut might bring its image back"
        self.state_now = "running"

    def job(self) -> str:
        return "saving" if self.busy else ""

    def cancel_job(self) -> None:
        self.busy, self.state_now = False, "running"

    def ended_on_purpose(self) -> bool:
        return self.on_purpose


class House:
    """One host with a real journal, and images in a real directory."""

    def __init__(self, state_dir: Path) -> None:
        self.config = Config(state_dir=state_dir)
        self.synced = False
        self.journal = open_journal(state_dir)
        self.guests = {vm.uuid: Guest(self, vm.uuid, vm.name) for vm in WANTED.vms}
        requests.write(state_dir, WANTED)
        self.journal.record(
            "begin",
            generation=GENERATION,
            host="hv1",
            kernel={"from": "6.12", "to": "7.2"},
            qemu="10",
            boot_id="first",
            vms=[vars(vm) for vm in WANTED.vms],
        )

    def domain(self, uuid: str) -> Guest:
        return self.guests[uuid]

    def state_of(self, name: str) -> str:
        return next(str(vm["state"]) for vm in self.journal.vms if vm["name"] == name)

    def states(self) -> list[str]:
        return [str(vm["state"]) for vm in latest(self.config.state_dir).vms]

    def store(self) -> None:
        cold.store(self, self.journal, WANTED)  # type: ignore[arg-type]

    def load(self, uuid: str) -> None:
        cold.load(self, self.journal, self.journal.vm(uuid))  # type: ignore[arg-type]

    def arrive(self) -> None:
        for event in ("suspending", "vm_paused", "vm_saved", "suspended", "jumping", "arrived", "attached"):
            self.journal.record(event, uuid=DB, boot_id="new", kernel="7.2", ram_bytes=1, state_bytes=1)

    def resume(self) -> None:
        self.journal.record("restoring")
        self.journal.record("vm_resuming", uuid=DB)
        self.journal.record("vm_resumed", uuid=DB, qemu="11.1.3")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(saveimage, "MANAGED", tmp_path)
    house = House(tmp_path / "state")

    @contextmanager
    def connect() -> Iterator[House]:
        yield house

    def sync(path: Path) -> None:
        house.synced = path == tmp_path

    monkeypatch.setattr(durable, "sync", sync)
    monkeypatch.setattr(restarts, "connect_patiently", connect)
    monkeypatch.setattr(deadline, "enforced", lambda _limit_s: nullcontext())
    monkeypatch.setattr(monitor, "qemu_version", lambda _domain: "11.1.3")
    monkeypatch.setattr(monitor, "ram_stays_in_place", lambda _domain: False)
    monkeypatch.setattr(kexec, "running_cmdline", lambda: "root=/dev/vda1")
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
    assert house.guests[OLD].starts == 0


def test_a_save_that_outlived_its_agent_is_cancelled(house: House) -> None:
    house.journal.record("vm_storing", uuid=OLD, was_paused=False)
    house.guests[OLD].busy = True
    house.guests[OLD].state_now = "paused"
    recover.close(house.config, house.journal, "aborted", "the agent was killed")
    assert house.states() == ["resumed", "pending", "pending"]
    assert house.guests[OLD].starts == 0


def test_a_save_that_was_over_when_its_agent_was_killed_is_loaded(house: House) -> None:
    house.journal.record("vm_storing", uuid=OLD, was_paused=False)
    house.guests[OLD].managed_save()
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
    assert house.guests[OLD].starts == 0


def test_one_that_somebody_started_meanwhile_is_taken_note_of(house: House) -> None:
    house.store()
    house.guests[OLD].start_paused()
    house.guests[OLD].state_now = "running"
    house.load(OLD)
    assert house.state_of("old") == "resumed"
    assert house.guests[OLD].starts == 1


def test_one_whose_agent_was_killed_before_it_ran_is_resumed_and_not_loaded_again(house: House) -> None:
    house.store()
    house.guests[OLD].start_paused()
    house.load(OLD)
    assert (house.guests[OLD].state_now, house.guests[OLD].starts) == ("running", 1)


def test_one_that_was_paused_stays_so(house: House) -> None:
    house.guests[OLD].state_now = "paused"
    house.store()
    house.load(OLD)
    assert (house.guests[OLD].state_now, house.state_of("old")) == ("paused", "resumed")


@pytest.mark.parametrize(
    ("state", "on_purpose", "may_restart"),
    [("stored", False, False), ("storing", True, False), ("storing", False, True)],
)
def test_without_an_image_nothing_is_started(house: House, state: str, on_purpose: bool, may_restart: bool) -> None:
    """libvirt would start it from its disk, also where half an image is left; only its policy may say so."""
    house.journal.vm(OLD)["may_restart"] = True
    house.journal.record("vm_storing", uuid=OLD, was_paused=False)
    if state == "stored":
        house.journal.record("vm_stored", uuid=OLD, image_proof={})
    guest = house.guests[OLD]
    guest.state_now, guest.on_purpose = "shutoff", on_purpose
    guest.image.write_bytes(b"LibvirtQemudPart" + b"x" * 8192)
    house.load(OLD)
    assert guest.starts == 0
    found = house.journal.vm(OLD)
    assert (found["state"], found["may_restart"]) == ("lost", may_restart)


def test_one_that_was_being_loaded_at_a_power_cut_lost_its_ram_and_its_policy_counts(house: House) -> None:
    house.journal.vm(OLD)["may_restart"] = True
    house.store()
    house.journal.record("vm_loading", uuid=OLD)
    house.guests[OLD].image.unlink()
    house.load(OLD)
    found = house.journal.vm(OLD)
    assert (found["state"], found["may_restart"], house.guests[OLD].starts) == ("lost", True, 0)


def test_one_that_does_not_start_keeps_its_image_and_is_tried_again(house: House) -> None:
    house.store()
    house.guests[OLD].refused = "start"
    with pytest.raises(HoldfastError, match="not brought back: old: VM old: cannot start it: no network"):
        recover.close(house.config, house.journal, "aborted", "")
    assert house.states() == ["stored", "resumed", "pending"]
    house.guests[OLD].refused = ""
    recover.close(house.config, house.journal, "aborted", "")
    assert house.states() == ["resumed", "resumed", "pending"]


def test_under_the_running_kernel_each_waits_for_itself_only(house: House) -> None:
    house.journal.record("restoring")
    cold.renew(house, house.journal, WANTED)  # type: ignore[arg-type]
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
