# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a fleet to a plan: choose treatments, put hosts into batches, go through them. Pure, one plan for one fleet."""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence, Tuple

from . import batches as packing
from . import solver
from .batches import Batches, Puzzle
from .choice import Choices
from .menu import Menus
from .model import Bound, Fleet, Plan
from .puzzle import at_stake, puzzle
from .reach import Reach
from .record import Record
from .walk import BeginAgain, Walk

# How much the solver may do for one question about batches, in its own measure (about seconds), and how many there are.
EFFORT, QUESTIONS = 0.5, 6


def plan(fleet: Fleet) -> Plan:
    """The plan for a fleet. Raises nothing: what cannot be done is left out of the batches, with reasons."""
    reach = Reach(fleet.hosts, fleet.limits)
    choices = Choices(fleet, Menus(fleet, reach))
    while True:
        question = puzzle(fleet, choices)
        packed, bound = _packed(question, choices)
        try:
            batches, places = Walk(fleet, choices, reach, question, packed).run()
        except BeginAgain:
            # One more host is left out each time, so this ends.
            continue
        bound = bound if puzzle(fleet, choices) == question else _counted(puzzle(fleet, choices))
        return Record(fleet, choices, reach).plan(batches, places, _measured(bound, len(batches), len(packed)))


def _packed(question: Puzzle, choices: Choices) -> Tuple[Batches, Bound]:
    """Batches, and the proven least number of them: by counting, and by the solver where that leaves a gap."""
    best, bound = packing.first_fit(question), _counted(question)
    least = bound.batches
    for count in range(least, min(len(best), least + QUESTIONS)):
        if not solver.available():
            break
        verdict = solver.pack(question, count, best, EFFORT)
        if verdict.batches is not None:
            best, bound = verdict.batches, replace(bound, solver=solver.NAME)
            break
        if not verdict.impossible:
            break
        together = bound.limited_by if count > least else f"several limits together, above all {bound.limited_by}"
        bound = Bound(count + 1, 0.0, together, solver.NAME)
    return _least_first(question, best, choices), bound


def _counted(question: Puzzle) -> Bound:
    least, limited_by = packing.lower_bound(question)
    return Bound(least, 0.0, limited_by, "counting")


def _measured(bound: Bound, count: int, packed: int) -> Bound:
    """The bound against the number of batches that there are in the end."""
    gap = round((count - bound.batches) / count, 3) if count else 0.0
    if gap and count > packed:
        return replace(bound, gap=gap, limited_by="room for the VMs that are moved away")
    return replace(bound, gap=gap)


def _least_first(question: Puzzle, batches: Batches, choices: Choices) -> Batches:
    """Where any order will do: the batches with the least at stake first."""
    fixed = 1 if question.first else 0
    if len({question.size(number) for number in range(fixed, len(batches))}) > 1:
        return batches

    def stake(batch: Sequence[str]) -> Tuple[int, int, str]:
        each = [at_stake(choices, host) for host in batch]
        return sum(entry[1] for entry in each), sum(entry[2] for entry in each), min(batch, default="")

    return (*batches[:fixed], *sorted((batch for batch in batches[fixed:] if batch), key=stake))
