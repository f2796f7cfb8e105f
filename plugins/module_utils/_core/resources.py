# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ranges of RAM, files of RAM, libvirt's services: small things that facts are made of.

Apart from the facts, because the way from the jump to the first restored VM needs these and none of the others, and
each class costs its start.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Tuple

# As the firmware map calls what the kernel may use.
RAM_KIND = "System RAM"
# As /proc/iomem calls RAM that is kept for a purpose of its own.
SOFT_KIND = "Soft Reserved"


@dataclass(frozen=True)
class Region:
    """One physical range ``[start, start + size)``; ``kind`` as the firmware map names it."""

    start: int
    size: int
    kind: str = RAM_KIND
    node: int = 0

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class RamFile:
    """One RAM block that libvirt backs with a file: its name in the VM's directory, and its size.

    ``nodes``: the host's NUMA nodes that its VM's definition binds it to; none when it may lie anywhere.
    """

    name: str
    size_bytes: int
    nodes: Tuple[int, ...] = ()


@dataclass(frozen=True)
class Room:
    """A pool's size, what of it is free for the RAM of VMs, and what is for device states (bytes)."""

    size_bytes: int
    free_bytes: int
    state_bytes: int


@dataclass(frozen=True)
class KeptRam:
    """One RAM block that is kept for a VM: ``path`` is where its bytes can be read, a file or a device.

    ``place`` says which RAM it is, as long as it is kept: the file's inode, or the physical address of its start.
    """

    name: str
    path: Path
    size_bytes: int
    place: int


@dataclass(frozen=True)
class Watchdog:
    """A watchdog in hardware that counts: ``holder`` with its ``pid`` feeds it, within ``timeout_s`` each time.

    0 where that is not known. ``may_stop``: whether its holder can stop it.
    """

    device: str
    identity: str
    timeout_s: int = 0
    may_stop: bool = True
    pid: int = 0
    holder: str = ""

    @property
    def is_systemds(self) -> bool:
        """Whether systemd can be told to stop it."""
        return self.pid == 1 and self.may_stop

    @property
    def text(self) -> str:
        """For people."""
        limit = f", {self.timeout_s} s" if self.timeout_s else ""
        feeder = f"fed by {self.holder} (process {self.pid})" if self.pid else "fed by nobody that can be seen"
        return f"{self.device} ({self.identity}{limit}), {feeder}{'' if self.may_stop else ', cannot be stopped'}"


@dataclass(frozen=True)
class Service:
    """An active network or storage pool of libvirt's; ``autostart``: it starts with the host."""

    name: str
    autostart: bool = True
