# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long VMs will stand still: learnt from this fleet's own journals and reports, assumed where there are none.

A VM's pause is the host's floor, plus one round for each ``parallel`` VMs that are at least as important: the most
important VM is suspended last and restored first, so it waits for one round of saving and one of restoring, the next
ones for two, and so on. Both parts are measured apart, since hosts differ in the floor, and runs in their number of
VMs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple

from .._core.facts import Treatment
from .model import Host, Pauses, Switchover

# Nothing measured: a kernel that boots in a dozen seconds on hardware, and device states of a few MiB. Careful guesses
# until the first host of this fleet was upgraded.
ASSUMED_FLOOR_S = (12.0, 45.0)
ASSUMED_EACH_S = (0.5, 2.0)
# QEMU's default downtime-limit is 300 ms (DEFAULT_MIGRATE_SET_DOWNTIME); it is kept by estimate, so leave room.
ASSUMED_SWITCHOVER_S = (0.3, 1.0)
ASSUMED = "assumed, nothing measured yet"


@dataclass(frozen=True)
class Run:
    """One live update that has been measured: its floor, and saving plus restoring of each VM, in seconds."""

    host: str
    floor_s: float
    each_s: Tuple[float, ...]


def runs(host: str, journal: Mapping[str, Any]) -> List[Run]:
    """The run that a journal, or one host of a report, tells of: none, unless all its VMs were saved and resumed."""
    # One that was saved to disk waited for its disk.
    kept = (vm for vm in journal.get("vms") or [] if vm.get("treatment") in (None, Treatment.IN_PLACE.value))
    vms = [vm for vm in kept if vm.get("paused_at")]
    marks = ("paused_at", "saved_at", "restore_started_at", "resumed_at")
    if not vms or not all(isinstance(vm.get(mark), (int, float)) and vm[mark] for vm in vms for mark in marks):
        return []
    floor = min(vm["restore_started_at"] for vm in vms) - max(vm["saved_at"] for vm in vms)
    each = tuple(vm["saved_at"] - vm["paused_at"] + vm["resumed_at"] - vm["restore_started_at"] for vm in vms)
    # A host's clock may step across the jump; such a run tells nothing.
    return [Run(host, floor, each)] if floor > 0 and min(each) > 0 else []


def pauses(host: str, measured: Sequence[Run], parallel: int) -> Pauses:
    """Figures for one host: from its own runs, else from those of the fleet, else assumed."""
    own = [run for run in measured if run.host == host]
    taken, basis = (own, f"measured on {host}") if own else (list(measured), "measured on other hosts")
    if not taken:
        return Pauses(*ASSUMED_FLOOR_S, *ASSUMED_EACH_S, parallel=parallel, basis=ASSUMED, measured=False)
    floors = [run.floor_s for run in taken]
    each = [seconds for run in taken for seconds in run.each_s]
    counted = f"{len(taken)} run" if len(taken) == 1 else f"{len(taken)} runs"
    return Pauses(
        *(middle(floors), high(floors)),
        *(middle(each), high(each)),
        parallel=parallel,
        basis=f"{basis}, {counted}",
        measured=True,
    )


def switchover(measured_s: Sequence[float], reports: Iterable[Mapping[str, Any]]) -> Switchover:
    """From what the hosts have on record, else from VMs that earlier reports say were moved live, else assumed."""
    hosts = (host for report in reports for host in report.get("hosts") or [])
    found = list(measured_s) or [
        float(vm["pause_s"])
        for host in hosts
        for vm in host.get("vms") or []
        if vm.get("treatment") == "live" and isinstance(vm.get("pause_s"), (int, float))
    ]
    if not found:
        return Switchover(*ASSUMED_SWITCHOVER_S, basis=ASSUMED)
    return Switchover(middle(found), high(found), basis=f"measured, {len(found)} live migrations")


def middle(samples: Sequence[float]) -> float:
    """The median."""
    ordered = sorted(samples)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def high(samples: Sequence[float]) -> float:
    """What 95 of 100 stay below, as far as so many samples can tell.

    Of fewer than 20 samples none need be above the 95th percentile, so the largest is taken with a margin that shrinks
    as they grow in number: twice the largest for one sample, one and a half for two, a quarter more for four.
    """
    ordered = sorted(samples)
    if len(ordered) < 20:
        return ordered[-1] * (1 + 1 / len(ordered))
    return ordered[-(-95 * len(ordered) // 100) - 1]


def rounds(ranks: Sequence[str], parallel: int) -> Dict[str, int]:
    """For VMs from the most to the least important, how many rounds of saving and restoring each stands still."""
    return {uuid: rank // parallel + 1 for rank, uuid in enumerate(ranks)}


def predicted(host: Host, count: int) -> Tuple[float, float]:
    """Median and 95th percentile of the pause, in seconds, of a VM that waits for ``count`` rounds on ``host``."""
    figures = host.pauses
    return (
        round(figures.floor_p50_s + count * figures.each_p50_s, 2),
        round(figures.floor_p95_s + count * figures.each_p95_s, 2),
    )
