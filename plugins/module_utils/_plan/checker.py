# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is this plan right? Goes through it as the campaign would, and names every rule that it breaks.

Written from the rules, not from the planner: it shares nothing with it but the frozen data of ``model``. Each plan
passes through here before anybody sees it. What it does not judge is whether a better plan exists.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Dict, Iterator, List, Sequence, Set, Tuple

from .._core.facts import Disk, Treatment
from .model import Absence, Batch, Fleet, Host, Move, Plan, Purpose, Vm, VmPlan

# Times are rounded to milliseconds; pauses to hundredths of a second.
_SLACK_S = 0.01
_STAND_STILL = {Treatment.IN_PLACE, Treatment.COLD, Treatment.RESTART}


class Rule(str, Enum):
    """What a plan may not break."""

    HOSTS = "every host is upgraded once, or left out with a reason"
    WAVE = "a batch is no larger than its wave"
    CANARY = "canaries come first, alone"
    DOMAIN = "a fault domain has no more hosts away than it may"
    RESERVE = "hosts upgraded together leave room for the VMs of one that fails"
    QUORUM = "a group has as many members running as it needs, paused ones not counted"
    TREATMENT = "every VM has one treatment that its policy allows and the facts permit"
    CRITICAL = "a critical VM is not paused"
    PAUSE = "a predicted pause is the one that the figures give, and within the VM's limit"
    LEFT_BEHIND = "no VM that must leave is on a host when it is upgraded"
    ORIGIN = "a VM is moved from where it is, when its host is upgraded"
    DESTINATION = "a VM does not go to a host that is being upgraded, or is next"
    CPU = "a VM goes where its CPU can be had"
    QEMU = "a VM goes to a QEMU that is no older than its own"
    STORAGE = "a VM goes where its disks are, or they are copied"
    RAM = "a host has RAM for its VMs, and for those that are on their way"
    VCPUS = "a host has processors for its VMs"
    ANTI_AFFINITY = "members of a group that must be apart are not brought together"
    HOME = "a VM that returns home does so before the next batch, and no other"
    LINK = "a host sends one VM at a time, and receives one"
    TIME = "everything happens in its order, and takes as long as it must"
    BOUND = "a plan claims no more than it proves"


@dataclass(frozen=True)
class Violation:
    """A broken rule, and where."""

    rule: Rule
    text: str

    def __str__(self) -> str:
        return f"{self.text} (rule: {self.rule.value})"


def check(fleet: Fleet, plan: Plan) -> Tuple[Violation, ...]:
    """Every rule that the plan breaks; empty for a plan that is right."""
    checker = _Checker(fleet, plan)
    found = [*checker.hosts(), *checker.sizes(), *checker.treatments(), *checker.claims()]
    # A plan that names unknown hosts or VMs cannot be gone through.
    return tuple(found) if checker.has_strangers() else (*found, *checker.replay())


class _Checker:
    def __init__(self, fleet: Fleet, plan: Plan) -> None:
        self.fleet, self.plan = fleet, plan
        self.host: Dict[str, Host] = {host.name: host for host in fleet.hosts}
        self.vm: Dict[str, Vm] = {vm.uuid: vm for vm in fleet.vms}
        self.planned: Dict[str, VmPlan] = {entry.uuid: entry for entry in plan.vms}
        self.batched = Counter(name for batch in plan.batches for name in batch.hosts)
        self.where: Dict[str, str] = {vm.uuid: vm.host for vm in fleet.vms}

    def has_strangers(self) -> bool:
        moves = [move for batch in self.plan.batches for move in (*batch.evacuations, *batch.returns)]
        places = {*self.batched, *(move.source for move in moves), *(move.destination for move in moves)}
        return bool(places - self.host.keys() or {move.uuid for move in moves} - self.vm.keys())

    # --- without going through it ----------------------------------------------------------------------------------

    def hosts(self) -> Iterator[Violation]:
        out = Counter(entry.host for entry in self.plan.left_out)
        for name in sorted({*self.batched, *out} - self.host.keys()):
            yield Violation(Rule.HOSTS, f"{name} is no host of this fleet")
        for name, host in self.host.items():
            if self.batched[name] + out[name] != 1:
                yield Violation(
                    Rule.HOSTS, f"{name} is in {self.batched[name]} batches, and left out {out[name]} times"
                )
            if self.batched[name] and (host.done or host.blockers):
                yield Violation(Rule.HOSTS, f"{name} is to be upgraded, but is done or blocked")
        for entry in self.plan.left_out:
            true = entry.host in self.host and self._reason_holds(entry.host, entry.why, bool(entry.vms))
            if not true:
                yield Violation(Rule.HOSTS, f"{entry.host} is left out as {entry.why.value}, which it is not")

    def _reason_holds(self, name: str, why: Absence, names_vms: bool) -> bool:
        host = self.host[name]
        if why is Absence.DONE:
            return host.done
        if why is Absence.BLOCKED:
            return bool(host.blockers)
        return names_vms

    def sizes(self) -> Iterator[Violation]:
        limits = self.fleet.limits
        canaries = set(limits.canaries) & set(self.batched)
        for index, batch in enumerate(self.plan.batches):
            allowed = limits.waves[index] if index < len(limits.waves) else limits.waves[-1]
            if not 1 <= len(batch.hosts) <= allowed:
                yield Violation(Rule.WAVE, f"batch {batch.number} has {len(batch.hosts)} hosts, its wave has {allowed}")
            if index == 0 and canaries and not set(batch.hosts) <= canaries:
                yield Violation(Rule.CANARY, f"batch {batch.number} has {', '.join(batch.hosts)}")
            yield from self._domains(batch)

    def _domains(self, batch: Batch) -> Iterator[Violation]:
        most = self.fleet.limits.max_per_domain
        counted = Counter(self.host[name].domain for name in batch.hosts if name in self.host)
        for domain, count in counted.items():
            if most and domain and count > most:
                yield Violation(Rule.DOMAIN, f"batch {batch.number} has {count} hosts of {domain}, {most} may go")

    def treatments(self) -> Iterator[Violation]:
        due = {vm.uuid for vm in self.fleet.vms if self.batched[vm.host]}
        if len(self.plan.vms) != len(self.planned) or set(self.planned) != due:
            odd = sorted(set(self.planned) ^ due)
            names = [self.vm[uuid].name if uuid in self.vm else uuid for uuid in odd]
            yield Violation(
                Rule.TREATMENT, f"treated twice, not at all, or needlessly: {', '.join(names) or 'some VM'}"
            )
        for uuid in due & set(self.planned):
            yield from self._treatment(self.vm[uuid], self.planned[uuid])

    def _treatment(self, vm: Vm, entry: VmPlan) -> Iterator[Violation]:
        chosen = entry.treatment
        if chosen not in vm.treatments:
            yield Violation(Rule.TREATMENT, f"{vm.name} gets {chosen.value}, which its policy does not allow")
        if chosen is Treatment.IN_PLACE and vm.held:
            yield Violation(Rule.TREATMENT, f"{vm.name} cannot stay in place: {vm.held[0]}")
        if chosen in (Treatment.LIVE, Treatment.COLD) and vm.bound:
            yield Violation(Rule.TREATMENT, f"{vm.name} cannot leave its QEMU: {vm.bound[0]}")
        if chosen is Treatment.DEFER:
            yield Violation(Rule.TREATMENT, f"{vm.name} is to wait, but its host {vm.host} is upgraded")
        if vm.critical and chosen in _STAND_STILL:
            yield Violation(Rule.CRITICAL, f"{vm.name} gets {chosen.value}")
        yield from self._pause(vm, entry)

    def _pause(self, vm: Vm, entry: VmPlan) -> Iterator[Violation]:
        if entry.treatment is Treatment.IN_PLACE:
            expected = self._stands_still_s(vm)
            if abs(entry.pause_p95_s - expected) > _SLACK_S:
                text = f"{vm.name}: {entry.pause_p95_s} s are predicted, the figures give {expected:.2f} s"
                yield Violation(Rule.PAUSE, text)
        if entry.treatment is Treatment.LIVE and entry.pause_p95_s < self.fleet.switchover.p95_s - _SLACK_S:
            yield Violation(Rule.PAUSE, f"{vm.name}: {entry.pause_p95_s} s are less than a switch-over takes")
        if vm.max_pause_s is not None and entry.pause_p95_s > vm.max_pause_s:
            yield Violation(Rule.PAUSE, f"{vm.name}: {entry.pause_p95_s} s are over its limit of {vm.max_pause_s} s")

    def _stands_still_s(self, vm: Vm) -> float:
        """The floor, and a share of the work for each VM that goes before this one, itself included."""
        figures = self.host[vm.host].pauses
        ahead = 0
        for other in self.fleet.vms:
            stays = other.uuid in self.planned and self.planned[other.uuid].treatment is Treatment.IN_PLACE
            if other.host == vm.host and stays and (-other.priority, other.name) <= (-vm.priority, vm.name):
                ahead += 1
        turns = 0
        while turns * figures.parallel < ahead:
            turns += 1
        return figures.floor_p95_s + turns * figures.each_p95_s

    def claims(self) -> Iterator[Violation]:
        count, bound = len(self.plan.batches), self.plan.bound
        if bound.batches > count:
            yield Violation(Rule.BOUND, f"{count} batches are fewer than the least number, {bound.batches}")
        gap = (count - bound.batches) / count if count else 0.0
        if abs(gap - bound.gap) > 0.001:
            yield Violation(Rule.BOUND, f"the gap is given as {bound.gap}, but {bound.batches} to {count} is {gap:.3f}")

    # --- going through it ------------------------------------------------------------------------------------------

    def replay(self) -> Iterator[Violation]:
        clock = 0.0
        for index, batch in enumerate(self.plan.batches):
            coming = self.plan.batches[index + 1].hosts if index + 1 < len(self.plan.batches) else ()
            if abs(batch.start_s - clock) > _SLACK_S:
                yield Violation(Rule.TIME, f"batch {batch.number} begins at {batch.start_s} s, not at {clock} s")
            yield from self._evacuate(batch, set(coming))
            yield from self._upgrade(batch)
            yield from self._go_home(batch)
            clock = batch.start_s + batch.seconds
        if abs(self.plan.seconds - clock) > _SLACK_S:
            yield Violation(Rule.TIME, f"the plan takes {clock} s, not {self.plan.seconds} s")

    def _evacuate(self, batch: Batch, coming: Set[str]) -> Iterator[Violation]:
        for move in batch.evacuations:
            vm, planned = self.vm[move.uuid], self.planned.get(move.uuid)
            if move.source not in batch.hosts or move.purpose is not Purpose.EVACUATE:
                yield Violation(Rule.ORIGIN, f"batch {batch.number} moves {vm.name} away from {move.source}")
            if planned is None or planned.treatment is not Treatment.LIVE:
                yield Violation(Rule.TREATMENT, f"batch {batch.number} moves {vm.name}, which is not to be moved live")
            if move.destination in batch.hosts:
                yield Violation(Rule.DESTINATION, f"{vm.name} goes to {move.destination}, which is in the same batch")
            if move.destination in coming and not vm.return_home and not move.again:
                yield Violation(Rule.DESTINATION, f"{vm.name} goes to {move.destination}, which is next")
        yield from self._carried_out(batch.evacuations, batch.start_s, batch.upgrade_start_s)

    def _upgrade(self, batch: Batch) -> Iterator[Violation]:
        there = [vm for vm in self.fleet.vms if self.where[vm.uuid] in batch.hosts]
        for vm in there:
            entry = self.planned.get(vm.uuid)
            if entry is not None and entry.treatment is Treatment.LIVE:
                yield Violation(Rule.LEFT_BEHIND, f"{vm.name} is on {self.where[vm.uuid]} in batch {batch.number}")
        yield from self._quorums(batch, there)
        yield from self._reserve(batch)
        shortest = max((self._shortest_upgrade_s(name, there) for name in batch.hosts), default=0.0)
        if batch.upgrade_s < shortest - _SLACK_S:
            yield Violation(Rule.TIME, f"batch {batch.number} is upgraded in {batch.upgrade_s} s, not {shortest:.1f} s")

    def _shortest_upgrade_s(self, name: str, there: Sequence[Vm]) -> float:
        figures = self.host[name].pauses
        here = [vm for vm in there if self.where[vm.uuid] == name]
        longest = max((self.planned[vm.uuid].pause_p50_s for vm in here if vm.uuid in self.planned), default=0.0)
        busy = figures.floor_p50_s + len(here) / figures.parallel * figures.each_p50_s
        return self.fleet.limits.stage_s + max(busy, longest)

    def _quorums(self, batch: Batch, there: Sequence[Vm]) -> Iterator[Violation]:
        paused = Counter(vm.group for vm in there)
        for group in self.fleet.groups:
            size = sum(1 for vm in self.fleet.vms if vm.group == group.name)
            running = size - paused[group.name]
            if paused[group.name] and running < group.min_available:
                text = f"group {group.name} has {running} members running in batch {batch.number}"
                yield Violation(Rule.QUORUM, f"{text}, and needs {group.min_available}")

    def _reserve(self, batch: Batch) -> Iterator[Violation]:
        count = self.fleet.limits.reserve_hosts
        if not count or not (len(batch.hosts) > 1 or batch.reserve_kept):
            return
        used = self._used()
        free = sum(host.ram_bytes - used[host.name] for host in self.fleet.hosts if host.name not in batch.hosts)
        needed = sum(sorted(host.ram_bytes for host in self.fleet.hosts)[-count:])
        if free < needed:
            text = (
                f"batch {batch.number} leaves {free >> 30} GiB free on the other hosts, {needed >> 30} GiB are reserved"
            )
            yield Violation(Rule.RESERVE, text)

    def _used(self) -> Counter[str]:
        used: Counter[str] = Counter()
        for vm in self.fleet.vms:
            used[self.where[vm.uuid]] += self._ram_of(vm, self.where[vm.uuid])
        return used

    def _go_home(self, batch: Batch) -> Iterator[Violation]:
        away = {move.uuid for move in batch.evacuations}
        for move in batch.returns:
            vm = self.vm[move.uuid]
            wanted = vm.return_home and move.uuid in away and move.purpose is Purpose.RETURN
            if not wanted or move.destination != vm.host:
                yield Violation(Rule.HOME, f"batch {batch.number} returns {vm.name} to {move.destination}")
        end = batch.start_s + batch.seconds
        yield from self._carried_out(batch.returns, batch.upgrade_start_s + batch.upgrade_s, end)
        for uuid in sorted(away):
            if self.vm[uuid].return_home and self.where[uuid] != self.vm[uuid].host:
                yield Violation(Rule.HOME, f"{self.vm[uuid].name} is not at home after batch {batch.number}")

    # --- migrations ------------------------------------------------------------------------------------------------

    def _carried_out(self, moves: Sequence[Move], begin_s: float, end_s: float) -> Iterator[Violation]:
        """Every migration of one phase: alone on its links, with room at both ends while it lasts."""
        yield from self._links(moves)
        ram, vcpus = self._used(), self._vcpus()
        steps = [(move.start_s, 1, move) for move in moves] + [(move.start_s + move.seconds, 0, move) for move in moves]
        for at, begins, move in sorted(steps, key=lambda step: (round(step[0], 3), step[1])):
            vm = self.vm[move.uuid]
            if not begins:
                ram[move.source] -= self._ram_of(vm, move.source)
                vcpus[move.source] -= vm.vcpus
                continue
            if at < begin_s - _SLACK_S or at + move.seconds > end_s + _SLACK_S:
                yield Violation(Rule.TIME, f"{vm.name} is moved at {at} s, outside of its phase")
            yield from self._fits(vm, move)
            ram[move.destination] += self._ram_of(vm, move.destination)
            vcpus[move.destination] += vm.vcpus
            yield from self._room(vm, move.destination, ram, vcpus)
            self.where[move.uuid] = move.destination

    def _fits(self, vm: Vm, move: Move) -> Iterator[Violation]:
        if self.where[vm.uuid] != move.source or move.source == move.destination:
            yield Violation(Rule.ORIGIN, f"{vm.name} is moved from {move.source}, but is on {self.where[vm.uuid]}")
        if not self._cpu_fits(vm, self.host[move.destination]):
            yield Violation(Rule.CPU, f"{move.destination} cannot give {vm.name} its CPU")
        installed = self.host[move.destination].qemu
        if move.destination != vm.host and installed and vm.qemu and vm.qemu > installed:
            yield Violation(Rule.QEMU, f"{move.destination} has an older QEMU than {vm.name} runs on")
        for disk in vm.disks:
            copied = self.fleet.limits.copy_storage and disk.target in move.copied_disks
            if not copied and not self._disk_is_there(disk, move.source, move.destination):
                yield Violation(Rule.STORAGE, f"{move.destination} does not reach {disk.source} of {vm.name}")
        if move.destination != vm.host and self.host[move.destination].pool is not vm.pooled:
            yield Violation(Rule.RAM, f"{vm.name} would not get the kind of RAM that it has on {move.destination}")
        if self._meets_its_like(vm, move.destination):
            yield Violation(Rule.ANTI_AFFINITY, f"{vm.name} meets another member of {vm.group} on {move.destination}")
        mbit = min(self.host[move.source].link_mbit, self.host[move.destination].link_mbit)
        if move.sent_bytes < vm.ram_bytes or move.seconds < move.sent_bytes * 8 / 1e6 / mbit - _SLACK_S:
            yield Violation(Rule.TIME, f"{vm.name} cannot be moved in {move.seconds} s")

    def _cpu_fits(self, vm: Vm, there: Host) -> bool:
        here = self.host[vm.host].cpu
        superset = here.vendor == there.cpu.vendor and here.flags and set(here.flags).issubset(there.cpu.flags)
        if vm.cpu_mode in ("host-passthrough", "maximum"):
            return bool(superset) and here.name == there.cpu.name
        plain_model = vm.cpu_model and not vm.cpu_features
        return bool(superset) or bool(plain_model and vm.cpu_model in there.cpu.models)

    def _disk_is_there(self, disk: Disk, source: str, destination: str) -> bool:
        if not disk.source or disk.kind == "network":
            return True
        roots = [path.rstrip("/") + "/" for path in self.fleet.limits.shared_paths]
        both = set(self.host[source].mounts).intersection(self.host[destination].mounts)
        roots += [mount.path.rstrip("/") + "/" for mount in both]
        return any(disk.source.startswith(root) for root in roots)

    def _meets_its_like(self, vm: Vm, name: str) -> bool:
        apart = {group.name for group in self.fleet.groups if group.anti_affinity}
        if vm.group not in apart:
            return False
        others = [other for other in self.fleet.vms if other.group == vm.group and other.uuid != vm.uuid]
        # Those that shared a host before the campaign may do so again.
        return any(self.where[other.uuid] == name and not other.host == vm.host == name for other in others)

    def _room(self, vm: Vm, name: str, ram: Counter[str], vcpus: Counter[str]) -> Iterator[Violation]:
        """A host that was over its limit before the campaign is allowed that much again, when VMs come home to it."""
        host = self.host[name]
        at_first = [other for other in self.fleet.vms if other.host == name]
        if ram[name] > max(host.ram_bytes, sum(self._ram_of(other, name) for other in at_first)):
            yield Violation(Rule.RAM, f"{name} has no RAM for {vm.name}")
        most = max(host.cpus * self.fleet.limits.cpu_ratio, sum(other.vcpus for other in at_first))
        if host.cpus and vcpus[name] > most:
            yield Violation(Rule.VCPUS, f"{name} has no processors for {vm.name}")

    def _ram_of(self, vm: Vm, name: str) -> int:
        """What it takes of a host's room for VMs: of a pool nothing, if its RAM is elsewhere."""
        if self.host[name].pool and not vm.pooled:
            return 0
        return vm.ram_bytes

    def _vcpus(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for vm in self.fleet.vms:
            counted[self.where[vm.uuid]] += vm.vcpus
        return counted

    def _links(self, moves: Sequence[Move]) -> Iterator[Violation]:
        busy: Dict[Tuple[str, str], List[Tuple[float, float, str]]] = {}
        for move in moves:
            span = (move.start_s, move.start_s + move.seconds, move.vm)
            busy.setdefault(("sends", move.source), []).append(span)
            busy.setdefault(("receives", move.destination), []).append(span)
        for (verb, name), spans in busy.items():
            ordered = sorted(spans)
            for before, after in zip(ordered, ordered[1:]):
                if after[0] < before[1] - _SLACK_S:
                    yield Violation(Rule.LINK, f"{name} {verb} {before[2]} and {after[2]} at the same time")
