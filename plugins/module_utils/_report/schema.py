# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape of a report: its words, and a check that needs no library.

``docs/report.schema.json`` says the same for everybody else; a test holds the two together.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Callable, Dict, List, Mapping

SCHEMA_VERSION = 1


class HostResult(str, Enum):
    """How the upgrade of one host ended."""

    UPGRADED = "upgraded"
    FELL_BACK = "fell_back"
    ABORTED = "aborted"
    SKIPPED = "skipped"
    FAILED = "failed"


class VmResult(str, Enum):
    """How one VM came through its host's upgrade."""

    RESUMED = "resumed"
    UNTOUCHED = "untouched"
    SUSPENDED = "suspended"
    FAILED = "failed"
    LOST = "lost"
    RESTARTED = "restarted"
    GIVEN_UP = "given_up"
    MOVED = "moved"
    RETURNED = "returned"
    STARTED = "started"


Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number_or_null(value: Any) -> bool:
    return value is None or _number(value)


def _whole_or_null(value: Any) -> bool:
    return value is None or _whole(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(_text(item) for item in value)


def _pair(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"from", "to"} and all(_text(item) for item in value.values())


def _list(value: Any) -> bool:
    return isinstance(value, list)


def _one_of(words: Any) -> Check:
    return lambda value: isinstance(value, str) and value in [word.value for word in words]


_REPORT: Dict[str, Check] = {
    "schema_version": lambda value: _whole(value) and value == SCHEMA_VERSION,
    "campaign": _text,
    "created": _text,
    "hosts": _list,
}
_HOST: Dict[str, Check] = {
    "host": _text,
    "result": _one_of(HostResult),
    "error": _text,
    "generation": _text,
    "kernel": _pair,
    "qemu": _pair,
    "boot_id": _pair,
    "phases": _list,
    "boot": _list,
    "vms": _list,
    "warnings": _texts,
}
_PHASE: Dict[str, Check] = {"name": _text, "start": _number, "seconds": _number}
_VM: Dict[str, Check] = {
    "name": _text,
    "uuid": _text,
    "treatment": _text,
    "reason": _text,
    "result": _one_of(VmResult),
    "error": _text,
    "priority": _whole,
    "pause_s": _number_or_null,
    "predicted_pause_s": _number_or_null,
    "ram_bytes": _whole_or_null,
    "state_bytes": _whole_or_null,
    "ram_verified": _flag,
    "paused_at": _number_or_null,
    "saved_at": _number_or_null,
    "restore_started_at": _number_or_null,
    "resumed_at": _number_or_null,
}


def violations(report: Any) -> List[str]:
    """Every place where ``report`` leaves the schema, as ``where: what``; empty when it keeps to it."""
    found = _object(report, _REPORT, "report")
    if found:
        return found
    for index, host in enumerate(report["hosts"]):
        where = f"hosts[{index}]"
        wrong = _object(host, _HOST, where)
        found += wrong
        if not wrong:
            found += _objects(host["phases"], _PHASE, f"{where}.phases")
            found += _objects(host["boot"], _PHASE, f"{where}.boot")
            found += _objects(host["vms"], _VM, f"{where}.vms")
    return found


def _objects(values: List[Any], checks: Mapping[str, Check], where: str) -> List[str]:
    return [line for index, value in enumerate(values) for line in _object(value, checks, f"{where}[{index}]")]


def _object(value: Any, checks: Mapping[str, Check], where: str) -> List[str]:
    if not isinstance(value, dict):
        return [f"{where}: not an object"]
    found = [f"{where}.{key}: missing" for key in checks if key not in value]
    found += [f"{where}.{key}: not part of the schema" for key in value if key not in checks]
    found += [
        f"{where}.{key}: not allowed here: {value[key]!r}"
        for key in checks
        if key in value and not checks[key](value[key])
    ]
    return found
