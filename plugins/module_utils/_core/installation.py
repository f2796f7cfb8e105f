# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent needs around it on a host: three systemd units and libvirt's hook, each a small file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Tuple

from . import durable
from .command import run
from .packing import PATH

UNITS = Path("/etc/systemd/system")
HOOK = Path("/etc/libvirt/hooks/qemu.d/holdfast")

# As early as its state directory is there: the agent loads the pool's drivers itself and waits for their device, so
# that neither udev's walk over all devices nor anything that comes after it stands before the restore.
POOL_UNIT = f"""\
[Unit]
Description=Attach the pool of VM RAM (holdfast)
DefaultDependencies=no
After=systemd-remount-fs.service
RequiresMountsFor=/var/lib/holdfast /boot
Before=libvirtd.service virtqemud.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
TimeoutStartSec=infinity
Restart=on-abnormal
ExecStart={PATH} attach
ExecStop=/bin/umount /var/lib/holdfast/pool

[Install]
WantedBy=multi-user.target
"""

RESTORE_UNIT = f"""\
[Unit]
Description=Bring back the VMs of the live update in flight (holdfast)
ConditionPathExists=/var/lib/holdfast/journal.jsonl
Wants=libvirtd.socket
After=libvirtd.socket libvirtd.service virtqemud.socket virtqemud.service holdfast-pool.service network.target

[Service]
Type=oneshot
TimeoutStartSec=infinity
Restart=on-abnormal
ExecStart={PATH} recover

[Install]
WantedBy=multi-user.target
"""

# No limit in time: a live update is over when it is over, and its own deadlines are in its request. An agent that is
# killed leaves paused VMs behind; what comes after it brings them back, and finds nothing to do otherwise. Before that
# systemd ends the agent's children, so that no kexec is under way while VMs are brought back.
LIVE_UPDATE_UNIT = f"""\
[Unit]
Description=Live update of this host (holdfast)
After=holdfast-pool.service libvirtd.service virtqemud.service

[Service]
Type=oneshot
TimeoutStartSec=infinity
TimeoutStopSec=infinity
ExecStart={PATH} live-update
ExecStopPost={PATH} recover
"""

# By way of /usr/bin/python3: that is what AppArmor's profile of libvirtd lets leave its confinement.
HOOK_SCRIPT = f"""\
#!/bin/sh
# Written by holdfast. Gives VMs their RAM in the pool; a failure is a veto.
case "$2/$3" in
    prepare/begin | start/begin) exec /usr/bin/python3 -I {PATH} hook "$1" "$2" "$3" "$4" ;;
esac
exit 0
"""

ENABLED = ("holdfast-pool.service", "holdfast-restore.service")


@dataclass(frozen=True)
class HostFile:
    """A file as it shall be on the host."""

    path: Path
    text: str
    mode: int = 0o644

    @property
    def present_text(self) -> str:
        """What is there now; empty when nothing is."""
        return self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""

    @property
    def is_current(self) -> bool:
        return self.present_text == self.text and (self.path.stat().st_mode & 0o7777) == self.mode


FILES: Tuple[HostFile, ...] = (
    HostFile(UNITS / "holdfast-pool.service", POOL_UNIT),
    HostFile(UNITS / "holdfast-restore.service", RESTORE_UNIT),
    HostFile(UNITS / "holdfast-live-update.service", LIVE_UPDATE_UNIT),
    HostFile(HOOK, HOOK_SCRIPT, 0o755),
)


def enabled(units: Path = UNITS) -> bool:
    """Whether systemd starts our units at boot."""
    return all(any(units.glob(f"*.wants/{unit}")) for unit in ENABLED)


def put(files: Iterable[HostFile]) -> None:
    """Write files and let systemd start the units at boot. Raises HoldfastError."""
    for file in files:
        # Readable for all, as packages make them: durable's own directories are private.
        file.path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(file.path, file.text, mode=file.mode)
    run(["systemctl", "daemon-reload"])
    run(["systemctl", "enable", *ENABLED])


def take_away(files: Iterable[HostFile]) -> None:
    """Stop the units, which unmounts the pool, and remove the files. Raises CommandFailed while a VM is in the pool."""
    known = [unit for unit in ENABLED if (UNITS / unit).exists()]
    if known:
        run(["systemctl", "disable", "--now", *known], timeout_s=180)
    for file in files:
        file.path.unlink(missing_ok=True)
    run(["systemctl", "daemon-reload"])
