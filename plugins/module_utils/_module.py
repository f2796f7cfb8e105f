# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module of this collection begins and ends: arguments in, one call, a result or one clear failure out."""

from __future__ import annotations

from typing import Any, Callable, Dict, NoReturn

from ansible.module_utils.basic import AnsibleModule

from ._core.errors import BadInput, HoldfastError, Refused
from ._core.printable import lines

Result = Dict[str, Any]


class Module(AnsibleModule):
    """A module whose failures may quote strangers, names of VMs for example, without a terminal obeying them."""

    def fail_json(self, msg: str, **found: Any) -> NoReturn:
        super().fail_json(msg=lines(msg), **found)
        raise AssertionError("fail_json does not return")


def run(arguments: Dict[str, Any], act: Callable[[AnsibleModule], Result]) -> None:
    """Run ``act`` and exit with what it returns; ``changed`` is False unless it says so.

    A HoldfastError becomes a failure with ``msg`` (what was found, and what to do), ``hint`` (what to do) and
    ``refused`` (the host is as it was before). All modules keep their hands still in check mode.
    """
    module = Module(argument_spec=arguments, supports_check_mode=True)
    try:
        result = act(module)
    except HoldfastError as error:
        module.fail_json(msg=str(error), hint=error.hint, refused=isinstance(error, (BadInput, Refused)))
    module.exit_json(**{"changed": False, **result})
