# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the doctor found, in the terminal: one line per finding, with its remedy below it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ansible_collections.holdfast.kvm.plugins.module_utils._report import figures

from .findings import Examination, Finding, Level

MARKS = {Level.GOOD: ("✓", "green"), Level.WARNING: ("!", "yellow"), Level.PROBLEM: ("✗", "red")}


def sheet(examinations: Sequence[Examination]) -> RenderableType:
    """All of it, and a last line that counts."""
    parts: list[RenderableType] = []
    for examination in examinations:
        parts += [Text(figures.printable(examination.name), "bold"), _findings(examination), ""]
    return Group(*parts, _sum(examinations))


def _findings(examination: Examination) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in examination.findings:
        mark, colour = MARKS[finding.level]
        table.add_row(Text(mark, colour), Text(finding.subject), _words(finding, colour))
    return table


def _words(finding: Finding, colour: str) -> RenderableType:
    found = Text(figures.printable(finding.found), "" if finding.level is Level.GOOD else colour)
    return Group(found, Text(figures.printable(finding.remedy))) if finding.remedy else found


def _sum(examinations: Sequence[Examination]) -> Text:
    counted = Counter(finding.level for examination in examinations for finding in examination.findings)
    problems, warnings = counted[Level.PROBLEM], counted[Level.WARNING]
    if not problems and not warnings:
        return Text("Nothing stands in the way.", "green")
    told = [
        f"{number} {word}{'s' if number > 1 else ''}"
        for number, word in ((problems, "problem"), (warnings, "warning"))
        if number
    ]
    return Text(", ".join(told), "red" if problems else "yellow")
