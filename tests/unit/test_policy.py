# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every VM gets one decision with its reason, and slips in the policy are caught before anything happens."""

from __future__ import annotations

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import policy
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import Treatment, VmFacts

VMS = (
    VmFacts(name="db-1", uuid="aaaa-1", title="main database"),
    VmFacts(name="db-2", uuid="aaaa-2"),
    VmFacts(name="web", uuid="bbbb-1", title="front [blue]", tags=("shop", "prod-eu")),
)


def decided(entries: list[object]) -> dict[str, policy.Decision]:
    return {decision.name: decision for decision in policy.decide(policy.parse_rules(entries), VMS)}


def test_without_rules_every_vm_stays_in_place() -> None:
    for decision in decided([]).values():
        assert (decision.treatment, decision.priority, decision.max_pause_s) == (Treatment.IN_PLACE, 50, None)
        assert decision.reason == "by default: no rule matches"


@pytest.mark.parametrize(
    ("match", "names"),
    [
        ({"name": "db-1"}, {"db-1"}),
        ({"name": "db-*"}, {"db-1", "db-2"}),
        ({"name": "db-[2-9]"}, {"db-2"}),
        ({"name": "DB-*"}, set()),
        ({"uuid": "BBBB-1"}, {"web"}),
        ({"title": "main*"}, {"db-1"}),
        ({"title": "main database"}, {"db-1"}),
        ({"tag": "shop"}, {"web"}),
        ({"tag": "prod-*"}, {"web"}),
        ({"tag": "nobody-has-it-yet"}, set()),
        ({}, {"db-1", "db-2", "web"}),
        (None, {"db-1", "db-2", "web"}),
    ],
)
def test_what_a_rule_matches(match: object, names: set[str]) -> None:
    found = decided([{"match": match, "priority": 90}])
    assert {name for name, decision in found.items() if decision.priority == 90} == names


def test_the_first_matching_rule_wins_and_is_named() -> None:
    found = decided(
        [
            {"match": {"name": "db-1"}, "priority": 95, "max_pause_s": 5},
            {"match": {"name": "db-*"}, "priority": 80},
            {"priority": 10, "treatment": "in_place"},
        ]
    )
    assert [(found[name].priority, found[name].reason) for name in ("db-1", "db-2", "web")] == [
        (95, "by rule 1 (name db-1)"),
        (80, "by rule 2 (name db-*)"),
        (10, "by rule 3 (every VM)"),
    ]
    assert found["db-1"].max_pause_s == 5.0


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ({"name": "db-9"}, ["rule 2", "db-9", "db-1, db-2, web"]),
        ({"uuid": "cccc-1"}, ["cccc-1", "aaaa-1"]),
        ({"title": "no such"}, ["no such", "main database"]),
    ],
)
def test_a_rule_for_a_vm_that_does_not_exist_is_refused(match: dict[str, str], words: list[str]) -> None:
    with pytest.raises(BadInput) as refusal:
        decided([{"match": {"name": "db-1"}}, {"match": match}])
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("db-*", ["rule 1", "mapping"]),
        ({"prio": 5}, ["rule 1", "prio", "priority"]),
        ({"match": {"host": "x"}}, ["rule 1", "name, uuid, title"]),
        ({"match": {"name": "a", "uuid": "b"}}, ["exactly one"]),
        ({"match": {"name": 7}}, ["rule 1"]),
        ({"match": {"name": ""}}, ["rule 1"]),
        ({"match": "db-*"}, ["rule 1"]),
        ({"treatment": "teleport"}, ["teleport", "in_place"]),
        ({"treatment": "defer"}, ["rule 1", "defer", "only a plan", "in_place", "live", "cold", "restart"]),
        ({"priority": 101}, ["101"]),
        ({"priority": -1}, ["-1"]),
        ({"priority": "high"}, ["high"]),
        ({"priority": True}, ["True"]),
        ({"max_pause_s": 0}, ["max_pause_s"]),
        ({"max_pause_s": "5s"}, ["5s"]),
    ],
)
def test_a_rule_that_is_not_understood_is_named(entry: object, words: list[str]) -> None:
    with pytest.raises(BadInput) as refusal:
        policy.parse_rules([entry])
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("entries", ["db-*", {"match": {}}, 3, None])
def test_a_policy_that_is_no_list_is_refused(entries: object) -> None:
    with pytest.raises(BadInput, match="list of rules"):
        policy.parse_rules(entries)


def test_the_least_important_vm_is_suspended_first_and_restored_last() -> None:
    decisions = tuple(decided([{"match": {"name": "web"}, "priority": 90}, {"match": {"name": "db-2"}}]).values())
    assert [decision.name for decision in policy.suspend_order(decisions)] == ["db-1", "db-2", "web"]
    assert [decision.name for decision in policy.restore_order(decisions)] == ["web", "db-1", "db-2"]


ANY = tuple(Treatment)


def planned(entry: dict[str, object]) -> policy.Rule:
    return policy.parse_rules([entry], available=ANY)[0]


def test_treatments_are_allowed_in_their_order() -> None:
    rule = planned({"treatments": ["live", "in_place"], "return_home": True, "group": "db"})
    assert rule.treatments == (Treatment.LIVE, Treatment.IN_PLACE)
    assert (rule.return_home, rule.group) == (True, "db")
    decision = policy.decide((rule,), VMS)[0]
    assert (decision.treatment, decision.treatments, decision.group) == (Treatment.LIVE, rule.treatments, "db")


def test_the_host_takes_a_rule_that_prefers_what_an_upgrade_does_and_refuses_another_preference() -> None:
    assert decided([{"treatments": ["in_place", "live"]}])["web"].treatment is Treatment.IN_PLACE
    for entry in ({"treatments": ["live", "in_place"]}, {"critical": True}):
        assert decided([entry])["web"].treatment is Treatment.LIVE
    with pytest.raises(BadInput, match="only a plan"):
        policy.parse_rules([{"treatments": ["defer", "in_place"]}])


def test_a_vm_that_cannot_be_moved_stays_in_place_and_says_so() -> None:
    rules = policy.parse_rules([{"treatments": ["live", "in_place"]}])
    stayed = {one.name: one for one in policy.decide(rules, VMS, unmoved=["web"])}
    assert stayed["web"].treatment is Treatment.IN_PLACE
    assert "live was not possible" in stayed["web"].reason
    assert stayed["db-1"].treatment is Treatment.LIVE


@pytest.mark.parametrize(
    ("treatments", "settled"),
    [
        (["live", "restart", "in_place"], Treatment.RESTART),
        (["live", "cold", "restart"], Treatment.COLD),
        (["live", "defer", "restart"], Treatment.LIVE),
        (["live"], Treatment.LIVE),
        (["in_place", "live"], Treatment.IN_PLACE),
    ],
)
def test_a_vm_that_cannot_be_moved_gets_what_its_policy_has_next(treatments: list[str], settled: Treatment) -> None:
    rules = policy.parse_rules([{"treatments": treatments}])
    assert {one.treatment for one in policy.decide(rules, VMS, unmoved=[vm.name for vm in VMS])} == {settled}


def test_a_rule_for_a_vm_that_is_known_to_be_elsewhere_is_no_slip_of_the_pen() -> None:
    rules = policy.parse_rules([{"match": {"name": "db-7"}}])
    assert len(policy.decide(rules, VMS, elsewhere=["db-7"])) == len(VMS)


def test_a_critical_vm_is_moved_live_unless_it_says_otherwise() -> None:
    assert planned({"critical": True}).treatments == (Treatment.LIVE,)
    assert planned({"critical": True, "treatments": ["live", "defer"]}).treatments[-1] is Treatment.DEFER


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"critical": True, "treatment": "in_place"}, ["rule 1", "critical", "in_place"]),
        ({"critical": True, "treatments": ["live", "cold"]}, ["critical", "cold"]),
        ({"treatment": "live", "treatments": ["live"]}, ["both treatment and treatments"]),
        ({"return_home": True}, ["return_home", "never moved (in_place)"]),
        ({"treatments": []}, ["is not a list"]),
        ({"treatments": "live"}, ["is not a list"]),
        ({"treatments": ["live", "live"]}, ["twice"]),
        ({"treatments": ["live", "fly"]}, ["fly"]),
        ({"group": ["db"]}, ["group"]),
        ({"critical": "yes"}, ["critical 'yes'", "true or false"]),
        ({"return_home": 1}, ["return_home 1"]),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(entry: dict[str, object], words: list[str]) -> None:
    with pytest.raises(BadInput) as refusal:
        planned(entry)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    "entries",
    [
        [{"priority": 10}, {"match": {"name": "db-*"}, "priority": 90}],
        [{"match": {"name": "db-*"}}, {"match": {"name": "db-*"}, "priority": 90}],
        [{}, {}],
    ],
)
def test_a_rule_that_can_never_apply_contradicts_the_one_before_it(entries: list[object]) -> None:
    with pytest.raises(BadInput, match=r"rule 2 contradicts rule 1: it never applies"):
        policy.parse_rules(entries)


def test_an_error_says_where_the_rule_is_written() -> None:
    origins = ("/inventory/all.yml:7", "/inventory/all.yml:9")
    with pytest.raises(BadInput, match=r"policy rule 2 at /inventory/all.yml:9: priority -1"):
        policy.parse_rules([{"match": {"name": "a"}}, {"priority": -1}], origins)
    rules = policy.parse_rules([{"match": {"name": "db-7"}}], origins)
    with pytest.raises(
        BadInput, match=r"policy rule 1 \(name db-7\) at /inventory/all.yml:7: there is no VM with this name"
    ):
        policy.decide(rules, VMS)
