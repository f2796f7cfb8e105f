# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab as tests see it: run our programs as a person would, look at the host as an outsider can."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.lab import hosts
from holdfast.lab.guests.definitions import GuestSpec
from holdfast.lab.hosts import Host, Lab

# A lab that runs already, to try one test again and again; it is then neither begun nor ended here.
KEPT = os.environ.get("HOLDFAST_TEST_LAB", "")
FOLDER = Path(KEPT or "build/test/lab").absolute()
REPORT = ("-e", f"report_dest={FOLDER.parent / 'report'}")


# Guests that chapters define on further hypervisors. The lab's switch has to know them from its beginning.
LATER = {name: GuestSpec(name, ip) for name, ip in (("tick2", "10.0.2.53"), ("box3", "10.0.2.54"))}
# What an operator does who wants VMs moved over TLS.
TLS = ("-e", "prepare_tls=managed")
# AES in software is the emulated hosts' whole CPU: 0.3 MB/s, against 4 MB/s with what was made for such CPUs.
CIPHERS = "[overrides]\\n" + "".join(
    f"tls-disabled-cipher = {cipher}\\n" for cipher in ("AES-128-GCM", "AES-256-GCM", "AES-128-CCM", "AES-256-CCM")
)
QUICK_CIPHERS = f"mkdir -p /etc/gnutls && printf '{CIPHERS}' > /etc/gnutls/config"
# A smaller hypervisor than the first, with room for the guests that come.
SMALL_MIB = 3072
SMALL = (
    *("-e", "prepare_pool_size=512M", "-e", "prepare_host_reserve=1G"),
    *("-e", "prepare_crash_kernel=none", "-e", "prepare_reboot_ok=true"),
)

# What SUMMANDS take on a machine of the kind that limits in seconds are meant for, while nobody else uses it.
REFERENCE_S = 0.55
SUMMANDS = 20_000_000


def slowness() -> float:
    """How much longer than on a quiet machine a piece of work takes now; neighbours cost an emulator up to twofold."""
    begun = time.perf_counter()
    sum(number for number in range(SUMMANDS))
    return max(1.0, (time.perf_counter() - begun) / REFERENCE_S)


@dataclass(frozen=True)
class Run:
    """What a program of ours did: exit status, and everything it printed."""

    status: int
    text: str


@dataclass(frozen=True)
class Rack:
    """The lab as tests see it. ``slowness``: of this machine while the host booted, 1.0 when nothing held it up."""

    folder: Path
    boot_s: float
    slowness: float = 1.0

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
            timeout=timeout_s * self.slowness,
            check=False,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "XDG_STATE_HOME": str(FOLDER.parent / "state")},
        )
        print(f"$ {' '.join(words)}\n{done.stdout}", flush=True)
        return Run(done.returncode, done.stdout)

    def playbook(self, name: str, *extra: str) -> Run:
        """Run one of the collection's playbooks with plain ansible-playbook."""
        return self.run("ansible-playbook", "-i", str(self.inventory), f"holdfast.kvm.{name}", *REPORT, *extra)

    def on_host(self, script: str) -> str:
        """Run a shell script on the hypervisor."""
        return hosts.on_host(self.host, script)

    def pool(self) -> dict[str, Any]:
        """The pool, as the agent's configuration says."""
        found: dict[str, Any] = json.loads(self.on_host("cat /etc/holdfast/agent.json"))["pool"]
        return found

    def ram_extents(self, name: str) -> list[tuple[int, int]]:
        """Where the RAM of a running guest lies on the pool's device, and how much of it, in bytes."""
        lines = self.on_host(f"filefrag -e -b1 /var/lib/holdfast/pool/libvirt/qemu/*-{name}/pc.ram").splitlines()
        extents = [re.split(r"[:.]+", line) for line in lines if re.match(r"\s*\d+:", line)]
        return [(int(words[3]), int(words[5])) for words in extents]

    def journal(self) -> dict[str, Any]:
        """The host's newest journal, as its agent prints it."""
        view: dict[str, Any] = json.loads(self.on_host("holdfast-agent status --json"))
        return view


def report_host(folder: Path) -> dict[str, Any]:
    """The only host in a report."""
    (host,) = json.loads((folder / "report.json").read_text())["hosts"]
    return dict(host)


def names(entries: Sequence[dict[str, Any]]) -> set[str]:
    """Names of the VMs in a report or a journal."""
    return {entry["name"] for entry in entries}
