# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The devdax pool: RAM is kept by its physical ranges, given to nobody else meanwhile, and found again by them."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import devdax, fsdax, pmem
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import DEVDAX, PoolConfig
from ansible_collections.holdfast.kvm.plugins.module_utils._core.daxdev import Device, Ranges
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.pool import Content
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import SOFT_KIND, RamFile, Region

MIB, GIB = 1 << 20, 1 << 30
NODE0, NODE1 = Region(4 * GIB, GIB, SOFT_KIND), Region(8 * GIB, GIB, SOFT_KIND, node=1)
VAULT = Region(5 * GIB, 64 * MIB)
UUID, OTHER = "11111111-2222-4333-8444-555555555555", "11111111-2222-4333-8444-666666666666"
RAM = (RamFile("pc.ram", 256 * MIB),)


class Bus:
    """The devices of one boot; as the kernel does, it refuses RAM of which there is a device already."""

    def __init__(self) -> None:
        self.made: dict[str, Device] = {}
        self.was_ready = False
        self.number = 0

    def ready(self, _regions: Sequence[Region]) -> None:
        self.was_ready = True

    def devices(self) -> tuple[Device, ...]:
        return tuple(self.made.values())

    def make(self, region: Region, ranges: Ranges, page_bytes: int) -> Device:
        assert all(region.start <= start and start + size <= region.end for start, size in ranges)
        assert not any(start % page_bytes or size % page_bytes for start, size in ranges)
        for device in self.made.values():
            for start, size in device.ranges:
                if any(start < end + length and end < start + size for end, length in ranges):
                    raise HoldfastError("mapping: is refused")
        self.number += 1
        name = f"dax1.{self.number}"
        self.made[name] = Device(name, ranges, os.makedev(252, self.number))
        return self.made[name]

    def remove(self, name: str) -> None:
        del self.made[name]

    def node(self, name: str) -> Path:
        return Path("/dev") / name


class Host:
    def __init__(self, root: Path) -> None:
        self.root, self.bus = root, Bus()
        self.commands: list[str] = []
        self.cleared: list[tuple[str, int]] = []
        self.open: set[int] = set()
        self.page = 0
        self.config = PoolConfig(DEVDAX, root / "pool", (NODE0, NODE1, VAULT))
        self.pool = devdax.DevdaxPool(self.config, root / "state", root)
        (root / "proc/self").mkdir(parents=True)
        self.boot()

    def boot(self, line: str | None = None) -> None:
        """Another kernel: nothing is mounted, and there is no device."""
        self.bus.made.clear()
        (self.root / "proc/cmdline").write_text(" ".join(self.pool.reserve()) if line is None else line)
        (self.root / "proc/self/mountinfo").write_text("")
        shutil.rmtree(self.config.backing_dir, ignore_errors=True)

    def run(self, argv: Sequence[str], **_more: object) -> str:
        self.commands.append(argv[0])
        if argv[0] == "mount":
            kind, place = argv[2], argv[-1]
            if kind == "hugetlbfs":
                self.page = int(argv[4].split("M,")[0].removeprefix("pagesize=")) << 20
            line = f"99 22 0:9 / {place} rw - {kind} x rw,dax=always\n"
            with (self.root / "proc/self/mountinfo").open("a") as table:
                table.write(line)
        return ""

    def start(self, domain_id: int, name: str) -> Path:
        """What libvirt does before its start hook."""
        live = self.config.backing_dir / "libvirt/qemu" / f"{domain_id}-{name}"
        live.mkdir(parents=True)
        return live

    def begin(self, domain_id: int, name: str, files: Sequence[RamFile] = RAM) -> Path:
        live = self.start(domain_id, name)
        self.pool.reserve_vm(domain_id, name, files)
        return live

    def free(self) -> tuple[int, int]:
        room = self.pool.room()
        return room.size_bytes, room.free_bytes

    def ranges(self) -> list[Ranges]:
        return [device.ranges for device in self.bus.devices()]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    try:
        os.mknod(tmp_path / "node", stat.S_IFCHR | 0o600, os.makedev(252, 1))
    except PermissionError:
        pytest.skip("nobody but root may make device nodes")
    found = Host(tmp_path)
    monkeypatch.setattr(devdax.DevdaxPool, "_bus", found.bus)
    monkeypatch.setattr(devdax, "run", found.run)
    monkeypatch.setattr(devdax, "page_bytes", lambda _where: found.page)
    monkeypatch.setattr(fsdax, "run", found.run)
    monkeypatch.setattr(pmem, "device_of", lambda *_: "/dev/pmem0")
    monkeypatch.setattr(fsdax.FsdaxPool, "_format", lambda *_: found.commands.append("mkfs"))
    monkeypatch.setattr(devdax, "_clear", lambda node, size, _name: found.cleared.append((node.name, size)))
    monkeypatch.setattr(devdax, "open_numbers", lambda _root: found.open)
    return found


@pytest.fixture
def attached(host: Host) -> Host:
    host.pool.attach(Content.FRESH)
    return host


def test_the_arguments_keep_the_ram_from_everybody(host: Host) -> None:
    assert host.pool.reserve() == (
        "memmap=0x40000000%0x100000000+0xefffffff,0x40000000%0x200000000+0xefffffff,0x4000000!0x140000000",
        "nokaslr",
        "dax_hmem.region_idle=1",
        "modprobe.blacklist=kmem",
    )


class TestAttach:
    def test_only_the_vault_gets_a_file_system(self, host: Host) -> None:
        host.pool.attach(Content.FRESH)
        assert host.commands == ["mkfs", "mount", "mount"]
        assert host.bus.was_ready
        assert host.pool.mounted

    def test_after_a_jump_nothing_is_made(self, host: Host) -> None:
        host.pool.attach(Content.TRUSTED)
        assert host.commands == ["mount", "mount"]
        assert host.bus.devices() == ()

    def test_an_attached_pool_is_left_alone(self, attached: Host) -> None:
        attached.commands.clear()
        attached.pool.attach(Content.FRESH)
        assert attached.commands == []

    @pytest.mark.parametrize("line", ["root=/dev/vda1", "memmap=0x40000000%0x100000000+0xefffffff"])
    def test_never_touches_memory_that_this_boot_did_not_reserve(self, host: Host, line: str) -> None:
        host.boot(line)
        with pytest.raises(HoldfastError, match="lacks memmap="):
            host.pool.attach(Content.FRESH)
        assert host.commands == []


class TestStart:
    def test_a_vm_gets_a_node_of_a_device_of_its_size(self, attached: Host) -> None:
        live = attached.begin(3, "db1")
        facts = (live / "pc.ram").lstat()
        assert stat.S_ISCHR(facts.st_mode)
        assert (facts.st_rdev, facts.st_mode & 0o777) == (os.makedev(252, 1), 0o600)
        assert attached.ranges() == [((4 * GIB, 256 * MIB),)]

    def test_what_another_vm_had_in_that_ram_is_cleared(self, attached: Host) -> None:
        attached.begin(3, "db1")
        assert attached.cleared == [("dax1.1", 256 * MIB)]

    def test_blocks_lie_on_their_nodes(self, attached: Host) -> None:
        attached.begin(3, "db1", (RamFile("ram-node0", 2 * MIB, (0,)), RamFile("ram-node1", 2 * MIB, (1,))))
        assert attached.ranges() == [((4 * GIB, 2 * MIB),), ((8 * GIB, 2 * MIB),)]

    def test_a_full_pool_forbids_the_start(self, attached: Host) -> None:
        attached.begin(3, "db1", (RamFile("pc.ram", GIB), RamFile("more", 768 * MIB)))
        attached.start(4, "web1")
        with pytest.raises(VmError, match="needs 512 MiB of RAM on one NUMA node, the pool has 256 MiB free there"):
            attached.pool.reserve_vm(4, "web1", (RamFile("pc.ram", 512 * MIB),))

    def test_a_node_that_the_pool_has_not_forbids_the_start(self, attached: Host) -> None:
        attached.start(3, "db1")
        with pytest.raises(VmError, match="needs 2 MiB of RAM on NUMA node 7, the pool has 0 bytes free there"):
            attached.pool.reserve_vm(3, "db1", (RamFile("pc.ram", 2 * MIB, (7,)),))

    def test_ram_that_qemu_could_not_map_forbids_the_start(self, attached: Host) -> None:
        attached.start(3, "db1")
        with pytest.raises(VmError, match="1048576 bytes, is no multiple of 2 MiB"):
            attached.pool.reserve_vm(3, "db1", (RamFile("pc.ram", MIB),))
        assert attached.ranges() == []

    def test_no_start_while_the_pool_is_not_attached(self, host: Host) -> None:
        with pytest.raises(VmError, match="not attached"):
            host.pool.reserve_vm(3, "db1", RAM)


class TestAccounts:
    def test_ram_of_a_vm_that_has_ended_is_given_to_the_next(self, attached: Host) -> None:
        shutil.rmtree(attached.begin(3, "db1"))
        assert attached.free() == (2 * GIB, 2 * GIB)
        attached.begin(4, "web1")
        assert attached.ranges() == [((4 * GIB, 256 * MIB),)]

    def test_a_qemu_that_has_lost_its_name_keeps_its_ram(self, attached: Host) -> None:
        """libvirt takes the directory away while QEMU still ends; unmapped, it would be killed by the kernel."""
        shutil.rmtree(attached.begin(3, "db1"))
        attached.open = {os.makedev(252, 1)}
        attached.begin(4, "web1")
        assert attached.ranges() == [((4 * GIB, 256 * MIB),), ((4 * GIB + 256 * MIB, 256 * MIB),)]

    def test_kept_ram_is_given_to_nobody_with_a_device_or_without(self, attached: Host) -> None:
        live = attached.begin(3, "db1")
        attached.pool.keep(UUID, 3, "db1")
        shutil.rmtree(live)
        attached.begin(4, "web1")
        assert attached.ranges() == [((4 * GIB, 256 * MIB),), ((4 * GIB + 256 * MIB, 256 * MIB),)]
        attached.boot()
        attached.pool.attach(Content.TRUSTED)
        assert attached.free() == (2 * GIB, 2 * GIB - 256 * MIB)
        attached.begin(5, "new1")
        assert attached.ranges() == [((4 * GIB + 256 * MIB, 256 * MIB),)]

    def test_released_ram_is_free_when_its_qemu_has_ended(self, attached: Host) -> None:
        live = attached.begin(3, "db1")
        attached.pool.keep(UUID, 3, "db1")
        attached.pool.release(UUID)
        assert attached.free() == (2 * GIB, 2 * GIB - 256 * MIB)
        shutil.rmtree(live)
        assert attached.free() == (2 * GIB, 2 * GIB)


class TestLargePages:
    @pytest.fixture
    def large(self, host: Host) -> Host:
        regions = (Region(4 * GIB + 512 * MIB, 3 * GIB, SOFT_KIND), VAULT)
        host.config = PoolConfig(DEVDAX, host.root / "pool", regions, GIB)
        host.pool = devdax.DevdaxPool(host.config, host.root / "state", host.root)
        (host.root / "sys/kernel/mm/hugepages/hugepages-1048576kB").mkdir(parents=True)
        host.boot()
        return host

    def test_vms_of_whole_pages_lie_on_their_borders(self, large: Host) -> None:
        large.pool.attach(Content.FRESH)
        assert large.free() == (3 * GIB, 2 * GIB)
        large.begin(3, "db1", (RamFile("pc.ram", GIB),))
        assert large.ranges() == [((5 * GIB, GIB),)]
        large.start(4, "web1")
        with pytest.raises(VmError, match="is no multiple of 1 GiB"):
            large.pool.reserve_vm(4, "web1", (RamFile("pc.ram", GIB + 2 * MIB),))

    def test_ram_that_has_no_such_pages_is_still_restored(self, large: Host) -> None:
        """Of a VM that started before the pool's pages were changed."""
        (large.root / "sys/kernel/mm/hugepages/hugepages-1048576kB").rename(large.root / "hidden")
        large.pool.attach(Content.FRESH)
        assert large.page == 2 * MIB, "a kernel that has none"
        large.begin(3, "db1")
        large.pool.keep(UUID, 3, "db1")
        (large.root / "hidden").rename(large.root / "sys/kernel/mm/hugepages/hugepages-1048576kB")
        large.boot()
        large.pool.attach(Content.TRUSTED)
        assert large.page == 2 * MIB
        assert large.pool.ram_of(UUID)[0].size_bytes == 256 * MIB
        large.pool.release(UUID)
        large.boot()
        large.pool.attach(Content.TRUSTED)
        assert large.page == GIB


class TestJump:
    def suspended(self, host: Host) -> None:
        live = host.begin(3, "db1")
        host.begin(4, "web1")
        assert host.pool.keep(UUID, 3, "db1") == RAM
        assert host.pool.keep(OTHER, 4, "web1") == RAM
        shutil.rmtree(live)
        host.boot()
        host.pool.attach(Content.TRUSTED)

    def test_ram_is_found_again_by_its_ranges_in_any_order(self, attached: Host) -> None:
        self.suspended(attached)
        (ram,) = attached.pool.ram_of(OTHER)
        assert (ram.name, ram.size_bytes, ram.place) == ("pc.ram", 256 * MIB, 4 * GIB + 256 * MIB)
        assert attached.ranges() == [((4 * GIB + 256 * MIB, 256 * MIB),)]
        assert attached.pool.ram_of(UUID)[0].place == 4 * GIB

    def test_it_is_placed_before_its_qemu_opens_it_and_never_cleared(self, attached: Host) -> None:
        self.suspended(attached)
        attached.cleared.clear()
        live = attached.start(1, "web1")
        attached.pool.place(OTHER, 1, "web1")
        attached.pool.check_placed(OTHER, 1, "web1")
        device = attached.bus.devices()[0]
        assert (live / "pc.ram").lstat().st_rdev == device.number
        assert attached.cleared == []

    def test_a_second_try_takes_the_same_device(self, attached: Host) -> None:
        self.suspended(attached)
        for domain_id in (1, 2):
            live = attached.start(domain_id, "db1")
            attached.pool.place(UUID, domain_id, "db1")
            shutil.rmtree(live)
        assert len(attached.bus.devices()) == 1

    def test_a_qemu_with_other_ram_is_told(self, attached: Host) -> None:
        self.suspended(attached)
        attached.begin(1, "db1")
        with pytest.raises(VmError, match=r"has not got the RAM that is kept for it: pc\.ram"):
            attached.pool.check_placed(UUID, 1, "db1")

    def test_a_directory_that_somebody_put_something_else_in_is_not_kept(self, attached: Host) -> None:
        live = attached.begin(3, "db1")
        (live / "pc.ram").unlink()
        for make in (lambda path: path.write_bytes(b"x"), lambda path: path.symlink_to("/dev/mem")):
            make(live / "pc.ram")
            with pytest.raises(VmError, match="is no DAX device"):
                attached.pool.keep(UUID, 3, "db1")
            (live / "pc.ram").unlink()
        os.mknod(live / "pc.ram", stat.S_IFCHR, os.makedev(1, 1))
        with pytest.raises(VmError, match="is no DAX device"):
            attached.pool.keep(UUID, 3, "db1")

    def test_a_vm_without_ram_in_the_pool_is_not_kept(self, attached: Host) -> None:
        attached.start(3, "db1")
        with pytest.raises(VmError, match="has no RAM in"):
            attached.pool.keep(UUID, 3, "db1")

    @pytest.mark.parametrize("text", ["", "[]", "[[1]]", "{}", '[["a", 1]]', "null"])
    def test_a_record_that_says_nothing_is_not_guessed(self, attached: Host, text: str) -> None:
        self.suspended(attached)
        (attached.pool.vault_of(UUID) / "ram/pc.ram").write_text(text)
        with pytest.raises(HoldfastError, match=r"which RAM is kept|names no RAM"):
            attached.pool.ram_of(UUID)

    def test_ranges_outside_the_pool_are_refused(self, attached: Host) -> None:
        self.suspended(attached)
        (attached.pool.vault_of(UUID) / "ram/pc.ram").write_text("[[0, 2097152]]")
        with pytest.raises(HoldfastError, match="is in no region of the pool"):
            attached.pool.ram_of(UUID)


def test_what_has_a_device_open_is_seen_and_nothing_else_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = tmp_path / "proc/7/fd"
    handles.mkdir(parents=True)
    (tmp_path / "dax").mkdir()
    (tmp_path / "dax/pc.ram").symlink_to("/dev/null")
    (handles / "3").symlink_to(tmp_path / "dax/pc.ram")
    (handles / "4").symlink_to("/dev/dax0.1")
    (handles / "5").symlink_to("/srv/nfs/file")
    (handles / "6").symlink_to("socket:[1]")
    looked_at: list[str] = []
    plain = Path.stat

    def stat(path: Path, **more: bool) -> os.stat_result:
        looked_at.append(path.name)
        return plain(path, **more)

    monkeypatch.setattr(Path, "stat", stat)
    assert devdax.open_numbers(tmp_path) == {os.makedev(1, 3)}
    assert not {"5", "6"} & set(looked_at)


def test_ram_is_cleared_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devdax, "CLEARING_BYTES", 8192)
    node = tmp_path / "dax1.1"
    node.write_bytes(b"secret!!" * 2500)
    devdax._clear(node, 20000, "db1")
    assert node.read_bytes() == bytes(20000)


def test_ram_that_cannot_be_cleared_forbids_the_start(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="cannot be cleared"):
        devdax._clear(tmp_path / "absent", 4096, "db1")
