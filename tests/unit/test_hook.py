# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hook forbids a second life: a VM that waits is not started from its disk, by autostart or by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import hook, kexec, permit
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config, PoolConfig
from ansible_collections.holdfast.kvm.plugins.module_utils._core.domain import to_pool_backing, vm_facts
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import RamBacking
from ansible_collections.holdfast.kvm.plugins.module_utils._core.incoming import restore_xml
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import open_journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import RamFile

UUID = "6d0bb2f2-7d4a-4b0e-9b0b-0d4f3c5f1a11"
XML = f"<domain type='kvm'><name>db</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory><devices/></domain>"


def config_with(state_dir: Path, *events: str, may_restart: bool = False) -> Config:
    """A host in whose journal these events happened to the one VM."""
    current = open_journal(state_dir)
    vm = {"name": "db", "uuid": UUID, "priority": 50, "may_restart": may_restart}
    kernel = {"from": "6.12", "to": "7.2"}
    current.record("begin", generation="g-1", host="hv1", kernel=kernel, qemu="10", boot_id="old", vms=[vm])
    for event in events:
        current.record(event, uuid=UUID)
    return Config(PoolConfig("fsdax", state_dir / "pool", ()), state_dir)


def starts(config: Config) -> None:
    hook.run(config, "prepare", "begin", XML)


@pytest.fixture(autouse=True)
def _nobody_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permit, "holds", lambda _uuid: False)
    monkeypatch.setattr(kexec, "boot_id", lambda: "old")


@pytest.mark.parametrize(
    "events", [("vm_paused",), ("vm_saved",), ("vm_saved", "vm_resuming"), ("vm_saved", "vm_failed")]
)
def test_a_vm_whose_ram_is_kept_may_not_start(tmp_path: Path, events: tuple[str, ...]) -> None:
    with pytest.raises(HoldfastError, match="VM db is suspended in the pool"):
        starts(config_with(tmp_path, *events))


def test_a_lost_vm_waits_for_a_persons_word(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="holdfast-agent give-up -- db"):
        starts(config_with(tmp_path, "vm_lost"))


def test_a_lost_vm_starts_when_its_policy_says_so(tmp_path: Path) -> None:
    starts(config_with(tmp_path, "vm_lost", may_restart=True))


@pytest.mark.parametrize(
    "events", [("suspending",), ("suspending", "suspended"), ("suspending", "suspended", "jumping")]
)
def test_nothing_begins_to_run_on_a_host_that_is_about_to_jump(tmp_path: Path, events: tuple[str, ...]) -> None:
    config = config_with(tmp_path, *events)
    with pytest.raises(HoldfastError, match="VM other cannot start: the host is about to jump"):
        hook.run(config, "prepare", "begin", XML.replace("<name>db<", "<name>other<").replace(UUID, UUID[::-1]))


def test_after_a_power_cut_in_the_middle_other_vms_start_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_with(tmp_path, "suspending", "suspended", "jumping")
    monkeypatch.setattr(kexec, "boot_id", lambda: "another")
    hook.run(config, "prepare", "begin", XML.replace("<name>db<", "<name>other<").replace(UUID, UUID[::-1]))


def test_until_then_and_afterwards_it_may(tmp_path: Path) -> None:
    config = config_with(tmp_path)
    other = XML.replace("<name>db<", "<name>other<").replace(UUID, UUID[::-1])
    hook.run(config, "prepare", "begin", other)
    open_journal(tmp_path).record("aborted", reason="")
    hook.run(config, "prepare", "begin", other)


@pytest.mark.parametrize("event", ["vm_resumed", "vm_restarted", "vm_given_up"])
def test_a_vm_that_waits_no_longer_starts(tmp_path: Path, event: str) -> None:
    starts(config_with(tmp_path, event))


def test_the_restore_itself_may_start_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permit, "holds", lambda uuid: uuid == UUID)
    starts(config_with(tmp_path, "vm_saved"))


# VMs that bring their RAM along


class Room:
    """A pool with room for so many bytes."""

    def __init__(self, bytes_free: int) -> None:
        self.bytes_free = bytes_free

    def has_room(self, files: Sequence[RamFile]) -> bool:
        return sum(file.size_bytes for file in files) <= self.bytes_free


@pytest.fixture
def arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What libvirt gets for a VM of this definition."""
    monkeypatch.setattr(hook, "DEFINITIONS", tmp_path)

    def given(xml: str = XML, room: int = 1 << 30, how: str = "migrate", definition: str = "") -> str:
        monkeypatch.setattr(hook, "open_pool", lambda _config: Room(room))
        if definition:
            (tmp_path / "db.xml").write_text(definition)
        return hook.run(Config(PoolConfig("fsdax", tmp_path / "pool", ()), tmp_path), how, "begin", xml)

    return given


def test_a_vm_that_brings_its_ram_along_gets_it_into_the_pool(arrives: Callable[..., str]) -> None:
    found = vm_facts(arrives())
    assert (found.name, found.uuid, found.ram_bytes) == ("db", UUID, 64 << 20)
    assert found.ram_backing is RamBacking.FILE_SHARED


def test_a_managed_save_is_left_alone(arrives: Callable[..., str]) -> None:
    """libvirt deletes it, with the VM's RAM, when its hook fails or says what libvirt refuses."""
    assert arrives(how="restore") == ""


@pytest.mark.parametrize("event", ["vm_storing", "vm_stored"])
def test_a_vm_that_is_saved_on_disk_may_not_start_afresh(tmp_path: Path, event: str) -> None:
    with pytest.raises(HoldfastError, match="VM db was saved to disk with its RAM"):
        starts(config_with(tmp_path, event))


def test_it_stays_as_it_is_where_the_pool_has_no_room(arrives: Callable[..., str]) -> None:
    assert arrives(room=(64 << 20) - 1) == ""


def test_it_stays_as_it_is_where_its_definition_was_left_alone(arrives: Callable[..., str]) -> None:
    assert arrives(definition=XML) == ""
    assert arrives(definition=to_pool_backing(XML)[0]) != ""


@pytest.mark.parametrize(
    "inside",
    [
        "<memoryBacking><hugepages/></memoryBacking>",
        "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>",
    ],
)
def test_huge_pages_and_what_is_there_already_are_left_alone(arrives: Callable[..., str], inside: str) -> None:
    assert arrives(XML.replace("<devices/>", f"{inside}<devices/>")) == ""


def test_memory_modules_would_not_be_reserved(arrives: Callable[..., str]) -> None:
    module = "<devices><memory model='dimm'><target><size unit='MiB'>64</size></target></memory></devices>"
    assert arrives(XML.replace("<devices/>", module)) == ""


def test_what_a_restore_left_in_its_definition_goes_in_any_case(arrives: Callable[..., str]) -> None:
    """QEMU would wait for a state of ours."""
    left = restore_xml(XML)
    assert "-incoming" in left
    found = arrives(left, room=0)
    assert found
    assert "-incoming" not in found


def test_a_name_that_is_a_path_leads_nowhere(arrives: Callable[..., str]) -> None:
    assert arrives(XML.replace("<name>db<", "<name>../db<")) == ""


def test_a_host_without_a_pool_says_nothing(tmp_path: Path) -> None:
    assert hook.run(Config(state_dir=tmp_path), "migrate", "begin", XML) == ""
