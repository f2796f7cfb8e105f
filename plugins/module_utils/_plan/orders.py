# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan says to one host when its turn comes. Pure."""

from __future__ import annotations

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
    treatments = {str(vm["uuid"]): Treatment(vm["treatment"]) for vm in plan["vms"]}
    rules = [
        _rule(vm, treatments.get(str(vm["uuid"]), Treatment.IN_PLACE))
        for vm in plan["fleet"]["vms"]
        if vm["uuid"] in present
    ]
    destinations = {str(move["vm"]): str(move["destination"]) for move in leaving.values()}
    return Orders(int(batch["number"]), destinations, tuple(rules))


def _rule(vm: Mapping[str, Any], treatment: Treatment) -> Dict[str, Any]:
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
        rule["treatments"] = _from(vm["treatments"], treatment)
        rule["critical"], rule["return_home"] = vm["critical"], vm["return_home"]
    return rule


def _from(allowed: Sequence[str], treatment: Treatment) -> List[str]:
    """What the policy allows, from the decided one on: what stands before it was found impossible."""
    after = list(allowed)
    return after[after.index(treatment.value) :] if treatment.value in after else [treatment.value]
