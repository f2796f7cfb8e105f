# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recover a host, also when that makes it jump back to its old kernel. Documented in modules/recover.py."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.utils.display import Display

from ansible_collections.holdfast.kvm.plugins.plugin_utils._absence import Patient, pauses_between_tries

display = Display()

DEFAULT_TIMEOUT_S = 1800
DEFAULT_CONNECT_TIMEOUT_S = 10


class ActionModule(Patient):
    """Runs the module of the same name, and runs it again when the host went away in the middle.

    The second run finds the work done, or waits for the end of what the host does by itself.
    """

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        self._supports_check_mode = True
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._host = (task_vars or {}).get("inventory_hostname", "host")
        options = self._expect_absence(int(self._seconds("connect_timeout_s", DEFAULT_CONNECT_TIMEOUT_S)))
        try:
            return {**result, **self._recovered(task_vars or {})}
        finally:
            self._set_connection_options(options)

    def _recovered(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """The module's result, from the first run that was not cut off."""
        timeout_s = self._seconds("timeout_s", DEFAULT_TIMEOUT_S)
        deadline = time.monotonic() + timeout_s
        for attempt, pause in enumerate(pauses_between_tries()):
            try:
                found = self._module(task_vars)
            except AnsibleConnectionFailure as error:
                if time.monotonic() + pause >= deadline:
                    return {"failed": True, "changed": bool(attempt), "msg": self._gone(timeout_s, error)}
                if attempt == 0:
                    display.display(f"{self._host}: away")
                self._reset_connection()
                time.sleep(pause)
                continue
            return {**found, "changed": bool(attempt) or bool(found.get("changed"))}
        raise AssertionError("pauses_between_tries never ends")

    def _module(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self._execute_module(
            module_name="holdfast.kvm.recover", module_args=dict(self._task.args), task_vars=task_vars
        )
        return found

    def _gone(self, timeout_s: float, error: Exception) -> str:
        return (
            f"{self._host} gave no answer within {timeout_s:.0f} s of its recovery: {error}. The host acts by itself "
            "and needs no controller. Look at its console (serial or BMC), then recover again: that is safe at any time"
        )
