# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The time that VMs may be kept from running before the jump, enforced on the host."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from typing import Callable, Iterator

from .errors import HoldfastError, VmError
from .hypervisor import Hypervisor, connect

# After the saves were cancelled, everything should return at once. A libvirt that does not answer even then must not
# keep the VMs: the agent ends itself, and its unit calls ``recover``.
GRACE_S = 30.0


@contextmanager
def enforced(limit_s: float) -> Iterator[Callable[[], float]]:
    """Cancel every save when the block takes longer than ``limit_s``. Raises HoldfastError at its end then.

    Yields a function that says how much is left, in seconds, 0 at least.
    """
    expired, end = threading.Event(), time.monotonic() + limit_s

    def expire() -> None:
        expired.set()
        last.start()
        with suppress(HoldfastError), connect() as other:
            _cancel_jobs(other)

    first = threading.Timer(limit_s, expire)
    last = threading.Timer(GRACE_S, lambda: os.kill(os.getpid(), signal.SIGKILL))
    first.daemon = last.daemon = True
    first.start()
    try:
        yield lambda: max(0.0, end - time.monotonic())
    finally:
        first.cancel()
        last.cancel()
    if expired.is_set():
        raise HoldfastError(f"suspending took longer than its deadline of {limit_s:.0f} s", "raise deadline_s")


def _cancel_jobs(hypervisor: Hypervisor) -> None:
    for domain in hypervisor.running():
        with suppress(VmError):
            if domain.job():
                domain.cancel_job()
