# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what hosts answered to the fleet that is planned for; and every slip in the policy is one clear error."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import Mount, Treatment
from ansible_collections.holdfast.kvm.plugins.module_utils._plan import intake
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.intake import Found
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.limits import parse_limits
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.model import Fleet

GIB = 1 << 30
OPTIONS: dict[str, Any] = {
    "waves": ["1", "10%"],
    "canaries": [],
    "max_unavailable": "100%",
    "max_per_domain": 0,
    "reserve_hosts": 1,
    "cpu_ratio": 4.0,
    "shared_paths": [],
    "copy_storage": False,
    "stage_s": 120.0,
    "parallel": 2,
    "done": [],
    "done_since": "",
}
HOST = {
    "cpu": {"vendor": "v", "name": "n", "flags": ["a"], "models": [], "count": 8},
    "pool": {"mounted": True, "free_bytes": 10 * GIB},
    "shared_mounts": [{"path": "/srv", "source": "nas:/srv"}],
}


IN_POOL = {"ram_bytes": 2 * GIB, "ram_backing": "file-shared"}


def guest(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "uuid": f"uuid-{name}", "state": "running", **IN_POOL, "disks": [], **fields}


def found(name: str, *guests: dict[str, Any], **fields: Any) -> Found:
    return Found(name, HOST, guests, **fields)


def fleet(*hosts: Found, **options: Any) -> Fleet:
    return intake.fleet(hosts, {**OPTIONS, **options})


def refusal(*hosts: Found, **options: Any) -> str:
    with pytest.raises(BadInput) as caught:
        fleet(*hosts, **options)
    return str(caught.value)


def test_a_host_has_the_room_that_is_free_and_what_its_vms_take() -> None:
    known = fleet(found("h1", guest("a"), guest("off", state="shutoff"), domain="A", link_mbit=25000))
    (host,) = known.hosts
    assert (host.ram_bytes, host.cpus, host.domain, host.link_mbit) == (12 * GIB, 8, "A", 25000.0)
    assert host.mounts == (Mount("/srv", "nas:/srv"),)
    assert [vm.name for vm in known.vms] == ["a"]


def test_a_vm_outside_the_pool_has_no_part_in_the_room_that_the_pool_is() -> None:
    known = fleet(found("h1", guest("a"), guest("b", ram_backing="anonymous")))
    assert known.hosts[0].pool
    assert known.hosts[0].ram_bytes == 12 * GIB
    assert [vm.pooled for vm in known.vms] == [True, False]


def test_pages_are_those_of_a_pool_of_devices() -> None:
    for kind, page_bytes in (("fsdax", 1), ("devdax", GIB)):
        pool = {**HOST["pool"], "kind": kind, "page_bytes": GIB}
        known = fleet(
            Found("h1", {**HOST, "pool": pool}, [guest("a", ram_files=[{"name": "pc.ram", "size_bytes": GIB}])])
        )
        assert (known.hosts[0].page_bytes, known.vms[0].ram_blocks) == (page_bytes, (GIB,))


def test_a_host_without_a_pool_has_the_ram_of_the_host() -> None:
    bare = {**HOST, "pool": {"mounted": False, "free_bytes": 0}, "mem_available_bytes": 3 * GIB}
    assert fleet(Found("h1", bare, [guest("a")])).hosts[0].ram_bytes == 5 * GIB


def test_blockers_of_the_host_and_of_its_vms_are_told_apart() -> None:
    blockers = (
        {"code": "pool-missing", "message": "no pool", "remedy": "prepare it", "vm": ""},
        {"code": "passthrough", "message": "drives a GPU", "remedy": "detach it", "vm": "a"},
        {"code": "ram-not-in-pool", "message": "RAM is elsewhere", "remedy": "start it again", "vm": "b"},
    )
    known = fleet(found("h1", guest("a"), guest("b"), blockers=blockers))
    assert known.hosts[0].blockers == ("no pool -- prepare it",)
    assert [(vm.held, vm.bound) for vm in known.vms] == [
        (("drives a GPU",), ("drives a GPU",)),
        (("RAM is elsewhere",), ()),
    ]


def test_the_policy_of_its_host_decides_about_a_vm() -> None:
    policy = [{"match": {"tag": "core"}, "treatments": ["live", "in_place"], "return_home": True}]
    known = fleet(found("h1", guest("a", tags=["core"]), policy=policy), found("h2", guest("b", tags=["core"])))
    assert known.vms[0].treatments == (Treatment.LIVE, Treatment.IN_PLACE)
    assert known.vms[0].rule == "by rule 1 (tag core)"
    assert known.vms[1].treatments == (Treatment.IN_PLACE,)


def test_a_rule_names_the_host_when_nobody_knows_where_it_is_written() -> None:
    words = refusal(found("h1", policy=[{"priority": -1}]))
    assert words.startswith("policy rule 1 at holdfast_policy of h1: priority -1")


def test_a_rule_for_a_vm_on_no_host_is_refused_and_on_another_host_noted() -> None:
    policy = [{"match": {"name": "b"}}]
    assert "there is no VM with this name" in refusal(found("h1", guest("a"), policy=policy))
    known = fleet(found("h1", guest("a"), policy=policy), found("h2", guest("b")))
    assert "rule 1 (name b) is on h2; h1 will refuse the rule" in known.notes[0]


def test_an_unknown_group_is_refused_with_the_known_ones() -> None:
    rule = {"match": {"name": "a"}, "group": "dbx"}
    words = refusal(
        found("h1", guest("a"), policy=[rule], rule_origins=("/i.yml:4",), groups={"db": {"min_available": 1}})
    )
    assert words.startswith("policy rule 1 at /i.yml:4: there is no group dbx")
    assert "groups: db" in words


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"db": {"min_available": -1}}, "min_available -1 is not a whole number from 0"),
        ({"db": {"min_available": "two"}}, "min_available 'two'"),
        ({"db": {"anti_affinity": "yes"}}, "anti_affinity 'yes' is not true or false"),
        ({"db": {"quorum": 2}}, "unknown keys: quorum"),
        ({"db": 2}, "group db at /g.yml:2 is not a mapping"),
        (["db"], "holdfast_groups is not a mapping"),
    ],
)
def test_a_group_that_is_not_understood_is_named(groups: object, words: str) -> None:
    assert words in refusal(found("h1", groups=groups, group_origins={"db": "/g.yml:2"}))


def test_hosts_that_disagree_about_a_group_are_refused() -> None:
    words = refusal(
        found("h1", groups={"db": {"min_available": 1}}, group_origins={"db": "/a.yml:1"}),
        found("h2", groups={"db": {"min_available": 2}}, group_origins={"db": "/b.yml:1"}),
    )
    assert words.startswith("group db at /b.yml:1 (for h2) contradicts group db at /a.yml:1")


def test_a_vm_that_runs_twice_stops_everything() -> None:
    assert "VM a (uuid-a) runs on h1 and h2 at the same time" in refusal(
        found("h1", guest("a")), found("h2", guest("a"))
    )


def test_members_that_are_together_already_are_worth_knowing() -> None:
    groups = {"db": {"anti_affinity": True}, "web": {}}
    policy = [{"group": "db"}]
    known = fleet(found("h1", guest("a"), guest("b"), policy=policy, groups=groups))
    assert known.notes == (
        "group web has no running member",
        "group db: members that should be apart are together on h1",
    )


def test_a_journal_and_a_report_of_the_same_run_count_once() -> None:
    vm = {"paused_at": 9.0, "saved_at": 10.0, "restore_started_at": 30.0, "resumed_at": 31.0}
    journal = {"generation": "g-1", "vms": [vm]}
    report = {"hosts": [{"host": "h1", "generation": "g-1", "vms": [vm]}]}
    known = intake.fleet([found("h1", guest("a"), journal=journal)], OPTIONS, [report])
    assert known.hosts[0].pauses.basis == "measured on h1, 1 run"
    assert known.hosts[0].pauses.floor_p50_s == 20.0


def test_a_link_that_is_too_slow_is_refused() -> None:
    assert "10 Mbit/s is too slow" in refusal(found("h1", link_mbit=10.0))


TEN = [f"h{number}" for number in range(10)]


def test_waves_are_counted_out() -> None:
    limits = parse_limits({**OPTIONS, "waves": ["1", 2, "35%", "100%"], "max_unavailable": "50%"}, TEN)
    assert limits.waves == (1, 2, 3, 5)
    assert parse_limits(OPTIONS, TEN[:3]).waves == (1, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"waves": []}, "waves: the list is empty"),
        ({"waves": ["0"]}, "waves: '0' is neither"),
        ({"waves": ["-1"]}, "waves: '-1' is neither"),
        ({"max_unavailable": "some"}, "max_unavailable: 'some' is neither"),
        ({"canaries": ["h77"]}, "canaries: h77 is not a host of this plan"),
        ({"canaries": ["h1", "h2"]}, "canaries: 2 of them contradict waves, whose first one has 1 host"),
        ({"reserve_hosts": -1}, "reserve_hosts: -1 is negative"),
        ({"max_per_domain": -2}, "max_per_domain: -2 is negative"),
        ({"cpu_ratio": 0}, "cpu_ratio: 0 is not above 0"),
    ],
)
def test_a_limit_that_cannot_be_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_limits({**OPTIONS, **options}, TEN)
    assert words in str(caught.value)


def test_a_limit_that_cannot_be_says_where_it_is_written() -> None:
    with pytest.raises(BadInput, match=r"^reserve_hosts at /inventory/all.yml:9: -1 is negative"):
        parse_limits({**OPTIONS, "reserve_hosts": -1}, TEN, {"reserve_hosts": "/inventory/all.yml:9"})


UPGRADED = {"state": "restored", "fell_back": False, "begun_at": 1795312800.0, "vms": [{"state": "resumed"}]}


@pytest.mark.parametrize(
    ("journal", "done"),
    [
        (UPGRADED, True),
        ({**UPGRADED, "begun_at": 1795312799.0}, False),
        ({**UPGRADED, "fell_back": True}, False),
        ({**UPGRADED, "state": "aborted"}, False),
        ({**UPGRADED, "only": "qemu"}, False),
        ({**UPGRADED, "vms": [{"state": "resumed"}, {"state": "shut_down"}]}, False),
        ({"state": "none"}, False),
    ],
)
def test_a_host_that_was_upgraded_since_the_plan_is_done(journal: dict[str, Any], done: bool) -> None:
    (host,) = fleet(found("h1", guest("a"), journal=journal), done_since="2026-11-22T02:00:00Z").hosts
    assert host.done is done


def test_a_moment_that_is_none_is_refused() -> None:
    assert "done_since: 'yesterday' is no moment" in refusal(found("h1", guest("a")), done_since="yesterday")


def test_versions_of_qemu_are_numbers_or_unknown() -> None:
    newer = Found("hv1", {**HOST, "qemu": {"version": [11, 0, 10]}}, [guest("a", qemu_version="10.0.2")])
    older = Found("hv2", {**HOST, "qemu": {"version": [0, 0, 0]}}, [guest("b")])
    known = fleet(newer, older)
    assert [host.qemu for host in known.hosts] == [(11, 0, 10), ()]
    assert [vm.qemu for vm in known.vms] == [(10, 0, 2), ()]


def test_pauses_of_migrations_are_what_the_hosts_have_on_record_else_of_reports() -> None:
    report = {"hosts": [{"host": "hv1", "vms": [{"treatment": "live", "pause_s": 9.0}]}]}
    recorded = [found("hv1", guest("a"), switchovers_s=[0.2, 0.4]), found("hv2", switchovers_s=[0.3])]
    known = intake.fleet(recorded, OPTIONS, [report]).switchover
    assert (known.p50_s, known.basis) == (0.3, "measured, 3 live migrations")
    assert intake.fleet([found("hv1", guest("a"))], OPTIONS, [report]).switchover.p50_s == 9.0
