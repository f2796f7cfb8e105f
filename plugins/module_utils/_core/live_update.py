# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One live update of this host: load, store, shut down, suspend, jump; or each VM into a new QEMU. No controller.

What comes after the jump is ``recover``.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, Callable, Dict, Optional, Tuple

from . import (
    attach,
    cold,
    cpu,
    daemon,
    deadline,
    early,
    filesystems,
    gates,
    guard,
    kernel_log,
    kexec,
    lanes,
    monitor,
    packages,
    restarts,
    storage,
    watchdogs,
)
from . import request as requests
from . import suspend as suspending
from .cmdline import check_next, is_crash_kernel, next_command_line
from .config import Config
from .domain import emulator_of
from .errors import HoldfastError, JournalError, Refused
from .hypervisor import Domain, Hypervisor, connect
from .journal import Journal, open_journal
from .pool import Pool, open_pool
from .recover import close, recover
from .renewal import renew
from .request import Request, VmRequest


def live_update(config: Config) -> None:
    """Carry out the request on this host. Does not return when the host has jumped.

    Raises HoldfastError. After a failure before the jump every VM runs on the old kernel and the journal says why.
    """
    wanted = requests.read(config.state_dir)
    pool = open_pool(config)
    with packages.held(), connect() as hypervisor:
        journal = _begin(config, hypervisor, wanted)
        try:
            _learn(hypervisor)
            if wanted.only == requests.ONLY_QEMU:
                # One deadline ends with each save. What comes after it has to come to an end as well.
                with daemon.ended_if_it_hangs():
                    renew(hypervisor, pool, journal, wanted)
                    cold.renew(config, hypervisor, journal, wanted)
                restarts.shut_down(hypervisor, journal, wanted)
                print(close(config, journal, "restored", ""), flush=True)
                return
            watchdogs.disarm(journal)
            mark = _load(config, journal, wanted)
            cold.store(config, hypervisor, journal, wanted)
            restarts.shut_down(hypervisor, journal, wanted)
            with deadline.enforced(wanted.deadline_s) as left_s:
                _suspend_all(hypervisor, pool, journal, wanted)
                _write_out(hypervisor, pool, journal, left_s)
            _jump(journal, mark)
        except BaseException as exc:
            with daemon.ended_if_it_hangs():
                recover(config, reason=str(exc))
            raise


def _begin(config: Config, hypervisor: Hypervisor, wanted: Request) -> Journal:
    journal = open_journal(config.state_dir)
    if journal.state != "none":
        raise JournalError(
            f"generation {journal.generation} is still {journal.state} on this host", "run the recover playbook"
        )
    running = {domain.uuid: domain for domain in hypervisor.running()}
    asked = {vm.uuid for vm in wanted.vms}
    _refuse_other_vms(running, asked)
    jumps = wanted.only != requests.ONLY_QEMU
    if jumps:
        watchdogs.check_others()
    vms = [{**vm.__dict__, "disks": storage.of(running[vm.uuid]) if jumps else ()} for vm in wanted.vms]
    first = running[wanted.vms[0].uuid] if wanted.vms else None
    journal.record(
        "begin",
        generation=wanted.generation,
        host=socket.gethostname(),
        kernel={"from": kexec.running_release(), "to": wanted.kernel_to},
        qemu=monitor.qemu_version(first) if first else "",
        boot_id=kexec.boot_id(),
        taint=kexec.taint(),
        before={**asdict(gates.look(hypervisor)), "complaints": kernel_log.kinds(kernel_log.complaints())},
        # Without a jump there is no other kernel to ask, and nobody who would be late.
        cpu=cpu.note(running[vm.uuid] for vm in _with_state(wanted)) if jumps else {},
        watchdog_usec=watchdogs.systemd_usec() if jumps else 0,
        only=wanted.only,
        vms=vms,
    )
    return journal


def _learn(hypervisor: Hypervisor) -> None:
    """Have libvirt ask each QEMU while the VMs run: one that was installed since, it would ask in their pause."""
    for emulator in sorted({_emulator_of(domain) for domain in hypervisor.running()}):
        hypervisor.capabilities_xml(emulator or None)


def _emulator_of(domain: Domain) -> str:
    """Empty for a VM that has just ended: that is found out by those whom it concerns."""
    try:
        return emulator_of(domain.xml())
    except HoldfastError:
        return ""


def _with_state(wanted: Request) -> Tuple[VmRequest, ...]:
    """VMs that go on with what is saved of them."""
    return (*wanted.staying, *wanted.stored)


def _refuse_other_vms(running: Dict[str, Any], asked: set[str]) -> None:
    """The plan was made for the VMs that ran then. One more, or one less, is another plan."""
    more = sorted(domain.name for uuid, domain in running.items() if uuid not in asked)
    if more:
        raise Refused(f"VMs run here that the request does not know: {', '.join(more)}", "run the upgrade again")
    if asked - set(running):
        raise Refused(f"VMs of the request do not run any more: {', '.join(sorted(asked - set(running)))}")


def _load(config: Config, journal: Journal, wanted: Request) -> Optional[int]:
    """Load the new kernel while the VMs still run; returns the mark of this load."""
    with journal.phase("load"):
        running = kexec.running_cmdline()
        quiet = bool(journal.view["watchdog_usec"])
        new = next_command_line(running, generation=wanted.generation, watchdog_off=quiet)
        check_next(running, new, config.required_pool.regions, wanted.generation)
        _stage_guard(config, journal, wanted, new)
        mark = _load_guarded(config, journal, wanted, new)
        # So that there is little left to write when the VMs stand still.
        filesystems.sync_all_but(config.required_pool.mount_point, filesystems.VMS_RUN_S)
    return mark


def _load_guarded(config: Config, journal: Journal, wanted: Request, new: str) -> Optional[int]:
    """Load the new kernel with the guard in front of its initrd; without, if that cannot be, which is on record.

    A crash kernel has no RAM for two kernels more: the one that it is left for is guarded from its root file system on.
    """
    image, initrd = kexec.image_of(wanted.kernel_to)
    staged = None if is_crash_kernel(kexec.running_cmdline()) else guard.read(config.state_dir)
    with ExitStack() as stack:
        try:
            if staged:
                initrd = stack.enter_context(early.in_front(staged, wanted.kernel_to, initrd, config.state_dir))
        except HoldfastError as exc:
            journal.warn(f"kernel {wanted.kernel_to} is guarded only from its root file system on: {exc}")
        return kexec.load(image, initrd, new)


def _stage_guard(config: Config, journal: Journal, wanted: Request, new: str) -> None:
    """A jump without a guard is still a jump, and on record as one."""
    try:
        old = journal.view["kernel"]["from"]
        # A new kernel that does not get at network or storage is left in an orderly way, and not by its timer.
        limit_s = wanted.deadline_s + wanted.network_s + wanted.storage_s
        trouble = guard.stage(config, wanted.generation, old, new, limit_s)
    except HoldfastError as exc:
        trouble = str(exc)
    if trouble:
        journal.warn(f"the start of kernel {wanted.kernel_to} is not guarded: {trouble}")


def _suspend_all(hypervisor: Hypervisor, pool: Pool, journal: Journal, wanted: Request) -> None:
    journal.record("suspending")
    with journal.phase("suspend"):
        attach.own(pool, journal)
        order = [vm.uuid for vm in sorted(wanted.staying, key=lambda vm: vm.priority)]
        failures = lanes.until_failure(
            lambda uuid: suspending.pause(hypervisor, pool, journal, uuid),
            lambda uuid: suspending.save(hypervisor, pool, journal, uuid, wanted.verify_ram),
            order,
            lanes.bounded(wanted.parallel),
        )
        if failures:
            raise HoldfastError(f"a VM could not be suspended: {failures[0][1]}")
    journal.record("suspended")


def _write_out(hypervisor: Hypervisor, pool: Pool, journal: Journal, left_s: Callable[[], float]) -> None:
    """Everything that the next kernel reads is where it belongs, and no VM is left behind."""
    left = [domain.name for domain in hypervisor.running()]
    if left or any(vm["state"] not in ("suspended", "stored", "shut_down") for vm in journal.vms):
        raise HoldfastError(
            f"not every VM is suspended: {', '.join(left) or 'see the journal'}", "run the upgrade again"
        )
    with journal.phase("jump"):
        pool.commit()
        filesystems.sync_all_but(pool.mount_point(), min(filesystems.VMS_WAIT_S, left_s()))


def _jump(journal: Journal, mark: Optional[int]) -> None:
    """The point of no return."""
    kexec.check_loaded(mark)
    journal.record("jumping")
    journal.record("phase_begin", name="boot")
    kexec.jump()
