# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one door to OR-tools' CP-SAT solver. Without it everything still works, with what the heuristics find.

Always one thread and the same seed: the same fleet gives the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .batches import Batches, Puzzle

try:
    from ortools.sat.python import cp_model
except ImportError:  # an extra, see "plan" in pyproject.toml
    cp_model = None

NAME = "CP-SAT"


@dataclass(frozen=True)
class Verdict:
    """What the solver found out: batches, or that there are none (``impossible``), or neither within its time."""

    batches: Optional[Batches] = None
    impossible: bool = False


def available() -> bool:
    """Whether OR-tools is installed."""
    return cp_model is not None


def pack(puzzle: Puzzle, count: int, hint: Batches, effort: float) -> Verdict:
    """Whether the puzzle can be solved in ``count`` batches. ``hint`` is a solution in more.

    ``effort`` is CP-SAT's deterministic time, about a second for each unit.
    """
    model = cp_model.CpModel()
    numbers = range(1 if puzzle.first else 0, count)
    put = {(host, number): model.new_bool_var(f"{host}@{number}") for host in puzzle.rest for number in numbers}
    for host in puzzle.rest:
        model.add_exactly_one(put[host, number] for number in numbers)
    for number in numbers:
        _limit_batch(model, puzzle, {host: put[host, number] for host in puzzle.rest}, number)
    _break_symmetry(model, puzzle, put, numbers)
    for number, batch in enumerate(hint):
        for host in batch:
            if (host, number) in put:
                model.add_hint(put[host, number], 1)
    solver, status = _solved(model, effort)
    if status == cp_model.INFEASIBLE:
        return Verdict(impossible=True)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Verdict()
    found = [tuple(host for host in puzzle.rest if solver.value(put[host, number])) for number in numbers]
    return Verdict((puzzle.first, *found) if puzzle.first else tuple(found))


def _limit_batch(model: Any, puzzle: Puzzle, put: Mapping[str, Any], number: int) -> None:
    model.add(sum(put.values()) <= puzzle.size(number))
    for limit in puzzle.limits:
        # A host that is over a limit by itself goes alone.
        heavy = [put[host] for host in put if limit.weights.get(host, 0) > limit.bears]
        for host in heavy:
            others = [other for other in put.values() if other is not host]
            model.add(sum(others) == 0).only_enforce_if(host)
        light = {host: limit.weights[host] for host in put if 0 < limit.weights.get(host, 0) <= limit.bears}
        if light:
            model.add(sum(put[host] * weight for host, weight in light.items()) <= limit.bears)


def _break_symmetry(model: Any, puzzle: Puzzle, put: Mapping[Tuple[str, int], Any], numbers: Sequence[int]) -> None:
    """Of batches of one size the one with the earlier hosts comes first: one host after another opens the next one."""
    same = [number for number in numbers if puzzle.size(number) == puzzle.size(numbers[-1])]
    if len(same) < 2 or len(same) != len(numbers):
        return
    for index, host in enumerate(puzzle.rest[: len(same) - 1]):
        for number in same[index + 1 :]:
            model.add(put[host, number] == 0)


def place(
    rooms: Mapping[str, Tuple[int, int]],
    movers: Mapping[str, Tuple[int, int, Mapping[str, int]]],
    exclusive: Sequence[Tuple[Sequence[str], Sequence[str]]],
    effort: float,
) -> Optional[Dict[str, str]]:
    """A host for each VM, or None.

    ``rooms``: free RAM in MiB and free virtual CPUs by host. ``movers``: RAM in MiB, virtual CPUs, and the possible
    hosts with their price, by VM. ``exclusive``: VMs of which each host of the second list takes one at most.
    The sum of prices is kept small, and the RAM that any one host receives.
    """
    model = cp_model.CpModel()
    pairs = [(vm, host) for vm, (_, _, possible) in movers.items() for host in possible]
    put = {(vm, host): model.new_bool_var(f"{vm}@{host}") for vm, host in pairs}
    for vm, (_, _, possible) in movers.items():
        model.add_exactly_one(put[vm, host] for host in possible)
    busiest = model.new_int_var(0, sum(ram for ram, _, _ in movers.values()), "busiest")
    for host, (ram, cpus) in rooms.items():
        coming: List[Tuple[Any, str]] = [(put[vm, host], vm) for vm in movers if (vm, host) in put]
        received = sum(var * movers[vm][0] for var, vm in coming)
        model.add(received <= ram)
        model.add(received <= busiest)
        model.add(sum(var * movers[vm][1] for var, vm in coming) <= cpus)
    for vms, hosts in exclusive:
        for host in hosts:
            model.add_at_most_one(put[vm, host] for vm in vms if (vm, host) in put)
    prices = sum(put[vm, host] * movers[vm][2][host] for vm, host in pairs)
    model.minimize(prices * (1 + sum(ram for ram, _, _ in movers.values())) + busiest)
    solver, status = _solved(model, effort)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return {vm: host for (vm, host), var in put.items() if solver.value(var)}


def _solved(model: Any, effort: float) -> Tuple[Any, Any]:
    solver = cp_model.CpSolver()
    # Counted in steps, not by the clock: a busy machine must not change the plan.
    solver.parameters.max_deterministic_time = effort
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    return solver, solver.solve(model)
