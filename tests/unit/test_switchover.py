# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM is stopped for the last part of its migration at a good moment, or not at all."""

from __future__ import annotations

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import switchover
from ansible_collections.holdfast.kvm.plugins.module_utils._core.switchover import Act, Bounds, Sample

BOUNDS = Bounds(wanted_pause_s=0.3, longest_pause_s=2.0, stall_s=20.0)


def rounds(*pauses: float, seconds: float = 10.0, throttle: tuple[int, ...] = ()) -> list[Sample]:
    """One sample in each round, the first of which sends all RAM."""
    slowed = [*throttle, *[0] * len(pauses)]
    return [
        Sample(number * seconds, round=number + 1, expected_pause_s=pause, throttle_percent=slowed[number])
        for number, pause in enumerate(pauses)
    ]


def advise(samples: list[Sample], allowed_s: float = 0.3, allowed_at_s: float | None = None) -> switchover.Advice:
    return switchover.advise(samples, BOUNDS, allowed_s, allowed_at_s)


def test_nothing_is_known_before_the_first_round_is_over() -> None:
    assert advise([]).act is Act.WAIT
    assert advise([Sample(1000.0, round=0)]).act is Act.WAIT
    assert advise([Sample(float(second), round=1, expected_pause_s=9.0) for second in range(100)]).act is Act.WAIT


def test_as_long_as_the_pause_becomes_shorter_waiting_pays() -> None:
    assert advise(rounds(9, 8, 7, 6, 5, 4, 3, 2.5, 2.0, 1.7, 1.4)).act is Act.WAIT


def test_what_is_allowed_already_is_left_to_qemu() -> None:
    assert advise(rounds(9, 0.5, 0.5, 0.5, 0.5, 0.29)).act is Act.WAIT


def test_without_improvement_it_is_stopped_at_the_next_local_minimum() -> None:
    advice = advise(rounds(9, 1.0, 1.2, 1.1, 1.3))
    assert advice.act is Act.ALLOW
    assert advice.pause_s == pytest.approx(1.0 * switchover.CLOSE_TO_BEST)


def test_a_trifle_is_no_improvement() -> None:
    assert advise(rounds(9, 1.0, 0.99, 0.98, 0.97)).act is Act.ALLOW


def test_a_slow_round_is_no_lack_of_improvement() -> None:
    """A round of a large VM takes minutes, and says something once."""
    slow = [Sample(float(second), round=2, expected_pause_s=1.0) for second in range(300)]
    assert advise(slow).act is Act.WAIT


def test_a_fast_round_is_no_proof_either() -> None:
    assert advise(rounds(9, 1.0, 1.2, 1.1, 1.3, 1.2, 1.1, seconds=0.5)).act is Act.WAIT


def test_a_minimum_that_does_not_come_again_is_relaxed_step_by_step_to_the_limit() -> None:
    seen = rounds(9, 1.0, *[1.5] * 20)
    first = advise(seen[:6])
    second = advise(seen[:12], first.pause_s, seen[5].at_s)
    assert second.act is Act.WAIT or second.pause_s > first.pause_s
    later = advise(rounds(9, 1.0, *[1.9] * 20), 1.04, 60.0)
    assert later == switchover.Advice(Act.ALLOW, 1.04 * switchover.RELAXED)
    assert advise(rounds(9, 1.0, *[1.9] * 20), 1.56, 60.0).pause_s == BOUNDS.longest_pause_s


def test_what_was_just_allowed_gets_its_time() -> None:
    seen = rounds(9, 1.0, 1.5, 1.5, 1.5, 1.5, 1.5)
    assert advise(seen, 1.04, seen[-2].at_s).act is Act.WAIT


def test_a_vm_that_writes_faster_than_it_can_be_sent_is_hopeless() -> None:
    assert advise(rounds(9, 5.0, 5.1, 5.2, 5.1)) == switchover.Advice(Act.HOPELESS, 5.0)
    assert advise(rounds(9, 1.9, *[2.5] * 9), BOUNDS.longest_pause_s, 20.0).act is Act.HOPELESS


def test_as_long_as_the_guest_is_being_slowed_down_there_is_hope() -> None:
    writing = (9.0, 5.0, 5.1, 5.2, 5.1)
    assert advise(rounds(*writing, throttle=(0, 0, 20, 30, 40))).act is Act.WAIT
    assert advise(rounds(*writing, throttle=(0, 0, 0, 0, 99))).act is Act.HOPELESS
    assert advise(rounds(*writing, throttle=(0, 40, 40, 40, 40))).act is Act.HOPELESS


def test_libvirts_figures_are_read_in_their_units() -> None:
    sample = switchover.read(
        {
            "downtime": 300,
            "memory_iteration": 3,
            "memory_total": 1000,
            "memory_remaining": 250,
            "memory_bps": 7,
            "memory_dirty_rate": 2,
            "memory_page_size": 4096,
            "disk_total": 1000,
            "disk_remaining": 250,
            "auto_converge_throttle": 20,
        },
        5.0,
    )
    assert (sample.round, sample.expected_pause_s, sample.throttle_percent) == (3, 0.3, 20)
    assert sample.dirty_bytes_per_s == 8192
    assert sample.moved_percent == 75.0


def test_before_there_are_figures_nothing_is_moved() -> None:
    assert switchover.read({}, 1.0).moved_percent == 0.0


def test_a_migration_is_silent_from_the_last_byte_that_was_taken() -> None:
    sent = [Sample(float(at), sent_bytes=count) for at, count in enumerate((0, 0, 10, 10, 20, 20, 20))]
    assert switchover.silent_for_s([]) == 0.0
    assert switchover.silent_for_s(sent[:2]) == 1.0
    assert switchover.silent_for_s(sent[:5]) == 1.0, "since the look before, at which it was less"
    assert switchover.silent_for_s(sent) == 3.0
