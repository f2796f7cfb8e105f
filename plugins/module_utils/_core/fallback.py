# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back: jump again, to the kernel that the generation came from, with the RAM of the VMs in place.

Only while no VM was resumed after the jump: from then on its RAM no longer agrees with what was saved.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import List

from . import attach, filesystems, kexec
from .attach import Boot
from .cmdline import check_next, next_command_line
from .config import Config, load
from .errors import HoldfastError
from .hypervisor import connect
from .journal import HELD, OWED, Journal, open_journal
from .pool import Pool, open_pool
from .request import ONLY_QEMU


def is_possible(journal: Journal) -> bool:
    """Whether the old kernel could still take over with all VMs: nothing was resumed, and we are not back already."""
    resumed = any(vm["state"] in ("resumed", "resuming", "started") for vm in journal.vms)
    jumped = journal.state in ("arrived", "attached", "restoring", "failed", "jumping")
    return jumped and not resumed and not journal.view.get("fell_back") and journal.view["only"] != ONLY_QEMU


def is_due(journal: Journal, after: int, failed: int) -> bool:
    """Whether enough VMs failed, and none was resumed, to stop trying here. ``after`` 0: never before all failed.

    ``failed``: of those that were tried just now. What failed before somebody mended the cause says nothing.
    """
    waited_for = [vm for vm in journal.vms if vm["state"] not in OWED]
    return bool(after) and failed >= min(after, len(waited_for)) and is_possible(journal)


def go_back_if(reasons: List[str], pool: Pool, journal: Journal, before_libvirt: bool = False) -> None:
    """Go back to the old kernel for these reasons, if there are any and it is possible.

    Does not return when it goes. When the old kernel cannot be loaded, or VMs are here that would be lost, that is put
    on record and the host stays. ``before_libvirt``: none can be yet.
    """
    if not reasons or not is_possible(journal):
        return
    try:
        if not before_libvirt:
            # From here on libvirt's hook lets nothing start or arrive; what is there already is seen.
            journal.record("falling_back")
            _refuse_over_others(journal)
        go_back(pool, journal, "; ".join(reasons))
    except HoldfastError as exc:
        journal.warn(f"the host cannot go back to kernel {journal.view['kernel']['from']}: {exc}")


def _refuse_over_others(journal: Journal) -> None:
    """Raise HoldfastError while a VM is here that would not outlive the jump, or may be."""
    kept = {vm["uuid"] for vm in journal.vms if vm["state"] in HELD}
    with ExitStack() as stack:
        try:
            hypervisor = stack.enter_context(connect())
        except HoldfastError:  # a libvirt that does not answer has started nobody that anybody knows of
            return
        # One that stops to answer now is another matter: it was there, and so may be a VM.
        there = hypervisor.running()
        others = sorted(vm.name for vm in there if vm.uuid not in kept or vm.state() == "running")
    if others:
        raise HoldfastError(f"VMs were started or moved here meanwhile: {', '.join(others)}", "they would be lost")


def after_failed_attach(config: Config, why: str) -> None:
    """The pool could not be attached after the jump, so this kernel will not restore anything: go back."""
    journal = open_journal(config.state_dir)
    if attach.present_boot(journal) in (Boot.JUMPED, Boot.AGAIN):
        # Who asks libvirt now waits for it, and it waits for the pool.
        go_back_if([why], open_pool(config), journal, before_libvirt=True)


def go_back(pool: Pool, journal: Journal, reason: str) -> None:
    """Load the old kernel for the same generation, and jump. Raises HoldfastError if the host is still here."""
    running = kexec.running_cmdline()
    quiet = bool(journal.view["watchdog_usec"])
    line = next_command_line(running, generation=journal.generation, watchdog_off=quiet)
    check_next(running, line, load().required_pool.regions, journal.generation)
    kexec.load(*kexec.image_of(journal.view["kernel"]["from"]), line)
    pool.commit()
    with suppress(HoldfastError):  # this kernel is left in any case
        filesystems.sync_all_but(pool.mount_point(), filesystems.VMS_WAIT_S)
    journal.record("falling_back", reason=reason)
    journal.record("phase_begin", name="boot")
    kexec.jump()
