# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of the bench: pauses over touched RAM, where the time of each way goes, and how far the floor is."""

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
    "boot": "#CCCCCC",
    "attach": "#F0E442",
    "libvirt": "#999999",
    "restore": "#009E73",
    "renew": "#005F45",
}
# Before the pause begins.
NOT_PAUSED = ("load",)
# One colour, one name: suspend and save both end with the guest's state outside its QEMU.
NAMES = {
    "suspend": "suspend / save",
    "save": "suspend / save",
    "libvirt": "wait for libvirt",
    "renew": "suspend + restore",
}


def draw(measured: Sequence[Measurement], caption: str, folder: Path) -> None:
    """Write ``bench.png`` and ``bench.svg``. ``caption``: what was measured on."""
    # Not by pyplot: that looks for a screen.
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    axes = figure.subplot_mosaic("AB;AC", width_ratios=(1.1, 1), height_ratios=(1.35, 1))
    _draw_pauses(axes["A"], measured)
    size = max(sizes_of(measured), default=0)
    ways = [(TITLES[way], pause_of(measured, way, size), phase_medians(measured, way, size)) for way in WAYS]
    _draw_bars(axes["B"], f"Where the time goes, {size / 1024:g} GiB touched", ways)
    renewal = (TITLES[one := Subject.ONLY_QEMU], pause_of(measured, one, size), phase_medians(measured, one, size))
    floor = ("floor", *_floor_bar(measured, size))
    _draw_bars(axes["C"], "holdfast and the floor, enlarged", [ways[0], renewal, floor])
    axes["C"].set_xlabel("seconds (parts by the host's clock)")
    figure.legend(*_legend(axes["B"], axes["C"]), frameon=False, loc="outside lower right", ncols=7)
    figure.suptitle(caption, x=0.01, ha="left", fontsize="small", color="#555555")
    for kind in ("png", "svg"):
        figure.savefig(folder / f"bench.{kind}", dpi=130)


def _draw_pauses(axes: Any, measured: Sequence[Measurement]) -> None:
    sizes = sizes_of(measured)
    lines = [(TITLES[way], COLOURS[way], "-o", [pause_of(measured, way, size) for size in sizes]) for way in WAYS]
    floors = [floor_of(measured, size) for size in sizes]
    lines.append(("floor: bare QEMU + kexec to a minimal init", FLOOR_COLOUR, "--.", floors))
    for title, colour, style, pauses in lines:
        points = [(size / 1024, pause) for size, pause in zip(sizes, pauses, strict=True) if pause is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, label=title, linewidth=2)
    axes.set_title("Pause of one guest, seen from outside")
    axes.set_xlabel("RAM touched by the guest, GiB")
    axes.set_ylabel("seconds")
    axes.set_xticks([size / 1024 for size in sizes], [f"{size / 1024:g}" for size in sizes])
    axes.set_xlim(0, max(sizes, default=1024) / 1024 * 1.14)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    _name_ends(axes, [(pauses[-1], colour) for _, colour, _, pauses in lines if pauses and pauses[-1] is not None])


def _name_ends(axes: Any, ends: Sequence[tuple[float, str]]) -> None:
    """Write the last value beside each line, pushed up where it would cover the one below."""
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    lowest = 0.0
    for value, colour in sorted(ends):
        at = max(value, lowest)
        axes.text(right / 1.14 * 1.025, at, f"{value:.1f} s", color=colour, va="center")
        lowest = at + 0.04 * top


def _floor_bar(measured: Sequence[Measurement], size: int) -> tuple[float | None, tuple[Phase, ...]]:
    """The floor as one bar in the colours of the ways: QEMU's end, the jump, QEMU's return."""
    steps = {phase.name: phase.seconds for phase in phase_medians(measured, Subject.BARE_QEMU, size)}
    jump = pause_of(measured, Subject.MINIMAL_INIT, 0)
    if not steps or jump is None:
        return None, ()
    save_s = steps.pop("save") + steps.pop("quit")
    return floor_of(measured, size), (Phase("save", save_s), Phase("boot", jump), Phase("restore", sum(steps.values())))


def _draw_bars(axes: Any, title: str, bars: Sequence[tuple[str, float | None, Sequence[Phase]]]) -> None:
    """One bar per measured pause; what the phases do not explain is left white."""
    rows = [(name, pause_s, phases) for name, pause_s, phases in bars if pause_s is not None]
    for row, (_, pause_s, phases) in enumerate(rows):
        _draw_bar(axes, row, phases, pause_s)
    axes.set_yticks(range(len(rows)), [name.replace(" + ", "\n+ ") for name, _, _ in rows])
    axes.invert_yaxis()
    axes.margins(x=0.13)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bar(axes: Any, row: int, phases: Sequence[Phase], pause_s: float) -> None:
    left = 0.0
    for phase in phases:
        if phase.name not in NOT_PAUSED:
            colour = PHASE_COLOURS.get(phase.name, "#DDDDDD")
            axes.barh(row, phase.seconds, left=left, color=colour, label=NAMES.get(phase.name, phase.name), height=0.55)
            left += phase.seconds
    axes.barh(row, pause_s, color="none", edgecolor="black", linewidth=0.8, height=0.55)
    axes.annotate(f"{pause_s:.1f} s", (pause_s, row), xytext=(4, 0), textcoords="offset points", va="center")


def _legend(*of: Any) -> tuple[list[Any], list[str]]:
    """One entry per phase, in the order of the phases."""
    known: dict[str, Any] = {}
    for axes in of:
        handles, names = axes.get_legend_handles_labels()
        known.update(zip(names, handles, strict=True))
    order = [name for name in dict.fromkeys(NAMES.get(name, name) for name in PHASE_COLOURS) if name in known]
    return [known[name] for name in order], order
