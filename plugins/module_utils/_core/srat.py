# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which physical addresses belong to which NUMA node: the firmware's ACPI table SRAT.

The kernel's own view (/sys/devices/system/node) has no reserved RAM in it, and the pool is just that.
"""

from __future__ import annotations

import struct
from typing import Dict, Iterator, Tuple

from .resources import Region

HEADER_BYTES = 48
MEMORY_AFFINITY = 1
ENABLED = 1


def memory_spans(table: bytes) -> Tuple[Region, ...]:
    """Spans of memory with their nodes, by address. ACPI 6.5, 5.2.16.2: memory affinity structure.

    Linux numbers nodes as it meets proximity domains, which firmware lists in ascending order.
    """
    found = [entry for entry in _affinities(table) if entry[1]]
    nodes: Dict[int, int] = {domain: node for node, domain in enumerate(sorted({entry[2] for entry in found}))}
    spans = (Region(start=start, size=size, node=nodes[domain]) for start, size, domain in found)
    return tuple(sorted(spans, key=lambda span: span.start))


def _affinities(table: bytes) -> Iterator[Tuple[int, int, int]]:
    """Start, size and proximity domain of each memory affinity structure that is in force."""
    place = HEADER_BYTES
    while place + 2 <= len(table):
        kind, length = table[place], table[place + 1]
        if length < 2:
            return
        if kind == MEMORY_AFFINITY and place + 40 <= len(table):
            # type, length, domain, reserved, base, size, reserved, flags
            _, _, domain, _, start, size, _, flags = struct.unpack_from("<BBIHQQII", table, place)
            if flags & ENABLED:
                yield start, size, domain
        place += length
