# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One live update of this host: load, suspend, jump; and after the jump, restore. Needs no controller."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

from . import attach, kexec, lanes, monitor
from . import request as requests
from . import suspend as suspending
from .cmdline import check_next, generation_of, next_command_line
from .config import Config
from .errors import HoldfastError, JournalError, Refused, VmError
from .hypervisor import Hypervisor, connect
from .journal import HELD, Journal, open_journal
from .pool import Content, Pool, open_pool
from .request import Request
from .restore import restore


def live_update(config: Config) -> None:
    """Carry out the request on this host. Does not return when it succeeds: the host jumps.

    Raises HoldfastError. After a failure before the jump every VM runs on the old kernel and the journal says why.
    """
    wanted = requests.read(config.state_dir)
    pool = open_pool(config)
    with connect() as hypervisor:
        journal = _begin(config, hypervisor, wanted)
        try:
            _load(config, journal, wanted)
            _suspend_all(hypervisor, pool, journal, wanted)
            _jump(hypervisor, pool, journal)
        except BaseException as exc:
            _abort(hypervisor, pool, journal, wanted, str(exc))
            raise


def restore_all(config: Config) -> None:
    """After the jump: bring every suspended VM back, in the order of priority. Once more for those that failed.

    Raises HoldfastError when the generation does not agree, or VMs could not be restored; those are kept.
    """
    journal = open_journal(config.state_dir)
    if journal.state not in ("attached", "restoring", "failed"):
        return
    _check_generation(config, journal)
    wanted = requests.read(config.state_dir)
    pool = open_pool(config)
    with connect() as hypervisor:
        _restore_suspended(hypervisor, pool, journal, wanted)
        _finish(journal, config)


def _begin(config: Config, hypervisor: Hypervisor, wanted: Request) -> Journal:
    journal = open_journal(config.state_dir)
    if journal.state != "none":
        raise JournalError(f"generation {journal.generation} is still {journal.state} on this host", "see its journal")
    running = {domain.uuid: domain for domain in hypervisor.running()}
    asked = {vm.uuid for vm in wanted.vms}
    _refuse_other_vms(running, asked)
    names = [vm.__dict__ for vm in wanted.vms]
    first = running[wanted.vms[0].uuid] if wanted.vms else None
    journal.record(
        "begin",
        generation=wanted.generation,
        host=socket.gethostname(),
        kernel={"from": kexec.running_release(), "to": wanted.kernel_to},
        qemu=monitor.qemu_version(first) if first else "",
        boot_id=kexec.boot_id(),
        vms=names,
    )
    return journal


def _refuse_other_vms(running: Dict[str, Any], asked: set[str]) -> None:
    """The plan was made for the VMs that ran then. One more, or one less, is another plan."""
    more = sorted(domain.name for uuid, domain in running.items() if uuid not in asked)
    if more:
        raise Refused(f"VMs run here that the request does not know: {', '.join(more)}", "run the upgrade again")
    if asked - set(running):
        raise Refused(f"VMs of the request do not run any more: {', '.join(sorted(asked - set(running)))}")


def _load(config: Config, journal: Journal, wanted: Request) -> None:
    """Load the new kernel while the VMs still run."""
    with _phase(journal, "load"):
        running = kexec.running_cmdline()
        new = next_command_line(running, generation=wanted.generation)
        check_next(running, new, config.required_pool.regions, wanted.generation)
        kexec.load(*kexec.image_of(wanted.kernel_to), new)


def _suspend_all(hypervisor: Hypervisor, pool: Pool, journal: Journal, wanted: Request) -> None:
    journal.record("suspending")
    with _phase(journal, "suspend"):
        attach.own(pool, journal)
        order = [vm.uuid for vm in sorted(wanted.vms, key=lambda vm: vm.priority)]
        failures = lanes.until_failure(
            lambda uuid: suspending.pause(hypervisor, journal, uuid),
            lambda uuid: suspending.save(hypervisor, pool, journal, uuid),
            order,
            wanted.parallel,
        )
        if failures:
            raise HoldfastError(f"a VM could not be suspended: {failures[0][1]}")
    journal.record("suspended")


def _jump(hypervisor: Hypervisor, pool: Pool, journal: Journal) -> None:
    """The point of no return, passed only when no VM is left behind."""
    left = [domain.name for domain in hypervisor.running()]
    if left or any(vm["state"] != "suspended" for vm in journal.vms):
        raise HoldfastError(
            f"not every VM is suspended: {', '.join(left) or 'see the journal'}", "run the upgrade again"
        )
    if kexec.LOADED.read_text().strip() != "1":
        raise HoldfastError("the new kernel is no longer loaded", "something else on this host unloaded it")
    journal.record("phase_begin", name="jump")
    pool.detach()
    journal.record("phase_end", name="jump")
    journal.record("jumping")
    journal.record("phase_begin", name="boot")
    os.sync()
    kexec.jump()


def _abort(hypervisor: Hypervisor, pool: Pool, journal: Journal, wanted: Request, reason: str) -> None:
    """Nothing has happened that cannot be undone: every VM goes on, here and now, with what it had."""
    if journal.state == "jumping":
        pool.attach(Content.TRUSTED)
    for vm in journal.vms:
        if vm["state"] == "paused":
            _unpause_or_note(hypervisor, journal, vm)
    if any(vm["state"] == "suspended" for vm in journal.vms):
        pool.attach(Content.TRUSTED)
        _restore_suspended(hypervisor, pool, journal, wanted)
    kexec.unload()
    if journal.holds_suspended:
        journal.record("failed", reason=reason)
        return
    journal.record("aborted", reason=reason)
    requests.remove(journal.path.parent)
    journal.archive()


def _unpause_or_note(hypervisor: Hypervisor, journal: Journal, vm: Dict[str, Any]) -> None:
    try:
        suspending.unpause(hypervisor, vm)
        journal.record("vm_resumed", uuid=vm["uuid"])
    except VmError as exc:
        journal.record("vm_failed", uuid=vm["uuid"], error=str(exc))


def _restore_suspended(hypervisor: Hypervisor, pool: Pool, journal: Journal, wanted: Request) -> None:
    journal.record("restoring")
    with _phase(journal, "restore"):
        waiting = [vm for vm in journal.vms if vm["state"] in HELD]
        order = [vm["uuid"] for vm in sorted(waiting, key=lambda vm: -vm["priority"])]
        failures = lanes.in_order(
            lambda uuid: restore(hypervisor, pool, journal, uuid, wanted.deadline_s), order, wanted.parallel
        )
        for uuid, exc in failures:
            journal.record("vm_failed", uuid=uuid, error=str(exc))


def _check_generation(config: Config, journal: Journal) -> None:
    """Rule of the house: command line, journal and pool name the same generation, or nothing is restored."""
    found = generation_of(kexec.running_cmdline())
    if found != journal.generation:
        raise HoldfastError(f"this boot is of generation {found or '(none)'}, the journal of {journal.generation}")
    attach.check_owner(open_pool(config), journal)


def _finish(journal: Journal, config: Config) -> None:
    failed: List[str] = [f"{vm['name']}: {vm['error']}" for vm in journal.vms if vm["state"] != "resumed"]
    if failed:
        journal.record("failed", reason="VMs were not restored: " + "; ".join(failed))
        raise HoldfastError("; ".join(failed), "their RAM and state are kept; see holdfast-agent status")
    versions = sorted({vm.get("qemu", "") for vm in journal.vms})
    journal.record("restored", qemu=versions[-1] if versions else "")
    requests.remove(config.state_dir)
    journal.archive()


@contextmanager
def _phase(journal: Journal, name: str) -> Iterator[None]:
    """Put the beginning and the end of a phase on record."""
    journal.record("phase_begin", name=name)
    try:
        yield
    finally:
        journal.record("phase_end", name=name)
