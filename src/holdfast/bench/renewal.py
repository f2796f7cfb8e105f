# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fresh QEMU for the guest while the kernel runs on: holdfast without its jump."""

from __future__ import annotations

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError

from ..lab.guests.observer import compare, take
from ..lab.hosts import console_on_failure, on_host
from .figures import Measurement, Subject
from .jumps import PROGRAMS, boot_id, journal_phases
from .pause import Rig, observe

QEMU_PID = "pgrep -f 'guest={name},'"


def measure(rig: Rig, touched_mib: int, number: int) -> Measurement:
    """Measure it, and prove that the guest carried on, in another QEMU on the same kernel. Raises HoldfastError."""
    before, boot, process = take(rig.witness), boot_id(rig.host), qemu_of(rig)
    speed_before = rig.witness.speed()
    with console_on_failure(rig.host):
        held = observe(
            rig.listener(Subject.ONLY_QEMU.value),
            lambda: on_host(rig.host, f"{PROGRAMS}/request-live-update qemu {rig.guest.name} {rig.guest.uuid}\n"),
            lambda _held: True,
            rig.lost,
        )
        speed_after = rig.witness.speed()
        told = on_host(rig.host, "holdfast-agent status --json")
    trouble = compare(before, take(rig.witness, held=(held,)))
    trouble += ["it is in the QEMU that it was in"] if qemu_of(rig) == process else []
    trouble += ["its host has booted"] if boot_id(rig.host) != boot else []
    if trouble:
        raise HoldfastError(f"a new QEMU at {touched_mib} MiB: the guest did not carry on: {'; '.join(trouble)}")
    phases, saved_bytes = journal_phases(told)
    return Measurement(
        Subject.ONLY_QEMU,
        touched_mib,
        number,
        held.longest_gap_s,
        phases,
        saved_bytes,
        speed_before=speed_before,
        speed_after=speed_after,
    )


def qemu_of(rig: Rig) -> str:
    """Pid of the guest's QEMU."""
    return on_host(rig.host, QEMU_PID.format(name=rig.guest.name), timeout_s=30).strip()
