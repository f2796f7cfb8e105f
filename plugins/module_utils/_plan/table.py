# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan in plain lines, for logs and for whoever runs the playbook without ``holdfast``."""

from __future__ import annotations

from collections import Counter
from typing import Any, List, Mapping

from .._report import figures

WHY = {
    "done": "done already",
    "deferred": "waits",
    "blocked": "cannot be upgraded now",
    "impossible": "cannot be planned",
}


def lines(plan: Mapping[str, Any]) -> List[str]:
    """A headline, one line per batch, what is left out and why, and warnings."""
    return [
        headline(plan),
        bound_line(plan),
        *[line for batch in plan["batches"] for line in _batch(batch, plan)],
        *[line for entry in plan["left_out"] for line in _left_out(entry)],
        *[f"warning: {figures.printable(text)}" for text in plan["warnings"]],
    ]


def headline(plan: Mapping[str, Any]) -> str:
    """How much there is to do, and how long it takes."""
    hosts = sum(len(batch["hosts"]) for batch in plan["batches"])
    parts = [f"{counted(hosts, 'host')} in {counted(len(plan['batches']), 'batch', 'batches')}"]
    parts += [treatments(plan["vms"])] if plan["vms"] else []
    parts += [f"about {figures.seconds(plan['seconds'])}"] if plan["batches"] else []
    return ", ".join(parts)


def bound_line(plan: Mapping[str, Any]) -> str:
    """What sets the number of batches, and whether fewer are possible."""
    bound, count = plan["bound"], len(plan["batches"])
    if not count:
        return "nothing to upgrade"
    proof = "fewer are not possible" if bound["batches"] == count else f"at least {bound['batches']} are needed"
    return f"the number of batches is set by {figures.printable(bound['limited_by'])}; {proof} ({bound['solver']})"


def treatments(vms: List[Mapping[str, Any]]) -> str:
    """How many VMs get which treatment."""
    counts = Counter(vm["treatment"] for vm in vms)
    return ", ".join(f"{counted(count, 'VM')} {name.replace('_', ' ')}" for name, count in counts.most_common())


def longest_pause(batch: Mapping[str, Any], plan: Mapping[str, Any]) -> float:
    """The longest pause that is predicted for a VM of the batch's hosts, in seconds: 95 of 100 are shorter."""
    return max((vm["pause_p95_s"] for vm in plan["vms"] if vm["host"] in batch["hosts"]), default=0.0)


def begins(start_s: float) -> str:
    """``at once``, ``after 2 min 10 s``."""
    return f"after {figures.seconds(start_s)}" if start_s else "at once"


def counted(number: int, word: str, words: str = "") -> str:
    """``1 host``, ``2 hosts``."""
    return f"{number} {word if number == 1 else words or word + 's'}"


def moved(move: Mapping[str, Any]) -> str:
    """One live migration in words."""
    copied = f", with its disks {', '.join(move['copied_disks'])}" if move["copied_disks"] else ""
    again = ", and on from there" if move["again"] else ""
    places = f"{move['source']} → {move['destination']}"
    size, time = figures.size(move["sent_bytes"]), figures.seconds(move["seconds"])
    return f"{figures.printable(move['vm'])}: {places}, {size} in {time}{copied}{again}"


def _batch(batch: Mapping[str, Any], plan: Mapping[str, Any]) -> List[str]:
    pause = f"longest pause {figures.seconds(longest_pause(batch, plan))}"
    times = f"{begins(batch['start_s'])}, takes {figures.seconds(batch['seconds'])}"
    return [
        f"batch {batch['number']}: {', '.join(batch['hosts'])}; {times}, {pause}",
        *[f"  moves {moved(move)}" for move in batch["evacuations"]],
        *[f"  home {moved(move)}" for move in batch["returns"]],
    ]


def _left_out(entry: Mapping[str, Any]) -> List[str]:
    return [
        f"not planned: {entry['host']} {WHY[entry['why']]}, {figures.printable(entry['reason'])}",
        *[f"  {obstacle(vm)}" for vm in entry["vms"]],
    ]


def obstacle(vm: Mapping[str, Any]) -> str:
    """A VM on whose account its host is left out, and what would help."""
    remedy = f" -- {vm['remedy']}" if vm["remedy"] else ""
    return figures.printable(f"{vm['vm']}: {vm['reason']}{remedy}")
