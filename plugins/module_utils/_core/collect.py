# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gather facts on a host. Reads only, judges nothing: what the facts mean is ``preflight``'s business.

``root`` in these functions is the root of the file system to read; tests put another.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, FrozenSet, Iterable, List, Optional, Sequence, Tuple

from . import (
    cmdline,
    command,
    daxdev,
    domain,
    encrypted,
    fsdax,
    installation,
    journal,
    kexec,
    kmod,
    monitor,
    packages,
    packing,
    pmem,
    qemu_conf,
    regions,
    srat,
    watchdogs,
)
from .config import Config
from .errors import CommandFailed, HoldfastError, JournalError, VmError
from .facts import (
    ARRIVES,
    CpuFacts,
    Disk,
    HostFacts,
    KernelFacts,
    Mount,
    PastPause,
    PoolFacts,
    QemuFacts,
    Treatment,
    VmFacts,
)
from .hypervisor import Domain, Hypervisor, connect
from .pool import open_pool
from .request import ONLY_QEMU
from .resources import Region, Service

ROOT = Path("/")
AGENT = packing.PATH.relative_to("/")
HOOK = installation.HOOK.relative_to("/")
UNITS = installation.UNITS.relative_to("/")
QEMU = "/usr/bin/qemu-system-x86_64"
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"

# What the next kernel needs to find the pool, mount it, and run VMs. libnvdimm is what nd_e820 and nd_pmem stand on.
POOL_DRIVERS = ("libnvdimm", "nd_e820", "nd_pmem", "ext4")
# File systems whose content is the same wherever they are mounted.
SHARED_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.glusterfs", "gfs2", "ocfs2")
# They count a silent host as dead: it is reset then, or what ran on it is started elsewhere.
CLUSTER_UNITS = tuple(
    f"{name}.service"
    for name in (
        "corosync",
        "pacemaker",
        "sbd",
        "dlm",
        "o2cb",
        "sanlock",
        "pve-ha-lrm",
        "vdsmd",
        "masakari-hostmonitor",
    )
)
# Loaded, in use by VMs or by what they are on, and called so in every kernel.
CARRYING_MODULES = frozenset(
    "bonding team bridge 8021q macvlan macvtap tun tap vhost_net vhost_vsock vhost_scsi openvswitch vxlan geneve "
    "nfs nfsv3 nfsv4 cifs ceph rbd nbd iscsi_tcp dm_multipath dm_crypt dm_thin_pool dm_cache dm_raid "
    "raid0 raid1 raid10 raid456 bcache drbd loop nvme_tcp nvme_rdma nvme_fc target_core_mod".split()
)
KVM_DRIVERS = {"svm": ("kvm", "kvm_amd"), "vmx": ("kvm", "kvm_intel")}


# --- the host ------------------------------------------------------------------------------------------------------


def host_facts(config: Config, root: Path = ROOT) -> HostFacts:
    """Everything preflight judges about this host. Raises HoldfastError when the host cannot be read at all."""
    running = _text(root / "proc/cmdline")
    journal_open, journal_generation, journal_error = _journal(config.state_dir)
    libvirt = _libvirt()
    settings = _text(root / qemu_conf.PATH.relative_to("/"))
    return HostFacts(
        hostname=socket.gethostname(),
        boot_id=_text(root / "proc/sys/kernel/random/boot_id"),
        kernel=kexec.running_release(),
        architecture=os.uname().machine,
        cmdline=running,
        has_kvm=(root / "dev/kvm").exists(),
        libvirt_version=libvirt.version,
        libvirt_active=libvirt.version != (0, 0, 0),
        libvirt_error=libvirt.error,
        networks=libvirt.networks,
        storage_pools=libvirt.storage_pools,
        qemu=qemu_facts(),
        kexec_tool=shutil.which("kexec") is not None,
        kexec_load_disabled=_loads_no_kernel(root / "proc/sys/kernel"),
        lockdown=lockdown(root),
        secure_boot=secure_boot(root),
        firmware_map=firmware_map(root),
        mem_available_bytes=kexec.mem_available(root),
        crash_area_bytes=kexec.crash_area_bytes(),
        initrd_bytes=kexec.initrd_bytes(kexec.running_release()),
        cpu=replace(cpu_facts(_text(root / "proc/cpuinfo")), models=libvirt.cpu_models),
        shared_mounts=shared_mounts(_text(root / "proc/self/mountinfo")),
        pool=pool_facts(config, running, root),
        memory_backing_dir=qemu_conf.memory_backing_dir(settings),
        save_image_format=qemu_conf.save_image_format(settings),
        state_dir=str(config.state_dir),
        state_dir_writable=os.access(_existing(config.state_dir), os.W_OK),
        state_dir_free_bytes=_free_bytes(_existing(config.state_dir)),
        volatile_paths=volatile_paths(root),
        agent_installed=os.access(root / AGENT, os.X_OK),
        agent_version=packing.packed_version(str(root / AGENT)),
        halfway=packages.halfway(),
        watchdogs=watchdogs.armed(),
        cluster=cluster(),
        locked_disks=encrypted.locked(["/", "/usr", "/boot", "/var", str(config.state_dir)], root),
        hook_installed=os.access(root / HOOK, os.X_OK),
        units_enabled=installation.enabled(root / UNITS),
        journal_open=journal_open,
        journal_error=journal_error,
        journal_generation=journal_generation,
        past_pauses=past_pauses(config.state_dir),
    )


def cluster() -> Tuple[str, ...]:
    """Which of the CLUSTER_UNITS are active."""
    try:
        # Its status tells whether all are; those that are not installed are none.
        states = command.run(["systemctl", "is-active", *CLUSTER_UNITS], good=range(5)).split()
    except CommandFailed:
        return ()
    return tuple(unit for unit, state in zip(CLUSTER_UNITS, states) if state == "active")


def firmware_map(root: Path = ROOT) -> Tuple[Region, ...]:
    """/sys/firmware/memmap by address, cut at the borders of NUMA nodes; a kernel's memmap= does not change it.

    A crash kernel, and a kernel that one jumped to, was given a map with the crash area only; its command line has the
    rest.
    """
    entries = [
        regions.firmware_entry(*(_text(entry / name) for name in ("start", "end", "type")))
        for entry in (root / "sys/firmware/memmap").glob("*")
    ]
    try:
        nodes = srat.memory_spans((root / "sys/firmware/acpi/tables/SRAT").read_bytes())
    except OSError:
        nodes = ()
    declared = cmdline.declared_ram(_text(root / "proc/cmdline"))
    if regions.total_ram(declared) > regions.total_ram(entries):
        entries = [*(entry for entry in entries if entry.kind != regions.RAM_KIND), *declared]
    return regions.split_by_node(sorted(entries, key=lambda entry: entry.start), nodes)


def _loads_no_kernel(sysctls: Path) -> bool:
    return _text(sysctls / "kexec_load_disabled") == "1" or _text(sysctls / "kexec_load_limit_reboot") == "0"


def lockdown(root: Path = ROOT) -> str:
    """``none``, ``integrity`` or ``confidentiality``; ``none`` for a kernel without lockdown."""
    chosen = re.search(r"\[(\w+)\]", _text(root / "sys/kernel/security/lockdown"))
    return chosen[1] if chosen else "none"


def secure_boot(root: Path = ROOT) -> bool:
    """Whether the firmware enforces signatures: an EFI variable is four bytes of attributes, then its value."""
    try:
        return (root / SECURE_BOOT).read_bytes()[4:5] == b"\1"
    except OSError:
        return False


def volatile_paths(root: Path = ROOT) -> Tuple[str, ...]:
    """Mount points of file systems in RAM that is lost in a jump."""
    lines = _text(root / "proc/self/mountinfo").splitlines()
    return tuple(line.split()[4] for line in lines if line.partition(" - ")[2].split()[0] in ("tmpfs", "ramfs"))


def cpu_facts(cpuinfo: str) -> CpuFacts:
    """From the text of /proc/cpuinfo; ``count`` is the number of logical processors."""
    first, *others = cpuinfo.split("\n\n")
    entries = dict(line.partition(":")[::2] for line in first.splitlines())
    known = {key.strip(): value.strip() for key, value in entries.items()}
    return CpuFacts(
        vendor=known.get("vendor_id", ""),
        name=known.get("model name", ""),
        flags=tuple(known.get("flags", "").split()),
        count=len(others) + 1 if known else 0,
    )


def shared_mounts(mountinfo: str) -> Tuple[Mount, ...]:
    """Network file systems among the lines of /proc/self/mountinfo (proc(5): mount point, " - ", type, source)."""
    parts = (line.partition(" - ") for line in mountinfo.splitlines())
    found = ((before.split(), after.split()) for before, _, after in parts)
    return tuple(
        Mount(before[4], after[1])
        for before, after in found
        if len(before) > 4 and len(after) > 1 and after[0] in SHARED_FILE_SYSTEMS
    )


def usable_cpu_models(capabilities: str) -> Tuple[str, ...]:
    """CPU models that libvirt's domain capabilities call usable on this host."""
    models = ET.fromstring(capabilities).findall("cpu/mode[@name='custom']/model[@usable='yes']")
    return tuple((model.text or "").strip() for model in models)


def pool_facts(config: Config, running: str, root: Path = ROOT) -> PoolFacts:
    """The pool as it is now; ``running`` is the running kernel's command line, from which its regions come."""
    reserved = cmdline.memmap_regions(running)
    if config.pool is None:
        return PoolFacts(regions=reserved)
    options = fsdax.mount_options(root, config.pool.mount_point)
    facts = PoolFacts(
        regions=_with_nodes(reserved, config.pool.regions),
        configured=config.pool.regions,
        kind=config.pool.kind,
        page_bytes=config.pool.page_bytes,
        mount_point=str(config.pool.mount_point),
        mounted=options is not None,
        dax="dax=always" in (options or "").split(","),
    )
    if options is None:
        return facts
    try:
        return replace(facts, **vars(open_pool(config).room()))
    except HoldfastError:  # a record of kept RAM is damaged: nothing is given away then, and the rest is still told
        return facts


def qemu_facts(binary: str = QEMU) -> QemuFacts:
    """The installed emulator; all empty when there is none."""
    if not os.access(binary, os.X_OK):
        return QemuFacts()
    version = re.search(r"version (\d+)\.(\d+)\.(\d+)", command.run([binary, "--version"]))
    return QemuFacts(
        version=(int(version[1]), int(version[2]), int(version[3])) if version else (0, 0, 0),
        binary=binary,
        machine_types=machine_types(command.run([binary, "-machine", "help"], timeout_s=120)),
    )


def machine_types(listing: str) -> Tuple[str, ...]:
    """Names from ``qemu -machine help``, aliases included: one per line, then its description."""
    lines = (line.split(maxsplit=1) for line in listing.splitlines()[1:])
    return tuple(words[0] for words in lines if words)


# --- a kernel ------------------------------------------------------------------------------------------------------


def kernel_facts(release: str, root: Path = ROOT) -> KernelFacts:
    """An installed kernel, ``release`` as ``uname -r`` names it; and which drivers of this host it has not."""
    image, initrd = root / f"boot/vmlinuz-{release}", root / f"boot/initrd.img-{release}"
    present = _modules(root, release)
    # The running kernel's has mounted the root file system already.
    asked = initrd.exists() and release != kexec.running_release()
    return KernelFacts(
        release=release,
        image=str(image),
        initrd=str(initrd),
        image_exists=image.exists(),
        initrd_exists=initrd.exists(),
        missing_drivers=tuple(name for name in needed_drivers(root) if name not in present),
        initrd_lacks=_initrd_lacks(initrd, root, release) if asked else (),
    )


def _initrd_lacks(initrd: Path, root: Path, release: str) -> Optional[Tuple[str, ...]]:
    """Modules for the root file system that are neither built into the kernel nor in its initrd; None: nobody knows."""
    try:
        listed = installation.initrd_files(initrd)
    except CommandFailed:
        return None
    modules = [line for line in listed if ".ko" in Path(line).name]
    built_in = _text(root / "lib/modules" / release / "modules.builtin").split("\n")
    there = {kmod.module_name(path) for path in (*modules, *built_in)}
    return tuple(name for name in root_modules(root) if name not in there)


def image_signed(image: Path) -> Optional[bool]:
    """Whether a kernel image carries a signature; None when it is no EFI image.

    The certificate table is the fifth entry of the PE optional header's data directory (PE/COFF specification).
    """
    try:
        with image.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return None
    start = int.from_bytes(head[0x3C:0x40], "little")
    if head[:2] != b"MZ" or head[start : start + 4] != b"PE\0\0":
        return None
    optional = start + 24
    directory = optional + (112 if head[optional : optional + 2] == b"\x0b\x02" else 96)
    return int.from_bytes(head[directory + 36 : directory + 40], "little") > 0


def needed_drivers(root: Path = ROOT) -> Tuple[str, ...]:
    """Modules that the next kernel must have: for the pool, for KVM on this processor, for disks and network here."""
    flags = _text(root / "proc/cpuinfo").split()
    virtualisation = [name for flag, names in KVM_DRIVERS.items() if flag in flags for name in names]
    soft = list(daxdev.MODULES) if cmdline.soft_regions(_text(root / "proc/cmdline")) else []
    joining = [pmem.JOINING_DRIVER] if any((root / "sys/class/block").glob("dm-*")) else []
    return tuple(
        dict.fromkeys([*POOL_DRIVERS, *soft, *joining, *virtualisation, *_bound_drivers(root), *_carrying(root)])
    )


def _carrying(root: Path) -> List[str]:
    """Modules loaded here that VMs hang on, and no device: for networks, storage, file systems.

    And whatever somebody had built for this kernel (taint ``O``): that is what a new kernel most often comes without.
    """
    rows = [line.split() for line in _text(root / "proc/modules").splitlines()]
    types = {line.partition(" - ")[2].split()[0] for line in _text(root / "proc/self/mountinfo").splitlines()}
    wanted = CARRYING_MODULES | types
    return [row[0] for row in rows if row[0] in wanted or (row[-1].startswith("(") and "O" in row[-1])]


def _bound_drivers(root: Path) -> List[str]:
    """Modules of the drivers that this host's disks and network cards hang on, buses included."""
    devices = [*(root / "sys/class/block").glob("*/device"), *(root / "sys/class/net").glob("*/device")]
    return _drivers_above(root, [path.resolve() for path in devices])


def root_modules(root: Path = ROOT) -> Tuple[str, ...]:
    """Modules that an initrd needs to mount the root file system: its type's, and those of the drivers of its disks."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[4] == "/":
            disks = _disks_of(root / "sys/dev/block" / left.split()[2])
            return tuple(sorted({right.split()[0], *_drivers_above(root, disks)}))
    return ()


def _disks_of(device: Path) -> List[Path]:
    """What a block device stands on in the end: itself, or what a mapped or striped one is made of."""
    if not device.exists():
        return []
    place = device.resolve()
    below = sorted((place / "slaves").glob("*"))
    return [disk for one in below for disk in _disks_of(one)] if below else [place]


def _drivers_above(root: Path, devices: Sequence[Path]) -> List[str]:
    """Modules of the drivers of these devices and of the buses that they are on.

    Those that can be modules: every PCI Express port is driven by pcieportdrv, a part of every kernel that no kernel's
    lists name (they have what carries a MODULE_LICENSE).
    """
    places = {above for device in devices for above in [device, *device.parents]}
    modules = {(place / "driver/module").resolve() for place in places if (place / "driver/module").exists()}
    listed = _modules(root, kexec.running_release())
    names = {module.name.replace("-", "_"): (module / "initstate").exists() for module in modules}
    return sorted(name for name, loaded in names.items() if loaded or name in listed)


def _modules(root: Path, release: str) -> FrozenSet[str]:
    """Names of what is built in or built as a module, with underscores, as /proc/modules writes them."""
    directory = root / "lib/modules" / release
    listed = [*_text(directory / "modules.builtin").split("\n"), *_text(directory / "modules.dep").split("\n")]
    names = (Path(line.partition(":")[0]).name for line in listed if line)
    return frozenset(name.partition(".ko")[0].replace("-", "_") for name in names)


# --- the VMs -------------------------------------------------------------------------------------------------------


def vm_facts(hypervisor: Hypervisor, config: Config) -> Tuple[VmFacts, ...]:
    """Every VM that libvirt knows on this host, by name. Raises VmError, BadInput."""
    return tuple(_vm(one, config) for one in sorted(hypervisor.domains(), key=lambda entry: entry.name))


def listed_vms(hypervisor: Hypervisor) -> Tuple[VmFacts, ...]:
    """Every VM by name, as far as a connection from elsewhere shows it that may only read. Raises VmError, BadInput."""
    domains = sorted(hypervisor.domains(), key=lambda entry: entry.name)
    return tuple(domain.vm_facts(one.xml(), state=one.state(), domain_id=one.id) for one in domains)


def _vm(one: Domain, config: Config) -> VmFacts:
    state, persistent, job = one.state(), one.persistent(), one.job()
    # To one that arrives libvirt lets nobody speak, and keeps whoever tries waiting for half a minute.
    answers = one.id >= 0 and job != ARRIVES
    facts = domain.vm_facts(
        one.xml(),
        state=state,
        domain_id=one.id,
        definition=one.stored_xml() if persistent else "",
        job=job,
        persistent=persistent,
        autostart=one.autostart(),
        ram_files_present=_ram_files_present(config, one),
        migration_blockers=_migration_blockers(one) if answers else (),
    )
    if answers:
        facts = replace(facts, disks=_sized(one, facts.disks), qemu_bytes=qemu_bytes(one.name), **_of_its_qemu(one))
    blocked = one.block_jobs(tuple(disk.target for disk in facts.disks if disk.source)) if not facts.job else ()
    return replace(facts, job=f"block job on {', '.join(blocked)}") if blocked else facts


def _ram_files_present(config: Config, one: Domain) -> Tuple[str, ...]:
    if config.pool is None or one.id < 0:
        return ()
    base = config.pool.backing_dir / "libvirt/qemu"
    candidates = (base / name for name in domain.live_directories(one.id, one.name))
    found = next((path for path in candidates if path.is_dir()), None)
    return tuple(sorted(path.name for path in found.iterdir())) if found else ()


def _migration_blockers(one: Domain) -> Tuple[str, ...]:
    """QEMU's own reasons (query-migrate)."""
    try:
        return tuple(monitor.execute(one, "query-migrate").get("blocked-reasons", ()))
    except VmError as error:
        return (f"QEMU does not say whether its state can be saved: {error.message}",)


def _sized(one: Domain, disks: Sequence[Disk]) -> Tuple[Disk, ...]:
    return tuple(replace(disk, size_bytes=one.disk_bytes(disk.target)) if disk.source else disk for disk in disks)


def _of_its_qemu(one: Domain) -> Dict[str, Any]:
    """What only the VM's own QEMU knows; nothing when it does not answer, which is a blocker of its own."""
    try:
        return {"qemu_version": monitor.qemu_version(one), "oversized_queues": monitor.oversized_queues(one)}
    except VmError:
        return {}


def qemu_bytes(name: str, root: Path = ROOT) -> Optional[int]:
    """Memory of a VM's QEMU that is in no file, so that it has to be found again wherever the VM is restored."""
    pid = _text(root / f"run/libvirt/qemu/{name}.pid")
    status = _text(root / f"proc/{pid}/status") if pid.isdecimal() else ""
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) << 10 if found else None


# --- small readings ------------------------------------------------------------------------------------------------


def _journal(state_dir: Path) -> Tuple[bool, str, str]:
    """Is a journal in flight, of which generation, and what is wrong with it?"""
    try:
        current = journal.open_journal(state_dir)
    except JournalError as error:
        return True, "", str(error)
    return current.state != "none", current.generation, ""


def past_pauses(state_dir: Path) -> Tuple[PastPause, ...]:
    """What the last live update that jumped and came to its end cost each VM; none when there was none.

    One that fell back jumped twice, and says nothing of the next one.
    """
    try:
        over = (one for one in journal.finished(state_dir) if one.state == "restored" and not one.view["fell_back"])
        last = next((one for one in over if one.view["only"] != ONLY_QEMU), None)
    except JournalError:  # of a run that is over; what is damaged in one that is not, _journal tells
        return ()
    # One that was saved to disk waited for its disk.
    kept = [vm for vm in (last.vms if last else ()) if vm.get("treatment") in (None, Treatment.IN_PLACE.value)]
    known = ((vm["uuid"], journal.pause_s(vm)) for vm in kept)
    return tuple(PastPause(uuid, round(seconds, 1)) for uuid, seconds in known if seconds is not None)


@dataclass(frozen=True)
class _Libvirt:
    """What libvirt says of itself and its host; all zeros and empty when it does not answer, for ``error``."""

    version: Tuple[int, int, int] = (0, 0, 0)
    networks: Tuple[Service, ...] = ()
    storage_pools: Tuple[Service, ...] = ()
    cpu_models: Tuple[str, ...] = ()
    error: str = ""


def _libvirt() -> _Libvirt:
    try:
        with connect() as hypervisor:
            models = usable_cpu_models(hypervisor.capabilities_xml())
            return _Libvirt(hypervisor.libvirt_version(), hypervisor.networks(), hypervisor.storage_pools(), models)
    except HoldfastError as exc:
        return _Libvirt(error=exc.message)


def _with_nodes(reserved: Iterable[Region], configured: Sequence[Region]) -> Tuple[Region, ...]:
    """The command line knows no NUMA nodes; the agent's configuration does."""
    nodes: Dict[int, int] = {region.start: region.node for region in configured}
    return tuple(replace(region, node=nodes.get(region.start, 0)) for region in reserved)


def _existing(path: Path) -> Path:
    """The directory itself, or the nearest one above it that is there."""
    return next(above for above in (path, *path.parents) if above.exists())


def _free_bytes(path: Path) -> int:
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


def _text(path: Path) -> str:
    """A file's text without white space around it; empty when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
