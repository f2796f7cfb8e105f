# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``holdfast upgrade --replan``: a campaign goes on although its fleet is not the one that was planned for any more.

The rest is planned anew, by the limits of the plan that was approved, and carried out if that does to no VM and no host
what nobody has approved. Otherwise the campaign ends there, and a person looks at the new plan.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, Refused
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import Treatment
from ansible_collections.holdfast.kvm.plugins.plugin_utils._plan_file import read_plan

from . import plan as planning
from .progress import FAILURES, ExitCode, HostStatus, Progress, exit_code
from .upgrade import PLAN, Wish, play
from .view import View

# From what a guest notices least.
HARM = [each.value for each in (Treatment.LIVE, Treatment.IN_PLACE, Treatment.COLD, Treatment.RESTART, Treatment.DEFER)]
UNASKED = (Treatment.LIVE.value, Treatment.IN_PLACE.value)
# A fleet that changes faster than it is looked at is not upgraded by planning for ever.
MOST_IN_VAIN = 3
LIMITS = ("max_per_domain", "reserve_hosts", "cpu_ratio", "shared_paths", "copy_storage", "stage_s")


def carry_out(wish: Wish, view_for: Callable[[], View]) -> ExitCode:
    """Carry a plan out, and plan anew whenever it does not hold any more, for as long as no host has failed.

    A failure is for a person to look at: a new run would have a new budget for failures.
    Raises BadInput without a plan, or when there is no new one; Refused when the new one has not been approved.
    """
    if wish.plan is None:
        raise BadInput("--replan is for the campaign of a plan", "name it with --plan")
    approved = current = read_plan(wish.plan)
    in_vain = 0
    while True:
        progress = play(wish, view_for)
        in_vain = 0 if _upgraded(progress) else in_vain + 1
        failed = any(host.status in FAILURES for host in progress.hosts)
        if not progress.outdated or failed or progress.stop_asked or in_vain == MOST_IN_VAIN:
            return exit_code(progress)
        current = planning.make(_wish_for_plan(wish, variables(approved, current, _upgraded(progress))))
        path = current["plan_json"]
        against = list(objections(approved, current))
        if against:
            told = "\n  * ".join(against)
            raise Refused(
                f"the new plan does what the approved one did not:\n  * {told}",
                f"look at {Path(path).with_suffix('.html')}, and if it is right, upgrade with --plan {path}",
            )
        print(f"  the fleet has changed, so the rest is planned anew: {path}", file=sys.stderr, flush=True)
        if not current["batches"]:
            return ExitCode.DONE
        wish = replace(wish, plan=Path(path))


def variables(approved: Mapping[str, Any], current: Mapping[str, Any], upgraded: frozenset[str]) -> dict[str, Any]:
    """What the plan playbook is told: the same hosts and limits, and that the campaign has begun.

    Who is done is for the hosts' own journals to say. ``upgraded``: hosts that this run has upgraded, so that a
    campaign that has grown to larger batches goes on with these.
    """
    over = sum(set(batch["hosts"]) <= upgraded for batch in current["batches"])
    waves = current["limits"]["waves"]
    hosts = current["fleet"]["hosts"]
    return {
        "holdfast_hosts": ",".join(host["name"] for host in hosts),
        "plan_waves": waves[min(over, len(waves) - 1) :],
        "plan_canaries": [] if over else current["limits"]["canaries"],
        **{f"plan_{name}": current["limits"][name] for name in LIMITS},
        "plan_done": [host["name"] for host in hosts if host["done"]],
        "plan_done_since": approved["created"],
        # Judged here, see objections.
        "plan_partial": True,
    }


def objections(approved: Mapping[str, Any], anew: Mapping[str, Any]) -> Iterator[str]:
    """What a new plan does that nobody has approved, one sentence each.

    A VM may be treated as before, or so that its guest notices less. One that was not there is paused or moved as its
    policy allows, but not shut down. Every host that was to be upgraded still is, and no other.
    """
    before = {vm["uuid"]: vm["treatment"] for vm in approved["vms"]}
    for vm in anew["vms"]:
        was, now = before.get(vm["uuid"]), vm["treatment"]
        if was is None and now not in UNASKED:
            yield f"VM {vm['name']} on {vm['host']}: {now}, and the approved plan does not have it"
        elif was and HARM.index(now) > HARM.index(was):
            yield f"VM {vm['name']} on {vm['host']}: {now} ({vm['reason']}), approved was {was}"
    ours, theirs = _hosts(approved), _hosts(anew)
    for name in sorted(theirs - ours):
        yield f"host {name} would be upgraded, and the approved plan left it out"
    for left in anew["left_out"]:
        if left["host"] in ours and left["why"] != "done":
            yield f"host {left['host']} would be left out: {left['reason']}"


def _hosts(plan: Mapping[str, Any]) -> set[str]:
    return {host for batch in plan["batches"] for host in batch["hosts"]}


def _upgraded(progress: Progress) -> frozenset[str]:
    return frozenset(host.name for host in progress.hosts if host.status is HostStatus.UPGRADED)


def _wish_for_plan(wish: Wish, told: Mapping[str, Any]) -> Wish:
    """All hosts of the plan are looked at, whichever of them this run is limited to."""
    variables = (*wish.extra_vars, json.dumps(told))
    return Wish(wish.inventory, extra_vars=variables, campaign="plan", playbook=PLAN)
