# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Go through a campaign, batch by batch, with every VM where it would be then: find places for those that must leave.

What does not work is put right on the way, in this order: a host is put off to a later batch, a VM falls to its next
treatment, a host is left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import List, Optional, Sequence, Tuple

from .._core.facts import Treatment
from .batches import Batches, Puzzle, fits
from .choice import Choices
from .destinations import LATER, NEXT, SETTLED, Answer, Destinations, Place, Standing
from .model import Fleet, Obstacle, Vm
from .reach import Reach


class BeginAgain(Exception):
    """A host is left out from a batch whose place in the order of waves matters: the batches have to be made anew."""


class Walk:
    """One way through the campaign. ``choices`` change as things do not work."""

    def __init__(self, fleet: Fleet, choices: Choices, reach: Reach, puzzle: Puzzle, batches: Batches) -> None:
        self._fleet, self._choices, self._reach, self._puzzle = fleet, choices, reach, puzzle
        self._destinations = Destinations(fleet, reach)
        self._standing = Standing(fleet)
        self._batches: List[List[str]] = [list(batch) for batch in batches]

    def run(self) -> Tuple[Batches, Tuple[Tuple[Place, ...], ...]]:
        """The batches as they turned out, and where the VMs of each go. Raises BeginAgain."""
        places: List[Tuple[Place, ...]] = []
        while len(places) < len(self._batches):
            found = self._settled(len(places))
            if found is None:
                continue
            for place in found:
                # One that returns is home again before the next batch.
                if not place.vm.return_home:
                    self._standing.move(place.vm, place.destination)
            places.append(found)
        batches = tuple(tuple(batch) for batch in self._batches)
        return batches, tuple(_marked(entry, batches[number + 1 :]) for number, entry in enumerate(places))

    def _settled(self, number: int) -> Optional[Tuple[Place, ...]]:
        """Places for the VMs that have to leave batch ``number``, which may shrink; None when nothing is left of it."""
        batch = self._batches[number]
        while True:
            answer = self._find(number)
            if not answer.stuck:
                return answer.places
            if len(batch) > 1:
                self._put_off(number, answer.stuck)
            elif not self._fallen(batch[0], answer.stuck):
                self._leave_out(number, answer.stuck)
                return None

    def _find(self, number: int) -> Answer:
        batch, later = self._batches[number], self._batches[number + 1 :]
        leaving = self._standing.on(batch, self._movers())
        if not leaving:
            return Answer()
        coming = frozenset(later[0]) if later else frozenset()
        afterwards = {host for other in later[1:] for host in other}
        away = coming.union(batch)
        names = [host.name for host in self._fleet.hosts if host.name not in away]
        prices = {name: LATER if name in afterwards else SETTLED for name in names}
        answer = self._destinations.find(self._standing, leaving, prices, coming)
        if answer.stuck and len(batch) == 1:
            # Nobody else: rather move these once more with the next batch than leave the host out.
            answer = self._destinations.find(self._standing, leaving, {**prices, **dict.fromkeys(coming, NEXT)}, coming)
        return answer

    def _movers(self) -> List[Vm]:
        return [vm for vm in self._choices.treated() if self._choices.of(vm) is Treatment.LIVE]

    # --- what does not work ----------------------------------------------------------------------------------------

    def _put_off(self, number: int, stuck: Sequence[Vm]) -> None:
        """Of the hosts with VMs that found no place, the worse half goes with a later batch, or alone at the end."""
        batch = self._batches[number]
        left = {host: sum(vm.ram_bytes for vm in self._standing.on([host], stuck)) for host in batch}
        worst = sorted((host for host in batch if left[host]), key=lambda host: (-left[host], host))
        for host in worst[: max(len(worst) // 2, 1)]:
            batch.remove(host)
            self._append_later(number, host)

    def _append_later(self, number: int, host: str) -> None:
        for later in range(number + 1, len(self._batches)):
            if fits(self._puzzle, [*self._batches[later], host], later):
                self._batches[later].append(host)
                return
        self._batches.append([host])

    def _fallen(self, host: str, stuck: Sequence[Vm]) -> bool:
        """Whether one of them got another treatment; the least important one that has another.

        Not a VM that came here from elsewhere: its own host has been upgraded already.
        """
        own = [vm for vm in stuck if vm.host == host]
        least_first = sorted(own, key=lambda vm: (vm.critical, vm.priority, vm.name))
        reason = _no_room(host)
        return any(self._choices.fall(vm, reason) for vm in least_first) and host not in self._choices.left_out

    def _leave_out(self, number: int, stuck: Sequence[Vm]) -> None:
        host = self._batches.pop(number)[0]
        if host not in self._choices.left_out:
            self._choices.leave_out(host, [self._obstacle(vm, host) for vm in stuck])
        if number < len(self._fleet.limits.waves) - 1 or host in self._puzzle.first:
            raise BeginAgain

    def _obstacle(self, vm: Vm, host: str) -> Obstacle:
        names = (other.name for other in self._fleet.hosts if other.name not in (vm.host, host))
        fitting = [name for name in names if not self._reach.obstacles(vm, name)]
        room = f"make room for {vm.ram_bytes / 2**30:.1f} GiB and {vm.vcpus} virtual CPUs"
        where = ", ".join(fitting[:5]) or "another host"
        apart = any(group.anti_affinity and group.name == vm.group for group in self._fleet.groups)
        away = f", where no other member of group {vm.group} is" if apart else ""
        return Obstacle(vm.name, vm.uuid, _no_room(host), f"{room} on {where}{away}, or allow another treatment")


def _marked(places: Tuple[Place, ...], later: Batches) -> Tuple[Place, ...]:
    """Once a host between them is left out, one that came later is next."""
    coming = later[0] if later else ()
    return tuple(
        replace(place, again=place.again or (place.destination in coming and not place.vm.return_home))
        for place in places
    )


def _no_room(host: str) -> str:
    return f"no other host can take it while {host} is upgraded"
