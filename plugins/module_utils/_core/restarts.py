# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs that cannot be kept, and whose policy lets them be off for the upgrade: they are owed a start.

A guest is shut down and starts again; or it was saved to disk, and goes on (cold).

That is on record before a guest is asked, so that whatever ends in between leaves nobody off by mistake.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any, Dict, List, Optional, Sequence

from . import kexec, lanes, monitor
from .cmdline import is_crash_kernel
from .config import Config
from .errors import HoldfastError, VmError
from .hypervisor import OFF, Domain, Hypervisor, connect_patiently
from .journal import LEAVING, OWED, STORED, Journal
from .request import Request
from .storage import Storage

LOOK_S = 0.5
AWAY = "was saved or moved away by somebody else"
UNSEEN = "went off, nobody knows why, and may have been moved away"
# Guests shut down side by side; each is little more than a wait.
LANES = 16


def shut_down(hypervisor: Hypervisor, journal: Journal, wanted: Request) -> None:
    """Have the guests shut down, all at once, while the other VMs run.

    Raises HoldfastError when one does not within its time. It is not forced to: its disks are its owner's.
    """
    if not wanted.restarting:
        return
    uuids = [vm.uuid for vm in wanted.restarting]
    with journal.phase("shutdown"):
        failures = lanes.in_order(lambda uuid: _shut_down(hypervisor, journal, uuid, wanted.shutdown_s), uuids, LANES)
    if failures:
        raise HoldfastError(f"a VM could not be shut down: {failures[0][1]}")


def start(config: Config, journal: Journal, wanted: Request) -> None:
    """Start or load those that are off, the most important first; what does not start is on record, and stays owed.

    Last of all: a VM that was started is one more reason not to go back to another kernel.
    """
    owed = [vm for vm in journal.vms if vm["state"] in OWED]
    if not owed:
        return
    with ExitStack() as stack:
        hypervisor = stack.enter_context(connect_patiently())
        if is_crash_kernel(kexec.running_cmdline()):
            owed = _bearable(hypervisor, journal, owed)
            if not owed:
                return
        if journal.state in LEAVING:  # and libvirt's hook lets nothing start
            journal.record("restoring")
        stack.enter_context(journal.phase("start"))
        storage = Storage(journal, wanted.storage_s)
        for vm in sorted(owed, key=lambda vm: -vm["priority"]):
            failure = _failure_of(config, hypervisor, journal, vm, wanted, storage)
            if failure and vm["state"] in OWED and not hypervisor.answers():
                # Its daemon was restarted: that shall cost this VM nothing, nor those that come after it.
                hypervisor = stack.enter_context(connect_patiently())
                failure = _failure_of(config, hypervisor, journal, vm, wanted, storage)
            if failure:
                _note_failure(journal, vm, failure)


def _failure_of(
    config: Config, hypervisor: Hypervisor, journal: Journal, vm: Dict[str, Any], wanted: Request, storage: Storage
) -> Optional[Exception]:
    """Bring one VM back; why not, if not. A disk that fails among the reasons: none may take the other VMs along."""
    try:
        if missing := storage.wait_for(vm):
            journal.warn(missing)
        if vm["state"] in STORED:
            _load(config, hypervisor, journal, vm, wanted.deadline_s)
        else:
            _start(hypervisor, journal, vm, wanted.shutdown_s)
    except Exception as exc:
        return exc
    return None


def _bearable(hypervisor: Hypervisor, journal: Journal, owed: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Those that a crash kernel has room for: they were saved to disk, and get their RAM in the pool. Notes the others.

    What was shut down is started when it is left.
    """
    from . import cold

    on_disk = [vm for vm in owed if vm["state"] in STORED]
    back = [vm for vm in on_disk if cold.goes_into_pool(hypervisor, vm["uuid"])]
    why = "this crash kernel has no RAM to spare"
    # To give up one that is on disk would be to delete its RAM.
    if kept := ", ".join(vm["name"] for vm in on_disk if vm not in back):
        journal.warn(f"{kept}: kept on disk, for {why}; to bring it back, end or move what runs here, and reboot")
    if others := ", ".join(vm["name"] for vm in owed if vm not in on_disk):
        journal.warn(f"{others}: not started, for {why}; give up, and start when it is left")
    return back


def _shut_down(hypervisor: Hypervisor, journal: Journal, uuid: str, limit_s: float) -> None:
    domain = hypervisor.domain(uuid)
    journal.record("vm_shutting_down", uuid=uuid, asked_at=time.time())
    domain.shutdown()
    if not _goes_off(domain, limit_s):
        hint = "see what its guest does; a longer live_update_shutdown_s gives it more time"
        raise VmError(f"VM {domain.name} still runs {limit_s:.0f} s after it was asked to shut down", hint)
    if domain.went_away():
        _note_away(journal, uuid, AWAY)
        raise VmError(f"VM {domain.name} {AWAY} while it was to shut down", "run the upgrade again")
    journal.record("vm_shut_down", uuid=uuid, moment=time.time())


def _note_away(journal: Journal, uuid: str, why: str) -> None:
    journal.record("vm_lost", uuid=uuid, error=f"it {why}; it is not started here by itself", may_restart=False)


def _start(hypervisor: Hypervisor, journal: Journal, vm: Dict[str, Any], shutdown_s: float) -> None:
    uuid = vm["uuid"]
    domain = hypervisor.domain(uuid)
    # One that was asked and is slow may still go off, and nobody would start it then.
    if vm["state"] == "shutting_down" and not _goes_off(domain, _left_s(vm, shutdown_s)):
        journal.record("vm_left_alone", uuid=uuid)
        journal.warn(f"VM {vm['name']} was asked to shut down, and runs; if it does so later, start it")
        return
    if domain.went_away():
        _note_away(journal, uuid, AWAY)
        return
    # Once it is on record as off, a reason that is forgotten is no news: every jump makes libvirt forget.
    if vm["state"] == "shutting_down" and domain.ended_unseen():
        _note_away(journal, uuid, UNSEEN)
        return
    if domain.state() in OFF:
        domain.start()
    journal.record("vm_started", uuid=uuid, moment=time.time(), qemu=monitor.qemu_version(domain))


def _load(config: Config, hypervisor: Hypervisor, journal: Journal, vm: Dict[str, Any], deadline_s: float) -> None:
    # Nobody waits for its imports before the others are back.
    from . import cold

    cold.load(config, hypervisor, journal, vm, deadline_s)


def _note_failure(journal: Journal, vm: Dict[str, Any], exc: Exception) -> None:
    event = "vm_not_loaded" if vm["state"] in STORED else "vm_not_started"
    try:
        journal.record(event, uuid=vm["uuid"], error=str(exc))
    except HoldfastError:  # there is no room for it; its state says that somebody has yet to bring it back
        journal.warn(f"VM {vm['name']}: {exc}")


def _left_s(vm: Dict[str, Any], shutdown_s: float) -> float:
    """What is left of its time; never more than that, whatever the clock did."""
    return min(max(vm["asked_at"] + shutdown_s - time.time(), 0.0), shutdown_s)


def _goes_off(domain: Domain, limit_s: float) -> bool:
    """Whether its QEMU ends within that time."""
    deadline = time.monotonic() + limit_s
    while domain.state() not in OFF:
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True
