# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's package manager, kept from working while VMs stand still: a jump would end it halfway.

What it was about then, QEMU or libvirt perhaps, would be missing in the new kernel, and in the old one as well: they
share a root file system. Every tool of Debian's takes this lock first (dpkg, apt, unattended-upgrades).
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional, Tuple

from .command import run
from .errors import CommandFailed, Refused

LOCK = Path("/var/lib/dpkg/lock-frontend")
PROC = Path("/proc")
# What is installed by hand is over by then, or asks somebody a question.
LIMIT_S = 120.0
LOOK_S = 0.2
# struct flock on x86_64: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"
# Second letter of dpkg's short form of a package's state: half installed, unpacked, half configured.
_HALFWAY = "HUF"


@contextmanager
def held(limit_s: float = LIMIT_S) -> Iterator[None]:
    """Wait until no package is being installed, and have none installed while the block runs.

    Raises Refused when the wait is too long. Does nothing on a host without dpkg.
    """
    handle = _opened()
    if handle is None:
        yield
        return
    try:
        deadline = time.monotonic() + limit_s
        while not _taken(handle):
            if time.monotonic() > deadline:
                raise Refused(
                    f"packages are being installed on this host by {_holder(handle)}, still after {limit_s:.0f} s",
                    "wait until that has ended, and run the upgrade again",
                )
            time.sleep(LOOK_S)
        yield
    finally:
        os.close(handle)


@contextmanager
def held_if_free() -> Iterator[None]:
    """The same where VMs wait: for them nobody waits for whoever installs something."""
    handle = _opened()
    try:
        if handle is not None:
            _taken(handle)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def halfway() -> Tuple[str, ...]:
    """Packages that are neither installed nor removed, as after an installation that was cut off."""
    try:
        told = run(["dpkg-query", "--show", "--showformat=${db:Status-Abbrev} ${Package}\\n"])
    except CommandFailed:  # another distribution
        return ()
    states = (line.split() for line in told.splitlines())
    return tuple(sorted({words[-1] for words in states if len(words) == 2 and words[0][1:2] in _HALFWAY}))


def _opened() -> Optional[int]:
    """The lock's file; None where there is none to be had."""
    try:
        return os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    except OSError:
        return None


def _taken(handle: int) -> bool:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _holder(handle: int) -> str:
    """Who has the lock, for people."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    *_, pid = struct.unpack(_FLOCK, fcntl.fcntl(handle, fcntl.F_GETLK, asked))
    try:
        return f"{(PROC / str(pid) / 'comm').read_text().strip()} (process {pid})"
    except OSError:
        return f"process {pid}"
