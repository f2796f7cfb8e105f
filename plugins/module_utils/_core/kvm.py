# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""KVM, ready before libvirt looks for it.

libvirt's daemon may start before udev has come to the CPU; it then finds no KVM and refuses every VM of the boot's
first seconds, autostarted ones included. After the jump those seconds are the VMs' pause.
"""

from __future__ import annotations

import re
from pathlib import Path

from .command import run

DEVICE = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")


def driver_for(cpuinfo: str) -> str:
    """Kernel module for the CPU described by ``/proc/cpuinfo``; empty when it has no virtualisation."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    words = flags[1].split() if flags else []
    return "kvm_amd" if "svm" in words else "kvm_intel" if "vmx" in words else ""


def make_ready() -> None:
    """Load the driver and wait until udev has given its device to QEMU's group. Raises CommandFailed."""
    driver = driver_for(CPUINFO.read_text())
    if driver:
        run(["modprobe", driver])
        run(["udevadm", "wait", "--timeout=60", "--initialized=true", str(DEVICE)], timeout_s=90)
