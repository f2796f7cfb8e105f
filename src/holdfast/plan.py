# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``holdfast plan``: the plan playbook, by ansible-runner as ``holdfast upgrade`` does, and the plan that it wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, CommandFailed
from ansible_collections.holdfast.kvm.plugins.plugin_utils._plan_file import read_plan

from .command import step
from .upgrade import (
    PROGRESS_FILE_VARIABLE,
    Place,
    Wish,
    ansible_environment,
    chosen_hosts,
    new_place,
    runner,
    state_dir,
)

PLAN_ACTION = "holdfast.kvm.plan"


@dataclass
class Heard:
    """What the playbook's events said that matters for a plan."""

    plan_json: str = ""
    refusal: str = ""
    failures: dict[str, str] = field(default_factory=dict)

    def listen(self, event: Mapping[str, Any]) -> bool:
        """Take one event of ansible-runner; True, so that it is kept on disk."""
        data = event.get("event_data") or {}
        result = data.get("res") or {}
        is_plan = PLAN_ACTION in (data.get("resolved_action"), data.get("task_action"))
        if event.get("event") == "runner_on_ok" and is_plan:
            self.plan_json = str(result.get("plan_json", ""))
        failed = event.get("event") in ("runner_on_failed", "runner_on_unreachable")
        if failed and is_plan:
            self.refusal = str(result.get("msg", "the plan failed"))
        elif failed:
            self.failures.setdefault(str(data.get("host")), str(result.get("msg", "failed")))
        return True


def make(wish: Wish) -> dict[str, Any]:
    """Look at the hosts, plan, and return the plan. Raises BadInput or CommandFailed when there is none."""
    if not wish.inventory.exists():
        raise BadInput(f"inventory {wish.inventory} does not exist", "name an inventory file or directory with -i")
    environment = ansible_environment(os.environ)
    hosts = chosen_hosts(wish, environment)
    place = new_place(state_dir(os.environ))
    environment[PROGRESS_FILE_VARIABLE] = str(place.progress_file)
    heard = Heard()
    with step(f"looking at {len(hosts)} host{'s' if len(hosts) > 1 else ''} and planning"):
        return_code = runner(wish, place, environment)(heard.listen, lambda: False)
    if not heard.plan_json:
        raise _explained(heard, place, return_code)
    return {"plan_json": heard.plan_json, **read_plan(Path(heard.plan_json))}


def _explained(heard: Heard, place: Place, return_code: int) -> BadInput | CommandFailed:
    """Why there is no plan: the hosts' own words first, since the plan only says that they are missing."""
    log = f"all that Ansible said is in {place.log}"
    if heard.failures:
        told = "\n  * ".join(f"{host}: {message}" for host, message in sorted(heard.failures.items()))
        return CommandFailed(f"there is no plan, since hosts could not be looked at:\n  * {told}", log)
    if heard.refusal:
        message, _, hint = heard.refusal.partition(" -- ")
        return BadInput(message, hint)
    return CommandFailed(f"ansible-playbook ended with {return_code}, and without a plan", log)
