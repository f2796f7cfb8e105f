# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts are upgraded together: as few batches as the limits allow.

A limit on a batch is a weight for each host and what a batch bears: paused members of a group, hosts of a fault domain,
spare RAM that is gone meanwhile. It is vector packing with waves for bins; first-fit finds batches, simple counting
proves that fewer are not possible, and where the two differ the solver decides.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

# First-fit is tried in this many orders of the hosts, always the same: a re-plan does not reshuffle a fleet.
TRIES = 40


@dataclass(frozen=True)
class Limit:
    """What a batch bears of one thing. ``text`` is a clause for people: "group db has 3 paused members at most"."""

    text: str
    bears: int
    weights: Mapping[str, int]


@dataclass(frozen=True)
class Puzzle:
    """Hosts to put into batches. ``first`` is the first batch, when it is fixed."""

    hosts: Tuple[str, ...]
    waves: Tuple[int, ...]
    limits: Tuple[Limit, ...]
    first: Tuple[str, ...] = ()

    def size(self, number: int) -> int:
        """How many hosts batch ``number`` may have, from 0."""
        return self.waves[min(number, len(self.waves) - 1)]

    @property
    def rest(self) -> Tuple[str, ...]:
        return tuple(host for host in self.hosts if host not in self.first)


Batches = Tuple[Tuple[str, ...], ...]


def fits(puzzle: Puzzle, batch: Sequence[str], number: int) -> bool:
    """Whether these hosts may be batch ``number``. A host alone always may: it has to be upgraded some time."""
    if len(batch) > puzzle.size(number):
        return False
    if len(batch) < 2:
        return True
    return all(sum(limit.weights.get(host, 0) for host in batch) <= limit.bears for limit in puzzle.limits)


def first_fit(puzzle: Puzzle) -> Batches:
    """Batches by first-fit, the best of several orders: those that the limits hit hardest first, then chance."""
    orders = [sorted(puzzle.rest, key=lambda host: (-_tightness(puzzle, host), host))]
    dice = random.Random(0)
    for _ in range(TRIES):
        noise = {host: dice.random() for host in puzzle.rest}
        orders.append(sorted(puzzle.rest, key=lambda host: -_tightness(puzzle, host) - noise[host] / 2))
    found: Optional[Batches] = None
    least = lower_bound(puzzle)[0]
    for order in orders:
        batches = _packed(puzzle, order)
        if found is None or len(batches) < len(found):
            found = batches
        if len(found) <= least:
            break
    return found or ()


def lower_bound(puzzle: Puzzle) -> Tuple[int, str]:
    """A number of batches below which it cannot be done, and what says so."""
    if not puzzle.hosts:
        return 0, "nothing to upgrade"
    bounds = [(_by_size(puzzle), f"the waves, {', '.join(map(str, puzzle.waves))} hosts at a time")]
    bounds += [(_by_limit(puzzle, limit), limit.text) for limit in puzzle.limits]
    return max(bounds, key=lambda bound: bound[0])


def _packed(puzzle: Puzzle, order: Sequence[str]) -> Batches:
    batches: List[List[str]] = [list(puzzle.first)] if puzzle.first else []
    room = _Room(puzzle)
    for host in puzzle.first:
        room.take(0, host)
    for host in order:
        number = next((number for number in range(len(batches)) if room.takes(number, batches[number], host)), None)
        if number is None:
            number = len(batches)
            batches.append([])
        batches[number].append(host)
        room.take(number, host)
    return tuple(tuple(batch) for batch in batches)


class _Room:
    """What each batch already bears, summed up as hosts come in."""

    def __init__(self, puzzle: Puzzle) -> None:
        self._puzzle = puzzle
        self._borne: Dict[int, List[int]] = {}

    def takes(self, number: int, batch: Sequence[str], host: str) -> bool:
        if number == 0 and self._puzzle.first:
            return False
        if len(batch) >= self._puzzle.size(number):
            return False
        borne = self._borne[number]
        limits = zip(self._puzzle.limits, borne)
        return all(limit.weights.get(host, 0) + used <= limit.bears for limit, used in limits)

    def take(self, number: int, host: str) -> None:
        borne = self._borne.setdefault(number, [0] * len(self._puzzle.limits))
        for index, limit in enumerate(self._puzzle.limits):
            borne[index] += limit.weights.get(host, 0)


def _tightness(puzzle: Puzzle, host: str) -> float:
    """How much of what a batch bears this host takes by itself; the worst of all limits counts."""
    return max((limit.weights.get(host, 0) / max(limit.bears, 1) for limit in puzzle.limits), default=0.0)


def _by_size(puzzle: Puzzle) -> int:
    left = len(puzzle.rest)
    number = 1 if puzzle.first else 0
    while left > 0:
        left -= puzzle.size(number)
        number += 1
    return number


def _by_limit(puzzle: Puzzle, limit: Limit) -> int:
    """Hosts that are over the limit go alone; the others by their sum, and by how many are more than half of it."""
    weights = [limit.weights.get(host, 0) for host in puzzle.rest]
    light = [weight for weight in weights if 0 < weight <= limit.bears]
    together = -(-sum(light) // limit.bears) if light else 0
    halves = sum(1 for weight in light if 2 * weight > limit.bears)
    alone = sum(1 for weight in weights if weight > limit.bears)
    return (1 if puzzle.first else 0) + alone + max(together, halves)
