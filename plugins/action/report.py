# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the report of a campaign, on the controller. Documented in modules/report.py."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.module_utils._report.build import HostOutcome, build_report
from ansible_collections.holdfast.kvm.plugins.module_utils._report.html import page
from ansible_collections.holdfast.kvm.plugins.module_utils._report.schema import violations
from ansible_collections.holdfast.kvm.plugins.module_utils._report.summary import summary_lines
from ansible_collections.holdfast.kvm.plugins.plugin_utils._document_pair import DocumentPair
from ansible_collections.holdfast.kvm.plugins.plugin_utils._plan_file import read_plan

ARGUMENTS = {
    "dest": {"type": "path", "required": True},
    "campaign": {"type": "str", "required": True},
    "outcomes": {"type": "dict", "required": True},
    "evacuations": {"type": "dict", "default": {}},
    "plan": {"type": "str", "default": ""},
}


class ActionModule(ActionBase):
    """Builds the report from the journals it is given, and writes it only when it says something new."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        self._supports_check_mode = True
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(argument_spec=ARGUMENTS)
        report = built(options)
        pair = DocumentPair(Path(options["dest"]).expanduser().absolute(), "report")
        changed = not pair.holds(report)
        if changed and not self._task.check_mode:
            self._write(pair, report)
        return {**result, "changed": changed, **described(pair, report)}

    def _write(self, pair: DocumentPair, report: dict[str, Any]) -> None:
        try:
            pair.write(report, page(report))
        except OSError as error:
            raise AnsibleActionFail(
                f"The report cannot be written to {pair.directory} on the controller: {error.strerror or error}. "
                "The upgrade itself is not affected. Name another directory and run again: hosts that are done are not "
                "touched"
            ) from error


def built(options: dict[str, Any]) -> dict[str, Any]:
    """The report, proven to keep to its schema."""
    created = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    moved, predicted = options["evacuations"], predictions(options["plan"])
    outcomes = [outcome_of(host, entry, moved.get(host), predicted) for host, entry in options["outcomes"].items()]
    # Through JSON, so that no templating wrapper of Ansible stays in it.
    report: dict[str, Any] = json.loads(json.dumps(build_report(options["campaign"], created, outcomes)))
    wrong = violations(report)
    if wrong:
        raise AnsibleActionFail(f"A journal cannot be reported, since it is not what holdfast writes: {wrong[0]}")
    return report


def predictions(plan: str) -> dict[str, float]:
    """The pauses that a plan predicted, by the VM's UUID; none without one, or when it is not there any more."""
    try:
        vms = read_plan(Path(plan).expanduser())["vms"] if plan else []
        return {str(vm["uuid"]): float(vm["pause_p95_s"]) for vm in vms}
    except (BadInput, KeyError, TypeError, ValueError):
        # What happened is worth more than what was said before: a report is written in any case.
        return {}


def outcome_of(host: str, entry: Any, evacuation: Any = None, predicted: dict[str, float] | None = None) -> HostOutcome:
    """One host's entry in ``outcomes``; an empty one is a host that was not touched."""
    known = entry or {}
    if not isinstance(known, dict) or not isinstance(known.get("journal") or {}, dict):
        raise AnsibleActionFail(
            f"outcomes of the report: {host} has {entry!r}, which is no dictionary with a journal in it. "
            "Give what the live_update role recorded in holdfast_live_update_result"
        )
    result, error = str(known.get("result") or ""), str(known.get("error") or "")
    moved = (evacuation or {}).get("vms") or {}
    boot, told = known.get("boot") or (), known.get("told") or ()
    return HostOutcome(str(host), known.get("journal"), result, error, moved, boot, predicted or {}, told)


def described(pair: DocumentPair, report: dict[str, Any]) -> dict[str, Any]:
    """What the task returns about a report."""
    return {
        "report_json": str(pair.json),
        "report_html": str(pair.html),
        "summary": summary_lines(report),
        "results": {host["host"]: host["result"] for host in report["hosts"]},
    }
