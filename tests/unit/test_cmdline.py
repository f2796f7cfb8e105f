# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The next kernel gets exactly the pool of the running one, and says which generation it was started for."""

from __future__ import annotations

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import cmdline
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, Refused
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import SOFT_KIND, Region

GIB = 1 << 30
MEMMAP = "memmap=0x60000000!0x100000000"
POOL = (Region(start=4 * GIB, size=0x60000000),)
GENERATION = "g-20261121T020000-ab12cd"
EARLIER = "g-20260101T000000-000000"
RUNNING = f"BOOT_IMAGE=/boot/vmlinuz-6.12 root=UUID=1-2 ro quiet {MEMMAP} nokaslr holdfast.generation={EARLIER}"


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("", ()),
        ("  ro \t quiet\n", ("ro", "quiet")),
        ('dyndbg="file a.c +p" ro', ('dyndbg="file a.c +p"', "ro")),
        ('"name=a b" x', ('"name=a b"', "x")),
        ("a=1 -- single", ("a=1", "--", "single")),
    ],
)
def test_split_keeps_options_as_written(line: str, options: tuple[str, ...]) -> None:
    assert cmdline.split(line) == options


@pytest.mark.parametrize(
    ("line", "regions"),
    [
        ("ro quiet", ()),
        ("memmap=2G!4G", ((4 * GIB, 2 * GIB),)),
        ("memmap=1536M!4g memmap=0x40000000!0x200000000", ((4 * GIB, 1536 << 20), (8 * GIB, GIB))),
        ("memmap=1G!4G,1G!8G", ((4 * GIB, GIB), (8 * GIB, GIB))),
        ("memmap=1G!4G,64K$0x10000", ((4 * GIB, GIB),)),
        ('"memmap=1073741824!4294967296"', ((4 * GIB, GIB),)),
        ("memmap=010!020", ((16, 8),)),
        ("memmap=exactmap memmap=4G nomemmap=1G!4G", ()),
        ("ro -- memmap=1G!4G", ()),
    ],
)
def test_regions_are_read_as_the_kernel_reads_them(line: str, regions: tuple[tuple[int, int], ...]) -> None:
    assert tuple((region.start, region.size) for region in cmdline.memmap_regions(line)) == regions


@pytest.mark.parametrize("entry", ["1G!", "x!4G", "1G!4Q", "1G!4G!8G"])
def test_a_memmap_that_cannot_be_read_is_named(entry: str) -> None:
    with pytest.raises(BadInput, match="memmap="):
        cmdline.memmap_regions(f"ro memmap={entry}")


def test_pool_arguments_are_the_options_byte_for_byte() -> None:
    line = "memmap=64K$0x10000 memmap=0x40000000!4G,1g!8G ro memmap=1G!16G"
    assert cmdline.pool_arguments(line) == ("memmap=0x40000000!4G,1g!8G", "memmap=1G!16G")
    assert cmdline.memmap_entries(line) == ("64K$0x10000", "0x40000000!4G", "1g!8G", "1G!16G")


def test_format_memmap_has_one_form_and_reads_back() -> None:
    assert cmdline.format_memmap(*POOL) == MEMMAP
    two = (*POOL, Region(start=16 * GIB, size=GIB))
    written = cmdline.format_memmap(*two)
    assert written == "memmap=0x60000000!0x100000000,0x40000000!0x400000000"
    assert [(r.start, r.size) for r in cmdline.memmap_regions(written)] == [(r.start, r.size) for r in two]
    with pytest.raises(BadInput):
        cmdline.format_memmap()


def test_next_command_line_is_the_running_one_for_another_generation() -> None:
    assert cmdline.next_command_line(RUNNING, generation=GENERATION) == (
        f"root=UUID=1-2 ro quiet {MEMMAP} nokaslr holdfast.generation={GENERATION}"
    )


def test_next_command_line_twice_is_the_same() -> None:
    once = cmdline.next_command_line(RUNNING, generation=GENERATION)
    assert cmdline.next_command_line(once, generation=GENERATION) == once


def test_next_command_line_drops_what_was_for_one_boot_only() -> None:
    line = f'BOOT_IMAGE=/vmlinuz initrd=\\initrd.img elfcorehdr=0x1000 {MEMMAP} dyndbg="file a.c +p"'
    assert cmdline.next_command_line(line, generation=GENERATION) == (
        f'{MEMMAP} dyndbg="file a.c +p" holdfast.generation={GENERATION}'
    )


def test_added_and_dropped_options_go_before_those_of_init() -> None:
    line = cmdline.next_command_line(
        f"quiet {MEMMAP} crashkernel=256M -- single",
        generation=GENERATION,
        add=["nokaslr"],
        drop=["quiet", "crashkernel"],
    )
    assert line == f"{MEMMAP} nokaslr holdfast.generation={GENERATION} -- single"


@pytest.mark.parametrize(
    ("add", "drop"),
    [
        (["memmap=1G!8G"], []),
        ([], ["memmap"]),
        (["holdfast.generation=x"], []),
        ([], ["holdfast.generation"]),
        (["two options"], []),
        (["--"], []),
        ([""], []),
        (['open="quote'], []),
    ],
)
def test_pool_and_generation_cannot_be_changed_in_passing(add: list[str], drop: list[str]) -> None:
    with pytest.raises(BadInput):
        cmdline.next_command_line(RUNNING, generation=GENERATION, add=add, drop=drop)


def test_a_line_longer_than_the_kernel_reads_is_refused() -> None:
    room = cmdline.LONGEST_BYTES - len(cmdline.next_command_line("", generation=GENERATION)) - 1
    assert len(cmdline.next_command_line("x" * room, generation=GENERATION)) == cmdline.LONGEST_BYTES
    with pytest.raises(BadInput, match=str(cmdline.LONGEST_BYTES)):
        cmdline.next_command_line("x" * (room + 1), generation=GENERATION)


def test_a_generation_comes_after_the_last_one_although_the_clock_was_set_back() -> None:
    last = "g-20361121T235959-ffffff"
    assert cmdline.new_generation(1795226400.0, "ab12cd", last) == "g-20361122T000000-ab12cd"
    assert cmdline.new_generation(1795226400.0, "ab12cd", "g-20251121T235959-ffffff") == "g-20261121T020000-ab12cd"


def test_generation_is_made_from_time_and_chance() -> None:
    assert cmdline.new_generation(1795226400.9, "ab12cd") == "g-20261121T020000-ab12cd"
    with pytest.raises(BadInput):
        cmdline.new_generation(1795226400.0, "not hexadecimal")


@pytest.mark.parametrize(
    ("line", "generation"),
    [
        ("ro", ""),
        (f"holdfast.generation={GENERATION} ro", GENERATION),
        (f"holdfast.generation={GENERATION} holdfast.generation={GENERATION}", GENERATION),
        (f"holdfast.generation={GENERATION} holdfast.generation={EARLIER}", ""),
        (f"ro -- holdfast.generation={GENERATION}", ""),
    ],
)
def test_generation_of_a_boot(line: str, generation: str) -> None:
    assert cmdline.generation_of(line) == generation


def test_the_next_line_made_from_the_running_one_may_jump() -> None:
    cmdline.check_next(RUNNING, cmdline.next_command_line(RUNNING, generation=GENERATION), POOL, GENERATION)


@pytest.mark.parametrize(
    ("new", "pool"),
    [
        pytest.param(f"ro holdfast.generation={GENERATION}", POOL, id="memmap missing"),
        pytest.param(f"memmap=1536M!4G holdfast.generation={GENERATION}", POOL, id="memmap spelled otherwise"),
        pytest.param(f"memmap=0x40000000!0x100000000 holdfast.generation={GENERATION}", POOL, id="memmap smaller"),
        pytest.param(f"{MEMMAP} memmap=1G!8G holdfast.generation={GENERATION}", POOL, id="memmap added"),
        pytest.param(f"{MEMMAP} -- holdfast.generation={GENERATION}", POOL, id="generation for init only"),
        pytest.param(f"{MEMMAP} holdfast.generation={EARLIER}", POOL, id="other generation"),
        pytest.param(MEMMAP, POOL, id="no generation"),
        pytest.param(f"{MEMMAP} holdfast.generation={GENERATION}", (), id="no pool"),
        pytest.param(
            f"{MEMMAP} holdfast.generation={GENERATION}",
            (Region(4 * GIB, GIB),),
            id="pool is another",
        ),
    ],
)
def test_no_jump_without_exactly_the_pool_and_the_generation(new: str, pool: tuple[Region, ...]) -> None:
    with pytest.raises(Refused) as refusal:
        cmdline.check_next(RUNNING, new, pool, GENERATION)
    assert refusal.value.hint


class TestSoftReserved:
    SOFT = (Region(4 << 30, 1 << 30, SOFT_KIND), Region(5 << 30, 64 << 20))
    LINE = "ro memmap=0x40000000%0x100000000+0xefffffff,0x4000000!0x140000000"
    OPTIONS = " nokaslr dax_hmem.region_idle=1 modprobe.blacklist=floppy,kmem"

    def test_the_argument_and_its_regions_are_the_same(self) -> None:
        assert cmdline.format_memmap(*self.SOFT) == self.LINE.split()[1]
        found = cmdline.memmap_regions(self.LINE)
        assert [(one.start, one.size, one.kind) for one in found] == [
            (4 << 30, 1 << 30, SOFT_KIND),
            (5 << 30, 64 << 20, cmdline.POOL_KIND),
        ]
        assert cmdline.soft_regions(self.LINE) == found[:1]
        assert cmdline.pool_arguments(self.LINE) == (self.LINE.split()[1],)

    @pytest.mark.parametrize("entry", ["1G%4G-1+2", "1G%4G+2", "1G%4G-1", "1G%4G-1+0xefffffff1"])
    def test_other_changes_of_types_are_somebody_elses(self, entry: str) -> None:
        assert cmdline.memmap_regions(f"memmap={entry}") == ()
        assert cmdline.pool_arguments(f"memmap={entry}") == ()

    def test_a_jump_keeps_them_and_what_keeps_others_away(self) -> None:
        new = cmdline.next_command_line(self.LINE + self.OPTIONS, generation=GENERATION)
        cmdline.check_next(self.LINE + self.OPTIONS, new, self.SOFT, GENERATION)

    @pytest.mark.parametrize("option", ["nokaslr", "dax_hmem.region_idle=1", "kmem"])
    def test_no_jump_without_one_of_them(self, option: str) -> None:
        line = (self.LINE + self.OPTIONS).replace(option, "other")
        new = cmdline.next_command_line(line, generation=GENERATION)
        with pytest.raises(Refused, match=f"lacks .*{option}: the next kernel may use VM RAM"):
            cmdline.check_next(line, new, self.SOFT, GENERATION)

    def test_other_pools_need_none(self) -> None:
        assert cmdline.missing_soft_options("memmap=1G!4G") == ()
