# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say whose campaign this is, and take over from one that was killed here. Documented in modules/campaign_lock.py."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ansible_collections.holdfast.kvm.plugins.plugin_utils._campaign import is_dead, ourselves


class ActionModule(ActionBase):
    """Runs the module of the same name, once more when the holder turns out to be dead."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        self._supports_check_mode = True
        result: dict[str, Any] = super().run(tmp, task_vars)
        state = str(self._task.args.get("state", "taken"))
        try:
            return {**result, **self._settled(state, task_vars or {})}
        except AnsibleConnectionFailure as error:
            if state == "taken":
                raise
            # A host that was lost takes its lock along; that is no news about the host in whose name we ask.
            return {**result, "changed": False, "holder": {}, "msg": f"not reached, so its hold may stay: {error}"}

    def _settled(self, state: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        found = self._ask(state, [], task_vars)
        other = str((found.get("holder") or {}).get("id") or "")
        if (found.get("lock_held") or found.get("spared")) and is_dead(other):
            return self._ask(state, [other], task_vars)
        return found

    def _ask(self, state: str, over: list[str], task_vars: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self._execute_module(
            module_name="holdfast.kvm.campaign_lock",
            module_args={"state": state, "holder": ourselves(), "over": over},
            task_vars=task_vars,
        )
        return found
