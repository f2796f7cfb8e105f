# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel complains of in its log: errors that it did not have under the kernel before are told.

They end no roll. Every kernel has some that mean nothing, and a new one has new ones; what tells of damage is in its
taint. Of the log before, only what tells its lines apart is on record, without their numbers.
"""

from __future__ import annotations

import hashlib
import re
from typing import List, Optional, Sequence

from .command import run
from .errors import CommandFailed
from .printable import one_line

ERRORS = ("journalctl", "--quiet", "--dmesg", "--priority=err", "--output=cat")
# The guard of a jump lets its timer run on, which the kernel takes for an accident.
OURS = re.compile(r"watchdog: watchdog\d+: watchdog did not stop!")
NUMBER = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|[0-9]+", re.IGNORECASE)
KIND_DIGITS = 8
MOST_KINDS = 500
MOST_TOLD = 5
LONGEST = 300


def complaints() -> Optional[List[str]]:
    """Lines of this boot's kernel log at the level of an error or worse, in order, but for what is of our own doing.

    None when nobody can tell.
    """
    try:
        return [line for line in run(ERRORS).splitlines() if not OURS.fullmatch(line)]
    except CommandFailed:
        return None


def kinds(lines: Optional[Sequence[str]]) -> Optional[List[str]]:
    """What tells lines apart, but for numbers, addresses and times in them. Pure."""
    return None if lines is None else list(dict.fromkeys(map(_kind, lines)))[:MOST_KINDS]


def new_ones(before: Optional[Sequence[str]], lines: Optional[Sequence[str]]) -> List[str]:
    """A sentence for each of the first kinds that are not among those of ``before``. Pure."""
    if before is None or lines is None:
        return []
    first = {_kind(line): line for line in reversed(lines)}
    found = [first[kind] for kind in dict.fromkeys(map(_kind, lines)) if kind not in before]
    told = [f"an error in the kernel's log that was not there before: {one_line(line)[:LONGEST]}" for line in found]
    if len(told) > MOST_TOLD:
        more = f"{len(told) - MOST_TOLD} more errors of other kinds in the kernel's log: journalctl -k -p err"
        return [*told[:MOST_TOLD], more]
    return told


def _kind(line: str) -> str:
    return hashlib.sha256(NUMBER.sub("#", line).encode()).hexdigest()[:KIND_DIGITS]
