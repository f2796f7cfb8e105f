# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three ways to show a run: drawn in a terminal, as plain lines, as JSON lines. All of them only read a Progress."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ansible_collections.holdfast.kvm.plugins.module_utils._report import figures

from .progress import (
    VMS_IN_TROUBLE,
    Happening,
    HostProgress,
    HostStatus,
    Kind,
    MoveProgress,
    Progress,
    VmProgress,
    current_batch,
    exit_code,
    time_left_s,
)

COLOURS = {
    HostStatus.WAITING: "dim",
    HostStatus.WORKING: "cyan",
    HostStatus.DONE: "green",
    HostStatus.UPGRADED: "green",
    HostStatus.SKIPPED: "dim",
    HostStatus.FELL_BACK: "yellow",
    HostStatus.ABORTED: "yellow",
    HostStatus.REFUSED: "yellow",
    HostStatus.LOCKED: "yellow",
    HostStatus.FAILED: "red",
    HostStatus.UNREACHABLE: "red",
}
VM_COLOURS = {
    "pending": "dim",
    "resumed": "green",
    "started": "green",
    "failed": "red",
    "lost": "red",
    "given_up": "red",
}
LAST_HAPPENINGS = 6
MOVE_BAR_WIDTH = 24
# Lines that the header, the headings and the last happenings take away from hosts and VMs.
_FRAME_LINES = 16


class View(Protocol):
    """Shows a run while it goes on."""

    def show(self, progress: Progress) -> None:
        """Called often, whether or not something changed."""

    def close(self, progress: Progress) -> None:
        """Called once, at the end."""


class LiveView:
    """Redraws one picture in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self, progress: Progress) -> None:
        self._live.update(drawn(progress, time.time(), self._console.height), refresh=True)

    def close(self, progress: Progress) -> None:
        self.show(progress)
        self._live.stop()
        for line in closing_lines(progress):
            self._console.print(Text(line))


class PlainView:
    """One line per happening, with the time: for logs and pipes."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._told = 0

    def show(self, progress: Progress) -> None:
        for happening in progress.happenings[self._told :]:
            self._write(f"{clock(happening.at)} {sentence(happening)}")
        self._told = len(progress.happenings)

    def close(self, progress: Progress) -> None:
        self.show(progress)
        for line in closing_lines(progress):
            self._write(line)


class JsonView:
    """One JSON object per happening, and a last one (``"kind": "end"``) with what came of it."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._told = 0

    def show(self, progress: Progress) -> None:
        for happening in progress.happenings[self._told :]:
            self._write(json.dumps({key: value for key, value in asdict(happening).items() if value not in ("", None)}))
        self._told = len(progress.happenings)

    def close(self, progress: Progress) -> None:
        self.show(progress)
        hosts = [{"host": host.name, "status": host.status.value, "error": host.error} for host in progress.hosts]
        self._write(
            json.dumps(
                {
                    "at": progress.ended_at,
                    "kind": "end",
                    "exit_code": int(exit_code(progress)),
                    "hosts": hosts,
                    "report_json": progress.report_json,
                    "report_html": progress.report_html,
                }
            )
        )


def clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def sentence(happening: Happening) -> str:
    """A happening as a person says it."""
    text = figures.printable(" ".join(happening.text.split()))
    if happening.kind is Kind.BATCH and happening.seconds:
        text = f"{text}; about {figures.seconds(happening.seconds)} left"
    if happening.kind is Kind.PHASE:
        text = f"begins {text.replace('_', ' ')}"
    if happening.kind is Kind.HOST:
        text = text.replace("_", " ")
    if happening.kind is Kind.VM_RESUMED:
        text = f"{text} after {figures.seconds(happening.seconds)}"
    return " ".join(part for part in (figures.printable(happening.host), figures.printable(happening.vm), text) if part)


def closing_lines(progress: Progress) -> list[str]:
    """What a person needs after the run: errors in full, and where the report is."""
    lines = [
        f"{figures.printable(host.name)}: {host.status.value.replace('_', ' ')}: {_readable(host.error)}"
        for host in progress.hosts
        if host.error
    ]
    if progress.cancelled:
        lines.append(
            "Stopped at once. Hosts in the middle of a live update finish it by themselves; 'holdfast recover' waits "
            "for them and says how they stand. Then run the upgrade again: hosts that are done are skipped."
        )
    elif progress.stop_asked and any(host.status is HostStatus.WAITING for host in progress.hosts):
        lines.append("Stopped on request. Run the upgrade again to go on with the remaining hosts.")
    if progress.report_html:
        lines.append(f"report: {progress.report_html}")
    return lines


def _readable(error: str) -> str:
    return "\n".join(figures.printable(line) for line in error.splitlines())


def drawn(progress: Progress, now: float, height: int) -> RenderableType:
    """The picture of a run, not taller than ``height`` lines."""
    hosts = shown_hosts(progress.hosts, max(height // 2 - 4, 3))
    room = max(height - _FRAME_LINES - len(hosts), 3)
    parts: list[RenderableType] = [_header(progress, now), _hosts(progress, hosts)]
    current = [host for host in progress.hosts if host.vms]
    if current:
        parts += ["", _vms(current[-1], now, room)]
    moves = [move for host in progress.hosts for move in host.moves if move.under_way]
    if moves:
        parts += ["", _moves(moves[:room])]
    if progress.happenings:
        parts += ["", _last(progress)]
    return Group(*parts)


def _header(progress: Progress, now: float) -> Panel:
    elapsed = (progress.ended_at or now) - progress.started_at if progress.started_at else 0.0
    line = Text.assemble((figures.printable(progress.campaign), "bold"), "  ", (figures.seconds(elapsed), "cyan"))
    if progress.ended_at is None and progress.cancelled:
        line.append("  stopping at once", "red")
    elif progress.ended_at is None and progress.stop_asked:
        more = "once more: hard stop" if progress.warned else "again: what a hard stop means"
        line.append(f"  stopping after this host (Ctrl-C {more})", "yellow")
    if progress.batches:
        line.append(f"\n{campaign_line(progress, now)}", "dim")
    return Panel(line, title="holdfast", title_align="left", border_style="dim")


def campaign_line(progress: Progress, now: float) -> str:
    """How far a planned campaign is, in one line."""
    counts = Counter(_standing(host) for host in progress.hosts)
    told = ", ".join(f"{counts[word]} {word}" for word in ("done", "under way", "waiting", "not done") if counts[word])
    line = f"batch {current_batch(progress)} of {len(progress.batches)}; hosts: {told}"
    if progress.ended_at is None:
        left_s = time_left_s(progress, now)
        line += f"; about {figures.seconds(left_s)} left by the plan" if left_s else "; longer than planned"
    return line


def _standing(host: HostProgress) -> str:
    if host.status in (HostStatus.DONE, HostStatus.UPGRADED):
        return "done"
    return {HostStatus.WORKING: "under way", HostStatus.WAITING: "waiting"}.get(host.status, "not done")


def shown_hosts(hosts: Sequence[HostProgress], room: int) -> list[HostProgress]:
    """The hosts that fit, in order: those in trouble first, then those at work, then the next ones."""
    ranks = {"not done": 0, "under way": 1, "waiting": 2, "done": 3}
    urgent = sorted(hosts, key=lambda host: ranks[_standing(host)])[:room]
    return [host for host in hosts if host in urgent]


def _hosts(progress: Progress, shown: Sequence[HostProgress]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    numbers = {name: number for number, batch in enumerate(progress.batches, start=1) for name in batch.hosts}
    for heading in (*(["batch"] if numbers else []), "host", "phase", "kernel", "QEMU", "result"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True)
    for host in shown:
        table.add_row(
            *([str(numbers.get(host.name, ""))] if numbers else []),
            Text(figures.printable(host.name), "bold"),
            Text(_phase(host)),
            Text(figures.change(*host.kernel)),
            Text(figures.change(*host.qemu)),
            Text(host.status.value.replace("_", " "), COLOURS[host.status]),
        )
    if len(shown) < len(progress.hosts):
        table.add_row(Text(f"and {len(progress.hosts) - len(shown)} more", "dim"))
    return table


def _phase(host: HostProgress) -> str:
    words = figures.printable(host.phase.replace("_", " "))
    return (
        f"{words}, {figures.printable(host.journal_state)}"
        if host.phase == "live_update" and host.journal_state
        else words
    )


def _vms(host: HostProgress, now: float, room: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2), title=None)
    for heading, justify in (
        ("VM", "left"),
        ("state", "left"),
        ("pause", "right"),
        ("RAM", "right"),
        ("order", "right"),
    ):
        table.add_column(heading, justify=justify, overflow="ellipsis", no_wrap=True)  # type: ignore[arg-type]
    order = sorted(host.vms, key=lambda vm: -vm.priority)
    for vm in shown_vms(order, room):
        table.add_row(
            Text(figures.printable(vm.name)),
            Text(figures.printable(vm.state.replace("_", " ")), VM_COLOURS.get(vm.state, "yellow")),
            Text(figures.seconds(host.pause_s(vm, now)), "bold" if vm.paused else ""),
            Text(figures.size(vm.ram_bytes or None)),
            Text(f"{order.index(vm) + 1} of {len(order)}"),
        )
    if len(order) > room:
        table.add_row(Text(f"and {len(order) - room} more", "dim"))
    return table


def _moves(moves: list[MoveProgress]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    for heading, justify in (("on its way", "left"), ("to", "left"), ("", "left"), ("", "right"), ("left", "right")):
        table.add_column(heading, justify=justify, overflow="ellipsis", no_wrap=True)  # type: ignore[arg-type]
    for move in moves:
        what = "disks" if move.state == "copying" else f"memory, round {max(move.round, 1)}"
        table.add_row(
            Text(figures.printable(move.vm)),
            Text(figures.printable(move.to)),
            ProgressBar(total=100.0, completed=move.percent, width=MOVE_BAR_WIDTH),
            Text(f"{move.percent:.0f} %, {what}"),
            Text(figures.size(move.left_bytes or None)),
        )
    return table


def shown_vms(order: list[VmProgress], room: int) -> list[VmProgress]:
    """The VMs that fit, in order: those in trouble first, then those that stand still, then the others."""
    urgent = sorted(order, key=lambda vm: (vm.state not in VMS_IN_TROUBLE, not vm.paused))[:room]
    return [vm for vm in order if vm in urgent]


def _last(progress: Progress) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
    for happening in progress.happenings[-LAST_HAPPENINGS:]:
        table.add_row(Text(clock(happening.at), "dim"), Text(sentence(happening), overflow="ellipsis", no_wrap=True))
    return table
