# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which treatment each VM has so far, and which hosts are out: what the planner changes when something does not work.

A VM begins with the first treatment that is allowed and possible. When that does not work for the fleet as a whole,
it falls to the next one, and the plan says so. When there is none, its host is left out, with what would help.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from .._core.facts import Treatment
from .menu import Menus, choose
from .model import Absence, Fleet, Group, LeftOut, Obstacle, Option, Vm

# While its host is upgraded the VM stands still, or does not run at all.
PAUSING = (Treatment.IN_PLACE, Treatment.COLD, Treatment.RESTART)


@dataclass(frozen=True)
class Fallen:
    """A VM that has not the treatment that its policy would rather have."""

    before: Treatment
    reason: str


class Choices:
    """Treatments of a fleet's VMs, by uuid, and the hosts that are in no batch."""

    def __init__(self, fleet: Fleet, menus: Menus) -> None:
        self.fleet = fleet
        self.menu: Dict[str, Tuple[Option, ...]] = {vm.uuid: menus.of(vm) for vm in fleet.vms}
        self.left_out: Dict[str, LeftOut] = {}
        self.fallen: Dict[str, Fallen] = {}
        self._chosen: Dict[str, Treatment] = {}
        self._resident: Dict[str, List[Vm]] = {host.name: [] for host in fleet.hosts}
        for vm in fleet.vms:
            self._resident[vm.host].append(vm)
        for host in fleet.hosts:
            self._begin(host.name, host.done, host.blockers)
        self._keep_quorums()

    def of(self, vm: Vm) -> Treatment:
        """Its treatment. Only for VMs of hosts that are not left out."""
        return self._chosen[vm.uuid]

    def option(self, vm: Vm) -> Option:
        return next(option for option in self.menu[vm.uuid] if option.treatment is self.of(vm))

    def resident(self, host: str) -> Sequence[Vm]:
        """VMs whose home a host is."""
        return self._resident[host]

    def hosts(self) -> Tuple[str, ...]:
        """Hosts to upgrade."""
        return tuple(host.name for host in self.fleet.hosts if host.name not in self.left_out)

    def treated(self) -> List[Vm]:
        """VMs of those hosts."""
        return [vm for host in self.hosts() for vm in self._resident[host]]

    def paused(self, host: str, group: str = "") -> List[Vm]:
        """VMs of a host that stand still during its upgrade; of one group, if it is named."""
        found = (vm for vm in self._resident[host] if self.of(vm) in PAUSING)
        return [vm for vm in found if not group or vm.group == group]

    def quorums(self) -> Iterator[Tuple[Group, int, int]]:
        """Groups that need some of their members: the group, its running members, how many of them may be paused."""
        running = Counter(vm.group for vm in self.fleet.vms)
        for group in self.fleet.groups:
            if group.min_available:
                yield group, running[group.name], max(running[group.name] - group.min_available, 0)

    def fall(self, vm: Vm, reason: str) -> bool:
        """Give a VM the next treatment that is allowed and possible; False, and no change, when there is none."""
        lower = choose(vm, self.menu[vm.uuid], after=self.of(vm))
        if lower is None:
            return False
        self._fall_to(vm, lower.treatment, reason)
        self._keep_quorums()
        return True

    def leave_out(self, host: str, obstacles: Sequence[Obstacle]) -> None:
        """The host cannot be upgraded on account of these VMs."""
        self.left_out[host] = LeftOut(host, Absence.IMPOSSIBLE, _counted(len(obstacles)), tuple(obstacles))

    def _begin(self, host: str, done: bool, blockers: Sequence[str]) -> None:
        if done:
            self.left_out[host] = LeftOut(host, Absence.DONE, "by plan_done or its own journal")
        elif blockers:
            self.left_out[host] = LeftOut(host, Absence.BLOCKED, "; ".join(blockers))
        else:
            self._choose_first(host)

    def _choose_first(self, host: str) -> None:
        stuck = []
        for vm in self._resident[host]:
            first = choose(vm, self.menu[vm.uuid])
            if first is None:
                stuck.append(self._nothing_left(vm))
                continue
            self._chosen[vm.uuid] = first.treatment
            if first.treatment is not vm.treatments[0]:
                self.fallen[vm.uuid] = Fallen(vm.treatments[0], self._why_not(vm, vm.treatments[0]))
        if stuck:
            self.leave_out(host, stuck)
        else:
            self._defer(host)

    def _defer(self, host: str) -> None:
        waiting = [vm for vm in self._resident[host] if self.of(vm) is Treatment.DEFER]
        if waiting:
            names = ", ".join(vm.name for vm in waiting)
            obstacles = tuple(Obstacle(vm.name, vm.uuid, f"defer {vm.rule}") for vm in waiting)
            self.left_out[host] = LeftOut(host, Absence.DEFERRED, f"it waits for {names}", obstacles)

    def _fall_to(self, vm: Vm, treatment: Treatment, reason: str) -> None:
        before = self.fallen[vm.uuid].before if vm.uuid in self.fallen else self.of(vm)
        self.fallen[vm.uuid] = Fallen(before, reason)
        self._chosen[vm.uuid] = treatment
        if treatment is Treatment.DEFER:
            self._defer(vm.host)

    # --- a host that pauses more of a group than the group bears ---------------------------------------------------

    def _keep_quorums(self) -> None:
        for group, running, bears in self.quorums():
            for host in self.hosts():
                self._keep_quorum(group, running, bears, host)

    def _keep_quorum(self, group: Group, running: int, bears: int, host: str) -> None:
        members = sorted(self.paused(host, group.name), key=lambda vm: (-vm.priority, vm.name))
        reason = f"group {group.name} has {running} members and needs {group.min_available} of them"
        too_many = len(members) - bears
        for vm in members:
            unpaused = self._unpaused(vm)
            if too_many > 0 and unpaused is not None:
                self._fall_to(vm, unpaused.treatment, reason)
                too_many -= 1
        # One that defers has its host wait, and then nothing of it is paused.
        if too_many > 0 and host not in self.left_out:
            remedy = (
                f"let {too_many} of them be moved away live (treatments), put fewer of them on one host, or lower "
                f"min_available to {running - bears - too_many}"
            )
            whole = f"{reason}, {len(members)} would stand still with {host}"
            self.leave_out(host, [Obstacle(vm.name, vm.uuid, whole, remedy) for vm in members])

    def _unpaused(self, vm: Vm) -> Optional[Option]:
        """The first treatment behind its present one that keeps it running."""
        option = choose(vm, self.menu[vm.uuid], after=self.of(vm))
        while option is not None and option.treatment in PAUSING:
            option = choose(vm, self.menu[vm.uuid], after=option.treatment)
        return option

    # --- words -----------------------------------------------------------------------------------------------------

    def _why_not(self, vm: Vm, treatment: Treatment) -> str:
        return next(option.reason for option in self.menu[vm.uuid] if option.treatment is treatment)

    def _nothing_left(self, vm: Vm) -> Obstacle:
        allowed = [option for option in self.menu[vm.uuid] if option.allowed]
        reasons = "; ".join(f"{option.treatment.value}: {option.reason}" for option in allowed)
        return Obstacle(vm.name, vm.uuid, reasons, "; ".join(_remedies(allowed, self.menu[vm.uuid])))


def _remedies(allowed: Sequence[Option], options: Sequence[Option]) -> List[str]:
    """What would help a VM for which nothing that is allowed is possible, each once."""
    found = [f"for {option.treatment.value}: {option.remedy}" for option in allowed if option.remedy]
    others = [option.treatment.value for option in options if option.possible and not option.allowed]
    found += [f"possible, but not allowed: {', '.join(others)}"] if others else []
    return found


def _counted(count: int) -> str:
    return "one of its VMs stands against it" if count == 1 else f"{count} of its VMs stand against it"
