# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what modules found on the hosts, and what the inventory says, to the fleet that is planned for.

Everything that is wrong with the policy comes out here, before anything is planned: one error, naming the rule.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Dict, List, Mapping, Sequence, Set, Tuple

from .._core.config import DEVDAX
from .._core.errors import BadInput
from .._core.facts import CpuFacts, Disk, Mount, RamBacking, Treatment, VmFacts
from .._core.journal import WAITING
from .._core.policy import Decision, Rule, check_known, decide, parse_rules, place
from .._core.request import EVERYTHING
from . import groups as grouping
from .document import CREATED
from .limits import EMPTY, parse_limits
from .model import Fleet, Group, Host, Vm
from .pause import Run, pauses, runs, switchover

ASSUMED_LINK_MBIT = 1000.0
SLOWEST_LINK_MBIT = 100
# Blockers of preflight that stand against every way of saving a VM's state, a live migration included.
_BOUND = (
    *("passthrough", "device", "filesystem", "launch-security", "disk-format"),
    *("tsc", "vm-state", "vm-job", "vm-moving", "qemu-blocks"),
)


@dataclass(frozen=True)
class Found:
    """One host: what ``host_info``, ``vm_info`` and ``preflight`` returned, and its variables.

    ``rule_origins`` and ``group_origins`` say where the inventory has them, FILE:LINE, as far as that is known.
    """

    name: str
    host: Mapping[str, Any]
    vms: Sequence[Mapping[str, Any]]
    blockers: Sequence[Mapping[str, Any]] = ()
    journal: Mapping[str, Any] = field(default_factory=dict)
    switchovers_s: Sequence[float] = ()
    policy: object = ()
    rule_origins: Sequence[str] = ()
    groups: object = field(default_factory=dict)
    group_origins: Mapping[str, str] = field(default_factory=dict)
    domain: str = ""
    link_mbit: float = ASSUMED_LINK_MBIT


def fleet(
    found: Sequence[Found],
    options: Mapping[str, Any],
    reports: Sequence[Mapping[str, Any]] = (),
    origins: Mapping[str, str] = EMPTY,
) -> Fleet:
    """The fleet. ``options`` are those of the plan, ``origins`` where they are written, ``reports`` earlier campaigns'.

    Raises BadInput.
    """
    names = [entry.name for entry in found]
    groups = groups_of(found)
    rules = {entry.name: _rules(entry, groups) for entry in found}
    facts = {entry.name: tuple(_facts(vm) for vm in entry.vms) for entry in found}
    notes = _strangers(rules, facts)
    measured = _measured(found, reports)
    done = {str(name) for name in options["done"]} | upgraded_since(found, str(options["done_since"]))
    hosts = tuple(_host(entry, measured, int(options["parallel"]), entry.name in done) for entry in found)
    vms = vms_of(found)
    limits = parse_limits(options, names, origins)
    switchovers_s = [seconds for entry in found for seconds in entry.switchovers_s]
    return Fleet(hosts, vms, groups, limits, switchover(switchovers_s, reports), (*notes, *_lonely(groups, vms)))


def upgraded_since(found: Sequence[Found], since: str) -> Set[str]:
    """Hosts whose own journal says that they went to their new kernel after this moment, and that no VM waits.

    An upgrade of QEMU alone is none of them.

    ``since``: in UTC, as ``created`` of a plan; empty for none. Raises BadInput.
    """
    if not since:
        return set()
    try:
        moment = datetime.strptime(since, CREATED).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        raise BadInput(f"done_since: {since!r} is no moment", "give it as a plan does, 2026-01-31T02:00:00Z") from None
    return {entry.name for entry in found if _upgraded(entry.journal) and entry.journal.get("begun_at", 0) >= moment}


def _upgraded(journal: Mapping[str, Any]) -> bool:
    waits = any(vm.get("state") in WAITING for vm in journal.get("vms") or ())
    whole = journal.get("only", EVERYTHING) == EVERYTHING
    return whole and journal.get("state") == "restored" and not journal.get("fell_back") and not waits


def decide_all(rules: Sequence[Rule], vms: Sequence[VmFacts]) -> Dict[str, Decision]:
    """Decisions by uuid, without asking whether every rule finds its VM: in a fleet it may be on another host."""
    there = [rule for rule in rules if not _names_one(rule) or any(rule.matches(vm) for vm in vms)]
    return {decision.uuid: decision for decision in decide(there, vms)}


def _rules(entry: Found, groups: Sequence[Group]) -> Tuple[Rule, ...]:
    count = len(entry.policy) if isinstance(entry.policy, (list, tuple)) else 0
    known = list(entry.rule_origins) + [""] * count
    origins = [origin or f"holdfast_policy of {entry.name}" for origin in known[:count]]
    rules = parse_rules(entry.policy, origins, available=tuple(Treatment))
    names = {group.name for group in groups}
    for rule in rules:
        if rule.group and rule.group not in names:
            raise BadInput(
                f"{place(rule)}: there is no group {rule.group}",
                f"define it in holdfast_groups, or correct the rule; groups: {', '.join(sorted(names)) or 'none'}",
            )
    return rules


def vms_of(found: Sequence[Found]) -> Tuple[Vm, ...]:
    """The running VMs of some hosts, with what their policy says. Raises BadInput."""
    groups = groups_of(found)
    rules = {entry.name: _rules(entry, groups) for entry in found}
    facts = {entry.name: tuple(_facts(vm) for vm in entry.vms) for entry in found}
    vms = tuple(vm for entry in found for vm in _vms(entry, decide_all(rules[entry.name], facts[entry.name])))
    _check_unique(vms)
    return vms


def groups_of(found: Sequence[Found]) -> Tuple[Group, ...]:
    """The groups of all hosts. A group is the fleet's, so whoever knows it says the same of it. Raises BadInput."""
    known: Dict[str, Group] = {}
    for entry in found:
        for group in grouping.parse_groups(entry.groups, entry.group_origins):
            other = known.setdefault(group.name, group)
            if (other.min_available, other.anti_affinity) != (group.min_available, group.anti_affinity):
                raise BadInput(
                    f"{grouping.place(group)} (for {entry.name}) contradicts {grouping.place(other)}",
                    "define each group once, for the whole fleet: in group_vars of all hypervisors",
                )
    return tuple(known.values())


def _names_one(rule: Rule) -> bool:
    return rule.field in ("name", "uuid", "title") and not rule.is_glob


def _strangers(rules: Mapping[str, Sequence[Rule]], facts: Mapping[str, Sequence[VmFacts]]) -> List[str]:
    """Notes on rules for a VM of another host. Raises BadInput for a rule whose VM is on no host."""
    everywhere = [vm for vms in facts.values() for vm in vms]
    notes = []
    for host, own in rules.items():
        for rule in own:
            check_known(rule, everywhere)
            if _names_one(rule) and not any(rule.matches(vm) for vm in facts[host]):
                homes = [name for name, vms in facts.items() if any(rule.matches(vm) for vm in vms)]
                notes.append(f"{place(rule)}, for {host}: {rule} is on {', '.join(homes)}; {host} will refuse the rule")
    return notes


def _measured(found: Sequence[Found], reports: Sequence[Mapping[str, Any]]) -> List[Run]:
    """Each run once, though a host's journal and a report may both tell of it."""
    told = [(entry.name, entry.journal) for entry in found]
    told += [(str(host.get("host")), host) for report in reports for host in report.get("hosts") or []]
    known = {str(one.get("generation") or number): (host, one) for number, (host, one) in enumerate(told)}
    return [run for host, journal in known.values() for run in runs(host, journal)]


def _check_unique(vms: Sequence[Vm]) -> None:
    for uuid, count in Counter(vm.uuid for vm in vms).items():
        if count > 1:
            twice = [vm for vm in vms if vm.uuid == uuid]
            raise BadInput(
                f"VM {twice[0].name} ({uuid}) runs on {' and '.join(vm.host for vm in twice)} at the same time",
                "two VMs write to the same disks: stop one of them now, then look at how it came",
            )


def _lonely(groups: Sequence[Group], vms: Sequence[Vm]) -> List[str]:
    """Notes on groups that are not what their name promises."""
    sizes = Counter(vm.group for vm in vms)
    notes = [f"group {group.name} has no running member" for group in groups if not sizes[group.name]]
    shared = Counter((vm.group, vm.host) for vm in vms)
    for group in groups:
        hosts = [host for (name, host), count in shared.items() if name == group.name and count > 1]
        if group.anti_affinity and hosts:
            notes.append(f"group {group.name}: members that should be apart are together on {', '.join(sorted(hosts))}")
    return notes


# --- one host, one VM ----------------------------------------------------------------------------------------------


def _facts(vm: Mapping[str, Any]) -> VmFacts:
    """As much of a VM as rules look at."""
    tags = tuple(str(tag) for tag in vm.get("tags") or ())
    return VmFacts(name=str(vm["name"]), uuid=str(vm["uuid"]), title=str(vm.get("title") or ""), tags=tags)


def _host(entry: Found, measured: Sequence[Run], parallel: int, done: bool) -> Host:
    host = entry.host
    cpu, pool = host.get("cpu") or {}, host.get("pool") or {}
    prepared = bool(pool.get("mounted"))
    free = pool.get("free_bytes", 0) if prepared else host.get("mem_available_bytes", 0)
    mounts = (Mount(str(mount["path"]), str(mount["source"])) for mount in host.get("shared_mounts") or ())
    return Host(
        name=entry.name,
        ram_bytes=int(free) + sum(int(vm["ram_bytes"]) for vm in _running(entry) if _pooled(vm) or not prepared),
        cpus=int(cpu.get("count", 0)),
        cpu=CpuFacts(
            str(cpu.get("vendor", "")),
            str(cpu.get("name", "")),
            tuple(map(str, cpu.get("flags") or ())),
            tuple(map(str, cpu.get("models") or ())),
            int(cpu.get("count", 0)),
        ),
        pauses=pauses(entry.name, measured, parallel),
        link_mbit=_link_mbit(entry),
        mounts=tuple(mounts),
        domain=str(entry.domain),
        blockers=tuple(f"{one['message']} -- {one['remedy']}" for one in entry.blockers if not one.get("vm")),
        done=done,
        pool=prepared,
        qemu=_known_version((host.get("qemu") or {}).get("version") or ()),
        page_bytes=int(pool.get("page_bytes") or 1) if pool.get("kind") == DEVDAX else 1,
    )


def _link_mbit(entry: Found) -> float:
    if entry.link_mbit < SLOWEST_LINK_MBIT:
        raise BadInput(
            f"{entry.name}: a link of {entry.link_mbit:g} Mbit/s is too slow for live migrations",
            f"give holdfast_link_mbit as what VMs are sent over, {SLOWEST_LINK_MBIT} or more",
        )
    return float(entry.link_mbit)


def _running(entry: Found) -> List[Mapping[str, Any]]:
    """VMs that have RAM. One that is shut off is not touched by an upgrade."""
    return [vm for vm in entry.vms if vm.get("state") != "shutoff"]


def _pooled(vm: Mapping[str, Any]) -> bool:
    """Whether its RAM is what a pool takes: libvirt moves a VM as it runs, and refuses to change that on the way."""
    return str(vm.get("ram_backing") or "") == RamBacking.FILE_SHARED.value


def _vms(entry: Found, decisions: Mapping[str, Decision]) -> List[Vm]:
    return [_vm(entry, vm, decisions[str(vm["uuid"])]) for vm in _running(entry)]


def _vm(entry: Found, vm: Mapping[str, Any], decision: Decision) -> Vm:
    against = [one for one in entry.blockers if one.get("vm") == vm["name"]]
    return Vm(
        name=str(vm["name"]),
        uuid=str(vm["uuid"]),
        host=entry.name,
        vcpus=int(vm.get("vcpus") or 1),
        ram_bytes=int(vm["ram_bytes"]),
        disks=tuple(_disk(disk) for disk in vm.get("disks") or ()),
        cpu_mode=str(vm.get("cpu_mode") or ""),
        cpu_model=str(vm.get("cpu_model") or ""),
        cpu_features=tuple(map(str, vm.get("features") or ())),
        held=tuple(str(one["message"]) for one in against),
        bound=tuple(str(one["message"]) for one in against if one["code"] in _BOUND),
        treatments=decision.treatments,
        priority=decision.priority,
        max_pause_s=decision.max_pause_s,
        critical=decision.critical,
        group=decision.group,
        return_home=decision.return_home,
        may_restart=decision.may_restart,
        rule=decision.reason,
        pooled=_pooled(vm),
        ram_blocks=tuple(int(file["size_bytes"]) for file in vm.get("ram_files") or ()),
        writes_bytes_per_s=vm.get("writes_bytes_per_s"),
        qemu=_known_version(str(vm.get("qemu_version") or "").split(".")),
    )


def _known_version(parts: Sequence[Any]) -> Tuple[int, ...]:
    """As numbers; empty for one that nobody knows, which facts have as zeros."""
    numbers = tuple(int(part) for part in parts if str(part).isdigit())
    return numbers if any(numbers) else ()


def _disk(disk: Mapping[str, Any]) -> Disk:
    return Disk(
        target=str(disk["target"]),
        source=str(disk["source"]),
        kind=str(disk.get("kind", "file")),
        driver=str(disk.get("driver", "raw")),
        readonly=bool(disk.get("readonly")),
        size_bytes=int(disk.get("size_bytes") or 0),
    )
