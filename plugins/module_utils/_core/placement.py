# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On which NUMA nodes a new RAM file lies, in a pool that has RAM of several.

A page of a RAM file is a page of its block, so the file system's choice of blocks is the choice of the node. ext4
cannot be told; but while a file of ours, the ballast, holds all that is free elsewhere, it has no other choice.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Sequence, Tuple

from .resources import Region

# An extent is at most 128 MiB, so a TiB has 8192.
EXTENTS_AT_ONCE = 512
# Left free for directories and the like that others make meanwhile.
SPARE_BYTES = 16 << 20
PIECE_BYTES = 64 << 20
ROUNDS = 8

_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP_LAST = 1
_KEEP_SIZE_AND_PUNCH = 1 | 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def spans(regions: Sequence[Region], nodes: Sequence[int]) -> Tuple[Tuple[int, int], ...]:
    """Start and end, in bytes of the pool's device, of what lies on these nodes."""
    found, start = [], 0
    for region in regions:
        if region.node in nodes:
            found.append((start, start + region.size))
        start += region.size
    return tuple(found)


def overlaps(extents: Sequence[Tuple[int, int, int]], wanted: Sequence[Tuple[int, int]]) -> Tuple[Tuple[int, int], ...]:
    """Offset in the file and length of what lies within ``wanted``; ``extents`` are (offset, place, length), bytes."""
    found = []
    for offset, place, length in extents:
        for start, end in wanted:
            low, high = max(place, start), min(place + length, end)
            if low < high:
                found.append((offset + low - place, high - low))
    return tuple(found)


@contextmanager
def only_within(wanted: Sequence[Tuple[int, int]], ballast: Path) -> Iterator[None]:
    """While this holds, what is allocated on the file system of ``ballast`` lies within ``wanted``.

    One at a time: others wait. Raises OSError.
    """
    turn = os.open(ballast.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        _fill_elsewhere(ballast, wanted)
        yield
    finally:
        ballast.unlink(missing_ok=True)
        os.close(turn)


def _fill_elsewhere(ballast: Path, wanted: Sequence[Tuple[int, int]]) -> None:
    handle = os.open(ballast, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        _take(handle, 0, _free_bytes(handle) - SPARE_BYTES, wanted)
        # What was spared, and what ext4 itself keeps back, is taken piece by piece, with room left for others.
        for _ in range(ROUNDS):
            end = os.fstat(handle).st_size
            if not _take(handle, end, min(PIECE_BYTES, _free_bytes(handle) - SPARE_BYTES), wanted):
                return
    finally:
        os.close(handle)


def _take(handle: int, start: int, size: int, wanted: Sequence[Tuple[int, int]]) -> int:
    """Allocate from ``start`` on, give back what lies within ``wanted``, and return how many bytes do not."""
    if size <= 0:
        return 0
    os.posix_fallocate(handle, start, size)
    pieces = overlaps([extent for extent in extents_of(handle) if extent[0] >= start], wanted)
    for offset, length in pieces:
        _punch(handle, offset, length)
    return size - sum(length for _, length in pieces)


def _free_bytes(handle: int) -> int:
    space = os.fstatvfs(handle)
    return space.f_bavail * space.f_frsize


def extents_of(handle: int) -> Tuple[Tuple[int, int, int], ...]:
    """Where an open file lies: (offset in the file, place on the device, length), bytes. Raises OSError."""
    found: List[Tuple[int, int, int]] = []
    start = 0
    while True:
        # struct fiemap and its extents, include/uapi/linux/fiemap.h.
        request = bytearray(struct.pack("=QQIIII", start, (1 << 63) - 1, 0, 0, EXTENTS_AT_ONCE, 0))
        request += bytes(56 * EXTENTS_AT_ONCE)
        fcntl.ioctl(handle, _FS_IOC_FIEMAP, request, True)
        count = struct.unpack_from("=I", request, 20)[0]
        if not count:
            return tuple(found)
        for number in range(count):
            offset, place, length, _, _, flags = struct.unpack_from("=QQQQQI", request, 32 + 56 * number)
            found.append((offset, place, length))
            if flags & _FIEMAP_LAST:
                return tuple(found)
        start = found[-1][0] + found[-1][2]


def _punch(handle: int, offset: int, length: int) -> None:
    place = (ctypes.c_int64(offset), ctypes.c_int64(length))
    if _LIBC.fallocate(handle, _KEEP_SIZE_AND_PUNCH, *place):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
