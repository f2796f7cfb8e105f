# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checker finds what is wrong with a plan: each plan here was right, and was then broken by hand in one way."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import CpuFacts, Disk, Mount, Treatment
from ansible_collections.holdfast.kvm.plugins.module_utils._plan import checker, planner
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.checker import Rule
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.model import (
    Absence,
    Batch,
    Fleet,
    Group,
    Host,
    LeftOut,
    Limits,
    Move,
    Pauses,
    Plan,
    Switchover,
    Vm,
)

GIB = 1 << 30
CPU = CpuFacts("GenuineIntel", "Xeon", ("avx2", "avx512f"), (), 16)
PAUSES = Pauses(10.0, 15.0, 0.5, 1.0, parallel=2, basis="measured", measured=True)
NFS = Mount("/srv/vms", "nas:/vms")
LIVE = (Treatment.LIVE,)


def host(name: str, domain: str = "", **fields: Any) -> Host:
    usual: dict[str, Any] = {"ram_bytes": 64 * GIB, "cpus": 16, "cpu": CPU, "mounts": (NFS,)}
    return Host(name, pauses=PAUSES, link_mbit=10000.0, domain=domain, **{**usual, **fields})


def vm(name: str, where: str, number: int, **fields: Any) -> Vm:
    disks = (Disk("vda", f"/srv/vms/{name}.qcow2"),)
    return Vm(name, f"uuid-{number}", where, vcpus=4, ram_bytes=8 * GIB, disks=disks, rule="by rule 1", **fields)


# Two racks, and hosts that will not do: another processor, no shared storage, no RAM, another kind, no processors left.
FLEET = Fleet(
    hosts=(
        *(host("a1", "A"), host("a2", "A"), host("b1", "B"), host("b2", "B")),
        *(host("first"), host("spare", done=True)),
        host("old", cpu=CpuFacts("GenuineIntel", "Xeon", ("avx2",), (), 16), done=True),
        host("island", mounts=(), done=True),
        host("full", ram_bytes=GIB, done=True),
        host("busy", cpus=1, done=True),
        host("pool", pool=True, done=True),
        host("stale", qemu=(10, 0, 2), done=True),
    ),
    vms=(
        *(vm("db-1", "a1", 1, group="db"), vm("db-2", "b1", 2, group="db"), vm("db-3", "a2", 3, group="db")),
        vm("core-1", "a1", 4, treatments=LIVE, critical=True, return_home=True, group="core"),
        vm("core-2", "b2", 5, treatments=LIVE, critical=True, group="core"),
        vm("mail", "a1", 6, treatments=LIVE, max_pause_s=5.0, qemu=(10, 0, 6)),
        vm("web", "b2", 7, max_pause_s=60.0),
        vm("lone", "first", 8, treatments=(Treatment.IN_PLACE, Treatment.LIVE), held=(), priority=20),
        vm("core-3", "spare", 9, group="core"),
    ),
    groups=(Group("db", min_available=2), Group("core", anti_affinity=True)),
    limits=Limits(waves=(1,), canaries=("first",), max_per_domain=1, reserve_hosts=1),
    switchover=Switchover(0.3, 0.8, "measured"),
)
GOOD = planner.plan(FLEET)


def batch_of(plan: Plan, name: str) -> int:
    return next(index for index, batch in enumerate(plan.batches) if name in batch.hosts)


def with_batch(plan: Plan, index: int, **changes: Any) -> Plan:
    batches = [replace(batch, **changes) if number == index else batch for number, batch in enumerate(plan.batches)]
    return replace(plan, batches=tuple(batches))


def with_move(plan: Plan, name: str, **changes: Any) -> Plan:
    """The evacuation of one VM, changed."""

    def changed(batch: Batch) -> Batch:
        moves = tuple(replace(move, **changes) if move.vm == name else move for move in batch.evacuations)
        return replace(batch, evacuations=moves)

    return replace(plan, batches=tuple(changed(batch) for batch in plan.batches))


def with_vm(plan: Plan, name: str, **changes: Any) -> Plan:
    return replace(plan, vms=tuple(replace(entry, **changes) if entry.name == name else entry for entry in plan.vms))


def joined(plan: Plan, one: str, other: str) -> Plan:
    """The batches of two hosts as one."""
    first, second = sorted((batch_of(plan, one), batch_of(plan, other)))
    kept, gone = plan.batches[first], plan.batches[second]
    hosts, moves = (*kept.hosts, *gone.hosts), (*kept.evacuations, *gone.evacuations)
    batches = [batch for batch in plan.batches if batch is not gone]
    batches[first] = replace(kept, hosts=hosts, evacuations=moves)
    return replace(plan, batches=tuple(batches))


def swapped(plan: Plan) -> Plan:
    first, second = plan.batches[0].hosts, plan.batches[1].hosts
    return with_batch(with_batch(plan, 0, hosts=second[:1]), 1, hosts=(*first, *second[1:]))


def evacuation(name: str) -> Move:
    return next(move for batch in GOOD.batches for move in batch.evacuations if move.vm == name)


def next_after(name: str) -> str:
    """A host of the batch that follows the one in which a VM is moved."""
    index = next(number for number, batch in enumerate(GOOD.batches) if name in [move.vm for move in batch.evacuations])
    return GOOD.batches[index + 1].hosts[0]


def start_of(name: str) -> float:
    return GOOD.batches[batch_of(GOOD, name)].start_s


BROKEN: list[tuple[str, Rule, Callable[[], Plan]]] = [
    ("a host is forgotten", Rule.HOSTS, lambda: replace(GOOD, batches=GOOD.batches[:-1])),
    ("a host twice", Rule.HOSTS, lambda: replace(GOOD, batches=(*GOOD.batches, GOOD.batches[-1]))),
    ("a host that is done", Rule.HOSTS, lambda: with_batch(GOOD, 0, hosts=("spare",))),
    ("a stranger", Rule.HOSTS, lambda: with_batch(GOOD, 0, hosts=("elsewhere",))),
    (
        "left out without a reason",
        Rule.HOSTS,
        lambda: replace(
            GOOD,
            batches=GOOD.batches[:-1],
            left_out=(*GOOD.left_out, *(LeftOut(name, Absence.DONE, "") for name in GOOD.batches[-1].hosts)),
        ),
    ),
    ("too many at a time", Rule.WAVE, lambda: joined(GOOD, "a1", "b1")),
    ("another host before the canary", Rule.CANARY, lambda: swapped(GOOD)),
    ("two of a rack", Rule.DOMAIN, lambda: joined(GOOD, "a1", "a2")),
    ("two of the group paused", Rule.QUORUM, lambda: joined(GOOD, "a2", "b1")),
    ("not allowed by policy", Rule.TREATMENT, lambda: with_vm(GOOD, "web", treatment=Treatment.RESTART)),
    ("no treatment", Rule.TREATMENT, lambda: replace(GOOD, vms=GOOD.vms[1:])),
    ("a critical VM pauses", Rule.CRITICAL, lambda: with_vm(GOOD, "core-1", treatment=Treatment.IN_PLACE)),
    ("a pause too short to be true", Rule.PAUSE, lambda: with_vm(GOOD, "web", pause_p95_s=1.0)),
    ("a pause over the limit", Rule.PAUSE, lambda: with_vm(GOOD, "mail", pause_p95_s=7.0)),
    ("a VM is left behind", Rule.LEFT_BEHIND, lambda: with_batch(GOOD, batch_of(GOOD, "a1"), evacuations=())),
    ("moved from where it is not", Rule.ORIGIN, lambda: with_move(GOOD, "mail", source="b1")),
    ("to a host of its batch", Rule.DESTINATION, lambda: with_move(GOOD, "mail", destination="a1")),
    ("to a host that is next", Rule.DESTINATION, lambda: with_move(GOOD, "core-2", destination=next_after("core-2"))),
    ("to another kind of processor", Rule.CPU, lambda: with_move(GOOD, "mail", destination="old")),
    ("to an older QEMU", Rule.QEMU, lambda: with_move(GOOD, "mail", destination="stale")),
    ("away from its disks", Rule.STORAGE, lambda: with_move(GOOD, "mail", destination="island")),
    ("to a host with another kind of RAM", Rule.RAM, lambda: with_move(GOOD, "mail", destination="pool")),
    ("to a host without RAM", Rule.RAM, lambda: with_move(GOOD, "mail", destination="full")),
    ("to a host without processors", Rule.VCPUS, lambda: with_move(GOOD, "mail", destination="busy")),
    ("to another of its group", Rule.ANTI_AFFINITY, lambda: with_move(GOOD, "core-1", destination="spare")),
    ("not home again", Rule.HOME, lambda: with_batch(GOOD, batch_of(GOOD, "a1"), returns=())),
    (
        "home, though it should stay",
        Rule.HOME,
        lambda: with_batch(GOOD, batch_of(GOOD, "b2"), returns=(evacuation("core-2"),)),
    ),
    (
        "two at a time on one link",
        Rule.LINK,
        lambda: with_move(with_move(GOOD, "mail", start_s=start_of("a1")), "core-1", start_s=start_of("a1")),
    ),
    ("faster than its link", Rule.TIME, lambda: with_move(GOOD, "mail", seconds=0.1)),
    ("before its batch", Rule.TIME, lambda: with_move(GOOD, "mail", start_s=-100.0)),
    ("an upgrade in no time", Rule.TIME, lambda: with_batch(GOOD, 0, upgrade_s=1.0)),
    ("a batch before the last one ended", Rule.TIME, lambda: with_batch(GOOD, 1, start_s=0.0)),
    ("a total that does not add up", Rule.TIME, lambda: replace(GOOD, seconds=1.0)),
    ("a bound that is no bound", Rule.BOUND, lambda: replace(GOOD, bound=replace(GOOD.bound, batches=99))),
    ("a gap that is hidden", Rule.BOUND, lambda: replace(GOOD, bound=replace(GOOD.bound, batches=1, gap=0.0))),
]


def test_the_plan_was_right_before_it_was_broken() -> None:
    assert checker.check(FLEET, GOOD) == ()
    assert GOOD.complete
    assert {move.vm for batch in GOOD.batches for move in batch.evacuations} == {"core-1", "core-2", "mail"}


@pytest.mark.parametrize(("rule", "broken"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_plan_broken_by_hand_is_found_out(rule: Rule, broken: Callable[[], Plan]) -> None:
    found = checker.check(FLEET, broken())
    assert rule in {violation.rule for violation in found}
    assert rule.value in " ".join(map(str, found))


def crowded(gib: int) -> Fleet:
    """Three hosts of this size, with a VM of 8 GiB on each, and two at a time."""
    hosts = tuple(host(f"h{number}", ram_bytes=gib * GIB) for number in range(3))
    vms = tuple(vm(f"v{number}", f"h{number}", number) for number in range(3))
    return replace(FLEET, hosts=hosts, vms=vms, groups=(), limits=Limits(waves=(2,), reserve_hosts=1))


def test_hosts_upgraded_together_without_a_reserve_are_found_out() -> None:
    plan = planner.plan(crowded(16))
    assert [(len(batch.hosts), batch.reserve_kept) for batch in plan.batches] == [(1, True)] * 3
    broken = checker.check(crowded(16), joined(plan, "h1", "h2"))
    assert Rule.RESERVE in {violation.rule for violation in broken}


def test_a_reserve_that_is_claimed_and_not_there_is_found_out() -> None:
    plan = planner.plan(crowded(12))
    assert [(len(batch.hosts), batch.reserve_kept) for batch in plan.batches] == [(1, False)] * 3
    assert any("no reserve during the upgrade of " in warning for warning in plan.warnings)
    assert not checker.check(crowded(12), plan)
    assert "one at a time" in " ".join(plan.warnings)
    broken = checker.check(crowded(12), with_batch(plan, 0, reserve_kept=True))
    assert [violation.rule for violation in broken] == [Rule.RESERVE]


def test_every_rule_has_a_plan_that_breaks_it() -> None:
    assert {rule for _, rule, _ in BROKEN} | {Rule.RESERVE} == set(Rule)


def test_the_checker_shares_nothing_with_the_planner_but_the_data() -> None:
    tree = ast.parse(Path(str(checker.__file__)).read_text())
    relative = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    assert relative == {"_core.facts", "model"}
