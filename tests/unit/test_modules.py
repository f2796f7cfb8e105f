# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules: check mode and diff tell the truth, a second run changes nothing, refusals touch nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from module_run import run

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    collect,
    config,
    domain_ram,
    facts,
    grub,
    installation,
    packing,
    qemu_conf,
    reservation,
    turn,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.crash_area import CrashArea
from ansible_collections.holdfast.kvm.plugins.module_utils._core.domain_ram import Backing
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import (
    BadInput,
    CommandFailed,
    HoldfastError,
    Refused,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import NAME, open_journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.regions import PoolWish
from ansible_collections.holdfast.kvm.plugins.modules import agent, pool, preflight, vm_info

GIB = 1 << 30
FIRMWARE = (
    facts.Region(0x100000, 3 * GIB - 0x100000),
    facts.Region(4 * GIB, 8 * GIB),
)
QEMU_CONF = '# libvirt\'s own words\n#memory_backing_dir = "/var/lib/libvirt/qemu/ram"\n'
XML = "<domain type='kvm'><name>{0}</name><uuid>{0}</uuid><memory unit='MiB'>64</memory>{1}<devices/></domain>"


class Host:
    """The three files of a reservation in a folder, and a running kernel without one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cmdline = "root=/dev/vda1 ro"
        self.initrd_mib = 20
        self.commands: list[str] = []
        (folder / "qemu.conf").write_text(QEMU_CONF)
        (folder / "grub.cfg").write_text("")

    def update_grub(self, argv: list[str], **_more: object) -> str:
        self.commands.append(" ".join(argv))
        arguments = " ".join(grub.arguments_of(grub.installed_text(grub.PATH)))
        (self.folder / "grub.cfg").write_text(f"\tlinux\t/boot/vmlinuz ro {arguments}\n")
        return ""

    def begin(self, *events: str) -> None:
        """A generation with one VM, to which these events happened."""
        (self.folder / "state").mkdir(exist_ok=True)
        journal = open_journal(self.folder / "state")
        kernel = {"from": "6.12", "to": "7.2"}
        vm = {"name": "db1", "uuid": "db1", "priority": 50, "treatment": "in_place"}
        journal.record("begin", generation="g-1", host="hv1", kernel=kernel, qemu="10", boot_id="old", vms=[vm])
        self.happens(*events)

    def happens(self, *events: str) -> None:
        for event in events:
            open_journal(self.folder / "state").record(event, uuid="db1")

    def contents(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def host(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host(tmp_path)
    monkeypatch.setattr(qemu_conf, "PATH", tmp_path / "qemu.conf")
    monkeypatch.setattr(config, "CONFIG", tmp_path / "agent.json")
    monkeypatch.setattr(config.load, "__defaults__", (tmp_path / "agent.json",))
    monkeypatch.setattr(grub, "PATH", tmp_path / "holdfast.cfg")
    monkeypatch.setattr(grub.installed_text, "__defaults__", (tmp_path / "holdfast.cfg",))
    monkeypatch.setattr(grub.install, "__defaults__", (tmp_path / "holdfast.cfg", tmp_path / "grub.cfg"))
    monkeypatch.setattr(grub.command, "run", found.update_grub)
    monkeypatch.setattr(grub.is_set_elsewhere, "__defaults__", (tmp_path / "grub", tmp_path / "grub.d/ours.cfg"))
    monkeypatch.setattr(reservation.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(reservation.kexec, "initrd_bytes", lambda _release: found.initrd_mib << 20)
    monkeypatch.setattr(turn, "RUN_DIR", tmp_path_factory.mktemp("run"))
    monkeypatch.setattr(collect, "firmware_map", lambda: FIRMWARE)
    monkeypatch.setattr(collect.kexec, "running_cmdline", lambda: found.cmdline)
    # Keep the state directory inside the folder, too. Metrics are the agent's to write, so their directory may stay.
    monkeypatch.setattr(config.Config.__init__, "__defaults__", (None, tmp_path / "state", config.METRICS_DIR))
    return found


ONE = {"regions": [{"size": "1G"}]}
TWO = {"regions": [{"size": "2G"}]}
# What a kernel was started with that keeps that.
KEPT = "ro memmap=0x40000000!0x100000000 nokaslr crashkernel=704M"


class TestPool:
    def test_it_is_reserved_once(self, host: Host) -> None:
        first = run(pool, **ONE)
        assert first["changed"]
        assert first["argument"] == "memmap=0x40000000!0x100000000 nokaslr crashkernel=704M"
        assert (first["crash_kernel"], first["crash_kernel_reason"]) == ("704 MiB", "")
        assert first["reboot_required"]
        assert host.commands == ["update-grub"]
        second = run(pool, **ONE)
        assert (second["changed"], second["diff"], second["reboot_required"]) == (False, [], True)
        assert host.commands == ["update-grub"]

    @pytest.mark.parametrize(
        ("size", "memory", "kind", "warned"),
        [
            ("100G", "64", "devdax", ""),
            ("100G", "65", "fsdax", "the RAM of db1 is no multiple of 2 MiB"),
            ("4G", "65", "fsdax", ""),
        ],
    )
    def test_its_kind_is_chosen_by_its_size_and_its_vms(
        self, host: Host, monkeypatch: pytest.MonkeyPatch, size: str, memory: str, kind: str, warned: str
    ) -> None:
        vms = Hypervisor(db1="", huge="<memoryBacking><hugepages/></memoryBacking>")
        vms.definitions = {name: xml.replace(">64<", f">{memory}<") for name, xml in vms.definitions.items()}
        warnings: list[str] = []
        monkeypatch.setattr(collect, "firmware_map", lambda: (*FIRMWARE[:1], facts.Region(4 * GIB, 200 * GIB)))
        monkeypatch.setattr(reservation, "is_confined", lambda _files: True)
        monkeypatch.setattr(pool, "connect", lambda: contextlib.nullcontext(vms))
        monkeypatch.setattr(pool.AnsibleModule, "warn", lambda _self, text: warnings.append(text))
        asked = {"regions": [{"size": size}]}
        assert run(pool, **asked)["kind"] == kind
        assert len(warnings) == bool(warned)
        assert warned in "".join(warnings)
        # It is kept, whatever VMs come later.
        vms.definitions = {name: xml.replace(f">{memory}<", ">63<") for name, xml in vms.definitions.items()}
        again = run(pool, **asked)
        assert (again["kind"], again["changed"]) == (kind, False)
        assert len(warnings) == bool(warned)

    def test_a_first_check_tells_the_kind_without_libvirt(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> None:
            raise HoldfastError("Python's libvirt binding is not installed")

        warnings: list[str] = []
        monkeypatch.setattr(collect, "firmware_map", lambda: (*FIRMWARE[:1], facts.Region(4 * GIB, 200 * GIB)))
        monkeypatch.setattr(reservation, "is_confined", lambda _files: True)
        monkeypatch.setattr(pool, "connect", fail)
        monkeypatch.setattr(pool.AnsibleModule, "warn", lambda _self, text: warnings.append(text))
        asked = {"regions": [{"size": "100G"}]}
        assert run(pool, check=True, **asked)["kind"] == "devdax"
        assert "binding is not installed" in warnings[0]
        before = host.contents()
        assert "binding is not installed" in run(pool, **asked)["msg"]
        assert host.contents() == before

    def test_a_check_tells_what_the_run_does_and_does_nothing(self, host: Host) -> None:
        before = host.contents()
        promised = run(pool, check=True, **ONE)
        assert host.contents() == before
        assert host.commands == []
        done = run(pool, **ONE)
        assert done["diff"] == promised["diff"]
        for entry in done["diff"]:
            assert Path(entry["after_header"]).read_text() == entry["after"]

    def test_no_reboot_is_needed_once_the_kernel_keeps_it(self, host: Host) -> None:
        run(pool, **ONE)
        host.cmdline = "ro memmap=0x40000000!0x100000000 nokaslr"
        assert run(pool, **ONE)["reboot_required"], "the crash kernel has no RAM yet"
        host.cmdline += " crashkernel=704M"
        assert not run(pool, **ONE)["reboot_required"]
        without = run(pool, **ONE, crash_kernel="none")
        assert (without["changed"], without["reboot_required"]) == (True, False)
        assert without["argument"] == "memmap=0x40000000!0x100000000 nokaslr"

    def test_a_crash_kernel_that_does_not_fit_is_left_out_with_the_reason(self, host: Host) -> None:
        tight = run(pool, regions=[{"size": "8G"}], host_reserve="2600M")
        assert tight["argument"] == "memmap=0x200000000!0x100000000 nokaslr"
        assert "896 MiB for it would leave the host 2047 MiB, less than 2600 MiB" in tight["crash_kernel_reason"]
        assert run(pool, regions=[{"size": "8G"}], host_reserve="2600M", crash_kernel="1G")["refused"]
        assert "too small" in run(pool, **ONE, crash_kernel="64M")["msg"]

    def test_a_crash_kernel_grows_with_the_initrd_and_does_not_shrink(self, host: Host) -> None:
        for initrd_mib, argument in ((20, "crashkernel=704M"), (100, "crashkernel=960M"), (20, "crashkernel=960M")):
            host.initrd_mib = initrd_mib
            assert run(pool, **ONE)["argument"].split()[-1] == argument

    def test_it_is_made_for_as_many_vms_as_the_operator_says(self, host: Host) -> None:
        assert run(pool, **ONE, max_vms=16)["crash_kernel"] == "1664 MiB"
        assert "max_vms is 0" in run(pool, **ONE, max_vms=0)["msg"]

    def test_somebody_elses_crash_kernel_stays_alone(self, host: Host) -> None:
        (host.folder / "grub.d").mkdir()
        (host.folder / "grub.d/kdump-tools.cfg").write_text('GRUB_CMDLINE_LINUX_DEFAULT="crashkernel=256M"\n')
        done = run(pool, **ONE)
        assert "crashkernel" not in done["argument"]
        assert "somebody else" in done["crash_kernel_reason"]

    def test_a_crash_kernel_prepares_nothing(self, host: Host) -> None:
        host.cmdline = "elfcorehdr=0x7c000000 ro memmap=0x40000000!0x100000000 nokaslr"
        assert run(pool, **ONE)["refused"]
        assert host.commands == []

    def test_removal_leaves_the_files_as_they_were(self, host: Host) -> None:
        before = (host.folder / "qemu.conf").read_text()
        run(pool, **ONE)
        host.cmdline = "ro memmap=0x40000000!0x100000000 nokaslr"
        gone = run(pool, state="absent")
        assert (gone["changed"], gone["reboot_required"], gone["regions"]) == (True, True, [])
        assert (host.folder / "qemu.conf").read_text() == before
        assert not (host.folder / "agent.json").exists()
        assert not (host.folder / "holdfast.cfg").exists()
        assert not run(pool, state="absent")["changed"]

    @pytest.mark.parametrize(
        ("events", "words"),
        [
            ((), "g-1 is staged"),
            (("suspending", "vm_paused"), "g-1 is suspending on this host, with db1 (paused)"),
            (("suspending", "vm_saved", "failed"), "g-1 is failed on this host, with db1 (suspended)"),
            (("vm_storing",), "with db1 (storing)"),
            (("vm_stored", "vm_not_loaded", "failed"), "with db1 (stored)"),
            (("vm_shut_down", "aborted"), "with db1 (shut_down)"),
            (("vm_lost", "failed"), "with db1 (lost)"),
        ],
    )
    def test_nothing_changes_while_a_generation_needs_the_pool(
        self, host: Host, events: tuple[str, ...], words: str
    ) -> None:
        run(pool, **ONE)
        host.cmdline = KEPT
        host.begin(*events)
        before = host.contents()
        assert not run(pool, **ONE)["changed"]
        for change in (TWO, {"state": "absent"}):
            refused = run(pool, **change)
            assert refused["refused"]
            assert words in refused["msg"]
            assert "holdfast recover" in refused["msg"]
        assert host.contents() == before

    def test_a_damaged_journal_may_hold_a_vm(self, host: Host) -> None:
        run(pool, **ONE)
        host.cmdline = KEPT
        (host.folder / "state" / NAME).write_text("0 {}\n")
        before = host.contents()
        for change in (TWO, {"state": "absent"}):
            refused = run(pool, **change)
            assert refused["refused"]
            assert "is damaged" in refused["msg"]
        assert host.contents() == before

    def test_a_generation_that_ended_with_every_vm_at_home_is_in_nobodys_way(self, host: Host) -> None:
        run(pool, **ONE)
        host.begin("suspending", "vm_saved", "vm_resuming", "vm_resumed", "aborted")
        assert run(pool, **TWO)["changed"]
        assert run(pool, state="absent")["changed"]

    def test_a_reboot_that_is_due_waits_for_a_vm_that_is_kept(self, host: Host) -> None:
        run(pool, **ONE)
        host.cmdline = KEPT.replace("704M", "512M")
        assert run(pool, **ONE)["reboot_required"]
        host.begin("suspending", "vm_saved", "failed")
        refused = run(pool, **ONE)
        assert refused["refused"]
        assert "db1 (suspended)" in refused["msg"]

    def test_a_removal_that_found_nothing_to_change_still_deletes_the_journal(self, host: Host) -> None:
        host.begin("vm_stored", "failed")
        assert run(pool, state="absent")["refused"]

    def test_no_live_update_begins_between_the_check_and_the_change(
        self, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that was before us has begun by the time that it is our turn."""
        run(pool, **ONE)
        before = host.contents()

        @contextlib.contextmanager
        def taken() -> Iterator[None]:
            host.begin()
            yield

        monkeypatch.setattr(turn, "taken", taken)
        assert run(pool, check=True, **TWO)["changed"]
        assert "g-1 is staged" in run(pool, **TWO)["msg"]
        assert {name: text for name, text in host.contents().items() if name != NAME} == before

    def test_a_removal_that_is_refused_has_converted_nothing(self) -> None:
        """The first task asks whether the pool can be given back, with the words of the one that does it."""
        path = Path(__file__).parents[2] / "roles/prepare/tasks/remove.yml"
        first, second, *later = yaml.safe_load(path.read_text())
        assert (first["check_mode"], first["changed_when"]) == (True, False)
        assert first["holdfast.kvm.pool"] == {"state": "absent"}
        assert "holdfast.kvm.domain_ram" in second
        assert [task["holdfast.kvm.pool"] for task in later if "holdfast.kvm.pool" in task] == [{"state": "absent"}]

    def test_a_pool_in_use_is_not_given_back(self, host: Host) -> None:
        run(pool, **ONE)
        (host.folder / "state/pool/libvirt/qemu/3-db1").mkdir(parents=True)
        refused = run(pool, state="absent")
        assert refused["refused"]
        assert "3-db1" in refused["msg"]

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"regions": [{"size": "3M"}]}, "multiple of 2 MiB"),
            ({"regions": [{"size": "much"}]}, "not a size"),
            ({"regions": [{"size": "900G"}]}, "does not fit"),
            ({"regions": [{"size": "1G", "node": 5}]}, "node 5"),
            ({"regions": [{"size": "1G", "start": "0x1000"}]}, "cannot be at"),
            ({"regions": [{"size": "1G", "start": "somewhere"}]}, "not a size"),
            ({"regions": [{"size": "1G", "start": "0xzz"}]}, "'0xzz' is no address"),
            ({"regions": [{"size": "1G", "node": "both"}]}, "no NUMA node"),
            ({"regions": [{"size": "1G"}], "host_reserve": "64G"}, "leaves the host"),
            ({}, "no size"),
        ],
    )
    def test_what_cannot_work_is_refused_with_the_reason(self, host: Host, options: Any, word: str) -> None:
        before = host.contents()
        result = run(pool, **options)
        assert result["failed"]
        assert word in result["msg"]
        assert host.contents() == before
        assert host.commands == []

    def test_every_node_gives_its_share(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        nodes = (*FIRMWARE, facts.Region(12 * GIB, 4 * GIB, node=1))
        monkeypatch.setattr(collect, "firmware_map", lambda: nodes)
        found = run(pool, regions=[{"size": "50%", "node": "all"}])
        sizes = [(one["node"], one["start"] // GIB, one["size"] >> 20) for one in found["regions"]]
        assert sizes == [(0, 4, 5630), (1, 12, 2048)]
        assert found["argument"].startswith("memmap=0x15fe00000!0x100000000,0x80000000!0x300000000 nokaslr")
        assert not run(pool, regions=[{"size": "50%", "node": "all"}])["changed"]

    def test_a_host_without_libvirt_is_no_hypervisor(self, host: Host) -> None:
        (host.folder / "qemu.conf").unlink()
        assert "no hypervisor" in run(pool, **ONE)["msg"]

    def test_a_pool_that_fits_stays_where_it_is(self, host: Host) -> None:
        run(pool, regions=[{"size": "1G", "start": "5G"}])
        assert run(pool, **ONE)["regions"][0]["start"] == 5 * GIB

    @pytest.mark.parametrize(("prepared", "change"), [(False, ONE), (True, TWO), (True, {"state": "absent"})])
    def test_a_failure_of_the_boot_loader_leaves_everything_as_it_was(
        self, host: Host, monkeypatch: pytest.MonkeyPatch, prepared: bool, change: dict[str, Any]
    ) -> None:
        """New regions in the agent's file, with the old ones in the boot menu, are a pool that is never attached."""

        def fail(argv: list[str], **_more: object) -> str:
            (host.folder / "grub.cfg").write_text("half a menu")
            raise CommandFailed("update-grub ended with 1: no space left")

        if prepared:
            run(pool, **ONE)
        before = host.contents()
        monkeypatch.setattr(grub.command, "run", fail)
        assert "no space left" in run(pool, **change)["msg"]
        assert host.contents() == before


def test_somebody_elses_memory_backing_dir_is_not_overwritten() -> None:
    with pytest.raises(HoldfastError, match="already sets memory_backing_dir"):
        qemu_conf.with_memory_backing_dir('memory_backing_dir = "/mnt"\n', "/var/lib/holdfast/pool")


@pytest.mark.parametrize("text", ["", "a = 1", "a = 1\n"])
def test_our_block_comes_and_goes(text: str) -> None:
    once = qemu_conf.with_memory_backing_dir(text, "/pool")
    assert qemu_conf.memory_backing_dir(once) == "/pool"
    assert qemu_conf.with_memory_backing_dir(once, "/pool") == once
    assert qemu_conf.with_memory_backing_dir(once, None).rstrip("\n") == text.rstrip("\n")


def test_devices_are_allowed_besides_libvirts_own_in_the_same_block() -> None:
    once = qemu_conf.with_memory_backing_dir("a = 1\n", "/pool/dax", ("/dev/dax0.1", "/dev/dax0.2"))
    assert '"/dev/kvm", "/dev/userfaultfd", "/dev/dax0.1", "/dev/dax0.2"]' in once
    assert qemu_conf.with_memory_backing_dir(once, "/pool/dax", ("/dev/dax0.1", "/dev/dax0.2")) == once
    assert qemu_conf.with_memory_backing_dir(once, None) == "a = 1\n"
    with pytest.raises(HoldfastError, match="already sets cgroup_device_acl"):
        qemu_conf.with_memory_backing_dir('cgroup_device_acl = [\n"/dev/null"]\n', "/pool/dax", ("/dev/dax0.1",))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('#save_image_format = "zstd"', ""),
        ('save_image_format = "zstd"', "zstd"),
        ("  save_image_format='xz' # small", "xz"),
        ('dump_image_format = "xz"', ""),
    ],
)
def test_the_format_of_save_images_is_found(line: str, found: str) -> None:
    assert qemu_conf.save_image_format(f'user = "root"\n{line}\n') == found


def test_the_configuration_reads_what_it_wrote(tmp_path: Path) -> None:
    pool_config = config.PoolConfig("fsdax", Path("/p"), (facts.Region(4 * GIB, GIB, node=1),))
    written = config.Config(pool_config, Path("/state"))
    (tmp_path / "agent.json").write_text(config.text_of(written))
    assert config.load(tmp_path / "agent.json") == written


class TestAgent:
    @pytest.fixture
    def installed(self, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        commands: list[list[str]] = []
        units = tmp_path / "system"

        def systemctl(argv: list[str], **_more: object) -> str:
            commands.append(argv)
            wants = units / "multi-user.target.wants"
            wants.mkdir(parents=True, exist_ok=True)
            if argv[0] == installation.LIST_INITRD:
                return "init\nscripts/init-bottom/holdfast\n" if argv[1].endswith("7.2") else "init\n"
            if argv[0] != "systemctl":
                return ""
            for unit in installation.ENABLED:
                (wants / unit).touch() if "enable" in argv else (wants / unit).unlink(missing_ok=True)
            return ""

        files = tuple(
            installation.HostFile(tmp_path / file.path.relative_to("/etc"), file.text, file.mode)
            for file in installation.FILES
        )
        monkeypatch.setattr(installation, "FILES", files)
        monkeypatch.setattr(installation, "RENEW_INITRDS", tmp_path)
        monkeypatch.setattr(installation, "INITRAMFS_SCRIPT", tmp_path / "initramfs-tools/scripts/init-bottom/holdfast")
        monkeypatch.setattr(installation.kexec, "running_release", lambda: "6.12")
        monkeypatch.setattr(installation.kexec, "image_of", lambda release: (Path("vmlinuz"), Path(f"/boot/{release}")))
        monkeypatch.setattr(installation.releases, "installed", lambda: ("6.12", "7.2"))
        monkeypatch.setattr(installation, "run", systemctl)
        monkeypatch.setattr(installation, "UNITS", tmp_path / "systemd/system")
        monkeypatch.setattr(installation.enabled, "__defaults__", (units,))
        monkeypatch.setattr(packing, "PATH", tmp_path / "sbin/holdfast-agent")
        return commands

    def test_it_comes_once_and_goes_without_a_trace(self, installed: list[list[str]], tmp_path: Path) -> None:
        promised = run(agent, check=True)
        assert promised["changed"]
        assert installed == []
        first = run(agent)
        assert (first["changed"], first["diff"]) == (True, promised["diff"])
        assert first["version"] == packing.packed_version(str(packing.PATH))
        assert installed[-1] == [str(installation.RENEW_INITRDS), "-u", "-k", "7.2"]
        assert packing.PATH.stat().st_mode & 0o7777 == 0o755
        assert not run(agent)["changed"]
        installed.clear()
        assert run(agent, state="absent")["changed"]
        assert [path for path in tmp_path.rglob("*holdfast*") if path.is_file()] == []
        # Only the one that the script is in.
        renewed = [argv for argv in installed if argv[0] == str(installation.RENEW_INITRDS)]
        assert renewed == [[str(installation.RENEW_INITRDS), "-u", "-k", "7.2"]]
        assert not run(agent, state="absent")["changed"]

    def test_an_initrd_that_cannot_be_listed_keeps_nothing_else_on_the_host(
        self, installed: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(agent)
        systemctl = installation.run

        def unlistable(argv: list[str], **more: object) -> str:
            if argv[0] == installation.LIST_INITRD:
                raise CommandFailed("lsinitramfs ended with 1: not a cpio archive")
            return systemctl(argv, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(installation, "run", unlistable)
        assert run(agent, state="absent")["changed"]
        assert [path for path in tmp_path.rglob("*holdfast*") if path.is_file()] == []

    @pytest.mark.parametrize("spoil", ["sbin/holdfast-agent", "libvirt/hooks/qemu.d/holdfast"])
    def test_what_somebody_changed_is_put_right(self, installed: list[list[str]], tmp_path: Path, spoil: str) -> None:
        run(agent)
        (tmp_path / spoil).write_text("#!/bin/sh\n")
        assert run(agent, check=True)["changed"]
        assert run(agent)["changed"]
        assert not run(agent)["changed"]

    @pytest.mark.parametrize("change", [{}, {"state": "absent"}])
    def test_the_agent_of_a_generation_in_flight_stays(
        self, installed: list[list[str]], host: Host, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
    ) -> None:
        """One that is at work takes its code from this very file; one that comes later has to read its journal."""
        run(agent)
        host.begin("suspending", "vm_saved", "failed")
        monkeypatch.setattr(packing, "core_sources", lambda _core: {"agent.py": b"def main(): return 0\n"})
        before = packing.PATH.read_bytes()
        for check in (True, False):
            refused = run(agent, check=check, **change)
            assert refused["refused"]
            assert "db1 (suspended)" in refused["msg"]
        assert packing.PATH.read_bytes() == before
        host.happens("vm_given_up")
        assert run(agent, **change)["changed"]

    def test_an_agent_that_is_missing_or_spoiled_is_put_right_for_vms_that_wait(
        self, installed: list[list[str]], host: Host, tmp_path: Path
    ) -> None:
        run(agent)
        host.begin("suspending", "vm_saved", "failed")
        assert not run(agent)["changed"]
        packing.PATH.write_text("#!/bin/sh\n")
        assert run(agent)["changed"]
        packing.PATH.unlink()
        (tmp_path / "libvirt/hooks/qemu.d/holdfast").unlink()
        assert run(agent)["changed"]

    @pytest.mark.parametrize("change", [{}, {"state": "absent"}])
    def test_an_agent_at_work_is_waited_for(
        self, installed: list[list[str]], host: Host, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
    ) -> None:
        """One that was before us has begun a generation by the time that it is our turn."""
        run(agent)
        monkeypatch.setattr(packing, "core_sources", lambda _core: {"agent.py": b"def main(): return 0\n"})
        before = packing.PATH.read_bytes()

        @contextlib.contextmanager
        def taken() -> Iterator[None]:
            host.begin()
            yield

        monkeypatch.setattr(turn, "taken", taken)
        assert run(agent, check=True, **change)["changed"]
        assert "g-1 is staged" in run(agent, **change)["msg"]
        assert packing.PATH.read_bytes() == before

    def test_libvirts_daemon_has_to_look_for_a_hook_that_it_cannot_know(
        self, installed: list[list[str]], tmp_path: Path
    ) -> None:
        """It looks whether there is one when it starts; what is in it, at each call."""
        hook = tmp_path / "libvirt/hooks/qemu.d/holdfast"
        assert run(agent, check=True)["libvirt_changed"]
        assert run(agent)["libvirt_changed"]
        assert not run(agent)["libvirt_changed"]
        hook.write_text("#!/bin/sh\n")
        assert not run(agent)["libvirt_changed"]
        hook.chmod(0o644)
        assert run(agent)["libvirt_changed"]
        hook.unlink()
        assert run(agent)["libvirt_changed"]

    def test_prepare_lets_libvirts_daemon_look_for_its_hook(self) -> None:
        tasks = yaml.safe_load((Path(__file__).parents[2] / "roles/prepare/tasks/main.yml").read_text())
        (install,) = [task for task in tasks if "holdfast.kvm.agent" in task]
        (restart,) = [
            task for use in tasks for task in use.get("block", ()) if task["name"].startswith("Let libvirt read")
        ]
        assert f"{install['register']}.libvirt_changed" in restart["when"][0]

    def test_a_disabled_unit_is_enabled_again(self, installed: list[list[str]], tmp_path: Path) -> None:
        run(agent)
        (tmp_path / "system/multi-user.target.wants/holdfast-pool.service").unlink()
        assert run(agent)["changed"]
        assert not run(agent)["changed"]

    def test_a_pool_in_use_stops_the_removal(self, installed: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
        run(agent)

        def busy(argv: list[str], **_more: object) -> str:
            raise CommandFailed("systemctl disable ended with 1: target is busy")

        monkeypatch.setattr(installation, "run", busy)
        assert "busy" in run(agent, state="absent")["msg"]
        assert packing.PATH.exists()


class Hypervisor:
    """VMs by name with their stored definitions."""

    def __init__(self, **definitions: str) -> None:
        self.definitions = {name: XML.format(name, rest) for name, rest in definitions.items()}

    def domain(self, uuid: str) -> Any:
        outer = self

        class Domain:
            name = uuid

            def stored_xml(self) -> str:
                return outer.definitions[uuid]

            def persistent(self) -> bool:
                return True

        return Domain()

    def domains(self) -> list[Any]:
        return [self.domain(name) for name in self.definitions]

    def define(self, xml: str) -> None:
        name = xml.partition("<name>")[2].partition("</name>")[0]
        self.definitions[name] = xml


def running(name: str, *present: str) -> facts.VmFacts:
    return facts.VmFacts(name=name, uuid=name, state="running", ram_files_present=present)


class TestDomainRam:
    def plan(self, host: Hypervisor, names: list[str], backing: Backing, *vms: facts.VmFacts) -> list[Any]:
        return domain_ram.plan(host, vms, names, backing)  # type: ignore[arg-type]

    def test_there_and_back_again(self) -> None:
        host, vm = Hypervisor(db1=""), running("db1")
        before = dict(host.definitions)
        (there,) = self.plan(host, ["all"], Backing.POOL, vm)
        assert (there.changed, there.restart_needed) == (True, True)
        domain_ram.put(host, [there])  # type: ignore[arg-type]
        (again,) = self.plan(host, ["db1"], Backing.POOL, running("db1", "pc.ram"))
        assert (again.changed, again.restart_needed) == (False, False)
        (back,) = self.plan(host, ["all"], Backing.ORIGINAL, running("db1", "pc.ram"))
        assert (back.changed, back.restart_needed) == (True, True)
        domain_ram.put(host, [back])  # type: ignore[arg-type]
        assert host.definitions == before

    def test_one_that_cannot_be_converted_does_not_stop_the_others(self) -> None:
        host = Hypervisor(big="<memoryBacking><hugepages/></memoryBacking>", db1="")
        found = self.plan(host, ["all"], Backing.POOL, running("big"), running("db1"))
        assert [(one.name, one.changed, "hugepages" in one.refusal) for one in found] == [
            ("big", False, True),
            ("db1", True, False),
        ]

    @pytest.mark.parametrize(("unit", "refused"), [(1, False), (2 << 20, True)])
    def test_ram_that_the_pool_cannot_give_is_refused(self, unit: int, *, refused: bool) -> None:
        host = Hypervisor(db1="")
        host.definitions["db1"] = host.definitions["db1"].replace(">64<", ">65<")
        found = domain_ram.plan(host, (running("db1"),), ["all"], Backing.POOL, unit)  # type: ignore[arg-type]
        assert ("no multiple of 2 MiB" in found[0].refusal, found[0].changed) == (refused, not refused)

    def test_an_unknown_name_is_named_with_those_that_exist(self) -> None:
        with pytest.raises(BadInput, match=r"no VM called dbl.*VMs here: db1"):
            self.plan(Hypervisor(db1=""), ["dbl"], Backing.POOL, running("db1"))


def test_a_wish_is_granted_by_the_pool_that_is_there() -> None:
    present = config.Config(config.PoolConfig("fsdax", Path("/p"), (facts.Region(6 * GIB, GIB),)))
    same = reservation.wanted_config(present, FIRMWARE, reservation.Wish((PoolWish(GIB),)))
    assert same.pool is not None
    assert same.pool.regions == (facts.Region(6 * GIB, GIB),)
    other = reservation.wanted_config(present, FIRMWARE, reservation.Wish((PoolWish(2 * GIB),)))
    assert other.pool is not None
    assert other.pool.regions[0].size == 2 * GIB
    elsewhere = reservation.wanted_config(present, FIRMWARE, reservation.Wish((PoolWish(GIB, start=5 * GIB),)))
    assert elsewhere.pool is not None
    assert elsewhere.pool.regions[0].start == 5 * GIB


def test_a_pool_where_there_is_no_ram_any_more_is_chosen_anew() -> None:
    gone = config.Config(config.PoolConfig("fsdax", Path("/p"), (facts.Region(16 * GIB, GIB),)))
    anew = reservation.wanted_config(gone, FIRMWARE, reservation.Wish((PoolWish(GIB),)))
    assert anew.pool is not None
    assert anew.pool.regions == (facts.Region(4 * GIB, GIB),)
    unknown = reservation.wanted_config(gone, (), reservation.Wish((PoolWish(GIB),)))
    assert unknown.pool is not None
    assert unknown.pool.regions == (facts.Region(16 * GIB, GIB),)


def test_a_pool_of_another_kind_is_chosen_anew_and_read_as_it_was_written(tmp_path: Path) -> None:
    wish = reservation.Wish((PoolWish(GIB),), kind="devdax")
    present = config.Config(config.PoolConfig("fsdax", Path("/p"), (facts.Region(4 * GIB, GIB),)))
    wanted = reservation.wanted_config(present, FIRMWARE, wish)
    assert wanted.pool is not None
    assert [(one.start, one.size, one.kind) for one in wanted.pool.regions] == [
        (4 * GIB, GIB - (128 << 20), "Soft Reserved"),
        (5 * GIB - (128 << 20), 128 << 20, "System RAM"),
    ]
    (tmp_path / "agent.json").write_text(config.text_of(wanted))
    assert config.load(tmp_path / "agent.json") == wanted
    assert reservation.wanted_config(wanted, FIRMWARE, wish) == wanted
    for_many = reservation.wanted_config(wanted, FIRMWARE, replace(wish, vms=16))
    assert for_many.required_pool.regions[-1].size == 384 << 20
    assert reservation.wanted_config(for_many, FIRMWARE, wish) == for_many, "a vault that is large enough stays"
    files = reservation.with_pool(reservation.Files("", "", ""), wanted, CrashArea())
    assert "dax_hmem.region_idle=1" in files.boot
    assert f'memory_backing_dir = "{wanted.pool.mount_point}/dax"' in files.libvirt


def test_large_pages_are_for_devices_on_processors_that_have_them(tmp_path: Path) -> None:
    wish = reservation.Wish((PoolWish(GIB),), kind="devdax", page_bytes=GIB)
    devices = reservation.wanted_config(config.Config(), FIRMWARE, wish)
    with pytest.raises(Refused, match="no pages of 1 GiB"):
        reservation.check_pages(devices, tmp_path)
    (tmp_path / "sys/kernel/mm/hugepages/hugepages-1048576kB").mkdir(parents=True)
    reservation.check_pages(devices, tmp_path)
    (tmp_path / "agent.json").write_text(config.text_of(devices))
    assert config.load(tmp_path / "agent.json") == devices
    with pytest.raises(BadInput, match="kind fsdax has no pages of 1 GiB"):
        reservation.check_pages(reservation.wanted_config(config.Config(), FIRMWARE, replace(wish, kind="fsdax")))
    reservation.check_pages(reservation.wanted_config(config.Config(), FIRMWARE, reservation.Wish((PoolWish(GIB),))))


@pytest.mark.parametrize(
    ("enabled", "libvirt", "refused"),
    [
        ("Y", "", False),
        ("Y", 'security_driver = [ "selinux", "apparmor" ]\n', False),
        ("Y", '#security_driver = "none"\n', False),
        ("Y", 'security_driver = "none"\n', True),
        ("Y", 'security_driver = [\n "selinux"\n]\n', True),
        ("N", "", True),
        (None, "", True),
    ],
)
def test_a_pool_of_devices_needs_apparmor(tmp_path: Path, enabled: str | None, libvirt: str, *, refused: bool) -> None:
    if enabled:
        (tmp_path / "sys/module/apparmor/parameters").mkdir(parents=True)
        (tmp_path / "sys/module/apparmor/parameters/enabled").write_text(f"{enabled}\n")
    for kind in ("fsdax", "devdax"):
        wanted = config.Config(config.PoolConfig(kind, Path("/p"), ()))
        expected = pytest.raises(Refused, match="needs AppArmor") if refused and kind == "devdax" else None
        confined = reservation.is_confined(reservation.Files("", "", libvirt), tmp_path)
        with expected or contextlib.nullcontext():
            reservation.check_confined(wanted, confined=confined)


@pytest.mark.parametrize(
    ("present", "gib", "confined", "kind"),
    [
        ("", 63, True, "fsdax"),
        ("", 64, True, "devdax"),
        ("", 64, False, "fsdax"),
        ("fsdax", 512, True, "fsdax"),
        ("devdax", 1, True, "devdax"),
    ],
)
def test_a_kind_is_chosen_once_and_kept(present: str, gib: int, kind: str, *, confined: bool) -> None:
    here = config.Config(config.PoolConfig(present, Path("/p"), ()) if present else None)
    wish = reservation.Wish((PoolWish(gib * GIB // 2), PoolWish(gib * GIB // 2, node=1)), kind="auto")
    assert reservation.chosen_kind(wish, here, confined=confined) == kind
    for named in ("fsdax", "devdax"):
        assert reservation.chosen_kind(replace(wish, kind=named), here, confined=confined) == named


@pytest.mark.parametrize("vms", [True, False])
def test_the_kind_of_a_pool_is_not_changed_under_a_vm(tmp_path: Path, *, vms: bool) -> None:
    here, soft = (config.Config(config.PoolConfig(kind, tmp_path, ()), tmp_path) for kind in ("fsdax", "devdax"))
    files = reservation.Files("x", "", "")
    (tmp_path / "libvirt/qemu").mkdir(parents=True)
    if vms:
        (tmp_path / "libvirt/qemu/1-db1").mkdir()
    with pytest.raises(Refused, match="pool of kind fsdax: 1-db1") if vms else contextlib.nullcontext():
        reservation.check(files, files, here, soft, reboot=False)


@pytest.mark.parametrize("vms", [True, False])
def test_the_pages_of_a_pool_are_not_changed_under_a_vm(tmp_path: Path, *, vms: bool) -> None:
    small, large = (config.Config(config.PoolConfig("devdax", tmp_path, (), page), tmp_path) for page in (2 << 20, GIB))
    files = reservation.Files("x", "", "")
    (tmp_path / "dax/libvirt/qemu").mkdir(parents=True)
    if vms:
        (tmp_path / "dax/libvirt/qemu/1-db1").mkdir()
    with pytest.raises(Refused, match="pages of 2 MiB: 1-db1") if vms else contextlib.nullcontext():
        reservation.check(files, files, small, large, reboot=False)


def test_a_wish_is_granted_in_whatever_pieces() -> None:
    halves = tuple(facts.Region(start * GIB, GIB) for start in (5, 6))
    present = config.Config(config.PoolConfig("fsdax", Path("/p"), halves))
    for start in (None, 5 * GIB):
        same = reservation.wanted_config(present, FIRMWARE, reservation.Wish((PoolWish(2 * GIB, start=start),)))
        assert same.pool is not None
        assert same.pool.regions == halves


@pytest.mark.parametrize(
    ("vm", "words"),
    [
        (facts.VmFacts("a", "u", "running", ram_files_present=("pc.ram",)), "RAM in the pool"),
        (facts.VmFacts("a", "u", "running"), "RAM not in the pool"),
        (facts.VmFacts("a", "u", definition_converted=True), "RAM in the pool at its next start"),
        (facts.VmFacts("a", "u"), "not converted"),
    ],
)
def test_status_says_where_the_ram_is(vm: facts.VmFacts, words: str) -> None:
    assert vm_info.summary(vm).endswith(words)


@pytest.mark.parametrize(("check", "blocks"), [(False, True), (True, False)])
def test_an_operators_command_has_a_say_unless_it_is_a_check(
    check: bool, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight.collect, "host_facts", lambda _config: facts.HostFacts(hostname="hv1", kernel="6.12"))
    monkeypatch.setattr(preflight.collect, "vm_facts", lambda *_a: ())
    monkeypatch.setattr(preflight, "connect", contextlib.nullcontext)
    result = run(preflight, check=check, command="echo the raid is degraded; exit 1")
    assert ("command" in {blocker["code"] for blocker in result["blockers"]}) == blocks
    assert ("the raid is degraded" in result["msg"]) == blocks


def test_a_host_whose_libvirt_does_not_answer_is_refused_with_all_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> None:
        raise HoldfastError("libvirt does not answer")

    monkeypatch.setattr(preflight.collect, "host_facts", lambda _config: facts.HostFacts(hostname="hv1", kernel="6.12"))
    monkeypatch.setattr(preflight, "connect", connect)
    result = run(preflight, policy=[{"match": {"name": "db1"}, "treatment": "in_place"}])
    assert (result["failed"], result["refused"], result["staying"]) == (True, True, [])
    assert {"libvirt-down", "no-kvm", "pool-missing"} <= {blocker["code"] for blocker in result["blockers"]}


def test_preflight_fails_once_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection:
        def __enter__(self) -> object:
            return object()

        def __exit__(self, *_error: object) -> None:
            return None

    monkeypatch.setattr(preflight.collect, "host_facts", lambda _config: facts.HostFacts(hostname="hv1", kernel="6.12"))
    monkeypatch.setattr(preflight.collect, "vm_facts", lambda *_a: (running("db1"),))
    monkeypatch.setattr(preflight, "connect", Connection)
    result = run(preflight)
    assert result["failed"]
    assert result["refused"]
    assert len(result["blockers"]) > 2
    for blocker in result["blockers"]:
        assert blocker["message"] in result["msg"]
        assert blocker["remedy"] in result["msg"]
    assert {"", "db1"} <= {blocker["vm"] for blocker in result["blockers"]}
