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
    VmFacts(name="web", uuid="bbbb-1", title="front [blue]"),
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
        ({"treatment": "live"}, ["rule 1", "live", "not available yet", "in_place"]),
        ({"treatment": "restart"}, ["not available yet"]),
        ({"treatment": "defer"}, ["not available yet"]),
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
