# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on several VMs at a time, begun in a given order."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, List, Optional, Sequence, Tuple, TypeVar

Item = TypeVar("Item")


def bounded(wanted: int) -> int:
    """As many lanes as wanted, but not more than CPUs: on one CPU, a VM only waits longer for the one beside it."""
    return max(1, min(wanted, len(os.sched_getaffinity(0))))


def in_order(
    work: Callable[[Item], None], items: Sequence[Item], lanes: int, limit_s: Optional[float] = None
) -> List[Tuple[Item, Exception]]:
    """Run ``work`` on every item, ``lanes`` at a time, begun in the order given; return what failed, with why.

    One that takes longer than ``limit_s`` gives up its lane: the others do not wait for it, but the end does.
    """
    failures: List[Tuple[Item, Exception]] = []
    free = threading.Semaphore(max(1, lanes))

    def guarded(item: Item, lane: _Lane) -> None:
        try:
            work(item)
        except Exception as exc:  # every VM's failure is reported, none may take the others along
            failures.append((item, exc))
        finally:
            lane.give_up()

    with ThreadPoolExecutor(max_workers=max(1, len(items))) as pool:
        for item in items:
            free.acquire()
            pool.submit(guarded, item, _Lane(free, limit_s))
    return failures


class _Lane:
    """One of those that are ``free``, taken by an item; given up once, at its end or after ``limit_s`` seconds."""

    def __init__(self, free: threading.Semaphore, limit_s: Optional[float]) -> None:
        self._free = free
        self._given_up = threading.Lock()
        self._late = threading.Timer(limit_s or 0.0, self.give_up)
        self._late.daemon = True
        if limit_s:
            self._late.start()

    def give_up(self) -> None:
        self._late.cancel()
        if self._given_up.acquire(blocking=False):
            self._free.release()


def until_failure(
    begin: Callable[[Item], None], finish: Callable[[Item], None], items: Sequence[Item], lanes: int
) -> List[Tuple[Item, Exception]]:
    """Begin items strictly one after the other, as lanes become free; finish them side by side.

    Nothing new is begun once something failed. Returns what failed, with why.
    """
    failures: List[Tuple[Item, Exception]] = []
    free = threading.Semaphore(max(1, lanes))

    def guarded(step: Callable[[Item], None], item: Item) -> bool:
        try:
            step(item)
        except Exception as exc:
            failures.append((item, exc))
            return False
        return True

    def finished(item: Item) -> None:
        try:
            guarded(finish, item)
        finally:
            free.release()

    with ThreadPoolExecutor(max_workers=max(1, lanes)) as pool:
        for item in items:
            free.acquire()
            if failures or not guarded(begin, item):
                break
            pool.submit(finished, item)
    return failures
