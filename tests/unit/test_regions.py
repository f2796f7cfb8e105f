# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pool is taken from RAM that is really there, and the host keeps enough for itself."""

from __future__ import annotations

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import regions
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.module_utils._core.regions import PoolWish, choose, soft_reserved
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import RAM_KIND, SOFT_KIND, Region

MIB, GIB = 1 << 20, 1 << 30

# A PC of 6 GiB as QEMU's q35 shows it: 2 GiB below the PCI hole, 4 GiB above it.
Q35 = (
    Region(0, 0x9FC00),
    Region(0x9FC00, 0x400, kind="Reserved"),
    Region(0x100000, 0x7FEDF000),
    Region(0x7FFDF000, 0x21000, kind="Reserved"),
    Region(4 * GIB, 4 * GIB),
)
# Two NUMA nodes of 64 GiB; the hole below 4 GiB is on node 0.
TWO_NODES = (
    Region(0x100000, 3 * GIB - 0x100000, node=0),
    Region(4 * GIB, 61 * GIB, node=0),
    Region(65 * GIB, 64 * GIB, node=1),
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1536M", 1536 * MIB),
        ("2G", 2 * GIB),
        ("2GiB", 2 * GIB),
        ("2 gb", 2 * GIB),
        ("1T", 1 << 40),
        ("4096", 4096),
        (4096, 4096),
        ("50%", 3 * GIB),
        ("33%", 2026 * MIB),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert regions.parse_size(text, total_bytes=6 * GIB) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1.5G", "2X", "100%", "half", True])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(BadInput, match="is not a size"):
        regions.parse_size(text, total_bytes=6 * GIB)


def test_a_percentage_of_nothing_known_is_refused() -> None:
    with pytest.raises(BadInput):
        regions.parse_size("50%")


@pytest.mark.parametrize(
    ("size", "text"), [(1536 * MIB, "1536 MiB"), (2 * GIB, "2 GiB"), (1610612737, "1.5 GiB"), (12, "12 bytes")]
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert regions.size_text(size) == text


def test_firmware_entry_reads_the_files_of_sysfs() -> None:
    entry = regions.firmware_entry("0x100000000\n", "0x1ffffffff\n", "System RAM\n")
    assert entry == Region(4 * GIB, 4 * GIB)


@pytest.mark.parametrize(
    ("size", "start"),
    [
        pytest.param(2 * GIB, 4 * GIB, id="lowest address from 4 GiB on"),
        pytest.param(1536 * MIB, 4 * GIB, id="2 MiB steps"),
        pytest.param(3 * GIB, 4 * GIB, id="most of what is there"),
    ],
)
def test_the_pool_lies_above_4_gib(size: int, start: int) -> None:
    assert regions.choose(Q35, [PoolWish(size)]) == (Region(start, size),)


def test_the_pool_lies_below_4_gib_only_when_nothing_fits_above() -> None:
    low_only = Q35[:4]
    assert regions.choose(low_only, [PoolWish(512 * MIB)], host_reserve_bytes=GIB) == (Region(GIB, 512 * MIB),)


def test_a_pool_of_gibibytes_starts_on_a_gibibyte_where_it_can() -> None:
    crooked = (Region(0x100000, 3 * GIB), Region(4 * GIB + 6 * MIB, 8 * GIB))
    assert regions.choose(crooked, [PoolWish(2 * GIB)])[0].start == 5 * GIB
    assert regions.choose(crooked, [PoolWish(7 * GIB + 64 * MIB)])[0].start == 4 * GIB + 6 * MIB


def test_adjacent_ranges_of_ram_count_as_one() -> None:
    halves = (*Q35[:4], Region(6 * GIB, 2 * GIB), Region(4 * GIB, 2 * GIB))
    assert regions.choose(halves, [PoolWish(3 * GIB)]) == (Region(4 * GIB, 3 * GIB),)


def test_each_node_gets_its_own_region() -> None:
    chosen = regions.choose(
        TWO_NODES, [PoolWish(32 * GIB, node=1), PoolWish(16 * GIB, node=0), PoolWish(8 * GIB, node=1)]
    )
    # The kernel keeps regions apart that touch.
    assert chosen == (
        Region(65 * GIB, 32 * GIB, node=1),
        Region(4 * GIB, 16 * GIB, node=0),
        Region(97 * GIB, 8 * GIB, node=1),
    )


@pytest.mark.parametrize(
    ("size", "count", "largest"),
    [
        pytest.param(63 * GIB, 1, 63 * GIB, id="a small pool is one"),
        pytest.param(100 * GIB, 3, 34 * GIB, id="of whole GiB"),
        pytest.param(500 * GIB, 15, 34 * GIB, id="as small as is worth it"),
        pytest.param(1500 * GIB + 6 * MIB, 16, 94 * GIB, id="not too many for the command line"),
    ],
)
def test_a_large_pool_is_kept_in_pieces_that_are_attached_at_the_same_time(size: int, count: int, largest: int) -> None:
    chosen = regions.choose((Region(4 * GIB, 2000 * GIB),), [PoolWish(size)])
    assert len(chosen) == count
    assert max(piece.size for piece in chosen) == largest
    assert [piece.start for piece in chosen] == [4 * GIB, *(piece.end for piece in chosen[:-1])]
    assert chosen[-1].end == 4 * GIB + size
    assert regions.problems((Region(4 * GIB, 2000 * GIB),), chosen) == ()


def test_nodes_share_the_number_of_pieces() -> None:
    nodes = tuple(Region(4 * GIB + node * 512 * GIB, 512 * GIB, node=node) for node in range(4))
    chosen = regions.choose(nodes, [PoolWish(440 * GIB, node=node) for node in range(4)])
    assert [piece.node for piece in chosen] == [node for node in range(4) for _ in range(4)]
    many = tuple(Region(4 * GIB + node * 64 * GIB, 64 * GIB, node=node) for node in range(20))
    assert len(regions.choose(many, [PoolWish(56 * GIB, node=node) for node in range(20)])) == 20


def test_the_choice_is_the_same_again() -> None:
    chosen = regions.choose(Q35, [PoolWish(2 * GIB)])
    assert regions.choose(tuple(reversed(Q35)), [PoolWish(2 * GIB)]) == chosen
    regions.validate_current(Q35, chosen)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        pytest.param(
            PoolWish(5 * GIB), ["5 GiB", "largest", "0x100000000-0x1ffffffff", "at most 4 GiB"], id="too large"
        ),
        pytest.param(PoolWish(4 * GIB), ["leaves the host", "at most"], id="host left with too little"),
        pytest.param(PoolWish(3 * MIB), ["multiple of 2 MiB", "ask for 2 MiB"], id="not in 2 MiB steps"),
        pytest.param(PoolWish(0), ["multiple of 2 MiB"], id="nothing"),
        pytest.param(PoolWish(GIB, node=3), ["node 3", "nodes with RAM: 0"], id="no such node"),
        pytest.param(PoolWish(GIB, start=2 * GIB), ["not wholly inside", "0x80000000"], id="in the hole"),
        pytest.param(PoolWish(2 * GIB, start=GIB + GIB // 2), ["not wholly inside"], id="straddles the hole"),
        pytest.param(PoolWish(GIB, start=512 * MIB), ["starts below 1 GiB"], id="too low"),
        pytest.param(PoolWish(GIB, start=4 * GIB + MIB), ["start and end on 2 MiB"], id="crooked start"),
    ],
)
def test_a_wish_that_cannot_work_says_why_and_what_would(wish: PoolWish, words: list[str]) -> None:
    with pytest.raises(BadInput) as refusal:
        regions.choose(Q35, [wish])
    for word in words:
        assert word in str(refusal.value)


def test_the_largest_pool_that_is_proposed_is_accepted() -> None:
    with pytest.raises(BadInput) as refusal:
        regions.choose(TWO_NODES, [PoolWish(61 * GIB, node=0), PoolWish(64 * GIB, node=1)], host_reserve_bytes=6 * GIB)
    most = refusal.value.hint.removeprefix("ask for at most ")
    assert most.endswith(" MiB")
    size = int(most.split()[0]) * MIB
    chosen = [PoolWish(61 * GIB, node=0), PoolWish(size - 61 * GIB, node=1)]
    assert len(regions.choose(TWO_NODES, chosen, host_reserve_bytes=6 * GIB)) == 2


def test_a_start_given_by_the_operator_is_kept() -> None:
    assert regions.choose(Q35, [PoolWish(GIB, start=6 * GIB)]) == (Region(6 * GIB, GIB),)


def test_two_wishes_may_not_share_ram() -> None:
    with pytest.raises(BadInput, match="overlap"):
        regions.choose(Q35, [PoolWish(GIB, start=4 * GIB), PoolWish(GIB, start=4 * GIB + 512 * MIB)])


@pytest.mark.parametrize("wishes", [[], [PoolWish(GIB)]])
def test_no_wish_or_no_ram_is_said(wishes: list[PoolWish]) -> None:
    with pytest.raises(BadInput):
        regions.choose(() if wishes else Q35, wishes)


def test_every_problem_of_the_current_pool_is_named_at_once() -> None:
    with pytest.raises(BadInput) as refusal:
        regions.validate_current(Q35, [Region(GIB, 2 * GIB), Region(512 * MIB, GIB)])
    for word in ("not wholly inside", "starts below", "overlap", "reboot"):
        assert word in str(refusal.value)


def test_the_host_keeps_two_gib_or_five_percent() -> None:
    assert regions.default_host_reserve(Q35) == 2 * GIB
    large = (Region(4 * GIB, 1000 * GIB),)
    assert regions.default_host_reserve(large) == 50 * GIB


def test_the_firmware_map_is_cut_at_node_borders() -> None:
    spans = (Region(0, 5 * GIB, node=0), Region(5 * GIB, 4 * GIB, node=1))
    ram = regions.usable_ranges(regions.split_by_node(Q35, spans))
    assert [(entry.start, entry.size, entry.node) for entry in ram[-2:]] == [(4 * GIB, GIB, 0), (5 * GIB, 3 * GIB, 1)]
    assert regions.split_by_node(Q35, ()) == Q35


class TestSoftReserved:
    def test_the_end_of_the_first_region_is_the_vault(self) -> None:
        wishes = (PoolWish(2 * GIB), PoolWish(GIB, node=1))
        plain = choose(TWO_NODES, wishes)
        soft = choose(TWO_NODES, wishes, soft=True)
        assert [(one.start, one.size, one.node, one.kind) for one in soft] == [
            (plain[0].start, 2 * GIB - 128 * MIB, 0, SOFT_KIND),
            (plain[1].start, GIB, 1, SOFT_KIND),
            (plain[0].end - 128 * MIB, 128 * MIB, 0, RAM_KIND),
        ]

    def test_the_vault_grows_with_the_number_of_vms(self) -> None:
        sizes = {gib: soft_reserved((Region(4 * GIB, gib * GIB),))[-1].size for gib in (1, 32, 512)}
        assert sizes == {1: 128 * MIB, 32: 192 * MIB, 512: 3 * GIB}
        assert soft_reserved((Region(4 * GIB, 512 * GIB),), vms=20)[-1].size == 480 * MIB

    def test_a_large_region_is_one_piece(self) -> None:
        assert len(soft_reserved((Region(4 * GIB, 512 * GIB),))) == 2

    def test_a_pool_without_room_for_vms_is_refused(self) -> None:
        with pytest.raises(BadInput, match="has no room for VMs beside the 128 MiB"):
            soft_reserved((Region(4 * GIB, 128 * MIB),))

    def test_the_host_keeps_what_describes_its_pool(self) -> None:
        files, devices = (
            regions.structures_bytes(choose(TWO_NODES, (PoolWish(32 * GIB),), soft=soft)) for soft in (0, 1)
        )
        assert files == 32 * GIB // 64
        assert devices == (32 * GIB - 192 * MIB) // 256 + 192 * MIB // 64
