# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is this kernel fit to run VMs? Asked after the jump, before any VM is resumed, while the way back is still open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List

from . import cpu, kexec
from .command import run
from .errors import CommandFailed, HoldfastError
from .hypervisor import connect_patiently
from .journal import HELD, STORED, Journal
from .request import Request

KVM = Path("/dev/kvm")
# What is saved of a VM in one of these states goes on with the CPU that it had.
WITH_STATE = (*HELD, *STORED)
COMMAND_LIMIT_S = 60.0
# Bits of the kernel's taint that mean damage (Documentation/admin-guide/tainted-kernels.rst).
DAMAGE = {4: "a machine check", 5: "a bad page", 7: "an oops", 14: "a soft lockup"}


def problems(wanted: Request, journal: Journal) -> List[str]:
    """Every reason not to run VMs on this kernel."""
    found = []
    if not os.access(KVM, os.R_OK | os.W_OK):
        found.append("there is no /dev/kvm")
    found += damage(kexec.taint() & ~int(journal.view.get("taint", 0)))
    names = {vm["uuid"]: vm["name"] for vm in journal.vms if vm["state"] in WITH_STATE}
    found += cpu.problems(journal.view.get("cpu", {}), cpu.offered(), names)
    try:
        with connect_patiently() as hypervisor:
            hypervisor.libvirt_version()
    except HoldfastError as exc:
        found.append(exc.message)
    if wanted.health_command:
        found += command_problems("the health command", wanted.health_command)
    return found


def damage(new_taint: int) -> List[str]:
    """What the bits of a taint value say that came up since the jump."""
    return [f"the kernel reports {what}" for bit, what in DAMAGE.items() if new_taint >> bit & 1]


def command_problems(name: str, command: str) -> List[str]:
    """What an operator's own shell command finds, called ``name``: nothing when it succeeds."""
    try:
        run(["/bin/sh", "-c", command], timeout_s=COMMAND_LIMIT_S)
    except CommandFailed as exc:
        return [f"{name} says no: {exc.message}"]
    return []
