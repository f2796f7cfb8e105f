# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a campaign may do without asking when its fleet has changed, and what it tells the planner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from holdfast import replan
from holdfast.progress import ExitCode, HostProgress, HostStatus, Progress
from holdfast.upgrade import Wish

LIMITS = {
    "waves": [1, 2, 20],
    "canaries": ["h1"],
    "max_per_domain": 0,
    "reserve_hosts": 1,
    "cpu_ratio": 4.0,
    "shared_paths": ["/srv"],
    "copy_storage": True,
    "stage_s": 60.0,
}
BATCHES = (("h1",), ("h2",))


def vm(name: str, treatment: str, host: str = "h2") -> dict[str, Any]:
    return {"name": name, "uuid": f"uuid-{name}", "host": host, "treatment": treatment, "reason": "its policy"}


def plan(*vms: dict[str, Any], batches: tuple[tuple[str, ...], ...] = BATCHES, **fields: Any) -> dict[str, Any]:
    hosts = [{"name": name, "domain": "", "done": False} for name in ("h1", "h2", "h3")]
    return {
        "created": "2026-11-22T02:00:00Z",
        "limits": LIMITS,
        "fleet": {"hosts": hosts},
        "batches": [{"hosts": list(batch)} for batch in batches],
        "vms": list(vms),
        "left_out": [],
        **fields,
    }


def objections(approved: dict[str, Any], anew: dict[str, Any]) -> list[str]:
    return list(replan.objections(approved, anew))


@pytest.mark.parametrize("now", ["in_place", "live"])
def test_a_vm_may_be_treated_as_before_or_more_gently(now: str) -> None:
    assert objections(plan(vm("a", "in_place")), plan(vm("a", now))) == []


@pytest.mark.parametrize(("was", "now"), [("live", "in_place"), ("in_place", "restart"), ("in_place", "cold")])
def test_what_a_guest_notices_more_is_not_done_unasked(was: str, now: str) -> None:
    (told,) = objections(plan(vm("a", was)), plan(vm("a", now)))
    assert told == f"VM a on h2: {now} (its policy), approved was {was}"


def test_a_vm_that_came_is_paused_or_moved_but_not_shut_down() -> None:
    assert objections(plan(), plan(vm("new", "in_place"), vm("other", "live"))) == []
    (told,) = objections(plan(), plan(vm("new", "restart")))
    assert told == "VM new on h2: restart, and the approved plan does not have it"


def test_a_vm_that_left_is_nobodys_objection() -> None:
    assert objections(plan(vm("a", "in_place")), plan()) == []


def test_the_hosts_are_those_that_were_approved() -> None:
    out = [{"host": "h2", "why": "impossible", "reason": "no room"}, {"host": "h1", "why": "done", "reason": ""}]
    told = objections(plan(), plan(batches=(("h3",),), left_out=out))
    assert told == [
        "host h3 would be upgraded, and the approved plan left it out",
        "host h2 would be left out: no room",
    ]


def test_a_host_that_was_left_out_may_stay_so() -> None:
    out = [{"host": "h3", "why": "deferred", "reason": "its VM waits"}]
    assert objections(plan(left_out=out), plan(left_out=out)) == []


def test_the_planner_is_given_the_same_hosts_and_limits() -> None:
    told = replan.variables(plan(), plan(), frozenset())
    assert told["holdfast_hosts"] == "h1,h2,h3"
    assert (told["plan_waves"], told["plan_canaries"], told["plan_done"]) == ([1, 2, 20], ["h1"], [])
    assert told["plan_done_since"] == "2026-11-22T02:00:00Z"
    assert {name: told[f"plan_{name}"] for name in replan.LIMITS} == {name: LIMITS[name] for name in replan.LIMITS}


def test_waves_go_on_where_they_were() -> None:
    batches = (("h1",), ("h2", "h3"))
    told = replan.variables(plan(batches=batches), plan(batches=batches), frozenset({"h1", "h2"}))
    assert (told["plan_waves"], told["plan_canaries"], told["plan_done"]) == ([2, 20], [], [])
    short = plan(batches=batches, limits={**LIMITS, "waves": [1]})
    assert replan.variables(plan(), short, frozenset({"h1"}))["plan_waves"] == [1]


def test_hosts_that_an_earlier_plan_had_done_stay_done() -> None:
    current = plan()
    current["fleet"]["hosts"][0]["done"] = True
    told = replan.variables(plan(created="earlier"), current, frozenset({"h2"}))
    assert (told["plan_done"], told["plan_done_since"]) == (["h1"], "earlier")


@pytest.mark.parametrize(
    ("status", "runs"), [(HostStatus.FAILED, 1), (HostStatus.UNREACHABLE, 1), (HostStatus.REFUSED, replan.MOST_IN_VAIN)]
)
def test_a_host_that_failed_is_looked_at_by_a_person(
    status: HostStatus, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of its own would have a budget for failures of its own."""
    played: list[Wish] = []

    def play(wish: Wish, _view: object) -> Progress:
        played.append(wish)
        return Progress("upgrade", hosts=(HostProgress("h1", status),), outdated=True)

    monkeypatch.setattr(replan, "read_plan", lambda _path: plan())
    monkeypatch.setattr(replan, "play", play)
    monkeypatch.setattr(replan.planning, "make", lambda _wish: plan(plan_json=str(tmp_path / "plan.json")))
    code = replan.carry_out(Wish(tmp_path, plan=tmp_path), lambda: pytest.fail("nothing is shown"))
    assert (len(played), code is ExitCode.DONE) == (runs, False)


def test_it_needs_a_plan_to_replan(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--replan is for the campaign of a plan"):
        replan.carry_out(Wish(tmp_path), lambda: pytest.fail("nothing is shown"))
