# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One real hypervisor for the whole run: started once, prepared once, its guests watched throughout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.lab import hosts, scene
from holdfast.lab.hosts import Host, Lab
from holdfast.lab.up import Wish, down, up

FOLDER = Path("build/test/lab").absolute()


@dataclass(frozen=True)
class Run:
    """What a program of ours did: exit status, and everything it printed."""

    status: int
    text: str


@dataclass(frozen=True)
class Bench:
    """The lab as tests see it."""

    folder: Path
    boot_s: float

    @property
    def host(self) -> Host:
        return Lab.load(self.folder).host("hv1")

    @property
    def inventory(self) -> Path:
        return self.folder / "inventory/hosts.yml"

    def run(self, *words: str, timeout_s: float = 1500) -> Run:
        """Run one of the project's programs as a person would."""
        program = Path(sys.executable).parent / words[0]
        # A held connection of the same test run must not be inherited, nor its terminal.
        done = subprocess.run(
            [str(program), *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        )
        print(f"$ {' '.join(words)}\n{done.stdout}", flush=True)
        return Run(done.returncode, done.stdout)

    def playbook(self, name: str, *extra: str) -> Run:
        """Run one of the collection's playbooks with plain ansible-playbook."""
        return self.run("ansible-playbook", "-i", str(self.inventory), f"holdfast.kvm.{name}", *extra)

    def on_host(self, script: str) -> str:
        """Run a shell script on the hypervisor."""
        return hosts.on_host(self.host, script)

    def journal(self) -> dict[str, Any]:
        """The host's newest journal, as its agent prints it."""
        view: dict[str, Any] = json.loads(self.on_host("holdfast-agent status --json"))
        return view


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """A hypervisor as it stands in a rack: old kernel, old QEMU, guests defined, never seen by us."""
    down(FOLDER)
    lab = up(FOLDER, Wish())
    yield Bench(FOLDER, lab.host("hv1").usable_after_s)
    down(FOLDER)


@pytest.fixture(scope="session")
def prepared(bench: Bench) -> Bench:
    """The hypervisor after ``prepare``."""
    done = bench.playbook("prepare", "-e", "prepare_reboot_ok=true")
    assert done.status == 0
    return bench


@pytest.fixture(scope="session")
def watch(prepared: Bench) -> Iterator[scene.Watch]:
    """All guests at work, databases loaded, connections held from here until somebody calls ``finish``."""
    host = scene.start_guests(prepared.folder)
    with scene.watched(host) as watching:
        yield watching


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Attach the serial console to whatever fails."""
    if call.excinfo is not None and (FOLDER / "lab.json").exists():
        for host in Lab.load(FOLDER).hosts:
            item.add_report_section(call.when, f"console of {host.name} ({host.console})", hosts.console_tail(host, 60))


def report_host(folder: Path) -> dict[str, Any]:
    """The only host in a report."""
    (host,) = json.loads((folder / "report.json").read_text())["hosts"]
    return dict(host)


def names(entries: Sequence[dict[str, Any]]) -> set[str]:
    """Names of the VMs in a report or a journal."""
    return {entry["name"] for entry in entries}
