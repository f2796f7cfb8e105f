# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was found, how bad it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..progress import ExitCode


class Level(StrEnum):
    """How bad a finding is. A warning stands in the way of nothing yet; a problem does."""

    GOOD = "good"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``remedy`` is empty for what is good."""

    subject: str
    level: Level
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Examination:
    """All findings about the controller, or about one host."""

    name: str
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The worst of its findings."""
        order = list(Level)
        return max((finding.level for finding in self.findings), key=order.index, default=Level.GOOD)


class NoFurther(Exception):
    """A finding after which there is nothing more to look at."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding


def good(subject: str, found: str) -> Finding:
    return Finding(subject, Level.GOOD, found)


def warning(subject: str, found: str, remedy: str) -> Finding:
    return Finding(subject, Level.WARNING, found, remedy)


def problem(subject: str, found: str, remedy: str) -> Finding:
    return Finding(subject, Level.PROBLEM, found, remedy)


def exit_code(examinations: Sequence[Examination]) -> ExitCode:
    """0 unless there is a problem somewhere."""
    found = any(examination.level is Level.PROBLEM for examination in examinations)
    return ExitCode.HOST_FAILED if found else ExitCode.DONE


def as_document(examinations: Sequence[Examination]) -> dict[str, Any]:
    """What ``--json`` prints. The controller comes first."""
    return {
        "examined": [
            {
                "name": examination.name,
                "level": examination.level.value,
                "findings": [
                    {"subject": one.subject, "level": one.level.value, "found": one.found, "remedy": one.remedy}
                    for one in examination.findings
                ],
            }
            for examination in examinations
        ],
        "exit_code": int(exit_code(examinations)),
    }
