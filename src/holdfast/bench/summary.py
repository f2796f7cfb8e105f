# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench's result on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .figures import (
    RESTORED,
    TITLES,
    WAYS,
    Measurement,
    Subject,
    caption,
    floor_of,
    pause_of,
    phase_medians,
    ratios,
    saved_mib,
    sizes_of,
    speed_kept,
    targets,
)

LETTERS = dict(zip(WAYS, "abc", strict=True))


def show(measured: Sequence[Measurement], setting: Mapping[str, Any], console: Console) -> None:
    """Print pauses, ratios, targets, and where the time goes."""
    console.print(f"\n{caption(setting)}", soft_wrap=True)
    console.print(pauses(measured))
    for target in targets(measured):
        console.print(target.verdict, style="" if target.reached else "bold", soft_wrap=True)
    for subject in RESTORED:
        told = number(speed_kept(measured, subject))
        console.print(f"{TITLES[subject]}: the guest reads its RAM right after at {told} of its speed before")
    console.print("\nWhere the time goes, seconds by the host's own clock")
    for subject in Subject:
        if subject is not Subject.MINIMAL_INIT:
            console.print(phases(measured, subject))


def pauses(measured: Sequence[Measurement]) -> Table:
    """One row per size: median pauses, and how they compare."""
    table = _table("Pause of one guest, seconds, seen from outside")
    names = [f"({letter}) {TITLES[way]}" for way, letter in LETTERS.items()]
    for name in ("GiB touched", *names, "floor", "b÷a", "c÷a", "a÷floor"):
        table.add_column(name, justify="right")
    for one in ratios(measured):
        size = one.touched_mib
        seconds = [pause_of(measured, way, size) for way in WAYS] + [floor_of(measured, size)]
        quotients = [one.kexec_to_holdfast, one.reboot_to_holdfast, one.holdfast_to_floor]
        table.add_row(f"{size / 1024:g}", *map(number, [*seconds, *quotients]))
    return table


def phases(measured: Sequence[Measurement], subject: Subject) -> Table:
    """One row per size: the phases of one way, and how much was written for the guest."""
    sizes = sizes_of(measured)
    names = list(dict.fromkeys(phase.name for size in sizes for phase in phase_medians(measured, subject, size)))
    table = _table(TITLES[subject])
    for name in ("GiB", "pause", *names, "MiB written"):
        table.add_column(name, justify="right")
    for size in sizes:
        parts = {phase.name: phase.seconds for phase in phase_medians(measured, subject, size)}
        seconds = [pause_of(measured, subject, size), *(parts.get(name) for name in names)]
        table.add_row(f"{size / 1024:g}", *map(number, [*seconds, saved_mib(measured, subject, size)]))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))


def number(value: float | None) -> str:
    """A figure of three digits or so for a table; a dash where nothing was measured."""
    return "-" if value is None else f"{value:.{1 if value >= 10 else 2}f}"
