# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How frames of VMs leave the host: the bridges, switches and cards that VMs are on, and whether those carry.

A guest that goes on before its bridge does speaks into nothing; TCP then tries again after ever longer intervals, so a
network that is late by some seconds is missed for up to twice as long.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Callable, Iterator, Sequence, Set, Tuple

NET = Path("/sys/class/net")
# BR_STATE_FORWARDING of linux/if_bridge.h.
FORWARDING = "3"
LOOK_S = 0.02
# Between two questions whether it is in vain, which are for libvirt.
LOOKS = 25


def carrying(also: Sequence[str] = (), net: Path = NET) -> Tuple[str, ...]:
    """Names of what VMs are on that leads out of this host just now; a network within the host is not among them.

    ``also`` is looked at although no VM may be on it any more.
    """
    names = {device.name for device in _used_by_vms(net)} | set(also)
    return tuple(sorted(name for name in names if _carries(net / name)))


def silent(
    names: Sequence[str], until: float, net: Path = NET, in_vain: Callable[[], bool] = lambda: False
) -> Tuple[str, ...]:
    """Wait until all of them carry, the clock (monotonic) is at ``until``, or it is ``in_vain``.

    Returns those that do not carry.
    """
    for look in itertools.count(1):
        found = tuple(name for name in names if not _carries(net / name))
        if not found or time.monotonic() >= until or (look % LOOKS == 0 and in_vain()):
            return found
        time.sleep(LOOK_S)
    raise AssertionError("never counted to the end")


def lost(name: str) -> str:
    """What to say of one that carries no more."""
    return f"{name} carried the frames of VMs out of the host before, and does not now"


def _used_by_vms(net: Path) -> Set[Path]:
    used = set()
    for device in net.iterdir():
        if _is_tap(device) and (device / "master").exists():
            used.add((device / "master").resolve())
        elif (device / "macvtap").exists():
            used.update(_below(device))
    return used


def _carries(device: Path) -> bool:
    """Whether frames come through: as the port of a bridge, as one that has ports itself, or as a card."""
    state = _read(device / "brport/state")
    if state:
        return state == FORWARDING
    ports = [port for port in _below(device) if (port / "master").exists()]
    if ports or (device / "bridge").exists():
        return any(_leads_out(port) and _carries(port) for port in ports)
    return _read(device / "carrier") == "1"


def _leads_out(port: Path) -> bool:
    """Hardware, something made of hardware, or a tunnel; neither a VM's tap nor the end of a container's veth."""
    uevent = _read(port / "uevent").splitlines()
    return not _is_tap(port) and ((port / "device").exists() or "DEVTYPE=vxlan" in uevent or any(_below(port)))


def _is_tap(device: Path) -> bool:
    return (device / "tun_flags").exists()


def _below(device: Path) -> Iterator[Path]:
    """What a device is made of: a bridge of its ports, a bond of its members, a VLAN or a macvtap of its card."""
    return (lower.resolve() for lower in device.glob("lower_*"))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # absent; or the kernel does not tell, as of the carrier of what is switched off
        return ""
