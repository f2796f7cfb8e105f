# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of the bench: pauses over touched RAM, and where the time of each way goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .figures import (
    TITLES,
    WAYS,
    Measurement,
    Phase,
    Subject,
    floor_of,
    pause_of,
    phase_medians,
    sizes_of,
)

# Okabe and Ito's colours, told apart by everybody.
COLOURS = {Subject.HOLDFAST: "#0072B2", Subject.SAVE_KEXEC: "#E69F00", Subject.SAVE_REBOOT: "#D55E00"}
FLOOR_COLOUR = "#777777"
PHASE_COLOURS = {
    "suspend": "#56B4E9",
    "save": "#56B4E9",
    "sync": "#A8D8F0",
    "jump": "#CC79A7",
    "boot": "#BBBBBB",
    "attach": "#F0E442",
    "restore": "#009E73",
}
# Before the pause begins.
NOT_PAUSED = ("load",)
# One colour, one name: both end with the guest's state outside its QEMU.
NAMES = {"suspend": "suspend / save", "save": "suspend / save"}


def draw(measured: Sequence[Measurement], folder: Path) -> None:
    """Write ``bench.png`` and ``bench.svg``."""
    # Not by pyplot: that looks for a screen.
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_pauses(left, measured)
    _draw_phases(right, measured)
    for kind in ("png", "svg"):
        figure.savefig(folder / f"bench.{kind}", dpi=130)


def _draw_pauses(axes: Any, measured: Sequence[Measurement]) -> None:
    sizes = sizes_of(measured)
    for way in WAYS:
        points = [(size / 1024, pause) for size in sizes if (pause := pause_of(measured, way, size)) is not None]
        _draw_line(axes, points, TITLES[way], COLOURS[way], "-o")
    points = [(size / 1024, pause) for size in sizes if (pause := floor_of(measured, size)) is not None]
    _draw_line(axes, points, "floor (bare QEMU + kexec to a minimal init)", FLOOR_COLOUR, "--.")
    axes.set_title("Pause of one guest, seen from outside")
    axes.set_xlabel("RAM touched by the guest, GiB")
    axes.set_ylabel("seconds")
    axes.set_xticks([size / 1024 for size in sizes], [f"{size / 1024:g}" for size in sizes])
    axes.set_xlim(0, max(sizes, default=1024) / 1024 * 1.12)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")


def _draw_line(axes: Any, points: Sequence[tuple[float, float]], title: str, colour: str, style: str) -> None:
    if not points:
        return
    axes.plot([x for x, _ in points], [y for _, y in points], style, color=colour, label=title, linewidth=2)
    x, y = points[-1]
    axes.annotate(f"{y:.1f} s", (x, y), xytext=(7, 0), textcoords="offset points", color=colour, va="center")


def _draw_phases(axes: Any, measured: Sequence[Measurement]) -> None:
    """One bar per way at the largest size; what the phases do not explain is left white."""
    size = max(sizes_of(measured), default=0)
    rows = [way for way in WAYS if pause_of(measured, way, size) is not None]
    for row, way in enumerate(rows):
        _draw_bar(axes, row, phase_medians(measured, way, size), pause_of(measured, way, size) or 0.0)
    axes.set_yticks(range(len(rows)), [TITLES[way].replace(" + ", "\n+ ") for way in rows])
    axes.invert_yaxis()
    axes.margins(x=0.13)
    axes.set_title(f"Where the time goes, {size / 1024:g} GiB touched")
    axes.set_xlabel("seconds (phases by the host's clock)")
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    known = dict(zip(names, handles, strict=True))
    axes.legend(known.values(), known.keys(), frameon=False, loc="lower center", ncols=3, bbox_to_anchor=(0.5, -0.34))


def _draw_bar(axes: Any, row: int, phases: Sequence[Phase], pause_s: float) -> None:
    left = 0.0
    for phase in phases:
        if phase.name not in NOT_PAUSED:
            colour = PHASE_COLOURS.get(phase.name, "#DDDDDD")
            axes.barh(row, phase.seconds, left=left, color=colour, label=NAMES.get(phase.name, phase.name), height=0.55)
            left += phase.seconds
    axes.barh(row, pause_s, color="none", edgecolor="black", linewidth=0.8, height=0.55)
    axes.annotate(f"{pause_s:.1f} s", (pause_s, row), xytext=(4, 0), textcoords="offset points", va="center")
