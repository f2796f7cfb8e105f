# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Upgrades whose controller died on this machine: what was asked for, so that ``recover --resume`` can go on with it.

An upgrade at work holds a lock on its record, which ends with its process however that ends. A record that nobody holds
is of one that died; one that came to an end of its own, with whatever result, leaves none.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput

FOLDER = "unfinished"


@dataclass(frozen=True)
class Asked:
    """The words after ``holdfast``, where that was called, for which inventory, and when (seconds, epoch)."""

    words: tuple[str, ...]
    folder: str
    inventory: str
    since: float

    @property
    def told(self) -> str:
        """For people. Values of variables may be nobody's business, so they are left out."""
        return f"holdfast {' '.join(map(_shown, ('', *self.words), self.words))} (in {self.folder})"


def asked(words: Sequence[str], inventory: Path) -> Asked:
    """What is asked for here and now."""
    return Asked(tuple(words), str(Path.cwd()), str(inventory.resolve()), time.time())


@contextlib.contextmanager
def on_record(state: Path, wanted: Asked) -> Iterator[None]:
    """While this lasts, what is asked for is on record. It takes the place of what died before for this inventory.

    ``state``: the directory of this person's runs. Raises BadInput when nothing can be written there.
    """
    forget(died(state, wanted.inventory))
    path = state / FOLDER / f"{secrets.token_hex(8)}.json"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be made on this machine: {error.strerror}",
            "free some room there, or set XDG_STATE_HOME to a directory that can be written",
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.write(handle, json.dumps(asdict(wanted)).encode())
        os.fsync(handle)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def died(state: Path, inventory: str) -> tuple[tuple[Path, Asked], ...]:
    """Records of upgrades of this inventory that nobody works on any more, the newest last."""
    found = [(path, record) for path in (state / FOLDER).glob("*.json") if (record := _left_behind(path))]
    return tuple(sorted((one for one in found if one[1].inventory == inventory), key=lambda one: one[1].since))


def forget(records: Sequence[tuple[Path, Asked]]) -> None:
    """Go on with none of these."""
    for path, _asked in records:
        path.unlink(missing_ok=True)


def _left_behind(path: Path) -> Asked | None:
    """What is on this record, unless somebody holds it, or it was cut off while it was written."""
    try:
        with path.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            raw = json.load(handle)
        return Asked(tuple(raw["words"]), raw["folder"], raw["inventory"], float(raw["since"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _shown(before: str, word: str) -> str:
    for option in ("--extra-vars=", "-e"):
        if word.startswith(option) and word != option:
            return f"{option}…"
    return "…" if before in ("-e", "--extra-vars") else shlex.quote(word)
