# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which RAM of a host becomes its pool: the choice of physical regions from the firmware memory map."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .config import LARGE_PAGE_BYTES, SMALL_PAGE_BYTES
from .errors import BadInput
from .resources import RAM_KIND, SOFT_KIND, Region

MIB = 1 << 20
GIB = 1 << 30

# e820_pmem and the fsdax and devdax namespaces map the pool in units of 2 MiB (memremap_compat_align).
UNIT_BYTES = 2 * MIB
# With a start on 1 GiB the CPU can map the pool with its largest pages.
LARGE_UNIT_BYTES = GIB
# Kernel, initrd and crash kernel are loaded low; the firmware keeps its own things there.
LOWEST_START = GIB
PREFERRED_START = 4 * GIB
# The kernel describes every 4 KiB page of an fsdax pool by 64 bytes, taken from the host's own RAM
# (8 GB for 500 GiB were seen).
PAGES_PER_PAGE_OF_STRUCTURES = 64
# However large a page of a DAX device is, the kernel keeps 2 of the pages that describe it (vmemmap_can_optimize), and
# for one of 1 GiB the 8 tables that map them.
SOFT_STRUCTURES_BYTES = {SMALL_PAGE_BYTES: 2 << 12, LARGE_PAGE_BYTES: 10 << 12}
# QEMU's own page tables and the guest's have 8 bytes each for every 4 KiB.
PAGES_PER_PAGE_OF_TABLES = 256
# It writes those of one region on one CPU, those of several at the same time (nd_async_device_register); regions that
# touch stay apart (e820_nomerge). Fewer than this in a piece are described in half a second, and the command line, on
# which each piece is, has an end.
SMALLEST_PIECE_BYTES = 32 * GIB
MOST_PIECES = 16
# How many VMs a host has, where nobody says: one for so much of its pool.
POOL_BYTES_PER_VM = 4 * GIB
# A device state was 0.5 to 5 MiB, and has as much of the video memory as is no zeros.
STATE_BYTES = 8 * MIB
# What holds those of suspended VMs in a pool of soft-reserved RAM; 16 MiB of video memory are what most VMs have.
VAULT_BYTES_PER_VM = STATE_BYTES + 16 * MIB
SMALLEST_VAULT_BYTES = 128 * MIB
MINIMUM_HOST_RESERVE_BYTES = 2 * GIB
HOST_RESERVE_PERCENT = 5

_SIZE = re.compile(r"(?P<number>\d+)\s*(?:(?P<suffix>[KMGT])(?:iB|B)?|B)?", re.IGNORECASE)
_SHIFT = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(frozen=True)
class PoolWish:
    """What the operator wants kept on one NUMA node; ``start`` only to name the physical address as well."""

    size_bytes: int
    node: int = 0
    start: int | None = None


def parse_size(text: str | int, *, total_bytes: int = 0) -> int:
    """Bytes for ``1536M``, ``2G``, ``2GiB``, a number of bytes, or ``50%`` of ``total_bytes``.

    Suffixes are binary. A percentage is rounded down to a whole UNIT_BYTES. Raises BadInput.
    """
    written = str(text).strip()
    percent = re.fullmatch(r"(\d{1,2})\s*%", written)
    if percent and total_bytes:
        return _floor(total_bytes * int(percent[1]) // 100, UNIT_BYTES)
    match = _SIZE.fullmatch(written)
    if not match or isinstance(text, bool):
        raise BadInput(f"{written!r} is not a size", "write it like 1536M, 2G or 50%")
    return int(match["number"]) << _SHIFT[(match["suffix"] or "").upper()]


def size_text(size_bytes: int) -> str:
    """A size for people, in the largest unit that keeps it exact, else with one decimal: ``1536 MiB``, ``3.9 GiB``."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if size_bytes and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift} {unit}"
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):.1f} {unit}"
    return f"{size_bytes} bytes"


def firmware_entry(start: str, end: str, kind: str) -> Region:
    """One entry of ``/sys/firmware/memmap``: its three files' text; ``end`` is the last byte of the range."""
    first, last = int(start.strip(), 16), int(end.strip(), 16)
    return Region(start=first, size=last - first + 1, kind=kind.strip())


def split_by_node(firmware: Sequence[Region], nodes: Sequence[Region]) -> tuple[Region, ...]:
    """The firmware map, which knows no NUMA nodes, cut at their borders; ``nodes`` are the nodes' spans."""
    if not nodes:
        return tuple(firmware)
    pieces = []
    for entry in firmware:
        for span in nodes:
            start, end = max(entry.start, span.start), min(entry.end, span.end)
            if start < end:
                pieces.append(replace(entry, start=start, size=end - start, node=span.node))
    return tuple(pieces)


def total_ram(firmware: Sequence[Region]) -> int:
    """Bytes of System RAM in the firmware map."""
    return sum(entry.size for entry in firmware if entry.kind == RAM_KIND)


def nodes_with_ram(firmware: Sequence[Region]) -> tuple[int, ...]:
    """NUMA nodes with RAM that a pool may be in."""
    return tuple(sorted({entry.node for entry in usable_ranges(firmware) if _room(entry) > 0}))


def structures_bytes(pool: Sequence[Region], page_bytes: int = SMALL_PAGE_BYTES) -> int:
    """What the kernel takes of the host's own RAM to describe a pool; of soft-reserved RAM when all of it is used.

    ``page_bytes``: of the devices that soft-reserved RAM is used by.
    """
    soft = sum(region.size for region in pool if region.kind == SOFT_KIND)
    files = sum(region.size for region in pool if region.kind != SOFT_KIND)
    return files // PAGES_PER_PAGE_OF_STRUCTURES + soft // page_bytes * SOFT_STRUCTURES_BYTES[page_bytes]


def page_tables_bytes(pool: Sequence[Region]) -> int:
    """What maps all of a pool into its VMs' QEMU processes and guests; next to nothing with pages of 2 MiB."""
    return sum(region.size // PAGES_PER_PAGE_OF_TABLES for region in pool if region.kind != SOFT_KIND)


def default_host_reserve(firmware: Sequence[Region]) -> int:
    """Bytes left to the host unless the operator says otherwise: 2 GiB, or 5 % of a large host."""
    return max(MINIMUM_HOST_RESERVE_BYTES, total_ram(firmware) * HOST_RESERVE_PERCENT // 100)


def choose(
    firmware: Sequence[Region],
    wishes: Sequence[PoolWish],
    *,
    host_reserve_bytes: int | None = None,
    soft: bool = False,
    page_bytes: int = SMALL_PAGE_BYTES,
    vms: int | None = None,
) -> tuple[Region, ...]:
    """Regions for the wishes, in their order, each wish wholly inside one range of System RAM; a large one in pieces.

    ``soft``: as soft-reserved RAM, for devices of such pages, with a vault for so many ``vms``.

    The lowest fitting address from 4 GiB on is taken: 4 GiB is where RAM goes on after the PCI hole on every PC, while
    the upper end moves with each memory module, so the pool stays where it is when the host gets more RAM. Below 4 GiB
    lies what 32-bit devices can reach; it is used only when nothing fits above. Raises BadInput.
    """
    if not wishes:
        raise BadInput("no size is given for the pool", "say how much RAM to keep, e.g. 50%")
    if not total_ram(firmware):
        raise BadInput("the firmware memory map shows no System RAM", "look into /sys/firmware/memmap on the host")
    chosen: list[Region] = []
    for wish in wishes:
        _check_size(wish)
        free = _without(usable_ranges(firmware), chosen)
        chosen.append(_explicit(firmware, wish, chosen) if wish.start is not None else _lowest(free, wish))
    regions = soft_reserved(chosen, vms) if soft else tuple(chosen)
    _check_reserve(firmware, regions, host_reserve_bytes, page_bytes)
    if soft:
        return regions
    return tuple(piece for region in chosen for piece in pieces(region, MOST_PIECES // len(wishes)))


def expected_vms(pool_bytes: int, vms: int | None = None) -> int:
    """How many VMs to provide for: as many as the operator says, else one for each POOL_BYTES_PER_VM."""
    return vms or max(1, -(-pool_bytes // POOL_BYTES_PER_VM))


def vault_bytes(pool_bytes: int, vms: int | None = None) -> int:
    """The size of a vault for so many VMs."""
    return max(expected_vms(pool_bytes, vms) * VAULT_BYTES_PER_VM, SMALLEST_VAULT_BYTES)


def soft_reserved(chosen: Sequence[Region], vms: int | None = None) -> tuple[Region, ...]:
    """The same ranges as soft-reserved RAM, but for the end of the first one, which is for the vault.

    Its beginning is where whole GiB begin. Raises BadInput when there is nothing left beside the vault.
    """
    vault = vault_bytes(sum(region.size for region in chosen), vms)
    first, *others = chosen
    if first.size <= vault:
        raise BadInput(
            f"a pool of {size_text(first.size)} on node {first.node} has no room for VMs beside the {size_text(vault)} "
            "that hold what is saved of them",
            f"ask for more than {size_text(vault)}",
        )
    rest = replace(first, size=first.size - vault)
    return (
        *(replace(region, kind=SOFT_KIND) for region in (rest, *others)),
        replace(first, start=rest.end, size=vault),
    )


def pieces(region: Region, most: int) -> tuple[Region, ...]:
    """A region cut into pieces that the kernel attaches at the same time, each of whole GiB but the last."""
    count = max(1, min(most, region.size // SMALLEST_PIECE_BYTES))
    step = _ceil(-(-region.size // count), GIB)
    starts = range(region.start, region.end, step)
    return tuple(replace(region, start=start, size=min(step, region.end - start)) for start in starts)


def problems(firmware: Sequence[Region], regions: Sequence[Region]) -> tuple[str, ...]:
    """Everything that is wrong with a pool's regions on this host, in words; empty when they can be used."""
    found = [problem for region in regions for problem in _region_problems(firmware, region)]
    ordered = sorted(regions, key=lambda region: region.start)
    for lower, upper in zip(ordered, ordered[1:]):
        if upper.start < lower.end:
            found.append(f"{range_text(lower)} and {range_text(upper)} overlap")
    return tuple(found)


def known_problems(firmware: Sequence[Region], regions: Sequence[Region]) -> tuple[str, ...]:
    """``problems``, but none when the map has no RAM at all: such a map was not read, and says nothing of the host."""
    return problems(firmware, regions) if total_ram(firmware) else ()


def validate_current(firmware: Sequence[Region], regions: Sequence[Region]) -> None:
    """Raise BadInput, naming every problem, unless the regions in use obey the rules of ``choose`` on this host."""
    found = problems(firmware, regions)
    if found:
        raise BadInput(
            "the pool on the kernel command line cannot be used: " + "; ".join(found),
            "stop the VMs, run the prepare playbook with a region that fits, and reboot",
        )


def usable_ranges(firmware: Sequence[Region]) -> tuple[Region, ...]:
    """System RAM with adjacent ranges of one node merged, by address."""
    ram = sorted((entry for entry in firmware if entry.kind == RAM_KIND), key=lambda entry: entry.start)
    merged: list[Region] = []
    for entry in ram:
        if merged and merged[-1].end == entry.start and merged[-1].node == entry.node:
            merged[-1] = replace(merged[-1], size=merged[-1].size + entry.size)
        else:
            merged.append(entry)
    return tuple(merged)


def range_text(region: Region) -> str:
    """``0x100000000-0x15fffffff`` (last byte), as ``/proc/iomem`` writes it."""
    return f"{region.start:#x}-{region.end - 1:#x}"


def _check_size(wish: PoolWish) -> None:
    if wish.size_bytes <= 0 or wish.size_bytes % UNIT_BYTES:
        raise BadInput(
            f"a pool of {wish.size_bytes} bytes on node {wish.node} is not a multiple of {size_text(UNIT_BYTES)}",
            f"ask for {size_text(max(_floor(wish.size_bytes, UNIT_BYTES), UNIT_BYTES))} instead",
        )


def _explicit(firmware: Sequence[Region], wish: PoolWish, chosen: Sequence[Region]) -> Region:
    region = Region(start=wish.start or 0, size=wish.size_bytes, node=wish.node)
    found = problems(firmware, [*chosen, region])
    if found:
        raise BadInput(
            f"the pool cannot be at {range_text(region)}: " + "; ".join(found),
            "leave out the start address to have one chosen, or take it from " + _listed(usable_ranges(firmware)),
        )
    return region


def _lowest(free: Sequence[Region], wish: PoolWish) -> Region:
    on_node = [entry for entry in free if entry.node == wish.node]
    if not on_node:
        nodes = ", ".join(str(node) for node in sorted({entry.node for entry in free})) or "none"
        raise BadInput(f"NUMA node {wish.node} has no RAM left for a pool", f"nodes with RAM: {nodes}")
    large = LARGE_UNIT_BYTES if wish.size_bytes >= LARGE_UNIT_BYTES else UNIT_BYTES
    for floor in (PREFERRED_START, LOWEST_START):
        for unit in (large, UNIT_BYTES):
            for entry in on_node:
                start = _ceil(max(entry.start, floor), unit)
                if start + wish.size_bytes <= entry.end:
                    return Region(start=start, size=wish.size_bytes, node=wish.node)
    raise _does_not_fit(on_node, wish)


def _does_not_fit(on_node: Sequence[Region], wish: PoolWish) -> BadInput:
    room = {entry: _room(entry) for entry in on_node}
    largest = max(on_node, key=lambda entry: room[entry])
    if room[largest] <= 0:
        return BadInput(
            f"node {wish.node} has no RAM above {size_text(LOWEST_START)} for a pool of {size_text(wish.size_bytes)}",
            "give the host more RAM",
        )
    return BadInput(
        f"a pool of {size_text(wish.size_bytes)} does not fit on node {wish.node}: the largest unbroken range of RAM "
        f"is {range_text(largest)}, with room for {size_text(room[largest])}",
        f"ask for at most {size_text(room[largest])}",
    )


def _room(entry: Region) -> int:
    return _floor(entry.end, UNIT_BYTES) - _ceil(max(entry.start, LOWEST_START), UNIT_BYTES)


def _check_reserve(
    firmware: Sequence[Region], chosen: Sequence[Region], host_reserve_bytes: int | None, page_bytes: int
) -> None:
    reserve = default_host_reserve(firmware) if host_reserve_bytes is None else host_reserve_bytes
    total, pool = total_ram(firmware), sum(region.size for region in chosen)
    structures = structures_bytes(chosen, page_bytes)
    if total - pool - structures >= reserve:
        return
    share = PAGES_PER_PAGE_OF_STRUCTURES
    most = max(0, _floor((total - reserve) * share // (share + 1), UNIT_BYTES))
    raise BadInput(
        f"a pool of {size_text(pool)} leaves the host {size_text(max(0, total - pool - structures))} of its "
        f"{size_text(total)} (page structures taken off), less than the {size_text(reserve)} it must keep",
        f"ask for at most {size_text(most)}" if most else "give the host more RAM, or lower the host's reserve",
    )


def _region_problems(firmware: Sequence[Region], region: Region) -> list[str]:
    name, found = range_text(region), []
    if region.size <= 0 or region.start % UNIT_BYTES or region.size % UNIT_BYTES:
        found.append(f"{name} does not start and end on {size_text(UNIT_BYTES)}")
    if region.start < LOWEST_START:
        found.append(f"{name} starts below {size_text(LOWEST_START)}, where kernel and firmware live")
    if not any(entry.start <= region.start and region.end <= entry.end for entry in usable_ranges(firmware)):
        found.append(f"{name} is not wholly inside one range of System RAM of the firmware map")
    return found


def _without(ranges: Sequence[Region], taken: Sequence[Region]) -> tuple[Region, ...]:
    """``ranges`` minus ``taken``, still by address."""
    left = list(ranges)
    for gone in taken:
        left = [piece for entry in left for piece in _cut(entry, gone)]
    return tuple(left)


def _cut(entry: Region, gone: Region) -> list[Region]:
    if gone.end <= entry.start or entry.end <= gone.start:
        return [entry]
    below = replace(entry, size=max(0, gone.start - entry.start))
    above = replace(entry, start=gone.end, size=max(0, entry.end - gone.end))
    return [piece for piece in (below, above) if piece.size]


def _listed(ranges: Sequence[Region]) -> str:
    return ", ".join(f"{range_text(entry)} (node {entry.node})" for entry in ranges if entry.end > LOWEST_START)


def _floor(value: int, unit: int) -> int:
    return value // unit * unit


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit) * unit
