# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan does what the policy says and the facts allow, in as few batches as the limits allow, and says why."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import CpuFacts, Disk, Mount, Treatment
from ansible_collections.holdfast.kvm.plugins.module_utils._plan import batches, checker, pause, planner, solver
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.batches import Limit, Puzzle
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.destinations import Standing
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.document import document, fingerprint
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.html import page
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.model import (
    Absence,
    Fleet,
    Group,
    Host,
    Limits,
    Pauses,
    Plan,
    Switchover,
    Vm,
    VmPlan,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.schedule import migration_s
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.table import lines
from holdfast.bench.fleet import fleet as synthetic
from holdfast.plan_view import drawing, exceptions

GIB = 1 << 30
ROOT = Path(__file__).parents[2]
CPU = CpuFacts("GenuineIntel", "Xeon", ("avx2", "avx512f"), ("Skylake",), 16)
PAUSES = Pauses(10.0, 15.0, 0.5, 1.0, parallel=2, basis="measured", measured=True)
IN_PLACE, LIVE, RESTART, DEFER = Treatment.IN_PLACE, Treatment.LIVE, Treatment.RESTART, Treatment.DEFER
EITHER = (IN_PLACE, LIVE)


def host(name: str, **fields: Any) -> Host:
    """A host of 64 GiB with shared storage."""
    usual: dict[str, Any] = {"ram_bytes": 64 * GIB, "cpus": 16, "cpu": CPU, "mounts": (Mount("/srv/vms", "nas:/vms"),)}
    return Host(name, pauses=PAUSES, link_mbit=10000.0, **{**usual, **fields})


def vm(name: str, where: str, **fields: Any) -> Vm:
    """A VM of 8 GiB on shared storage."""
    usual: dict[str, Any] = {"ram_bytes": 8 * GIB, "disks": (Disk("vda", f"/srv/vms/{name}.qcow2"),)}
    return Vm(name, f"uuid-{name}", where, vcpus=2, rule="by rule 1", **{**usual, **fields})


def fleet(hosts: list[Host], vms: list[Vm], *groups: Group, **limits: Any) -> Fleet:
    usual: dict[str, Any] = {"waves": (1, 10), "reserve_hosts": 0}
    return Fleet(tuple(hosts), tuple(vms), groups, Limits(**{**usual, **limits}), Switchover(0.3, 0.8, "measured"))


def planned(known: Fleet) -> Plan:
    """The plan, which the checker finds right."""
    plan = planner.plan(known)
    assert checker.check(known, plan) == ()
    return plan


def pools(*names: str) -> list[Host]:
    return [host(name, pool=True) for name in names]


def hosts(count: int) -> list[Host]:
    return [host(f"h{number}") for number in range(1, count + 1)]


def entry(plan: Plan, name: str) -> VmPlan:
    return next(found for found in plan.vms if found.name == name)


def treatment(plan: Plan, name: str) -> Treatment:
    return entry(plan, name).treatment


def why_out(plan: Plan, name: str) -> str:
    """Everything that is said about a host that is left out."""
    left_out = next(found for found in plan.left_out if found.host == name)
    return " ".join([left_out.reason, *(f"{one.vm}: {one.reason} -- {one.remedy}" for one in left_out.vms)])


# --- what happens to a VM


def test_the_first_treatment_that_is_allowed_and_possible_is_taken() -> None:
    known = fleet(
        hosts(3),
        [
            vm("stays", "h1", treatments=EITHER),
            vm("hurried", "h1", treatments=EITHER, max_pause_s=5.0),
            vm("driver", "h1", treatments=(IN_PLACE, RESTART), held=("it drives a GPU",), bound=("it drives a GPU",)),
        ],
    )
    plan = planned(known)
    assert [treatment(plan, name) for name in ("stays", "hurried", "driver")] == [IN_PLACE, LIVE, RESTART]
    assert entry(plan, "stays").reason == "by rule 1"
    assert "pause of 16 s (95 of 100) is over its limit of 5 s" in entry(plan, "hurried").reason
    assert "it drives a GPU" in entry(plan, "driver").reason
    assert entry(plan, "driver").instead_of is IN_PLACE


def test_the_order_is_the_policys() -> None:
    plan = planned(fleet(hosts(3), [vm("nomad", "h1", treatments=(LIVE, IN_PLACE))]))
    assert treatment(plan, "nomad") is LIVE


@pytest.mark.parametrize(
    ("other", "fields", "words"),
    [
        (
            host("h2", cpu=replace(CPU, flags=("avx2",))),
            {"cpu_mode": "host-model"},
            "cannot give it the CPU host-model",
        ),
        (host("h2", cpu=replace(CPU, name="Epyc")), {"cpu_mode": "host-passthrough"}, "has another processor"),
        (host("h2", mounts=()), {}, "does not reach its disk vda (/srv/vms/a.qcow2)"),
        (host("h2"), {"disks": (Disk("vda", "/var/lib/a.raw"),)}, "does not reach its disk vda (/var/lib/a.raw)"),
        (host("h2", ram_bytes=GIB), {}, "no other host can take it while h1 is upgraded -- make room for 8.0 GiB"),
        (host("h2", cpus=0), {"vcpus": 2}, ""),
        (host("h2", cpu=replace(CPU, flags=())), {"cpu_mode": "custom", "cpu_model": "Skylake"}, ""),
    ],
)
def test_where_a_vm_can_go(other: Host, fields: dict[str, Any], words: str) -> None:
    guest = replace(vm("a", "h1", treatments=(LIVE,)), **fields)
    plan = planned(fleet([host("h1"), other], [guest]))
    if words:
        assert words in why_out(plan, "h1")
        assert not plan.complete
    else:
        assert treatment(plan, "a") is LIVE


def test_disks_that_are_out_of_reach_are_copied_only_if_that_is_allowed() -> None:
    guest = vm("a", "h1", treatments=(LIVE,), disks=(Disk("vda", "/var/lib/a.raw", size_bytes=20 * GIB),))
    (move,) = planned(fleet(hosts(2), [guest], copy_storage=True)).batches[0].evacuations
    assert (move.copied_disks, move.sent_bytes) == (("vda",), 28 * GIB)
    (move,) = planned(fleet(hosts(2), [guest], shared_paths=("/var/lib",))).batches[0].evacuations
    assert (move.copied_disks, move.sent_bytes) == ((), 8 * GIB)


def test_what_cannot_be_done_says_which_vm_and_what_would_help() -> None:
    guest = vm("a", "h1", treatments=(IN_PLACE,), max_pause_s=3.0)
    plan = planned(fleet(hosts(2), [guest, vm("b", "h2")]))
    assert "a: in_place: its predicted pause of 16 s" in why_out(plan, "h1")
    assert "raise max_pause_s to 16" in why_out(plan, "h1")
    assert "possible, but not allowed: live, defer" in why_out(plan, "h1")
    assert [batch.hosts for batch in plan.batches] == [("h2",)]


def test_a_vm_that_is_deferred_makes_its_host_wait() -> None:
    plan = planned(fleet(hosts(2), [vm("batch", "h1", treatments=(DEFER,)), vm("b", "h2")]))
    assert plan.complete
    assert [(out.host, out.why) for out in plan.left_out] == [("h1", Absence.DEFERRED)]
    assert "it waits for batch" in why_out(plan, "h1")


# --- groups


def test_paused_members_of_a_group_count_as_not_running() -> None:
    members = [vm(f"db{number}", f"h{number}", group="db") for number in range(1, 5)]
    plan = planned(fleet(hosts(4), members, Group("db", min_available=3)))
    assert len(plan.batches) == 4
    assert plan.bound.gap == 0
    assert plan.bound.limited_by == "group db: 4 members, 3 of them needed, so 1 paused at a time"
    assert len(planned(fleet(hosts(4), members, Group("db", min_available=2))).batches) == 3


def test_a_member_too_many_on_one_host_is_moved_live_if_it_may() -> None:
    members = [vm("db1", "h1", group="db", priority=90, treatments=EITHER), vm("db2", "h1", group="db")]
    plan = planned(fleet(hosts(2), members, Group("db", min_available=1)))
    assert (treatment(plan, "db1"), treatment(plan, "db2")) == (LIVE, IN_PLACE)
    assert entry(plan, "db1").reason == "not in_place: group db has 2 members and needs 1 of them"


def test_a_quorum_that_cannot_be_kept_leaves_the_host_out() -> None:
    members = [vm("db1", "h1", group="db"), vm("db2", "h1", group="db")]
    plan = planned(fleet(hosts(2), members, Group("db", min_available=1)))
    assert "2 would stand still with h1" in why_out(plan, "h1")
    assert "lower min_available to 0" in why_out(plan, "h1")


def test_members_that_must_be_apart_stay_apart() -> None:
    members = [vm(f"c{number}", f"h{number}", group="core", treatments=(LIVE,)) for number in (1, 2)]
    plan = planned(fleet(hosts(3), members, Group("core", anti_affinity=True)))
    assert next(move for batch in plan.batches for move in batch.evacuations if move.vm == "c1").destination == "h3"
    alone = planned(fleet(hosts(2), members, Group("core", anti_affinity=True)))
    assert "on h2, where no other member of group core is" in why_out(alone, "h1")


# --- batches


def test_the_canary_is_a_host_with_little_at_stake_or_the_one_that_is_named() -> None:
    vms = [vm("a", "h1", priority=90), vm("b", "h2", priority=10), vm("c", "h3", priority=50)]
    assert planned(fleet(hosts(4), vms)).batches[0].hosts == ("h2",)
    assert planned(fleet(hosts(4), vms, canaries=("h3",))).batches[0].hosts == ("h3",)


def test_waves_grow_and_a_rack_goes_not_at_once() -> None:
    racks = [replace(one, domain="AB"[index % 2]) for index, one in enumerate(hosts(8))]
    vms = [vm(f"v{index}", one.name) for index, one in enumerate(racks)]
    assert [len(batch.hosts) for batch in planned(fleet(racks, vms, waves=(1, 3, 10))).batches] == [1, 3, 4]
    for batch in planned(fleet(racks, vms, waves=(1, 3, 10), max_per_domain=1)).batches:
        assert len({one.domain for one in racks if one.name in batch.hosts}) == len(batch.hosts)


def test_hosts_go_together_only_if_one_more_could_fail() -> None:
    vms = [vm(f"v{index}", f"h{index}", ram_bytes=40 * GIB) for index in range(1, 5)]
    assert [len(batch.hosts) for batch in planned(fleet(hosts(4), vms)).batches] == [1, 3]
    plan = planned(fleet(hosts(4), vms, reserve_hosts=1))
    assert [len(batch.hosts) for batch in plan.batches] == [1, 1, 1, 1]
    assert "a reserve of 1 host" in plan.bound.limited_by


def test_hosts_that_are_done_take_vms_and_are_not_upgraded() -> None:
    known = [replace(hosts(1)[0], done=True), *hosts(3)[1:]]
    plan = planned(fleet(known, [vm("a", "h2", treatments=(LIVE,)), vm("b", "h3")]))
    assert [batch.hosts for batch in plan.batches] == [("h2",), ("h3",)]
    assert plan.batches[0].evacuations[0].destination == "h1"


def test_a_vm_goes_where_it_can_stay_and_home_when_it_wants() -> None:
    vms = [vm("a", "h1", treatments=(LIVE,), return_home=True), vm("b", "h2"), vm("c", "h3")]
    plan = planned(fleet(hosts(3), vms, waves=(1,)))
    (batch,) = [batch for batch in plan.batches if "h1" in batch.hosts]
    assert [move.destination for move in batch.returns] == ["h1"]
    assert batch.returns[0].start_s >= batch.upgrade_start_s + batch.upgrade_s


def test_of_two_hosts_only_a_vm_is_moved_once_more_rather_than_not_at_all() -> None:
    plan = planned(fleet(hosts(2), [vm("a", "h1", treatments=(LIVE,)), vm("b", "h2", priority=90)], waves=(1,)))
    moves = [(move.source, move.destination, move.again) for batch in plan.batches for move in batch.evacuations]
    assert moves == [("h1", "h2", True), ("h2", "h1", False)]
    assert "a can only go to a host that is next" in " ".join(plan.warnings)


def test_a_full_fleet_is_upgraded_in_smaller_steps_and_falls_back_to_what_is_allowed() -> None:
    vms = [vm(f"v{index}", f"h{index}", ram_bytes=40 * GIB, treatments=(LIVE, IN_PLACE)) for index in range(1, 4)]
    plan = planned(fleet([*hosts(3), host("h4", done=True)], vms))
    assert plan.complete
    assert [len(batch.hosts) for batch in plan.batches] == [1, 1, 1]
    crowded = planned(fleet(hosts(3), vms))
    assert entry(crowded, "v1").reason == "not live: no other host can take it while h1 is upgraded"


# --- how many batches

PAIRS = Puzzle(
    tuple(f"h{number}" for number in range(9)),
    (9,),
    # In threes that sum up to 12: first-fit by size puts 6 and 6 together, and needs a fourth batch.
    (
        Limit(
            "weight: 12 at a time", 12, dict(zip([f"h{n}" for n in range(9)], (6, 6, 5, 4, 4, 4, 3, 2, 2), strict=True))
        ),
    ),
)


def test_counting_bounds_the_number_of_batches_from_below() -> None:
    assert batches.lower_bound(PAIRS) == (3, "weight: 12 at a time")
    assert batches.lower_bound(Puzzle((), (1,), ())) == (0, "nothing to upgrade")
    assert batches.lower_bound(Puzzle(("a", "b", "c"), (1, 1), ()))[0] == 3


def test_first_fit_keeps_the_limits() -> None:
    for number, batch in enumerate(batches.first_fit(PAIRS)):
        assert batches.fits(PAIRS, batch, number)


@pytest.mark.skipif(not solver.available(), reason="OR-tools is not installed")
def test_the_solver_finds_what_is_there_and_proves_what_is_not() -> None:
    hint = batches.first_fit(PAIRS)
    found = solver.pack(PAIRS, 3, hint, 2.0).batches
    assert found is not None
    assert sorted(host for batch in found for host in batch) == list(PAIRS.hosts)
    assert all(batches.fits(PAIRS, batch, number) for number, batch in enumerate(found))
    assert solver.pack(PAIRS, 2, hint, 2.0).impossible


@pytest.mark.skipif(not solver.available(), reason="OR-tools is not installed")
def test_the_solver_places_what_best_fit_cannot() -> None:
    rooms = {"a": (10, 100), "b": (10, 100)}
    movers = {name: (ram, 1, {"a": 0, "b": 0}) for name, ram in (("u", 6), ("v", 5), ("w", 5), ("x", 4))}
    found = solver.place(rooms, movers, [], 1.0)
    assert found is not None
    assert found["u"] == found["x"] != found["v"] == found["w"]
    assert solver.place(rooms, movers, [(("u", "v", "w"), ("a", "b"))], 1.0) is None


# --- predictions


def journal(floor_s: float, each_s: float, count: int = 2) -> dict[str, Any]:
    """A run in which all VMs were saved at second 10, and restored one after another."""
    vms = [
        {
            "paused_at": 10 - each_s,
            "saved_at": 10.0,
            "restore_started_at": 10 + floor_s,
            "resumed_at": 10 + floor_s + each_s,
        }
        for _ in range(count)
    ]
    return {"vms": vms}


def test_a_pause_is_predicted_from_measured_runs() -> None:
    measured = [*pause.runs("h1", journal(20.0, 1.0)), *pause.runs("h2", journal(40.0, 1.0))]
    own = pause.pauses("h1", measured, parallel=2)
    assert (own.floor_p50_s, own.each_p50_s, own.measured) == (20.0, 2.0, True)
    assert own.basis == "measured on h1, 1 run"
    assert pause.pauses("h3", measured, parallel=2).floor_p50_s == 30.0
    assert pause.pauses("h3", [], parallel=2).basis == "assumed, nothing measured yet"
    assert planner.plan(fleet([replace(host("h1"), pauses=pause.pauses("h1", [], 2))], [vm("a", "h1")])).warnings


def test_few_samples_leave_a_wide_margin() -> None:
    assert pause.high([10.0]) == 20.0
    assert pause.high([10.0, 8.0]) == 15.0
    assert pause.high([float(number) for number in range(1, 101)]) == 95.0


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"vms": []},
        {"vms": [{"paused_at": 1.0}]},
        {"vms": [{"paused_at": 9.0, "saved_at": 10.0, "restore_started_at": 8.0, "resumed_at": 12.0}]},
    ],
)
def test_a_run_that_did_not_end_or_whose_clock_stepped_tells_nothing(broken: dict[str, Any]) -> None:
    assert pause.runs("h1", broken) == []


def test_important_vms_wait_for_fewer_rounds() -> None:
    vms = [vm(f"v{number}", "h1", priority=number) for number in range(5)]
    plan = planned(fleet(hosts(1), vms))
    assert [entry(plan, f"v{number}").pause_p50_s for number in (4, 3, 2, 1, 0)] == [10.5, 10.5, 11.0, 11.0, 11.5]


def test_a_migration_takes_the_path_and_migrations_on_one_link_wait_for_each_other() -> None:
    # 8 GiB over 10 Gbit/s by a ninth of a bit each: 7.7 s, and a little for what is written meanwhile.
    assert migration_s(8 * GIB, 10000.0) == pytest.approx(7.735, abs=0.01)
    assert migration_s(8 * GIB, 20.0) == float("inf")
    plan = planned(fleet(hosts(2), [vm(name, "h1", treatments=(LIVE,)) for name in "ab"]))
    moves = next(batch.evacuations for batch in plan.batches if batch.evacuations)
    assert moves[1].start_s == pytest.approx(moves[0].start_s + moves[0].seconds, abs=0.01)


def test_a_vm_that_writes_a_lot_is_sent_for_longer_and_named_when_it_will_be_slowed_down() -> None:
    once = migration_s(8 * GIB, 10000.0)
    # 0.5 GB/s of 1.1 are sent again and again: 7.7 s become 12.4.
    assert migration_s(8 * GIB, 10000.0, 500_000_000) == pytest.approx(12.4, abs=0.1)
    assert migration_s(8 * GIB, 10000.0, 1_000_000) == once, "no more than what every VM writes"
    assert migration_s(8 * GIB, 10000.0, 9_000_000_000) < 10 * once, "it is slowed down until it ends"
    still, busy = vm("still", "h1", treatments=(LIVE,)), vm("busy", "h1", treatments=(LIVE,), writes_bytes_per_s=10**9)
    plan = planner.plan(fleet([replace(one, link_mbit=1000.0) for one in hosts(2)], [still, busy]))
    (warning,) = (one for one in plan.warnings if "slowed down" in one)
    assert warning.startswith("busy: ")


# --- what is written


def test_the_document_keeps_to_the_published_schema() -> None:
    schema = json.loads((ROOT / "docs" / "plan.schema.json").read_text())
    known = fleet(hosts(3), [vm("a", "h1", treatments=(LIVE,), max_pause_s=0.1), vm("b", "h2", treatments=(LIVE,))])
    for one in (known, synthetic(hosts=6, vms=60), fleet([], [])):
        written = json.loads(json.dumps(document(planner.plan(one), one, "2026-11-21T02:03:04Z"), allow_nan=False))
        jsonschema.validate(written, schema)


def test_the_fingerprint_is_that_of_what_was_approved() -> None:
    known = fleet(hosts(2), [vm("a", "h1")])
    grown = replace(known, hosts=(replace(known.hosts[0], ram_bytes=99 * GIB), known.hosts[1]))
    moved = replace(known, vms=(replace(known.vms[0], host="h2"),))
    assert fingerprint(known) == fingerprint(grown)
    assert fingerprint(known) != fingerprint(moved)


def test_the_page_and_the_lines_escape_what_strangers_chose() -> None:
    known = fleet(
        hosts(2),
        [vm("<script>\x1b[31m", "h1", treatments=(LIVE,)), vm("<b>", "h2", treatments=(IN_PLACE,), held=("x",))],
    )
    written = document(planner.plan(known), known, "2026-11-21T02:03:04Z")
    assert "<script>" not in page(written)
    assert "<b>:" not in page(written)
    assert "\x1b" not in "".join(lines(written)) + page(written)


def test_the_terminal_shows_names_as_they_are() -> None:
    known = fleet(hosts(2), [vm("[/red]x", "h1", treatments=(LIVE,)), vm("b", "h2")])
    written = document(planner.plan(known), known, "2026-11-21T02:03:04Z")
    console = Console(width=160, file=io.StringIO())
    console.print(drawing(written, exceptions(written)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[/red]x: h1 → h2" in shown
    assert "by rule 1" in shown


def test_an_empty_plan_says_so() -> None:
    known = fleet([replace(host("h1"), done=True)], [])
    told = lines(document(planned(known), known, "2026-11-21T02:03:04Z"))
    done = "h1 done already, by plan_done or its own journal"
    assert told == ["0 hosts in 0 batches", "nothing to upgrade", f"not planned: {done}"]


# --- large fleets


def test_a_hundred_hosts_are_planned_in_seconds() -> None:
    known = synthetic(hosts=100, vms=1500)
    began = time.process_time()
    plan = planner.plan(known)
    made = time.process_time()
    assert checker.check(known, plan) == ()
    checked = time.process_time()
    print(f"100 hosts, 1500 VMs: planned in {made - began:.2f} s, checked in {checked - made:.2f} s of one core")
    assert plan.complete
    assert checked - began < 10.0


@pytest.mark.parametrize("seed", range(3))
def test_plans_for_fleets_of_all_kinds_are_right(seed: int) -> None:
    known = synthetic(hosts=12, vms=150, seed=seed)
    tight = tuple(replace(one, ram_bytes=one.ram_bytes * 2 // 3) for one in known.hosts)
    wandering = tuple(
        replace(one, treatments=(LIVE, IN_PLACE), critical=False, max_pause_s=None) if index % 3 == 0 else one
        for index, one in enumerate(known.vms)
    )
    for hosts_, vms, waves in (
        (known.hosts, known.vms, (1, 3)),
        (tight, known.vms, (4,)),
        (tight, wandering, (1, 2, 6)),
    ):
        one = replace(known, hosts=hosts_, vms=vms, limits=Limits(waves=waves, reserve_hosts=seed % 2))
        assert planned(one) == planner.plan(one), "the same fleet gives the same plan"


# --- what it runs on ---------------------------------------------------------------------------------------------


def test_a_vm_is_moved_to_no_older_qemu_than_its_own() -> None:
    moved = vm("a", "h1", treatments=(LIVE,), qemu=(11, 0, 1))
    hosts_ = [host("h1", qemu=(11, 0, 1)), host("h2", qemu=(10, 0, 6)), host("h3", qemu=(11, 0, 1))]
    plan = planned(fleet(hosts_, [moved], waves=(1,)))
    assert all(move.destination != "h2" for batch in plan.batches for move in batch.evacuations)
    plan = planned(fleet(hosts_[:2], [moved], waves=(1,)))
    assert "1 has QEMU 10.0.6, older than the 11.0.1 that the VM runs on" in why_out(plan, "h1")
    # Nobody knows what is installed there.
    assert planned(fleet([hosts_[0], host("h2")], [moved], waves=(1,))).complete


# --- where the RAM is -----------------------------------------------------------------------------------------------


def test_a_vm_of_the_pool_is_moved_to_another_pool_only() -> None:
    moved = vm("a", "h1", treatments=(LIVE,), pooled=True)
    plan = planned(fleet([*pools("h1", "h3"), host("h2")], [moved], waves=(1,)))
    assert {move.destination for batch in plan.batches for move in batch.evacuations} == {"h1", "h3"}


def test_a_vm_is_moved_to_a_pool_whose_pages_fit_its_ram_only() -> None:
    home, large = pools("h1"), [replace(one, page_bytes=GIB) for one in pools("h2")]
    for blocks, fits in (((2 * GIB,), True), ((GIB, GIB + (512 << 20)), False)):
        moved = vm("a", "h1", treatments=(LIVE,), pooled=True, ram_blocks=blocks)
        plan = planned(fleet([*home, *large], [moved], waves=(1,)))
        assert plan.complete is fits
    assert "a pool with pages of 1 GiB" in why_out(plan, "h1")


def test_a_vm_that_is_not_in_a_pool_is_not_moved_to_one() -> None:
    anonymous = vm("a", "h1", treatments=(LIVE,))
    plan = planned(fleet([host("h1"), *pools("h2")], [anonymous], waves=(1,)))
    assert "not in a pool" in why_out(plan, "h1")


def test_a_vm_outside_the_pool_takes_nothing_of_it() -> None:
    """Its home has its pool's room for others, before and after it was moved."""
    known = fleet(
        pools("h1", "h2"), [vm("a", "h1", ram_bytes=60 * GIB), vm("b", "h1", ram_bytes=60 * GIB, pooled=True)]
    )
    standing = Standing(known)
    assert standing.ram_free == {"h1": 4 * GIB, "h2": 64 * GIB}
    standing.move(known.vms[0], "h2")
    assert standing.ram_free == {"h1": 4 * GIB, "h2": 64 * GIB}
