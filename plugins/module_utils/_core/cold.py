# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs whose RAM cannot stay where it is: saved to disk with all of it, and restored when the others go on.

<state directory>/stored/<uuid>     libvirt's save image, RAM and device state; there until a QEMU has taken it

Not libvirt's managed save: it takes an image for used that no QEMU was started for, when a hook or a definition stands
in the way (qemuDomainObjRestore, libvirt 11.3), and deletes it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict

from . import deadline, domain, durable, integrity, kexec, lanes, monitor, permit, saveimage
from .cmdline import is_crash_kernel
from .config import Config
from .errors import BadInput, HoldfastError, VmError
from .hypervisor import OFF, Domain, Hypervisor
from .incoming import restore_xml
from .journal import Journal
from .request import Request

FOLDER = "stored"
# A disk that is slower is none to save VMs on.
SLOWEST_BYTES_PER_S = 50e6
CANCEL_LIMIT_S = 60.0
LOOK_S = 0.1


def image_of(config: Config, uuid: str) -> Path:
    """Where a VM is while it is stored."""
    return config.state_dir / FOLDER / permit.checked(uuid)


def store(config: Config, hypervisor: Hypervisor, journal: Journal, wanted: Request) -> None:
    """Save them while the other VMs run, the least important one first. Raises HoldfastError at the first failure."""
    if not wanted.stored:
        return
    order = [vm.uuid for vm in sorted(wanted.stored, key=lambda vm: vm.priority)]
    ram_bytes = sum(hypervisor.domain(uuid).ram_bytes() for uuid in order)
    with journal.phase("store"), deadline.enforced(_limit_s(wanted.deadline_s, ram_bytes)):
        failures = lanes.until_failure(
            lambda uuid: _begin(config, hypervisor, journal, uuid),
            lambda uuid: _store(config, hypervisor, journal, uuid, wanted.verify_ram),
            order,
            lanes.bounded(wanted.parallel),
        )
    if failures:
        raise HoldfastError(f"a VM could not be saved to disk: {failures[0][1]}")


def renew(config: Config, hypervisor: Hypervisor, journal: Journal, wanted: Request) -> None:
    """Save and restore them under the running kernel, one by one, so that each waits for itself only.

    Raises HoldfastError at the first failure.
    """
    if not wanted.stored:
        return
    with journal.phase("cold"):
        for vm in sorted(wanted.stored, key=lambda vm: vm.priority):
            with deadline.enforced(_limit_s(wanted.deadline_s, hypervisor.domain(vm.uuid).ram_bytes())):
                _begin(config, hypervisor, journal, vm.uuid)
                _store(config, hypervisor, journal, vm.uuid, wanted.verify_ram)
            load(config, hypervisor, journal, journal.vm(vm.uuid), wanted.deadline_s)


def load(config: Config, hypervisor: Hypervisor, journal: Journal, record: Dict[str, Any], deadline_s: float) -> None:
    """Have one go on, from its image or in the QEMU that it never left.

    Raises HoldfastError; it has not run then, and its image is as it was, unless that counts as used.
    """
    vm, image = hypervisor.domain(record["uuid"]), image_of(config, record["uuid"])
    _end_save(vm)
    state = vm.state()
    # Any other one may have run since it took its image, and is paused again: it is newer than that.
    if record["state"] == "stored" and state == "paused" and monitor.waits_for_state(vm):
        _compare(record, image)
        vm.destroy()
        state = vm.state()
    if state in OFF and not saveimage.is_whole(image):
        _note_gone(journal, record, vm, image)
        return
    if state in OFF:
        _restore(hypervisor, journal, record, image, deadline_s)
        return
    if record["state"] == "stored":
        if state != "paused":
            journal.warn(f"VM {vm.name} was let go on by somebody else; what was saved of it is not used any more")
        _consume(journal, vm.uuid, image)
    if state == "paused" and not record.get("was_paused"):
        vm.resume()
    _note_resumed(journal, vm)


def goes_into_pool(hypervisor: Hypervisor, uuid: str) -> bool:
    """Whether one that is loaded gets its RAM in the pool, if there is room; not when libvirt cannot tell."""
    try:
        stored = hypervisor.domain(uuid).stored_xml()
        return domain.vm_facts(stored, definition=stored).definition_converted
    except (BadInput, VmError):
        return False


def discard(config: Config, uuid: str) -> None:
    """Delete its image, if there is one. Raises HoldfastError when that is not on the medium."""
    image = image_of(config, uuid)
    # Left by an agent that was killed while it unpacked the image.
    saveimage.unpacked(image).unlink(missing_ok=True)
    if image.exists():
        image.unlink()
        durable.sync(image.parent)


def _begin(config: Config, hypervisor: Hypervisor, journal: Journal, uuid: str) -> None:
    """On record before it happens, so that nobody forgets a VM that is off; no older image is left by then."""
    discard(config, uuid)
    vm = hypervisor.domain(uuid)
    journal.record("vm_storing", uuid=uuid, was_paused=vm.state() == "paused", moment=time.time())


def _store(config: Config, hypervisor: Hypervisor, journal: Journal, uuid: str, coverage: str) -> None:
    vm, image = hypervisor.domain(uuid), image_of(config, uuid)
    ram_bytes = vm.ram_bytes()
    # One that was restored from the pool must write its RAM like any other.
    if monitor.ram_stays_in_place(vm):
        monitor.copy_ram_again(vm)
    image.parent.mkdir(mode=0o700, exist_ok=True)
    vm.save(str(image))
    # Now, while the others run: what is not on the disk yet would be written while they stand still.
    durable.sync(image)
    durable.sync(image.parent)
    proof = integrity.image_proof(image, uuid, coverage)
    journal.record("vm_stored", uuid=uuid, ram_bytes=ram_bytes, image_proof=proof)


def _restore(hypervisor: Hypervisor, journal: Journal, record: Dict[str, Any], image: Path, deadline_s: float) -> None:
    uuid = record["uuid"]
    journal.record("vm_loading", uuid=uuid, ram_verified=_compare(record, image))
    vm = _start(hypervisor, journal, record, saveimage.read(image).xml)
    try:
        limit_s = _limit_s(deadline_s, vm.ram_bytes())
        with saveimage.stream(image, limit_s) as (path, offset):
            monitor.load_state(vm, path, offset, limit_s)
        # Without room for this, nobody shall find it paused and let it go on, with an image that still counts.
        _note_used(journal, uuid)
    except Exception as exc:
        # A QEMU that somebody told to go on does so as soon as it has its state.
        if not vm.goes_on():
            # A QEMU that refused its state has often ended by itself; its own words matter more.
            with suppress(VmError):
                vm.destroy()
            raise
        journal.warn(f"VM {vm.name} was let go on by somebody else ({exc})")
    _consume(journal, uuid, image)
    if not record.get("was_paused") and not vm.goes_on():
        vm.resume()
    _note_resumed(journal, vm)


def _consume(journal: Journal, uuid: str, image: Path) -> None:
    """From here on RAM moves away from the image, which must never be used again, whatever happens."""
    try:
        _note_used(journal, uuid)
    finally:
        # Also where there is no room to say so: it may run by now.
        image.unlink(missing_ok=True)
        durable.sync(image.parent)


def _note_used(journal: Journal, uuid: str) -> None:
    if journal.vm(uuid)["state"] == "stored":
        journal.record("vm_resuming", uuid=uuid)


def _start(hypervisor: Hypervisor, journal: Journal, record: Dict[str, Any], saved: str) -> Domain:
    """A QEMU that waits for the image; with its RAM in the pool, if its stored definition says so and it fits."""
    name = record["name"]
    try:
        pooled = _pooled(hypervisor.domain(record["uuid"]).stored_xml(), saved)
    except (BadInput, VmError) as exc:
        journal.warn(f"VM {name} does not get its RAM into the pool: {exc}")
        pooled = saved
    with permit.granted(record["uuid"]):
        try:
            return hypervisor.create_paused(name, restore_xml(pooled))
        except VmError as exc:
            # A crash kernel has no RAM for it elsewhere.
            if pooled == saved or is_crash_kernel(kexec.running_cmdline()):
                raise
            journal.warn(f"VM {name} goes on with its RAM outside the pool: {exc}")
            return hypervisor.create_paused(name, restore_xml(saved))


def _pooled(stored: str, saved: str) -> str:
    """The saved definition with its RAM where the stored one has it. Raises BadInput."""
    if domain.vm_facts(stored, definition=stored).definition_converted:
        return domain.to_pool_backing(saved)[0]
    return saved


def _compare(record: Dict[str, Any], image: Path) -> bool:
    """Raise VmError unless the image is the one that was saved; False for one that never was on record."""
    saved = record.get("image_proof")
    if not saved:
        return False
    try:
        found = integrity.image_proof(image, record["uuid"], saved["coverage"])
    except OSError as exc:
        raise VmError(f"VM {record['name']}: its saved image {image} cannot be read: {exc.strerror}") from exc
    if saved != found:
        raise VmError(f"VM {record['name']}: its saved image {image} is not what was saved", "see to the disk")
    return True


def _note_gone(journal: Journal, record: Dict[str, Any], vm: Domain, image: Path) -> None:
    """Only a save that did not get to its end is known to have left nothing. Raises VmError for any other VM."""
    if record["state"] == "stored":
        # Its disk may not be mounted yet. That an image is gone for good is for a person to say.
        hint = "mount or mend its disk, then recover again; give it up only if that is gone for good"
        raise VmError(f"VM {vm.name}: its saved image {image} is missing or not whole", hint)
    gone = "neither a QEMU nor a whole saved image is left of it"
    # In another boot libvirt knows no reason, and none is needed: the old one's end was the VM's.
    same_boot = kexec.boot_id() == journal.view["boot_id"]["from"]
    if same_boot and vm.ended_on_purpose():
        # It may run elsewhere by now: whatever its policy says, no second one is started here.
        journal.record("vm_lost", uuid=record["uuid"], error=gone, may_restart=False)
    else:
        journal.record("vm_lost", uuid=record["uuid"], error=gone)


def _note_resumed(journal: Journal, vm: Domain) -> None:
    journal.record("vm_resumed", uuid=vm.uuid, moment=time.time(), qemu=monitor.qemu_version(vm))


def _end_save(vm: Domain) -> None:
    """A save that outlived its agent is cancelled, and the VM goes on; or it was just over. Raises VmError."""
    limit = time.monotonic() + CANCEL_LIMIT_S
    while vm.job():
        with suppress(VmError):  # it has just ended
            vm.cancel_job()
        if time.monotonic() > limit:
            raise VmError(f"VM {vm.name}: libvirt still saves it {CANCEL_LIMIT_S:.0f} s after it was told to stop")
        time.sleep(LOOK_S)


def _limit_s(deadline_s: float, ram_bytes: int) -> float:
    return deadline_s + ram_bytes / SLOWEST_BYTES_PER_S
