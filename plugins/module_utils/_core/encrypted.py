# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encrypted disks that a host boots from, and that somebody opens by typing a passphrase.

The new kernel would wait for that, and the old one after it, with the VMs suspended. Found by sysfs, where ``dm/uuid``
of what cryptsetup makes begins with CRYPT-, and by crypttab(5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

ROOT = Path("/")
CRYPTTAB = "etc/crypttab"
# Opens what has a token for it, whatever crypttab says; in the initrd by this hook.
CLEVIS = "usr/share/initramfs-tools/hooks/clevis"
NO_KEY = ("none", "-")
# Options of entries that are opened without a person, although they name no key.
BY_THEMSELVES = ("tpm2-device=", "pkcs11-uri=", "keyscript=", "try-empty-password", "plain", "swap", "tmp")


def locked(places: Sequence[str], root: Path = ROOT) -> Tuple[str, ...]:
    """Names of such disks under these directories."""
    if (root / CLEVIS).exists():
        return ()
    entries = _entries(root)
    found = {name for place in places for name in _encrypted(_device_of(place, root))}
    return tuple(sorted(name for name in found if _asks(entries.get(name))))


def _asks(entry: Optional[List[str]]) -> bool:
    """Whether somebody types the passphrase for an entry of crypttab (what follows the name), or opens it by hand."""
    if entry is None:
        return True
    key = entry[1] if len(entry) > 1 else "none"
    options = entry[2].split(",") if len(entry) > 2 else []
    return key in NO_KEY and not any(option.startswith(BY_THEMSELVES) for option in options)


def _entries(root: Path) -> Dict[str, List[str]]:
    try:
        lines = (root / CRYPTTAB).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return {name: rest for name, *rest in words}


def _device_of(place: str, root: Path) -> Path:
    """The block device that a directory is on, in sysfs; one that does not exist where it is on none."""
    best, found = "", root / "sys/dev/block/none"
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        number, mount_point = left.split()[2], left.split()[4]
        if (place + "/").startswith(mount_point.rstrip("/") + "/") and len(mount_point) >= len(best):
            best, found = mount_point, root / "sys/dev/block" / number
            if number.startswith("0:"):  # of a file system with numbers of its own (btrfs): by name
                name = (root / right.split()[1].lstrip("/")).resolve().name
                found = root / "sys/class/block" / name
    return found


def _encrypted(device: Path) -> Iterator[str]:
    """Names of the encrypted devices that this one is, or stands on."""
    if not device.exists():
        return
    place = device.resolve()
    try:
        if (place / "dm/uuid").read_text().startswith("CRYPT-"):
            yield (place / "dm/name").read_text().strip()
    except OSError:  # no mapped device
        pass
    for below in sorted((place / "slaves").glob("*")):
        yield from _encrypted(below)
