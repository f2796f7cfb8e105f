# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When to stop a VM for the last part of its live migration: at a good moment, instead of going round and round.

QEMU sends RAM in rounds, each with what the guest wrote during the one before, and stops the guest when it expects to
send the rest within the pause that is allowed ("max downtime"). A guest that writes faster never gets there. So the
expected pause is watched: while it becomes smaller, waiting pays; when it does not any more, the guest is stopped at
its next local minimum (the smart stop-and-copy of CloudNet, VEE 2011; KubeVirt's VEP 248), if that is within the limit.

Pure functions over samples of libvirt's job statistics; whoever acts is ``evacuation``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Mapping, Optional, Sequence

# An improvement smaller than this is none (VEP 248 takes 4 % as well).
WORTH_WAITING = 0.04
# A minimum comes again, though hardly to the byte; each time it does not, the moment is let a bit less good.
CLOSE_TO_BEST = 1.04
RELAXED = 1.5
# QEMU's auto-converge (cpu-throttle) goes up to this; until then a guest that writes too fast is made slower.
FULL_THROTTLE_PERCENT = 99
# What is expected changes once in each round, and a round of a large VM may take minutes.
ROUNDS_WITHOUT_IMPROVEMENT = 3
# Rounds before the first word of the rule: the first one sends all RAM and says nothing about the guest.
FIRST_ROUND_TO_JUDGE = 2


@dataclass(frozen=True)
class Sample:
    """One look at a migration. ``round`` counts from 1 while RAM is sent, 0 before (disks go first).

    ``expected_pause_s``: how long the guest would stand still if it were stopped at the beginning of this round, 0 when
    QEMU does not know yet. ``throttle_percent``: by how much auto-converge slows the guest down. ``sent_bytes``: of
    disks and RAM, pages that were sent again included, so it grows as long as anybody takes them.
    """

    at_s: float
    round: int = 0
    expected_pause_s: float = 0.0
    ram_total_bytes: int = 0
    ram_left_bytes: int = 0
    disk_total_bytes: int = 0
    disk_left_bytes: int = 0
    bytes_per_s: float = 0.0
    dirty_bytes_per_s: float = 0.0
    throttle_percent: int = 0
    sent_bytes: int = 0

    @property
    def moved_percent(self) -> float:
        """How much of disks and RAM is at the destination, by what is known now; falls when a new round begins."""
        total = self.ram_total_bytes + self.disk_total_bytes
        return 100.0 * (1 - (self.ram_left_bytes + self.disk_left_bytes) / total) if total else 0.0


@dataclass(frozen=True)
class Bounds:
    """``wanted_pause_s``: what QEMU aims at by itself. ``longest_pause_s``: what the VM can bear.

    ``stall_s``: without improvement for that long, and for some rounds, waiting is over.
    """

    wanted_pause_s: float = 0.3
    longest_pause_s: float = 2.0
    stall_s: float = 20.0


class Act(Enum):
    """What to do now."""

    WAIT = "wait"
    ALLOW = "allow a longer pause"
    HOPELESS = "it writes faster than it can be sent"


@dataclass(frozen=True)
class Advice:
    """``pause_s``: the pause to allow, with ``ALLOW``; the best one that was seen, with ``HOPELESS``."""

    act: Act
    pause_s: float = 0.0


def read(stats: Mapping[str, Any], at_s: float) -> Sample:
    """A sample from libvirt's job statistics (virDomainGetJobStats), whose times are ms, and dirty rates pages/s."""

    def number(name: str) -> int:
        return int(stats.get(name) or 0)

    return Sample(
        at_s=at_s,
        round=number("memory_iteration"),
        expected_pause_s=number("downtime") / 1000,
        ram_total_bytes=number("memory_total"),
        ram_left_bytes=number("memory_remaining"),
        disk_total_bytes=number("disk_total"),
        disk_left_bytes=number("disk_remaining"),
        bytes_per_s=float(number("memory_bps") or number("disk_bps")),
        dirty_bytes_per_s=float(number("memory_dirty_rate") * (number("memory_page_size") or 4096)),
        throttle_percent=number("auto_converge_throttle"),
        sent_bytes=number("memory_processed") + number("disk_processed"),
    )


def advise(samples: Sequence[Sample], bounds: Bounds, allowed_s: float, allowed_at_s: Optional[float] = None) -> Advice:
    """What to do after the newest of ``samples``.

    ``allowed_s`` is the pause that QEMU was allowed last, ``allowed_at_s`` when that was done because of an advice.
    """
    judged = [one for one in samples if one.round >= FIRST_ROUND_TO_JUDGE and one.expected_pause_s > 0]
    if not judged or judged[-1].expected_pause_s <= allowed_s:
        return Advice(Act.WAIT)
    turn = max(last_improvement(judged), _since(judged, allowed_at_s), key=lambda one: one.at_s)
    if not _waited(turn, judged[-1], bounds):
        return Advice(Act.WAIT)
    best = best_pause(judged)
    if best > bounds.longest_pause_s or allowed_s >= bounds.longest_pause_s:
        return Advice(Act.WAIT if _still_slowing(judged) else Act.HOPELESS, best)
    relaxed = allowed_s * RELAXED if allowed_at_s is not None else 0.0
    return Advice(Act.ALLOW, min(max(best * CLOSE_TO_BEST, relaxed), bounds.longest_pause_s))


def silent_for_s(samples: Sequence[Sample]) -> float:
    """For how long nothing was sent, by the newest of ``samples``; 0 without any."""
    if not samples:
        return 0.0
    newest = samples[-1]
    same = next((one for one in reversed(samples) if one.sent_bytes != newest.sent_bytes), None)
    return newest.at_s - (same.at_s if same else samples[0].at_s)


def best_pause(samples: Sequence[Sample]) -> float:
    """The smallest pause that was ever expected, in seconds."""
    return min(one.expected_pause_s for one in samples)


def last_improvement(samples: Sequence[Sample]) -> Sample:
    """The sample at which the expected pause last became smaller by more than a trifle."""
    best = samples[0]
    for one in samples[1:]:
        if one.expected_pause_s < best.expected_pause_s * (1 - WORTH_WAITING):
            best = one
    return best


def _since(samples: Sequence[Sample], at_s: Optional[float]) -> Sample:
    """The sample at which something was done, the first one if nothing was."""
    before = [one for one in samples if at_s is not None and one.at_s <= at_s]
    return before[-1] if before else samples[0]


def _waited(since: Sample, now: Sample, bounds: Bounds) -> bool:
    return now.at_s - since.at_s >= bounds.stall_s and now.round - since.round >= ROUNDS_WITHOUT_IMPROVEMENT


def _still_slowing(samples: Sequence[Sample]) -> bool:
    """Whether auto-converge slowed the guest down a bit more within the last rounds, and can go on."""
    now = samples[-1]
    earlier = next(one for one in samples if one.round >= now.round - ROUNDS_WITHOUT_IMPROVEMENT)
    return earlier.throttle_percent < now.throttle_percent < FULL_THROTTLE_PERCENT
