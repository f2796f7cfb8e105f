# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which RAM a VM gets: never what another one has, whole where that can be, on the nodes that it is bound to."""

from __future__ import annotations

import itertools
import random

from ansible_collections.holdfast.kvm.plugins.module_utils._core import allotment
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import Region

MIB = 1 << 20
GIB = 1 << 30
NODE0, NODE1 = Region(4 * GIB, 2 * GIB), Region(8 * GIB, 2 * GIB, node=1)


def test_an_empty_region_gives_its_beginning() -> None:
    assert allotment.choose((NODE0,), (), GIB) == (NODE0, ((4 * GIB, GIB),))


def test_what_is_taken_is_not_free() -> None:
    taken = [(4 * GIB + 256 * MIB, 256 * MIB), (4 * GIB + GIB, GIB)]
    assert allotment.free(NODE0, taken) == ((4 * GIB, 256 * MIB), (4 * GIB + 512 * MIB, 512 * MIB))


def test_what_is_taken_elsewhere_takes_nothing_here() -> None:
    assert allotment.free(NODE0, [(0, GIB), (8 * GIB, GIB), (6 * GIB, MIB)]) == ((4 * GIB, 2 * GIB),)


def test_only_whole_pages_are_free() -> None:
    region = Region(4 * GIB + 512 * MIB, 4 * GIB)
    assert allotment.free(region, [(6 * GIB, 256 * MIB)], GIB) == ((5 * GIB, GIB), (7 * GIB, GIB))
    assert allotment.choose((region,), [(6 * GIB, 256 * MIB)], 2 * GIB, (), GIB) == (
        region,
        ((5 * GIB, GIB), (7 * GIB, GIB)),
    )
    assert allotment.choose((region,), [(6 * GIB, 256 * MIB)], 3 * GIB, (), GIB) is None


def test_the_smallest_piece_that_is_large_enough_is_taken() -> None:
    """Large pieces stay whole, for VMs that need them."""
    taken = [(4 * GIB + 512 * MIB, 256 * MIB)]
    assert allotment.choose((NODE0,), taken, 256 * MIB) == (NODE0, ((4 * GIB, 256 * MIB),))


def test_pieces_are_put_together_where_none_is_large_enough() -> None:
    taken = [(4 * GIB + 512 * MIB, 256 * MIB), (4 * GIB + GIB, 512 * MIB)]
    chosen = allotment.choose((NODE0,), taken, 768 * MIB)
    assert chosen == (NODE0, ((4 * GIB, 512 * MIB), (4 * GIB + 1536 * MIB, 256 * MIB)))


def test_a_vm_gets_the_ram_of_its_node_only() -> None:
    assert allotment.choose((NODE0, NODE1), (), GIB, nodes=(1,)) == (NODE1, ((8 * GIB, GIB),))
    assert allotment.choose((NODE0, NODE1), [(8 * GIB, 2 * GIB)], GIB, nodes=(1,)) is None
    assert allotment.choose((NODE0, NODE1), (), GIB, nodes=(5,)) is None


def test_a_device_is_of_one_region() -> None:
    assert allotment.choose((NODE0, NODE1), (), 3 * GIB) is None


def test_whatever_comes_and_goes_nothing_is_given_twice_and_nothing_is_lost() -> None:
    source = random.Random(1)
    held: list[tuple[tuple[int, int], ...]] = []
    for _ in range(400):
        taken = [one for ranges in held for one in ranges]
        if held and source.random() < 0.45:
            held.pop(source.randrange(len(held)))
            continue
        size = 2 * MIB * source.randint(1, 200)
        chosen = allotment.choose((NODE0, NODE1), taken, size)
        rooms = [sum(left for _, left in allotment.free(region, taken)) for region in (NODE0, NODE1)]
        assert (chosen is None) == (max(rooms) < size)
        if chosen is None:
            continue
        region, ranges = chosen
        assert sum(length for _, length in ranges) == size
        assert all(region.start <= start and start + length <= region.end for start, length in ranges)
        held.append(ranges)
        everything = sorted(one for some in held for one in some)
        assert all(a + length <= b for (a, length), (b, _) in itertools.pairwise(everything))
