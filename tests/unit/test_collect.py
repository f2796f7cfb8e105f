# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts are read as they are on the host; what is absent is said to be absent, and nothing is changed."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import collect, facts, installation, srat
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config, PoolConfig
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError, VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import ARRIVES
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import open_journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.request import EVERYTHING, ONLY_QEMU

GIB = 1 << 30
NEW = "7.2.12+deb13-amd64"
POOL = PoolConfig("fsdax", Path("/var/lib/holdfast/pool"), (facts.Region(4 * GIB, GIB, node=1),))


def write(root: Path, path: str, text: str | bytes) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text if isinstance(text, bytes) else text.encode())


def firmware_entry(root: Path, number: int, start: int, end: int, kind: str) -> None:
    for name, text in (("start", f"{start:#x}\n"), ("end", f"{end:#x}\n"), ("type", f"{kind}\n")):
        write(root, f"sys/firmware/memmap/{number}/{name}", text)


def affinity(domain: int, start: int, size: int, flags: int = 1) -> bytes:
    return struct.pack("<BBIHQQIIQ", 1, 40, domain, 0, start, size, 0, flags, 0)


class TestFirmwareMap:
    def test_entries_by_address_with_the_last_byte_included(self, tmp_path: Path) -> None:
        firmware_entry(tmp_path, 0, 4 * GIB, 6 * GIB - 1, "System RAM")
        firmware_entry(tmp_path, 1, 0, 0x9FBFF, "System RAM")
        found = collect.firmware_map(tmp_path)
        assert [(entry.start, entry.end) for entry in found] == [(0, 0x9FC00), (4 * GIB, 6 * GIB)]

    def test_numa_nodes_come_from_the_srat(self, tmp_path: Path) -> None:
        firmware_entry(tmp_path, 0, 4 * GIB, 8 * GIB - 1, "System RAM")
        table = bytes(48) + affinity(0, 0, 6 * GIB) + affinity(1, 6 * GIB, 2 * GIB)
        write(tmp_path, "sys/firmware/acpi/tables/SRAT", table)
        found = collect.firmware_map(tmp_path)
        assert [(entry.start, entry.end, entry.node) for entry in found] == [
            (4 * GIB, 6 * GIB, 0),
            (6 * GIB, 8 * GIB, 1),
        ]

    def test_a_crash_kernel_is_told_of_the_hosts_ram_by_its_command_line(self, tmp_path: Path) -> None:
        firmware_entry(tmp_path, 0, GIB, GIB + 0x1FFFFFFF, "System RAM")
        firmware_entry(tmp_path, 1, 3 * GIB, 4 * GIB - 1, "Reserved")
        write(
            tmp_path, "proc/cmdline", "elfcorehdr=0x5b000000 ro holdfast.ram=0xbff00000@0x100000,0x80000000@0x100000000"
        )
        found = collect.firmware_map(tmp_path)
        assert [(entry.start, entry.end, entry.kind) for entry in found] == [
            (0x100000, 3 * GIB, "System RAM"),
            (3 * GIB, 4 * GIB, "Reserved"),
            (4 * GIB, 6 * GIB, "System RAM"),
        ]


class TestSrat:
    def test_entries_that_are_not_in_force_or_empty_are_passed_over(self) -> None:
        table = bytes(48) + affinity(0, 0, GIB) + affinity(1, GIB, GIB, flags=0) + affinity(2, 2 * GIB, 0)
        assert [(span.start, span.node) for span in srat.memory_spans(table)] == [(0, 0)]

    def test_nodes_are_numbered_as_the_kernel_meets_them_processors_first(self) -> None:
        memory = affinity(0, 0, GIB) + affinity(7, GIB, GIB) + affinity(300, 2 * GIB, GIB)
        off = struct.pack("<BBHIIIII", 2, 24, 0, 5, 0, 0, 0, 0)
        x2apic = struct.pack("<BBHIIIII", 2, 24, 0, 300, 1, 1, 0, 0)
        apic = struct.pack("<BBBBIB3sI", 0, 16, 7, 2, 1, 0, bytes(3), 0)
        spans = srat.memory_spans(bytes(48) + memory + off + x2apic + apic)
        assert [(span.start // GIB, span.node) for span in spans] == [(0, 2), (1, 1), (2, 0)]

    def test_other_structures_are_stepped_over(self) -> None:
        table = bytes(48) + bytes([0, 16]) + bytes(14) + affinity(7, 0, GIB)
        assert [span.node for span in srat.memory_spans(table)] == [0]

    @pytest.mark.parametrize("table", [b"", bytes(48), bytes(48) + b"\1\0", bytes(48) + affinity(0, 0, GIB)[:20]])
    def test_a_short_or_damaged_table_says_nothing(self, table: bytes) -> None:
        assert srat.memory_spans(table) == ()


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("[none] integrity confidentiality\n", "none"), ("none [integrity] confidentiality\n", "integrity"), ("", "none")],
)
def test_lockdown(tmp_path: Path, text: str, chosen: str) -> None:
    write(tmp_path, "sys/kernel/security/lockdown", text)
    assert collect.lockdown(tmp_path) == chosen


@pytest.mark.parametrize(("value", "on"), [(b"\6\0\0\0\1", True), (b"\6\0\0\0\0", False), (None, False)])
def test_secure_boot(tmp_path: Path, value: bytes | None, on: bool) -> None:
    if value is not None:
        write(tmp_path, collect.SECURE_BOOT, value)
    assert collect.secure_boot(tmp_path) is on


@pytest.mark.parametrize("answers", [True, False])
def test_services_of_a_cluster_that_run_are_found(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    def systemctl(words: list[str], **_more: object) -> str:
        if not answers:
            raise CommandFailed("systemctl did not end within 60 s")
        active = ("corosync.service", "dlm.service")
        return "".join(f"{'active' if word in active else 'inactive'}\n" for word in words[2:])

    monkeypatch.setattr(collect.command, "run", systemctl)
    assert collect.cluster() == (("corosync.service", "dlm.service") if answers else ())


def test_machine_types_with_aliases() -> None:
    listing = "Supported machines are:\npc        Standard PC (alias of pc-i440fx-10.0)\nq35  Standard PC\n\n"
    assert collect.machine_types(listing) == ("pc", "q35")


class TestPool:
    def test_regions_are_those_of_the_running_kernel(self, tmp_path: Path) -> None:
        write(tmp_path, "proc/self/mountinfo", "")
        found = collect.pool_facts(Config(POOL), "ro memmap=0x40000000!0x100000000 nokaslr", tmp_path)
        assert [(region.start, region.size, region.node) for region in found.regions] == [(4 * GIB, GIB, 1)]
        assert not found.mounted

    def test_a_host_that_was_never_prepared_has_none(self, tmp_path: Path) -> None:
        assert collect.pool_facts(Config(), "ro quiet", tmp_path) == facts.PoolFacts()

    @pytest.mark.parametrize(("options", "dax"), [("rw,dax=always", True), ("rw", False)])
    def test_mounted_and_with_dax_are_two_things(self, tmp_path: Path, options: str, dax: bool) -> None:
        pool = PoolConfig("fsdax", tmp_path, POOL.regions)
        write(tmp_path, "proc/self/mountinfo", f"9 2 259:0 / {tmp_path} rw - ext4 /dev/pmem0 {options}\n")
        found = collect.pool_facts(Config(pool), "", tmp_path)
        assert (found.mounted, found.dax) == (True, dax)
        assert found.size_bytes > 0
        assert found.state_bytes == found.free_bytes

    def test_a_pool_that_cannot_say_what_is_free_has_nothing_to_give(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def damaged(_config: Config) -> None:
            raise HoldfastError("it does not say which RAM is kept")

        monkeypatch.setattr(collect, "open_pool", damaged)
        write(tmp_path, "proc/self/mountinfo", f"9 2 259:0 / {tmp_path} rw - ext4 /dev/pmem0 rw,dax=always\n")
        found = collect.pool_facts(Config(PoolConfig("fsdax", tmp_path, POOL.regions)), "", tmp_path)
        assert (found.mounted, found.free_bytes, found.state_bytes) == (True, 0, 0)


class TestKernel:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        write(tmp_path, "proc/cpuinfo", "flags : fpu svm sse\n")
        write(tmp_path, f"boot/vmlinuz-{NEW}", "")
        write(tmp_path, f"boot/initrd.img-{NEW}", "")
        write(tmp_path, f"lib/modules/{NEW}/modules.builtin", "kernel/fs/ext4/ext4.ko\n")
        modules = (
            "nvdimm/libnvdimm.ko.xz",
            "nvdimm/nd_e820.ko.xz",
            "nvdimm/nd_pmem.ko",
            "kvm/kvm.ko",
            "kvm/kvm-amd.ko",
        )
        write(
            tmp_path, f"lib/modules/{NEW}/modules.dep", "".join(f"kernel/{name}: kernel/other.ko\n" for name in modules)
        )
        return tmp_path

    def test_a_complete_kernel_lacks_nothing(self, root: Path) -> None:
        found = collect.kernel_facts(NEW, root)
        assert (found.image_exists, found.initrd_exists, found.missing_drivers) == (True, True, ())

    def test_the_driver_of_a_disk_is_needed_with_its_buses(self, root: Path) -> None:
        device = root / "sys/devices/pci0000:00/0000:00:03.0/virtio1"
        for place, module in ((device, "virtio_blk"), (device.parent, "virtio_pci")):
            (place / "driver").mkdir(parents=True)
            write(root, f"sys/module/{module}/initstate", "live")
            (place / "driver/module").symlink_to(root / "sys/module" / module)
        (root / "sys/class/block/vda").mkdir(parents=True)
        (root / "sys/class/block/vda/device").symlink_to(device)
        assert collect.kernel_facts(NEW, root).missing_drivers == ("virtio_blk", "virtio_pci")

    def test_what_vms_hang_on_is_needed_and_what_was_built_for_this_kernel(self, root: Path) -> None:
        """A module of ZFS that was not built for the new kernel leaves VMs without their disks."""
        loaded = {
            "zfs 4812800 6 - Live 0x0000000000000000 (POE)": True,
            "bridge 389120 0 - Live 0x0000000000000000": True,
            "xfs 2486272 1 - Live 0x0000000000000000": True,
            "joydev 24576 0 - Live 0x0000000000000000": False,
            "kvm_amd 217088 4 - Live 0x0000000000000000": False,
        }
        write(root, "proc/modules", "".join(f"{line}\n" for line in loaded))
        write(
            root, "proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 8:2 / /srv rw - xfs /dev/sda2 rw\n"
        )
        needed = tuple(line.split()[0] for line, is_needed in loaded.items() if is_needed)
        assert collect.kernel_facts(NEW, root).missing_drivers == needed

    @pytest.mark.parametrize(("listed", "needed"), [("", ()), ("kernel/drivers/ata/ahci.ko\n", ("ahci",))])
    def test_what_is_no_module_of_any_kernel_is_not_looked_for(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, listed: str, needed: tuple[str, ...]
    ) -> None:
        """pcieportdrv drives the port that nearly every disk is behind, and no list of modules has it."""
        monkeypatch.setattr(collect.kexec, "running_release", lambda: "6.12")
        write(root, "lib/modules/6.12/modules.builtin", listed)
        port = root / "sys/devices/pci0000:00/0000:00:1c.0"
        for place, module in ((port / "0000:01:00.0", "ahci"), (port, "pcieportdrv")):
            (place / "driver").mkdir(parents=True)
            write(root, f"sys/module/{module}/parameters/x", "")
            (place / "driver/module").symlink_to(root / "sys/module" / module)
        (root / "sys/class/block/sda").mkdir(parents=True)
        (root / "sys/class/block/sda/device").symlink_to(port / "0000:01:00.0")
        assert collect.kernel_facts(NEW, root).missing_drivers == needed

    @pytest.fixture
    def initrd(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What its list says; the root file system is an ext4 on nvme."""
        listed = [f"usr/lib/modules/{NEW}/kernel/drivers/nvme/nvme.ko.zst", "usr/bin/sh"]
        monkeypatch.setattr(collect, "root_modules", lambda _root: ("ext4", "nvme"))
        monkeypatch.setattr(collect.installation, "run", lambda *_a, **_more: "\n".join(listed))
        return listed

    def test_an_initrd_has_what_mounts_the_root_file_system(self, root: Path, initrd: list[str]) -> None:
        assert collect.kernel_facts(NEW, root).initrd_lacks == (), "ext4 is built in"
        initrd.pop(0)
        assert collect.kernel_facts(NEW, root).initrd_lacks == ("nvme",)

    def test_the_running_kernels_initrd_has_done_so(
        self, root: Path, initrd: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        initrd.clear()
        monkeypatch.setattr(collect.kexec, "running_release", lambda: NEW)
        assert collect.kernel_facts(NEW, root).initrd_lacks == ()

    def test_an_initrd_that_cannot_be_listed_is_unknown(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(*_a: object, **_more: object) -> str:
            raise CommandFailed("lsinitramfs is not installed on this host")

        monkeypatch.setattr(collect.installation, "run", absent)
        assert collect.kernel_facts(NEW, root).initrd_lacks is None

    def test_a_kernel_that_is_not_installed_has_nothing(self, root: Path) -> None:
        found = collect.kernel_facts("6.1", root)
        assert (found.image_exists, found.initrd_exists) == (False, False)
        assert "nd_pmem" in found.missing_drivers
        assert "kvm_amd" in found.missing_drivers


class TestSignature:
    @staticmethod
    def image(size_of_table: int) -> bytes:
        head = bytearray(512)
        head[:2], head[0x3C:0x40], head[0x80:0x84] = b"MZ", (0x80).to_bytes(4, "little"), b"PE\0\0"
        head[0x98:0x9A] = b"\x0b\x02"
        table = 0x98 + 112 + 4 * 8
        head[table + 4 : table + 8] = size_of_table.to_bytes(4, "little")
        return bytes(head)

    @pytest.mark.parametrize(("size", "signed"), [(0, False), (1480, True)])
    def test_a_certificate_table_makes_it_signed(self, tmp_path: Path, size: int, signed: bool) -> None:
        write(tmp_path, "vmlinuz", self.image(size))
        assert collect.image_signed(tmp_path / "vmlinuz") is signed

    def test_anything_else_is_unknown(self, tmp_path: Path) -> None:
        write(tmp_path, "vmlinuz", "ELF")
        assert collect.image_signed(tmp_path / "vmlinuz") is None
        assert collect.image_signed(tmp_path / "absent") is None


class TestRootModules:
    def disk(self, root: Path, name: str, number: str, driver: str) -> None:
        """A disk on a bus device that this driver drives."""
        bus = f"sys/devices/pci0/virtio-{name}"
        write(root, f"{bus}/block/{name}/size", "1")
        write(root, f"sys/module/{driver}/initstate", "live")
        write(root, f"sys/drivers/{driver}/bind", "")
        (root / f"sys/drivers/{driver}/module").symlink_to(root / f"sys/module/{driver}")
        (root / bus / "driver").symlink_to(root / f"sys/drivers/{driver}")
        (root / "sys/dev/block").mkdir(parents=True, exist_ok=True)
        (root / f"sys/dev/block/{number}").symlink_to(root / bus / "block" / name)

    def test_the_file_system_and_the_drivers_of_its_disk(self, tmp_path: Path) -> None:
        write(
            tmp_path, "proc/self/mountinfo", "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n23 22 0:5 / /dev rw - tmpfs t rw\n"
        )
        self.disk(tmp_path, "vda1", "254:1", "virtio-blk")
        assert collect.root_modules(tmp_path) == ("ext4", "virtio_blk")

    def test_a_mapped_disk_stands_on_others(self, tmp_path: Path) -> None:
        write(tmp_path, "proc/self/mountinfo", "22 1 253:0 / / rw - xfs /dev/mapper/root rw\n")
        self.disk(tmp_path, "sda", "8:0", "ahci")
        mapped = tmp_path / "sys/devices/virtual/block/dm-0"
        (mapped / "slaves").mkdir(parents=True)
        (mapped / "slaves/sda").symlink_to((tmp_path / "sys/dev/block/8:0").resolve())
        (tmp_path / "sys/dev/block/253:0").symlink_to(mapped)
        assert collect.root_modules(tmp_path) == ("ahci", "xfs")

    def test_a_root_without_a_disk_needs_its_type_only(self, tmp_path: Path) -> None:
        write(tmp_path, "proc/self/mountinfo", "22 1 0:30 / / rw - btrfs /dev/sda1 rw\n")
        assert collect.root_modules(tmp_path) == ("btrfs",)
        assert collect.root_modules(tmp_path / "absent") == ()


class TestVms:
    XML = "<domain type='kvm' id='3'><name>db1</name><uuid>u-1</uuid><memory unit='MiB'>64</memory><devices/></domain>"

    class Domain:
        """A running VM as the door to libvirt shows it."""

        def __init__(self, xml: str) -> None:
            self.text, self.name, self.uuid, self.id = xml, "db1", "u-1", 3

        def state(self) -> str:
            return "running"

        def persistent(self) -> bool:
            return True

        autostart = persistent

        def xml(self) -> str:
            return self.text

        stored_xml = xml

        def job(self) -> str:
            return ""

        def block_jobs(self, _targets: object) -> tuple[str, ...]:
            return ()

    @pytest.fixture
    def hypervisor(self) -> Any:
        class Hypervisor:
            def domains(self) -> list[Any]:
                return [TestVms.Domain(TestVms.XML)]

        return Hypervisor()

    def test_a_running_vm_with_its_ram_in_the_pool(
        self, tmp_path: Path, hypervisor: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def answer(_domain: object, command: str, **arguments: object) -> object:
            return {
                "query-migrate": {"blocked-reasons": ["a device"]},
                "query-version": {"qemu": {"major": 10, "minor": 0, "micro": 13}},
                "x-query-virtio": [{"name": "virtio-blk", "path": "/disk"}, {"name": "virtio-rng", "path": "/rng"}],
                "x-query-virtio-queue-status": {"vring-num": 1024},
                "qom-get": 256,
            }[command]

        monkeypatch.setattr(collect.monitor, "execute", answer)
        write(tmp_path, "libvirt/qemu/3-db1/pc.ram", "")
        (vm,) = collect.vm_facts(hypervisor, Config(PoolConfig("fsdax", tmp_path, ())))
        assert (vm.ram_files_present, vm.migration_blockers) == (("pc.ram",), ("a device",))
        assert (vm.qemu_version, vm.oversized_queues) == ("10.0.13", ("virtio-blk (1024, not 256)",))

    def test_a_qemu_that_does_not_answer_blocks_in_its_own_words(
        self, hypervisor: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def silent(*_arguments: object) -> None:
            raise VmError("the monitor is gone")

        monkeypatch.setattr(collect.monitor, "execute", silent)
        (vm,) = collect.vm_facts(hypervisor, Config())
        assert "the monitor is gone" in vm.migration_blockers[0]

    def test_one_that_arrives_is_not_spoken_to(self, hypervisor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """libvirt would keep whoever tries waiting for half a minute, for each question."""

        def refused(*_arguments: object) -> None:
            raise AssertionError("it was asked")

        monkeypatch.setattr(collect.monitor, "execute", refused)
        monkeypatch.setattr(TestVms.Domain, "job", lambda _self: ARRIVES)
        monkeypatch.setattr(TestVms.Domain, "block_jobs", refused)
        (vm,) = collect.vm_facts(hypervisor, Config())
        assert (vm.job, vm.migration_blockers) == (ARRIVES, ())


def test_units_count_as_enabled_only_together(tmp_path: Path) -> None:
    assert not installation.enabled(tmp_path)
    for unit in installation.ENABLED:
        assert not installation.enabled(tmp_path)
        write(tmp_path, f"multi-user.target.wants/{unit}", "")
    assert installation.enabled(tmp_path)


def test_a_damaged_journal_is_a_fact_and_no_failure(tmp_path: Path) -> None:
    write(tmp_path, "journal.jsonl", "0000 {}\n")
    is_open, generation, error = collect._journal(tmp_path)
    assert (is_open, generation) == (True, "")
    assert "damaged" in error


def over(
    state_dir: Path,
    number: int,
    seconds: float,
    only: str = EVERYTHING,
    *,
    restored: bool = True,
    fell_back: bool = False,
) -> None:
    """A live update of one VM that has come to its end."""
    vm = {"name": "db", "uuid": "u-db", "priority": 50, "treatment": "in_place", "reason": ""}
    journal = open_journal(state_dir)
    generation = f"g-2026112{number}T020000-ab12cd"
    journal.record("begin", generation=generation, host="h", kernel={}, qemu="", boot_id="b", only=only, vms=[vm])
    journal.record("suspending")
    journal.record("vm_paused", uuid="u-db", was_paused=False, moment=100.0)
    if restored:
        journal.record("vm_saved", uuid="u-db", state_bytes=1, ram_bytes=1)
        journal.record("suspended")
        journal.record("jumping")
        for back in range(1 + fell_back):
            journal.record("arrived", boot_id=f"b{back}", kernel="7.2")
            journal.record("attached")
            if back < fell_back:
                journal.record("falling_back", reason="unfit")
        journal.record("restoring")
        journal.record("vm_resuming", uuid="u-db")
    journal.record("vm_resumed", uuid="u-db", moment=100.0 + seconds, qemu="11.1.3")
    journal.record("restored" if restored else "aborted", reason="", qemu="11.1.3")
    journal.archive()


def test_the_last_jump_that_came_to_its_end_says_how_long_each_vm_was_paused(tmp_path: Path) -> None:
    assert collect.past_pauses(tmp_path) == ()
    over(tmp_path, 1, 90.0)
    over(tmp_path, 2, 49.2)
    over(tmp_path, 3, 18.0, ONLY_QEMU)
    over(tmp_path, 4, 2.0, restored=False)
    over(tmp_path, 5, 200.0, fell_back=True)
    assert collect.past_pauses(tmp_path) == (facts.PastPause("u-db", 49.2),)
    (tmp_path / "history/g-20261122T020000-ab12cd.jsonl").write_text("0000 {}\n")
    assert collect.past_pauses(tmp_path) == (), "nothing is known of what is damaged"


CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7702 64-Core Processor
flags\t\t: fpu svm avx2
power management: ts

processor\t: 1
vendor_id\t: AuthenticAMD
"""
CAPABILITIES = """<domainCapabilities><cpu>
  <mode name='host-model' supported='yes'><model fallback='forbid'>EPYC-Rome</model></mode>
  <mode name='custom' supported='yes'>
    <model usable='yes' vendor='AMD'>EPYC</model><model usable='no'>Skylake-Server</model>
  </mode>
</cpu></domainCapabilities>"""
MOUNTINFO = """22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 22 0:40 / /srv/vms rw,relatime shared:9 - nfs4 nas:/export/vms rw,vers=4.2
"""


def test_the_processor_as_the_kernel_describes_it() -> None:
    found = collect.cpu_facts(CPUINFO.strip())
    assert (found.vendor, found.name, found.flags, found.count) == (
        "AuthenticAMD",
        "AMD EPYC 7702 64-Core Processor",
        ("fpu", "svm", "avx2"),
        2,
    )
    assert collect.cpu_facts("").count == 0


def test_cpu_models_are_those_that_can_be_given_here() -> None:
    assert collect.usable_cpu_models(CAPABILITIES) == ("EPYC",)
    assert collect.usable_cpu_models("<domainCapabilities/>") == ()


def test_shared_file_systems_are_those_of_the_network() -> None:
    assert collect.shared_mounts(MOUNTINFO) == (facts.Mount("/srv/vms", "nas:/export/vms"),)
