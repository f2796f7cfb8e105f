# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: a whole upgrade, from nothing to the report, with guests at work and somebody watching them.

The same playbooks as in production; only the hypervisor is a lab's.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError

from .command import interactive, step
from .lab import hosts, scene
from .lab.guests.definitions import GUESTS
from .lab.up import Wish, down, up

OUT = Path("build/demo").absolute()
LAB = OUT / "lab"


def main() -> int:
    """Run the demo; 0 only if every guest carried on."""
    begin = time.monotonic()
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_STATE_HOME"] = str(OUT / "state")
    try:
        findings = play()
    except HoldfastError as exc:
        print(f"\nholdfast: {exc}", file=sys.stderr)
        return 1
    finally:
        down(LAB)
    print(f"\n{time.monotonic() - begin:.0f} s in all. Report: {OUT}/report.html  {OUT}/report.json")
    return 1 if findings else 0


def play() -> list[str]:
    """The story, chapter by chapter; returns everything that did not carry on. Raises HoldfastError."""
    machine = "UEFI with Secure Boot, two NUMA nodes"
    _chapter(f"1. A hypervisor with VMs, as it stands in a rack today: Debian 13, kernel 6.12, QEMU 10.0, {machine}")
    down(LAB)
    lab = up(LAB, Wish())
    inventory = str(LAB / "inventory/hosts.yml")
    _chapter("2. Prepare it, once: reserve RAM for the VMs, install the agent, reboot")
    _must(["ansible-playbook", "-i", inventory, "holdfast.kvm.prepare", "-e", "prepare_reboot_ok=true"])
    _chapter("3. The VMs go to work, and somebody outside watches them")
    host = scene.start_guests(LAB)
    with scene.watched(host) as watch:
        _chapter("4. Upgrade kernel and QEMU under their feet")
        _must(["holdfast", "upgrade", "-i", inventory, "--campaign", "demo", "--report-dir", str(OUT)])
        _chapter("5. What the VMs say")
        with step("last look"):
            findings = watch.finish()
    _verdict(watch, findings)
    _must(["holdfast", "report", str(OUT / "report.json")])
    return findings + _unproven(lab.host("hv1"))


def _chapter(title: str) -> None:
    Console().print(f"\n[bold]{title}[/bold]", soft_wrap=True)


def _must(words: list[str]) -> None:
    """Run one of our own programs before the person's eyes. Raises HoldfastError when it fails."""
    program = Path(sys.executable).parent / words[0]
    print(f"$ {' '.join(words)}", flush=True)
    if interactive([str(program), *words[1:]]) != 0:
        raise HoldfastError(f"{words[0]} failed", f"its output is above, the host's console in {LAB}/hv1/console.log")


def _verdict(watch: scene.Watch, findings: list[str]) -> None:
    table = Table("guest", "boot id", "memory", "database", "connections", "disk", "pause seen from outside")
    for guest in GUESTS:
        before, after = watch.before[guest.name], watch.after[guest.name]
        table.add_row(
            guest.name,
            "same" if before.boot_id == after.boot_id else "NEW",
            "same" if before.memory_sha256 == after.memory_sha256 else "CHANGED",
            ("same" if before.data_digest == after.data_digest else "CHANGED") if before.data_digest else "-",
            "same" if all(held.same_connection for held in watch.held(guest.name)) else "LOST",
            "consistent" if not after.disk_errors else "DAMAGED",
            f"{watch.pause_s(guest.name):.1f} s",
        )
    Console().print(table)
    for text in findings:
        print(f"!! {text}")


def _unproven(host: hosts.Host) -> list[str]:
    """What the report does not prove although it should."""
    report = json.loads((OUT / "report.json").read_text())["hosts"][0]
    missing = [vm["name"] for vm in report["vms"] if not vm["ram_verified"]]
    shutil.copy(host.console, OUT / "console.log")
    return [f"{name}: RAM was not verified" for name in missing]


if __name__ == "__main__":
    sys.exit(main())
