# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM waits for before it goes on after a jump: that somebody hears it."""

from __future__ import annotations

import threading
import time

from . import ways_out
from .errors import VmError
from .hypervisor import Domain
from .journal import Journal


class Network:
    """One wait for all VMs of a host, of ``limit_s`` seconds at most from its making. Without a jump, of none.

    ``insists``: a VM does not go on without its network. For a kernel that can still be left: that it does not get at
    the network is then as good a reason as any. ``missed`` is why it should be left, empty until that is known.
    """

    def __init__(self, journal: Journal, limit_s: float, insists: bool = False) -> None:
        self.missed = ""
        self._telling = threading.Lock()
        self._journal = journal
        self._insists = insists and limit_s > 0
        jumped = bool(journal.view["boot_id"]["to"])
        self._until = time.monotonic() + limit_s if jumped else 0.0

    def wait_for(self, domain: Domain) -> None:
        """Return when the network is back, or when the VM goes on without: also when somebody else had it do so.

        Raises VmError when it does not go on.
        """
        names = self._journal.view["before"].get("ways_out", ())
        silent = ways_out.silent(names, self._until, in_vain=domain.goes_on)
        if not silent or domain.goes_on():
            return
        found = "; ".join(map(ways_out.lost, silent))
        if self._insists:
            self.missed = found
            raise VmError(f"VM {domain.name}: {found}")
        with self._telling:
            if found not in self._journal.view["warnings"]:
                self._journal.warn(found)
