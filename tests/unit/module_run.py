# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module's ``main`` in this process, and get what it would have printed."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args


class Ended(Exception):
    """A module printed its result and left."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result)
        self.result = result


def run(module: Any, *, check: bool = False, **options: Any) -> dict[str, Any]:
    """The result of the module with these options, be it a success or a failure."""
    with (
        patch.multiple(basic.AnsibleModule, exit_json=_exit_json, fail_json=_fail_json),
        patch_module_args({**options, "_ansible_check_mode": check}),
        pytest.raises(Ended) as ended,
    ):
        module.main()
    json.dumps(ended.value.result)  # it must be fit to be printed
    return ended.value.result


def _exit_json(_module: object, **result: Any) -> None:
    raise Ended(result)


def _fail_json(_module: object, msg: str, **result: Any) -> None:
    raise Ended({"failed": True, "msg": msg, **result})
