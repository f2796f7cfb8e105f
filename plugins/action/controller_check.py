# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refuse to pause the controller itself. Documented in modules/controller_check.py."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.holdfast.kvm.plugins.module_utils._core.printable import one_line
from ansible_collections.holdfast.kvm.plugins.plugin_utils._controller import (
    controller_among,
    own_identities,
    pause_refusal,
)

ARGUMENTS = {
    "vms": {"type": "list", "elements": "dict", "required": True},
    "may_pause": {"type": "bool", "default": False},
}


class ActionModule(ActionBase):
    """Compares this machine with VMs."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        self._supports_check_mode = True
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(argument_spec=ARGUMENTS)
        vm = controller_among(options["vms"], own_identities())
        if vm and not options["may_pause"]:
            host = str((task_vars or {}).get("inventory_hostname", "this host"))
            return {**result, "failed": True, "msg": one_line(pause_refusal(vm, host)), "refused": True, "vm": vm}
        return {**result, "changed": False, "vm": vm}
