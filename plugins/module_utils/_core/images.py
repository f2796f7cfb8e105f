# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a VM's disks must be copied when it moves to another host, and the images that must be there for that.

Pure decisions; the images are made through ``hypervisor``.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from enum import Enum
from typing import Iterable, Sequence, Tuple

from .errors import BadInput

# What this host has of its own is a file; block devices are other hosts' as well, or nobody else's.
COPIED_KIND = "file"


class Copy(Enum):
    """How disks are copied. ``TOP``: the topmost image only, its base is there already."""

    NOTHING = "nothing"
    TOP = "top"
    ALL = "all"


@dataclass(frozen=True)
class Source:
    """One disk of a running VM: where it is, and the image that it stands on (``base``, empty without one)."""

    target: str
    path: str
    kind: str
    format: str
    capacity_bytes: int = 0
    readonly: bool = False
    base: str = ""
    base_format: str = ""


@dataclass(frozen=True)
class Image:
    """An image to be made at the destination before disk ``target`` can be copied into it."""

    target: str
    path: str
    format: str
    capacity_bytes: int
    base: str = ""
    base_format: str = ""


@dataclass(frozen=True)
class CopyPlan:
    """What is copied, into which images; nothing when the destination reaches all disks."""

    copy: Copy = Copy.NOTHING
    images: Tuple[Image, ...] = ()

    @property
    def targets(self) -> Tuple[str, ...]:
        return tuple(image.target for image in self.images)


def plan(sources: Sequence[Source], shared_paths: Iterable[str], base_paths: Iterable[str]) -> CopyPlan:
    """What to copy.

    Disks below ``shared_paths`` are the same on both hosts. Images below ``base_paths`` are equal on both hosts, and so
    are not copied when a disk stands on one. Raises BadInput for a disk that can be neither reached nor copied.
    """
    shared, bases = tuple(shared_paths), tuple(base_paths)
    own = [one for one in sources if one.path and one.kind != "network" and not _below(one.path, shared)]
    if not own:
        return CopyPlan()
    for one in own:
        _check_copied(one)
    standing = [one for one in own if one.base]
    top = bool(standing) and all(_below(one.base, (*shared, *bases)) for one in standing)
    return CopyPlan(Copy.TOP if top else Copy.ALL, tuple(_image(one, top) for one in own))


def _check_copied(one: Source) -> None:
    found = f"disk {one.target} ({one.path or 'no path'})"
    if one.readonly:
        raise BadInput(
            f"{found} is read-only, and the other host does not have it", "eject it, or put it on both hosts"
        )
    if one.kind != COPIED_KIND:
        raise BadInput(
            f"{found} is a {one.kind} of this host, which is not copied",
            "name its directory in shared_paths if the other host has the same",
        )
    if not one.capacity_bytes:
        raise BadInput(f"{found}: libvirt does not say how large it is", "look at virsh domblkinfo")


def _image(one: Source, top: bool) -> Image:
    base, base_format = (one.base, one.base_format) if top else ("", "")
    return Image(one.target, one.path, one.format, one.capacity_bytes, base, base_format)


def _below(path: str, directories: Iterable[str]) -> bool:
    clean = posixpath.normpath(path)
    return any(clean.startswith(directory.rstrip("/") + "/") for directory in directories)
