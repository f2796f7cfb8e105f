# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Early in every boot: find out whose boot it is, and attach the pool accordingly."""

from __future__ import annotations

import json
from enum import Enum

from . import durable, kexec
from .cmdline import generation_of
from .config import Config
from .errors import HoldfastError, JournalError
from .journal import Journal, open_journal
from .pool import Content, Pool, open_pool

OWNER = "generation.json"


class Boot(Enum):
    """How this boot relates to the journal."""

    ORDINARY = "no generation is in flight"
    SAME = "the boot in which the generation began"
    JUMPED = "the boot that the generation asked for"
    AGAIN = "the generation already arrived in this boot"
    STRANGE = "another boot than the generation asked for"


def judge_boot(journal: Journal, boot_id: str, cmdline: str) -> Boot:
    """Pure: which boot is this, by the journal, the boot id and the kernel's command line?"""
    if journal.state == "none" or not (journal.holds_suspended or journal.state == "jumping"):
        return Boot.ORDINARY
    if boot_id == journal.view["boot_id"]["from"]:
        return Boot.SAME
    if boot_id == journal.view["boot_id"]["to"]:
        return Boot.AGAIN
    if journal.state == "jumping" and generation_of(cmdline) == journal.generation:
        return Boot.JUMPED
    return Boot.STRANGE


def attach(config: Config) -> Boot:
    """Attach the pool: as it is when it holds suspended VMs, anew when it cannot hold any.

    Raises JournalError when the journal is damaged (the pool is then left alone), HoldfastError when the pool's own
    record does not agree with the journal.
    """
    pool = open_pool(config)
    journal = open_journal(config.state_dir)
    boot = judge_boot(journal, kexec.boot_id(), kexec.running_cmdline())
    if boot is Boot.STRANGE:
        _report_lost(journal)
        pool.attach(Content.FRESH)
    elif boot is Boot.ORDINARY:
        pool.attach(Content.FRESH)
    elif boot is Boot.JUMPED:
        _arrive(pool, journal)
    else:
        pool.attach(Content.TRUSTED)
    return boot


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


def _arrive(pool: Pool, journal: Journal) -> None:
    journal.record("phase_end", name="boot")
    journal.record("arrived", boot_id=kexec.boot_id(), kernel=kexec.running_release())
    journal.record("phase_begin", name="attach")
    pool.attach(Content.TRUSTED)
    check_owner(pool, journal)
    journal.record("attached")
    journal.record("phase_end", name="attach")


def _report_lost(journal: Journal) -> None:
    """Power loss or a firmware reset in the middle: RAM is gone, and every VM that was in it is named."""
    for vm in journal.vms:
        if vm["state"] in ("suspended", "failed", "paused"):
            journal.record("vm_lost", uuid=vm["uuid"], error="its RAM was lost: the host booted without the jump")
    if journal.state not in ("failed", "aborted", "restored"):
        reason = "the host booted in another way than by the jump: the contents of the pool are gone"
        journal.record("failed", reason=reason)
    if journal.state == "none":
        raise JournalError("no generation to report")
