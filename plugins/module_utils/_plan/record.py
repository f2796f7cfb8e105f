# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan as it is handed out, from what the search found: times, predicted pauses, warnings."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, List, Optional, Sequence, Tuple

from .._core.facts import Treatment
from .choice import Choices
from .destinations import Place
from .menu import staying_rounds
from .model import Batch, Bound, Fleet, Host, Move, Plan, Purpose, Vm, VmPlan
from .pause import ASSUMED, predicted
from .puzzle import at_stake, reserve_kept
from .reach import Reach
from .schedule import end_s, in_line, is_slowed_down, migration_s, path_mbit, upgrade_s

# Batches of hosts, and for each batch the places of the VMs that leave it.
Places = Tuple[Tuple[Place, ...], ...]


class Record:
    """Writes the plan of one fleet."""

    def __init__(self, fleet: Fleet, choices: Choices, reach: Reach) -> None:
        self._fleet, self._choices, self._reach = fleet, choices, reach
        self._hosts = {host.name: host for host in fleet.hosts}

    def plan(self, batches: Sequence[Tuple[str, ...]], places: Places, bound: Bound) -> Plan:
        """The plan; ``places`` has as many entries as ``batches``."""
        written: List[Batch] = []
        now = 0.0
        for number, hosts in enumerate(batches):
            batch = self._batch(number, hosts, places, now)
            written.append(batch)
            now = round(batch.start_s + batch.seconds, 3)
        vms = tuple(self._vm_plans())
        left_out = tuple(self._choices.left_out.values())
        return Plan(tuple(written), vms, left_out, now, bound, tuple(self._warnings(written, vms)))

    def _batch(self, number: int, hosts: Tuple[str, ...], places: Places, start_s: float) -> Batch:
        where = self._where(places, number)
        away = [self._move(place, where[place.vm.uuid], place.destination) for place in places[number]]
        evacuations = in_line(away, start_s)
        upgrade_start = round(end_s(evacuations, start_s), 3)
        upgrade = round(max(self._upgrade_s(host) for host in hosts), 3)
        home = [
            replace(self._move(place, place.destination, place.vm.host), purpose=Purpose.RETURN, again=False)
            for place in places[number]
            if place.vm.return_home
        ]
        returns = in_line(home, round(upgrade_start + upgrade, 3))
        end = end_s(returns, round(upgrade_start + upgrade, 3))
        ordered = tuple(sorted(hosts, key=lambda host: at_stake(self._choices, host)[1:]))
        return Batch(
            number + 1,
            ordered,
            start_s,
            upgrade_start,
            upgrade,
            round(end - start_s, 3),
            evacuations,
            returns,
            reserve_kept(self._fleet, self._choices, hosts),
        )

    def _upgrade_s(self, host: str) -> float:
        there = self._choices.paused(host)
        longest = max((self._choices.option(vm).pause_p50_s for vm in there), default=0.0)
        return upgrade_s(self._hosts[host], len(there), longest, self._fleet.limits.stage_s)

    def _where(self, places: Places, number: int) -> Dict[str, str]:
        """Where each VM is when batch ``number`` begins."""
        where = {vm.uuid: vm.host for vm in self._fleet.vms}
        for earlier in places[:number]:
            where.update({place.vm.uuid: place.destination for place in earlier if not place.vm.return_home})
        return where

    def _move(self, place: Place, source: str, destination: str) -> Move:
        disks = self._reach.copied(place.vm, source, destination)
        sent = place.vm.ram_bytes + sum(disk.size_bytes for disk in disks)
        path = path_mbit(self._hosts[source], self._hosts[destination])
        seconds = migration_s(sent, path, place.vm.writes_bytes_per_s)
        return Move(
            vm=place.vm.name,
            uuid=place.vm.uuid,
            source=source,
            destination=destination,
            purpose=Purpose.EVACUATE,
            start_s=0.0,
            seconds=round(seconds, 3),
            sent_bytes=sent,
            copied_disks=tuple(disk.target for disk in disks),
            again=place.again,
        )

    def _vm_plans(self) -> List[VmPlan]:
        treated = self._choices.treated()
        staying = [vm for vm in treated if self._choices.of(vm) is Treatment.IN_PLACE]
        rounds = staying_rounds(self._fleet.hosts, staying)
        return [self._vm_plan(vm, rounds.get(vm.uuid)) for vm in treated]

    def _vm_plan(self, vm: Vm, rounds: Optional[int]) -> VmPlan:
        host, option, fallen = self._hosts[vm.host], self._choices.option(vm), self._choices.fallen.get(vm.uuid)
        pause = predicted(host, rounds) if rounds is not None else (option.pause_p50_s, option.pause_p95_s)
        return VmPlan(
            name=vm.name,
            uuid=vm.uuid,
            host=vm.host,
            treatment=option.treatment,
            reason=f"not {fallen.before.value}: {fallen.reason}" if fallen else vm.rule,
            rule=vm.rule,
            pause_p50_s=pause[0],
            pause_p95_s=pause[1],
            basis=self._basis(option.treatment, host),
            options=self._choices.menu[vm.uuid],
            instead_of=fallen.before if fallen else None,
        )

    def _basis(self, treatment: Treatment, host: Host) -> str:
        if treatment is Treatment.LIVE:
            return self._fleet.switchover.basis
        return host.pauses.basis if treatment is Treatment.IN_PLACE else ASSUMED

    def _warnings(self, written: Sequence[Batch], vms: Sequence[VmPlan]) -> List[str]:
        found = list(self._fleet.notes)
        unmeasured = [host.name for host in self._fleet.hosts if not host.pauses.measured]
        if unmeasured and vms:
            found.append(
                f"nothing has been measured for {_some(unmeasured)}: pauses there are assumed, not predicted. The first"
                " upgrade of a host of this fleet gives better figures"
            )
        bare = [host for batch in written if not batch.reserve_kept for host in batch.hosts]
        if bare:
            found.append(
                f"there is no reserve during the upgrade of {_some(bare)}: the fleet is too full, so hosts go one at a"
                " time"
            )
        again = [move.vm for batch in written for move in batch.evacuations if move.again]
        if again:
            found.append(f"{_some(again)} can only go to a host that is next, and will be moved once more")
        slowed = list(dict.fromkeys(move.vm for batch in written for move in batch.evacuations if self._slows(move)))
        if slowed:
            found.append(
                f"{_some(slowed)}: written to nearly as fast as the link sends, or faster, and slowed down until moved;"
                " plan for a quieter hour, or give them a faster link"
            )
        return found

    def _slows(self, move: Move) -> bool:
        vm = next(vm for vm in self._fleet.vms if vm.uuid == move.uuid)
        return is_slowed_down(vm.writes_bytes_per_s, path_mbit(self._hosts[move.source], self._hosts[move.destination]))


def _some(names: Sequence[str]) -> str:
    """The names, shortened to the first few."""
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"
