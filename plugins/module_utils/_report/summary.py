# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report in a few plain lines, for logs and terminals."""

from __future__ import annotations

from typing import Any, List, Mapping

from . import figures
from .build import carried_on, longest_pause

RESULT_WORDS = {
    "upgraded": "upgraded",
    "fell_back": "fell back to the old kernel",
    "aborted": "aborted before the jump",
    "skipped": "skipped",
    "failed": "failed",
}
# Where the schema's own word would not do for a person.
VM_WORDS = {
    "lost": "RAM lost",
    "restarted": "RAM lost, started afresh",
    "given_up": "given up",
    "moved": "moved away alive",
    "returned": "moved away alive, and home again",
    "started": "shut down, and started again",
}


def summary_lines(report: Mapping[str, Any]) -> List[str]:
    """One line per host, then one per VM and warning, indented."""
    lines: List[str] = []
    for host in report["hosts"]:
        lines.append(_host_line(host))
        lines += [f"  {_vm_line(vm)}" for vm in host["vms"]]
        lines += [f"  warning: {figures.printable(warning)}" for warning in host["warnings"]]
    return lines


def _host_line(host: Mapping[str, Any]) -> str:
    parts = [f"{figures.printable(host['host'])}: {RESULT_WORDS[host['result']]}"]
    if host["kernel"]["to"]:
        parts.append(f"kernel {figures.change(host['kernel']['from'], host['kernel']['to'])}")
    if host["qemu"]["to"]:
        parts.append(f"QEMU {figures.change(host['qemu']['from'], host['qemu']['to'])}")
    if host["vms"]:
        parts.append(f"{carried_on(host['vms'])} of {len(host['vms'])} VMs carried on")
    if longest_pause(host["vms"]) is not None:
        parts.append(f"longest pause {figures.seconds(longest_pause(host['vms']))}")
    if host["error"]:
        parts.append(figures.printable(host["error"]))
    return ", ".join(parts)


def _vm_line(vm: Mapping[str, Any]) -> str:
    name = figures.printable(vm["name"])
    if vm["result"] == "resumed":
        kept = f"state {figures.size(vm['state_bytes'])}" if vm["treatment"] != "cold" else "saved to disk and loaded"
        verified = "verified" if vm["ram_verified"] else "not verified"
        return (
            f"{name}: paused {figures.seconds(vm['pause_s'])}{_prediction(vm)}, "
            f"RAM {figures.size(vm['ram_bytes'])} {verified}, {kept}"
        )
    if vm["result"] in ("moved", "returned"):
        stood = "" if vm["pause_s"] is None else f", stood still for {figures.seconds(vm['pause_s'])}{_prediction(vm)}"
        return f"{name}: {VM_WORDS[vm['result']]}{stood}, {figures.printable(vm['reason'])}"
    if vm["result"] == "started":
        return f"{name}: {VM_WORDS[vm['result']]} {figures.seconds(vm['pause_s'])} later{_prediction(vm)}"
    if vm["result"] == "untouched":
        return f"{name}: never paused"
    return f"{name}: {VM_WORDS.get(vm['result'], vm['result'])}, {figures.printable(vm['error'] or 'not running')}"


def _prediction(vm: Mapping[str, Any]) -> str:
    if vm["predicted_pause_s"] is None:
        return ""
    return f" (planned: up to {figures.seconds(vm['predicted_pause_s'])})"
