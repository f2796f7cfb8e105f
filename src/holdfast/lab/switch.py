# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's switch: what all hosts have their one cable in, and the way to them and to their guests from outside.

It is an emulator without a machine, for an emulator speaks the cables' protocol and has a user-mode network. A process
of its own, because everybody has to be reached while any one host is in its jump, or off.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..command import spawn
from .emulator import BINARY

NETWORK, OUTSIDE = "10.0.2.0/24", "10.0.2.2"
MOST_HOSTS = 3
HOST_END, SWITCH_END = 0, 1
# What a host's emulator calls its own end of the cable.
CARD = "uplink"
# UDP ports on loopback: the host's end, and the switch's.
Cable = tuple[int, int]


@dataclass(frozen=True)
class Forward:
    """A loopback port of this machine that leads to ``address:port`` on the lab's network."""

    name: str
    address: str
    port: int
    local: int = 0


@dataclass(frozen=True)
class Switch:
    """A running switch. ``forwards``: of hosts, ``<host>.ssh``, and of guests, ``<guest>.<service>``.

    ``cables``: one for each host that the lab may have.
    """

    pid: int
    folder: str
    forwards: tuple[Forward, ...]
    cables: tuple[Cable, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether the process on record is still our switch (a pid may have been reused)."""
        with contextlib.suppress(OSError):
            return str(_mark(Path(self.folder))).encode() in Path(f"/proc/{self.pid}/cmdline").read_bytes()
        return False

    def of(self, host: str) -> tuple[Forward, ...]:
        """What leads to a host, as ``ssh``, and to all guests, which may be on any host."""
        own = [replace(each, name="ssh") for each in self.forwards if each.name == f"{host}.ssh"]
        return (*own, *(each for each in self.forwards if not each.name.endswith(".ssh")))


def address(number: int) -> str:
    """A host's address on the way to the outside."""
    return f"10.0.2.{14 + number}"


def start(folder: Path, guests: Sequence[Forward]) -> Switch:
    """Start a switch with a socket for each host that the lab may have. Returns at once."""
    hosts = [Forward(f"hv{number}.ssh", address(number), 22) for number in range(1, MOST_HOSTS + 1)]
    forwards = tuple(replace(each, local=_free_port()) for each in (*hosts, *guests))
    folder.mkdir(parents=True, exist_ok=True)
    ports = [_free_port(socket.SOCK_DGRAM) for _ in range(2 * MOST_HOSTS)]
    cables = tuple(zip(ports[::2], ports[1::2], strict=True))
    pid = spawn(_arguments(folder, forwards, cables), folder / "switch.log")
    switch = Switch(pid, str(folder), forwards, cables)
    for _ in range(50):  # a new process shows its arguments only a moment after it began
        if switch.alive:
            break
        time.sleep(0.1)
    return switch


def stop(switch: Switch) -> None:
    """End it by pid, and only if it is ours."""
    if switch.alive:
        os.kill(switch.pid, signal.SIGTERM)


def plug_arguments(cable: Cable, number: int) -> list[str]:
    """A host's end of its cable, for its emulator; as good as new whenever either end was away."""
    wire = _end(CARD, cable, HOST_END, SWITCH_END)
    return ["-netdev", wire, "-device", f"virtio-net-pci,netdev={CARD},mac={mac(number)},romfile="]


def mac(number: int) -> str:
    """Address of a host's only card."""
    return f"52:54:00:0f:00:{number:02x}"


def _arguments(folder: Path, forwards: Sequence[Forward], cables: Sequence[Cable]) -> list[str]:
    outside = f"user,id=outside,net={NETWORK},host={OUTSIDE}," + ",".join(
        f"hostfwd=tcp:127.0.0.1:{each.local}-{each.address}:{each.port}" for each in forwards
    )
    ends = [_end(f"hv{number}", cable, SWITCH_END, HOST_END) for number, cable in enumerate(cables, start=1)]
    words = [BINARY, "-M", "none", "-nodefaults", "-display", "none", "-monitor", "none", "-name", "switch"]
    words += ["-pidfile", str(_mark(folder))]
    for number, each in enumerate([outside, *ends]):
        name = each.split("id=")[1].split(",")[0]
        words += ["-netdev", each, "-netdev", f"hubport,id=port{number},hubid=0,netdev={name}"]
    return words


def _end(netdev: str, cable: Cable, local: int, remote: int) -> str:
    """One end of a cable: datagrams, since a stream's socket blocks while nobody reads at its other end.

    It would block the whole switch, so that one host that stands still cuts off all others. Frames for such a host are
    lost, as with a real switch.
    """
    here = f"local.type=inet,local.host=127.0.0.1,local.port={cable[local]}"
    there = f"remote.type=inet,remote.host=127.0.0.1,remote.port={cable[remote]}"
    return f"dgram,id={netdev},{here},{there}"


def _mark(folder: Path) -> Path:
    """By this among its arguments a process is known as a lab's switch."""
    return folder / "switch.pid"


def _free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(type=kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
