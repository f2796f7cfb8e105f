# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight finds every blocker at once, names the thing and the remedy, and lets a good host pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import preflight
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import Refused
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import (
    ARRIVES,
    LEAVES,
    CpuFacts,
    Disk,
    HostFacts,
    KernelFacts,
    PastPause,
    PoolFacts,
    QemuFacts,
    RamBacking,
    Treatment,
    Verdict,
    VmFacts,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.policy import Decision
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import RamFile, Region, Service, Watchdog

MIB, GIB = 1 << 20, 1 << 30
LINE = "root=/dev/vda ro memmap=0x80000000!0x100000000 nokaslr"
POOL = PoolFacts(
    regions=(Region(4 * GIB, 2 * GIB),),
    mount_point="/var/lib/holdfast/pool",
    mounted=True,
    dax=True,
    free_bytes=GIB,
    state_bytes=GIB,
)
QEMU = QemuFacts((10, 0, 13), "/usr/bin/qemu-system-x86_64", ("pc-q35-10.0", "pc-i440fx-10.0"))
HOST = HostFacts(
    hostname="hv1",
    kernel="6.12.107+deb13-amd64",
    cmdline=LINE,
    has_kvm=True,
    libvirt_version=(11, 3, 0),
    libvirt_active=True,
    qemu=QEMU,
    kexec_tool=True,
    image_signed=True,
    firmware_map=(Region(0x100000, 2 * GIB), Region(4 * GIB, 4 * GIB)),
    mem_available_bytes=2 * GIB,
    crash_area_bytes=GIB,
    initrd_bytes=16 * MIB,
    pool=POOL,
    memory_backing_dir="/var/lib/holdfast/pool",
    state_dir_free_bytes=10 * GIB,
    agent_installed=True,
    hook_installed=True,
    units_enabled=True,
)
TARGET = KernelFacts(
    release="7.2.12+deb13-amd64",
    image="/boot/vmlinuz-7.2.12",
    initrd="/boot/initrd.img-7.2.12",
    image_exists=True,
    initrd_exists=True,
    cmdline=LINE + " holdfast.generation=g-20261121T020000-ab12cd",
)
VM = VmFacts(
    name="db-1",
    uuid="aaaa-1",
    state="running",
    domain_id=3,
    machine="pc-q35-10.0",
    cpu_mode="custom",
    ram_backing=RamBacking.FILE_SHARED,
    ram_files=(RamFile("pc.ram", GIB),),
    ram_files_present=("pc.ram",),
    autostart=True,
)


def codes(verdict: Verdict) -> set[str]:
    return {entry.code for entry in verdict.blockers}


def warnings(verdict: Verdict) -> set[str]:
    return {entry.code for entry in verdict.warnings}


def test_a_prepared_host_passes_without_a_word() -> None:
    verdict = preflight.judge(HOST, [VM], TARGET)
    assert verdict == Verdict()
    preflight.require_passed(verdict, "hv1")


@pytest.mark.parametrize(
    ("host", "code"),
    [
        (replace(HOST, architecture="aarch64"), "architecture"),
        (replace(HOST, has_kvm=False), "no-kvm"),
        (replace(HOST, libvirt_active=False), "libvirt-down"),
        (replace(HOST, libvirt_active=False, libvirt_version=(0, 0, 0), save_image_format="zstd"), "libvirt-down"),
        (replace(HOST, libvirt_version=(8, 1, 0)), "libvirt-too-old"),
        (replace(HOST, libvirt_version=(11, 1, 0), save_image_format="zstd"), "save-format"),
        (replace(HOST, qemu=QemuFacts()), "qemu-missing"),
        (replace(HOST, qemu=replace(QEMU, version=(7, 2, 0))), "qemu-too-old"),
        (replace(HOST, kexec_tool=False), "kexec-missing"),
        (replace(HOST, kexec_load_disabled=True), "kexec-disabled"),
        (replace(HOST, lockdown="integrity", image_signed=False), "kernel-unsigned"),
        (replace(HOST, pool=PoolFacts()), "pool-missing"),
        (replace(HOST, pool=replace(POOL, mounted=False)), "pool-not-mounted"),
        (replace(HOST, pool=replace(POOL, state_bytes=MIB)), "pool-full"),
        (replace(HOST, pool=replace(POOL, dax=False)), "pool-without-dax"),
        (replace(HOST, pool=replace(POOL, regions=(Region(7 * GIB, 2 * GIB),))), "pool-misplaced"),
        (replace(HOST, memory_backing_dir="/var/lib/libvirt/qemu/ram"), "backing-dir"),
        (replace(HOST, memory_backing_dir="/var/lib/holdfast/pool2"), "backing-dir"),
        (replace(HOST, agent_installed=False), "agent-missing"),
        (replace(HOST, outdated=("/usr/local/sbin/holdfast-agent",)), "agent-outdated"),
        (replace(HOST, watchdogs=(Watchdog("watchdog0", "iTCO_wdt", 30, True, 812, "watchdogd"),)), "watchdog-armed"),
        (replace(HOST, watchdogs=(Watchdog("watchdog0", "iTCO_wdt", 30, False, 1, "systemd"),)), "watchdog-armed"),
        (replace(HOST, locked_disks=("vda3_crypt",)), "disk-locked"),
        (replace(HOST, cluster=("corosync.service", "pacemaker.service")), "cluster-member"),
        (replace(HOST, halfway=("libvirt0", "qemu-system-x86")), "packages-halfway"),
        (replace(HOST, pool=replace(POOL, configured=(Region(5 * GIB, GIB),))), "pool-changed"),
        (replace(HOST, hook_installed=False), "hook-missing"),
        (replace(HOST, units_enabled=False), "units-disabled"),
        (replace(HOST, journal_error="line 3: checksum"), "journal-damaged"),
        (replace(HOST, journal_open=True, journal_generation="g-20260101T000000-000000"), "journal-open"),
        (replace(HOST, state_dir_writable=False), "state-dir-read-only"),
        (replace(HOST, state_dir_free_bytes=63 * MIB), "state-dir-full"),
        (replace(HOST, state_dir="/run/holdfast"), "state-dir-volatile"),
        (replace(HOST, mem_available_bytes=100 * MIB), "host-memory-low"),
    ],
)
def test_what_blocks_a_host(host: HostFacts, code: str) -> None:
    verdict = preflight.judge(host, [VM], TARGET)
    assert codes(verdict) == {code}
    assert all(entry.message and entry.remedy and not entry.vm for entry in verdict.blockers)


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (replace(TARGET, image_exists=False), "kernel-missing"),
        (replace(TARGET, initrd_exists=False), "initrd-missing"),
        (replace(TARGET, missing_drivers=("nd_pmem", "nd_e820")), "drivers-missing"),
        (replace(TARGET, initrd_lacks=("nvme",)), "initrd-drivers"),
        (replace(TARGET, cmdline=""), "pool-not-kept"),
        (replace(TARGET, cmdline="root=/dev/vda ro nokaslr"), "pool-not-kept"),
        (replace(TARGET, cmdline="memmap=2G!4G nokaslr"), "pool-not-kept"),
    ],
)
def test_what_blocks_a_kernel(target: KernelFacts, code: str) -> None:
    assert codes(preflight.judge(HOST, [VM], target)) == {code}


@pytest.mark.parametrize(
    ("extra", "kaslr", "blocks", "warns"),
    [
        ("", "nokaslr", set(), set()),
        ("", "", set(), {"kaslr"}),
        (" memmap=64K$1M,64K$2M,64K$3M", "", set(), {"kaslr"}),
        (" memmap=64K$1M,64K$2M,64K$3M memmap=64K$4M", "", {"kaslr"}, set()),
        (" memmap=64K$1M,64K$2M,64K$3M memmap=64K$4M", "nokaslr", set(), set()),
    ],
)
def test_address_randomisation_must_stay_out_of_the_pool(
    extra: str, kaslr: str, blocks: set[str], warns: set[str]
) -> None:
    line = f"memmap=0x80000000!0x100000000{extra} {kaslr}"
    verdict = preflight.judge(replace(HOST, cmdline=line), [VM], replace(TARGET, cmdline=line))
    assert (codes(verdict), warnings(verdict)) == (blocks, warns)


@pytest.mark.parametrize(
    ("vm", "code"),
    [
        (replace(VM, ram_backing=RamBacking.ANONYMOUS), "ram-not-in-pool"),
        (replace(VM, ram_backing=RamBacking.MEMFD), "ram-not-in-pool"),
        (replace(VM, ram_backing=RamBacking.HUGEPAGES), "ram-not-in-pool"),
        (replace(VM, ram_backing=RamBacking.FILE_PRIVATE), "ram-not-in-pool"),
        (replace(VM, ram_discard=True), "ram-discarded"),
        (replace(VM, ram_files_present=()), "ram-file-missing"),
        (replace(VM, memory_devices=("dimm",)), "memory-devices"),
        (replace(VM, hostdevs=("pci 0000:01:00.0",)), "passthrough"),
        (replace(VM, unsafe_devices=("virtio-crypto device",)), "device"),
        (replace(VM, filesystems=("virtiofs:share",)), "filesystem"),
        (replace(VM, launch_security="sev"), "launch-security"),
        (replace(VM, disks=(Disk("vda", "/dev/shm/a.img"),)), "disk-volatile"),
        (replace(VM, disks=(Disk("vda", "/dev/ram0", "block"),)), "disk-volatile"),
        (replace(VM, disks=(Disk("vda", "/a.vmdk", driver="vmdk"),)), "disk-format"),
        (replace(VM, machine="pc-i440fx-2.1"), "machine-type"),
        (replace(VM, features=("invtsc",)), "tsc"),
        (replace(VM, state="pmsuspended"), "vm-state"),
        (replace(VM, job="block job on vda"), "vm-job"),
        # What else may be said of them is seen when they have arrived.
        (replace(VM, job=ARRIVES, state="paused", ram_files_present=()), "vm-moving"),
        (replace(VM, job=LEAVES, machine="pc-i440fx-2.1"), "vm-moving"),
        (replace(VM, migration_blockers=("VFIO migration is not supported",)), "qemu-blocks"),
    ],
)
def test_what_blocks_a_vm(vm: VmFacts, code: str) -> None:
    verdict = preflight.judge(HOST, [vm], TARGET)
    assert codes(verdict) == {code}
    assert all(entry.message and entry.remedy and entry.vm == "db-1" for entry in verdict.blockers)


@pytest.mark.parametrize(
    ("vm", "code"),
    [
        (replace(VM, networks=("lan",)), "network-no-autostart"),
        (replace(VM, disks=(Disk("vda", "ssd/db", "volume"),)), "storage-pool-no-autostart"),
    ],
)
def test_what_a_vm_needs_must_start_with_the_host(vm: VmFacts, code: str) -> None:
    well = replace(HOST, networks=(Service("lan"), Service("other", False)), storage_pools=(Service("ssd"),))
    assert codes(preflight.judge(well, [vm], TARGET)) == set()
    ill = replace(HOST, networks=(Service("lan", False),), storage_pools=(Service("ssd", False),))
    assert codes(preflight.judge(ill, [vm], TARGET)) == {code}


@pytest.mark.parametrize(("converted", "word"), [(False, "prepare playbook"), (True, "is converted")])
def test_the_remedy_knows_whether_the_definition_is_converted(converted: bool, word: str) -> None:
    vm = replace(VM, ram_backing=RamBacking.ANONYMOUS, definition_converted=converted)
    (blocker,) = preflight.judge(HOST, [vm], TARGET).blockers
    assert word in blocker.remedy


def test_the_qemu_that_will_restore_is_the_one_that_counts() -> None:
    newer = QemuFacts((11, 1, 3), QEMU.binary, ("pc-q35-11.1",))
    assert codes(preflight.judge(HOST, [VM], TARGET, qemu=newer)) == {"machine-type"}


@pytest.mark.parametrize(
    ("host", "target", "vm", "code"),
    [
        (HOST, replace(TARGET, release=HOST.kernel), VM, "kernel-unchanged"),
        (replace(HOST, lockdown="integrity", image_signed=None), TARGET, VM, "signature-unknown"),
        (replace(HOST, secure_boot=True, image_signed=False), TARGET, VM, "secure-boot"),
        (replace(HOST, qemu=replace(QEMU, version=(11, 1, 3))), TARGET, VM, "plain-restore"),
        (replace(HOST, qemu=replace(QEMU, machine_types=())), TARGET, VM, "machine-types-unknown"),
        (HOST, TARGET, replace(VM, state="paused"), "vm-paused"),
        (HOST, TARGET, replace(VM, cpu_mode="host-passthrough"), "cpu-passthrough"),
        (HOST, TARGET, replace(VM, features=("invtsc",), tsc_frequency=2_500_000_000), "tsc-frequency"),
        (HOST, TARGET, replace(VM, persistent=False), "vm-transient"),
        (HOST, TARGET, replace(VM, autostart=False), "vm-no-autostart"),
        (HOST, TARGET, replace(VM, watched_devices=("TPM emulator",)), "device-watch"),
        (HOST, TARGET, replace(VM, emulator="/opt/qemu"), "emulator"),
        (HOST, TARGET, replace(VM, disks=(Disk("vda", "rbd://mon/p/a", "network"),)), "disk-late"),
        (HOST, TARGET, replace(VM, disks=(Disk("vda", "/dev/nbd0", "block"),)), "disk-late"),
    ],
)
def test_what_is_worth_knowing_does_not_block(host: HostFacts, target: KernelFacts, vm: VmFacts, code: str) -> None:
    verdict = preflight.judge(host, [vm], target)
    assert verdict.passed
    assert warnings(verdict) == {code}


@pytest.mark.parametrize(
    ("version", "written"), [((11, 3, 0), "zstd"), ((11, 2, 0), "sparse"), ((11, 1, 0), ""), ((11, 1, 0), "raw")]
)
def test_a_libvirt_that_saves_uncompressed_when_asked_may_be_told_otherwise(
    version: tuple[int, int, int], written: str
) -> None:
    assert preflight.judge(replace(HOST, libvirt_version=version, save_image_format=written), [VM], TARGET) == Verdict()


def test_a_plain_restore_is_never_mended_by_what_blocks_the_upgrade() -> None:
    newest = replace(HOST, qemu=replace(QEMU, version=(11, 1, 3)))
    assert warnings(preflight.judge(replace(newest, save_image_format="zstd"), [VM], TARGET)) == set(), "mended"
    for version, compress in (((11, 3, 0), True), ((11, 1, 0), False)):
        (found,) = preflight.judge(replace(newest, libvirt_version=version), [VM], TARGET).warnings
        assert ("save_image_format" in found.remedy) is compress
        assert "libvirt 12.1" in found.remedy


@pytest.mark.parametrize(
    ("vm", "decision"),
    [
        pytest.param(
            replace(VM, launch_security="sev"),
            Decision("db-1", "aaaa-1", Treatment.LIVE, 50, "by rule 1"),
            id="treated otherwise",
        ),
        pytest.param(
            replace(VM, state="shutoff", ram_backing=RamBacking.ANONYMOUS),
            Decision("db-1", "aaaa-1", Treatment.IN_PLACE, 50, "by default"),
            id="shut off",
        ),
    ],
)
def test_only_vms_that_stay_in_place_are_judged(vm: VmFacts, decision: Decision) -> None:
    assert preflight.judge(HOST, [vm], TARGET, decisions=[decision]) == Verdict()


RESTARTED = Decision("db-1", "aaaa-1", Treatment.RESTART, 50, "by rule 1")


@pytest.mark.parametrize(
    ("vm", "code"),
    [
        (replace(VM, launch_security="sev", hostdevs=("pci 0000:01:00.0",), ram_backing=RamBacking.ANONYMOUS), None),
        (replace(VM, state="paused"), "restart-not-running"),
        (replace(VM, persistent=False), "restart-transient"),
        (replace(VM, job="migration"), "vm-job"),
        (replace(VM, machine="pc-q35-2.4"), "machine-type"),
        (replace(VM, disks=(Disk("vda", "/run/disk.img"),)), "disk-volatile"),
    ],
)
def test_a_vm_that_is_shut_down_and_started_must_be_able_to_do_both(vm: VmFacts, code: str | None) -> None:
    host = replace(HOST, volatile_paths=("/run",))
    assert codes(preflight.judge(host, [vm], TARGET, decisions=[RESTARTED])) == ({code} if code else set())


@pytest.mark.parametrize(("job", "found"), [(LEAVES, set()), (ARRIVES, {"vm-moving"}), ("backup", set())])
def test_a_vm_that_is_to_leave_may_be_on_its_way_already_but_not_towards_here(job: str, found: set[str]) -> None:
    vm = replace(VM, job=job)
    assert codes(preflight.judge(HOST, [vm], TARGET, decisions=[replace(RESTARTED, treatment=Treatment.LIVE)])) == found


STORED = replace(RESTARTED, treatment=Treatment.COLD)


@pytest.mark.parametrize(
    ("vm", "code"),
    [
        (replace(VM, ram_backing=RamBacking.ANONYMOUS, ram_files=(), ram_files_present=()), None),
        (replace(VM, ram_backing=RamBacking.HUGEPAGES, memory_devices=("dimm",)), None),
        (replace(VM, state="paused"), None),
        (replace(VM, hostdevs=("pci 0000:01:00.0",)), "passthrough"),
        (replace(VM, launch_security="sev"), "launch-security"),
        (replace(VM, persistent=False), "cold-transient"),
        (replace(VM, job="backup"), "vm-job"),
        (replace(VM, machine="pc-q35-2.4"), "machine-type"),
        (replace(VM, migration_blockers=("vfio",)), "qemu-blocks"),
        (replace(VM, disks=(Disk("vda", "/run/disk.img"),)), "disk-volatile"),
    ],
)
def test_a_vm_that_is_saved_to_disk_may_have_its_ram_anywhere(vm: VmFacts, code: str | None) -> None:
    host = replace(HOST, volatile_paths=("/run",))
    assert codes(preflight.judge(host, [vm], TARGET, decisions=[STORED])) == ({code} if code else set())
    assert codes(preflight.judge_renewal(host, [vm], [STORED])) == ({code} if code else set())


def test_what_is_saved_to_disk_must_have_room_there() -> None:
    """Under the running kernel one VM at a time is on the disk, for a jump all of them are."""
    vms = [replace(VM, uuid=f"{number}", ram_bytes=4 * GIB) for number in range(3)]
    decisions = [replace(STORED, uuid=vm.uuid) for vm in vms]
    host = replace(HOST, state_dir_free_bytes=8 * GIB)
    assert codes(preflight.judge(host, vms, TARGET, decisions=decisions)) == {"state-dir-full"}
    assert preflight.judge_renewal(host, vms, decisions) == Verdict()
    host = replace(HOST, state_dir_free_bytes=3 * GIB)
    assert codes(preflight.judge_renewal(host, vms, decisions)) == {"state-dir-full"}


def test_a_pool_too_small_for_those_that_come_is_worth_knowing() -> None:
    vm = replace(VM, ram_bytes=2 * GIB, ram_files_present=(), definition_converted=True)
    assert warnings(preflight.judge(HOST, [vm], TARGET, decisions=[STORED])) == {"pool-small"}
    roomy = replace(HOST, pool=replace(POOL, free_bytes=3 * GIB, state_bytes=3 * GIB))
    assert preflight.judge(roomy, [vm], TARGET, decisions=[STORED]) == Verdict()


def test_a_host_without_a_way_back_is_told_so() -> None:
    bare = replace(HOST, crash_area_bytes=0)
    assert warnings(preflight.judge(bare, [VM], TARGET)) == {"crash-kernel-none"}
    assert preflight.judge_renewal(bare, [VM]) == Verdict(), "no kernel is started"
    crashed = replace(bare, cmdline=f"elfcorehdr=0x7c000000 {LINE}")
    assert preflight.judge(crashed, [VM], TARGET) == Verdict(), "the next kernel has one again"


def test_a_crash_kernel_must_hold_the_qemus_of_all_vms() -> None:
    vms = [replace(VM, name=f"db-{number}", uuid=str(number), qemu_bytes=40 * MIB) for number in range(8)]
    host = replace(HOST, crash_area_bytes=960 * MIB, cpu=CpuFacts(count=2))
    assert preflight.judge(host, vms, TARGET) == Verdict()
    unknown = [replace(vm, qemu_bytes=None) for vm in vms]
    (found,) = preflight.judge(host, unknown, TARGET).warnings
    assert found.code == "crash-kernel-small"
    assert "8 VMs may need 1152 MiB" in found.message
    assert "prepare_max_vms: 8" in found.remedy


def test_video_memory_takes_room_in_the_pool() -> None:
    pool = replace(POOL, state_bytes=64 * MIB)
    assert preflight.judge(replace(HOST, pool=pool), [replace(VM, video_bytes=56 * MIB)], TARGET) == Verdict()
    verdict = preflight.judge(replace(HOST, pool=pool), [replace(VM, video_bytes=57 * MIB)], TARGET)
    assert codes(verdict) == {"pool-full"}


LIMITED = Decision("db-1", "aaaa-1", Treatment.IN_PLACE, 50, "by rule 1", max_pause_s=30.0)


@pytest.mark.parametrize(
    ("decision", "past", "blocks", "warns"),
    [
        (LIMITED, (PastPause("aaaa-1", 49.2), PastPause("bbbb-1", 3.0)), {"pause-limit"}, set()),
        (LIMITED, (PastPause("aaaa-1", 30.0), PastPause("bbbb-1", 90.0)), set(), set()),
        (LIMITED, (PastPause("bbbb-1", 3.0),), set(), {"pause-unknown"}),
        (LIMITED, (), set(), {"pause-unknown"}),
        (replace(LIMITED, max_pause_s=None), (PastPause("aaaa-1", 49.2),), set(), set()),
        (replace(LIMITED, treatment=Treatment.LIVE), (PastPause("aaaa-1", 49.2),), set(), set()),
    ],
)
def test_a_vm_is_not_paused_for_longer_than_its_policy_says_when_that_is_known(
    decision: Decision, past: tuple[PastPause, ...], blocks: set[str], warns: set[str]
) -> None:
    host = replace(HOST, past_pauses=past)
    verdict = preflight.judge(host, [VM], TARGET, decisions=[decision])
    assert (codes(verdict), warnings(verdict)) == (blocks, warns)
    assert preflight.judge_renewal(host, [VM], [decision]) == Verdict(), "a jump's pause says nothing of it"


def test_every_blocker_is_found_at_once_and_told() -> None:
    bad_vm = replace(VM, hostdevs=("pci 0000:01:00.0", "usb 1:2"), machine="pc-1.0", job="backup")
    other = replace(VM, name="web", uuid="bbbb-1", ram_discard=True)
    verdict = preflight.judge(replace(HOST, kexec_tool=False, hook_installed=False), [bad_vm, other], TARGET)
    assert [(entry.code, entry.vm) for entry in verdict.blockers] == [
        ("kexec-missing", ""),
        ("hook-missing", ""),
        ("vm-job", "db-1"),
        ("passthrough", "db-1"),
        ("passthrough", "db-1"),
        ("machine-type", "db-1"),
        ("ram-discarded", "web"),
    ]
    with pytest.raises(Refused) as refusal:
        preflight.require_passed(verdict, "hv1")
    for word in (
        "hv1",
        "7 things",
        "VM web:",
        "pci 0000:01:00.0",
        "usb 1:2",
        "install kexec-tools",
        "no VM was touched",
    ):
        assert word in str(refusal.value)


def test_a_host_that_stays_on_its_kernel_needs_no_jump() -> None:
    host = replace(HOST, kexec_tool=False, kexec_load_disabled=True, hook_installed=False, mem_available_bytes=0)
    found = preflight.judge_renewal(host, [replace(VM, autostart=True, hostdevs=("usb 1:2",))])
    assert codes(found) == {"hook-missing", "passthrough"}
    assert {"kexec-missing", "kernel-missing"} <= codes(preflight.judge(host, [VM], KernelFacts(release="")))


def test_nothing_known_blocks_with_words_and_never_fails() -> None:
    verdict = preflight.judge(HostFacts(), [VmFacts(name="x", uuid="", state="running")], KernelFacts(release=""))
    assert {"no-kvm", "libvirt-down", "qemu-missing", "kexec-missing", "kernel-missing", "pool-missing"} <= codes(
        verdict
    )
    assert all(entry.message and entry.remedy for entry in verdict.blockers)


OVERSIZED = replace(VM, qemu_version="10.0.13", oversized_queues=("virtio-blk (1024, not 256)",))


def test_a_vm_whose_queues_no_other_qemu_loads_may_not_change_its_qemu():
    verdict = preflight.judge(replace(HOST, qemu=replace(QEMU, version=(11, 1, 3))), [OVERSIZED], TARGET)
    assert codes(verdict) == {"virtio-queues"}
    assert "1024, not 256" in verdict.blockers[0].message


def test_the_same_vm_may_go_to_a_new_kernel_under_the_same_qemu():
    assert preflight.judge(HOST, [OVERSIZED], TARGET).passed
