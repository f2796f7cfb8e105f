# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests at work on a lab hypervisor, and somebody outside who watches them: what demo, tests and bench share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError

from ..command import step
from .guests.definitions import GUESTS, GuestSpec, Role
from .guests.observer import (
    Held,
    HeldConnection,
    HoldListener,
    RedisProbe,
    Snapshot,
    Witness,
    compare,
    take,
)
from .hosts import Host, Lab, emulator_failed, on_host, power_on, stop, wait_until_usable

LOOPBACK = "127.0.0.1"
# A guest boots in 10 to 60 s under nested emulation; 299 s were seen where neighbours took two fifths of the machine.
GUEST_LIMIT_S = 900.0
# In between the host is looked at.
KNOCK_S = 60.0
ATTEMPTS = 3
# After a reboot libvirt starts guests by itself, possibly between our look and our start.
START = """\
runs() {{ virsh -q domstate {name} | grep -q running; }}
runs || virsh -q start {name} || runs
"""
# A guest that is silent may have crashed, wait for something, or run in circles: its console, and twice where its CPU
# is, tell these apart; its stack says how it got there.
PORTRAITS = """
for name in $(virsh -q list --all --name); do
    printf '== %s: %s\\n' "$name" "$(virsh -q domstate --reason "$name")"
    tail -n 25 "/var/log/libvirt/qemu/$name-console.log" "/var/log/libvirt/qemu/$name.log" || true
    virsh -q domstate "$name" | grep -q running || continue
    for ask in 'info registers' 'info lapic' 'x/96gx $esp' 'info registers'; do
        echo "-- $ask"
        timeout 60 virsh -q qemu-monitor-command "$name" --hmp "$ask" | grep -v '^[FX]' || true
    done
done 2>&1
"""


def portraits(host: Host) -> str:
    """What every guest of a host is doing, for whoever has to find out why one is silent. Empty without a host."""
    with contextlib.suppress(CommandFailed):
        return on_host(host, PORTRAITS) if host.alive else ""
    return f"{host.name} does not answer\n"


def start_guests(folder: Path, name: str = "hv1", guests: Sequence[GuestSpec] = GUESTS) -> Host:
    """Start the guests that do not run yet, one by one, and wait until each bears witness.

    When the emulator breaks down, the host is powered on again. Raises HoldfastError.
    """
    for attempt in range(1, ATTEMPTS + 1):
        host = Lab.load(folder).host(name)
        try:
            for guest in guests:
                _start(host, guest)
            return host
        except HoldfastError:
            if attempt == ATTEMPTS or not emulator_failed(host):
                raise
        with step(f"{name}: the emulator broke down (a known fault of it); power on again"):
            stop(host)
            power_on(Lab.load(folder), host)
            wait_until_usable(Lab.load(folder).host(name))
    raise AssertionError("unreachable")


def _start(host: Host, guest: GuestSpec) -> None:
    with step(f"{host.name}: guest {guest.name} ({guest.ram_mib} MiB, {guest.machine}, {guest.firmware}) runs"):
        on_host(host, START.format(name=guest.name))
        wait_for_guest(host, guest)


def wait_for_guest(host: Host, guest: GuestSpec) -> dict[str, Any]:
    """Wait until a guest bears witness, and return its state.

    Raises HoldfastError after GUEST_LIMIT_S, and at once when the emulator breaks down.
    """
    deadline = time.monotonic() + GUEST_LIMIT_S
    while True:
        try:
            return witness(host, guest).wait(limit_s=KNOCK_S)
        except HoldfastError:
            if emulator_failed(host) or not host.alive or time.monotonic() > deadline:
                raise


def witness(host: Host, guest: GuestSpec) -> Witness:
    """The guest's own word on itself."""
    return Witness(LOOPBACK, host.port(f"{guest.name}.witness"))


@dataclass
class Watch:
    """Guests under watch. ``before`` is what was seen at its beginning; connections are held until ``finish``."""

    host: Host
    guests: tuple[GuestSpec, ...]
    before: dict[str, Snapshot] = field(default_factory=dict)
    after: dict[str, Snapshot] = field(default_factory=dict)
    _probes: dict[str, RedisProbe] = field(default_factory=dict)
    _holders: dict[str, list[HeldConnection | HoldListener]] = field(default_factory=dict)

    def begin(self) -> None:
        """Load the databases, open the connections, and take the first look."""
        for guest in self.guests:
            holders: list[HeldConnection | HoldListener] = [
                HoldListener(LOOPBACK, self.host.port(f"{guest.name}.witness"), f"{guest.name}.witness")
            ]
            if guest.role is Role.DB:
                port = self.host.port(f"{guest.name}.redis")
                self._probes[guest.name] = RedisProbe(LOOPBACK, port)
                self._probes[guest.name].load()
                holders.append(HeldConnection(LOOPBACK, port, f"{guest.name}.redis"))
            for holder in holders:
                holder.start()
            self._holders[guest.name] = holders
            self.before[guest.name] = self._look(guest, ())

    def finish(self) -> list[str]:
        """Close the connections, take the last look, and return everything that did not carry on."""
        for guest in self.guests:
            held = tuple(holder.stop() for holder in self._holders.pop(guest.name, ()))
            self.after[guest.name] = self._look(guest, held)
        return [text for guest in self.guests for text in compare(self.before[guest.name], self.after[guest.name])]

    def pause_s(self, name: str) -> float:
        """The longest silence of a guest, in seconds, as seen from outside."""
        return next(held.longest_gap_s for held in self.after[name].held if held.name.endswith(".witness"))

    def held(self, name: str) -> tuple[Held, ...]:
        """How the guest's connections fared."""
        return self.after[name].held

    def so_far(self, name: str) -> tuple[Held, ...]:
        """How the guest's connections fare, while they are held."""
        return tuple(holder.so_far() for holder in self._holders[name])

    def look(self, guest: GuestSpec) -> Snapshot:
        """Look at a guest in between, connections included."""
        return self._look(guest, self.so_far(guest.name))

    def _look(self, guest: GuestSpec, held: Sequence[Held]) -> Snapshot:
        # The lab's port forward hangs up after 75 s, which a guest that maps its RAM anew may need on a slow machine.
        wait_for_guest(self.host, guest)
        return take(witness(self.host, guest), self._probes.get(guest.name), held)

    def abandon(self) -> None:
        """Let go of all connections without judging."""
        for holders in self._holders.values():
            for holder in holders:
                holder.stop(limit_s=1)


@contextlib.contextmanager
def watched(host: Host, guests: Sequence[GuestSpec] = GUESTS) -> Iterator[Watch]:
    """Watch guests through whatever the block does; call ``finish`` in it for the verdict."""
    watch = Watch(host, tuple(guests))
    with step(f"{host.name}: data loaded, connections opened, first look taken"):
        watch.begin()
    try:
        yield watch
    finally:
        watch.abandon()
