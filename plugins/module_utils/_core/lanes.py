# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on several VMs at a time, begun in a given order."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, List, Sequence, Tuple, TypeVar

Item = TypeVar("Item")


def bounded(wanted: int) -> int:
    """As many lanes as wanted, but not more than CPUs: on one CPU, a VM only waits longer for the one beside it."""
    return max(1, min(wanted, len(os.sched_getaffinity(0))))


def in_order(work: Callable[[Item], None], items: Sequence[Item], lanes: int) -> List[Tuple[Item, Exception]]:
    """Run ``work`` on every item, ``lanes`` at a time, begun in the order given; return what failed, with why."""
    failures: List[Tuple[Item, Exception]] = []

    def guarded(item: Item) -> None:
        try:
            work(item)
        except Exception as exc:  # every VM's failure is reported, none may take the others along
            failures.append((item, exc))

    with ThreadPoolExecutor(max_workers=max(1, lanes)) as pool:
        list(pool.map(guarded, items))
    return failures


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
