# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How hosts stand, as tables in the terminal. Only reads what ``status`` found."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ansible_collections.holdfast.kvm.plugins.module_utils._report import figures

from .status import DAMAGED, HostStanding, Reach, VmStanding, next_step

_NOTHING = Text(figures.UNKNOWN, "dim")


def standing_tables(hosts: Sequence[HostStanding]) -> RenderableType:
    """One line per host, one per VM, and what happens next on each host."""
    parts: list[RenderableType] = [_hosts(hosts)]
    if any(host.vms for host in hosts):
        parts += ["", _vms(hosts)]
    return Group(*parts, "", _next(hosts))


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _hosts(hosts: Sequence[HostStanding]) -> Table:
    table = _table("host", "kernel", "QEMU", "pool used", "free", "journal", "VMs")
    for host in hosts:
        name = Text(figures.printable(host.name), "bold")
        if not host.kernel:
            table.add_row(name, Text(host.reach.value, "red"))
            continue
        table.add_row(
            name,
            Text(figures.printable(host.kernel)),
            Text(host.qemu or figures.UNKNOWN),
            *_pool(host),
            _journal(host),
            _count(host),
        )
    return table


def _pool(host: HostStanding) -> tuple[str | Text, str | Text]:
    if not host.pool_mounted:
        return Text("not mounted" if host.prepared else "no pool", "yellow"), _NOTHING
    used = host.pool_size_bytes - host.pool_free_bytes
    return f"{figures.size(used)} of {figures.size(host.pool_size_bytes)}", figures.size(host.pool_free_bytes)


def _journal(host: HostStanding) -> Text:
    colour = "red" if host.journal_state in (DAMAGED, "failed") else "yellow" if host.in_flight else ""
    return Text(figures.printable(host.journal_state.replace("_", " ")), colour)


def _count(host: HostStanding) -> Text:
    if host.reach is not Reach.ANSWERED:
        return Text(host.reach.value, "red")
    running = f"{sum(vm.runs for vm in host.vms)} of {len(host.vms)} run"
    if not host.waiting:
        return Text(running)
    return Text.assemble(running, ", ", (f"{len(host.waiting)} waiting", "red"))


def _vms(hosts: Sequence[HostStanding]) -> Table:
    table = _table("host", "VM", "state", "RAM", "in the pool", "treatment", "waiting")
    for host in hosts:
        for vm in host.vms:
            table.add_row(
                Text(figures.printable(host.name)),
                Text(figures.printable(vm.name)),
                Text(figures.printable(vm.state.replace("_", " ")), "red" if vm.waiting else ""),
                figures.size(vm.ram_bytes or None),
                _place(vm),
                _treatment(vm),
                Text("yes", "red") if vm.waiting else Text("no", "dim"),
            )
    return table


def _place(vm: VmStanding) -> Text:
    if vm.waiting or not vm.runs:
        return _NOTHING
    return Text("yes") if vm.in_pool else Text("no", "yellow")


def _treatment(vm: VmStanding) -> Text:
    """A VM that is off is left alone by an upgrade."""
    return Text(figures.printable(vm.treatment.replace("_", " "))) if vm.treatment and vm.runs else _NOTHING


def _next(hosts: Sequence[HostStanding]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
    for host in hosts:
        name = Text(figures.printable(host.name), "bold")
        lines = [Text(line, "red") for line in _errors(host)] + [Text(figures.printable(next_step(host)))]
        table.add_row(name, Group(*lines))
    return table


def _errors(host: HostStanding) -> list[str]:
    """The first line of a host's own error, of a journal that ended badly, and of each VM that waits."""
    told = [host.error] if host.error else []
    if host.journal_state in (DAMAGED, "failed") and host.journal_reason:
        told.append(f"journal: {host.journal_reason}")
    # Most errors of a VM name it themselves.
    told += [vm.error if vm.name in vm.error else f"{vm.name}: {vm.error}" for vm in host.waiting if vm.error]
    return [figures.printable(text.splitlines()[0]) for text in told]
