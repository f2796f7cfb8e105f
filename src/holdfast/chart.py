# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report in the terminal: for each host the phases, and a bar per VM from pause to resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ansible_collections.holdfast.kvm.plugins.module_utils._report import figures
from ansible_collections.holdfast.kvm.plugins.module_utils._report.build import carried_on, longest_pause
from ansible_collections.holdfast.kvm.plugins.module_utils._report.summary import RESULT_WORDS
from ansible_collections.holdfast.kvm.plugins.module_utils._report.timeline import Bar, Timeline, ticks, timeline

RESULT_COLOURS = {"upgraded": "green", "fell_back": "yellow", "aborted": "yellow", "skipped": "dim", "failed": "red"}
PHASE_COLOURS = {
    "suspend": "yellow",
    "jump": "magenta",
    "boot": "blue",
    "attach": "cyan",
    "libvirt": "white",
    "restore": "green",
}
LONGEST_WAITS = 3
# What stands beside the bars: name, pause, RAM, state, mark and the gaps between them.
_BESIDE = 66
Segment = tuple[float, float, str, str]


def chart(report: Mapping[str, Any], width: int) -> RenderableType:
    """The whole report for a terminal of ``width`` columns."""
    parts: list[RenderableType] = [Text(figures.printable(report["campaign"]), "bold")]
    for host in report["hosts"]:
        parts += ["", *_host(host, max(width - _BESIDE, 16))]
    return Group(*parts)


def _host(host: Mapping[str, Any], cells: int) -> list[RenderableType]:
    parts: list[RenderableType] = [_title(host)]
    if _changes(host):
        parts.append(_changes(host))
    if host["error"]:
        parts.append(Text(figures.printable(host["error"]), RESULT_COLOURS[host["result"]]))
    picture = timeline(host)
    if picture:
        parts.append(_phases(picture, cells))
        parts.append(_bars(picture, cells))
    if host["boot"]:
        parts.append(_waited_for(host["boot"]))
    parts += [Text(f"warning: {figures.printable(line)}", "yellow") for line in host["warnings"]]
    return parts


def _title(host: Mapping[str, Any]) -> Text:
    return Text.assemble(
        (figures.printable(host["host"]), "bold"), "  ", (RESULT_WORDS[host["result"]], RESULT_COLOURS[host["result"]])
    )


def _changes(host: Mapping[str, Any]) -> Text:
    """Kernel, QEMU and VMs in one line, as far as they are known."""
    told = []
    if host["kernel"]["to"]:
        told.append(f"kernel {figures.change(host['kernel']['from'], host['kernel']['to'])}")
    if host["qemu"]["to"]:
        told.append(f"QEMU {figures.change(host['qemu']['from'], host['qemu']['to'])}")
    if host["vms"]:
        told.append(f"{carried_on(host['vms'])} of {len(host['vms'])} VMs carried on")
    if longest_pause(host["vms"]) is not None:
        told.append(f"longest pause {figures.seconds(longest_pause(host['vms']))}")
    return Text(", ".join(told))


def _phases(picture: Timeline, cells: int) -> RenderableType:
    """The band of phases, and a key to it."""
    segments = [
        (phase.start_s, phase.end_s, "█", PHASE_COLOURS.get(phase.name, "bright_black")) for phase in picture.phases
    ]
    grid = _grid()
    grid.add_row(Text("phases", "dim"), cells_of(picture, segments, cells))
    key = [
        Text.assemble(
            ("■ ", PHASE_COLOURS.get(phase.name, "bright_black")),
            f"{figures.printable(phase.name)} {figures.seconds(phase.seconds)}",
        )
        for phase in (*picture.earlier, *picture.phases)
    ]
    return Group(Columns(key, padding=(0, 2)), grid)


def _bars(picture: Timeline, cells: int) -> Table:
    grid = _grid()
    for bar in picture.bars:
        vm = bar.vm
        grid.add_row(
            Text(figures.shortened(figures.printable(vm["name"]), 18)),
            cells_of(picture, _segments(bar), cells),
            _outcome(vm),
            Text(figures.size(vm["ram_bytes"]), "dim"),
            Text(figures.size(vm["state_bytes"]), "dim"),
            Text("verified", "green") if vm["ram_verified"] else Text("unverified", "yellow"),
        )
    grid.add_row("", _axis(picture, cells))
    return grid


def _outcome(vm: Mapping[str, Any]) -> Text:
    """The pause of a VM that carried on, else what became of it."""
    if vm["result"] == "resumed":
        return Text(figures.seconds(vm["pause_s"]), "bold")
    return Text(vm["result"].replace("_", " "), "bold yellow" if vm["result"] == "restarted" else "bold red")


def _axis(picture: Timeline, cells: int) -> Text:
    """Seconds under the bars; a label that would touch the one before is left out."""
    line = ""
    for second in ticks(picture.start_s, picture.end_s, about=max(cells // 7, 2)):
        place = round((second - picture.start_s) / picture.length_s * cells)
        label = f"{second:g} s"
        if (not line or place > len(line)) and place + len(label) <= cells:
            line = line.ljust(place) + label
    return Text(line, "dim")


def _waited_for(boot: Sequence[Mapping[str, Any]]) -> Text:
    """What in the new kernel's boot took longest, in its order; the page has all of it."""
    longest = sorted(boot, key=lambda step: -step["seconds"])[:LONGEST_WAITS]
    told = (f"{figures.printable(step['name'])} {figures.seconds(step['seconds'])}" for step in boot if step in longest)
    return Text(f"waited longest for: {', '.join(told)}", "dim")


def _grid() -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    grid.add_column(width=18, no_wrap=True)
    grid.add_column(no_wrap=True)
    for _ in range(4):
        grid.add_column(justify="right", no_wrap=True)
    return grid


def _segments(bar: Bar) -> list[Segment]:
    held = "green" if bar.ended else "red"
    return [
        (bar.start_s, bar.saved_s, "█", "yellow" if bar.ended else "red"),
        (bar.saved_s, bar.restore_s, "░", held),
        (bar.restore_s, bar.end_s, "█", held),
    ]


def cells_of(picture: Timeline, segments: Sequence[Segment], cells: int) -> Text:
    """``cells`` characters; each shows the segment that covers most of it, or a space."""
    text, step = Text(), picture.length_s / cells
    for index in range(cells):
        begin = picture.start_s + index * step
        shares = [(min(end, begin + step) - max(start, begin), char, colour) for start, end, char, colour in segments]
        share, char, colour = max(shares, default=(0.0, " ", ""), key=lambda entry: entry[0])
        text.append(char if share > 0 else " ", colour if share > 0 else "")
    return text
