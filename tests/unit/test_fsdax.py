# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fsdax pool: attached only when it is ours, formatted only when nobody's RAM is in it, never promised twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    collect,
    command,
    durable,
    fsdax,
    placement,
    pmem,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import PoolConfig
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError, VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.pool import Content
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import RamFile, Region

GIB = 1 << 30
REGION = Region(start=4 * GIB, size=GIB)
UUID = "11111111-2222-4333-8444-555555555555"
RAM = (RamFile("pc.ram", 8192),)


class Host:
    """A file system root with a pool that is, or is not, reserved; commands are recorded, mount mounts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands: list[str] = []
        self.suspended = False
        self.config = PoolConfig("fsdax", root / "pool", (REGION,))
        self.pool = fsdax.FsdaxPool(self.config, root / "state", root)
        self.write("proc/cmdline", "root=/dev/vda1 memmap=0x40000000!0x100000000 nokaslr\n")
        self.write("proc/self/mountinfo", "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n")
        self.write("dev/pmem0", "")
        self.region(REGION.start, REGION.size)

    def write(self, path: str, text: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def region(self, start: int, size: int) -> None:
        above = "sys/devices/platform/e820_pmem/ndbus0/region0"
        self.write(f"{above}/resource", f"{start:#x}\n")
        self.write(f"{above}/size", f"{size}\n")
        (self.root / above / "namespace0.0").mkdir(exist_ok=True)
        link = self.root / "sys/class/block/pmem0/device"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(self.root / above / "namespace0.0")

    def firmware(self, start: int, end: int) -> None:
        for name, text in (("start", f"{start:#x}"), ("end", f"{end - 1:#x}"), ("type", "System RAM")):
            self.write(f"sys/firmware/memmap/0/{name}", f"{text}\n")

    def run(self, argv: list[str], **_more: object) -> str:
        self.commands.append(argv[0])
        if argv[0] == "mount":
            self.mount()
        elif argv[0] == "umount":
            self.write("proc/self/mountinfo", "")
        return ""

    def mount(self, options: str = "rw,stripe=512,dax=always") -> None:
        self.write("proc/self/mountinfo", f"99 22 259:0 / {self.root}/pool rw,nosuid - ext4 /dev/pmem0 {options}\n")

    def start(self, domain_id: int, name: str) -> Path:
        """What libvirt does before its start hook."""
        live = self.root / "pool/libvirt/qemu" / f"{domain_id}-{name}"
        live.mkdir(parents=True)
        return live


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host(tmp_path)
    monkeypatch.setattr(fsdax, "run", found.run)
    monkeypatch.setattr(pmem, "run", found.run)
    monkeypatch.setattr(fsdax, "holds_suspended", lambda _state_dir: found.suspended)
    return found


@pytest.fixture
def mounted(host: Host) -> Host:
    host.pool.attach(Content.FRESH)
    return host


def test_the_arguments_reserve_the_region_and_keep_the_kernel_out(host: Host) -> None:
    assert host.pool.reserve() == ("memmap=0x40000000!0x100000000", "nokaslr")


def test_regions_of_several_nodes_are_one_list(host: Host) -> None:
    two = PoolConfig("fsdax", host.root / "pool", (REGION, Region(8 * GIB, GIB, node=1)))
    arguments = fsdax.FsdaxPool(two, host.root).reserve()
    assert arguments == ("memmap=0x40000000!0x100000000,0x40000000!0x200000000", "nokaslr")


class TestAttach:
    def test_fresh_content_gets_a_new_file_system(self, host: Host) -> None:
        host.pool.attach(Content.FRESH)
        assert host.commands == ["modprobe", "mkfs.ext4", "mount"]
        assert host.pool.mounted

    def test_trusted_content_is_only_mounted(self, host: Host) -> None:
        host.suspended = True
        host.pool.attach(Content.TRUSTED)
        assert host.commands == ["modprobe", "mount"]

    def test_a_mounted_pool_is_left_alone(self, mounted: Host) -> None:
        mounted.commands.clear()
        mounted.pool.attach(Content.FRESH)
        assert mounted.commands == []

    def test_never_formats_while_a_vm_is_suspended(self, host: Host) -> None:
        host.suspended = True
        with pytest.raises(HoldfastError, match="not formatted"):
            host.pool.attach(Content.FRESH)
        assert "mkfs.ext4" not in host.commands
        assert "mount" not in host.commands

    @pytest.mark.parametrize(
        "line", ["root=/dev/vda1", "memmap=0x40000000!0x140000000", "memmap=0x20000000!0x100000000"]
    )
    def test_never_touches_memory_that_this_boot_did_not_reserve(self, host: Host, line: str) -> None:
        host.write("proc/cmdline", line)
        with pytest.raises(HoldfastError, match="lacks memmap="):
            host.pool.attach(Content.FRESH)
        assert host.commands == []

    @pytest.mark.parametrize(("start", "size"), [(8 * GIB, GIB), (4 * GIB, 2 * GIB)])
    def test_never_formats_somebody_elses_device(
        self, host: Host, monkeypatch: pytest.MonkeyPatch, start: int, size: int
    ) -> None:
        host.region(start, size)
        monkeypatch.setattr(pmem, "DEVICE_TIMEOUT_S", 0.0)
        with pytest.raises(HoldfastError, match="no device at 0x100000000-0x13fffffff"):
            host.pool.attach(Content.FRESH)
        assert host.commands == ["modprobe"]

    def test_never_formats_where_the_firmware_has_no_ram_any_more(self, host: Host) -> None:
        host.firmware(0x100000, 3 * GIB)
        with pytest.raises(HoldfastError, match="is not wholly inside one range of System RAM") as refused:
            host.pool.attach(Content.FRESH)
        assert "prepare" in refused.value.hint
        assert host.commands == []

    def test_formats_where_the_firmware_has_ram(self, host: Host) -> None:
        host.firmware(4 * GIB, 8 * GIB)
        host.pool.attach(Content.FRESH)
        assert host.commands == ["modprobe", "mkfs.ext4", "mount"]

    def test_a_crash_kernel_does_not_know_where_ram_is(self, host: Host) -> None:
        host.firmware(0x100000, GIB // 4)
        line = (host.root / "proc/cmdline").read_text().strip()
        host.write("proc/cmdline", f"{line} elfcorehdr=0x2f000000\n")
        host.pool.attach(Content.FRESH)
        assert "mkfs.ext4" in host.commands

    def test_a_firmware_map_without_any_ram_says_nothing(self, host: Host) -> None:
        host.write("sys/firmware/memmap/0/type", "")
        host.pool.attach(Content.FRESH)
        assert "mkfs.ext4" in host.commands

    def test_a_jump_does_not_look_for_ram(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(collect, "firmware_map", lambda _root: pytest.fail("the map was read"))
        host.pool.attach(Content.TRUSTED)
        assert host.commands == ["modprobe", "mount"]

    def test_directories_let_an_unprivileged_qemu_pass(self, mounted: Host) -> None:
        for name in ("", "libvirt", "libvirt/qemu"):
            assert (mounted.root / "pool" / name).stat().st_mode & 0o777 == 0o711
        assert mounted.pool.vault().stat().st_mode & 0o777 == 0o700

    def test_names_of_an_earlier_boot_are_cleared_and_kept_ram_stays(self, mounted: Host) -> None:
        (mounted.start(3, "db1") / "pc.ram").write_bytes(b"ram")
        mounted.pool.keep(UUID, 3, "db1")
        mounted.write("proc/self/mountinfo", "")  # another kernel
        mounted.pool.attach(Content.TRUSTED)
        assert list((mounted.root / "pool/libvirt/qemu").iterdir()) == []
        assert [path.name for path in mounted.pool.ram_of(UUID)] == ["pc.ram"]

    def test_what_was_done_in_the_pool_is_complete_without_an_unmount(
        self, mounted: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[str] = []
        monkeypatch.setattr(durable.os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
        mounted.commands.clear()
        mounted.pool.commit()
        assert [path for path in synced if path.startswith(str(mounted.pool.vault()))]
        assert mounted.commands == []
        assert mounted.pool.mounted

    def test_a_pool_that_is_not_attached_has_nothing_to_complete(self, host: Host) -> None:
        host.pool.commit()
        assert not (host.root / "pool").exists()

    def test_a_mount_without_dax_is_not_the_pool(self, host: Host) -> None:
        host.mount("rw")
        assert not host.pool.mounted

    def test_a_failing_mount_is_explained(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(argv: list[str], **_more: object) -> str:
            if argv[0] == "mount":
                raise CommandFailed("mount ended with 32: wrong fs type")
            return ""

        monkeypatch.setattr(fsdax, "run", fail)
        with pytest.raises(HoldfastError, match=r"cannot be mounted: .*wrong fs type"):
            host.pool.attach(Content.TRUSTED)


class TestBorders:
    """What the kernel reads at the beginning of a region, before it makes a device of it, is no guest's to write."""

    MIB = 1 << 20

    @pytest.mark.parametrize(
        "sizes",
        # Borders at the start of a group of blocks, of one with a copy of the superblock, and in the middle of one.
        [(1024, 2048, 1024), (384, 1024), (386, 1024)],
    )
    def test_no_file_gets_the_beginning_of_a_region(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
    ) -> None:
        image, starts = self.formatted(tmp_path, monkeypatch, sizes)
        blocks = " ".join(str(start // 4096 + more) for start in starts[1:] for more in (0, 1, 511))
        for block in blocks.split():
            assert "marked in use" in tool("debugfs", "-R", f"testb {block}", str(image))
        tool("e2fsck", "-fn", str(image))
        assert tool("debugfs", "-R", "stat <1>", str(image)).count(str(starts[1] // 4096))

    def test_what_a_guest_left_there_is_gone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        image, starts = self.formatted(tmp_path, monkeypatch, (1024, 1024))
        with image.open("rb") as device:
            device.seek(starts[1])
            assert device.read(8192) == bytes(8192)

    def test_one_region_gives_nothing_away(self, host: Host) -> None:
        host.pool.attach(Content.FRESH)
        assert "e2fsck" not in host.commands

    def formatted(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
    ) -> tuple[Path, tuple[int, ...]]:
        """A pool on a sparse file, and where in it its regions begin; a guest wrote to the beginning of each."""
        starts = tuple(sum(sizes[:number]) * self.MIB for number in range(len(sizes)))
        regions = tuple(
            Region(4 * GIB + start, size * self.MIB, node=node)
            for node, (start, size) in enumerate(zip(starts, sizes, strict=True))
        )
        monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
        if not shutil.which("debugfs"):
            pytest.skip("e2fsprogs is not installed")
        image = root / "dev/dm-0"
        image.parent.mkdir()
        with image.open("wb") as device:
            device.truncate(sum(sizes) * self.MIB)
            for start in starts:
                device.seek(start + 4096)
                device.write(b"NVDIMM_PFN_INFO\0" * 256)
        here = [str(image)]

        def run(argv: list[str], **more: object) -> str:
            return command.run([*argv[:-1], *here], **more)  # type: ignore[arg-type]

        monkeypatch.setattr(fsdax, "run", run)
        monkeypatch.setattr(pmem, "device_of", lambda *_: "/dev/dm-0")
        pool = fsdax.FsdaxPool(PoolConfig("fsdax", root / "pool", regions), root / "state", root)
        monkeypatch.setattr(fsdax.FsdaxPool, "mounted", False)
        monkeypatch.setattr(fsdax.FsdaxPool, "_mount", lambda *_: pool.config.mount_point.mkdir())
        (root / "proc").mkdir()
        (root / "proc/cmdline").write_text(" ".join(pool.reserve()))
        pool.attach(Content.FRESH)
        return image, starts


def tool(*argv: str) -> str:
    """What a program of e2fsprogs says; it has to be content."""
    return command.run(argv)


class TestVms:
    def test_ram_outlives_its_qemu_and_comes_back_as_the_same_file(self, mounted: Host) -> None:
        ram = mounted.start(3, "db1") / "pc.ram"
        ram.write_bytes(b"x" * 8192)
        inode = ram.stat().st_ino
        assert mounted.pool.keep(UUID, 3, "db1") == RAM
        ram.unlink()  # as libvirt does when the QEMU ends
        live = mounted.start(9, "db1")
        mounted.pool.place(UUID, 9, "db1")
        assert (live / "pc.ram").stat().st_ino == inode

    def test_release_leaves_the_running_vm_its_file(self, mounted: Host) -> None:
        live = mounted.start(3, "db1")
        (live / "pc.ram").write_bytes(b"x")
        mounted.pool.keep(UUID, 3, "db1")
        mounted.pool.release(UUID)
        assert mounted.pool.ram_of(UUID) == ()
        assert (live / "pc.ram").exists()

    def test_a_vm_outside_the_pool_cannot_be_kept(self, mounted: Host) -> None:
        with pytest.raises(VmError, match="no RAM in the pool"):
            mounted.pool.keep(UUID, 3, "db1")
        mounted.start(4, "web1")
        with pytest.raises(VmError, match="no RAM file"):
            mounted.pool.keep(UUID, 4, "web1")

    def test_nothing_is_placed_when_nothing_is_kept(self, mounted: Host) -> None:
        mounted.start(3, "db1")
        with pytest.raises(VmError, match="no RAM kept"):
            mounted.pool.place(UUID, 3, "db1")

    def test_a_qemu_that_has_the_kept_ram_is_told_from_one_that_made_its_own(self, mounted: Host) -> None:
        """libvirt's daemon looks for hooks only when it starts, so nobody may have placed anything."""
        (mounted.start(3, "db1") / "pc.ram").write_bytes(b"x" * 8192)
        mounted.pool.keep(UUID, 3, "db1")
        mounted.start(9, "db1")
        mounted.pool.place(UUID, 9, "db1")
        mounted.pool.check_placed(UUID, 9, "db1")
        (mounted.start(10, "db1") / "pc.ram").write_bytes(b"x" * 8192)
        with pytest.raises(VmError, match=r"has not got the RAM that is kept for it: pc\.ram") as refused:
            mounted.pool.check_placed(UUID, 10, "db1")
        assert "restart libvirt's daemon" in refused.value.hint

    def test_a_qemu_without_ram_in_the_pool_has_not_got_what_is_kept(self, mounted: Host) -> None:
        (mounted.start(3, "db1") / "pc.ram").write_bytes(b"x")
        mounted.pool.keep(UUID, 3, "db1")
        with pytest.raises(VmError, match="no RAM in the pool"):
            mounted.pool.check_placed(UUID, 9, "db1")
        mounted.start(9, "db1")
        with pytest.raises(VmError, match="has not got the RAM"):
            mounted.pool.check_placed(UUID, 9, "db1")
        # Whoever QEMU runs as owns this directory.
        (mounted.root / "pool/libvirt/qemu/9-db1/pc.ram").symlink_to(mounted.pool.ram_of(UUID)[0].path)
        with pytest.raises(VmError, match="has not got the RAM"):
            mounted.pool.check_placed(UUID, 9, "db1")

    def test_ram_is_allocated_for_qemus_user_before_the_start(self, mounted: Host) -> None:
        live = mounted.start(3, "db1")
        mounted.pool.reserve_vm(3, "db1", RAM)
        found = (live / "pc.ram").stat()
        assert (found.st_size, found.st_mode & 0o777, found.st_uid) == (8192, 0o600, live.stat().st_uid)
        assert found.st_blocks * 512 >= 8192

    def test_a_full_pool_forbids_the_start_and_leaves_no_file(
        self, mounted: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live = mounted.start(3, "db1")

        def full(*_arguments: int) -> None:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(fsdax.os, "posix_fallocate", full)
        with pytest.raises(VmError, match=r"it needs 8192 bytes of RAM, the pool has .* free"):
            mounted.pool.reserve_vm(3, "db1", RAM)
        assert list(live.iterdir()) == []

    def test_ram_of_a_node_that_the_pool_has_not_forbids_the_start(self, mounted: Host) -> None:
        live = mounted.start(3, "db1")
        with pytest.raises(VmError, match="bound to NUMA node 1, and the pool has RAM of 0 only"):
            mounted.pool.reserve_vm(3, "db1", (RamFile("pc.ram", 8192, nodes=(1,)),))
        assert list(live.iterdir()) == []

    def test_ram_is_allocated_while_all_that_is_free_elsewhere_is_held(
        self, mounted: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[object] = []

        @contextmanager
        def only_within(wanted: object, ballast: Path) -> Iterator[None]:
            told.append((wanted, ballast))
            yield
            told.append([path.name for path in live.iterdir()])

        monkeypatch.setattr(placement, "only_within", only_within)
        regions = (REGION, Region(8 * GIB, GIB, node=1))
        pool = fsdax.FsdaxPool(PoolConfig("fsdax", mounted.root / "pool", regions), mounted.root, mounted.root)
        live = mounted.start(3, "db1")
        pool.reserve_vm(3, "db1", (RamFile("ram-node0", 8192), RamFile("ram-node1", 8192, nodes=(1,))))
        ballast = mounted.root / "pool/holdfast/ballast"
        assert told == [(((GIB, 2 * GIB),), ballast), ["ram-node0", "ram-node1"]]

    def test_no_start_while_the_pool_is_not_mounted(self, host: Host) -> None:
        host.start(3, "db1")
        with pytest.raises(VmError, match="not mounted"):
            host.pool.reserve_vm(3, "db1", RAM)
