# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lanes: as many as wanted, as many as there are CPUs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import lanes


@pytest.mark.parametrize(("wanted", "cpus", "expected"), [(2, 8, 2), (8, 2, 2), (2, 1, 1), (0, 4, 1)])
def test_there_are_never_more_lanes_than_cpus(
    monkeypatch: pytest.MonkeyPatch, wanted: int, cpus: int, expected: int
) -> None:
    monkeypatch.setattr(lanes.os, "sched_getaffinity", lambda _pid: set(range(cpus)))
    assert lanes.bounded(wanted) == expected


@pytest.fixture
def _the_first_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[object] = []

    class Timer:
        def __init__(self, _limit_s: float, act: Callable[[], None]) -> None:
            timers.append(self)
            self.act = act

        def start(self) -> None:
            if self is timers[0]:
                self.act()

        def cancel(self) -> None:
            """It is over."""

    monkeypatch.setattr(lanes.threading, "Timer", Timer)


@pytest.mark.usefixtures("_the_first_is_late")
def test_others_do_not_wait_for_one_that_takes_too_long() -> None:
    others_done = threading.Event()
    done: list[str] = []

    def work(item: str) -> None:
        assert item != "hangs" or others_done.wait(20)
        done.append(item)
        if item == "c":
            others_done.set()

    assert lanes.in_order(work, ["hangs", "a", "b", "c"], 1, limit_s=600) == []
    assert done == ["a", "b", "c", "hangs"]


@pytest.mark.usefixtures("_the_first_is_late")
def test_when_that_one_is_over_there_are_as_many_lanes_as_before() -> None:
    second_begun, first_over = threading.Event(), threading.Event()
    at_work: set[int] = set()
    beside: list[set[int]] = []

    def work(item: int) -> None:
        at_work.add(item)
        if item == 0:
            assert second_begun.wait(20)
        elif item == 1:
            second_begun.set()
            assert first_over.wait(20)
        else:
            time.sleep(0.01)
            beside.append(at_work - {item})
        at_work.remove(item)
        if item == 0:
            first_over.set()

    assert lanes.in_order(work, list(range(12)), 1, limit_s=600) == []
    assert beside == [set()] * 10
