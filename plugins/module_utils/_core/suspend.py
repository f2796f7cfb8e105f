# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Suspend VMs: pause, keep their RAM, write their device state without RAM, and put it all on record."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict

from . import durable, integrity, monitor, saveimage
from . import request as requests
from .errors import HoldfastError, VmError
from .hypervisor import Hypervisor
from .journal import Journal
from .pool import Pool

STATE = "state"
# Device state is about a megabyte; video memory and firmware flash come on top. More means that RAM is in it.
LARGEST_STATE_BYTES = 192 << 20
UNPACK_LIMIT_S = 60.0


def state_path(pool: Pool, uuid: str) -> Path:
    """Where a VM's device state is kept: in the pool beside its RAM, for one is worth nothing without the other."""
    return pool.vault_of(uuid) / STATE


def pause(hypervisor: Hypervisor, pool: Pool, journal: Journal, uuid: str) -> None:
    """Stop one VM's CPUs. It is on record before it happens, so that nobody forgets a paused VM. Raises VmError.

    No older state is left by then: should its QEMU end before it is saved, that would be taken for the one of today.
    """
    domain = hypervisor.domain(uuid)
    pool.release(uuid)
    journal.record("vm_paused", uuid=uuid, was_paused=domain.state() == "paused", moment=time.time())
    domain.pause()


def save(hypervisor: Hypervisor, pool: Pool, journal: Journal, uuid: str, coverage: str) -> None:
    """Keep a paused VM's RAM, save its device state and record it, with a proof over RAM of the given coverage.

    Raises VmError; it may be saved already then.
    """
    domain = hypervisor.domain(uuid)
    kept = pool.keep(uuid, domain.id, domain.name)
    monitor.keep_ram_in_place(domain)
    domain.save(str(state_path(pool, uuid)))
    _check(state_path(pool, uuid), domain.name)
    evidence = _evidence(pool, uuid, coverage)
    journal.record("vm_saved", uuid=uuid, ram_bytes=sum(ram.size_bytes for ram in kept), **evidence)


def note_saved(pool: Pool, journal: Journal, record: Dict[str, Any]) -> None:
    """Put on record what was saved by an agent that was ended before it could. Raises VmError.

    Only in the boot that saved it: there is nothing else to compare it with. No jump comes after it, so a state that
    would not be jumped with is on record, too: whether it is of use is found out by restoring it.
    """
    uuid = record["uuid"]
    ram_bytes = sum(ram.size_bytes for ram in pool.ram_of(uuid))
    journal.record("vm_saved", uuid=uuid, ram_bytes=ram_bytes, **_evidence(pool, uuid, _asked(journal)))


def _asked(journal: Journal) -> str:
    """How much of the RAM the operator wants compared; a sample when the request, beside the journal, is gone."""
    try:
        return requests.read(journal.path.parent).verify_ram
    except HoldfastError:
        return integrity.SAMPLED


def unpause(hypervisor: Hypervisor, record: Dict[str, Any]) -> None:
    """Let a VM that was paused, but not saved, go on in the QEMU it never left."""
    domain = hypervisor.domain(record["uuid"])
    monitor.copy_ram_again(domain)
    if not record.get("was_paused"):
        domain.resume()


def _check(path: Path, name: str) -> None:
    """Raise VmError for a state that is of no use after the jump, or may be."""
    size = path.stat().st_size
    if size > LARGEST_STATE_BYTES:
        found = f"its state file has {size} bytes, so RAM was written into it"
        raise VmError(f"VM {name}: {found}", "its RAM is not a shared file in the pool; see preflight")
    # What libvirt compressed is unpacked for a trial: the restore, after the jump, can do no more than that.
    with saveimage.stream(path, UNPACK_LIMIT_S):
        pass


def _evidence(pool: Pool, uuid: str, coverage: str) -> Dict[str, Any]:
    """Sizes and checksums of what was just written, for the restore to compare with. Raises HoldfastError."""
    path = state_path(pool, uuid)
    durable.sync(path)
    proofs = {ram.name: integrity.ram_proof(ram, uuid, coverage) for ram in pool.ram_of(uuid)}
    return {"state_bytes": path.stat().st_size, "state_sha256": integrity.sha256(path), "ram_proofs": proofs}
