# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Early in every boot: find out whose boot it is, and attach the pool accordingly."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any, Dict, Tuple

from . import autostart, capability_cache, durable, guard, kexec
from .cmdline import generation_of, is_crash_kernel
from .config import Config
from .errors import HoldfastError
from .journal import HELD, OWED, TERMINAL, Journal, is_finished, open_journal
from .pool import Content, Pool, open_pool

OWNER = "generation.json"
# Of VMs in one of these states their owners dispose: whether they were still here, a kernel that starts does not know.
FREE = ("pending", "resumed", "started")
RAM_IS_GONE = "its RAM was lost: the host booted without the jump"
LITTLE_MEMORY = (
    "this host runs in the small RAM of its crash kernel: take it out by an upgrade to the kernel that it runs "
    "(live_update_force), or move its VMs away and reboot it"
)


class Boot(Enum):
    """How this boot relates to the journal."""

    ORDINARY = "no generation is in flight"
    SAME = "the boot in which the generation began"
    JUMPED = "a boot that the generation asked for"
    AGAIN = "the generation already arrived in this boot"
    STRANGE = "another boot than the generation asked for"


def judge_boot(journal: Journal, boot_id: str, cmdline: str) -> Boot:
    """Pure: which boot is this, by the journal, the boot id and the kernel's command line?"""
    if journal.state in ("none", "restored", "aborted") or journal.is_settled:
        return Boot.ORDINARY
    if boot_id == journal.view["boot_id"]["from"]:
        return Boot.SAME
    if boot_id == journal.view["boot_id"]["to"]:
        return Boot.AGAIN
    # A kernel with our token was loaded for this generation, so RAM was kept, however far the last kernel had got.
    # Before the first pause there is nothing in it: somebody else jumped with what we had loaded.
    if generation_of(cmdline) == journal.generation and journal.state != "staged":
        return Boot.JUMPED
    return Boot.STRANGE


def present_boot(journal: Journal) -> Boot:
    """Which boot this is."""
    return judge_boot(journal, kexec.boot_id(), kexec.running_cmdline())


def attach(config: Config) -> Boot:
    """Attach the pool: as it is when it holds suspended VMs, anew when it cannot hold any.

    Raises JournalError when the journal is damaged, HoldfastError when this kernel's live update has none, or when the
    pool's own record does not agree with it. The pool is then left alone.
    """
    pool = open_pool(config)
    journal = open_journal(config.state_dir)
    boot = present_boot(journal)
    if boot is Boot.STRANGE:
        disarm(journal)
        report_lost(journal)
        let_libvirt_ask(config, journal)
        pool.attach(Content.FRESH)
    elif boot is Boot.ORDINARY:
        _unguard(config, journal)
        try:
            check_on_record(config, journal)
        except HoldfastError:
            # Whoever puts the journal back takes longer than a guard waits.
            disarm(journal)
            raise
        pool.attach(Content.FRESH)
    elif boot is Boot.JUMPED or journal.state == "arrived":
        _arrive(config, pool, journal)
    else:
        pool.attach(Content.TRUSTED)
    return boot


def check_on_record(config: Config, journal: Journal) -> None:
    """Raise HoldfastError when this kernel was started for a live update that has no journal, in flight or finished.

    The pool may hold all that there is of its VMs then, whatever became of the journal.
    """
    found = generation_of(kexec.running_cmdline())
    if found and found != journal.generation and not is_finished(config.state_dir, found):
        raise HoldfastError(
            f"this kernel was started for live update {found}, of which there is no journal in {config.state_dir}: "
            "its VMs may be in the pool, which is left as it is",
            f"put {config.state_dir}/journal.jsonl back and start holdfast-pool.service and holdfast-restore.service; "
            "or reboot the host, which ends what is in the pool, and start the VMs from their disks",
        )


def own(pool: Pool, journal: Journal) -> None:
    """Write into the pool whose VMs are in it."""
    durable.write_text(pool.vault() / OWNER, json.dumps({"generation": journal.generation}))


def check_owner(pool: Pool, journal: Journal) -> None:
    """Raise HoldfastError unless the pool says that its VMs are of the journal's generation."""
    path = pool.vault() / OWNER
    try:
        found = json.loads(path.read_text())["generation"]
    except (OSError, ValueError, KeyError) as exc:
        raise HoldfastError(
            f"the pool does not say whose VMs it holds: {path}: {exc!r}", "nothing is restored"
        ) from exc
    if found != journal.generation:
        raise HoldfastError(f"the pool is of generation {found}, the journal of {journal.generation}")


def check_arrival(pool: Pool, journal: Journal) -> None:
    """Rule of the house: command line, journal and pool name the same generation, or nothing is restored."""
    found = generation_of(kexec.running_cmdline())
    if found != journal.generation:
        raise HoldfastError(f"this boot is of generation {found or '(none)'}, the journal of {journal.generation}")
    check_owner(pool, journal)


def _arrive(config: Config, pool: Pool, journal: Journal) -> None:
    journal.record("phase_end", name="boot")
    arrival = {"boot_id": kexec.boot_id(), "kernel": kexec.running_release()}
    # Before the arrival is on record, while the journal says whether the generation was over. An attach that is tried
    # again arrives in the same boot, in which no more was lost.
    if journal.view["boot_id"]["to"] != arrival["boot_id"]:
        _note_lost(journal, "its kernel ended while it was not suspended", but=(*HELD, *_spared(journal)))
    if is_crash_kernel(kexec.running_cmdline()):
        journal.record("arrived", **arrival, crashed=True, reason=_why_it_died(journal))
        journal.warn(LITTLE_MEMORY)
    else:
        journal.record("arrived", **arrival)
        _guard(config, journal)
    with journal.phase("attach"):
        pool.attach(Content.TRUSTED)
        check_owner(pool, journal)
        journal.record("attached")
    autostart.forgo()
    _spare_libvirt_questions(config, journal)
    # Ends when somebody who has libvirt's ear begins to restore.
    journal.record("phase_begin", name="libvirt")


def _guard(config: Config, journal: Journal) -> None:
    """Where the initramfs could not do it. A boot without a guard goes on, and that is on record."""
    try:
        guard.begin(config.state_dir)
    except HoldfastError as exc:
        journal.warn(f"the start of kernel {kexec.running_release()} is not guarded: {exc}")


def _spare_libvirt_questions(config: Config, journal: Journal) -> None:
    """It may always ask, which only takes longer."""
    kernel = journal.view["kernel"]
    try:
        capability_cache.take_over(config.state_dir, (kernel["from"], kernel["to"]))
    except (HoldfastError, OSError, ValueError) as exc:
        journal.warn(f"libvirt asks QEMU again what it can do before it restores VMs: {exc}")


def let_libvirt_ask(config: Config, journal: Journal) -> None:
    """What it knows of QEMU is of another kernel, so that no VM had to wait; no VM waits any more."""
    try:
        capability_cache.renew(config.state_dir)
    except (OSError, ValueError) as exc:
        journal.warn(f"restart libvirt's daemon when that suits: what it knows of QEMU is of the kernel before: {exc}")


def _unguard(config: Config, journal: Journal) -> None:
    """Somebody else may have jumped with a kernel of ours, after the end of its generation."""
    try:
        guard.forget_early(config.state_dir)
    except HoldfastError as exc:
        journal.warn(f"this host may be reset by a guard that nobody needs any more: {exc}")


def disarm(journal: Journal) -> None:
    """For a boot in which nothing is restored: whoever jumped with what we had loaded has armed its guard as well."""
    try:
        guard.end()
    except HoldfastError as exc:
        journal.warn(f"this host may be reset by the guard of {journal.generation}: {exc}")


def _why_it_died(journal: Journal) -> str:
    died = journal.view["kernel"].get("arrived") or journal.view["kernel"]["to"]
    words = kexec.last_words()
    return f"kernel {died} died before it had restored all VMs" + (f": {words}" if words else "")


def report_lost(journal: Journal) -> None:
    """Power loss or a firmware reset in the middle: RAM is gone, and every VM that was in it is named."""
    spared = _spared(journal)
    if journal.state in TERMINAL:
        # It may have come from its disk in this very boot; recover looks at libvirt for it.
        spared += ("resuming",)
    else:
        reason = "the host booted in another way than by the jump: the contents of its RAM are gone"
        journal.record("failed", reason=reason)
    _note_lost(journal, RAM_IS_GONE, but=spared)


def _spared(journal: Journal) -> Tuple[str, ...]:
    """States of VMs from which the end of a kernel takes nothing, or nothing that is ours to tell.

    After the end of the generation it is no business of ours what became of the VMs that had come back.
    """
    over = FREE if journal.state in TERMINAL else ()
    return (*OWED, "lost", "restarted", "given_up", *over)


def _note_lost(journal: Journal, error: str, but: Tuple[str, ...]) -> None:
    for vm in journal.vms:
        if vm["state"] in FREE:
            told = f"{error}; it is not started by itself, since it may have been moved away before"
            fields: Dict[str, Any] = {"error": told, "may_restart": False}
        else:
            fields = {"error": error}
        if vm["state"] not in but:
            journal.record("vm_lost", uuid=vm["uuid"], **fields)
