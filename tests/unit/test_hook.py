# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hook forbids a second life: a VM that waits is not started from its disk, by autostart or by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import hook, kexec, permit
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config, PoolConfig
from ansible_collections.holdfast.kvm.plugins.module_utils._core.domain import to_pool_backing
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.incoming import restore_xml
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import open_journal

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


RESTORED = restore_xml(XML)


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
    hook.run(config_with(tmp_path, "vm_saved"), "prepare", "begin", RESTORED)


def test_a_start_from_its_disk_may_not_even_while_it_is_being_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person's start, at the same moment: it would boot, over the RAM that is kept."""
    monkeypatch.setattr(permit, "holds", lambda uuid: uuid == UUID)
    with pytest.raises(HoldfastError, match="VM db is suspended in the pool"):
        starts(config_with(tmp_path, "vm_saved"))


def test_what_waits_for_a_state_may_not_without_the_agents_word(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="VM db is suspended in the pool"):
        hook.run(config_with(tmp_path, "vm_saved"), "prepare", "begin", RESTORED)


@pytest.mark.parametrize("event", ["vm_storing", "vm_stored"])
def test_a_vm_that_is_saved_on_disk_may_not_start_afresh(tmp_path: Path, event: str) -> None:
    with pytest.raises(HoldfastError, match="VM db was saved to disk with its RAM"):
        starts(config_with(tmp_path, event))


@pytest.mark.parametrize(
    ("event", "words"), [("vm_saved", "is suspended"), ("vm_stored", "was saved to disk"), ("vm_lost", "lost its RAM")]
)
def test_nor_may_one_that_was_defined_anew_under_its_name_or_its_uuid(tmp_path: Path, event: str, words: str) -> None:
    """Its disks are the same ones, and would no longer be those of the RAM that is kept."""
    config = config_with(tmp_path, event)
    with pytest.raises(HoldfastError, match=f"VM db {words}"):
        hook.run(config, "prepare", "begin", XML.replace(UUID, UUID[::-1]))
    renamed = XML.replace("<name>db<", "<name>db2<")
    with pytest.raises(HoldfastError, match=f"VM db {words}") as forbidden:
        hook.run(config, "prepare", "begin", renamed)
    assert "give-up" not in forbidden.value.hint or forbidden.value.hint.endswith("give-up -- db")
    hook.run(config, "prepare", "begin", renamed.replace(UUID, UUID[::-1]))


def test_one_that_is_at_home_again_frees_no_other_of_its_name(tmp_path: Path) -> None:
    current = open_journal(tmp_path)
    vms = [{"name": name, "uuid": uuid, "priority": 50} for name, uuid in (("db", UUID[::-1]), ("web", UUID))]
    kernel = {"from": "6.12", "to": "7.2"}
    current.record("begin", generation="g-1", host="hv1", kernel=kernel, qemu="10", boot_id="old", vms=vms)
    for event, uuid in (("vm_saved", UUID[::-1]), ("vm_resumed", UUID)):
        current.record(event, uuid=uuid)
    with pytest.raises(HoldfastError, match="VM db is suspended in the pool"):
        starts(Config(PoolConfig("fsdax", tmp_path / "pool", ()), tmp_path))


class Unmounted:
    """A pool that no file system is mounted for."""

    def reserve_vm(self, _domain_id: int, name: str, _files: object) -> None:
        raise VmError(f"VM {name}: the pool is not mounted")


SHARED = "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>"
OWN = XML.replace("<domain type='kvm'>", "<domain type='kvm' id='3'>").replace("<devices/>", f"{SHARED}<devices/>")
CONVERTED = to_pool_backing(XML.replace("<domain type='kvm'>", "<domain type='kvm' id='3'>"))[0]
RESERVES = "ro memmap=0x40000000!0x100000000 nokaslr"


class TestBeforeTheReboot:
    """The pool is configured, and no kernel keeps it free yet: VMs stop and start as ever."""

    @pytest.fixture(autouse=True)
    def _not_yet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hook, "open_pool", lambda _config: Unmounted())
        monkeypatch.setattr(kexec, "running_cmdline", lambda: "ro quiet")

    @pytest.fixture
    def config(self, tmp_path: Path) -> Config:
        return Config(PoolConfig("fsdax", tmp_path / "pool", ()), tmp_path)

    def test_a_vm_whose_ram_is_a_shared_file_anyway_starts(self, config: Config) -> None:
        hook.run(config, "start", "begin", OWN)

    def test_one_that_was_converted_does_not_start_beside_the_pool(self, config: Config) -> None:
        with pytest.raises(VmError, match="not mounted"):
            hook.run(config, "start", "begin", CONVERTED)

    def test_none_starts_beside_a_pool_that_the_kernel_keeps(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kexec, "running_cmdline", lambda: RESERVES)
        with pytest.raises(VmError, match="not mounted"):
            hook.run(config, "start", "begin", OWN)

    def test_none_starts_beside_the_pool_while_a_generation_is_in_flight(self, tmp_path: Path) -> None:
        config = config_with(tmp_path, "vm_stored", "failed")
        with pytest.raises(VmError, match="not mounted"):
            hook.run(config, "start", "begin", OWN.replace(UUID, UUID[::-1]))
