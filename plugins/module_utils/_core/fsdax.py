# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pool kind ``fsdax``: reserved RAM as a DAX file system, in which libvirt keeps VM RAM as ordinary files.

The kernel makes a block device of the reserved RAM on every boot (pmem). A page of a file on an ext4 mounted with
``dax=always`` *is* a page of that RAM, and stays in its place through the jump. RAM of several NUMA nodes is joined to
one device, and a VM that is bound to a node gets its files there (placement).

<mount point>/libvirt/qemu/<id>-<name>/pc.ram     RAM of a running VM; libvirt deletes the name at its end
<mount point>/holdfast/<uuid>/ram/pc.ram          the same file, by a second name that outlives the VM's QEMU
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Sequence, Tuple

from . import durable, pmem
from .cmdline import format_memmap, is_crash_kernel, memmap_regions
from .command import run
from .config import PoolConfig
from .errors import CommandFailed, HoldfastError, VmError
from .journal import holds_suspended
from .permit import checked
from .pool import Content
from .regions import UNIT_BYTES, known_problems, size_text
from .resources import KeptRam, RamFile, Region, Room

# Blocks in groups of 2 MiB, without which huge pages are impossible (so far QEMU maps at 4 KiB borders all the same);
# few inodes, all initialised at once, so that nothing writes to the file system behind our back; none kept back for
# root, nor for growth. It keeps a small journal: that holds names only, never RAM, and a kernel that panics leaves the
# pool dirty for the one that comes after it.
MKFS = "mkfs.ext4 -q -F -b 4096 -m 0 -N 8192 -J size=4 -O ^resize_inode -L holdfast"
MKFS_EXTENDED = "stride=512,stripe_width=512,lazy_itable_init=0,lazy_journal_init=0,nodiscard"
# At 4 KiB of each region the kernel looks for an info block, which makes another kind of device of it (nd_pfn_probe,
# nd_btt_probe). So no guest's RAM may be there. The first region has ext4's own blocks in that place; of each other one
# the file system leaves out as much as keeps what follows on a border of 2 MiB.
INFO_BLOCKS_END = 8192
BLOCK_BYTES = 4096
# Lists of bad blocks have 32 bits for each.
MOST_BLOCKS = 1 << 32
# e2fsck: nothing was wrong, and all that was wrong is right now.
CORRECTED = (0, 1)
MOUNT_OPTIONS = "dax=always,noatime,nosuid,nodev"

# Exists while a VM's RAM is being placed.
BALLAST = "ballast"
COMMITTED = "committed"
# QEMU runs as an unprivileged user and must pass through; what is in a directory is nobody else's business.
PASS_THROUGH = 0o711


@dataclass(frozen=True)
class FsdaxPool:
    """Reserved RAM, one ext4 on it. ``root`` is where /proc, /sys and /dev are (tests put another)."""

    config: PoolConfig
    state_dir: Path
    root: Path = Path("/")

    def reserve(self) -> Tuple[str, ...]:
        """The kernel arguments.

        ``nokaslr``: the next kernel must not choose a place inside the pool (by itself it avoids four regions only).
        """
        return (format_memmap(*self.config.regions), "nokaslr")

    def devices(self) -> Tuple[str, ...]:
        """None: RAM is in files."""
        return ()

    @property
    def mounted(self) -> bool:
        """Whether a file system with DAX is mounted at the pool's mount point."""
        found = mount_options(self.root, self.config.mount_point)
        return found is not None and "dax=always" in found.split(",")

    def attach(self, content: Content) -> None:
        """Mount the pool, on a new file system unless its content is trusted. A mounted pool is left as it is.

        Raises HoldfastError when the running kernel reserved nothing, there is no device of just that, or, for a new
        file system, there is no RAM, or the journal holds a suspended VM whose RAM it would destroy.
        """
        if self.mounted:
            return
        check_reserved(self.config.regions, self.root)
        if content is Content.FRESH:
            check_ram(self.config.regions, self.root)
        device = pmem.device_of(self.config.regions, self.root)
        if content is Content.FRESH:
            self._format(device)
        self._mount(device)
        self._make_places()

    def commit(self) -> None:
        """Complete the file system's journal: RAM and state files are in place already, their names are from here on.

        No unmount, which would look at every page that was ever touched (filesystems). The next kernel finds a file
        system in use, as a crash kernel does, and replays its journal. Raises HoldfastError.
        """
        if self.mounted:
            # ext4 commits all that was changed before along with a file that is synced.
            durable.write_text(self.config.vault / COMMITTED, "")

    def mount_point(self) -> Path:
        return self.config.mount_point

    def vault(self) -> Path:
        return self.config.vault

    def vault_of(self, uuid: str) -> Path:
        return self.config.vault / checked(uuid)

    def ram_of(self, uuid: str) -> Tuple[KeptRam, ...]:
        """Kept RAM files by name."""
        return tuple(kept_file(path) for path in self._kept(uuid))

    def room(self) -> Room:
        """Of its file system, in which RAM and device states are."""
        space = os.statvfs(self.config.mount_point)
        free = space.f_bavail * space.f_frsize
        return Room(space.f_blocks * space.f_frsize, free, free)

    def reserve_vm(self, domain_id: int, name: str, files: Sequence[RamFile]) -> None:
        """Allocate the RAM files of a VM that starts, so that the pool cannot run out under a running guest.

        For libvirt's ``start begin`` hook. QEMU takes an existing file of the right size as it is. Raises VmError.
        """
        live = self._live(domain_id, name)
        for file in files:
            with self._on_nodes(file.nodes, name):
                _allocate(live / file.name, file.size_bytes, name)

    def keep(self, uuid: str, domain_id: int, name: str) -> Tuple[RamFile, ...]:
        """Link the RAM files of a running VM under its uuid. Raises VmError when it has none on the pool."""
        live, kept = self._live(domain_id, name), self.vault_of(uuid) / "ram"
        shutil.rmtree(self.vault_of(uuid), ignore_errors=True)
        self.vault_of(uuid).mkdir(mode=0o700)
        kept.mkdir(mode=0o700)
        for path in sorted(live.iterdir()):
            _keep_file(path, kept / path.name, name)
        if not self._kept(uuid):
            raise VmError(f"VM {name} has no RAM file in {live}", "its RAM is not in the pool; see preflight")
        return tuple(RamFile(ram.name, ram.size_bytes) for ram in self.ram_of(uuid))

    def place(self, uuid: str, domain_id: int, name: str) -> None:
        """Link the kept RAM into the directory that libvirt made for this start. Raises VmError.

        libvirt owns and labels that directory before its ``start begin`` hook. One that somebody else makes earlier is
        neither owned nor labelled, and AppArmor then denies the file.
        """
        kept, live = self._kept(uuid), self._live(domain_id, name)
        if not kept:
            raise VmError(f"VM {name} has no RAM kept in the pool", "see holdfast-agent status")
        for path in kept:
            os.link(path, live / path.name)

    def check_placed(self, uuid: str, domain_id: int, name: str) -> None:
        """Compare the files that a QEMU was started with, by their inodes, with those that are kept. Raises VmError.

        libvirt's daemon looks whether there are hooks when it starts, and never again. Without ours QEMU makes files of
        its own, and would take the guest's state over zeros.
        """
        kept, live = self._kept(uuid), self._live(domain_id, name)
        lacking = [path.name for path in kept if not _is_same_file(path, live / path.name)]
        if lacking or not kept:
            raise VmError(
                f"VM {name}: its QEMU has not got the RAM that is kept for it: {', '.join(lacking) or 'none is kept'}",
                "restart libvirt's daemon, so that it finds its hook, then run holdfast-agent recover",
            )

    def release(self, uuid: str) -> None:
        """Take the kept names away; a running QEMU keeps its file by libvirt's name."""
        shutil.rmtree(self.vault_of(uuid), ignore_errors=True)

    def _kept(self, uuid: str) -> Tuple[Path, ...]:
        return tuple(sorted((self.vault_of(uuid) / "ram").glob("*")))

    @contextmanager
    def _on_nodes(self, nodes: Sequence[int], name: str) -> Iterator[None]:
        """Whatever is allocated meanwhile lies on these NUMA nodes; anywhere, when none are named. Raises VmError."""
        there = {region.node for region in self.config.regions}
        if not nodes or there <= set(nodes):
            yield
            return
        # Early at boot nothing is placed, and nobody waits for its imports.
        from . import placement

        wanted = placement.spans(self.config.regions, nodes)
        if not wanted:
            bound, has = (", ".join(str(node) for node in sorted(some)) for some in (nodes, there))
            raise VmError(
                f"VM {name} cannot start: its memory is bound to NUMA node {bound}, and the pool has RAM of {has} only",
                "change its <numatune>, or prepare the host with a pool on that node as well",
            )
        try:
            with placement.only_within(wanted, self.config.vault / BALLAST):
                yield
        except OSError as exc:
            raise VmError(f"VM {name} cannot start: no RAM on its NUMA nodes can be chosen: {exc.strerror}") from exc

    def _live(self, domain_id: int, name: str) -> Path:
        """libvirt's directory for the RAM of a running VM.

        An unmounted pool is found here, in the hook, and not by an immutable mount point: libvirt makes its directory
        when its daemon starts, and a failure there takes its whole QEMU driver down, VMs outside the pool included.
        """
        if not self.mounted:
            raise VmError(
                f"VM {name}: the pool is not mounted at {self.config.mount_point}",
                "see why: systemctl status holdfast-pool.service",
            )
        return live_directory(self.config.mount_point, domain_id, name)

    def _format(self, device: str) -> None:
        if holds_suspended(self.state_dir):
            raise HoldfastError(
                "the journal holds a suspended VM whose RAM is in the pool: it is not formatted",
                "see holdfast-agent status",
            )
        self._wipe_info_blocks(device)
        left_out = [block for start in self._starts()[1:] for block in _border(start)]
        if not left_out:
            run([*MKFS.split(), "-E", MKFS_EXTENDED, device], timeout_s=600)
            return
        blocks = "".join(f"{block}\n" for block in left_out)
        run([*MKFS.split(), "-E", MKFS_EXTENDED, "-l", "/proc/self/fd/0", device], stdin=blocks, timeout_s=600)
        # mkfs counts blocks as free that it left out at the start of a group (handle_bad_blocks), and ext4 would give
        # up the whole group.
        run(["e2fsck", "-f", "-y", device], good=CORRECTED, timeout_s=600)

    def _wipe_info_blocks(self, device: str) -> None:
        """Raises HoldfastError."""
        try:
            handle = os.open(self.root / device.lstrip("/"), os.O_WRONLY)
            try:
                for start in self._starts():
                    os.pwrite(handle, bytes(INFO_BLOCKS_END), start)
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as exc:
            raise HoldfastError(f"the pool's device {device} cannot be written: {exc.strerror}") from exc

    def _starts(self) -> Tuple[int, ...]:
        """Where each region begins on the pool's device (bytes)."""
        sizes = [region.size for region in self.config.regions]
        return tuple(sum(sizes[:number]) for number in range(len(sizes)))

    def _mount(self, device: str) -> None:
        where = self.config.mount_point
        where.mkdir(parents=True, exist_ok=True, mode=PASS_THROUGH)
        try:
            run(["mount", "-t", "ext4", "-o", MOUNT_OPTIONS, device, str(where)], timeout_s=600)
        except CommandFailed as exc:
            raise HoldfastError(f"the pool cannot be mounted: {exc.message}", "see the kernel log") from exc

    def _make_places(self) -> None:
        make_places(self.config.mount_point)
        self.config.vault.mkdir(exist_ok=True, mode=0o700)
        (self.config.vault / BALLAST).unlink(missing_ok=True)


def check_reserved(regions: Sequence[Region], root: Path) -> None:
    """Raise HoldfastError unless the running kernel was told to keep these."""
    running = memmap_regions((root / "proc/cmdline").read_text())
    found = {(region.start, region.size) for region in running}
    if not {(region.start, region.size) for region in regions} <= found:
        raise HoldfastError(
            f"the running kernel's command line lacks {format_memmap(*regions)}: nothing is reserved",
            "run the prepare playbook, and reboot the host when it says so",
        )


def check_ram(regions: Sequence[Region], root: Path) -> None:
    """Raise HoldfastError when the firmware has no RAM where the pool is, after a change of hardware or firmware.

    The kernel believes memmap=, and makes a device over whatever is there. A crash kernel's map is of its own area.
    """
    if is_crash_kernel((root / "proc/cmdline").read_text()):
        return
    # A jump brings its RAM along, and does not wait for these imports.
    from . import collect

    try:
        firmware = collect.firmware_map(root)
    except (HoldfastError, ValueError):  # unreadable: it says nothing
        return
    found = known_problems(firmware, regions)
    if found:
        raise HoldfastError(
            "the pool is not made where this host has no RAM for it: " + "; ".join(found),
            "run the prepare playbook, which chooses the pool's regions anew, and reboot the host",
        )


def live_directory(base: Path, domain_id: int, name: str) -> Path:
    """libvirt's directory for the RAM of a running VM, below ``memory_backing_dir``. Raises VmError."""
    # Not needed early at boot, where its XML parsers would stand before the restore.
    from .domain import live_directories

    places = base / "libvirt/qemu"
    for candidate in live_directories(domain_id, name):
        if (places / candidate).is_dir():
            return places / candidate
    raise VmError(f"VM {name} has no RAM in the pool: no directory {places}/{domain_id}-…", "see preflight")


def make_places(base: Path) -> None:
    """libvirt would make its directories closed to QEMU's unprivileged user; ours are open for passing through."""
    for path in (base, base / "libvirt", base / "libvirt/qemu"):
        path.mkdir(exist_ok=True)
        path.chmod(PASS_THROUGH)
    # No QEMU runs on a pool that has just been mounted. Names left by an earlier boot would be in the way: libvirt
    # takes an existing directory as it is, unlabelled, when a domain id comes again.
    for stale in (base / "libvirt/qemu").iterdir():
        shutil.rmtree(stale)


def mount_options(root: Path, mount_point: Path) -> Optional[str]:
    """Options of what is mounted there, of the mount and of its file system, comma separated; None when nothing is."""
    found = None
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[4] == str(mount_point):
            # The last one is on top.
            found = f"{left.split()[5]},{right.split()[2]}"
    return found


def _border(start: int) -> Sequence[int]:
    """The blocks that the file system leaves out at the beginning of a region."""
    first, end = start // BLOCK_BYTES, (start + UNIT_BYTES) // BLOCK_BYTES
    return range(first, end) if end <= MOST_BLOCKS else ()


def _keep_file(path: Path, kept: Path, name: str) -> None:
    """A second name for a RAM file. Raises VmError for anything else.

    The directory belongs to QEMU's user. What is linked is looked at by its new name, which nobody but root can change:
    a symbolic link would be followed by root, a pipe would never let go of who opens it.
    """
    try:
        os.link(path, kept, follow_symlinks=False)
        plain = stat.S_ISREG(kept.lstat().st_mode)
    except PermissionError:  # a directory cannot be linked
        plain = False
    if not plain:
        kept.unlink(missing_ok=True)
        raise VmError(f"VM {name}: {path} is no plain file", "shut the VM down, and find out who put it there")


def kept_file(path: Path) -> KeptRam:
    """A file that holds RAM."""
    facts = path.stat()
    return KeptRam(path.name, path, facts.st_size, facts.st_ino)


def _is_same_file(kept: Path, live: Path) -> bool:
    """Whether the second name is one of the first file, and no symbolic link: its directory is that of QEMU's user."""
    try:
        return os.path.samestat(kept.lstat(), live.lstat())
    except OSError:
        return False


def _allocate(path: Path, size_bytes: int, name: str) -> None:
    """Room for one RAM file, owned like its directory. It reads as zeros; no page is touched."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise VmError(f"VM {name} cannot start: no RAM file {path}: {exc.strerror}") from exc
    try:
        owner = path.parent.stat()
        os.fchown(handle, owner.st_uid, owner.st_gid)
        os.posix_fallocate(handle, 0, size_bytes)
    except OSError as exc:
        path.unlink()
        if exc.errno != errno.ENOSPC:
            raise VmError(f"VM {name} cannot start: no RAM file {path}: {exc.strerror}") from exc
        space = os.statvfs(path.parent)
        left = size_text(space.f_bavail * space.f_frsize)
        raise VmError(
            f"VM {name} cannot start: it needs {size_text(size_bytes)} of RAM, the pool has {left} free",
            "stop another VM, or reserve a larger pool",
        ) from exc
    finally:
        os.close(handle)
