# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan as ``plan.json``, by docs/plan.schema.json."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Dict, List, Mapping

from .._core.facts import plain
from .model import Fleet, Plan, Vm

SCHEMA_VERSION = 1
# How ``created`` is written.
CREATED = "%Y-%m-%dT%H:%M:%SZ"


def document(plan: Plan, fleet: Fleet, created: str) -> Dict[str, Any]:
    """The plan for programs; ``created`` is ISO 8601 in UTC."""
    fields = plain(plan)
    decided = fields if isinstance(fields, dict) else {}
    made = {
        "schema_version": SCHEMA_VERSION,
        "created": created,
        "fleet_sha256": fingerprint(fleet),
        "complete": plan.complete,
        "limits": plain(fleet.limits),
        "fleet": picture(fleet),
        **decided,
    }
    return {**made, "decisions_sha256": decisions_digest(made)}


def picture(fleet: Fleet) -> Dict[str, Any]:
    """The fleet as it was approved: which VMs are where, what their policy says, the groups, the fault domains.

    Not what changes all the time, like free RAM; whoever carries a plan out looks at that again.
    """
    hosts = [{"name": host.name, "domain": host.domain, "done": host.done} for host in fleet.hosts]
    groups = [
        {"name": group.name, "min_available": group.min_available, "anti_affinity": group.anti_affinity}
        for group in fleet.groups
    ]
    return {
        "hosts": sorted(hosts, key=lambda host: str(host["name"])),
        "groups": sorted(groups, key=lambda group: str(group["name"])),
        "vms": sorted((picture_of(vm) for vm in fleet.vms), key=lambda vm: (vm["uuid"], vm["host"])),
    }


def picture_of(vm: Vm) -> Dict[str, Any]:
    """What was approved of one VM. Sizes are bytes."""
    return {
        "name": vm.name,
        "uuid": vm.uuid,
        "host": vm.host,
        "ram_bytes": vm.ram_bytes,
        "treatments": [treatment.value for treatment in vm.treatments],
        "priority": vm.priority,
        "max_pause_s": vm.max_pause_s,
        "critical": vm.critical,
        "group": vm.group,
        "return_home": vm.return_home,
        "may_restart": vm.may_restart,
    }


def decisions(plan: Mapping[str, Any]) -> List[Any]:
    """What a plan decides: which hosts go together, what happens to each VM, who goes where. No predicted times."""
    batches = [
        [batch["hosts"], sorted((move["uuid"], move["destination"]) for move in batch["evacuations"])]
        for batch in plan["batches"]
    ]
    return [batches, sorted((vm["uuid"], vm["treatment"]) for vm in plan["vms"])]


def decisions_digest(plan: Mapping[str, Any]) -> str:
    """What ``decisions_sha256`` of a document has to be: of the fleet, the limits, and what was decided."""
    return _digest([plan["fleet"], plan["limits"], *decisions(plan)])


def fingerprint(fleet: Fleet) -> str:
    """A digest of what was planned for, the limits among it."""
    return _digest([picture(fleet), plain(fleet.limits)])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
