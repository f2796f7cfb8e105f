# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a plan still holds, and what it says to each host: pure decisions."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import CpuFacts, Treatment
from ansible_collections.holdfast.kvm.plugins.module_utils._plan import drift, orders
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.document import document
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.model import (
    Fleet,
    Group,
    Host,
    Limits,
    Pauses,
    Switchover,
    Vm,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.planner import plan as planned
from ansible_collections.holdfast.kvm.plugins.plugin_utils import _campaign, _controller

GIB = 1 << 30
CPU = CpuFacts("AuthenticAMD", "EPYC", ("svm",), (), 16)
PAUSES = Pauses(8.0, 9.0, 0.3, 0.5, 2, "measured", True)
SWITCHOVER = Switchover(0.2, 0.5, "measured")
DOMAINS = {"hv1": "", "hv2": "", "hv3": ""}
DB = Group("db", 1)


def vm(number: int, host: str, **fields: Any) -> Vm:
    return Vm(f"vm{number}", f"00000000-0000-4000-8000-{number:012d}", host, 2, 4 * GIB, **fields)


STAYS = vm(1, "hv1", group="db", priority=70, may_restart=True)
MOVES = vm(2, "hv2", treatments=(Treatment.LIVE, Treatment.IN_PLACE), critical=False, max_pause_s=2.0)
OTHER = vm(4, "hv3", group="db")
LIVE_FIRST = (Treatment.LIVE, Treatment.IN_PLACE)
VMS = (STAYS, MOVES, OTHER)


def fleet(*vms: Vm) -> Fleet:
    hosts = tuple(Host(name, 64 * GIB, 16, CPU, PAUSES, 10000.0) for name in DOMAINS)
    return Fleet(hosts, vms, (DB,), Limits(waves=(1,), reserve_hosts=0), SWITCHOVER)


@pytest.fixture(scope="module")
def plan() -> dict[str, Any]:
    known = fleet(*VMS)
    return document(planned(known), known, "2026-11-21T02:00:00Z")


def seen(plan: dict[str, Any], *vms: Vm, groups: tuple[Group, ...] = (DB,), **domains: str) -> list[str]:
    return drift.drift(plan, vms, groups, {**DOMAINS, **domains})


def destination(plan: dict[str, Any]) -> str:
    return next(str(move["destination"]) for batch in plan["batches"] for move in batch["evacuations"])


def test_a_fleet_that_is_as_planned_has_not_changed(plan: dict[str, Any]) -> None:
    assert seen(plan, *VMS) == []


def test_a_vm_may_be_where_the_plan_moves_it(plan: dict[str, Any]) -> None:
    away = destination(plan)
    other = next(host for host in DOMAINS if host not in (away, "hv2"))
    assert seen(plan, STAYS, replace(MOVES, host=away), OTHER) == []
    assert seen(plan, STAYS, replace(MOVES, host=other), OTHER) == [f"VM vm2 is on {other}, in the plan on hv2"]


def test_what_came_and_what_left_is_named(plan: dict[str, Any]) -> None:
    assert seen(plan, *VMS, vm(9, "hv2")) == ["VM vm9 runs on hv2, and is not in the plan"]
    assert seen(plan, MOVES, OTHER) == ["VM vm1 does not run on hv1 any more"]
    assert seen(plan, replace(STAYS, host="hv3"), MOVES, OTHER) == ["VM vm1 is on hv3, in the plan on hv1"]


def test_only_the_hosts_that_were_looked_at_are_judged(plan: dict[str, Any]) -> None:
    assert drift.drift(plan, [STAYS], [DB], {"hv1": ""}) == []
    assert drift.drift(plan, [], [DB], {"hv1": ""}) == ["VM vm1 does not run on hv1 any more"]
    # One that the plan moves may be at its destination, which was not looked at.
    assert drift.drift(plan, [], [DB], {"hv2": ""}) == []


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        ({"max_pause_s": 5.0}, "VM vm1: its policy says max_pause_s 5.0, in the plan none"),
        ({"treatments": (Treatment.LIVE,)}, "VM vm1: its policy says treatments [live], in the plan [in_place]"),
        ({"group": ""}, "VM vm1: its policy says group none, in the plan db"),
        ({"may_restart": False}, "VM vm1: its policy says may_restart False, in the plan True"),
        ({"ram_bytes": 8 * GIB}, "VM vm1 has 8 GiB of RAM, in the plan 4"),
    ],
)
def test_a_changed_vm_is_named_with_what_changed(plan: dict[str, Any], fields: dict[str, Any], change: str) -> None:
    assert seen(plan, replace(STAYS, **fields), MOVES, OTHER) == [change]


def test_away_from_home_a_vm_is_not_judged_by_the_rules_of_its_host(plan: dict[str, Any]) -> None:
    guest = replace(MOVES, host=destination(plan), treatments=(Treatment.IN_PLACE,), max_pause_s=None)
    assert seen(plan, STAYS, guest, OTHER) == []


def test_groups_and_fault_domains_are_compared(plan: dict[str, Any]) -> None:
    assert seen(plan, *VMS, groups=(Group("db", 2),)) == ["group db: min_available is 2, in the plan 1"]
    assert seen(plan, *VMS, groups=(DB, Group("web"))) == ["group web is not in the plan"]
    assert seen(plan, *VMS, groups=()) == ["group db of the plan is not in holdfast_groups any more"]
    assert seen(plan, *VMS, hv3="rack2") == ["host hv3: its fault domain is rack2, in the plan none"]
    assert seen(plan, *VMS, hv4="") == ["host hv4 is not in the plan"]


def test_a_host_is_told_who_leaves_and_how_each_vm_is_treated(plan: dict[str, Any]) -> None:
    told = orders.orders_for(plan, "hv2", [MOVES.uuid])
    assert told.destinations == {"vm2": destination(plan)}
    # In place it would stand still for 9.5 s, and its limit is 2: not even when it cannot be moved.
    assert told.policy[0]["treatments"] == ["live"]
    told = orders.orders_for(plan, "hv1", [STAYS.uuid])
    assert (told.destinations, len(told.policy)) == ({}, 1)
    assert told.policy[0] == {
        "match": {"name": "vm1"},
        "priority": 70,
        "may_restart": True,
        "treatments": ["in_place"],
    }


def fallbacks(least: int, *vms: Vm) -> list[list[str]]:
    """What each VM of hv1 may get, by a plan for a fleet whose group has to keep so many."""
    known = replace(fleet(*vms, OTHER), groups=(Group("db", least),))
    told = orders.orders_for(document(planned(known), known, ""), "hv1", [one.uuid for one in vms])
    return [rule["treatments"] for rule in told.policy]


def test_as_many_of_a_group_may_stay_after_a_failed_move_as_it_can_do_without() -> None:
    members = [vm(number, "hv1", group="db", treatments=LIVE_FIRST) for number in (1, 2, 3)]
    assert fallbacks(2, *members) == [["live", "in_place"], ["live", "in_place"], ["live"]]
    assert fallbacks(1, *members) == [["live", "in_place"]] * 3
    # The second one is paused by the plan.
    assert fallbacks(3, members[0], replace(members[1], treatments=(Treatment.IN_PLACE,)), members[2]) == [
        ["live"],
        ["in_place"],
        ["live"],
    ]


def test_who_waits_after_a_failed_move_takes_nobodys_room() -> None:
    waits = vm(1, "hv1", group="db", priority=10, treatments=(Treatment.LIVE, Treatment.DEFER))
    stays = vm(2, "hv1", group="db", treatments=LIVE_FIRST)
    assert fallbacks(2, waits, stays) == [["live", "defer"], ["live", "in_place"]]


def test_a_name_that_would_be_a_pattern_is_none() -> None:
    known = fleet(replace(STAYS, name="vm*"), vm(5, "hv1"), OTHER)
    made = document(planned(known), known, "")
    rules = {
        rule["match"].get("name"): rule for rule in orders.orders_for(made, "hv1", [vm.uuid for vm in known.vms]).policy
    }
    assert rules[None]["match"] == {"uuid": STAYS.uuid}
    assert "vm5" in rules


def test_a_vm_that_has_left_already_is_not_sent_again(plan: dict[str, Any]) -> None:
    told = orders.orders_for(plan, "hv2", [])
    assert (told.destinations, told.policy) == ({}, ())


def test_the_digest_of_the_decisions_changes_with_them_and_not_with_predictions() -> None:
    known = fleet(*VMS)
    slower = replace(known, switchover=Switchover(0.3, 0.6, "measured"))
    once, again = (document(planned(one), one, "") for one in (known, slower))
    assert once["decisions_sha256"] == again["decisions_sha256"]
    stays = fleet(STAYS, replace(MOVES, treatments=(Treatment.IN_PLACE,), max_pause_s=None), OTHER)
    assert document(planned(stays), stays, "")["decisions_sha256"] != once["decisions_sha256"]


def test_the_controller_knows_itself_among_vms(tmp_path: Any) -> None:
    (tmp_path / "machine-id").write_text("000000000000400080000000000000ff\n")
    own = _controller.own_identities([tmp_path / "product_uuid", tmp_path / "machine-id"])
    vms = [{"name": "a", "uuid": "00000000-0000-4000-8000-000000000001"}]
    assert _controller.controller_among(vms, own) == ""
    vms.append({"name": "ctl", "uuid": "00000000-0000-4000-8000-0000000000FF"})
    assert _controller.controller_among(vms, own) == "ctl"
    assert _controller.controller_among(vms, set()) == ""
    assert _controller.controller_among([{"name": "x", "uuid": ""}], own) == ""
    with pytest.raises(BadInput, match="would be paused with it"):
        raise BadInput(_controller.pause_refusal("ctl", "hv1"))


def test_a_campaign_is_dead_only_where_it_ran_and_only_when_it_is_gone() -> None:
    alive = _campaign.identity(os.getpid())
    assert not _campaign.is_dead(alive)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = _campaign.identity(child.pid)
    assert not _campaign.is_dead(other)
    child.kill()
    child.wait()
    assert _campaign.is_dead(other)
    boot, rest = alive.split("/", 1)
    assert not _campaign.is_dead(f"{boot[::-1]}/{rest}"), "of another machine, or another boot, nobody can tell"
    assert not _campaign.is_dead("unknown")
