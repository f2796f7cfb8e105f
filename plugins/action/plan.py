# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan a campaign, on the controller. Documented in modules/plan.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.module_utils._plan import checker, intake, planner
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.document import CREATED, document
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.html import page
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.table import lines
from ansible_collections.holdfast.kvm.plugins.plugin_utils._controller import controller_among, own_identities
from ansible_collections.holdfast.kvm.plugins.plugin_utils._document_pair import DocumentPair
from ansible_collections.holdfast.kvm.plugins.plugin_utils._origin import (
    origins_of_entries,
    origins_of_keys,
    origins_of_values,
)

HINT_REPORTS = "name a report.json of an earlier upgrade"
ARGUMENTS = {
    "dest": {"type": "path", "required": True},
    "fleet": {"type": "dict", "required": True},
    "reports": {"type": "list", "elements": "path", "default": []},
    "done": {"type": "list", "elements": "str", "default": []},
    "done_since": {"type": "str", "default": ""},
    "waves": {"type": "list", "elements": "str", "default": ["1", "10%"]},
    "canaries": {"type": "list", "elements": "str", "default": []},
    "max_unavailable": {"type": "str", "default": "100%"},
    "max_per_domain": {"type": "int", "default": 0},
    "reserve_hosts": {"type": "int", "default": 1},
    "cpu_ratio": {"type": "float", "default": 4.0},
    "shared_paths": {"type": "list", "elements": "str", "default": []},
    "copy_storage": {"type": "bool", "default": False},
    "parallel": {"type": "int", "default": 2},
    "stage_s": {"type": "float", "default": 120.0},
}


class ActionModule(ActionBase):
    """Plans, has the plan checked, and writes it only when it says something new."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        self._supports_check_mode = True
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(argument_spec=ARGUMENTS)
        try:
            plan = planned(self._task.args, options)
        except BadInput as error:
            return {**result, "failed": True, "msg": str(error), "hint": error.hint, "refused": True}
        pair = DocumentPair(Path(options["dest"]).expanduser().absolute(), "plan")
        changed = not pair.holds(plan)
        if changed and not self._task.check_mode:
            self._write(pair, plan)
        return {**result, "changed": changed, **described(pair, plan)}

    def _write(self, pair: DocumentPair, plan: dict[str, Any]) -> None:
        try:
            pair.write(plan, page(plan))
        except OSError as error:
            raise AnsibleActionFail(
                f"The plan cannot be written to {pair.directory} on the controller: {error.strerror or error}. "
                "Name another directory with plan_dest"
            ) from error


def planned(arguments: Mapping[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The plan as a document, which has passed the checker. Raises BadInput.

    ``arguments`` are the ``options`` before they were validated: these still know where they are written.
    """
    found = [found_of(str(name), entry) for name, entry in arguments["fleet"].items()]
    reports = [report(Path(path)) for path in options["reports"]]
    known = intake.fleet(found, options, reports, origins_of_values(arguments))
    known = replace(known, notes=(*known.notes, *notes_on_controller(found)))
    plan = planner.plan(known)
    broken = checker.check(known, plan)
    if broken:
        raise AnsibleActionFail(
            "The plan that was made is wrong, so it is not shown. This is a fault in holdfast; please report it, with "
            "the inventory: " + "; ".join(str(violation) for violation in broken[:5])
        )
    created = datetime.now(timezone.utc).strftime(CREATED)
    # Through JSON, so that no templating wrapper of Ansible stays in it.
    fields: dict[str, Any] = json.loads(json.dumps(document(plan, known, created)))
    return fields


def notes_on_controller(found: Sequence[intake.Found]) -> list[str]:
    """What whoever carries the plan out from here should know."""
    own = own_identities()
    here = [(entry.name, controller_among(entry.vms, own)) for entry in found]
    return [
        f"this controller is VM {vm} on {host}: upgrade from another machine, unless it is moved away live before"
        for host, vm in here
        if vm
    ]


def found_of(name: str, entry: Any) -> intake.Found:
    """What one host's tasks registered. Raises BadInput for a host that did not answer."""
    if not isinstance(entry, Mapping) or not entry.get("host") or "vms" not in entry:
        raise BadInput(
            f"{name} did not say which VMs it has, so there is no plan: theirs would be missing from every count",
            f"see why it failed above and mend it, or plan without it: --limit 'all:!{name}'",
        )
    policy, groups = entry.get("policy") or [], entry.get("groups") or {}
    return intake.Found(
        name=name,
        host=entry["host"],
        vms=entry["vms"],
        blockers=entry.get("blockers") or (),
        journal=entry.get("journal") or {},
        switchovers_s=entry.get("switchovers_s") or (),
        policy=policy,
        rule_origins=origins_of_entries(policy),
        groups=groups,
        group_origins=origins_of_keys(groups),
        domain=str(entry.get("domain") or ""),
        link_mbit=number(name, entry.get("link_mbit")),
    )


def number(name: str, value: Any) -> float:
    """A host's holdfast_link_mbit, which an INI inventory gives as text. Raises BadInput."""
    try:
        return float(value or intake.ASSUMED_LINK_MBIT)
    except (TypeError, ValueError):
        raise BadInput(
            f"{name}: holdfast_link_mbit {value!r} is not a number", "give it in Mbit/s, like 10000"
        ) from None


def report(path: Path) -> dict[str, Any]:
    """An earlier campaign's report.json. Raises BadInput."""
    file = path / "report.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"reports: {file} cannot be used: {error}", HINT_REPORTS) from error
    if not isinstance(content, dict):
        raise BadInput(f"reports: {file} is no report", HINT_REPORTS)
    return content


def described(pair: DocumentPair, plan: dict[str, Any]) -> dict[str, Any]:
    """What the task returns about a plan."""
    return {
        "plan_json": str(pair.json),
        "plan_html": str(pair.html),
        "summary": lines(plan),
        "complete": plan["complete"],
        "batches": [batch["hosts"] for batch in plan["batches"]],
        "decisions_sha256": plan["decisions_sha256"],
    }
