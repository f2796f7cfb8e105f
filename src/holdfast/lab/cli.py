# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``holdfast lab``: bring hypervisors up, look at them, enter them, take them down."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from ..command import interactive, step
from . import emulator, hosts
from .emulator import Firmware
from .places import lab_dir
from .up import Wish, down, up


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add ``lab`` and its sub-commands to the command line."""
    lab = subparsers.add_parser("lab", help="real hypervisors with real guests on this machine")
    commands = lab.add_subparsers(required=True, metavar="COMMAND")
    _register_up(commands.add_parser("up", help="build the images if need be and start hypervisors"))
    status = commands.add_parser("status", help="what runs, and how")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(func=_status)
    ssh = commands.add_parser("ssh", help="enter a hypervisor, or run a command there")
    ssh.add_argument("host", metavar="HOST")
    ssh.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    ssh.set_defaults(func=_ssh)
    commands.add_parser("down", help="stop everything; logs stay").set_defaults(func=_down)


def _register_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hosts", type=int, default=1, metavar="N", help="number of hypervisors, 1 to 3 (default 1)")
    parser.add_argument("--ram", type=int, default=5120, metavar="MIB", help="RAM of each (default 5120)")
    parser.add_argument("--nodes", type=int, default=2, metavar="N", help="NUMA nodes of each (default 2)")
    said = "firmware of each: uefi with Secure Boot, or bios (default uefi)"
    parser.add_argument("--firmware", choices=[each.value for each in Firmware], default="uefi", help=said)
    parser.add_argument("--no-guests", action="store_const", const=(), default=None, dest="guests", help="define none")
    parser.set_defaults(func=_up)


def _up(options: argparse.Namespace) -> int:
    wish = Wish(hosts=options.hosts, ram_mib=options.ram, nodes=options.nodes, firmware=Firmware(options.firmware))
    up(lab_dir(), wish if options.guests is None else replace(wish, guests=()))
    return _show(hosts.Lab.load(lab_dir()))


def _status(options: argparse.Namespace) -> int:
    lab = hosts.Lab.load(lab_dir())
    if options.json:
        print(json.dumps(_facts(lab), indent=1))
        return 0
    return _show(lab)


def _facts(lab: hosts.Lab) -> dict:
    engine = emulator.accelerator()
    entries = [
        {
            "name": host.name,
            "running": host.alive,
            "pid": host.pid,
            "accelerator": host.accel,
            "ram_mib": host.ram_mib,
            "nodes": host.nodes,
            "firmware": host.firmware,
            "console": str(host.console),
            "forwards": {forward.name: forward.local for forward in host.forwards},
        }
        for host in lab.hosts
    ]
    return {"accelerator": engine.name, "why": engine.why, "folder": str(lab.folder), "hosts": entries}


def _show(lab: hosts.Lab) -> int:
    facts = _facts(lab)
    console = Console()
    console.print(f"accelerator: {facts['accelerator']} ({facts['why']})", soft_wrap=True)
    if not facts["hosts"]:
        console.print("no hypervisor; start one with: holdfast lab up")
        return 0
    table = Table("host", "state", "machine", "loopback port of SSH")
    for host in facts["hosts"]:
        state = "running" if host["running"] else "ended"
        machine = f"{host['ram_mib']} MiB, NUMA nodes: {host['nodes']}, {host['firmware']}, {host['accelerator']}"
        table.add_row(host["name"], state, machine, str(host["forwards"]["ssh"]))
    console.print(table)
    guests = facts["hosts"][0]["forwards"].items()
    ports = ", ".join(f"{name} {port}" for name, port in guests if name != "ssh")
    console.print(f"loopback ports of the guests: {ports or 'none'}", soft_wrap=True)
    console.print(f"inventory: {lab.folder}/inventory/hosts.yml", soft_wrap=True)
    return 0


def _ssh(options: argparse.Namespace) -> int:
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    return interactive(hosts.ssh_command(hosts.Lab.load(lab_dir()).host(options.host), words))


def _down(_options: argparse.Namespace) -> int:
    with step("lab down"):
        down(lab_dir())
    return 0
