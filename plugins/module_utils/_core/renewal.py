# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every VM of a host into a new QEMU, a few at a time, while its kernel runs on: a pause of its own for each VM."""

from __future__ import annotations

from . import attach, deadline, lanes
from . import suspend as suspending
from .errors import HoldfastError
from .hypervisor import Hypervisor
from .journal import Journal
from .pool import Pool
from .request import Request
from .restore import restore


def renew(hypervisor: Hypervisor, pool: Pool, journal: Journal, wanted: Request) -> None:
    """Suspend and restore each VM, the least important first: it finds out about the new QEMU for the others.

    Raises HoldfastError at the first failure; no further VM was paused then. Those that were renewed stay so, and
    ``recover`` brings the one that failed back.
    """
    attach.own(pool, journal)
    journal.record("restoring")

    def renew_one(uuid: str) -> None:
        with deadline.enforced(wanted.deadline_s):
            suspending.save(hypervisor, pool, journal, uuid, wanted.verify_ram)
        restore(hypervisor, pool, journal, uuid, wanted.deadline_s)

    order = [vm.uuid for vm in sorted(wanted.staying, key=lambda vm: vm.priority)]
    with journal.phase("renew"):
        failures = lanes.until_failure(
            lambda uuid: suspending.pause(hypervisor, pool, journal, uuid),
            renew_one,
            order,
            lanes.bounded(wanted.parallel),
        )
    if failures:
        raise HoldfastError(f"a VM could not be renewed: {failures[0][1]}")
