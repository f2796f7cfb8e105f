# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is broken, when, and where every VM has to be afterwards. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ..lab.guests.definitions import GUESTS

UUID = {guest.name: guest.uuid for guest in GUESTS}
DB, TICK = "db1", "tick1"
VAULT = "/var/lib/holdfast/pool/holdfast"
KILL_AGENT = "kill -KILL $AGENT"
KILL_LIBVIRTD = "kill -KILL $(pidof libvirtd)"
JOURNAL = "/var/lib/holdfast/journal.jsonl"


class Ending(StrEnum):
    """How a live update ended, by its journal."""

    UPGRADED = "upgraded"
    FELL_BACK = "fell_back"
    ABORTED = "aborted"
    FAILED = "failed"
    REFUSED = "refused"


class Fate(StrEnum):
    """What became of one VM, as seen from outside."""

    CARRIED_ON = "carried on"
    STARTED_AFRESH = "started afresh"


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    ``event``: the event of the journal at which the ``deed`` (a shell script on the host) is done; empty: before the
    live update is asked for. ``mend``: what the operator does afterwards, before ``recover``. ``given_up``: VMs that
    the operator gives up then. ``fates``: VMs that do not carry on. ``limits``: fields of the request.
    """

    name: str
    phase: str
    event: str
    deed: str
    ends: tuple[Ending, ...]
    mend: str = ""
    given_up: tuple[str, ...] = ()
    fates: Mapping[str, Fate] = field(default_factory=dict)
    limits: Mapping[str, object] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    ram_survives: bool = True

    @property
    def needs_operator(self) -> bool:
        """Whether somebody has to act before every VM is back."""
        return bool(self.mend or self.given_up)

    def fate(self, name: str) -> Fate:
        return self.fates.get(name, Fate.CARRIED_ON)


def _kill(name: str, phase: str, event: str, end: Ending) -> Fault:
    return Fault(f"agent killed {name}", phase, event, KILL_AGENT, (end,))


def _harm(name: str, deed: str) -> Fault:
    """Something that belongs to one VM is damaged after the jump: it is kept, and in the end given up."""
    fates = {TICK: Fate.STARTED_AFRESH}
    return Fault(name, "restore", "attached", deed, (Ending.FAILED,), given_up=(TICK,), fates=fates)


FLIP = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(%d); b = f.read(1)[0]; f.seek(%d); f.write(bytes([b ^ 1]))"
BREAK_KEXEC = "printf '#!/bin/sh\\nexit 1\\n' > /root/no-kexec && chmod 755 /root/no-kexec && "
BREAK_KEXEC += "mount --bind /root/no-kexec /usr/sbin/kexec"
QEMU = "/usr/bin/qemu-system-x86_64"

BEFORE_THE_JUMP = (
    _kill("while the new kernel is loaded", "load", "phase_begin load", Ending.ABORTED),
    _kill("while VMs are paused", "suspend", f"vm_paused {UUID[TICK]}", Ending.ABORTED),
    _kill("while VMs are saved", "suspend", f"vm_paused {UUID[DB]}", Ending.ABORTED),
    _kill("after one VM was saved", "suspend", f"vm_saved {UUID[TICK]}", Ending.ABORTED),
    _kill("when all VMs are suspended", "jump", "suspended", Ending.ABORTED),
    Fault("libvirtd killed during a save", "suspend", f"vm_paused {UUID[DB]}", KILL_LIBVIRTD, (Ending.ABORTED,)),
    Fault(
        "QEMU of one VM killed during its save",
        "suspend",
        f"vm_paused {UUID[TICK]}",
        f"kill -KILL $(pgrep -f guest={TICK},)",
        (Ending.ABORTED,),
        fates={TICK: Fate.STARTED_AFRESH},
    ),
    Fault(
        "no room for state files",
        "suspend",
        "",
        "fallocate -l $(df --output=avail -B1 /var/lib/holdfast/pool | tail -1) /var/lib/holdfast/pool/full",
        (Ending.ABORTED,),
        mend="rm /var/lib/holdfast/pool/full",
    ),
    Fault("kexec refuses the kernel", "load", "", BREAK_KEXEC, (Ending.ABORTED,), mend="umount /usr/sbin/kexec"),
    Fault("the loaded kernel is unloaded", "jump", "suspending", "kexec -s -u", (Ending.ABORTED,)),
    Fault("suspending takes too long", "suspend", "", "true", (Ending.ABORTED,), limits={"deadline_s": 0.5}),
    Fault("a VM that the plan does not know", "preflight", "", "true", (Ending.REFUSED,), unknown=(TICK,)),
)
AFTER_THE_JUMP = (
    _kill("while the pool is attached", "attach", "arrived", Ending.UPGRADED),
    _kill("before the first restore", "restore", "restoring", Ending.UPGRADED),
    _kill("while a VM loads its state", "restore", f"vm_verified {UUID[DB]}", Ending.UPGRADED),
    _kill("while a VM is resumed", "restore", f"vm_resuming {UUID[DB]}", Ending.UPGRADED),
    Fault("libvirtd killed during a restore", "restore", f"vm_verified {UUID[DB]}", KILL_LIBVIRTD, (Ending.UPGRADED,)),
    Fault("the clock jumps a day", "jump", f"vm_saved {UUID[TICK]}", "date -s '+1 day'", (Ending.UPGRADED,)),
    _harm("a bit of a state file flipped", f'python3 -c "{FLIP % (9999, 9999)}" {VAULT}/{UUID[TICK]}/state'),
    _harm("a state file truncated", f"truncate -s 4096 {VAULT}/{UUID[TICK]}/state"),
    _harm("a page of RAM changed", f'python3 -c "{FLIP % (0, 0)}" {VAULT}/{UUID[TICK]}/ram/*'),
    _harm("a RAM file missing", f"rm {VAULT}/{UUID[TICK]}/ram/*"),
    Fault(
        "the journal damaged",
        "restore",
        "attached",
        f"cp {JOURNAL} /root/journal && sed -i 's/vm_paused/vm_pausex/' {JOURNAL}",
        (Ending.UPGRADED,),
        mend=f"cp /root/journal {JOURNAL}",
    ),
    Fault(
        "the new kernel is found unfit",
        "restore",
        "",
        "true",
        (Ending.FELL_BACK,),
        limits={"health_command": "echo a driver is missing; exit 1"},
    ),
    Fault(
        "the new QEMU cannot start",
        "restore",
        "arrived",
        f"chmod 0 {QEMU}",
        (Ending.FELL_BACK,),
        mend=f"chmod 755 {QEMU}; systemctl restart libvirtd",
    ),
    Fault(
        "power lost while all VMs are suspended",
        "jump",
        "suspended",
        "echo b > /proc/sysrq-trigger",
        (Ending.FAILED,),
        given_up=(DB,),
        fates={DB: Fate.STARTED_AFRESH, TICK: Fate.STARTED_AFRESH},
        ram_survives=False,
    ),
    Fault(
        "power lost while VMs are paused",
        "suspend",
        f"vm_paused {UUID[TICK]}",
        "echo b > /proc/sysrq-trigger",
        (Ending.FAILED,),
        given_up=(DB,),
        fates={DB: Fate.STARTED_AFRESH, TICK: Fate.STARTED_AFRESH},
        ram_survives=False,
    ),
)
FAULTS = (*BEFORE_THE_JUMP, *AFTER_THE_JUMP)
# After a loss this VM may be started afresh by itself; the other one waits for a person.
MAY_RESTART = (TICK,)
