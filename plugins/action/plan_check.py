# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare a plan with the fleet, on the controller. Documented in modules/plan_check.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.holdfast.kvm.plugins.module_utils._core import printable
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import Treatment
from ansible_collections.holdfast.kvm.plugins.module_utils._plan import drift, intake, orders, quorum
from ansible_collections.holdfast.kvm.plugins.plugin_utils._controller import (
    controller_among,
    own_identities,
    pause_refusal,
)
from ansible_collections.holdfast.kvm.plugins.plugin_utils._plan_file import read_plan

AGAIN = "plan again ('holdfast plan', playbooks/plan.yml), look at the new plan, and upgrade with that one"
START_OR_PLAN = "start the others, then run the upgrade again; or plan again"
MOST_TOLD = 20
ARGUMENTS = {
    "plan": {"type": "path", "required": True},
    "fleet": {"type": "dict", "required": True},
    "elsewhere": {"type": "dict"},
    "controller_may_pause": {"type": "bool", "default": False},
}


class Outdated(BadInput):
    """The fleet is another one than was planned for."""


class ActionModule(ActionBase):
    """Compares, and says what the plan has for each host."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        self._supports_check_mode = True
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(argument_spec=ARGUMENTS)
        try:
            plan = read_plan(Path(options["plan"]).expanduser().absolute())
            # Through JSON, so that no templating wrapper of Ansible stays in it.
            fleet = json.loads(json.dumps(options["fleet"]))
            require_same(plan, [found_of(name, entry) for name, entry in fleet.items()])
            if options["elsewhere"] is not None:
                require_quorum(plan, fleet, json.loads(json.dumps(options["elsewhere"])))
            if not options["controller_may_pause"]:
                require_watched(plan, fleet)
        except BadInput as error:
            told_error = {"msg": printable.lines(str(error)), "hint": error.hint}
            return {**result, "failed": True, **told_error, "refused": True, "outdated": isinstance(error, Outdated)}
        return {**result, "changed": False, "batches": len(plan["batches"]), "hosts": told(plan, fleet)}


def found_of(name: str, entry: Mapping[str, Any]) -> intake.Found:
    """What was found on one host just now. Raises BadInput for a host that did not answer."""
    if not isinstance(entry, Mapping) or "vms" not in entry:
        raise BadInput(
            f"{name} did not say which VMs it has, so nobody knows whether the plan still holds",
            "mend what failed above, then run the upgrade again; or plan without this host",
        )
    return intake.Found(
        name=name,
        host={},
        vms=entry["vms"],
        policy=entry.get("policy") or [],
        groups=entry.get("groups") or {},
        domain=str(entry.get("domain") or ""),
    )


def require_same(plan: Mapping[str, Any], found: Sequence[intake.Found]) -> None:
    """Raise Outdated when the hosts are not as the plan has them, saying what changed."""
    domains = {entry.name: entry.domain for entry in found}
    changes = drift.drift(plan, intake.vms_of(found), intake.groups_of(found), domains)
    if changes:
        more = [f"and {len(changes) - MOST_TOLD} more"] if len(changes) > MOST_TOLD else []
        told_changes = "\n  * ".join([*changes[:MOST_TOLD], *more])
        raise Outdated(f"the fleet is not the one that was planned for any more:\n  * {told_changes}\n", AGAIN)


def require_quorum(plan: Mapping[str, Any], fleet: Mapping[str, Any], elsewhere: Mapping[str, Any]) -> None:
    """Raise Outdated when too few of a group run for these hosts to begin."""
    entries = [vm for entry in fleet.values() for vm in entry["vms"]]
    entries += [vm for vms in elsewhere.values() for vm in vms]
    running = {str(vm["uuid"]) for vm in entries if vm.get("state") == "running"}
    short = list(quorum.shortfalls(plan, list(fleet), running))
    if short:
        silent = sorted(set(quorum.fellow_hosts(plan, list(fleet))) - set(elsewhere))
        unknown = f" ({', '.join(silent)} did not say what runs there)" if silent else ""
        told_short = "\n  * ".join(short)
        raise Outdated(f"too few VMs run to begin with {', '.join(fleet)}:\n  * {told_short}{unknown}\n", START_OR_PLAN)


def require_watched(plan: Mapping[str, Any], fleet: Mapping[str, Any]) -> None:
    """Raise BadInput when this controller is a VM that the plan pauses."""
    own = own_identities()
    pausing = {vm["uuid"] for vm in plan["vms"] if vm["treatment"] != Treatment.LIVE.value}
    hosts = {host for batch in plan["batches"] for host in batch["hosts"]}
    for host in hosts.intersection(fleet):
        vm = controller_among((vm for vm in fleet[host]["vms"] if vm["uuid"] in pausing), own)
        if vm:
            raise BadInput(pause_refusal(vm, host))


def told(plan: Mapping[str, Any], fleet: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The plan's orders for each host that is in a batch."""
    planned = {host for batch in plan["batches"] for host in batch["hosts"]}
    return {
        name: asdict(orders.orders_for(plan, name, [str(vm["uuid"]) for vm in entry["vms"]]))
        for name, entry in fleet.items()
        if name in planned
    }
