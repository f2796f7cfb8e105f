# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The core's one door to other programs."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence, Tuple

from .errors import CommandFailed

# The root of the control groups (cgroup v2): what is in it belongs to no unit of systemd.
NO_UNIT = Path("/sys/fs/cgroup/cgroup.procs")


def run(argv: Sequence[str], *, timeout_s: float = 60, stdin: Optional[str] = None, good: Sequence[int] = (0,)) -> str:
    """Run a program without a shell and return its standard output.

    Raises CommandFailed with what it printed when it fails, is absent, or takes longer than ``timeout_s``. With a
    status of ``good`` it has not failed.
    """
    return _ended(argv, timeout_s, good, input=stdin, stdout=subprocess.PIPE).stdout


def run_over(argv: Sequence[str], source: Path, offset: int, target: Path, *, timeout_s: float) -> None:
    """Run a program over a file from ``offset`` (bytes) on, into another one that only its owner may read.

    Raises CommandFailed as ``run`` does, and OSError.
    """
    with source.open("rb", buffering=0) as given, open(target, "wb", opener=_private) as taken:
        given.seek(offset)
        _ended(argv, timeout_s, stdin=given, stdout=taken)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _ended(
    argv: Sequence[str], timeout_s: float, good: Sequence[int] = (0,), **streams: Any
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            list(argv), stderr=subprocess.PIPE, text=True, errors="replace", timeout=timeout_s, check=False, **streams
        )
    except FileNotFoundError as exc:
        raise CommandFailed(f"{argv[0]} is not installed on this host", f"install the package with {argv[0]}") from exc
    except subprocess.TimeoutExpired as exc:
        raise CommandFailed(f"{argv[0]} did not end within {timeout_s:.0f} s") from exc
    if done.returncode not in good:
        printed = (done.stderr.strip() or (done.stdout or "").strip())[-2000:]
        raise CommandFailed(f"{' '.join(argv)} ended with {done.returncode}: {printed}")
    return done


def run_beside(calls: Mapping[str, Sequence[str]], limit_s: float) -> Tuple[str, ...]:
    """Run programs side by side, whatever they end with; returns the names of those that did not end within the limit.

    These are left behind: a program that waits for a disk or a server that does not answer cannot be killed either.
    So none of them is in our unit, which would not end before they do, and what comes after it (ExecStopPost, where
    paused VMs are brought back) would wait as long.
    """
    nothing = subprocess.DEVNULL
    deadline = time.monotonic() + limit_s
    running = {
        name: subprocess.Popen(list(argv), stdin=nothing, stdout=nothing, stderr=nothing)
        for name, argv in calls.items()
    }
    for child in running.values():
        with suppress(OSError):  # it has ended, or there are no such groups here
            NO_UNIT.write_text(str(child.pid))
    late = []
    for name, child in running.items():
        try:
            child.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            late.append(name)
    return tuple(late)
