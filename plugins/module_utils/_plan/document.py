# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan as ``plan.json``, by docs/plan.schema.json."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Dict

from .._core.facts import plain
from .model import Fleet, Plan

SCHEMA_VERSION = 1


def document(plan: Plan, fleet: Fleet, created: str) -> Dict[str, Any]:
    """The plan for programs; ``created`` is ISO 8601 in UTC."""
    fields = plain(plan)
    return {
        "schema_version": SCHEMA_VERSION,
        "created": created,
        "fleet_sha256": fingerprint(fleet),
        "complete": plan.complete,
        "limits": plain(fleet.limits),
        **(fields if isinstance(fields, dict) else {}),
    }


def fingerprint(fleet: Fleet) -> str:
    """A digest of what was approved: which VMs are where, what their policy says, the groups and the limits.

    It does not change with what changes all the time, like free RAM; whoever carries a plan out looks at that again.
    """
    vms = [(vm.uuid, vm.host, vm.ram_bytes, *_policy(vm)) for vm in fleet.vms]
    groups = [(group.name, group.min_available, group.anti_affinity) for group in fleet.groups]
    hosts = [(host.name, host.domain, host.done) for host in fleet.hosts]
    content = json.dumps([sorted(hosts), sorted(vms, key=str), sorted(groups), plain(fleet.limits)], default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _policy(vm: Any) -> Any:
    treatments = [treatment.value for treatment in vm.treatments]
    return treatments, vm.priority, vm.max_pause_s, vm.critical, vm.group, vm.return_home
