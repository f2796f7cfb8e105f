# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the VMs of a batch go, which cannot stay: a host with room, of the right kind, and not about to be upgraded.

Dearer destinations are taken only when the cheaper ones are full: first hosts that will not be upgraded any more, then
those that come later, from where the VM has to move once more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Callable, Dict, FrozenSet, List, Mapping, Sequence, Tuple

from . import solver
from .model import Fleet, Vm
from .reach import Reach

_MIB = 1 << 20
_MANY_CPUS = 1 << 20
# What a destination costs; next to it, how evenly the RAM is spread counts little.
SETTLED, LATER, NEXT = 0, 2, 50
# How much the solver may do for one batch, in its own measure, and for how many batches of a plan.
EFFORT, QUESTIONS = 0.2, 12


@dataclass(frozen=True)
class Place:
    """Where one VM goes. ``again``: to a host that is next, since no other can take it."""

    vm: Vm
    destination: str
    again: bool = False


@dataclass(frozen=True)
class Answer:
    """Places for all VMs, or the ones for which there is none."""

    places: Tuple[Place, ...] = ()
    stuck: Tuple[Vm, ...] = ()


Taste = Callable[[int, int, int], Tuple[int, int, int]]


def _spread(price: int, received_bytes: int, free_bytes: int) -> Tuple[int, int, int]:
    """The cheapest hosts, all their links busy alike."""
    return price, received_bytes, -free_bytes


def _tight(price: int, received_bytes: int, free_bytes: int) -> Tuple[int, int, int]:
    """Where least room is left over, whatever it costs: large VMs find room longer."""
    return free_bytes, price, received_bytes


class Standing:
    """Where every VM is at one moment of the campaign, and the room that is left. Changes as VMs are moved."""

    def __init__(self, fleet: Fleet) -> None:
        ratio = fleet.limits.cpu_ratio
        self.where: Dict[str, str] = {}
        self._hosts = {host.name: host for host in fleet.hosts}
        self.ram_free = {host.name: host.ram_bytes for host in fleet.hosts}
        # A host whose processors nobody counted is not limited by them.
        self.cpu_free = {host.name: host.cpus * ratio if host.cpus else float("inf") for host in fleet.hosts}
        self.members: Dict[str, Counter[str]] = {host.name: Counter() for host in fleet.hosts}
        for vm in fleet.vms:
            self._enter(vm, vm.host)

    def on(self, hosts: Sequence[str], vms: Sequence[Vm]) -> List[Vm]:
        """Those of ``vms`` that are on one of ``hosts`` now."""
        return [vm for vm in vms if self.where[vm.uuid] in hosts]

    def move(self, vm: Vm, destination: str) -> None:
        source = self.where[vm.uuid]
        self.ram_free[source] += self._hosts[source].room_taken_by(vm)
        self.cpu_free[source] += vm.vcpus
        self.members[source][vm.group] -= 1
        self._enter(vm, destination)

    def _enter(self, vm: Vm, host: str) -> None:
        self.where[vm.uuid] = host
        self.ram_free[host] -= self._hosts[host].room_taken_by(vm)
        self.cpu_free[host] -= vm.vcpus
        self.members[host][vm.group] += 1


class Destinations:
    """Finds destinations in one fleet."""

    def __init__(self, fleet: Fleet, reach: Reach) -> None:
        self._reach = reach
        self._hosts = [host.name for host in fleet.hosts]
        self._apart = frozenset(group.name for group in fleet.groups if group.anti_affinity)
        self._questions = QUESTIONS

    def find(
        self, standing: Standing, movers: Sequence[Vm], prices: Mapping[str, int], coming: FrozenSet[str] = frozenset()
    ) -> Answer:
        """A place for each of ``movers``.

        ``prices``: hosts that may be used, with what they cost a VM that stays there. ``coming`` are those that are
        next: only a VM that will have gone home by then may go there, unless they are in ``prices``, too.
        """
        menu = {vm.uuid: self._candidates(standing, vm, prices, coming) for vm in movers}
        answer = self._by_fit(standing, movers, menu, _spread)
        if answer.stuck:
            answer = self._by_fit(standing, movers, menu, _tight)
        if answer.stuck and self._questions and solver.available() and all(menu.values()):
            self._questions -= 1
            found = self._by_solver(standing, movers, menu)
            answer = answer if found.stuck else found
        return answer

    def _candidates(
        self, standing: Standing, vm: Vm, prices: Mapping[str, int], coming: FrozenSet[str]
    ) -> Dict[str, int]:
        offered = dict(prices)
        if vm.return_home:
            # It is home again before anything else begins, so that no host is better than another, but for the next.
            offered = {**dict.fromkeys(prices, SETTLED), **dict.fromkeys(coming, SETTLED + 1)}
        return {name: price for name, price in offered.items() if self._takes(standing, vm, name)}

    def _takes(self, standing: Standing, vm: Vm, name: str) -> bool:
        if vm.ram_bytes > standing.ram_free[name] or vm.vcpus > standing.cpu_free[name]:
            return False
        if vm.group in self._apart and standing.members[name][vm.group] > 0:
            return False
        return not self._reach.obstacles(vm, name)

    def _by_fit(
        self, standing: Standing, movers: Sequence[Vm], menu: Mapping[str, Mapping[str, int]], taste: Taste
    ) -> Answer:
        """One VM after another: those with the fewest hosts to choose from first, and of those the largest."""
        ram, cpus = dict(standing.ram_free), dict(standing.cpu_free)
        received: Counter[str] = Counter()
        taken: Dict[str, set[str]] = {}
        places, stuck = [], []
        for vm in sorted(movers, key=lambda vm: (len(menu[vm.uuid]), -vm.ram_bytes, vm.uuid)):
            closed = taken.get(vm.group, set()) if vm.group in self._apart else set()
            fitting = [
                name
                for name in menu[vm.uuid]
                if vm.ram_bytes <= ram[name] and vm.vcpus <= cpus[name] and name not in closed
            ]
            if not fitting:
                stuck.append(vm)
                continue
            name = min(fitting, key=lambda name: (*taste(menu[vm.uuid][name], received[name], ram[name]), name))
            places.append(Place(vm, name, again=menu[vm.uuid][name] >= NEXT))
            ram[name] -= vm.ram_bytes
            cpus[name] -= vm.vcpus
            received[name] += vm.ram_bytes
            taken.setdefault(vm.group, set()).add(name)
        return Answer(tuple(places), tuple(stuck))

    def _by_solver(self, standing: Standing, movers: Sequence[Vm], menu: Mapping[str, Mapping[str, int]]) -> Answer:
        names = {name for hosts in menu.values() for name in hosts}
        cpus = {name: int(min(standing.cpu_free[name], _MANY_CPUS)) for name in names}
        rooms = {name: (standing.ram_free[name] // _MIB, cpus[name]) for name in sorted(names)}
        sized = {vm.uuid: (-(-vm.ram_bytes // _MIB), vm.vcpus, menu[vm.uuid]) for vm in movers}
        groups = {vm.group for vm in movers if vm.group in self._apart}
        exclusive = [([vm.uuid for vm in movers if vm.group == group], sorted(names)) for group in sorted(groups)]
        found = solver.place(rooms, sized, exclusive, EFFORT)
        if found is None:
            return Answer(stuck=tuple(movers))
        places = (Place(vm, found[vm.uuid], again=menu[vm.uuid][found[vm.uuid]] >= NEXT) for vm in movers)
        return Answer(tuple(places))
