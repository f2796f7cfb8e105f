# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every VM into a new QEMU without a jump: one after the other, and not one more once something fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    attach,
    fallback,
    guard,
    kexec,
    live_update,
    renewal,
    suspend,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core import request as requests
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import Journal, latest, open_journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.request import Request, VmRequest

DB, WEB, TICK = (f"{digit * 8}-1111-4111-8111-111111111111" for digit in "123")
VMS = (VmRequest("db", DB, 90), VmRequest("web", WEB, 50), VmRequest("tick", TICK, 10))
WANTED = Request("g-20261121T000000-abcdef", "6.12", VMS, parallel=1, only=requests.ONLY_QEMU)


class Scene:
    """A host with three VMs. ``broken``: what fails, like ``save web``; what happens is in ``deeds``."""

    def __init__(self, folder: Path) -> None:
        self.config = Config(state_dir=folder)
        self.deeds: list[str] = []
        self.broken = ""
        devices = "<devices><emulator>/usr/bin/kvm</emulator></devices>"
        xml = f"<domain type='kvm'><name>vm</name><memory>1024</memory>{devices}</domain>"
        self.domains = [SimpleNamespace(name=vm.name, uuid=vm.uuid, id=1, xml=lambda: xml) for vm in VMS]
        self.asked: list[tuple[str | None, list[str]]] = []

    def running(self) -> list[Any]:
        return self.domains

    def capabilities_xml(self, emulator: str | None = None) -> str:
        self.asked.append((emulator, list(self.deeds)))
        return "<domainCapabilities/>"

    def do(self, what: str, journal: Journal, uuid: str) -> None:
        deed = f"{what} {journal.vm(uuid)['name']}"
        self.deeds.append(deed)
        if deed == self.broken:
            raise VmError(f"{deed} failed")


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = Scene(tmp_path)
    requests.write(tmp_path, WANTED)

    @contextmanager
    def connect() -> Iterator[Scene]:
        yield scene

    def pause(_hypervisor: Any, _pool: Any, journal: Journal, uuid: str) -> None:
        scene.do("pause", journal, uuid)
        journal.record("vm_paused", uuid=uuid, was_paused=False, moment=1.0)

    def save(_hypervisor: Any, _pool: Any, journal: Journal, uuid: str, _coverage: str) -> None:
        scene.do("save", journal, uuid)
        journal.record("vm_saved", uuid=uuid, state_bytes=1, ram_bytes=1)

    def restore(_hypervisor: Any, _pool: Any, journal: Journal, uuid: str, _deadline_s: float) -> None:
        scene.do("restore", journal, uuid)
        journal.record("vm_resuming", uuid=uuid)
        journal.record("vm_resumed", uuid=uuid, moment=2.0, qemu="11.1.3")

    def recovered(config: Config, reason: str = "") -> str:
        scene.deeds.append("recover")
        open_journal(config.state_dir).record("failed", reason=reason)
        return reason

    monkeypatch.setattr(live_update, "connect", connect)
    monkeypatch.setattr(live_update, "open_pool", lambda _config: scene)
    monkeypatch.setattr(live_update, "recover", recovered)
    monkeypatch.setattr(live_update.gates, "look", lambda _hypervisor: requests.VmRequest("-", "-"))
    monkeypatch.setattr(live_update.monitor, "qemu_version", lambda _domain: "10.0.2")
    monkeypatch.setattr(attach, "own", lambda _pool, _journal: None)
    monkeypatch.setattr(suspend, "pause", pause)
    monkeypatch.setattr(suspend, "save", save)
    monkeypatch.setattr(renewal, "restore", restore)
    monkeypatch.setattr(guard, "end", lambda: None)
    for name, value in (("running_release", "6.12"), ("boot_id", "this boot"), ("taint", 0)):
        monkeypatch.setattr(kexec, name, lambda value=value: value)
    for name in ("load", "jump"):
        monkeypatch.setattr(kexec, name, lambda *_args: pytest.fail("nothing is loaded, nobody jumps"))
    return scene


def test_each_vm_is_back_before_the_next_one_is_paused_the_least_important_first(scene: Scene) -> None:
    live_update.live_update(scene.config)
    each = ("pause", "save", "restore")
    assert scene.deeds == [f"{what} {name}" for name in ("tick", "web", "db") for what in each]
    journal = latest(scene.config.state_dir)
    assert (journal.state, journal.view["only"], journal.view["qemu"]) == (
        "restored",
        "qemu",
        {"from": "10.0.2", "to": "11.1.3"},
    )
    assert [phase["name"] for phase in journal.view["phases"]] == ["renew"]
    assert open_journal(scene.config.state_dir).state == "none"


def test_libvirt_asks_a_qemu_that_is_new_while_all_vms_run(scene: Scene) -> None:
    live_update.live_update(scene.config)
    assert scene.asked == [("/usr/bin/kvm", [])]


@pytest.mark.parametrize("broken", ["pause web", "save web", "restore web"])
def test_after_a_failure_no_further_vm_is_paused(scene: Scene, broken: str) -> None:
    scene.broken = broken
    with pytest.raises(HoldfastError, match=f"{broken} failed"):
        live_update.live_update(scene.config)
    assert scene.deeds[-1] == "recover"
    assert not any(deed.endswith(" db") for deed in scene.deeds)
    journal = open_journal(scene.config.state_dir)
    assert journal.vm(TICK)["state"] == "resumed"
    assert journal.vm(DB)["state"] == "pending"
    assert broken in journal.view["reason"]


def test_a_libvirt_that_hangs_is_ended_for_as_long_as_vms_wait_for_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is over when a VM has been saved, and with it when all is taken back."""

    @contextmanager
    def watching() -> Iterator[None]:
        scene.deeds.append("watch")
        try:
            yield
        finally:
            scene.deeds.append("no watch")

    monkeypatch.setattr(live_update.daemon, "ended_if_it_hangs", watching)
    scene.broken = "restore tick"
    with pytest.raises(HoldfastError):
        live_update.live_update(scene.config)
    each = ["pause tick", "save tick", "restore tick"]
    assert scene.deeds == ["watch", *each, "no watch", "watch", "recover", "no watch"]


def test_there_is_no_other_kernel_to_go_back_to(scene: Scene) -> None:
    scene.broken = "restore tick"
    with pytest.raises(HoldfastError):
        live_update.live_update(scene.config)
    journal = open_journal(scene.config.state_dir)
    journal.record("vm_failed", uuid=TICK, error="QEMU refuses its state")
    assert not fallback.is_possible(journal)
    assert not fallback.is_due(journal, after=1, failed=1)


def test_what_a_killed_agent_had_begun_is_taken_back_as_before_a_jump(scene: Scene) -> None:
    """It is the same boot; see test_recover.py for what follows from that."""
    journal = open_journal(scene.config.state_dir)
    journal.record(
        "begin",
        generation=WANTED.generation,
        host="hv",
        kernel={"from": "6.12", "to": "6.12"},
        qemu="10.0.2",
        boot_id="this boot",
        only="qemu",
        vms=[vm.__dict__ for vm in VMS],
    )
    journal.record("restoring")
    assert attach.judge_boot(journal, "this boot", "root=/dev/vda1") is attach.Boot.SAME
