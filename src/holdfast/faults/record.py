# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of the matrix, on disk after each one, so that a run that is cut off keeps what it has and goes on later."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

# The outcome of a fault whose end nobody saw.
BROKEN_OFF = "broken off"


@dataclass(frozen=True)
class Row:
    """What one fault did. ``vms``: name to fate; ``trouble``: everything that is not as it has to be.

    ``seconds_to_service``: the longest silence of a VM that carried on, as seen from outside.
    """

    name: str
    phase: str
    ram_survives: bool
    outcome: str
    vms: dict[str, str]
    vms_lost: int
    vms_run_twice: int
    seconds_to_service: float
    operator: bool
    trouble: tuple[str, ...] = ()
    why: str = ""

    @property
    def is_right(self) -> bool:
        return not self.trouble


@dataclass
class Record:
    """All rows so far, in ``path`` as a JSON list. ``written``: how many this run has added."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    written: int = 0
    begun: float = field(default_factory=time.monotonic)

    @staticmethod
    def load(path: Path) -> Record:
        """What earlier runs left; an empty record when there is nothing that can be read."""
        try:
            entries = json.loads(path.read_text())
            rows = [Row(**{**entry, "trouble": tuple(entry["trouble"])}) for entry in entries]
        except (OSError, ValueError, TypeError, KeyError):
            rows = []
        return Record(path, rows)

    def is_done(self, name: str) -> bool:
        """Whether there is a row for this fault, and all was as it has to be."""
        return any(row.name == name and row.is_right for row in self.rows)

    def add(self, row: Row, took_s: float, left: int) -> None:
        """Write a row, in place of an earlier one of its name, and say so."""
        self.rows = placed(self.rows, row)
        self.written += 1
        self._write()
        print(told(row, took_s, time.monotonic() - self.begun, left), flush=True)

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps([asdict(row) for row in self.rows], indent=1) + "\n")
        draft.rename(self.path)


def placed(rows: Sequence[Row], row: Row) -> list[Row]:
    """The rows with this one in the place of its name, else at the end. Pure."""
    if row.name not in [known.name for known in rows]:
        return [*rows, row]
    return [row if known.name == row.name else known for known in rows]


def told(row: Row, took_s: float, elapsed_s: float, left: int) -> str:
    """A row for the person who waits. Pure."""
    verdict = "ok " if row.is_right else "BAD"
    line = f"  {verdict} {row.name}: {row.outcome}, service after {row.seconds_to_service:.0f} s"
    line += f" (this fault {took_s:.0f} s, so far {elapsed_s:.0f} s, {left} left)"
    return "\n".join([line, *(f"      {text}" for text in row.trouble)])
