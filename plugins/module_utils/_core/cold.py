# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs whose RAM cannot stay where it is, saved to disk with all of it, and loaded again when the others go on.

The image is libvirt's managed save. Whoever starts the VM meanwhile, by hand or at boot, goes on with it and not from
the disk; libvirt removes it once a QEMU has taken it, and that one is started paused, so the image is used at most
once. It comes back with its RAM in the pool where it may (hook): so gets there who must not restart.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict

from . import deadline, durable, integrity, lanes, monitor, saveimage
from .errors import HoldfastError, VmError
from .hypervisor import OFF, Domain, Hypervisor
from .journal import Journal
from .request import Request

# A disk that is slower is none to save VMs on.
SLOWEST_BYTES_PER_S = 50e6
CANCEL_LIMIT_S = 60.0
LOOK_S = 0.1


def store(hypervisor: Hypervisor, journal: Journal, wanted: Request) -> None:
    """Save them while the other VMs run, the least important one first. Raises HoldfastError at the first failure."""
    if not wanted.stored:
        return
    order = [vm.uuid for vm in sorted(wanted.stored, key=lambda vm: vm.priority)]
    with journal.phase("store"), deadline.enforced(_limit_s(hypervisor, wanted)):
        failures = lanes.until_failure(
            lambda uuid: _begin(hypervisor, journal, uuid),
            lambda uuid: _store(hypervisor, journal, uuid, wanted.verify_ram),
            order,
            lanes.bounded(wanted.parallel),
        )
    if failures:
        raise HoldfastError(f"a VM could not be saved to disk: {failures[0][1]}")


def renew(hypervisor: Hypervisor, journal: Journal, wanted: Request) -> None:
    """Save and load them under the running kernel, one by one, so that each waits for itself only.

    Raises HoldfastError at the first failure.
    """
    if not wanted.stored:
        return
    with journal.phase("cold"):
        for vm in sorted(wanted.stored, key=lambda vm: vm.priority):
            with deadline.enforced(_limit_s(hypervisor, wanted)):
                _begin(hypervisor, journal, vm.uuid)
                _store(hypervisor, journal, vm.uuid, wanted.verify_ram)
            load(hypervisor, journal, journal.vm(vm.uuid))


def load(hypervisor: Hypervisor, journal: Journal, record: Dict[str, Any]) -> None:
    """Have one go on, from its image or in the QEMU that it never left. Raises HoldfastError; it has not run then."""
    uuid = record["uuid"]
    vm, verified = hypervisor.domain(uuid), False
    _end_save(vm)
    if vm.state() in OFF:
        image = saveimage.managed(vm.name)
        if not saveimage.is_whole(image):
            _note_gone(journal, record, vm)
            return
        journal.record("vm_loading", uuid=uuid)
        verified = _compare(record, image)
        vm.start_paused()
    if vm.state() == "paused":
        # That the image is gone is on the medium before the guest runs: a power cut later must not bring it back.
        durable.sync(saveimage.MANAGED)
        if not record.get("was_paused"):
            vm.resume()
    journal.record("vm_resumed", uuid=uuid, moment=time.time(), qemu=monitor.qemu_version(vm), ram_verified=verified)


def _begin(hypervisor: Hypervisor, journal: Journal, uuid: str) -> None:
    """On record before it happens, so that nobody forgets a VM that is off."""
    vm = hypervisor.domain(uuid)
    journal.record("vm_storing", uuid=uuid, was_paused=vm.state() == "paused", moment=time.time())


def _store(hypervisor: Hypervisor, journal: Journal, uuid: str, coverage: str) -> None:
    vm = hypervisor.domain(uuid)
    ram_bytes = vm.ram_bytes()
    # One that was restored from the pool must write its RAM like any other.
    if monitor.ram_stays_in_place(vm):
        monitor.copy_ram_again(vm)
    vm.managed_save()
    image = saveimage.managed(vm.name)
    # Now, while the others run: what is not on the disk yet would be written while they stand still.
    durable.sync(image)
    proof = integrity.ram_proof(image, uuid, coverage)
    journal.record("vm_stored", uuid=uuid, ram_bytes=ram_bytes, image_proof=proof)


def _compare(record: Dict[str, Any], image: Path) -> bool:
    """Raise VmError unless the image is the one that was saved; False for one that never was on record."""
    saved = record.get("image_proof")
    if not saved:
        return False
    try:
        found = integrity.ram_proof(image, record["uuid"], saved["coverage"])
    except OSError as exc:
        raise VmError(f"VM {record['name']}: its saved image {image} cannot be read: {exc.strerror}") from exc
    if saved != found:
        raise VmError(
            f"VM {record['name']}: its saved image {image} is not what was saved",
            "it was not started: see to the disk; virsh start loads the image as it is, virsh managedsave-remove "
            "lets the VM start from its disk",
        )
    return True


def _note_gone(journal: Journal, record: Dict[str, Any], vm: Domain) -> None:
    gone = "neither a QEMU nor a whole saved image is left of it"
    begun = "restore_started_at" in record
    if vm.ended_on_purpose() or (record["state"] == "stored" and not begun):
        # Somebody else let it go on and ended it: whatever its policy says, it is not started here.
        journal.record("vm_lost", uuid=record["uuid"], error=gone, may_restart=False)
    else:
        journal.record("vm_lost", uuid=record["uuid"], error=gone)


def _end_save(vm: Domain) -> None:
    """A save that outlived its agent is cancelled, and the VM goes on; or it was just over. Raises VmError."""
    limit = time.monotonic() + CANCEL_LIMIT_S
    while vm.job():
        vm.cancel_job()
        if time.monotonic() > limit:
            raise VmError(f"VM {vm.name}: libvirt still saves it {CANCEL_LIMIT_S:.0f} s after it was told to stop")
        time.sleep(LOOK_S)


def _limit_s(hypervisor: Hypervisor, wanted: Request) -> float:
    ram_bytes = sum(hypervisor.domain(vm.uuid).ram_bytes() for vm in wanted.stored)
    return wanted.deadline_s + ram_bytes / SLOWEST_BYTES_PER_S
