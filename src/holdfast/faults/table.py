# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The matrix as one table (Markdown). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from .record import Row

HEAD = (
    "| what goes wrong | phase | RAM survives | it ends as | VMs | lost | run twice | back after |",
    "|---|---|---|---|---|---|---|---|",
)
FOOT = "\\* after somebody did what the report said"


def text(rows: Sequence[Row]) -> str:
    """One line per fault."""
    return "\n".join([*HEAD, *map(_line, rows)])


def notes(rows: Sequence[Row]) -> str:
    """What stands below the table: what its star means, and why a fault that is not survived is not."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.why:
            reasons.setdefault(row.why, []).append(row.name)
    told = [f"* {'; '.join(names)}: {why}." for why, names in reasons.items()]
    return "\n".join([*([FOOT, ""] if any(row.operator for row in rows) else []), *told])


def _line(row: Row) -> str:
    fates = ", ".join(f"{name} {fate}" for name, fate in row.vms.items() if fate != "carried on") or "all carried on"
    fates = fates if row.vms else "nobody knows"
    back = f"{row.seconds_to_service:.0f} s" + (" *" if row.operator else "")
    verdict = "" if not row.trouble else f" **{'; '.join(row.trouble)}**"
    survives = "yes" if row.ram_survives else "no"
    counts = f"{row.vms_lost} | {row.vms_run_twice}"
    return f"| {row.name} | {row.phase} | {survives} | {row.outcome}{verdict} | {fates} | {counts} | {back} |"
