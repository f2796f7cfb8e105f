# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a host, its pool, the staged software and its VMs.

Frozen data only: gathering lives in ``collect``, judging in ``preflight``.
Sizes are bytes unless the name says otherwise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Optional, Tuple

from .config import FSDAX, SMALL_PAGE_BYTES
from .resources import RamFile, Region, Service, Watchdog

# virDomainSaveParams takes the format of the image since then (VIR_DOMAIN_SAVE_PARAM_IMAGE_FORMAT, libvirt's NEWS);
# before, save_image_format in qemu.conf is for all.
SAVE_FORMAT_ON_REQUEST = (11, 2, 0)


class RamBacking(str, Enum):
    """Where libvirt puts a VM's RAM."""

    ANONYMOUS = "anonymous"
    FILE_PRIVATE = "file-private"
    FILE_SHARED = "file-shared"
    MEMFD = "memfd"
    HUGEPAGES = "hugepages"


class Treatment(str, Enum):
    """What happens to one VM during its host's upgrade."""

    IN_PLACE = "in_place"
    LIVE = "live"
    COLD = "cold"
    RESTART = "restart"
    DEFER = "defer"


# Jobs of a VM (``VmFacts.job``) that are its own migration.
ARRIVES, LEAVES = "it arrives from another host", "it leaves for another host"
MOVING = (ARRIVES, LEAVES)


class Runs(Enum):
    """What one libvirt says of a VM. ``ARRIVING``: it has a QEMU that waits for the rest of the migration."""

    RUNS = "runs"
    STANDS = "stands still"
    ARRIVING = "is arriving"
    OFF = "is off"
    ABSENT = "is not there"
    SILENT = "libvirt does not answer"


@dataclass(frozen=True)
class PoolFacts:
    """The pool as it is now. ``regions`` come from the running kernel's command line, ``configured`` from the agent's.

    They differ from when the host is prepared anew until it is rebooted. ``kind`` is the agent's, too; ``page_bytes``:
    in a pool of devices every RAM block is a multiple of that.
    ``free_bytes`` are left for RAM, ``state_bytes`` for device states.
    """

    regions: Tuple[Region, ...] = ()
    mount_point: str = ""
    configured: Tuple[Region, ...] = ()
    kind: str = FSDAX
    page_bytes: int = SMALL_PAGE_BYTES
    mounted: bool = False
    dax: bool = False
    size_bytes: int = 0
    free_bytes: int = 0
    state_bytes: int = 0


@dataclass(frozen=True)
class KernelFacts:
    """An installed kernel: is what the jump and the pool need there?

    ``missing_drivers`` names modules that neither the kernel nor its modules directory has, ``initrd_lacks`` those that
    the root file system is mounted with and that its initrd has not; None when that cannot be listed.
    """

    release: str
    image: str = ""
    initrd: str = ""
    image_exists: bool = False
    initrd_exists: bool = False
    missing_drivers: Tuple[str, ...] = ()
    initrd_lacks: Optional[Tuple[str, ...]] = ()
    cmdline: str = ""


@dataclass(frozen=True)
class QemuFacts:
    """The installed emulator (the one that will restore), not the one a running VM was started with."""

    version: Tuple[int, int, int] = (0, 0, 0)
    binary: str = ""
    machine_types: Tuple[str, ...] = ()


@dataclass(frozen=True)
class CpuFacts:
    """The processor: ``vendor``, ``name`` and ``flags`` as /proc/cpuinfo has them.

    ``models`` are the CPU models that libvirt can give a VM here; empty when it does not say.
    """

    vendor: str = ""
    name: str = ""
    flags: Tuple[str, ...] = ()
    models: Tuple[str, ...] = ()
    count: int = 0


@dataclass(frozen=True)
class Mount:
    """A mounted file system that other hosts may have mounted too. ``source`` is like ``server:/export``."""

    path: str
    source: str


@dataclass(frozen=True)
class PastPause:
    """How long the last live update with a jump paused a VM of this host."""

    uuid: str
    seconds: float


@dataclass(frozen=True)
class HostFacts:
    """Everything preflight judges about a host, and what a plan for the fleet needs besides.

    What lies under ``volatile_paths`` (mount points of tmpfs and the like) does not survive a jump.
    ``shared_mounts`` are network file systems. ``libvirt_error``: why libvirt, or a VM of it, cannot be asked.
    ``memory_backing_dir`` and ``save_image_format`` are what qemu.conf has.
    ``crash_area_bytes`` are kept for a crash kernel, ``initrd_bytes`` has the running kernel's initrd.
    ``outdated``: files of ours that are not as this collection has them. ``halfway``: packages whose installation was
    cut off. ``watchdogs``: those in hardware that count now. ``locked_disks``: encrypted ones that it boots from, and
    that somebody opens. ``cluster``: units at work that have a host fenced which does not answer.
    """

    hostname: str = ""
    boot_id: str = ""
    kernel: str = ""
    architecture: str = "x86_64"
    cmdline: str = ""
    has_kvm: bool = False
    libvirt_version: Tuple[int, int, int] = (0, 0, 0)
    libvirt_active: bool = False
    libvirt_error: str = ""
    networks: Tuple[Service, ...] = ()
    storage_pools: Tuple[Service, ...] = ()
    qemu: QemuFacts = field(default_factory=QemuFacts)
    kexec_tool: bool = False
    kexec_load_disabled: bool = False
    lockdown: str = "none"
    secure_boot: bool = False
    image_signed: Optional[bool] = None
    firmware_map: Tuple[Region, ...] = ()
    mem_available_bytes: int = 0
    crash_area_bytes: int = 0
    initrd_bytes: int = 0
    cpu: CpuFacts = field(default_factory=CpuFacts)
    shared_mounts: Tuple[Mount, ...] = ()
    pool: PoolFacts = field(default_factory=PoolFacts)
    memory_backing_dir: str = ""
    save_image_format: str = ""
    state_dir: str = "/var/lib/holdfast"
    state_dir_writable: bool = True
    state_dir_free_bytes: int = 0
    volatile_paths: Tuple[str, ...] = ("/dev/shm", "/run")
    agent_installed: bool = False
    agent_version: str = ""
    outdated: Tuple[str, ...] = ()
    halfway: Tuple[str, ...] = ()
    watchdogs: Tuple[Watchdog, ...] = ()
    locked_disks: Tuple[str, ...] = ()
    cluster: Tuple[str, ...] = ()
    hook_installed: bool = False
    units_enabled: bool = False
    journal_open: bool = False
    journal_error: str = ""
    journal_generation: str = ""
    past_pauses: Tuple[PastPause, ...] = ()


@dataclass(frozen=True)
class Disk:
    """One disk of a VM. ``source`` is a path or a network address; ``size_bytes`` what a copy sends, 0 if unknown."""

    target: str
    source: str
    kind: str = "file"
    driver: str = "raw"
    readonly: bool = False
    size_bytes: int = 0


@dataclass(frozen=True)
class VmFacts:
    """One VM as libvirt describes it (running definition if it runs).

    ``unsafe_devices`` lose their state in a live update, ``watched_devices`` keep it but need attention;
    ``migration_blockers`` are QEMU's own words (``query-migrate``, ``blocked-reasons``). ``oversized_queues``: virtio
    devices whose queues are larger than their QEMU was told to make them. ``qemu_version``: of the QEMU it runs in.
    ``qemu_bytes``: that QEMU's own memory besides guest RAM, None when unknown. ``video_bytes``: of video memory.
    ``tags``: the operator's own words for it, kept in libvirt's metadata. ``writes_bytes_per_s``: how fast it writes to
    its RAM, None when that was not measured.
    """

    name: str
    uuid: str
    state: str = "shutoff"
    domain_id: int = -1
    ram_bytes: int = 0
    vcpus: int = 1
    machine: str = ""
    cpu_mode: str = ""
    cpu_model: str = ""
    features: Tuple[str, ...] = ()
    tsc_frequency: Optional[int] = None
    firmware: str = "bios"
    ram_backing: RamBacking = RamBacking.ANONYMOUS
    ram_discard: bool = False
    ram_files: Tuple[RamFile, ...] = ()
    ram_files_present: Tuple[str, ...] = ()
    memory_devices: Tuple[str, ...] = ()
    disks: Tuple[Disk, ...] = ()
    bridges: Tuple[str, ...] = ()
    networks: Tuple[str, ...] = ()
    hostdevs: Tuple[str, ...] = ()
    filesystems: Tuple[str, ...] = ()
    launch_security: str = ""
    unsafe_devices: Tuple[str, ...] = ()
    watched_devices: Tuple[str, ...] = ()
    migration_blockers: Tuple[str, ...] = ()
    oversized_queues: Tuple[str, ...] = ()
    video_bytes: int = 0
    qemu_bytes: Optional[int] = None
    qemu_version: str = ""
    emulator: str = ""
    title: str = ""
    tags: Tuple[str, ...] = ()
    job: str = ""
    persistent: bool = True
    autostart: bool = False
    definition_converted: bool = False
    writes_bytes_per_s: Optional[int] = None

    @property
    def running(self) -> bool:
        return self.state in ("running", "paused")


@dataclass(frozen=True)
class Blocker:
    """One reason why an upgrade cannot go on. ``vm`` is empty when the host itself is the matter."""

    code: str
    message: str
    remedy: str
    vm: str = ""


@dataclass(frozen=True)
class Verdict:
    """All blockers at once, and what is merely worth knowing."""

    blockers: Tuple[Blocker, ...] = ()
    warnings: Tuple[Blocker, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.blockers


def plain(value: object) -> object:
    """Dataclass to JSON-ready dictionaries and lists; enums become their values."""

    def convert(item: object) -> object:
        if isinstance(item, Enum):
            return item.value
        if isinstance(item, dict):
            return {key: convert(entry) for key, entry in item.items()}
        if isinstance(item, (list, tuple)):
            return [convert(entry) for entry in item]
        return item

    return convert(asdict(value))  # type: ignore[call-overload]
