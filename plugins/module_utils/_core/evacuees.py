# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which VMs leave a host before its live update, and what happens to one that cannot. Pure decisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Mapping, Sequence, Tuple

from .errors import BadInput, Refused
from .facts import Treatment, VmFacts
from .policy import Decision, next_best

# Without a limit of its own a VM may stand still for as long as QEMU's estimate may be wrong (Bounds.longest_pause_s).
LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True)
class Departure:
    """One VM that is to be moved, to ``destination`` as the inventory calls it; ``journey``: a ``evacuation.Way``."""

    name: str
    uuid: str
    destination: str
    longest_pause_s: float
    journey: str
    reason: str


@dataclass(frozen=True)
class Evacuation:
    """``departures``: still to come. ``unmoved``: VMs that could not be moved, which get their next treatment: why."""

    departures: Tuple[Departure, ...] = ()
    unmoved: Mapping[str, str] = field(default_factory=dict)


def choose(
    decisions: Sequence[Decision],
    vms: Sequence[VmFacts],
    destinations: Mapping[str, str],
    stuck: Mapping[str, str],
    longest_pause_s: float = LONGEST_PAUSE_S,
) -> Evacuation:
    """Who leaves, the most important VM first; for it the other host is at its emptiest.

    ``destinations`` are by name of the VM, of this host's and maybe of others'; a VM that has one leaves also if its
    policy prefers another treatment, since that turned out to be impossible. ``stuck`` says why one could not be moved.

    Raises Refused, naming every VM that has no destination, or is stuck and has no other treatment that the host's
    upgrade could carry out; BadInput when one has a destination, and its policy forbids to move it.
    """
    running = {vm.uuid for vm in vms if vm.running}
    here = [one for one in decisions if one.uuid in running]
    _refuse_forbidden([one.name for one in here if one.name in destinations and Treatment.LIVE not in one.treatments])
    leaving = [one for one in here if one.treatment is Treatment.LIVE or one.name in destinations]
    unmoved: Dict[str, str] = {one.name: stuck[one.name] for one in leaving if one.name in stuck and next_best(one)}
    _refuse_stuck([one for one in leaving if one.name in stuck and one.name not in unmoved], stuck)
    ahead = [one for one in leaving if one.name not in stuck]
    _refuse_aimless([one for one in ahead if not destinations.get(one.name)])
    order = sorted(ahead, key=lambda one: (-one.priority, one.name))
    return Evacuation(tuple(_departure(one, destinations, longest_pause_s) for one in order), unmoved)


def left_behind(decisions: Sequence[Decision], vms: Sequence[VmFacts], unmoved: Sequence[str]) -> Tuple[str, ...]:
    """VMs that should not be on the host any more when its live update begins: to be moved away, and still here."""
    running = {vm.uuid for vm in vms if vm.running}
    return tuple(
        one.name
        for one in decisions
        if one.treatment is Treatment.LIVE and one.uuid in running and one.name not in unmoved
    )


def _departure(one: Decision, destinations: Mapping[str, str], longest_pause_s: float) -> Departure:
    journey = "away" if one.return_home else "for_good"
    pause_s = one.max_pause_s or longest_pause_s
    return Departure(one.name, one.uuid, destinations[one.name], pause_s, journey, one.reason)


def _refuse_forbidden(names: Sequence[str]) -> None:
    if names:
        raise BadInput(
            f"{', '.join(names)} is to be moved, and the policy does not allow live",
            "plan anew: the policy is not the one that was planned with; or correct evacuate_destinations",
        )


def _refuse_aimless(aimless: Sequence[Decision]) -> None:
    if aimless:
        names = ", ".join(sorted(one.name for one in aimless))
        raise Refused(
            f"the policy wants {names} moved away live, and nobody says where to",
            "run holdfast plan, which finds destinations, and upgrade by that plan; or set evacuate_destinations by "
            "hand, {VM: host}",
        )


def _refuse_stuck(stuck: Sequence[Decision], why: Mapping[str, str]) -> None:
    if stuck:
        told = "; ".join(f"{one.name}: {why[one.name]}" for one in stuck)
        raise Refused(
            f"VMs cannot be moved away, and their policy, or the plan, allows nothing else: {told}",
            "mend what is in the way, let their policy allow in_place, cold or restart, or leave the host out; a plan "
            "gives them none of these that exceeds their pause limit or leaves too few of their group",
        )
