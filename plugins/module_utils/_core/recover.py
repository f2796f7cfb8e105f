# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring every VM of the generation in flight back, from wherever it was left. Safe at any time, any number of times."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from . import attach, fallback, guard, health, kexec, lanes, monitor, restarts, saveimage
from . import request as requests
from . import suspend as suspending
from .attach import Boot
from .config import Config
from .errors import HoldfastError, VmError
from .hypervisor import Hypervisor, connect_patiently
from .journal import ADRIFT, HELD, STORED, TERMINAL, UNFINISHED, WAITING, Journal, open_journal
from .network import Network
from .pool import Content, Pool, open_pool
from .request import Request
from .restore import note_running, restore, verify
from .standing import Sighting, Step, step_for
from .storage import Storage

SAVE_LIMIT_S = 600.0
LOOK_S = 0.3


def recover(config: Config, reason: str = "") -> str:
    """Finish, take back or report the generation in flight; returns how it stands then, a sentence.

    Before the jump every VM goes on at once on the old kernel; after it every VM is restored, or the host goes back.
    Raises HoldfastError when VMs are left that could not be brought back; they are kept.
    """
    journal = open_journal(config.state_dir)
    boot = attach.present_boot(journal)
    if boot is Boot.ORDINARY:
        attach.check_on_record(config, journal)
        return settle(config, journal) if journal.generation else "no generation is in flight"
    pool = open_pool(config)
    if boot is Boot.SAME:
        return _take_back(config, pool, journal, reason or f"the agent was ended while it was {journal.state}")
    if boot is Boot.STRANGE:
        return _after_loss(config, pool, journal)
    # Also after an attach, and then a jump back, that failed: nobody else tries to attach the pool again.
    attach.attach(config)
    journal = open_journal(config.state_dir)
    return _land(config, pool, journal)


def _take_back(config: Config, pool: Pool, journal: Journal, reason: str) -> str:
    """Nothing has happened that cannot be undone: every VM goes on, here and now, with what it had."""
    # Nobody is left out for a way back: this is the old kernel.
    wanted = replace(_wanted(config, journal), fallback_after=0)
    with _owed_started(config, journal, wanted):
        pool.attach(Content.TRUSTED)
        # Whatever comes next, a plain reboot shall not go where this live update was to go.
        with suppress(HoldfastError):
            kexec.unload()
        _bring_back(pool, journal, wanted, Network(journal, wanted.network_s), Storage(journal, wanted.storage_s))
        kexec.unload()
    return close(config, journal, "aborted", reason)


def _land(config: Config, pool: Pool, journal: Journal) -> str:
    """After the jump: restore; or go back, while that is still possible."""
    attach.check_arrival(pool, journal)
    wanted = _wanted(config, journal)
    if journal.state == "attached":
        fallback.go_back_if(health.problems(wanted, journal), pool, journal)
    insists = bool(wanted.fallback_after) and fallback.is_possible(journal)
    network, storage = Network(journal, wanted.network_s, insists), Storage(journal, wanted.storage_s)
    all_tried = _bring_back(pool, journal, wanted, network, storage)
    if wanted.fallback_after:
        fallback.go_back_if(_none_came_back(journal), pool, journal)
    if network.missed or not all_tried:
        # There was no way back after all, and VMs that go on are better than VMs that stand still.
        anyway = replace(wanted, fallback_after=0)
        _bring_back(pool, journal, anyway, Network(journal, wanted.network_s), Storage(journal, wanted.storage_s))
    return close(config, journal, "restored", journal.view["reason"])


def _after_loss(config: Config, pool: Pool, journal: Journal) -> str:
    """The RAM is gone. What may start afresh does; what may not waits for somebody to say so."""
    attach.disarm(journal)
    attach.report_lost(journal)
    wanted = _wanted(config, journal)
    with _owed_started(config, journal, wanted):
        pool.attach(Content.FRESH)
    _go_on_from_disk(pool, journal)
    _restart_lost(config, journal)
    restarts.start(config, journal, wanted)
    return settle(config, journal)


def _go_on_from_disk(pool: Pool, journal: Journal) -> None:
    """Those that were loaded from disk in this boot, and could not go on or not be noted: their QEMU has their RAM."""
    resuming = [vm for vm in journal.vms if vm["state"] == "resuming"]
    if resuming:
        with connect_patiently() as hypervisor:
            there = {domain.uuid for domain in hypervisor.running()}
            for vm in resuming:
                if vm["uuid"] in there:
                    _catch_up(hypervisor, pool, journal, vm)
                else:
                    # In this boot libvirt knows no reason for that, and none is needed: its policy decides.
                    journal.record("vm_lost", uuid=vm["uuid"], error=attach.RAM_IS_GONE)


@contextmanager
def _owed_started(config: Config, journal: Journal, wanted: Request) -> Iterator[None]:
    """When the block fails, start those that are owed a start before that is raised: they have no part in it.

    Not for a kernel that may still be left, by its guard or for the old one: whoever was started is lost then.
    """
    try:
        yield
    except Exception:
        try:
            restarts.start(config, journal, wanted)
        except Exception as exc:
            journal.warn(f"VMs that are off for the upgrade are not started: {exc}")
        raise


def _restart_lost(config: Config, journal: Journal) -> None:
    """Start those afresh whose policy says so."""
    lost = [vm for vm in journal.vms if vm["state"] == "lost" and vm.get("may_restart")]
    if lost:
        pool = open_pool(config)
        with connect_patiently() as hypervisor:
            for vm in lost:
                # What an earlier kernel kept of it is of no use any more, and takes its room.
                pool.release(vm["uuid"])
                _start_afresh(hypervisor, journal, vm)


def _start_afresh(hypervisor: Hypervisor, journal: Journal, vm: Dict[str, Any]) -> None:
    try:
        domain = hypervisor.domain(vm["uuid"])
        if domain.id < 0:
            domain.start()
        journal.record("vm_restarted", uuid=vm["uuid"])
    except HoldfastError as exc:
        journal.warn(str(exc))


def give_up(config: Config, names: List[str]) -> str:
    """Let go of VMs that cannot be brought back, so that they may start afresh from their disks.

    For a person who has decided so: their RAM and saved state are deleted. Raises HoldfastError for a VM that is not
    waiting here, or for which its QEMU waits.
    """
    journal, pool = open_journal(config.state_dir), open_pool(config)
    waiting = {vm["name"]: vm for vm in journal.vms if vm["state"] in WAITING}
    unknown = sorted(set(names) - set(waiting))
    if unknown:
        there = ", ".join(sorted(waiting)) or "none"
        raise HoldfastError(f"no VM {', '.join(unknown)} waits on this host", f"waiting: {there}")
    _require_off([waiting[name] for name in names if waiting[name]["state"] in ADRIFT])
    for name in names:
        pool.release(waiting[name]["uuid"])
        if waiting[name]["state"] in STORED:
            _discard_image(config, journal, waiting[name])
        journal.record("vm_given_up", uuid=waiting[name]["uuid"])
    if journal.state not in TERMINAL and not any(vm["state"] in WAITING for vm in journal.vms):
        # Nobody is left who could bring this generation to its end, as when the pool cannot be attached.
        journal.record("failed", reason=journal.view["reason"] or "every VM was given up")
    return settle(config, journal)


def _discard_image(config: Config, journal: Journal, vm: Dict[str, Any]) -> None:
    """No disk that fails keeps a VM from its fresh start, or a generation from its end."""
    from . import cold  # nobody waits for its imports here

    try:
        cold.discard(config, vm["uuid"])
    except (HoldfastError, OSError) as exc:
        journal.warn(f"VM {vm['name']}: its saved image is not deleted: {exc}")


def _require_off(vms: Sequence[Dict[str, Any]]) -> None:
    """Raise HoldfastError when one of these has a QEMU, and so all that there is of it; or when nobody can tell."""
    if not vms:
        return
    with connect_patiently() as hypervisor:
        for vm in vms:
            domain = hypervisor.find(vm["uuid"])
            state = domain.state() if domain else "shutoff"
            if state != "shutoff":
                found = f"VM {vm['name']} is not off, it is {state}"
                raise HoldfastError(found, "holdfast-agent recover has it go on; or end it before you give it up")


def settle(config: Config, journal: Journal) -> str:
    """Close a finished generation if nothing of it waits for anybody; returns how it stands, a sentence."""
    _forget_guard(config, journal)
    attach.let_libvirt_ask(config, journal)
    if journal.is_settled:
        for vm in journal.vms:
            # Left where an agent, or its host, ended after an image was used, before it was deleted.
            _discard_image(config, journal, vm)
        requests.remove(config.state_dir)
        journal.archive()
    waiting = [f"{vm['name']} ({vm['state']})" for vm in journal.vms if vm["state"] in WAITING]
    left = f"; waiting: {', '.join(waiting)}" if waiting else ""
    return f"generation {journal.generation} {journal.state}{left}"


def _forget_guard(config: Config, journal: Journal) -> None:
    """Once the generation is over, a kernel takes over only for VMs that would come back in it.

    One that is lost, or owed a start, may wait for weeks, and any other panic is none of ours.
    """
    if journal.state in TERMINAL and not journal.holds_suspended:
        guard.forget(config.state_dir)
        _rearm(journal)


def _rearm(journal: Journal) -> None:
    from . import watchdogs  # nobody waits for it any more

    try:
        watchdogs.rearm(journal)
    except HoldfastError as exc:
        journal.warn(str(exc))


def _bring_back(pool: Pool, journal: Journal, wanted: Request, network: Network, storage: Storage) -> bool:
    """Every VM that can go on does: the paused ones at once, then the suspended ones in the order of priority.

    False when VMs were left out, because the host had better go back.
    """
    order = sorted(journal.vms, key=lambda vm: -vm["priority"])
    saving = _catch_up_all(pool, journal, order)
    try:
        all_tried = _restore_suspended(pool, journal, wanted, network, storage, order)
    finally:
        saved_tried = _bring_back_saved(pool, journal, wanted, network, storage, saving)
    return all_tried and saved_tried


def _bring_back_saved(
    pool: Pool,
    journal: Journal,
    wanted: Request,
    network: Network,
    storage: Storage,
    saving: Sequence[Dict[str, Any]],
) -> bool:
    """The same for VMs that are still being saved, each as soon as that is over: nobody waits for one that hangs."""
    all_tried = True
    deadline = time.monotonic() + SAVE_LIMIT_S
    while saving and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        looked_at, saving = saving, _catch_up_all(pool, journal, saving)
        saved = [vm for vm in looked_at if vm not in saving]
        all_tried = _restore_suspended(pool, journal, wanted, network, storage, saved) and all_tried
    for vm in saving:
        journal.warn(f"VM {vm['name']}: its state is still being saved after {SAVE_LIMIT_S:.0f} s")
    return all_tried


def _catch_up_all(pool: Pool, journal: Journal, vms: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Bring VMs, one after the other, as far as they go without restoring them; returns those still being saved."""
    saving = []
    with ExitStack() as stack:
        hypervisor = stack.enter_context(connect_patiently())
        for vm in vms:
            done = _catch_up(hypervisor, pool, journal, vm)
            if not hypervisor.answers():
                # Its daemon was restarted: that shall cost this VM nothing, nor those that come after it.
                hypervisor = stack.enter_context(connect_patiently())
                done = _catch_up(hypervisor, pool, journal, vm)
            if not done:
                saving.append(vm)
    return saving


def _catch_up(hypervisor: Hypervisor, pool: Pool, journal: Journal, vm: Dict[str, Any]) -> bool:
    """Bring one VM as far as it goes without restoring it. What does not work is on record, and tried again.

    False while it is being saved.
    """
    try:
        step = step_for(_sighting(hypervisor, pool, vm))
        if step is Step.WAIT:
            return False
        if step is Step.GO_ON:
            suspending.unpause(hypervisor, vm)
        if step is Step.NOTE_RUNNING:
            # A save that failed, or a restore that was cut off, left it as it was told last.
            monitor.copy_ram_again(hypervisor.domain(vm["uuid"]))
        if step in (Step.GO_ON, Step.NOTE_RUNNING):
            qemu = monitor.qemu_version(hypervisor.domain(vm["uuid"]))
            journal.record("vm_resumed", uuid=vm["uuid"], moment=time.time(), qemu=qemu)
            pool.release(vm["uuid"])
        elif step is Step.NOTE_SAVED:
            suspending.note_saved(pool, journal, vm)
        elif step is Step.RESTORE_ANEW:
            verify(pool, vm)
            hypervisor.domain(vm["uuid"]).destroy()
        elif step is Step.LOST:
            journal.record("vm_lost", uuid=vm["uuid"], error=step.value)
            pool.release(vm["uuid"])
        elif step is Step.LEFT:
            # It may run elsewhere by now: whatever its policy says, no second one is started here.
            journal.record("vm_lost", uuid=vm["uuid"], error=step.value, may_restart=False)
            pool.release(vm["uuid"])
        elif step is Step.CONTRADICTION:
            note_running(pool, journal, hypervisor.domain(vm["uuid"]), step.value)
    except Exception as exc:  # whatever it is, it shall not take the other VMs along
        journal.warn(_told(vm, exc))
    return True


def _sighting(hypervisor: Hypervisor, pool: Pool, vm: Dict[str, Any]) -> Sighting:
    try:
        return _seen(hypervisor, pool, vm)
    except VmError:  # its QEMU may have ended between two questions
        return _seen(hypervisor, pool, vm)


def _seen(hypervisor: Hypervisor, pool: Pool, vm: Dict[str, Any]) -> Sighting:
    domain = next((one for one in hypervisor.running() if one.uuid == vm["uuid"]), None)
    state = domain.state() if domain else "shutoff"
    # It ends after it was listed, at times. (A guest that crashed and is preserved has a QEMU, and had run.)
    if domain and state != "shutoff":
        return Sighting(vm["state"], state, bool(domain.job()))
    # Only now: a save is whole before its QEMU ends. And only where it matters: a state that cannot be read now keeps
    # its VM from being judged.
    whole = vm["state"] == "paused" and saveimage.is_whole(suspending.state_path(pool, vm["uuid"]))
    unsaved = vm["state"] == "resuming" or (vm["state"] == "paused" and not whole)
    return Sighting(vm["state"], state_whole=whole, left=unsaved and _ended_on_purpose(hypervisor, vm["uuid"]))


def _ended_on_purpose(hypervisor: Hypervisor, uuid: str) -> bool:
    """Also when its definition is gone as well, and with it the reason. Raises HoldfastError when nobody can tell."""
    domain = hypervisor.find(uuid)
    return domain is None or domain.ended_on_purpose()


def _restore_suspended(
    pool: Pool,
    journal: Journal,
    wanted: Request,
    network: Network,
    storage: Storage,
    vms: Sequence[Dict[str, Any]],
) -> bool:
    """Restore, in this order, what is suspended of these; begin no more once going back is the better way.

    Those whose disks are not there yet come last, as soon as these are. Whether all were tried.
    """
    waiting = [vm for vm in vms if vm["state"] in HELD]
    if not waiting:
        return True
    journal.record("phase_end", name="libvirt")
    journal.record("restoring")

    tried: List[str] = []
    failed: List[str] = []
    untold: List[Tuple[str, Exception]] = []

    def bring(hypervisor: Hypervisor, uuid: str) -> None:
        if network.missed or fallback.is_due(journal, wanted.fallback_after, len(failed)):
            return
        tried.append(uuid)
        _restore_or_keep(hypervisor, pool, journal, uuid, wanted.deadline_s, network)
        if journal.vm(uuid)["state"] == "failed":
            failed.append(uuid)

    with connect_patiently() as hypervisor, journal.phase("restore"):
        for some in storage.as_they_come(waiting, journal.warn):
            # A start may hang in libvirt for as long as storage does not answer, and nothing of ours ends that.
            untold += lanes.in_order(
                lambda uuid: bring(hypervisor, uuid),
                [vm["uuid"] for vm in some],
                lanes.bounded(wanted.parallel),
                wanted.deadline_s,
            )
    for uuid, exc in untold:
        journal.warn(_told(journal.vm(uuid), exc))
    return len(tried) == len(waiting)


def _restore_or_keep(
    hypervisor: Hypervisor,
    pool: Pool,
    journal: Journal,
    uuid: str,
    deadline_s: float,
    network: Network,
) -> None:
    """Restore one VM, with a second try; what fails twice stays as it is, on record, whatever it fails by."""
    try:
        restore(hypervisor, pool, journal, uuid, deadline_s, network.wait_for)
        return
    except Exception as exc:
        if network.missed and journal.vm(uuid)["state"] in HELD:
            journal.record("vm_failed", uuid=uuid, error=str(exc))
            return
        journal.warn(f"first try: {exc}")
    try:
        # A new connection: the daemon behind the first one may be the reason.
        with connect_patiently() as again:
            _catch_up(again, pool, journal, journal.vm(uuid))
            if journal.vm(uuid)["state"] in HELD:
                restore(again, pool, journal, uuid, deadline_s, network.wait_for)
    except Exception as exc:
        if journal.vm(uuid)["state"] in HELD:
            journal.record("vm_failed", uuid=uuid, error=str(exc))
        else:
            journal.warn(str(exc))


def _told(vm: Dict[str, Any], trouble: Exception) -> str:
    """A failure in words that say which VM it is about."""
    return str(trouble) if isinstance(trouble, HoldfastError) else f"VM {vm['name']}: {trouble!r}"


def _none_came_back(journal: Journal) -> List[str]:
    """Why the host should go back: every VM that was tried failed."""
    came = any(vm["state"] in ("resumed", "resuming") for vm in journal.vms)
    return [] if came else [f"{vm['name']}: {vm['error']}" for vm in journal.vms if vm["state"] == "failed"]


def close(config: Config, journal: Journal, ending: str, reason: str) -> str:
    """Put the end on record. Raises HoldfastError when VMs are left over."""
    # Nobody is started, and no image used up, in a kernel that its guard will end.
    guard.end()
    # Before anybody starts who takes what this kernel offers.
    attach.let_libvirt_ask(config, journal)
    restarts.start(config, journal, _wanted(config, journal))
    left = [f"{vm['name']}: {vm['error'] or vm['state']}" for vm in journal.vms if vm["state"] in UNFINISHED]
    if left:
        told = "; ".join(part for part in (reason, "not brought back: " + "; ".join(left)) if part)
        journal.record("failed", reason=told)
        # Those whose RAM is gone do not wait for the ones that are left.
        _restart_lost(config, journal)
        with suppress(HoldfastError):  # tried again when the generation is settled
            _forget_guard(config, journal)
        raise HoldfastError(told, "their RAM and state are kept: mend the cause, then run holdfast-agent recover")
    lost = [vm["name"] for vm in journal.vms if vm["state"] == "lost"]
    versions = sorted({vm.get("qemu", "") for vm in journal.vms})
    if lost and ending == "restored":
        ending, reason = "failed", f"lost: {', '.join(lost)}"
    journal.record(ending, reason=reason, qemu=versions[-1] if versions else "")
    _restart_lost(config, journal)
    return settle(config, journal)


def _wanted(config: Config, journal: Journal) -> Request:
    """The request of this generation; its defaults when it is gone, for VMs do not wait for a file."""
    try:
        return requests.read(config.state_dir)
    except HoldfastError:
        return Request(journal.generation, journal.view["kernel"]["to"])
