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
from contextlib import suppress
from pathlib import Path
from typing import Iterator, List, Tuple

from .command import run
from .errors import CommandFailed

# For all of them together; a network file system whose server is gone does not answer at all.
LIMIT_S = 600.0
# Opened, it would mount what nobody asked for.
_MOUNTS_WHEN_OPENED = "autofs"


def sync_all_but(mount_point: Path, root: Path = Path("/")) -> None:
    """Write what is unwritten, but for what is mounted at ``mount_point``. As silent about failures as sync(2)."""
    mounts = tuple(_mounts(root / "proc"))
    spared = {device for device, place in mounts if place == str(mount_point)}
    # One place of each is enough, and the first one is a place in our own namespace where there is one.
    places = {device: place for device, place in reversed(mounts) if device not in spared}
    with suppress(CommandFailed):
        run(["sync", "-f", "--", *places.values()], timeout_s=LIMIT_S)


def _mounts(proc: Path) -> Iterator[Tuple[str, str]]:
    """Device number and place of everything that is mounted, for containers and services only as well."""
    for process in _namespaces(proc):
        inside = "" if process.name == "self" else str(process / "root")
        for line in _lines(process / "mountinfo"):
            left, _, right = line.partition(" - ")
            device, place = left.split(" ")[2], left.split(" ")[4]
            if not right.startswith(_MOUNTS_WHEN_OPENED):
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
