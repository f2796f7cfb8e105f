# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is the fleet still the one that a plan was made for? Pure: a plan as a document, and what the hosts have now.

A VM may be wherever the plan puts it in the course of the campaign, so that a campaign that was cut off goes on.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Mapping, Sequence, Set

from .document import picture_of
from .model import Group, Vm

_GIB = 1 << 30
_POLICY = ("treatments", "priority", "max_pause_s", "critical", "group", "return_home", "may_restart")


def drift(plan: Mapping[str, Any], vms: Sequence[Vm], groups: Sequence[Group], domains: Mapping[str, str]) -> List[str]:
    """What is not as the plan has it, one sentence each; nothing when it may be carried out.

    ``domains`` has the fault domain of each host that was looked at, ``vms`` the VMs that run there.
    """
    fleet = plan["fleet"]
    known = {str(vm["uuid"]): vm for vm in fleet["vms"]}
    places = _places(plan)
    found = [
        *_domains(fleet, domains),
        *_groups(fleet, groups),
        *(line for vm in vms for line in _of_vm(vm, known.get(vm.uuid), places)),
        *_gone(known, places, {vm.uuid for vm in vms}, set(domains)),
    ]
    return list(dict.fromkeys(found))


def _places(plan: Mapping[str, Any]) -> Dict[str, Set[str]]:
    """Every host on which the plan has a VM at some time, by uuid."""
    places = {str(vm["uuid"]): {str(vm["host"])} for vm in plan["fleet"]["vms"]}
    for batch in plan["batches"]:
        for move in batch["evacuations"]:
            places[str(move["uuid"])].add(str(move["destination"]))
    return places


def _domains(fleet: Mapping[str, Any], domains: Mapping[str, str]) -> Iterator[str]:
    planned = {str(host["name"]): str(host["domain"]) for host in fleet["hosts"]}
    for host, domain in domains.items():
        if host not in planned:
            yield f"host {host} is not in the plan"
        elif domain != planned[host]:
            yield f"host {host}: its fault domain is {domain or 'none'}, in the plan {planned[host] or 'none'}"


def _groups(fleet: Mapping[str, Any], groups: Sequence[Group]) -> Iterator[str]:
    planned = {str(group["name"]): group for group in fleet["groups"]}
    for group in groups:
        if group.name not in planned:
            yield f"group {group.name} is not in the plan"
    now = {group.name: group for group in groups}
    for name, entry in planned.items():
        if name not in now:
            yield f"group {name} of the plan is not in holdfast_groups any more"
            continue
        for key in ("min_available", "anti_affinity"):
            if getattr(now[name], key) != entry[key]:
                yield f"group {name}: {key} is {getattr(now[name], key)}, in the plan {entry[key]}"


def _of_vm(vm: Vm, planned: Any, places: Mapping[str, Set[str]]) -> Iterator[str]:
    if planned is None:
        yield f"VM {vm.name} runs on {vm.host}, and is not in the plan"
        return
    if vm.host not in places[vm.uuid]:
        yield f"VM {vm.name} is on {vm.host}, in the plan on {planned['host']}"
        return
    if vm.ram_bytes != planned["ram_bytes"]:
        before, now = planned["ram_bytes"] / _GIB, vm.ram_bytes / _GIB
        yield f"VM {vm.name} has {now:g} GiB of RAM, in the plan {before:g}"
    # Away from home the rules of another host speak, which need not know it.
    if vm.host == planned["host"]:
        now_says = picture_of(vm)
        for key in _POLICY:
            if now_says[key] != planned[key]:
                yield f"VM {vm.name}: its policy says {key} {_said(now_says[key])}, in the plan {_said(planned[key])}"


def _said(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(value)}]"
    return "none" if value in (None, "") else str(value)


def _gone(
    known: Mapping[str, Mapping[str, Any]], places: Mapping[str, Set[str]], seen: Set[str], looked_at: Set[str]
) -> Iterator[str]:
    """VMs that would have been seen, wherever the plan may have put them."""
    for uuid, vm in known.items():
        if uuid not in seen and places[uuid] <= looked_at:
            yield f"VM {vm['name']} does not run on {' or '.join(sorted(places[uuid]))} any more"
