# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The matrix as one table (Markdown). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from .matrix import Row

HEAD = (
    "| what goes wrong | phase | RAM survives | it ends as | VMs | lost | run twice | back after |",
    "|---|---|---|---|---|---|---|---|",
)


def text(rows: Sequence[Row]) -> str:
    """One line per fault."""
    return "\n".join([*HEAD, *map(_line, rows)])


def _line(row: Row) -> str:
    fates = ", ".join(f"{name} {fate}" for name, fate in row.vms.items() if fate != "carried on") or "all carried on"
    back = f"{row.seconds_to_service:.0f} s" + (" *" if row.operator else "")
    verdict = "" if not row.trouble else f" **{'; '.join(row.trouble)}**"
    survives = "yes" if row.ram_survives else "no"
    counts = f"{row.vms_lost} | {row.vms_run_twice}"
    return f"| {row.name} | {row.phase} | {survives} | {row.outcome}{verdict} | {fates} | {counts} | {back} |"
