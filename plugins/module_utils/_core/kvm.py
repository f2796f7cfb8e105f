# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""KVM, ready before libvirt looks for it.

libvirt's daemon may start before udev has come to the CPU; it then finds no KVM and refuses every VM of the boot's
first seconds, autostarted ones included. After the jump those seconds are the VMs' pause.
"""

from __future__ import annotations

import grp
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path

from .command import run
from .errors import CommandFailed

DEVICE = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")
GROUP, MODE = "kvm", 0o660
OWN_RULES = (Path("/etc/udev/rules.d"), Path("/run/udev/rules.d"))
RULE = re.compile(r"\bkvm\b")
GROUP_ACCESS = stat.S_IRGRP | stat.S_IWGRP
LIMIT_S = 60.0


def driver_for(cpuinfo: str) -> str:
    """Kernel module for the CPU described by ``/proc/cpuinfo``; empty when it has no virtualisation."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    words = flags[1].split() if flags else []
    return "kvm_amd" if "svm" in words else "kvm_intel" if "vmx" in words else ""


def make_ready() -> None:
    """Load the driver, and see to it that QEMU's group may open the device. Raises CommandFailed.

    The node that comes with the driver is root's alone until udev has come to it, in its walk over all devices.
    """
    driver = driver_for(CPUINFO.read_text())
    if not driver:
        return
    run(["modprobe", driver])
    if not open_to_group(DEVICE):
        _open_as_udev_will()
    deadline = time.monotonic() + LIMIT_S
    while not open_to_group(DEVICE):
        if time.monotonic() > deadline:
            raise CommandFailed(f"{DEVICE} is not open to its group after {LIMIT_S:.0f} s", "see udev's rules for kvm")
        time.sleep(0.01)


def _open_as_udev_will() -> None:
    """By the rule that comes with udev (50-udev-default.rules).

    Where a site has a rule of its own for this device, or there is no such group, udev does it, and is waited for.
    """
    with suppress(OSError, KeyError):
        rules = [path.read_text(errors="replace") for folder in OWN_RULES for path in folder.glob("*.rules")]
        if not any(RULE.search(rule) for rule in rules):
            os.chown(DEVICE, -1, grp.getgrnam(GROUP).gr_gid)
            os.chmod(DEVICE, MODE)


def open_to_group(device: Path) -> bool:
    """Whether the node is there and more than what the kernel makes: that one is root's alone."""
    try:
        return device.stat().st_mode & GROUP_ACCESS == GROUP_ACCESS
    except FileNotFoundError:
        return False
