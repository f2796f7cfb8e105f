# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent needs around it on a host: systemd units, libvirt's hook, a script in initrds, each a small file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Mapping, Sequence, Tuple

from . import durable, kexec, packing, releases
from .command import run
from .errors import HoldfastError
from .guard import EARLY_MARK
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
# systemd ends the agent's children, so that no kexec is under way while VMs are brought back. Should that be killed,
# too, the unit of the restore does it, as often as it is killed; without a journal in flight it does nothing.
LIVE_UPDATE_UNIT = f"""\
[Unit]
Description=Live update of this host (holdfast)
After=holdfast-pool.service libvirtd.service virtqemud.service
OnFailure=holdfast-restore.service

[Service]
Type=oneshot
TimeoutStartSec=infinity
TimeoutStopSec=infinity
ExecStart={PATH} live-update
ExecStopPost={PATH} recover
"""

# The VM's name stays behind ($1): a name that begins with a dash is an option to whoever is called with it.
# By way of /usr/bin/python3: that is what AppArmor's profile of libvirtd lets leave its confinement.
HOOK_SCRIPT = f"""\
#!/bin/sh
# Written by holdfast. Gives VMs their RAM in the pool; a failure is a veto.
case "$2/$3" in
    prepare/begin | start/begin) exec /usr/bin/python3 -I {PATH} hook "$2" "$3" ;;
esac
exit 0
"""

IN_INITRD = "scripts/init-bottom/holdfast"
INITRAMFS_SCRIPT = Path("/etc/initramfs-tools") / IN_INITRD
# Where initrds are made in another way, the pool's unit does what the script would.
RENEW_INITRDS = Path("/usr/sbin/update-initramfs")
# Of initramfs-tools; dracut has another.
LIST_INITRD = "lsinitramfs"
# As early as there is a root file system: here the kernel has proven little more than that it finds its disk. /dev is
# there already, moved by udev's script. With the tools of an initramfs (klibc), and never in the way of the boot.
INITRAMFS_TEXT = f"""\
#!/bin/sh
# Written by holdfast. After a jump, lets the old kernel take over if this one dies.
case "$1" in
    prereqs) echo udev; exit 0 ;;
esac
case "$(cat /proc/cmdline)" in
    *elfcorehdr=*) exit 0 ;;
    *holdfast.generation=*) ;;
    *) exit 0 ;;
esac
# Done already, at this kernel's very beginning; the pool's unit takes that over.
[ ! -e "$rootmnt/dev/{EARLY_MARK}" ] || exit 0
[ -x "$rootmnt{PATH}" ] || exit 0
for place in proc sys run; do
    mount -n -o bind "/$place" "$rootmnt/$place"
done
chroot "$rootmnt" {PATH} guard >"$rootmnt/dev/kmsg" 2>&1
for place in run sys proc; do
    umount "$rootmnt/$place"
done
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
    HostFile(INITRAMFS_SCRIPT, INITRAMFS_TEXT, 0o755),
)


def outdated(sources: Mapping[str, bytes], agent: Path = PATH) -> Tuple[str, ...]:
    """What is there, and not as the collection with these sources of the agent has it."""
    packed = agent.read_bytes() if agent.exists() else b""
    old = [] if not packed or packing.is_current(packed, sources) else [str(agent)]
    return (*old, *(str(file.path) for file in FILES if file.path.exists() and not file.is_current))


def enabled(units: Path = UNITS) -> bool:
    """Whether systemd starts our units at boot."""
    return all(any(units.glob(f"*.wants/{unit}")) for unit in ENABLED)


def put(files: Sequence[HostFile]) -> None:
    """Write files, let systemd start the units at boot, and renew the initrds that they are in. Raises HoldfastError.

    Kernels that come later get theirs by their installation.
    """
    for file in files:
        # Readable for all, as packages make them: durable's own directories are private.
        file.path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(file.path, file.text, mode=file.mode)
    run(["systemctl", "daemon-reload"])
    run(["systemctl", "enable", *ENABLED])
    if RENEW_INITRDS.exists() and any(file.text == INITRAMFS_TEXT for file in files):
        # Not that of the running kernel, which is the one to be left: should it be jumped to one day, the pool's unit
        # does what the script would.
        for release in sorted(set(releases.installed()) - {kexec.running_release()}):
            run([str(RENEW_INITRDS), "-u", "-k", release], timeout_s=1800)


def take_away(files: Iterable[HostFile]) -> None:
    """Stop the units, which unmounts the pool, and remove the files, from initrds as well.

    Raises CommandFailed while a VM is in the pool.
    """
    known = [unit for unit in ENABLED if (UNITS / unit).exists()]
    if known:
        run(["systemctl", "disable", "--now", *known], timeout_s=180)
    # Before the other files go: whoever is interrupted here finds something to remove the next time, too.
    INITRAMFS_SCRIPT.unlink(missing_ok=True)
    if RENEW_INITRDS.exists():
        for release in filter(_is_in_initrd, releases.installed()):
            run([str(RENEW_INITRDS), "-u", "-k", release], timeout_s=1800)
    for file in files:
        file.path.unlink(missing_ok=True)
    run(["systemctl", "daemon-reload"])


def initrd_files(initrd: Path) -> Sequence[str]:
    """Paths of what is in an initrd. Raises CommandFailed when it cannot be listed."""
    return run([LIST_INITRD, str(initrd)], timeout_s=120).splitlines()


def _is_in_initrd(release: str) -> bool:
    """Whether our script is in a kernel's initrd. Those that were made before it came are left as they are.

    So is one that nobody can list; without the agent the script does nothing.
    """
    try:
        return IN_INITRD in initrd_files(kexec.image_of(release)[1])
    except HoldfastError:
        return False
