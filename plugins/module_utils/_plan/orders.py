# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan says to one host when its turn comes. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from .._core.facts import Treatment

# A name with one of these would be a pattern in a rule.
_GLOB = frozenset("*?[")


@dataclass(frozen=True)
class Orders:
    """``batch`` counts from 1. ``destinations``: where each VM that leaves goes, by its name.

    ``policy``: a rule for each VM that is there, with the treatment that the plan decided on.
    """

    batch: int
    destinations: Dict[str, str]
    policy: Tuple[Dict[str, Any], ...]


def orders_for(plan: Mapping[str, Any], host: str, present: Sequence[str]) -> Orders:
    """For a host of the plan and the VMs that run there now, by uuid. Raises KeyError for a host in no batch."""
    batch = {name: batch for batch in plan["batches"] for name in batch["hosts"]}[host]
    leaving = {
        str(move["uuid"]): move for move in batch["evacuations"] if move["source"] == host and move["uuid"] in present
    }
    decided = {str(vm["uuid"]): vm for vm in plan["vms"]}
    others = _fallbacks(plan, batch["hosts"])
    rules = [
        _rule(vm, Treatment(decided[vm["uuid"]]["treatment"]) if vm["uuid"] in decided else Treatment.IN_PLACE, others)
        for vm in plan["fleet"]["vms"]
        if vm["uuid"] in present
    ]
    destinations = {str(move["vm"]): str(move["destination"]) for move in leaving.values()}
    return Orders(int(batch["number"]), destinations, tuple(rules))


def _rule(vm: Mapping[str, Any], treatment: Treatment, others: Mapping[str, List[str]]) -> Dict[str, Any]:
    """The VM's policy with what was decided as its only preference; others only after a treatment that may fail."""
    name = str(vm["name"])
    rule: Dict[str, Any] = {
        # By the name, as people read it in an error; names are unique on a host.
        "match": {"uuid": vm["uuid"]} if _GLOB.intersection(name) else {"name": name},
        "priority": vm["priority"],
        "may_restart": vm["may_restart"],
        "treatments": [treatment.value],
    }
    if vm["max_pause_s"] is not None:
        rule["max_pause_s"] = vm["max_pause_s"]
    if treatment is Treatment.LIVE:
        rule["treatments"] += others.get(str(vm["uuid"]), [])
        rule["critical"], rule["return_home"] = vm["critical"], vm["return_home"]
    return rule


def _fallbacks(plan: Mapping[str, Any], hosts: Sequence[str]) -> Dict[str, List[str]]:
    """What each VM of a batch that is to be moved may get when that fails, by uuid.

    What its policy allows after ``live`` and the plan found possible. With most of that it stands still while its host
    is upgraded, so of a group only as many have it as can stand still besides those that do so by the plan.
    """
    treatments = {str(vm["uuid"]): str(vm["treatment"]) for vm in plan["vms"]}
    there = [vm for vm in plan["fleet"]["vms"] if vm["host"] in hosts and vm["uuid"] in treatments]
    room = _room(plan, [vm for vm in there if treatments[vm["uuid"]] != Treatment.LIVE.value])
    options = {str(vm["uuid"]): vm["options"] for vm in plan["vms"]}
    found: Dict[str, List[str]] = {}
    for vm in sorted(there, key=lambda vm: (vm["priority"], vm["uuid"])):
        after = _after_live(vm, options[vm["uuid"]])
        if treatments[vm["uuid"]] != Treatment.LIVE.value or not after:
            continue
        if vm["group"] in room and after[0] != Treatment.DEFER.value:
            if room[vm["group"]] <= 0:
                continue
            room[vm["group"]] -= 1
        found[str(vm["uuid"])] = after
    return found


def _room(plan: Mapping[str, Any], paused: Sequence[Mapping[str, Any]]) -> Dict[str, int]:
    """How many members of each group may stand still besides ``paused``."""
    members = Counter(vm["group"] for vm in plan["fleet"]["vms"])
    still = Counter(vm["group"] for vm in paused)
    groups = {str(group["name"]): int(group["min_available"]) for group in plan["fleet"]["groups"]}
    return {name: members[name] - still[name] - least for name, least in groups.items()}


def _after_live(vm: Mapping[str, Any], options: Sequence[Mapping[str, Any]]) -> List[str]:
    allowed = list(vm["treatments"])
    after = allowed[allowed.index(Treatment.LIVE.value) + 1 :] if Treatment.LIVE.value in allowed else []
    possible = {str(option["treatment"]) for option in options if option["possible"]}
    return [treatment for treatment in after if treatment in possible]
