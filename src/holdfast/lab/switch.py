# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's switch: what all hosts have their cables in, and the way to them and to their guests from outside.

It is an emulator without a machine, for an emulator speaks the cables' protocol and has a user-mode network. A process
of its own, because everybody has to be reached while any one host is in its jump, or off.

Two networks, because the user-mode network asks no frame whom it is for: it takes what hosts say to each other for
theirs to it, tries to go there itself, and resets their connections.
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
# What a host's emulator calls its own ends of its cables: to the outside and to guests, and to the other hosts alone.
CARDS = ("uplink", "peers")
# UDP ports on loopback: the host's end, and the switch's.
Cable = tuple[int, int]
# A host's, one for each of its CARDS.
Cables = tuple[Cable, ...]


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

    ``cables``: those of each host that the lab may have.
    """

    pid: int
    folder: str
    forwards: tuple[Forward, ...]
    cables: tuple[Cables, ...] = ()

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
    """Start a switch with sockets for each host that the lab may have. Returns at once."""
    hosts = [Forward(f"hv{number}.ssh", address(number), 22) for number in range(1, MOST_HOSTS + 1)]
    forwards = tuple(replace(each, local=_free_port()) for each in (*hosts, *guests))
    folder.mkdir(parents=True, exist_ok=True)
    cables = tuple(tuple(_cable() for _ in CARDS) for _ in range(MOST_HOSTS))
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


def plug_arguments(cables: Cables, number: int) -> list[str]:
    """A host's ends of its cables, for its emulator; as good as new whenever either end was away."""
    words = []
    for card, cable in zip(CARDS, cables, strict=True):
        words += ["-netdev", _end(card, cable, HOST_END, SWITCH_END)]
        words += ["-device", f"virtio-net-pci,netdev={card},mac={mac(card, number)},romfile="]
    return words


def mac(card: str, number: int) -> str:
    """Address of a host's card."""
    return f"52:54:00:0f:{CARDS.index(card):02x}:{number:02x}"


def _arguments(folder: Path, forwards: Sequence[Forward], cables: Sequence[Cables]) -> list[str]:
    outside = f"user,id=outside,net={NETWORK},host={OUTSIDE}," + ",".join(
        f"hostfwd=tcp:127.0.0.1:{each.local}-{each.address}:{each.port}" for each in forwards
    )
    words = [BINARY, "-M", "none", "-nodefaults", "-display", "none", "-monitor", "none", "-name", "switch"]
    words += ["-pidfile", str(_mark(folder)), *_port(CARDS[0], "outside", outside)]
    for number, of_host in enumerate(cables, start=1):
        for card, cable in zip(CARDS, of_host, strict=True):
            name = f"{card}{number}"
            words += _port(card, name, _end(name, cable, SWITCH_END, HOST_END))
    return words


def _port(card: str, name: str, netdev: str) -> list[str]:
    """A port of the network that these cards are on."""
    return ["-netdev", netdev, "-netdev", f"hubport,id=port-{name},hubid={CARDS.index(card)},netdev={name}"]


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


def _cable() -> Cable:
    return _free_port(socket.SOCK_DGRAM), _free_port(socket.SOCK_DGRAM)


def _free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(type=kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
