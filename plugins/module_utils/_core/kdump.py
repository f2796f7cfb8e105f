# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the distribution's crash dumps (Debian's kdump-tools) out of the way of the guard, for as long as it stands.

Its unit starts before any VM is restored. In a guarded kernel it would load its own crash kernel in the place of ours;
in ours it would find a dead kernel's memory, save it, and reboot the host at once (/etc/init.d/kdump-tools). There the
command line masks it (``cmdline.crash_command_line``).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from .cmdline import KDUMP_UNIT
from .command import run

INSTALLED = Path("/usr/lib/systemd/system") / KDUMP_UNIT
MASKS = Path("/run/systemd/system")
# Exists from systemd's own start on: in the initramfs it does not.
SYSTEMD = Path("/run/systemd/private")
# What systemctl is-enabled ends with for a unit that is, and for one that is not.
ENABLED_OR_NOT = (0, 1)


def hold() -> None:
    """For this boot, or until ``let_go``: no other crash kernel is loaded. Before ours is. Raises CommandFailed."""
    if not INSTALLED.exists():
        return
    if SYSTEMD.exists():
        # It may have begun. Its end unloads what it has loaded.
        run(["systemctl", "mask", "--runtime", "--now", KDUMP_UNIT])
        return
    MASKS.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (MASKS / KDUMP_UNIT).symlink_to("/dev/null")


def let_go() -> None:
    """It may load its crash kernel again, and does where it is switched on. Raises CommandFailed."""
    if not (MASKS / KDUMP_UNIT).is_symlink():
        return
    if not SYSTEMD.exists():
        (MASKS / KDUMP_UNIT).unlink()
        return
    run(["systemctl", "unmask", "--runtime", KDUMP_UNIT])
    if run(["systemctl", "is-enabled", KDUMP_UNIT], good=ENABLED_OR_NOT).strip() == "enabled":
        run(["systemctl", "start", "--no-block", KDUMP_UNIT])
