# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums of state files and of RAM, whole or sampled: proof that what is restored is what was saved."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import stat
from pathlib import Path
from typing import Callable, Dict

from .resources import KeptRam

PAGE = 4096
SAMPLED_PAGES = 256
SAMPLED, FULL = "sampled", "full"
# Device state at the end of a save image; 0.3 to 2 MB were measured, with a UEFI guest's flash.
TAIL_PAGES = (16 << 20) // PAGE


def sha256(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        for block in iter(lambda: source.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def ram_proof(ram: KeptRam, seed: str, coverage: str = SAMPLED) -> Dict[str, object]:
    """Identity of a RAM block: its place (``inode``), size, and a digest over page numbers and contents.

    ``sampled``: of SAMPLED_PAGES pages at most, chosen by ``seed``, so that the time does not grow with RAM, the first
    and the last page among them. ``full``: of all pages.
    """
    with ram.path.open("rb", buffering=0) as source:
        if not stat.S_ISCHR(os.fstat(source.fileno()).st_mode):
            digest = _digest(
                lambda number: os.pread(source.fileno(), PAGE, number * PAGE), ram.size_bytes, seed, coverage, 1
            )
        else:
            # A DAX device can only be mapped.
            with mmap.mmap(source.fileno(), ram.size_bytes, prot=mmap.PROT_READ) as memory:
                digest = _digest(
                    lambda number: memory[number * PAGE : (number + 1) * PAGE], ram.size_bytes, seed, coverage, 1
                )
    return {"inode": ram.place, "size_bytes": ram.size_bytes, "coverage": coverage, "sha256": digest}


def image_proof(path: Path, seed: str, coverage: str) -> Dict[str, object]:
    """The same of a save image, whose end with the device state is in it whatever the ``coverage``."""
    with path.open("rb", buffering=0) as image:
        facts = os.fstat(image.fileno())
        digest = _digest(
            lambda number: os.pread(image.fileno(), PAGE, number * PAGE), facts.st_size, seed, coverage, TAIL_PAGES
        )
    return {"inode": facts.st_ino, "size_bytes": facts.st_size, "coverage": coverage, "sha256": digest}


def _digest(page: Callable[[int], bytes], size_bytes: int, seed: str, coverage: str, tail: int) -> str:
    digest = hashlib.sha256()
    pages = -(-size_bytes // PAGE)
    for number in range(pages) if coverage == FULL else _sampled(pages, seed, tail):
        digest.update(number.to_bytes(8, "little"))
        digest.update(page(number))
    return digest.hexdigest()


def _sampled(pages: int, seed: str, tail: int) -> list[int]:
    if pages <= SAMPLED_PAGES:
        return list(range(pages))
    chosen = random.Random(seed).sample(range(pages), SAMPLED_PAGES - 2)
    return sorted({0, *range(max(0, pages - tail), pages), *chosen})
