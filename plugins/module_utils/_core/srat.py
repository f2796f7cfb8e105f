# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which physical addresses belong to which NUMA node: the firmware's ACPI table SRAT.

The kernel's own view (/sys/devices/system/node) has no reserved RAM in it, and the pool is just that.
"""

from __future__ import annotations

import struct
from typing import Dict, Iterator, Optional, Tuple

from .resources import Region

HEADER_BYTES = 48
LOCAL_APIC, MEMORY, LOCAL_X2APIC = 0, 1, 2
# What ACPI 6.5, 5.2.16.1 to 5.2.16.3 give each structure.
LENGTHS = {LOCAL_APIC: 16, MEMORY: 40, LOCAL_X2APIC: 24}
ENABLED = 1


def memory_spans(table: bytes) -> Tuple[Region, ...]:
    """Spans of memory with their nodes, by address.

    Linux numbers nodes as it meets proximity domains, of processors first (acpi_numa_init, drivers/acpi/numa/srat.c).
    """
    structures = list(_structures(table))
    memory = [entry for entry in map(_memory, structures) if entry]
    met = [domain for domain in map(_processor, structures) if domain is not None] + [entry[2] for entry in memory]
    nodes: Dict[int, int] = {domain: node for node, domain in enumerate(dict.fromkeys(met))}
    spans = (Region(start=start, size=size, node=nodes[domain]) for start, size, domain in memory if size)
    return tuple(sorted(spans, key=lambda span: span.start))


def _structures(table: bytes) -> Iterator[bytes]:
    """The static resource allocation structures, each whole."""
    place = HEADER_BYTES
    while place + 2 <= len(table):
        kind, length = table[place], table[place + 1]
        if length < 2:
            return
        if len(table) >= place + length >= place + LENGTHS.get(kind, 2):
            yield table[place : place + length]
        place += length


def _memory(structure: bytes) -> Optional[Tuple[int, int, int]]:
    """Start, size and proximity domain of memory that is in force."""
    if structure[0] != MEMORY:
        return None
    # type, length, domain, reserved, base, size, reserved, flags
    _, _, domain, _, start, size, _, flags = struct.unpack_from("<BBIHQQII", structure)
    return (start, size, domain) if flags & ENABLED else None


def _processor(structure: bytes) -> Optional[int]:
    """The proximity domain of a processor that is in force."""
    if structure[0] == LOCAL_X2APIC:
        # type, length, reserved, domain, APIC id, flags
        _, _, _, domain, _, flags = struct.unpack_from("<BBHIII", structure)
    elif structure[0] == LOCAL_APIC:
        # type, length, low byte of the domain, APIC id, flags, SAPIC EID, the domain's other three bytes
        low, flags, high = structure[2], *struct.unpack_from("<I", structure, 4), structure[9:12]
        domain = low | int.from_bytes(high, "little") << 8
    else:
        return None
    return domain if flags & ENABLED else None
