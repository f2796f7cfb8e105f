# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The timeline of one host as inline SVG: phases above, one bar per VM below, seconds at the foot."""

from __future__ import annotations

from html import escape
from typing import Any, List, Mapping, Sequence, Tuple

from . import figures
from .timeline import Bar, Phase, Timeline, ticks, timeline

# One unit is one CSS pixel at full width.
WIDTH = 1040
_LEFT, _RIGHT = 158, 728
_PAUSE, _RAM, _STATE, _MARK = 820, 902, 984, 1020
_LABEL_TOP, _BAND_TOP, _BAND_HEIGHT = 16, 58, 16
_ROWS_TOP, _ROW, _BAR_HEIGHT = 98, 30, 14
_CHAR = 6.9
_KNOWN_PHASES = ("preflight", "load", "suspend", "jump", "boot", "attach", "libvirt", "restore")


class _Scale:
    """Seconds to horizontal position."""

    def __init__(self, picture: Timeline) -> None:
        self._start = picture.start_s
        self._per_second = (_RIGHT - _LEFT) / picture.length_s

    def x(self, second: float) -> float:
        return round(_LEFT + (second - self._start) * self._per_second, 2)


def text(value: object) -> str:
    """Safe between tags and inside double-quoted attributes."""
    return escape(figures.printable(value), quote=True)


def svg(host: Mapping[str, Any]) -> str:
    """The picture as one ``<svg>`` element, or an empty string when there is nothing to draw."""
    picture = timeline(host)
    if picture is None:
        return ""
    scale = _Scale(picture)
    foot = _ROWS_TOP + max(len(picture.bars), 1) * _ROW
    parts = _axis(picture, scale, foot) + _band(picture.phases, scale, foot) + _headings(picture.bars)
    for index, bar in enumerate(picture.bars):
        parts += _row(bar, scale, _ROWS_TOP + index * _ROW)
    label = f"Timeline of {text(host['host'])}: phases, and each VM from pause to resume"
    return (
        f'<svg class="timeline" viewBox="0 0 {WIDTH} {foot + 34}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )


def _axis(picture: Timeline, scale: _Scale, foot: float) -> List[str]:
    parts = []
    for second in ticks(picture.start_s, picture.end_s):
        x = scale.x(second)
        css = "zero" if second == 0 else "grid"
        parts.append(f'<line class="{css}" x1="{x}" y1="{_ROWS_TOP - 8}" x2="{x}" y2="{foot + 4}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{foot + 20}">{second:g} s</text>')
    return parts


def _band(phases: Sequence[Phase], scale: _Scale, foot: float) -> List[str]:
    parts = []
    for phase, label_x in zip(phases, label_positions([_span(phase, scale) for phase in phases])):
        x, width = scale.x(phase.start_s), max(scale.x(phase.end_s) - scale.x(phase.start_s), 2.0)
        middle = x + width / 2
        css = phase.name if phase.name in _KNOWN_PHASES else "other"
        parts.append(
            f'<path class="leader" d="M{label_x:.1f} {_LABEL_TOP + 21} V{_LABEL_TOP + 25} '
            f'L{middle:.1f} {_BAND_TOP - 6} V{_BAND_TOP - 2}"/>'
        )
        parts.append(f'<text class="phase-name" x="{label_x:.1f}" y="{_LABEL_TOP}">{text(phase.name)}</text>')
        parts.append(
            f'<text class="phase-time" x="{label_x:.1f}" y="{_LABEL_TOP + 16}">{figures.seconds(phase.seconds)}</text>'
        )
        parts.append(
            f'<rect class="phase {css}" x="{x + 0.5:.2f}" y="{_BAND_TOP}" width="{max(width - 1, 1.5):.2f}" '
            f'height="{_BAND_HEIGHT}" rx="3"><title>{text(phase.name)} {figures.seconds(phase.seconds)}'
            "</title></rect>"
        )
    return parts


def _span(phase: Phase, scale: _Scale) -> Tuple[float, float]:
    """Where the label would like its middle, and how wide it is."""
    words = max(len(phase.name), len(figures.seconds(phase.seconds)))
    return (scale.x(phase.start_s) + scale.x(phase.end_s)) / 2, words * _CHAR + 10


def label_positions(wishes: Sequence[Tuple[float, float]]) -> List[float]:
    """Middles of labels that do not overlap: as wished, else pushed right, then back from the right edge."""
    middles: List[float] = []
    edge = float(_LEFT - 40)
    for wish, width in wishes:
        middles.append(max(wish, edge + width / 2))
        edge = middles[-1] + width / 2
    edge = float(WIDTH)
    for index in range(len(middles) - 1, -1, -1):
        width = wishes[index][1]
        middles[index] = min(middles[index], edge - width / 2)
        edge = middles[index] - width / 2
    return middles


def _headings(bars: Sequence[Bar]) -> List[str]:
    if not bars:
        return [f'<text class="empty" x="{_LEFT}" y="{_ROWS_TOP + 18}">No VM was paused.</text>']
    y = _ROWS_TOP - 14
    columns = ((_PAUSE, "pause"), (_RAM, "RAM"), (_STATE, "state"))
    return [f'<text class="heading" x="{x}" y="{y}">{word}</text>' for x, word in columns]


def _row(bar: Bar, scale: _Scale, top: float) -> List[str]:
    vm, middle = bar.vm, top + _ROW / 2
    baseline, bar_top = middle + 4.5, middle - _BAR_HEIGHT / 2
    name = text(figures.shortened(figures.printable(vm["name"]), 18))
    parts = [f'<g class="vm"><title>{_story(bar)}</title>', f'<text class="name" x="2" y="{baseline}">{name}</text>']
    parts += _segments(bar, scale, bar_top)
    parts.append(f'<text class="pause" x="{_PAUSE}" y="{baseline}">{_pause(vm)}</text>')
    parts.append(f'<text class="size" x="{_RAM}" y="{baseline}">{figures.size(vm["ram_bytes"])}</text>')
    parts.append(f'<text class="size" x="{_STATE}" y="{baseline}">{figures.size(vm["state_bytes"])}</text>')
    parts.append(_mark(vm, middle))
    return [*parts, "</g>"]


def _segments(bar: Bar, scale: _Scale, top: float) -> List[str]:
    lost = "" if bar.ended else " lost"
    spans = (
        ("saving", bar.start_s, bar.saved_s),
        ("held", bar.saved_s, bar.restore_s),
        ("restoring", bar.restore_s, bar.end_s),
    )
    parts = []
    for css, start, end in spans:
        width = scale.x(end) - scale.x(start)
        if width > 0:
            parts.append(
                f'<rect class="{css}{lost}" x="{scale.x(start)}" y="{top}" width="{max(width, 1.5):.2f}" '
                f'height="{_BAR_HEIGHT}"/>'
            )
    return parts


def _pause(vm: Mapping[str, Any]) -> str:
    return figures.seconds(vm["pause_s"]) if vm["result"] == "resumed" else text(vm["result"].replace("_", " "))


def _story(bar: Bar) -> str:
    vm = bar.vm
    told = [text(vm["name"]), f"state saved after {figures.seconds(bar.saved_s - bar.start_s)}"]
    if bar.restore_s < bar.end_s:
        told.append(f"restored in {figures.seconds(bar.end_s - bar.restore_s)}")
    told.append(f"paused {figures.seconds(vm['pause_s'])}" if bar.ended else "not resumed")
    return ", ".join(told)


def _mark(vm: Mapping[str, Any], middle: float) -> str:
    if vm["result"] == "resumed" and vm["ram_verified"]:
        return (
            f'<g class="good"><title>RAM verified</title><circle cx="{_MARK}" cy="{middle}" r="8"/>'
            f'<path d="M{_MARK - 3.6} {middle + 0.2} l2.6 2.8 l4.8 -5.6"/></g>'
        )
    word = "RAM not verified" if vm["result"] == "resumed" else text(vm["result"].replace("_", " "))
    css = "unsure" if vm["result"] == "resumed" else "bad"
    return (
        f'<g class="{css}"><title>{word}</title><circle cx="{_MARK}" cy="{middle}" r="8"/>'
        f'<path d="M{_MARK} {middle - 4} v4.6 M{_MARK} {middle + 3.6} v0.4"/></g>'
    )
