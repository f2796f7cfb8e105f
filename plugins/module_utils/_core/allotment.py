# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which soft-reserved RAM a VM gets: pure arithmetic on physical ranges.

A device may be made of several pieces, so RAM that has been broken up by VMs that came and went is not lost; one piece
is better all the same, and the piece is chosen so that the largest free ones stay whole.
"""

from __future__ import annotations

from typing import Iterable, List, Optional, Sequence, Tuple

from .resources import Region

Range = Tuple[int, int]


def free(region: Region, taken: Iterable[Range], page_bytes: int = 1) -> Tuple[Range, ...]:
    """Whole pages that are left of a region, by address; ``taken`` and the result are (start, size) in bytes."""
    left: List[Range] = [(region.start, region.size)]
    for start, size in taken:
        left = [piece for one in left for piece in _without(one, start, start + size)]
    whole = ((-(-start // page_bytes) * page_bytes, (start + size) // page_bytes * page_bytes) for start, size in left)
    return tuple((start, end - start) for start, end in whole if start < end)


def choose(
    regions: Sequence[Region],
    taken: Sequence[Range],
    size_bytes: int,
    nodes: Sequence[int] = (),
    page_bytes: int = 1,
) -> Optional[Tuple[Region, Tuple[Range, ...]]]:
    """A region, and ranges in it, for so many bytes of whole pages; None when no region of these nodes has as much.

    The smallest free piece that is large enough; where none is, pieces from the largest on, as few as can be. A device
    is of one region, and so of one NUMA node.
    """
    usable = [(region, free(region, taken, page_bytes)) for region in regions if not nodes or region.node in nodes]
    whole = [(size, start, region) for region, pieces in usable for start, size in pieces if size >= size_bytes]
    if whole:
        _, start, region = min(whole, key=lambda one: one[:2])
        return region, ((start, size_bytes),)
    enough = [(region, pieces) for region, pieces in usable if sum(size for _, size in pieces) >= size_bytes]
    if not enough:
        return None
    region, pieces = min(enough, key=lambda one: len(_gathered(one[1], size_bytes)))
    return region, _gathered(pieces, size_bytes)


def _gathered(pieces: Sequence[Range], size_bytes: int) -> Tuple[Range, ...]:
    chosen: List[Range] = []
    for start, size in sorted(pieces, key=lambda piece: (-piece[1], piece[0])):
        left = size_bytes - sum(one for _, one in chosen)
        if left <= 0:
            break
        chosen.append((start, min(size, left)))
    return tuple(chosen)


def _without(piece: Range, start: int, end: int) -> List[Range]:
    low, high = piece[0], piece[0] + piece[1]
    if end <= low or high <= start:
        return [piece]
    return [(first, last - first) for first, last in ((low, start), (end, high)) if first < last]
