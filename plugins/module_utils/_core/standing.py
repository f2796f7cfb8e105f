# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be done about one VM of a generation, from what the journal says and what libvirt shows. Pure.

The same answer serves an agent whose own work failed and one that finds what a killed agent left behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .journal import HELD


class Step(Enum):
    """What brings the VM on."""

    NOTHING = "nothing is left to do"
    WAIT = "its state is being saved just now"
    GO_ON = "it waits, paused, in a QEMU that has its newest state"
    NOTE_RUNNING = "it runs already"
    NOTE_SAVED = "its state was saved, but that is not on record"
    RESTORE = "its state waits in the pool"
    RESTORE_ANEW = "a QEMU was started for it and never took its state"
    CONTRADICTION = "it runs although its saved state was never used"
    LOST = "neither a QEMU nor a whole saved state is left of it"
    LEFT = (
        "somebody else shut it off, saved it or moved it away meanwhile, or nobody knows why it is off; "
        "it is not started here by itself"
    )


@dataclass(frozen=True)
class Sighting:
    """One VM: the journal's word for it, libvirt's (empty without a QEMU), a job under way, a whole state file.

    ``left``: its QEMU may have ended because somebody wanted that; libvirt does not say that it broke.
    """

    recorded: str
    domain: str = ""
    busy: bool = False
    state_whole: bool = False
    left: bool = False


def step_for(seen: Sighting) -> Step:
    """The one safe thing to do next."""
    if seen.recorded == "paused":
        return _paused(seen)
    if seen.recorded == "resuming":
        return _resuming(seen)
    if seen.recorded in HELD:
        return _held(seen)
    return Step.NOTHING


def _paused(seen: Sighting) -> Step:
    """Paused by us; whether its state was saved after that is to be found out."""
    if seen.busy:
        return Step.WAIT
    if not seen.domain:
        return Step.NOTE_SAVED if seen.state_whole else Step.LEFT if seen.left else Step.LOST
    return Step.GO_ON if seen.domain == "paused" else Step.NOTE_RUNNING


def _resuming(seen: Sighting) -> Step:
    """Its saved state counts as used. The QEMU that took it is all there is."""
    if not seen.domain:
        return Step.LEFT if seen.left else Step.LOST
    return Step.GO_ON if seen.domain == "paused" else Step.NOTE_RUNNING


def _held(seen: Sighting) -> Step:
    """Its saved state was not used yet."""
    if not seen.domain:
        return Step.RESTORE
    return Step.RESTORE_ANEW if seen.domain == "paused" else Step.CONTRADICTION
