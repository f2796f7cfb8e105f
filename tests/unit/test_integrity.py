# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a sampled proof never leaves out: the beginning, the end, and of a save image all of its device state."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import fsdax, integrity
from ansible_collections.holdfast.kvm.plugins.module_utils._core.integrity import FULL, PAGE, SAMPLED

SEED = "11111111-0000-0000-0000-000000000000"
# Far more pages than are sampled, and half a page of which nobody thinks.
SIZE = 64 << 20
ODD = 1234


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(SIZE + ODD)
    return path


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"!")


@pytest.mark.parametrize("offset", [0, 100, SIZE, SIZE + ODD - 1])
def test_a_byte_at_either_end_is_always_proven(image: Path, offset: int) -> None:
    before = integrity.ram_proof(fsdax.kept_file(image), SEED)
    _flip(image, offset)
    assert integrity.ram_proof(fsdax.kept_file(image), SEED) != before


@pytest.mark.parametrize("back", [1, PAGE, 1 << 20, 5_000_001, 16_000_000])
def test_device_state_at_the_end_of_an_image_is_proven_whole(image: Path, back: int) -> None:
    before = integrity.image_proof(image, SEED, SAMPLED)
    _flip(image, SIZE + ODD - back)
    assert integrity.image_proof(image, SEED, SAMPLED) != before


def test_full_coverage_leaves_out_nothing(image: Path) -> None:
    before = integrity.ram_proof(fsdax.kept_file(image), SEED, FULL)
    for number in range(1, 64, 9):
        _flip(image, number << 20)
        after = integrity.ram_proof(fsdax.kept_file(image), SEED, FULL)
        assert after != before
        before = after


def test_a_device_that_can_only_be_mapped_is_proven_like_a_file(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with image.open("r+b") as file:
        file.truncate(SIZE)
        file.seek(SIZE // 2)
        file.write(b"guest" * PAGE)
    ram = fsdax.kept_file(image)
    for coverage in (SAMPLED, FULL):
        as_file = integrity.ram_proof(ram, SEED, coverage)
        with monkeypatch.context() as device:
            device.setattr(integrity.stat, "S_ISCHR", lambda _mode: True)
            device.setattr(integrity.os, "pread", lambda *_: pytest.fail("it was read"))
            assert integrity.ram_proof(ram, SEED, coverage) == as_file
