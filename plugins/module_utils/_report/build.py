# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what the hosts wrote in their journals to the report of a campaign.

Pure: no clock, no files. What a journal proves outweighs what a run claims.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence

from .schema import SCHEMA_VERSION, HostResult, VmResult

IN_PLACE = "in_place"
LIVE = "live"
RESTART = "restart"

# "resuming" is on record before the guest's CPUs run: without "resumed" after it, nobody knows, so it counts as lost.
_VM_RESULTS = {
    "pending": VmResult.UNTOUCHED,
    "paused": VmResult.SUSPENDED,
    "suspended": VmResult.SUSPENDED,
    "kept": VmResult.SUSPENDED,
    "resuming": VmResult.FAILED,
    "resumed": VmResult.RESUMED,
    "failed": VmResult.FAILED,
    "lost": VmResult.LOST,
    "restarted": VmResult.RESTARTED,
    "given_up": VmResult.GIVEN_UP,
    "shutting_down": VmResult.FAILED,
    "shut_down": VmResult.FAILED,
    "started": VmResult.STARTED,
    "storing": VmResult.FAILED,
    "stored": VmResult.SUSPENDED,
}
_CARRIED_ON = tuple(
    result.value
    for result in (VmResult.RESUMED, VmResult.UNTOUCHED, VmResult.MOVED, VmResult.RETURNED, VmResult.STARTED)
)
# For what is not finished; a journal gives a reason of its own where it knows one.
_UNFINISHED = {
    "resuming": "its resume was begun, but never confirmed",
    "shutting_down": "it was asked to shut down, and nobody knows whether it did",
    "shut_down": "it was shut down for the upgrade, and not started again",
    "storing": "it was being saved to disk, and nobody knows how that ended",
    "stored": "it was saved to disk for the upgrade, and not loaded again: its image is kept",
}
# What a warning says of a VM that did not carry on; of any other one, that it is not running.
_ENDINGS = {
    VmResult.LOST.value: "is not running, and its RAM is gone",
    VmResult.RESTARTED.value: "was started afresh, since its RAM was gone",
    VmResult.GIVEN_UP.value: "was given up by a person, its RAM is deleted",
}
# From best to worst: when journal and run disagree, the worse of the two is reported.
_SEVERITY = (HostResult.UPGRADED, HostResult.SKIPPED, HostResult.FELL_BACK, HostResult.ABORTED, HostResult.FAILED)


@dataclass(frozen=True)
class HostOutcome:
    """What a run knows of one host: its journal (None when it has none), its own verdict, and an error.

    ``evacuated``: the VMs that were moved away before, by name, as the ``evacuate`` role has them. ``boot``: what the
    VMs waited for in the new kernel's boot, as the ``verify`` module has it. ``predicted``: the pauses that a plan
    predicted, in seconds, by the VM's UUID; 95 of 100 are shorter. ``told``: what is new in the kernel's log.
    """

    host: str
    journal: Optional[Mapping[str, Any]] = None
    result_hint: str = ""
    error: str = ""
    evacuated: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    boot: Sequence[Mapping[str, Any]] = ()
    predicted: Mapping[str, float] = field(default_factory=dict)
    told: Sequence[str] = ()


def build_report(campaign: str, created: str, outcomes: Sequence[HostOutcome]) -> Dict[str, Any]:
    """The report of a campaign by ``docs/report.schema.json``. ``created`` is ISO 8601 in UTC."""
    return {
        "schema_version": SCHEMA_VERSION,
        "campaign": str(campaign),
        "created": str(created),
        "hosts": [host_report(outcome) for outcome in outcomes],
    }


def host_report(outcome: HostOutcome) -> Dict[str, Any]:
    """One host's part of the report. A skipped host's journal tells of an earlier run, and is left out."""
    skipped = outcome.result_hint == HostResult.SKIPPED.value
    journal: Mapping[str, Any] = {} if skipped else outcome.journal or {}
    vms = [_vm(entry, outcome.predicted) for entry in journal.get("vms") or []]
    moved = [_moved_vm(name, entry, outcome.predicted) for name, entry in sorted(outcome.evacuated.items())]
    result = host_result(outcome, vms)
    return {
        "host": str(outcome.host),
        "result": result.value,
        "error": _error(outcome, journal, result),
        "generation": _text(journal, "generation"),
        "kernel": _pair(journal, "kernel"),
        "qemu": _pair(journal, "qemu"),
        "boot_id": _pair(journal, "boot_id"),
        "phases": [_phase(entry) for entry in journal.get("phases") or []],
        "boot": [_phase(entry) for entry in outcome.boot],
        "vms": vms + moved,
        "warnings": [str(line) for line in (*(journal.get("warnings") or []), *outcome.told)] + _own_warnings(vms),
    }


def host_result(outcome: HostOutcome, vms: Sequence[Mapping[str, Any]]) -> HostResult:
    """The worse of what the journal proves and what the run claims."""
    claimed = _claim(outcome)
    if not outcome.journal or claimed is HostResult.SKIPPED:
        return claimed or (HostResult.FAILED if outcome.error else HostResult.SKIPPED)
    if claimed is HostResult.FELL_BACK and carried_on(vms) == len(vms):
        return claimed
    proven = _proven(outcome.journal, vms)
    return max(proven, claimed or proven, key=_SEVERITY.index)


def carried_on(vms: Sequence[Mapping[str, Any]]) -> int:
    """How many VMs of a report still run as if nothing had happened, or as their policy wants."""
    return sum(1 for vm in vms if vm["result"] in _CARRIED_ON)


def longest_pause(vms: Sequence[Mapping[str, Any]]) -> Optional[float]:
    """Seconds, or None when no VM was paused and resumed. One that was off meanwhile is another matter."""
    return max(pauses(vms), default=None)


def pauses(vms: Sequence[Mapping[str, Any]]) -> List[float]:
    """Seconds that VMs of a report stood still."""
    paused = (vm for vm in vms if vm["result"] != VmResult.STARTED.value)
    return [vm["pause_s"] for vm in paused if vm["pause_s"] is not None]


def _claim(outcome: HostOutcome) -> Optional[HostResult]:
    try:
        return HostResult(outcome.result_hint)
    except ValueError:
        return None


def _proven(journal: Mapping[str, Any], vms: Sequence[Mapping[str, Any]]) -> HostResult:
    state = journal.get("state")
    if state == "staged":
        return HostResult.SKIPPED
    if state == "aborted" and carried_on(vms) == len(vms):
        return HostResult.ABORTED
    if state == "restored" and carried_on(vms) == len(vms):
        return HostResult.FELL_BACK if journal.get("fell_back") is True else HostResult.UPGRADED
    return HostResult.FAILED


def _error(outcome: HostOutcome, journal: Mapping[str, Any], result: HostResult) -> str:
    if outcome.error or journal.get("reason"):
        return str(outcome.error or journal["reason"])
    if result is HostResult.SKIPPED and not outcome.journal:
        return "No live update was begun on this host: its VMs were not touched."
    if result is HostResult.FAILED and journal and journal.get("state") not in ("restored", "failed", "aborted"):
        return f"The journal ends in state '{journal.get('state')}': the live update was not finished."
    return ""


def _own_warnings(vms: Sequence[Mapping[str, Any]]) -> List[str]:
    found = [
        f"VM {vm['name']} {_ENDINGS.get(vm['result'], 'is not running')}: {vm['error'] or vm['result']}"
        for vm in vms
        if vm["result"] not in _CARRIED_ON
    ]
    found += [
        f"VM {vm['name']} was resumed, but its RAM was not verified"
        for vm in vms
        if vm["result"] == VmResult.RESUMED.value
        and vm["treatment"] == IN_PLACE
        and not vm["ram_verified"]
        and vm["restore_started_at"] is not None
    ]
    found += [
        f"VM {vm['name']}: the host's clock went backwards during its pause, so its length is unknown"
        for vm in vms
        if vm["result"] == VmResult.RESUMED.value and vm["pause_s"] is None
    ]
    return found


def _phase(entry: Mapping[str, Any]) -> Dict[str, Any]:
    return {
        "name": _text(entry, "name"),
        "start": _number(entry, "start") or 0.0,
        "seconds": max(_number(entry, "seconds") or 0.0, 0.0),
    }


def _vm(entry: Mapping[str, Any], predicted: Mapping[str, float]) -> Dict[str, Any]:
    state = _text(entry, "state")
    result = _VM_RESULTS.get(state, VmResult.FAILED)
    return {
        "name": _text(entry, "name"),
        "uuid": _text(entry, "uuid"),
        "treatment": _text(entry, "treatment") or IN_PLACE,
        "reason": _text(entry, "reason"),
        "result": result.value,
        "error": _text(entry, "error") or _UNFINISHED.get(state, ""),
        "priority": _whole(entry, "priority") or 0,
        "pause_s": _pause_s(entry),
        "predicted_pause_s": predicted.get(_text(entry, "uuid")),
        "ram_bytes": _whole(entry, "ram_bytes"),
        "state_bytes": _whole(entry, "state_bytes"),
        "ram_verified": entry.get("ram_verified") is True,
        "paused_at": _number(entry, "paused_at"),
        "saved_at": _number(entry, "saved_at"),
        "restore_started_at": _number(entry, "restore_started_at"),
        "resumed_at": _number(entry, "resumed_at"),
    }


def _moved_vm(name: str, entry: Mapping[str, Any], predicted: Mapping[str, float]) -> Dict[str, Any]:
    """A VM that was elsewhere during the live update. Its pause is the longer one of its ways, by QEMU's measure."""
    home = entry.get("home") is True
    pauses = [pause for pause in (_number(entry, "pause_s"), _number(entry, "home_pause_s")) if pause is not None]
    return {
        **_vm({}, {}),
        "name": str(name),
        "uuid": _text(entry, "uuid"),
        "treatment": LIVE,
        "reason": f"{_text(entry, 'reason')}; to {_text(entry, 'to')}{' and home' if home else ''}",
        "result": (VmResult.RETURNED if home else VmResult.MOVED).value,
        "error": "",
        "pause_s": round(max(pauses), 3) if pauses else None,
        "predicted_pause_s": predicted.get(_text(entry, "uuid")),
        "ram_bytes": _whole(entry, "ram_bytes"),
    }


def _pause_s(entry: Mapping[str, Any]) -> Optional[float]:
    """From pause to resume; for one that was shut down and started, how long it had no QEMU."""
    marks = ("shut_down_at", "started_at") if _text(entry, "state") == "started" else ("paused_at", "resumed_at")
    paused, resumed = (_number(entry, mark) for mark in marks)
    if paused is None or resumed is None or resumed < paused:
        return None
    return round(resumed - paused, 3)


def _pair(journal: Mapping[str, Any], key: str) -> Dict[str, str]:
    value = journal.get(key) or {}
    return {"from": _text(value, "from"), "to": _text(value, "to")}


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    return "" if value is None else str(value)


def _number(entry: Mapping[str, Any], key: str) -> Optional[float]:
    """The journal writes 0 for "not yet"; the report says null."""
    value = entry.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value else None


def _whole(entry: Mapping[str, Any], key: str) -> Optional[int]:
    value = _number(entry, key)
    return None if value is None else int(value)
