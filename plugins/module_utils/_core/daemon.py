# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""End a libvirt daemon that hangs while VMs wait for it: systemd starts it again, and its VMs' QEMUs go on meanwhile.

Nobody else can give a paused VM its CPUs back, and who asks a daemon that hangs waits with it, for ever. It is asked by
a program of its own, which can be ended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import Iterator, List

from .command import run
from .errors import CommandFailed

UNITS = ("libvirtd.service", "virtqemud.service")
QUESTION = "import libvirt; libvirt.open('qemu:///system').numOfDomains()"
PYTHON = "/usr/bin/python3"
# One that is starting, with a hundred VMs or a new QEMU to get to know, may take minutes, and is not active until then.
HANGS_S = 300.0
ANSWER_S = 60.0
LOOK_S = 15.0


@contextmanager
def ended_if_it_hangs() -> Iterator[None]:
    """While this holds, a daemon that is up and has not answered for HANGS_S seconds is killed; once."""
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(over,), name="libvirt's daemon", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()


def _watch(over: threading.Event) -> None:
    heard = time.monotonic()
    while not over.wait(LOOK_S):
        if not _is_up() or _answers():
            heard = time.monotonic()
        elif time.monotonic() - heard > HANGS_S and not over.is_set():
            print(f"holdfast: libvirt's daemon has not answered for {HANGS_S:.0f} s, and is ended", file=sys.stderr)
            _end()
            return


def _is_up() -> bool:
    return bool(_pids())


def _answers() -> bool:
    """Also when it answers with an error, as one that is just ending does."""
    begun = time.monotonic()
    with suppress(CommandFailed):
        run([PYTHON, "-I", "-c", QUESTION], timeout_s=ANSWER_S)
        return True
    return time.monotonic() - begun < ANSWER_S


def _pids() -> List[int]:
    """Main processes of the daemons that systemd calls active."""
    found = []
    for unit in UNITS:
        with suppress(CommandFailed, ValueError):
            shown = run(["systemctl", "show", "--property=ActiveState,MainPID", unit])
            words = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
            pid = int(words.get("MainPID", 0))
            found += [pid] if pid and words.get("ActiveState") == "active" else []
    return found


def _end() -> None:
    for pid in _pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
