# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Watchdogs in hardware. One that counts on through a jump resets the host, and all RAM of its VMs is gone.

Most drivers stop theirs when a kernel ends in order; that of IPMI sets it to two minutes then (wdog_reboot_handler). No
panic stops any. So systemd's watchdog (RuntimeWatchdogSec=) is off from before the jump until the generation is closed,
in a crash kernel as well; a hang of the new kernel is left to our own timer, which spares the RAM (guard).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Iterator, Sequence, Tuple

from . import cmdline, kexec
from .command import run
from .errors import CommandFailed, HoldfastError, Refused
from .guard import TIMER_IDENTITY, WATCHDOGS
from .journal import Journal
from .resources import Watchdog

PROC = Path("/proc")
IPMI = Path("/sys/module/ipmi_watchdog")
# What takes back an earlier setting.
AS_CONFIGURED = (1 << 64) - 1
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_PROPERTY = (*_MANAGER, "RuntimeWatchdogUSec")


def armed() -> Tuple[Watchdog, ...]:
    """Those that count now, with whoever keeps them from their end; not the kernel's own, which ends with it."""
    there = tuple(_known_to_the_kernel())
    if not there and IPMI.exists():
        # Not among the kernel's watchdogs, and silent about its state.
        there = (Watchdog("watchdog", "IPMI"),)
        return tuple(_with_holder(one) for one in there if _holder_of(one.device))
    return tuple(_with_holder(one) for one in there)


def check_others() -> None:
    """Raise Refused when one counts that systemd cannot be told to stop."""
    _refuse([one for one in armed() if not one.is_systemds])


def systemd_usec() -> int:
    """The time that systemd's watchdog gives it, microseconds; 0: it has none."""
    try:
        return int(run(["busctl", "get-property", *_PROPERTY]).split()[-1])
    except (CommandFailed, ValueError, IndexError):  # not systemd's host, or an old one that has no such property
        return 0


def disarm(journal: Journal) -> None:
    """Have systemd stop its watchdog; the journal says already what it was. Raises Refused when it counts on."""
    if not journal.view["watchdog_usec"]:
        return
    _set(0)
    _refuse(armed())


def rearm(journal: Journal) -> None:
    """The generation is over: systemd has its watchdog again, if it was we who took it. Raises HoldfastError."""
    usec = journal.view["watchdog_usec"]
    if usec and _is_taken(journal) and not systemd_usec():
        try:
            _set(AS_CONFIGURED)
            # In the boot after a jump its command line speaks louder than its configuration.
            if not systemd_usec():
                _set(usec)
        except CommandFailed as exc:
            raise HoldfastError(f"systemd's watchdog stays off until the next boot: {exc}") from exc


def _is_taken(journal: Journal) -> bool:
    """Not in a boot of somebody else's, in which its configuration decides."""
    return kexec.boot_id() == journal.view["boot_id"]["from"] or cmdline.is_watchdog_off(kexec.running_cmdline())


def _refuse(counting: Sequence[Watchdog]) -> None:
    if counting:
        found = "; ".join(one.text for one in counting)
        raise Refused(
            f"a watchdog would reset this host after the jump: {found}", "stop it, then run the upgrade again"
        )


def _set(usec: int) -> None:
    run(["busctl", "set-property", *_PROPERTY, "t", str(usec)])


def _known_to_the_kernel() -> Iterator[Watchdog]:
    for entry in sorted(WATCHDOGS.glob("*")):
        with suppress(OSError, ValueError):  # it has just gone
            identity = (entry / "identity").read_text().strip()
            if identity == TIMER_IDENTITY or (entry / "state").read_text().strip() != "active":
                continue
            timeout_s = int((entry / "timeout").read_text())
            may_stop = (entry / "nowayout").read_text().strip() == "0"
            yield Watchdog(entry.name, identity, timeout_s, may_stop)


def _with_holder(one: Watchdog) -> Watchdog:
    pid = _holder_of(one.device)
    name = ""
    with suppress(OSError):
        name = (PROC / str(pid) / "comm").read_text().strip()
    return Watchdog(one.device, one.identity, one.timeout_s, one.may_stop, pid, name)


def _holder_of(device: str) -> int:
    """Pid of who has it open; the first watchdog has two names. 0: nobody, or nobody that can be seen."""
    names = {f"/dev/{device}", *(["/dev/watchdog"] if device == "watchdog0" else [])}
    for process in PROC.glob("[0-9]*"):
        with suppress(OSError):
            for handle in (process / "fd").iterdir():
                if os.readlink(handle) in names:
                    return int(process.name)
    return 0
