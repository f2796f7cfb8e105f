# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which part of the pool a RAM file lies in: arithmetic here, a real pool of two nodes in the lab."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import placement
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import Region

GIB, MIB = 1 << 30, 1 << 20
POOL = (Region(4 * GIB, GIB, node=0), Region(16 * GIB, 2 * GIB, node=1), Region(8 * GIB, GIB, node=0))


def test_a_node_is_where_its_regions_come_in_the_pool() -> None:
    assert placement.spans(POOL, (0,)) == ((0, GIB), (3 * GIB, 4 * GIB))
    assert placement.spans(POOL, (1,)) == ((GIB, 3 * GIB),)
    assert placement.spans(POOL, (2,)) == ()


@pytest.mark.parametrize(
    ("extent", "expected"),
    [
        ((0, 10, 5), ()),
        ((0, 100, 50), ((0, 50),)),
        ((7, 90, 20), ((17, 10),)),
        ((7, 190, 20), ((7, 10),)),
        ((0, 50, 300), ((50, 100), (250, 50))),
    ],
    ids=["outside", "inside", "into it", "out of it", "across two"],
)
def test_what_is_given_back_is_just_what_lies_within(
    extent: tuple[int, int, int], expected: tuple[tuple[int, int], ...]
) -> None:
    assert placement.overlaps([extent], [(100, 200), (300, 400)]) == expected


def test_extents_cover_a_file_that_has_more_of_them_than_are_asked_for_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "EXTENTS_AT_ONCE", 2)
    with (tmp_path / "file").open("wb") as file:
        for number in range(0, 10, 2):
            file.seek(number * MIB)
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        try:
            found = placement.extents_of(file.fileno())
        except OSError as exc:
            if exc.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
                pytest.skip("this file system does not tell where files lie")
            raise
    assert [offset for offset, _, _ in found] == [number * MIB for number in range(0, 10, 2)]
    assert {length for _, _, length in found} == {4096}


@pytest.mark.parametrize("fails", [False, True])
def test_the_ballast_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    ballast = tmp_path / "ballast"

    def fill(path: Path, _wanted: object) -> None:
        path.touch()
        if fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(placement, "_fill_elsewhere", fill)
    try:
        with placement.only_within(((0, GIB),), ballast):
            assert ballast.exists()
    except OSError:
        assert fails
    assert not ballast.exists()
