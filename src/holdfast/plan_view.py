# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan in the terminal: what is left out, the batches, and the VMs that are not simply left where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ansible_collections.holdfast.kvm.plugins.module_utils._plan.table import (
    WHY,
    begins,
    bound_line,
    headline,
    longest_pause,
    moved,
    obstacle,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._report import figures

# Of batches with many VMs to move, this many are named.
MOVES_NAMED = 8


def exceptions(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """VMs that do not stay in place, or have not the treatment that their policy would rather have."""
    return [vm for vm in plan["vms"] if vm["treatment"] != "in_place" or vm["instead_of"]]


def drawing(plan: Mapping[str, Any], vms: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The plan, with ``vms`` named one by one."""
    parts: list[RenderableType] = [Text(headline(plan), style="bold"), Text(bound_line(plan), style="dim"), Text()]
    if plan["batches"]:
        parts += [_batches(plan), Text()]
    if vms:
        parts += [_vms(vms), Text()]
    parts += [line for entry in plan["left_out"] for line in _left_out(entry)]
    parts += [Text(f"warning: {figures.printable(text)}", style="yellow") for text in plan["warnings"]]
    return Group(*parts)


def _batches(plan: Mapping[str, Any]) -> Table:
    table = _table("batch", "hosts", "moved")
    for head in ("begins", "takes", "longest pause"):
        table.add_column(head, justify="right", no_wrap=True)
    for batch in plan["batches"]:
        _add_row(
            table,
            str(batch["number"]),
            ", ".join(map(figures.printable, batch["hosts"])),
            "\n".join(_moves(batch)),
            begins(batch["start_s"]),
            figures.seconds(batch["seconds"]),
            figures.seconds(longest_pause(batch, plan)),
        )
    return table


def _moves(batch: Mapping[str, Any]) -> Iterator[str]:
    yield from (moved(move) for move in batch["evacuations"][:MOVES_NAMED])
    if len(batch["evacuations"]) > MOVES_NAMED:
        yield f"and {len(batch['evacuations']) - MOVES_NAMED} more"
    if batch["returns"]:
        yield f"{len(batch['returns'])} of them return home"


def _vms(vms: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("VM", "host", "treatment", "why")
    for head in ("pause, median", "95 of 100"):
        table.add_column(head, justify="right", no_wrap=True)
    for vm in vms:
        _add_row(
            table,
            figures.printable(vm["name"]),
            figures.printable(vm["host"]),
            vm["treatment"].replace("_", " "),
            figures.printable(vm["reason"]),
            figures.seconds(vm["pause_p50_s"]),
            figures.seconds(vm["pause_p95_s"]),
        )
    return table


def _table(*heads: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _add_row(table: Table, *cells: str) -> None:
    """Names may hold what rich takes for markup: Text is shown as it is."""
    table.add_row(*(Text(cell) for cell in cells))


def _left_out(entry: Mapping[str, Any]) -> Iterator[Text]:
    bad = entry["why"] in ("blocked", "impossible")
    words = figures.printable(f"{entry['host']} {WHY[entry['why']]}: {entry['reason']}")
    yield Text(words, style="red" if bad else "dim")
    yield from (Text(f"  {obstacle(vm)}") for vm in entry["vms"])
