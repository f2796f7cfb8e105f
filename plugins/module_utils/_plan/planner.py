# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a fleet to a plan: choose, put hosts into batches, find destinations; begin again when something does not work.

What does not work is answered in this order: hosts are upgraded apart, a VM falls to its next treatment, its host is
left out. Each answer takes away a possibility for good, so this ends. Pure, and the same for the same fleet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import FrozenSet, List, Sequence, Set, Tuple

from .._core.facts import Treatment
from . import batches as packing
from . import solver
from .batches import Batches, Puzzle
from .choice import Choices
from .destinations import LATER, NEXT, SETTLED, Answer, Destinations, Place, Standing
from .menu import Menus
from .model import Bound, Fleet, Obstacle, Plan, Vm
from .puzzle import at_stake, puzzle
from .reach import Reach
from .record import Places, Record

# How much the solver may do for the batches of one plan, and for one question; about seconds.
EFFORT, EFFORT_AT_ONCE = 3.0, 0.5
# After so many sets of hosts that could not go together, hosts with VMs to move are no longer put together at all.
PATIENCE = 40


@dataclass(frozen=True)
class Trial:
    """Where the VMs of each batch go; or the hosts that do not work together (``failed``), and VMs without a place."""

    places: Places = ()
    failed: Tuple[str, ...] = ()
    stuck: Tuple[Vm, ...] = ()


def plan(fleet: Fleet) -> Plan:
    """The plan for a fleet. Raises nothing: what cannot be done is left out of the batches, with reasons."""
    reach = Reach(fleet.hosts, fleet.limits)
    choices = Choices(fleet, Menus(fleet, reach))
    batches, places, bound = _Search(fleet, choices, reach).run()
    return Record(fleet, choices, reach).plan(batches, places, bound)


class _Search:
    """Takes possibilities away from ``choices`` until batches and destinations fit together."""

    def __init__(self, fleet: Fleet, choices: Choices, reach: Reach) -> None:
        self._fleet, self._choices, self._reach = fleet, choices, reach
        self._destinations = Destinations(fleet, reach)
        self._apart: Set[FrozenSet[str]] = set()
        self._effort = EFFORT

    def run(self) -> Tuple[Batches, Places, Bound]:
        while True:
            batches, bound = self._packed(puzzle(self._fleet, self._choices, frozenset(self._apart)))
            trial = self._tried(batches)
            if not trial.failed:
                return batches, trial.places, bound
            self._answer(trial)

    # --- batches ---------------------------------------------------------------------------------------------------

    def _packed(self, question: Puzzle) -> Tuple[Batches, Bound]:
        best = packing.first_fit(question)
        least, limited_by = packing.lower_bound(question)
        proven, prover = least, "counting"
        for count in range(least, len(best)):
            if self._effort <= 0 or not solver.available():
                break
            self._effort -= EFFORT_AT_ONCE
            verdict = solver.pack(question, count, best, EFFORT_AT_ONCE)
            if verdict.batches is not None:
                best, prover = verdict.batches, solver.NAME
                break
            if not verdict.impossible:
                break
            # Sets that must stay apart come from the search for destinations, which proves nothing.
            if not question.apart:
                proven, prover = count + 1, solver.NAME
                limited_by = f"several limits together, above all {limited_by}" if count == least else limited_by
        if question.apart and len(best) > proven:
            limited_by = "room for the VMs that are moved away"
        gap = round((len(best) - proven) / len(best), 3) if best else 0.0
        return self._least_first(question, best), Bound(proven, gap, limited_by, prover)

    def _least_first(self, question: Puzzle, batches: Batches) -> Batches:
        """Where any order will do: the batches with the least at stake first."""
        fixed = 1 if question.first else 0
        rest = batches[fixed:]
        if len({question.size(number) for number in range(fixed, len(batches))}) > 1:
            return batches

        def stake(batch: Sequence[str]) -> Tuple[int, int, str]:
            each = [at_stake(self._choices, host) for host in batch]
            return sum(entry[1] for entry in each), sum(entry[2] for entry in each), min(batch, default="")

        return (*batches[:fixed], *sorted((batch for batch in rest if batch), key=stake))

    # --- destinations ----------------------------------------------------------------------------------------------

    def _tried(self, batches: Batches) -> Trial:
        """Go through the campaign, batch by batch, with every VM where it would be then."""
        standing = Standing(self._fleet)
        movers = [vm for vm in self._choices.treated() if self._choices.of(vm) is Treatment.LIVE]
        places: List[Tuple[Place, ...]] = []
        for number, batch in enumerate(batches):
            answer = self._find(standing, batches, number, batch, movers)
            if answer.stuck:
                return Trial(failed=self._smallest(standing, batches, number, movers), stuck=answer.stuck)
            for place in answer.places:
                # One that returns is home again before the next batch.
                if not place.vm.return_home:
                    standing.move(place.vm, place.destination)
            places.append(answer.places)
        return Trial(tuple(places))

    def _find(
        self, standing: Standing, batches: Batches, number: int, batch: Sequence[str], movers: Sequence[Vm]
    ) -> Answer:
        """Places for the VMs that have to leave ``batch``, which is batch ``number`` or a part of it."""
        leaving = standing.on(batch, movers)
        if not leaving:
            return Answer()
        coming = frozenset(batches[number + 1]) if number + 1 < len(batches) else frozenset()
        later = {host for other in batches[number + 2 :] for host in other}
        away = {*batches[number], *coming}
        prices = {
            host.name: LATER if host.name in later else SETTLED for host in self._fleet.hosts if host.name not in away
        }
        answer = self._destinations.find(standing, leaving, prices, coming)
        if answer.stuck and len(batch) == 1:
            # Nobody else: rather move these once more with the next batch than leave the host out.
            answer = self._destinations.find(standing, leaving, {**prices, **dict.fromkeys(coming, NEXT)}, coming)
        return answer

    def _smallest(self, standing: Standing, batches: Batches, number: int, movers: Sequence[Vm]) -> Tuple[str, ...]:
        """As few hosts of the batch as still do not work together."""
        hosts = list(batches[number])
        for host in batches[number]:
            rest = [other for other in hosts if other != host]
            if rest and self._find(standing, batches, number, rest, movers).stuck:
                hosts = rest
        return tuple(hosts)

    # --- what does not work ----------------------------------------------------------------------------------------

    def _answer(self, trial: Trial) -> None:
        if len(trial.failed) > 1:
            self._keep_apart(trial.failed)
            return
        host = trial.failed[0]
        reason = f"no host has room for it while {host} is upgraded"
        for vm in sorted(trial.stuck, key=lambda vm: (vm.critical, vm.priority, vm.name)):
            if self._choices.fall(vm, reason):
                return
        for home in sorted({vm.host for vm in trial.stuck}):
            self._choices.leave_out(home, [self._no_room(vm, reason) for vm in trial.stuck if vm.host == home])

    def _keep_apart(self, hosts: Sequence[str]) -> None:
        self._apart.add(frozenset(hosts))
        if len(self._apart) > PATIENCE:
            movers = {vm.host for vm in self._choices.treated() if self._choices.of(vm) is Treatment.LIVE}
            moving = sorted(movers.union(hosts))
            self._apart |= {frozenset((one, other)) for one in moving for other in moving if one < other}

    def _no_room(self, vm: Vm, reason: str) -> Obstacle:
        names = (host.name for host in self._fleet.hosts if host.name != vm.host)
        fitting = [name for name in names if not self._reach.obstacles(vm, name)]
        room = f"{vm.ram_bytes / 2**30:.1f} GiB and {vm.vcpus} virtual CPUs"
        where = ", ".join(fitting[:5]) or "another host"
        return Obstacle(vm.name, vm.uuid, reason, f"make room for {room} on {where}, or allow another treatment")
