# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For each VM, every treatment: allowed, possible, what it costs; and the choice, the first that is both.

The order is the policy's. The facts and the predicted pause say what is possible.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

from .._core.facts import Treatment
from .model import Fleet, Host, Option, Vm
from .pause import predicted, rounds
from .reach import Reach
from .schedule import migration_s

# A disk's speed, saving and loading, in bytes per second; a guest's own shutdown and start. Nobody measures them yet.
DISK_BYTES_PER_S = 200e6
RESTART_S = (120.0, 600.0)


class Menus:
    """The options of a fleet's VMs. ``hosts`` and ``reach`` are the fleet's."""

    def __init__(self, fleet: Fleet, reach: Reach) -> None:
        self._fleet, self._reach = fleet, reach
        self._hosts = {host.name: host for host in fleet.hosts}
        staying = [vm for vm in fleet.vms if may_stay(vm)]
        self._rounds = staying_rounds(fleet.hosts, staying)
        self._staying = Counter(vm.host for vm in staying)

    def of(self, vm: Vm) -> Tuple[Option, ...]:
        """Every treatment of one VM, in the order of ``Treatment``."""
        makers = {
            Treatment.IN_PLACE: self._in_place,
            Treatment.LIVE: self._live,
            Treatment.COLD: self._cold,
            Treatment.RESTART: self._restart,
            Treatment.DEFER: self._defer,
        }
        return tuple(makers[treatment](vm) for treatment in Treatment)

    def _in_place(self, vm: Vm) -> Option:
        host = self._hosts[vm.host]
        # One that its policy does not let stay would come on top of the others.
        one_more = self._staying[vm.host] // host.pauses.parallel + 1
        p50_s, p95_s = predicted(host, self._rounds.get(vm.uuid, one_more))
        return _judged(vm, Treatment.IN_PLACE, vm.held, p50_s, p95_s)

    def _live(self, vm: Vm) -> Option:
        path = max((host.link_mbit for host in self._fleet.hosts if host.name != vm.host), default=0.0)
        link = min(path, self._hosts[vm.host].link_mbit)
        seconds = migration_s(vm.ram_bytes, link, vm.writes_bytes_per_s) if link else 0.0
        figures = self._fleet.switchover
        obstacles = list(vm.bound) or self._nowhere(vm)
        option = _judged(vm, Treatment.LIVE, obstacles, figures.p50_s, figures.p95_s, work_s=seconds)
        return replace(option, sent_bytes=vm.ram_bytes)

    def _nowhere(self, vm: Vm) -> List[str]:
        """Why no other host could run it; nothing when one could."""
        others = [host.name for host in self._fleet.hosts if host.name != vm.host]
        found = [self._reach.obstacles(vm, name) for name in others]
        if not others:
            return ["there is no other host"]
        if not all(found):
            return []
        counted = Counter(reason for reasons in found for reason in reasons[:1])
        return [f"no other host could run it: {count} {_plainly(text, count)}" for text, count in counted.most_common()]

    def _cold(self, vm: Vm) -> Option:
        p50_s, p95_s = predicted(self._hosts[vm.host], 1)
        disk_s = 2 * vm.ram_bytes / DISK_BYTES_PER_S
        return _judged(vm, Treatment.COLD, vm.bound, round(p50_s + disk_s, 2), round(p95_s + 2 * disk_s, 2))

    def _restart(self, vm: Vm) -> Option:
        p50_s, p95_s = predicted(self._hosts[vm.host], 1)
        return _judged(vm, Treatment.RESTART, (), round(p50_s + RESTART_S[0], 2), round(p95_s + RESTART_S[1], 2))

    @staticmethod
    def _defer(vm: Vm) -> Option:
        return Option(Treatment.DEFER, Treatment.DEFER in vm.treatments, possible=True)


def may_stay(vm: Vm) -> bool:
    """Whether it might be treated in place: counted when pauses are predicted, before anything is chosen."""
    return Treatment.IN_PLACE in vm.treatments and not vm.held


def staying_rounds(hosts: Sequence[Host], staying: Iterable[Vm]) -> Dict[str, int]:
    """For each VM that stays in place, by uuid, the rounds that it stands still (see ``pause``)."""
    resident: Dict[str, List[Vm]] = {host.name: [] for host in hosts}
    for vm in staying:
        resident[vm.host].append(vm)
    found: Dict[str, int] = {}
    for host in hosts:
        ranked = sorted(resident[host.name], key=lambda vm: (-vm.priority, vm.name))
        found.update(rounds([vm.uuid for vm in ranked], host.pauses.parallel))
    return found


def choose(vm: Vm, options: Sequence[Option], after: Optional[Treatment] = None) -> Optional[Option]:
    """The first possible treatment in the policy's order, behind ``after`` if given; None when there is none."""
    start = vm.treatments.index(after) + 1 if after in vm.treatments else 0
    by_treatment = {option.treatment: option for option in options}
    return next((by_treatment[entry] for entry in vm.treatments[start:] if by_treatment[entry].possible), None)


def _judged(
    vm: Vm, treatment: Treatment, obstacles: Sequence[str], p50_s: float, p95_s: float, work_s: float = 0.0
) -> Option:
    allowed, limit = treatment in vm.treatments, vm.max_pause_s
    reason, remedy = "", ""
    if obstacles:
        reason, remedy = "; ".join(obstacles), _REMEDIES[treatment]
    elif limit is not None and p95_s > limit:
        reason = f"its predicted pause of {p95_s:g} s (95 of 100) is over its limit of {limit:g} s"
        remedy = f"raise max_pause_s to {p95_s:g}, or allow another treatment"
    return Option(treatment, allowed, not reason, reason, remedy, p50_s, p95_s, round(work_s, 2))


_REMEDIES = {
    Treatment.IN_PLACE: "remove the cause, or allow another treatment",
    Treatment.LIVE: "give it a host that has its kind of CPU, no older QEMU, and reaches its disks, or allow another "
    "treatment",
    Treatment.COLD: "remove the cause, or allow restart",
    Treatment.RESTART: "",
    Treatment.DEFER: "",
}


def _plainly(text: str, count: int) -> str:
    """An obstacle of one host, said of several: "does not reach" becomes "do not reach"."""
    if count == 1:
        return text
    return re.sub("^has ", "have ", text.replace("does not", "do not", 1))
