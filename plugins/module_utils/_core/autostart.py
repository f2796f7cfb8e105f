# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt's autostart, which is for hosts that were started; after a jump VMs go on as they were, running or off.

libvirt starts its autostart VMs once per boot, and remembers by an empty file that it has (virDriverShouldAutostart).
Without that file it would try each VM that waits in the pool, one after the other, and be refused by our hook, before
it answers anybody.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

DONE = Path("/run/libvirt/qemu/autostarted")


def forgo() -> None:
    """Let libvirt start no VM by itself in this boot. Before its daemon starts; safe to call again.

    Not worth a failure: the hook refuses each VM that waits all the same.
    """
    with suppress(OSError):
        DONE.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        DONE.touch(mode=0o600)
