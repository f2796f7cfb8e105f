# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pool kind ``devdax``: soft-reserved RAM, of which every RAM block of a VM is a DAX device of its own.

Nothing is written about a VM's RAM before its device is made, and that is when it is restored: a host of any size is
attached at once. What must be read after the jump, the vault, is in a small part of the reserved RAM of the kind
``fsdax``, and is gone when that is.

<mount point>/dax/libvirt/qemu/<id>-<name>/pc.ram     a node of the device that is the RAM of a running VM
<mount point>/holdfast/<uuid>/ram/pc.ram              of which physical ranges it is, for as long as it is kept

libvirt gives QEMU the path of a file, and lets it open that and no other VM's. QEMU takes whatever is there. A DAX
device is mapped at borders of its own pages only, and QEMU does so for files on hugetlbfs: so that is what the nodes
are on. No huge page is ever taken from it. Its page size is that of all devices.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

from . import allotment, durable
from .cmdline import SOFT_OPTIONS, format_memmap
from .command import run
from .config import DEVDAX, FSDAX, SMALL_PAGE_BYTES, PoolConfig
from .daxdev import DaxBus, Device, Ranges
from .errors import HoldfastError, VmError
from .fsdax import FsdaxPool, check_ram, check_reserved, live_directory, make_places, mount_options
from .pool import Content
from .regions import size_text
from .resources import SOFT_KIND, KeptRam, RamFile, Region, Room

MOUNT_OPTIONS = "mode=0711,nosuid,noexec"
# In one region; and regions that are none of the pool's.
MOST_DEVICES = 128
OTHER_REGIONS = 3
UNREADABLE = (
    "no VM is restored from it, and none gets RAM while it is there: give up the VM of this uuid (holdfast-agent)"
)
# Cleared by several threads at once: RAM is faster than one CPU.
CLEARING_BYTES = 64 << 20
CLEARING_THREADS = 8


@dataclass(frozen=True)
class DevdaxPool:
    """Soft-reserved RAM, and a small file system beside it. ``root`` is where /proc, /sys and /dev are."""

    config: PoolConfig
    state_dir: Path
    root: Path = Path("/")

    @property
    def _soft(self) -> Tuple[Region, ...]:
        return tuple(region for region in self.config.regions if region.kind == SOFT_KIND)

    @property
    def _vault(self) -> FsdaxPool:
        plain = tuple(region for region in self.config.regions if region.kind != SOFT_KIND)
        return FsdaxPool(replace(self.config, kind=FSDAX, regions=plain), self.state_dir, self.root)

    @property
    def _bus(self) -> DaxBus:
        return DaxBus(self.root)

    def reserve(self) -> Tuple[str, ...]:
        """The kernel arguments."""
        return (format_memmap(*self.config.regions), *SOFT_OPTIONS)

    def devices(self) -> Tuple[str, ...]:
        """By all the names that the kernel may give them. AppArmor has QEMU open its own VM's only."""
        # The vault's memory counts as one, and others may be there as well (CXL, high-bandwidth memory).
        regions = range(len(self._soft) + OTHER_REGIONS)
        return tuple(f"/dev/dax{region}.{number}" for region in regions for number in range(1, MOST_DEVICES + 1))

    @property
    def mounted(self) -> bool:
        """Whether the vault and the place for devices are both there."""
        return self._vault.mounted and mount_options(self.root, self.config.backing_dir) is not None

    def attach(self, content: Content) -> None:
        """Mount the vault, on a new file system unless its content is trusted, and a place for devices.

        No device is made: those of suspended VMs are when they are needed. Raises HoldfastError.
        """
        if self.mounted:
            return
        check_reserved(self._soft, self.root)
        if content is Content.FRESH:
            check_ram(self._soft, self.root)
        self._vault.attach(content)
        self._bus.ready(self._soft)
        where, page = self.config.backing_dir, self._page_to_mount() >> 20
        where.mkdir(exist_ok=True)
        run(["mount", "-t", "hugetlbfs", "-o", f"pagesize={page}M,{MOUNT_OPTIONS}", "holdfast", str(where)])
        make_places(where)

    def commit(self) -> None:
        """The vault's; RAM is in place already."""
        self._vault.commit()

    def mount_point(self) -> Path:
        return self.config.mount_point

    def vault(self) -> Path:
        return self.config.vault

    def vault_of(self, uuid: str) -> Path:
        return self._vault.vault_of(uuid)

    def room(self) -> Room:
        """RAM that is neither kept for a VM nor used by one; device states have the vault for themselves."""
        used = [one for device in self._used() for one in device.ranges] + self._all_kept()
        page = page_bytes(self.config.backing_dir)
        left = sum(size for region in self._soft for _, size in allotment.free(region, used, page))
        return Room(sum(region.size for region in self._soft), left, self._vault.room().state_bytes)

    def ram_of(self, uuid: str) -> Tuple[KeptRam, ...]:
        """Kept RAM by name, each block as a device. Raises HoldfastError when one cannot be made."""
        with self._turn():
            found = [(name, self._device_of(ranges)) for name, ranges in self._kept(uuid).items()]
        return tuple(
            KeptRam(name, self._bus.node(device.name), device.size_bytes, device.ranges[0][0]) for name, device in found
        )

    def reserve_vm(self, domain_id: int, name: str, files: Sequence[RamFile]) -> None:
        """Devices for a VM that starts, which read as zeros: what an earlier VM had in that RAM is nobody's business.

        Raises VmError.
        """
        live = self._live(domain_id, name)
        with self._turn():
            self._remove_unused()
            # The node is what keeps a device from being taken for one that nobody uses.
            made = [self._put_node(live / file.name, self._allot(file, name), name) for file in files]
        for device in made:
            _clear(self._bus.node(device.name), device.size_bytes, name)

    def keep(self, uuid: str, domain_id: int, name: str) -> Tuple[RamFile, ...]:
        """Put on record in the vault which RAM a running VM has. Raises VmError when it has none of the pool's."""
        live = self._live(domain_id, name)
        shutil.rmtree(self.vault_of(uuid), ignore_errors=True)
        self.vault_of(uuid).mkdir(mode=0o700)
        devices = {device.number: device for device in self._bus.devices()}
        kept = []
        for path in sorted(live.iterdir()):
            facts = path.lstat()
            if not stat.S_ISCHR(facts.st_mode) or facts.st_rdev not in devices:
                raise VmError(f"VM {name}: {path} is no DAX device", "shut the VM down, and find out who put it there")
            device = devices[facts.st_rdev]
            durable.write_text(self.vault_of(uuid) / "ram" / path.name, json.dumps(device.ranges))
            kept.append(RamFile(path.name, device.size_bytes))
        if not kept:
            raise VmError(f"VM {name} has no RAM in {live}", "its RAM is not in the pool; see preflight")
        return tuple(kept)

    def place(self, uuid: str, domain_id: int, name: str) -> None:
        """Put nodes of the kept RAM into the directory that libvirt made for this start. Raises VmError."""
        live, kept = self._live(domain_id, name), self._kept(uuid)
        if not kept:
            raise VmError(f"VM {name} has no RAM kept in the pool", "see holdfast-agent status")
        with self._turn():
            for ram_name, ranges in kept.items():
                self._put_node(live / ram_name, self._device_of(ranges), name)

    def check_placed(self, uuid: str, domain_id: int, name: str) -> None:
        """Compare what a QEMU was started with with what is kept, by the devices' numbers. Raises VmError."""
        live = self._live(domain_id, name)
        kept = {ram_name: self._found(ranges) for ram_name, ranges in self._kept(uuid).items()}
        lacking = [one for one, device in kept.items() if device is None or not _is_node(live / one, device.number)]
        if lacking or not kept:
            raise VmError(
                f"VM {name}: its QEMU has not got the RAM that is kept for it: {', '.join(lacking) or 'none is kept'}",
                "restart libvirt's daemon, so that it finds its hook, then run holdfast-agent recover",
            )

    def release(self, uuid: str) -> None:
        """Take the record away; a running QEMU keeps its device, and one of nobody is removed at the next start."""
        self._vault.release(uuid)

    # --- devices ---------------------------------------------------------------------------------------------------

    def _allot(self, file: RamFile, name: str) -> Device:
        """A new device for a RAM block. Raises VmError."""
        page = page_bytes(self.config.backing_dir)
        if file.size_bytes % page:
            raise VmError(
                f"VM {name} cannot start: its RAM, {file.size_bytes} bytes, is no multiple of {size_text(page)}",
                "change its <memory>",
            )
        taken = [one for device in self._bus.devices() for one in device.ranges] + self._all_kept()
        chosen = allotment.choose(self._soft, taken, file.size_bytes, file.nodes, page)
        if chosen is None:
            nodes = f" on NUMA node {', '.join(map(str, file.nodes))}" if file.nodes else " on one NUMA node"
            there = [region for region in self._soft if not file.nodes or region.node in file.nodes]
            left = max((sum(size for _, size in allotment.free(region, taken, page)) for region in there), default=0)
            raise VmError(
                f"VM {name} cannot start: it needs {size_text(file.size_bytes)} of RAM{nodes}, the pool has "
                f"{size_text(left)} free there",
                "stop another VM, or reserve a larger pool",
            )
        try:
            return self._bus.make(*chosen, page)
        except HoldfastError as exc:
            raise VmError(f"VM {name} cannot start: {exc.message}", exc.hint) from exc

    def _device_of(self, ranges: Ranges) -> Device:
        """The device of just these ranges, made if need be. Raises HoldfastError."""
        found = self._found(ranges)
        if found:
            return found
        region = self._region_of(ranges)
        if region is None:
            raise HoldfastError(
                f"kept RAM at {ranges[0][0]:#x} is in no region of the pool", "nothing is restored from it"
            )
        return self._bus.make(region, ranges, page_bytes(self.config.backing_dir))

    def _found(self, ranges: Ranges) -> Device | None:
        return next((device for device in self._bus.devices() if device.ranges == ranges), None)

    def _put_node(self, path: Path, device: Device, name: str) -> Device:
        """A node for QEMU, owned like its directory, which is libvirt's for this VM alone."""
        try:
            owner = path.parent.stat()
            os.mknod(path, stat.S_IFCHR | 0o600, device.number)
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        except OSError as exc:
            raise VmError(f"VM {name} cannot start: no RAM at {path}: {exc.strerror}") from exc
        return device

    def _remove_unused(self) -> None:
        """Take away devices of VMs that have ended: neither kept, nor in a directory of a VM, nor open."""
        used = {device.name for device in self._used()}
        kept = set(self._all_kept())
        for device in self._bus.devices():
            if device.name not in used and not kept & set(device.ranges) and self._region_of(device.ranges):
                self._bus.remove(device.name)

    def _used(self) -> List[Device]:
        """Devices that have a node in a VM's directory, or that a process has open: libvirt takes the node first."""
        nodes = {path.lstat().st_rdev for path in (self.config.backing_dir / "libvirt/qemu").glob("*/*")}
        devices = self._bus.devices()
        idle = [device for device in devices if device.number not in nodes]
        numbers = nodes | (open_numbers(self.root) if idle else set())
        return [device for device in devices if device.number in numbers]

    def _region_of(self, ranges: Ranges) -> Region | None:
        """The region of the pool that a device of these ranges is of; None for one of somebody else's."""
        return next((region for region in self._soft if region.start <= ranges[0][0] < region.end), None)

    # --- what is kept ----------------------------------------------------------------------------------------------

    def _kept(self, uuid: str) -> Dict[str, Ranges]:
        """Ranges by name of the RAM block. Raises HoldfastError for a record that cannot be read."""
        return {path.name: _read_ranges(path) for path in sorted((self.vault_of(uuid) / "ram").glob("[!.]*"))}

    def _all_kept(self) -> List[Tuple[int, int]]:
        return [one for path in self.config.vault.glob("*/ram/[!.]*") for one in _read_ranges(path)]

    def _page_to_mount(self) -> int:
        """The page size that is asked for; the small one when RAM is kept, or a kernel runs, that has no such pages."""
        wanted = self.config.page_bytes
        try:
            fits = not any(start % wanted or size % wanted for start, size in self._all_kept())
        except HoldfastError:  # whose RAM it is will be said when it is restored
            fits = False
        return wanted if fits and has_pages(wanted, self.root) else SMALL_PAGE_BYTES

    def _live(self, domain_id: int, name: str) -> Path:
        if not self.mounted:
            raise VmError(
                f"VM {name}: the pool is not attached at {self.config.backing_dir}",
                "a pool of another kind needs a reboot first; else see why: systemctl status holdfast-pool.service",
            )
        return live_directory(self.config.backing_dir, domain_id, name)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One at a time makes and removes devices, of all processes: libvirt calls its hook for each VM that starts."""
        handle = os.open(self.config.vault, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def page_bytes(backing_dir: Path) -> int:
    """The page size that QEMU sees there, and that every device therefore must have."""
    return os.statvfs(backing_dir).f_bsize


def has_pages(size_bytes: int, root: Path = Path("/")) -> bool:
    """Whether this kernel has pages of this size, on this processor."""
    return (root / f"sys/kernel/mm/hugepages/hugepages-{size_bytes >> 10}kB").exists()


def pages_differ(config: PoolConfig) -> bool:
    """Whether the pool is attached with pages of another size than it is to have."""
    there = mount_options(Path("/"), config.backing_dir) is not None
    return config.kind == DEVDAX and there and page_bytes(config.backing_dir) != config.page_bytes


def open_numbers(root: Path) -> set[int]:
    """Numbers of the DAX devices that any process has open."""
    found = set()
    for path in (root / "proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it has ended, or closed it
            # By its name in our directory or in /dev, gone or not. To look at anything else may take for ever, on a
            # server that does not answer.
            if "/dax" not in os.readlink(path):
                continue
            facts = path.stat()
            if stat.S_ISCHR(facts.st_mode):
                found.add(facts.st_rdev)
    return found


def _read_ranges(path: Path) -> Ranges:
    try:
        ranges = tuple((int(start), int(size)) for start, size in json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as exc:
        raise HoldfastError(f"{path} does not say which RAM is kept: {exc}", UNREADABLE) from exc
    if not ranges:
        raise HoldfastError(f"{path} names no RAM", UNREADABLE)
    return ranges


def _is_node(path: Path, number: int) -> bool:
    try:
        facts = path.lstat()
    except OSError:
        return False
    return stat.S_ISCHR(facts.st_mode) and facts.st_rdev == number


def _clear(node: Path, size_bytes: int, name: str) -> None:
    """Fill a device with zeros. Raises VmError."""
    try:
        with node.open("r+b", buffering=0) as device, mmap.mmap(device.fileno(), size_bytes) as memory:
            first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            with ThreadPoolExecutor(min(CLEARING_THREADS, os.cpu_count() or 1)) as threads:
                # ctypes lets other threads run meanwhile.
                list(
                    threads.map(
                        lambda offset: ctypes.memset(first + offset, 0, min(CLEARING_BYTES, size_bytes - offset)),
                        range(0, size_bytes, CLEARING_BYTES),
                    )
                )
    except (OSError, ValueError, BufferError) as exc:
        raise VmError(f"VM {name} cannot start: its RAM {node} cannot be cleared: {exc}") from exc
