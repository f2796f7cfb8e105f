# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long VMs stand still when there are many of them on a host: each one, and all together.

Small guests that do nothing but speak, in a live update of the kernel that runs already.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import pause_s

from ..command import step
from ..lab import scene
from ..lab.guests.definitions import GuestSpec
from ..lab.hosts import Host, console_on_failure, on_host, wait_until_usable
from ..lab.up import Wish, down, up
from . import jumps, pools
from .floor import sightings

RAM_MIB = 160
# Beside guest RAM: the host itself and its crash kernel, and a QEMU for each guest.
HOST_OWN_MIB, QEMU_MIB = 3072, 96
MOST_VMS = 40
JUMP_LIMIT_S = 1800.0
# On the host: each connection takes its only CPU from the VMs for two seconds.
UNTIL_DONE = "while test -e /var/lib/holdfast/journal.jsonl; do sleep 1; done"


@dataclass(frozen=True)
class Stay:
    """One VM in one live update, seconds. ``pause_s`` by the host's journal, ``silence_s`` as seen from outside.

    ``paused_at`` and ``resumed_at`` by the host's clock.
    """

    vms: int
    number: int
    name: str
    pause_s: float
    silence_s: float
    paused_at: float
    resumed_at: float


def guests(count: int) -> tuple[GuestSpec, ...]:
    """So many guests, the most important one first. Raises HoldfastError for more than there are addresses."""
    if not 1 <= count <= MOST_VMS:
        raise HoldfastError(f"a bench of {count} VMs is not possible", f"ask for 1 to {MOST_VMS}")
    return tuple(
        GuestSpec(f"many{number}", f"10.0.2.{99 + number}", ram_mib=RAM_MIB, memory_mib=16, autostart=False)
        for number in range(1, count + 1)
    )


def measure(folder: Path, counts: Sequence[int], rounds: int, kind: str) -> list[Stay]:
    """Live updates with so many guests, ascending; writes ``many.json``. Raises HoldfastError."""
    folder.mkdir(parents=True, exist_ok=True)
    everybody, found = guests(max(counts)), []
    with _host(folder, everybody, kind) as host:
        for count in sorted(set(counts)):
            scene.start_guests(folder / "lab", guests=everybody[:count])
            for number in range(1, rounds + 1):
                with step(f"{count} VMs: live update {number} of {rounds}"):
                    found += _live_update(host, everybody[:count], number)
                (folder / "many.json").write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    return found


def show(found: Sequence[Stay], console: Console) -> None:
    """Print medians over the rounds: of the median VM, the first and the last to go on, and of the whole host."""
    table = Table(title="Pauses of VMs on one host, seconds, medians", box=SIMPLE_HEAD)
    for name in ("VMs", "median VM", "÷ one VM", "first", "last", "all of them"):
        table.add_column(name, justify="right")
    alone = 0.0
    for count, some in groupby(sorted(found, key=lambda one: (one.vms, one.number)), lambda one: one.vms):
        told = [_told(list(same)) for _, same in groupby(some, lambda one: one.number)]
        middle, first, last, whole = (median(column) for column in zip(*told, strict=True))
        alone = alone or (middle if count == 1 else 0.0)
        ratio = f"{middle / alone:.2f}" if alone else ""
        table.add_row(str(count), f"{middle:.1f}", ratio, f"{first:.1f}", f"{last:.1f}", f"{whole:.1f}")
    console.print(table)


def _told(stays: Sequence[Stay]) -> tuple[float, float, float, float]:
    """Of one live update: the median pause, those of the first and the last to go on, and from first to last."""
    by_return = sorted(stays, key=lambda one: one.resumed_at)
    whole = by_return[-1].resumed_at - min(one.paused_at for one in stays)
    return median(one.pause_s for one in stays), by_return[0].pause_s, by_return[-1].pause_s, whole


@contextmanager
def _host(folder: Path, everybody: tuple[GuestSpec, ...], kind: str) -> Iterator[Host]:
    lab = (folder / "lab").absolute()
    lab.mkdir(exist_ok=True)
    down(lab)
    pool_mib = len(everybody) * RAM_MIB + 512
    try:
        ram_mib = pool_mib + len(everybody) * QEMU_MIB + HOST_OWN_MIB
        host = up(lab, Wish(ram_mib=ram_mib, nodes=1, guests=everybody)).host("hv1")
        with step("hv1: prepared"):
            pools.prepare(lab, kind, prepare_pool_size=f"{pool_mib}M", prepare_max_vms=len(everybody))
        jumps.install(host)
        yield host
    finally:
        down(lab)


def _live_update(host: Host, some: tuple[GuestSpec, ...], number: int) -> list[Stay]:
    """One live update, and proof that everybody carried on. Raises HoldfastError."""
    jumps.settle(host)
    words = " ".join(f"{guest.name} {guest.uuid}" for guest in some)
    sights = sightings(host.console, (jumps.READY,))
    with scene.watched(host, some) as watch, console_on_failure(host):
        next(sights)  # nothing that is already on the console counts
        on_host(host, f"{jumps.PROGRAMS}/request-live-update everything {words}\n")
        next(sights)
        wait_until_usable(host)
        on_host(host, UNTIL_DONE, timeout_s=JUMP_LIMIT_S)
        if (state := _journal(host)["state"]) != "restored":
            raise HoldfastError(f"the live update ended as {state}")
        trouble = watch.finish()
        if trouble:
            raise HoldfastError(f"not everybody carried on: {'; '.join(trouble)}")
        silences = {guest.name: watch.pause_s(guest.name) for guest in some}
    return [_stay(len(some), number, vm, silences[vm["name"]]) for vm in _journal(host)["vms"]]


def _journal(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(on_host(host, "holdfast-agent status --json"))
    return found


def _stay(count: int, number: int, vm: dict[str, Any], silence_s: float) -> Stay:
    stood = pause_s(vm)
    if stood is None or not vm["ram_verified"]:
        raise HoldfastError(f"the journal does not say how {vm['name']} fared")
    return Stay(count, number, vm["name"], round(stood, 3), silence_s, vm["paused_at"], vm["resumed_at"])
