# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM that is shut down for the upgrade is started again, whatever happens in between, and is never forced."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from owed import DB, Host

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    attach,
    fallback,
    kexec,
    recover,
    restarts,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import Journal, latest, open_journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.request import Request, VmRequest

GENERATION = "g-20261121T020000-ab12cd"
GPU, NFS = (f"{digit * 8}-0000-0000-0000-000000000000" for digit in "12")
WANTED = Request(
    GENERATION,
    "7.2",
    (
        VmRequest("gpu", GPU, priority=20, treatment="restart"),
        VmRequest("nfs", NFS, priority=80, treatment="restart"),
        VmRequest("db", DB),
    ),
    shutdown_s=0.2,
)


class Guest:
    """A domain that shuts down when it is asked, unless it is ``deaf``, and starts unless it is ``broken``."""

    def __init__(self, house: House, uuid: str, name: str) -> None:
        self.house, self.uuid, self.name = house, uuid, name
        self.running, self.deaf, self.broken, self.away, self.unseen = True, False, False, False, False

    def state(self) -> str:
        return "running" if self.running else "shutoff"

    def went_away(self) -> bool:
        return self.away and not self.running

    def ended_unseen(self) -> bool:
        return self.unseen and not self.running

    def shutdown(self) -> None:
        assert self.house.state_of(self.name) == "shutting_down", "on record before it happens"
        self.running = self.deaf

    def start(self) -> None:
        assert self.house.journal.state not in ("suspending", "suspended"), "the hook would refuse"
        if self.broken:
            raise VmError(f"VM {self.name}: cannot start it: no card")
        self.running = True
        self.house.started.append(self.name)


class House(Host[Guest]):
    """``started``: names, in their order."""

    def __init__(self, state_dir: Path) -> None:
        self.started: list[str] = []
        super().__init__(state_dir, WANTED, Guest)

    def shut_down(self) -> None:
        restarts.shut_down(self, self.journal, WANTED)  # type: ignore[arg-type]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    house = House(tmp_path)

    monkeypatch.setattr(restarts, "LOOK_S", 0.01)
    house.connected(monkeypatch)
    return house


def test_one_that_is_moved_away_instead_is_not_started_here(house: House) -> None:
    """Shut off all the same; but it runs on another host."""
    house.guests[GPU].away = True
    with pytest.raises(HoldfastError, match="was saved or moved away by somebody else"):
        house.shut_down()
    recover.close(house.config, house.journal, "aborted", "")
    assert house.started == ["nfs"]
    gpu = house.journal.vm(GPU)
    assert (gpu["state"], gpu["may_restart"]) == ("lost", False)


def test_one_that_had_left_before_it_was_asked_is_not_started_here(house: House) -> None:
    house.shut_down()
    house.guests[GPU].away = True
    recover.close(house.config, house.journal, "aborted", "")
    assert house.started == ["nfs"]


def test_one_that_nobody_saw_shut_down_may_have_left_before_libvirts_daemon_was_restarted(house: House) -> None:
    """Its agent was ended before it went off; what is off by the journal is owed its start, as after every jump."""
    house.shut_down()
    house.journal.record("vm_shutting_down", uuid=GPU, asked_at=time.time())
    house.guests[GPU].unseen = house.guests[NFS].unseen = True
    recover.close(house.config, house.journal, "aborted", "the agent was killed")
    assert house.started == ["nfs"]
    gpu = house.journal.vm(GPU)
    assert (gpu["state"], gpu["may_restart"]) == ("lost", False)
    assert "nobody knows why" in gpu["error"]


def states(journal: Journal) -> dict[str, str]:
    return {vm["name"]: vm["state"] for vm in journal.vms}


def test_those_that_are_shut_down_are_not_suspended_and_the_others_are_not_shut_down() -> None:
    assert [vm.name for vm in WANTED.staying] == ["db"]
    assert [vm.name for vm in WANTED.restarting] == ["gpu", "nfs"]


def test_a_started_vm_whose_kernel_then_died_is_lost_and_not_started_behind_anybodys_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crash kernel takes over after the jump: what was shut down is still owed its start, what ran is lost."""
    house.shut_down()
    house.arrive()
    house.resume()
    house.journal.record("vm_started", uuid=GPU, qemu="11.1.3")
    monkeypatch.setattr(attach, "check_owner", lambda *_: None)
    monkeypatch.setattr(attach.guard, "begin", lambda _: "")
    monkeypatch.setattr(attach.autostart, "forgo", lambda: None)
    monkeypatch.setattr(kexec, "boot_id", lambda: "crash")
    monkeypatch.setattr(kexec, "running_release", lambda: "6.12")
    pool = type("Pool", (), {"attach": staticmethod(lambda _: None)})
    attach._arrive(house.config, pool, house.journal)  # type: ignore[arg-type]
    assert states(house.journal) == {"gpu": "lost", "nfs": "shut_down", "db": "lost"}


def test_they_are_shut_down_and_the_others_left_alone(house: House) -> None:
    house.shut_down()
    assert states(house.journal) == {"gpu": "shut_down", "nfs": "shut_down", "db": "pending"}
    assert [guest.running for guest in house.guests.values()] == [False, False, True]
    assert [phase["name"] for phase in house.journal.view["phases"]] == ["shutdown"]


def test_after_the_jump_the_most_important_one_starts_first_and_the_journal_closes(house: House) -> None:
    house.shut_down()
    house.arrive()
    house.resume()
    assert recover.close(house.config, house.journal, "restored", "") == f"generation {GENERATION} restored"
    assert house.started == ["nfs", "gpu"]
    ended = latest(house.config.state_dir)
    assert states(ended) == {"gpu": "started", "nfs": "started", "db": "resumed"}
    assert {vm["qemu"] for vm in ended.vms} == {"11.1.3"}
    assert all(vm["started_at"] >= vm["shut_down_at"] for vm in ended.vms if vm["treatment"] == "restart")


def test_when_the_live_update_is_given_up_they_start_on_the_old_kernel(house: House) -> None:
    house.shut_down()
    house.journal.record("suspending")
    recover.close(house.config, house.journal, "aborted", "a disk does not answer")
    ended = latest(house.config.state_dir)
    assert (ended.state, house.started) == ("aborted", ["nfs", "gpu"])


def test_a_guest_that_does_not_shut_down_ends_the_live_update_and_is_not_forced_to(house: House) -> None:
    house.guests[GPU].deaf = True
    with pytest.raises(HoldfastError, match=r"VM gpu still runs 0 s after it was asked to shut down"):
        house.shut_down()
    recover.close(house.config, house.journal, "aborted", "as above")
    ended = latest(house.config.state_dir)
    assert states(ended) == {"gpu": "pending", "nfs": "started", "db": "pending"}
    assert "gpu was asked to shut down, and runs; if it does so later, start it" in ended.view["warnings"][0]
    assert house.started == ["nfs"]


def test_a_guest_that_is_slow_is_waited_for_and_started(house: House) -> None:
    """Its agent was ended while it was shutting down; it goes off after the VMs that stood still went on."""
    house.journal.record("vm_shutting_down", uuid=GPU, asked_at=time.time())
    guest = house.guests[GPU]
    answers = iter(["running", "running"])
    guest.running = False
    guest.state = lambda: next(answers, "shutoff")  # type: ignore[method-assign]
    restarts.start(house.config, house.journal, replace(WANTED, shutdown_s=5.0))
    assert (house.started, house.state_of("gpu")) == (["gpu"], "started")


def test_one_that_somebody_started_is_not_started_again(house: House) -> None:
    house.shut_down()
    house.guests[NFS].running = True
    restarts.start(house.config, house.journal, WANTED)
    assert (house.started, house.state_of("nfs")) == (["gpu"], "started")


def test_one_that_does_not_start_is_named_and_tried_again(house: House) -> None:
    house.shut_down()
    house.arrive()
    house.resume()
    house.guests[GPU].broken = True
    with pytest.raises(HoldfastError, match="not brought back: gpu: VM gpu: cannot start it: no card"):
        recover.close(house.config, house.journal, "restored", "")
    assert (house.journal.state, house.journal.is_settled) == ("failed", False)
    house.guests[GPU].broken = False
    recover.close(house.config, house.journal, "restored", "")
    assert states(latest(house.config.state_dir))["gpu"] == "started"


def test_a_restart_of_libvirts_daemon_costs_nobody_its_start(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.shut_down()
    connections: list[House] = []
    lost: list[str] = []

    @contextmanager
    def connect() -> Iterator[House]:
        connections.append(house)
        lost.clear()
        yield house

    def domain(uuid: str) -> Guest:
        if len(connections) == 1:
            lost.append(uuid)
        if lost:
            raise VmError("VM nfs: cannot start it: internal error: client socket is closed")
        return house.guests[uuid]

    monkeypatch.setattr(restarts, "connect_patiently", connect)
    monkeypatch.setattr(house, "domain", domain)
    monkeypatch.setattr(house, "answers", lambda: not lost)
    recover.close(house.config, house.journal, "aborted", "")
    assert house.started == ["nfs", "gpu"]
    assert len(connections) == 2


def test_a_failed_look_says_nothing_of_a_vm_that_was_asked_to_shut_down(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been moved away meanwhile, and is not started here when libvirt has forgotten that."""
    house.shut_down()
    house.journal.record("vm_shutting_down", uuid=GPU, asked_at=time.time())

    def silent(_uuid: str) -> Guest:
        raise VmError("libvirt does not answer")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(house, "domain", silent)
        with pytest.raises(HoldfastError, match="libvirt does not answer"):
            recover.close(house.config, house.journal, "aborted", "")
    assert house.state_of("gpu") == "shutting_down"
    house.guests[GPU].unseen = True
    recover.close(house.config, house.journal, "aborted", "")
    assert house.started == ["nfs"]


def test_a_start_that_cannot_be_noted_keeps_no_other_one_off(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.shut_down()
    record = Journal.record

    def without_room(journal: Journal, event: str, **fields: Any) -> None:
        if fields.get("uuid") == NFS:
            raise HoldfastError("cannot write journal.jsonl: No space left on device")
        record(journal, event, **fields)

    with monkeypatch.context() as full:
        full.setattr(Journal, "record", without_room)
        restarts.start(house.config, house.journal, WANTED)
    assert (house.started, states(house.journal)["nfs"]) == (["nfs", "gpu"], "shut_down")
    assert "No space left" in house.journal.view["warnings"][0]
    restarts.start(house.config, house.journal, WANTED)
    assert (house.started, states(house.journal)["nfs"]) == (["nfs", "gpu"], "started")


def test_one_that_does_not_start_may_be_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.shut_down()
    house.guests[GPU].broken = house.guests[NFS].broken = True
    with pytest.raises(HoldfastError):
        recover.close(house.config, house.journal, "aborted", "")
    released: list[str] = []
    monkeypatch.setattr(
        recover, "open_pool", lambda _config: type("Pool", (), {"release": staticmethod(released.append)})
    )
    recover.give_up(house.config, ["gpu", "nfs"])
    assert open_journal(house.config.state_dir).state == "none"


def test_a_crash_kernel_has_no_room_for_them(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes its RAM might be a VM that was brought back there."""
    house.shut_down()
    monkeypatch.setattr(kexec, "running_cmdline", lambda: "root=/dev/vda1 elfcorehdr=0x2e000000")
    with pytest.raises(HoldfastError, match="gpu: shut_down"):
        recover.close(house.config, house.journal, "aborted", "")
    assert house.started == []
    assert "no RAM to spare" in house.journal.view["warnings"][0]


def test_power_loss_takes_nothing_from_them(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.shut_down()
    monkeypatch.setattr(
        recover, "open_pool", lambda _config: type("Pool", (), {"attach": staticmethod(lambda _: None)})
    )
    monkeypatch.setattr(kexec, "boot_id", lambda: "cold")
    recover.recover(house.config)
    journal = open_journal(house.config.state_dir)
    assert states(journal) == {"gpu": "started", "nfs": "started", "db": "lost"}


def test_once_one_was_started_there_is_no_way_back(house: House) -> None:
    house.shut_down()
    house.arrive()
    assert fallback.is_possible(house.journal)
    house.journal.record("vm_started", uuid=GPU, qemu="11.1.3")
    assert not fallback.is_possible(house.journal)


def test_those_that_are_off_do_not_count_when_the_others_fail(house: House) -> None:
    house.shut_down()
    house.arrive()
    house.journal.record("restoring")
    house.journal.record("vm_failed", uuid=DB, error="no")
    assert fallback.is_due(house.journal, after=3, failed=1)
