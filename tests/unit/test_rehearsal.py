# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The next kernel is tried out in a throw-away VM: what it says there decides, and nothing of the host is in it."""

from __future__ import annotations

import lzma
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import agent, cmdline, cpio, kexec, kmod, rehearsal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError, Refused
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import Region

MIB = 1 << 20
RELEASE = "7.2.12+deb13-amd64"
GENERATION = "g-20261121T020000-ab12cd"
LINE = (
    f"root=/dev/vda1 ro quiet memmap=0x60000000!0x100000000 nokaslr crashkernel=640M holdfast.generation={GENERATION}"
)
DEPENDENCIES = """\
kernel/drivers/nvdimm/nd_pmem.ko.xz: kernel/drivers/nvdimm/nd_btt.ko.xz kernel/drivers/nvdimm/libnvdimm.ko.xz
kernel/drivers/nvdimm/nd_btt.ko.xz: kernel/drivers/nvdimm/libnvdimm.ko.xz
kernel/drivers/nvdimm/nd_e820.ko.xz: kernel/drivers/nvdimm/libnvdimm.ko.xz
kernel/drivers/nvdimm/libnvdimm.ko.xz:
kernel/arch/x86/kvm/kvm.ko.xz:
kernel/drivers/block/virtio_blk.ko.xz:
"""
BUILT_IN = "kernel/fs/ext4/ext4.ko\n"
MODULE = b"\x7fELF module"
PASSED = "[    1.2] x\r\n\r\nholdfast rehearsal verdict: passed\r\n"


# The archive in front of the initrd


def unpacked(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content by name, read by the rules of the kernel's buffer-format.rst."""
    found, at = {}, 0
    while data[at : at + 6] == b"070701":
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        begin = at + 110
        name = data[begin : begin + fields[11] - 1].decode()
        content = -(-(begin + fields[11]) // 4) * 4
        at = -(-(content + fields[6]) // 4) * 4
        if name == "TRAILER!!!":
            assert data[at:] == bytes(len(data) - at)
            return found
        found[name] = (fields[1], data[content : content + fields[6]])
    raise AssertionError("no end of the archive")


def test_an_archive_has_its_directories_first_and_leaves_room_for_another() -> None:
    data = cpio.archive({"scripts/test": b"echo", "holdfast/a/b.ko": b"12345"})
    assert len(data) % 512 == 0
    found = unpacked(data)
    assert list(found) == ["holdfast", "holdfast/a", "scripts", "holdfast/a/b.ko", "scripts/test"]
    assert all(stat.S_ISDIR(found[name][0]) for name in ("holdfast", "holdfast/a", "scripts"))
    assert found["holdfast/a/b.ko"] == (stat.S_IFREG | 0o755, b"12345")


def test_modules_are_loaded_after_what_they_need_and_once() -> None:
    order = kmod.loading_order(("nd_e820", "nd_pmem", "ext4", "kvm"), DEPENDENCIES, BUILT_IN)
    assert [kmod.module_name(path) for path in order] == ["libnvdimm", "nd_e820", "nd_btt", "nd_pmem", "kvm"]


def test_a_module_that_the_kernel_lacks_is_named() -> None:
    with pytest.raises(HoldfastError, match="no module zfs"):
        kmod.loading_order(("zfs",), DEPENDENCIES, BUILT_IN)


@pytest.mark.parametrize(
    "content", [b"", b"no xz", lzma.compress(b"no module"), lzma.compress(MODULE * 99)[:40]], ids=len
)
def test_a_module_that_cannot_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "nd_pmem.ko.xz"
    path.write_bytes(content)
    with pytest.raises(HoldfastError, match=r"nd_pmem\.ko\.xz"):
        kmod.unpacked(path)


# The command line


def test_the_line_is_the_jumps_but_for_amounts_of_ram() -> None:
    line = cmdline.rehearsal_command_line(f"{LINE} hugepages=64 -- single", Region(256 * MIB, 128 * MIB), "try")
    assert line == (
        f"root=/dev/vda1 ro quiet nokaslr holdfast.generation={GENERATION} memmap=0x8000000!0x10000000 boot=try "
        "console=ttyS0,115200n8 loglevel=5 oops=panic panic=1 -- single"
    )


def test_the_pool_of_the_vm_lies_between_its_kernel_and_its_initrd() -> None:
    for initrd_bytes in (1, 30 * MIB, 300 * MIB):
        assert rehearsal.POOL.end < rehearsal.ram_for(initrd_bytes) - initrd_bytes
    assert rehearsal.POOL.start >= 128 * MIB
    assert rehearsal.POOL.size > rehearsal.FILE_SYSTEM_BYTES


def test_nothing_of_the_host_is_in_the_vm() -> None:
    words = rehearsal.arguments(Path("/k"), Path("/i"), "quiet", 1024 * MIB, Path("/c"))
    assert words[:3] == ["timeout", "--kill-after=15", "300"]
    assert not {"-drive", "-hda", "-blockdev", "-netdev", "-nic", "-device", "-virtfs"} & set(words)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert words[words.index("-append") + 1] == "quiet"
    assert words[words.index("-m") + 1] == "1024M"


# What its console says


@pytest.mark.parametrize(
    ("console", "told"),
    [
        (PASSED, ""),
        ("holdfast rehearsal verdict: passed\n", ""),
        ("holdfast rehearsal verdict: its module nd_pmem cannot be loaded\n" + PASSED, "its module nd_pmem cannot"),
        ("Initramfs unpacking failed: junk\n" + PASSED, "its initrd is damaged"),
        ("Kernel panic - not syncing: VFS: Unable to mount root fs\r\n", "it panicked: VFS: Unable to mount root fs"),
        ("Kernel command line: boot=holdfast-rehearsal\n", "it did not reach the self-test within 300 s"),
        ("echo holdfast rehearsal verdict: passed\n", "it did not reach the self-test"),
        ("", "it said nothing"),
        ("holdfast rehearsal verdict: \x1b[2J\n", "\ufffd[2J"),
    ],
)
def test_the_verdict_is_read_from_the_console(console: str, told: str) -> None:
    found = rehearsal.fault(console.replace("\r", ""))
    assert found.startswith(told)
    assert bool(found) == bool(told)


# The self-test itself, with the VM's files in a folder and its programs as shell functions


class Machine:
    """A throw-away VM in a folder: what it has, and what its programs do."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("sys/devices/platform/e820_pmem", "sys/module", "proc/sys/kernel", "dev", "holdfast"):
            (root / folder).mkdir(parents=True)
        (root / "dev/pmem0").touch()
        (root / "holdfast/pool.img").write_text("ext4")
        (root / "proc/mounts").write_text("")
        self.insmod = f'n=${{1##*/}}; mkdir "{root}/sys/module/${{n%.ko}}"'
        self.modprobe = f'mkdir "{root}/sys/module/$1"'
        self.mounted = "rw,dax=always"

    def said(self) -> str:
        script = rehearsal.self_test([("libnvdimm", "libnvdimm.ko"), ("nd_pmem", "nd_pmem.ko")], ["virtio_blk"])
        script = re.sub(r"(?<![\w/.])/(sys|proc|dev|holdfast)/", rf"{self.root}/\1/", script).replace("-b ", "-e ")
        mount = f'echo "/dev/pmem0 {self.root}/holdfast/pool ext4 {self.mounted} 0 0" >{self.root}/proc/mounts'
        script = script.replace('" /holdfast', f'" {self.root}/holdfast')
        programs = (
            f"insmod() {{ {self.insmod}; }}\nmodprobe() {{ {self.modprobe}; }}\nmount() {{ {mount}; }}\n"
            'umount() { :; }\nsync() { :; }\nsleep() { [ "$1" != 60 ] || exit 0; }\n'
        )
        text = f"{programs}{script}\nmount_top; mount_premount; mountroot"
        return subprocess.run(["/bin/sh", "-c", text], capture_output=True, text=True, check=False, timeout=20).stdout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "vm")


def test_a_kernel_that_can_do_all_passes(machine: Machine) -> None:
    assert rehearsal.fault(machine.said()) == ""
    assert (machine.root / "dev/pmem0").read_text() == "ext4"
    assert (machine.root / "proc/sysrq-trigger").exists()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda vm: (vm.root / "sys/devices/platform/e820_pmem").rmdir(), "it kept no RAM free for memmap="),
        (lambda vm: setattr(vm, "insmod", "false"), "its module libnvdimm cannot be loaded"),
        (lambda vm: setattr(vm, "modprobe", "false"), "its initrd lacks virtio_blk"),
        (lambda vm: (vm.root / "dev/pmem0").unlink(), "it made no /dev/pmem0"),
        (lambda vm: setattr(vm, "mounted", "rw"), "it mounts the pool without DAX"),
    ],
    ids=["memmap", "module", "initrd", "device", "dax"],
)
def test_a_kernel_that_cannot_is_told_by_what(harm: Any, told: str, machine: Machine) -> None:
    harm(machine)
    assert rehearsal.fault(machine.said()).replace(str(machine.root), "").startswith(told)


# The whole, on a host whose QEMU is a stand-in


class Host:
    """A host with one installed kernel; ``console`` is what its throw-away VM will say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.console = PASSED
        self.trouble = ""
        self.started: list[list[str]] = []
        self.archive: dict[str, tuple[int, bytes]] = {}
        for path in DEPENDENCIES.splitlines():
            file = folder / "lib/modules" / RELEASE / path.partition(":")[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(lzma.compress(MODULE))
        (folder / f"lib/modules/{RELEASE}/modules.dep").write_text(DEPENDENCIES)
        (folder / f"lib/modules/{RELEASE}/modules.builtin").write_text(BUILT_IN)
        (folder / "initrd.img").write_bytes(b"the initrd")
        self.config = Config(None, folder / "state")
        self.config.state_dir.mkdir()

    def run(self, argv: list[str], **_more: object) -> str:
        if argv[0] == "mkfs.ext4":
            return ""
        self.started.append(argv)
        whole = Path(argv[argv.index("-initrd") + 1]).read_bytes()
        assert whole.endswith(b"the initrd")
        self.archive = unpacked(whole.removesuffix(b"the initrd"))
        if self.trouble:
            raise CommandFailed(f"timeout qemu ended with 1: {self.trouble}")
        Path(argv[argv.index("-serial") + 1].removeprefix("file:")).write_text(self.console)
        return ""

    def rehearse(self) -> float:
        return rehearsal.rehearse(self.config, RELEASE, LINE)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host(tmp_path)
    monkeypatch.setattr(rehearsal, "run", found.run)
    monkeypatch.setattr(rehearsal, "ROOT", tmp_path)
    monkeypatch.setattr(rehearsal.turn, "RUN_DIR", tmp_path / "run")
    monkeypatch.setattr(rehearsal, "FILE_SYSTEM_BYTES", 8)
    monkeypatch.setattr(rehearsal.kexec, "image_of", lambda _release: (tmp_path / "vmlinuz", tmp_path / "initrd.img"))
    monkeypatch.setattr(rehearsal.collect, "root_modules", lambda _root: ("ext4", "virtio_blk"))
    monkeypatch.setattr(rehearsal.kexec, "mem_available", lambda: 4096 * MIB)
    return found


def test_a_good_kernel_passes_and_leaves_only_its_console(host: Host) -> None:
    assert host.rehearse() >= 0
    (words,) = host.started
    assert words[words.index("-append") + 1] == cmdline.rehearsal_command_line(LINE, rehearsal.POOL, rehearsal.BOOT)
    script = host.archive["scripts/holdfast-rehearsal"][1].decode()
    assert "holdfast_initrd_has virtio_blk" in script
    assert "holdfast_initrd_has ext4" not in script, "it is built in"
    assert host.archive["holdfast/nd_pmem.ko"][1] == MODULE
    left = [path for path in host.config.state_dir.rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["console.log"]
    assert stat.S_IMODE(left[0].parent.stat().st_mode) == 0o700


def test_what_the_file_system_asks_for_comes_along_where_it_is_a_module(host: Host) -> None:
    place = host.folder / "lib/modules" / RELEASE
    (place / "modules.dep").write_text(f"kernel/crypto/crc32c_generic.ko.xz:\n{DEPENDENCIES}")
    (place / "kernel/crypto").mkdir()
    (place / "kernel/crypto/crc32c_generic.ko.xz").write_bytes(lzma.compress(MODULE))
    host.rehearse()
    script = host.archive["scripts/holdfast-rehearsal"][1].decode()
    assert script.index("holdfast_load crc32c_generic") < script.index("holdfast_load nd_pmem")


def test_a_kernel_that_fails_is_refused_with_its_last_words(host: Host) -> None:
    host.console = "".join(f"line {n}\n" for n in range(99)) + "Kernel panic - not syncing: no init\n"
    with pytest.raises(Refused, match="failed: it panicked: no init;") as caught:
        host.rehearse()
    assert "line 98" in caught.value.message
    assert "line 50\n" not in caught.value.message
    assert "no VM was touched" in caught.value.hint
    assert "console.log" in caught.value.hint


def test_a_vm_that_cannot_start_is_refused_in_qemus_own_words(host: Host) -> None:
    host.trouble = "Could not access KVM kernel module"
    with pytest.raises(Refused, match="it said nothing") as caught:
        host.rehearse()
    assert "Could not access KVM" in caught.value.message


def test_a_console_of_an_earlier_rehearsal_proves_nothing(host: Host) -> None:
    host.rehearse()
    host.trouble = "no"
    with pytest.raises(Refused):
        host.rehearse()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda host, _: (host.folder / "initrd.img").unlink(), "initrd.img"),
        (lambda host, _: next(host.folder.rglob("nd_pmem.ko.xz")).unlink(), "nd_pmem.ko.xz cannot be read"),
        (lambda host, _: next(host.folder.rglob("kvm.ko.xz")).write_bytes(b""), "kvm.ko.xz"),
        (lambda host, _: (host.folder / f"lib/modules/{RELEASE}/modules.dep").write_text(""), "no module nd_e820"),
        (
            lambda _, patch: patch.setattr(rehearsal.kexec, "mem_available", lambda: 512 * MIB),
            "512 MiB of host RAM are available",
        ),
    ],
    ids=["initrd", "module gone", "module damaged", "no modules", "little RAM"],
)
def test_a_rehearsal_that_cannot_be_is_refused(
    harm: Any, told: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm(host, monkeypatch)
    with pytest.raises(Refused, match=f"kernel {re.escape(RELEASE)} cannot be rehearsed") as caught:
        host.rehearse()
    assert told in caught.value.message
    assert host.started == []


def test_a_person_may_call_it_on_the_host(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running = "BOOT_IMAGE=/boot/vmlinuz root=/dev/vda1 memmap=0x60000000!0x100000000"
    monkeypatch.setattr(kexec, "running_cmdline", lambda: running)
    monkeypatch.setattr(agent.configuration, "load", lambda: host.config)
    assert agent.main(["rehearse", RELEASE]) == 0
    assert "passed" in capsys.readouterr().out
    (words,) = host.started
    assert words[words.index("-append") + 1].startswith("root=/dev/vda1 holdfast.generation=g-")
