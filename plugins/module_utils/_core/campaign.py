# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One campaign at a time works on this host, whichever controller it is run from.

Its lock is a file beside the journal: it outlives the jump. It says whose it is; whether that controller still lives is
for controllers to judge. In it is also written that somebody wants the campaign to stop.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Iterator, Optional, Sequence

from . import durable
from .config import RUN_DIR

NAME = "campaign.json"


@dataclass(frozen=True)
class Holder:
    """Whose campaign it is. ``id`` tells controllers apart, the others are for people; ``since``: seconds, epoch.

    ``stop``: who wants it to begin no further host, empty for nobody.
    """

    id: str
    controller: str = ""
    user: str = ""
    since: float = 0.0
    stop: str = ""

    @property
    def place(self) -> str:
        """Where it runs, as far as its id tells: whoever asks from there can tell whether it lives."""
        return self.id.rpartition("/")[0].rpartition("/")[0]


def holder(state_dir: Path) -> Optional[Holder]:
    """Who holds this host, or None. A file that makes no sense is somebody's, too."""
    try:
        text = (state_dir / NAME).read_text()
    except FileNotFoundError:
        return None
    try:
        raw = json.loads(text)
        known = {key: str(raw[key]) for key in ("id", "controller", "user", "stop")}
        return Holder(**known, since=float(raw["since"]))
    except (KeyError, TypeError, ValueError):
        return Holder(id="unknown", controller="an unknown controller")


def take(state_dir: Path, wanted: Holder, over: Sequence[str] = ()) -> Optional[Holder]:
    """Hold the host for ``wanted``. Returns who holds it instead, unless that one's id is in ``over``."""
    with _alone():
        found = holder(state_dir)
        if found and found.id != wanted.id and found.id not in over:
            return found
        if not found or found.id != wanted.id:
            _write(state_dir, wanted)
    return None


def ask_to_stop(state_dir: Path, who: str) -> Optional[Holder]:
    """Have whoever holds the host find that it is to begin no further one. Returns who that is, None if nobody."""
    with _alone():
        found = holder(state_dir)
        if found and not found.stop:
            found = replace(found, stop=who)
            _write(state_dir, found)
    return found


def release(state_dir: Path, id: str = "") -> Optional[Holder]:
    """End the hold of ``id``, or of whoever has it when that is empty. Returns whose it was, None if nothing was."""
    with _alone():
        found = holder(state_dir)
        if not found or (id and found.id != id):
            return None
        (state_dir / NAME).unlink()
        durable.sync(state_dir)
    return found


def _write(state_dir: Path, wanted: Holder) -> None:
    durable.write_text(state_dir / NAME, json.dumps(asdict(wanted)) + "\n")


@contextmanager
def _alone() -> Iterator[None]:
    """Look and write in one piece. Those who wait do so for milliseconds."""
    RUN_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(RUN_DIR / "campaign.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
