# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's file systems, and how what is unwritten in them reaches their disks: in all of them but the pool.

In the pool nothing is unwritten, since its files are the RAM itself. But the kernel keeps a mark on every page of it
that was ever written through a mapping, and a sync or an unmount goes through all these marks, one by one
(dax_writeback_mapping_range in fs/dax.c). That takes the longer the more RAM there is, in the middle of the pause.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, List, Tuple

from .command import run_beside
from .errors import HoldfastError

# How long a host may write while its VMs run, which harms nobody, and how long while they stand still: by then it has
# just been done.
VMS_RUN_S = 300.0
VMS_WAIT_S = 30.0
# They hold nothing that belongs on a disk. Opened, autofs would mount what nobody asked for.
_IN_MEMORY = frozenset(
    "autofs binfmt_misc bpf cgroup cgroup2 configfs cpuset debugfs devpts devtmpfs efivarfs fusectl hugetlbfs mqueue"
    " nsfs proc pstore ramfs resctrl rpc_pipefs securityfs selinuxfs sysfs tmpfs tracefs".split()
)


def sync_all_but(mount_point: Path, limit_s: float, root: Path = Path("/")) -> None:
    """Write what is unwritten, but for what is mounted at ``mount_point``. As silent about I/O errors as sync(2).

    Raises HoldfastError naming the file systems that do not end within the limit.
    """
    mounts = tuple(_mounts(root / "proc"))
    spared = {device for device, place in mounts if place == str(mount_point)}
    # One place of each is enough, and the first one is a place in our own namespace where there is one.
    places = {device: place for device, place in reversed(mounts) if device not in spared}
    late = run_beside({place: ["sync", "-f", "--", place] for place in places.values()}, limit_s)
    if late:
        raise HoldfastError(
            f"not written to disk within {limit_s:.0f} s: {', '.join(sorted(late))}",
            "see whether its disk or server answers; if it never will: umount -f -l",
        )


def _mounts(proc: Path) -> Iterator[Tuple[str, str]]:
    """Device number and place of everything that is mounted, for containers and services only as well."""
    for process in _namespaces(proc):
        inside = "" if process.name == "self" else str(process / "root")
        for line in _lines(process / "mountinfo"):
            left, _, right = line.partition(" - ")
            device, place = left.split(" ")[2], left.split(" ")[4]
            if right.split(" ")[0] not in _IN_MEMORY:
                yield device, inside + _unescaped(place)


def _namespaces(proc: Path) -> Iterator[Path]:
    """A process of each mount namespace, ours first."""
    seen = set()
    for process in [proc / "self", *proc.glob("[0-9]*")]:
        try:
            namespace = os.readlink(process / "ns/mnt")
        except OSError:  # it has ended
            continue
        if namespace not in seen:
            seen.add(namespace)
            yield process


def _lines(path: Path) -> List[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _unescaped(place: str) -> str:
    """Undo mountinfo's octal escapes of blanks and backslashes (proc_pid_mountinfo(5))."""
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        place = place.replace(escape, character)
    return place
