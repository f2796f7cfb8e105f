# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a kernel takes from its start to an attached pool, by how much RAM its host declares.

The hosts are lab hosts. RAM that nobody touches costs the machine nothing, so they may declare far more than it has;
what the kernel itself touches at its start, it has to have. They are prepared for the same number of VMs, so that what
differs is the RAM. In pools of devices all RAM is then made into devices, to see what describing it takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError

from ..command import step
from ..lab.hosts import Host, console_on_failure, on_host
from ..lab.up import Wish, down, up
from . import jumps, pools
from .floor import sightings
from .pools import STOCK

KINDS = (STOCK, *pools.KINDS)
MAX_VMS = 16
# What a large host keeps for itself, with its crash kernel, however large it is; all the rest is its pool. A kernel
# describes that much at its start. Of a small host the pool is a share.
HOST_OWN_GIB, HOST_RESERVE = 16, "8G"
SMALL_POOL_SHARE = "40%"
SMALL_GIB = 64
# On the console: the old kernel's last word, and the new one's when it runs the first program of its initrd. Its own
# clock begins somewhere in between, and not always at the same place.
LAST_WORD = "Starting new kernel"
DESCRIBE = f"{jumps.PROGRAMS}/describe-pool"
LIVE_UPDATE = f"{jumps.PROGRAMS}/request-live-update everything"
PLAIN_KEXEC = """\
kexec -s -l /boot/vmlinuz-$(uname -r) --initrd=/boot/initrd.img-$(uname -r) --reuse-cmdline
sync
systemd-run -q --no-block kexec -e
"""


@dataclass(frozen=True)
class Start:
    """One start of a kernel, seconds. ``kernel_s``: from the old kernel's last word until the new one ran its
    first program; ``attach_s`` of the pool.

    ``described``: what the host gave to describe all of a pool of devices, as a share of it.
    """

    ram_gib: int
    kind: str
    number: int
    kernel_s: float
    attach_s: float
    described: float | None = None

    @property
    def ready_s(self) -> float:
        return self.kernel_s + self.attach_s


def measure(folder: Path, sizes_gib: Sequence[int], kinds: Sequence[str], rounds: int) -> list[Start]:
    """Start kernels on hosts of each size, with each kind of pool; writes ``ram.json``. Raises HoldfastError."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Start] = []
    for size in sizes_gib:
        with _host(folder, size) as host:
            for kind in sorted(kinds, key=KINDS.index):
                if kind != STOCK:
                    with step(f"{size} GiB: {kind}: prepared"):
                        pools.prepare(folder / "lab", kind, prepare_max_vms=MAX_VMS, **pool(size))
                    jumps.install(host)
                jumps.settle(host)
                for number in range(1, rounds + 1):
                    with step(f"{size} GiB: {kind}: kernel started, {number} of {rounds}"):
                        found.append(_start(host, size, kind, number))
                    (folder / "ram.json").write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    return found


def show(found: Sequence[Start], console: Console) -> None:
    """Print medians, and how they compare with the smallest host that has such a pool."""
    table = Table(title="From the kernel's start to an attached pool, seconds, medians", box=SIMPLE_HEAD)
    for name in ("pool", "of", "host GiB", "kernel", "attach", "both", "÷ smallest", "to describe it"):
        table.add_column(name, justify="right")
    for kind, some in groupby(
        sorted(found, key=lambda one: (KINDS.index(one.kind), one.ram_gib)), lambda one: one.kind
    ):
        smallest = 0.0
        for size, same in groupby(some, lambda one: one.ram_gib):
            starts = list(same)
            kernel, attach, both = (
                median(getattr(one, name) for one in starts) for name in ("kernel_s", "attach_s", "ready_s")
            )
            smallest = smallest or both
            shares = [one.described for one in starts if one.described is not None]
            share = f"{median(shares):.4%}" if shares else ""
            ratio = f"{both / smallest:.2f}"
            of = "" if kind == STOCK else pool(size)["prepare_pool_size"]
            table.add_row(kind, of, str(size), f"{kernel:.2f}", f"{attach:.2f}", f"{both:.2f}", ratio, share)
    console.print(table)


def pool(size_gib: int) -> dict[str, str]:
    """Variables of the prepare playbook for a host of this size."""
    if size_gib < SMALL_GIB:
        return {"prepare_pool_size": SMALL_POOL_SHARE}
    return {"prepare_pool_size": f"{size_gib - HOST_OWN_GIB}G", "prepare_host_reserve": HOST_RESERVE}


@contextmanager
def _host(folder: Path, size_gib: int) -> Iterator[Host]:
    lab = (folder / "lab").absolute()
    lab.mkdir(exist_ok=True)
    down(lab)
    try:
        yield up(lab, Wish(ram_mib=size_gib << 10, nodes=1, guests=())).host("hv1")
    finally:
        down(lab)


def _start(host: Host, size_gib: int, kind: str, number: int) -> Start:
    """Another kernel of the same release, by a live update without VMs; on a host without a pool by plain kexec."""
    sights = sightings(host.console, (LAST_WORD, jumps.READY))
    next(sights)  # nothing that is already on the console counts
    with console_on_failure(host):
        on_host(host, PLAIN_KEXEC if kind == STOCK else f"{LIVE_UPDATE}\n")
        began, ready = next(sights), next(sights)
        jumps.settle(host)
    kernel_s = ready - began
    attach_s = 0.0
    if kind != STOCK:
        view = json.loads(on_host(host, "holdfast-agent status --json"))
        phases = {phase["name"]: phase["seconds"] for phase in view["phases"]}
        if view["state"] != "restored":
            raise HoldfastError(f"the live update ended as {view['state']}: {view.get('reason', '')}")
        attach_s = phases["attach"]
    described = float(on_host(host, DESCRIBE)) if kind in pools.DEVICES else None
    return Start(size_gib, kind, number, kernel_s, attach_s, described)
