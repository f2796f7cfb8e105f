# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore VMs: prove that state and RAM are what was saved, give them to a new QEMU, and let the guest go on, once."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any, Callable, Dict

from . import bindings, durable, guard, integrity, kexec, monitor, permit, saveimage
from .cmdline import is_crash_kernel
from .crash_area import QEMU_BYTES
from .errors import HoldfastError, VmError
from .hypervisor import Domain, Hypervisor
from .incoming import restore_xml
from .journal import Journal
from .pool import Pool
from .suspend import state_path

# What has to be left in a crash kernel beside the QEMU that is started.
SPARE_BYTES = 64 << 20


def restore(
    hypervisor: Hypervisor,
    pool: Pool,
    journal: Journal,
    uuid: str,
    deadline_s: float,
    ready: Callable[[Domain], None] = lambda _domain: None,
) -> None:
    """Bring one suspended VM back and record it. ``ready`` returns when it may go on, or raises VmError.

    Raises VmError; the VM is then not running anywhere, and unless its CPUs were about to run, RAM and state are
    kept as they were.
    """
    record = journal.vm(uuid)
    _check_memory(record["name"])
    verify(pool, record)
    journal.record("vm_verified", uuid=uuid, ram_verified=True)
    domain = _start(hypervisor, pool, journal, record)
    try:
        monitor.keep_ram_in_place(domain)
        with saveimage.stream(state_path(pool, uuid), deadline_s) as (path, offset):
            monitor.load_state(domain, path, offset, deadline_s)
        monitor.copy_ram_again(domain)
        ready(domain)
        guard.end()
    except Exception as exc:
        # A QEMU that somebody told to go on does so as soon as it has its state.
        if not domain.goes_on():
            # A QEMU that refused its state has often ended by itself; its own words matter more.
            with suppress(VmError):
                domain.destroy()
            raise
        note_running(pool, journal, domain, str(exc))
        return
    consume(pool, journal, uuid)
    if not record.get("was_paused"):
        domain.resume()
    journal.record("vm_resumed", uuid=uuid, moment=time.time(), qemu=monitor.qemu_version(domain))
    pool.release(uuid)


def note_running(pool: Pool, journal: Journal, domain: Domain, why: str) -> None:
    """One that runs although we did not let it go on: its saved state is of the past from here on, for good."""
    journal.warn(f"VM {domain.name} was let go on by somebody else ({why}); what was saved of it is not used any more")
    consume(pool, journal, domain.uuid)
    with suppress(HoldfastError):  # tried again when the generation is closed
        guard.end()
    with suppress(HoldfastError):  # verify finds it then
        monitor.copy_ram_again(domain)
    journal.record("vm_resumed", uuid=domain.uuid, moment=time.time(), qemu=monitor.qemu_version(domain))
    pool.release(domain.uuid)


def verify(pool: Pool, record: Dict[str, Any]) -> None:
    """Compare state file and RAM with the journal. Raises VmError naming the first thing that differs."""
    name, uuid = record["name"], record["uuid"]
    path = state_path(pool, uuid)
    if not path.exists():
        raise VmError(f"VM {name}: its state file {path} is missing")
    if os.stat(path).st_size != record["state_bytes"]:
        raise VmError(f"VM {name}: its state file has {os.stat(path).st_size} bytes, not {record['state_bytes']}")
    if integrity.sha256(path) != record["state_sha256"]:
        raise VmError(f"VM {name}: its state file does not match its checksum")
    found = {ram.name: ram for ram in pool.ram_of(uuid)}
    for ram_name, expected in record["ram_proofs"].items():
        if ram_name not in found:
            raise VmError(f"VM {name}: its RAM {ram_name} is missing from the pool")
        if integrity.ram_proof(found[ram_name], uuid, expected["coverage"]) != expected:
            raise VmError(f"VM {name}: its RAM {ram_name} is not what was saved")


def _check_memory(name: str) -> None:
    """Where the kernel would have to kill a QEMU for want of RAM, the VM is kept instead. Raises VmError."""
    if is_crash_kernel(kexec.running_cmdline()) and 0 < kexec.mem_available() < QEMU_BYTES + SPARE_BYTES:
        raise VmError(
            f"VM {name} is kept in the pool: the crash kernel has no RAM left for its QEMU",
            "move a VM away from this host, then: holdfast recover",
        )


def _start(hypervisor: Hypervisor, pool: Pool, journal: Journal, record: Dict[str, Any]) -> Domain:
    """A QEMU that has the kept RAM, and waits for its state. It does not touch that RAM before it gets it."""
    uuid = record["uuid"]
    image = saveimage.read(state_path(pool, uuid))
    xml = _startable(image.xml, journal, record["name"])
    with permit.granted(uuid):
        domain = hypervisor.create_paused(record["name"], xml)
    try:
        pool.check_placed(uuid, domain.id, domain.name)
    except HoldfastError:
        # Whatever its CPUs do: it is not the guest.
        with suppress(VmError):
            domain.destroy()
        raise
    return domain


def _startable(saved: str, journal: Journal, name: str) -> str:
    """The saved definition as this kernel can start it."""
    xml = restore_xml(saved)
    # Elsewhere a set may well name CPUs that are switched off: libvirt has taken it before, and shall have it again.
    if not is_crash_kernel(kexec.running_cmdline()):
        return xml
    xml, free = bindings.loosened(xml, bindings.present())
    if free:
        lacking = f"this kernel lacks what its {', '.join(free)} names, so it is not bound by that until its next start"
        journal.warn(f"VM {name}: {lacking}")
    return xml


def consume(pool: Pool, journal: Journal, uuid: str) -> None:
    """From here on RAM moves away from the saved state, so the state must never be used again, whatever happens."""
    journal.record("vm_resuming", uuid=uuid)
    path = state_path(pool, uuid)
    if path.exists():
        durable.move(path, path.with_name("state.consumed"))
