# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One agent at a time acts on this host; others wait for their turn. The kernel ends the turn of one that is killed."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import Iterator

from .config import RUN_DIR


@contextmanager
def taken() -> Iterator[None]:
    """Wait for our turn, and keep it while the block runs."""
    RUN_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(RUN_DIR / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
