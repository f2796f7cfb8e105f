# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files and devices that VMs have their disks on: after a jump some come later than libvirt (iSCSI, LVM, NFS, nbd).

A VM whose disks are not there yet waits for them, and the others do not wait for it. What a QEMU itself reaches over a
network has no path here; it waits for that in its own start.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, Mapping, Sequence, Tuple

from .hypervisor import Domain
from .journal import Journal

LOOK_S = 0.1
# A server that does not answer keeps whoever looks for its files, for ever.
LOOK_LIMIT_S = 2.0
DEVICES = Path("/sys/dev/block")
Vm = Mapping[str, Any]


def of(vm: Domain) -> Tuple[str, ...]:
    """Paths of what a running VM's disks are on, also what they stand on, as far as they are there."""
    # Not needed where VMs wait for its imports.
    from .domain import disk_files

    return tuple(sorted(path for path in disk_files(vm.xml()) if path.startswith("/") and _is_there(path)))


class Storage:
    """One wait for the disks of all VMs of a host, of ``limit_s`` seconds at most from its making. None without a jump.

    VMs are records of the journal, with their paths in ``disks``.
    """

    def __init__(self, journal: Journal, limit_s: float) -> None:
        jumped = bool(journal.view["boot_id"]["to"])
        self._limit_s = limit_s if jumped else 0.0
        self._until = time.monotonic() + self._limit_s

    def as_they_come(self, vms: Sequence[Vm], tell: Callable[[str], None]) -> Iterator[List[Vm]]:
        """Those whose disks are there, in the order given; then those whose disks have come since; at last the others.

        ``tell``: what people should know meanwhile.
        """
        there, late = self.sorted_out(vms)
        if late:
            names = ", ".join(vm["name"] for vm in late)
            tell(f"what the disks of {names} are on is not there yet, and is waited for")
        yield there
        while late:
            there, late = self.sorted_out(late)
            if there:
                yield there
            elif time.monotonic() > self._until:
                for missing in filter(None, map(self.wait_for, late)):
                    tell(missing)
                yield late
                return
            time.sleep(LOOK_S)

    def sorted_out(self, vms: Sequence[Vm]) -> Tuple[List[Vm], List[Vm]]:
        """Those whose disks are there, and the others, each in the order given. Takes LOOK_LIMIT_S at most."""
        there: List[Vm] = []
        _beside(lambda: there.extend(vm for vm in vms if not lacking(vm)), LOOK_LIMIT_S)
        found = [vm["uuid"] for vm in tuple(there)]
        return [vm for vm in vms if vm["uuid"] in found], [vm for vm in vms if vm["uuid"] not in found]

    def wait_for(self, vm: Vm) -> str:
        """Return when its disks are there, or the time is over: then what is missing, a sentence. libvirt judges."""
        while missing := self._missing(vm):
            if time.monotonic() > self._until:
                after = f", still after {self._limit_s:.0f} s" if self._limit_s else ""
                return f"VM {vm['name']}: what its disks are on is missing{after}: {', '.join(missing)}"
            time.sleep(LOOK_S)
        return ""

    def _missing(self, vm: Vm) -> Sequence[str]:
        found: List[Sequence[str]] = []
        _beside(lambda: found.append(lacking(vm)), LOOK_LIMIT_S)
        return found[0] if found else vm["disks"]


def lacking(vm: Vm) -> Sequence[str]:
    """What of its disks is not there. Hangs where a server does not answer."""
    return [path for path in vm.get("disks", ()) if not _is_there(path)]


def _is_there(path: str) -> bool:
    """A device that is not connected to anything (nbd, loop) has a name, and no size."""
    try:
        found = os.stat(path)
        if not stat.S_ISBLK(found.st_mode):
            return True
        number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        return int((DEVICES / number / "size").read_text()) > 0
    except (OSError, ValueError):
        return False


def _beside(work: Callable[[], None], limit_s: float) -> None:
    """Run it; leave it alone when it takes longer."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit_s)
