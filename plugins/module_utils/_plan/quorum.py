# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do enough members of each group run just now for a batch to begin? Pure.

A plan counts on the VMs that ran when it was made. Of those on hosts that had their turn, or have yet to have it, some
may not run any more when a later batch pauses others of their group.
"""

from __future__ import annotations

from typing import Any, Collection, Iterator, List, Mapping

from .._core.facts import Treatment


def fellow_hosts(plan: Mapping[str, Any], hosts: Collection[str]) -> List[str]:
    """Other hosts on which members run whose group these hosts pause members of, by name.

    Those from which a member was moved, and to which, are among them.
    """
    groups = {str(group["name"]) for group in _counting(plan) if _paused(plan, str(group["name"]), hosts)}
    members = {str(vm["uuid"]): str(vm["host"]) for vm in plan["fleet"]["vms"] if vm["group"] in groups}
    moves = [move for batch in plan["batches"] for move in batch["evacuations"] if move["uuid"] in members]
    return sorted({*members.values(), *(str(move["destination"]) for move in moves)} - set(hosts))


def shortfalls(plan: Mapping[str, Any], hosts: Collection[str], running: Collection[str]) -> Iterator[str]:
    """Groups of which too few would run while these hosts are upgraded, a sentence each.

    ``running``: uuids of the VMs that run now, on these hosts and on their ``fellow_hosts``.
    """
    names = {str(vm["uuid"]): str(vm["name"]) for vm in plan["fleet"]["vms"]}
    for group in _counting(plan):
        name, least = str(group["name"]), int(group["min_available"])
        paused = _paused(plan, name, hosts)
        there = [str(vm["uuid"]) for vm in plan["fleet"]["vms"] if vm["group"] == name and vm["uuid"] in running]
        left = [uuid for uuid in there if uuid not in paused]
        if paused and len(left) < least:
            told = ", ".join(sorted(names[uuid] for uuid in left))
            would = f"of the others only {told} would" if told else "none of the others would"
            yield f"group {name}: {least} of its members have to run, and {would}"


def _counting(plan: Mapping[str, Any]) -> List[Mapping[str, Any]]:
    return [group for group in plan["fleet"]["groups"] if group["min_available"] > 0]


def _paused(plan: Mapping[str, Any], group: str, hosts: Collection[str]) -> List[str]:
    """Members of a group that stand still while these hosts are upgraded, by uuid."""
    treatments = {str(vm["uuid"]): str(vm["treatment"]) for vm in plan["vms"]}
    return [
        str(vm["uuid"])
        for vm in plan["fleet"]["vms"]
        if vm["group"] == group and vm["host"] in hosts and treatments.get(vm["uuid"]) != Treatment.LIVE.value
    ]
