# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums of state files and of a sample of RAM pages: proof that what is restored is what was saved."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Dict

PAGE = 4096
SAMPLED_PAGES = 256


def sha256(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        for block in iter(lambda: source.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def ram_sample(path: Path, seed: str) -> Dict[str, object]:
    """Identity of a RAM file: inode, size, and a digest over pages chosen by ``seed``, first and last included.

    The digest covers page numbers and contents. Constant in RAM size: at most SAMPLED_PAGES pages are read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as ram:
        facts = os.fstat(ram.fileno())
        pages = facts.st_size // PAGE
        for number in _sampled(pages, seed):
            digest.update(number.to_bytes(8, "little"))
            digest.update(os.pread(ram.fileno(), PAGE, number * PAGE))
    return {"inode": facts.st_ino, "size_bytes": facts.st_size, "sha256": digest.hexdigest()}


def _sampled(pages: int, seed: str) -> list[int]:
    if pages <= SAMPLED_PAGES:
        return list(range(pages))
    chosen = random.Random(seed).sample(range(pages), SAMPLED_PAGES - 2)
    return sorted({0, pages - 1, *chosen})
