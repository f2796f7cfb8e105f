# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench's result on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .figures import (
    TITLES,
    WAYS,
    Measurement,
    Subject,
    floor_of,
    pause_of,
    phase_medians,
    ratios,
    sizes_of,
    targets,
)


def show(measured: Sequence[Measurement], console: Console) -> None:
    """Print pauses, ratios, phases and targets."""
    console.print(pauses(measured))
    console.print(phases(measured))
    for target in targets(measured):
        console.print(target.verdict, style="" if target.reached else "bold", soft_wrap=True)


def pauses(measured: Sequence[Measurement]) -> Table:
    """One row per size: median pauses, and how they compare."""
    compared = {one.touched_mib: one for one in ratios(measured)}
    names = ["touched RAM", *(TITLES[way] for way in WAYS), "floor", "kexec ÷ holdfast", "reboot ÷ holdfast"]
    table = Table(*names, "holdfast ÷ floor", title="Pause of one guest, seconds")
    for size in sizes_of(measured):
        one = compared[size]
        times = [number(pause_of(measured, way, size)) for way in WAYS]
        quotients = [number(value) for value in (one.kexec_to_holdfast, one.reboot_to_holdfast, one.holdfast_to_floor)]
        table.add_row(f"{size} MiB", *times, number(floor_of(measured, size)), *quotients)
    return table


def phases(measured: Sequence[Measurement]) -> Table:
    """Where the time goes, by the host's own clock."""
    table = Table("", "touched RAM", "pause", "phases, seconds", title="Phases")
    for subject in Subject:
        for size in (0,) if subject is Subject.MINIMAL_INIT else sizes_of(measured):
            pause = pause_of(measured, subject, size)
            if pause is not None:
                parts = [f"{phase.name} {phase.seconds:.2f}" for phase in phase_medians(measured, subject, size)]
                table.add_row(TITLES[subject], f"{size} MiB" if size else "", number(pause), ", ".join(parts))
    return table


def number(value: float | None) -> str:
    """A figure for a table; a dash where nothing was measured."""
    return "-" if value is None else f"{value:.2f}"
