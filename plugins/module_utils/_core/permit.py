# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's word to the libvirt hook that one VM is being restored just now.

A permit is a lock in /run: it ends with the boot, and with the agent, however that ends; only root can take it.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from .config import RUN_DIR
from .errors import HoldfastError

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def checked(uuid: str) -> str:
    """``uuid``, which is part of a path. Raises HoldfastError for what is none, or is not as libvirt writes it."""
    if not UUID.fullmatch(uuid):
        raise HoldfastError(f"{uuid!r} is not a VM's uuid")
    return uuid


def _path(uuid: str) -> Path:
    return RUN_DIR / "restoring" / checked(uuid)


@contextmanager
def granted(uuid: str) -> Iterator[None]:
    """Let libvirt start this VM, on its kept RAM, while the block runs."""
    path = _path(uuid)
    # One by one: mkdir gives its mode to the last directory only.
    RUN_DIR.mkdir(exist_ok=True, mode=0o700)
    path.parent.mkdir(exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def holds(uuid: str) -> bool:
    """Whether the agent is restoring this VM."""
    try:
        handle = os.open(_path(uuid), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
