# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which campaign is this, and does the one that holds a host still live? A campaign is a process of a controller."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path

PROC = Path("/proc")


def ourselves() -> dict[str, str]:
    """This campaign, as a host writes it down. Called in a worker of ansible-playbook, whose parent is the campaign."""
    return {"id": identity(os.getppid()), "controller": socket.gethostname(), "user": _user()}


def identity(pid: int) -> str:
    """``BOOT/NAMESPACE/PID/START``: no other process has it, not on another machine nor at another time."""
    return "/".join([*_here(), str(pid), _started(pid)])


def is_dead(id: str) -> bool:
    """Whether the campaign ran where we run and is gone. Of one that ran elsewhere nobody here can tell."""
    where, _, process = id.rpartition("/")
    where, _, pid = where.rpartition("/")
    if where != "/".join(_here()) or not pid.isdigit():
        return False
    return _started(int(pid)) != process


def _here() -> tuple[str, str]:
    """This boot of this machine, and whose process numbers ours are: a container counts for itself."""
    boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return boot, os.readlink(PROC / "self/ns/pid").strip("pid:[]")


def _started(pid: int) -> str:
    """When a process began, in ticks since the boot (proc_pid_stat(5), field 22); empty for one that has ended."""
    try:
        # The second field is a name in brackets, which may hold anything.
        state, *fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    # A killed process stays on the list until its parent has asked for its end.
    return "" if state in ("Z", "X") else fields[18]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
