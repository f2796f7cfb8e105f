# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet that does not exist, for tests and for timing the planner: the same seed gives the same fleet."""

from __future__ import annotations

import random

from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import CpuFacts, Disk, Mount, Treatment
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.model import (
    Fleet,
    Group,
    Host,
    Limits,
    Pauses,
    Switchover,
    Vm,
)

GIB = 1 << 30
PAUSES = Pauses(9.0, 14.0, 0.4, 0.9, parallel=4, basis="measured on other hosts, 12 runs", measured=True)
SWITCHOVER = Switchover(0.25, 0.6, "measured, 40 live migrations")
SHARED = Mount("/srv/vms", "nas:/export/vms")
OLD_CPU = CpuFacts("GenuineIntel", "Xeon Gold 6138", ("fpu", "avx2", "avx512f"), ("Skylake-Server",), 80)
NEW_CPU = CpuFacts(
    "GenuineIntel", "Xeon Gold 6338", ("fpu", "avx2", "avx512f", "vaes"), ("Skylake-Server", "Icelake-Server"), 128
)
HOSTS_PER_RACK = 10
GROUP_SIZES = (3, 5, 5, 7, 9)


def fleet(hosts: int = 100, vms: int = 1500, seed: int = 1, limits: Limits | None = None) -> Fleet:
    """Four fifths full; racks, two generations of processors, groups with a quorum, VMs that must be moved."""
    dice = random.Random(seed)
    machines = tuple(_host(number) for number in range(hosts))
    groups = tuple(_group(number) for number in range(max(vms // 25, 1)))
    names = iter([group for group in groups for _ in range(GROUP_SIZES[int(group.name[1:]) % len(GROUP_SIZES)])])
    members: dict[str, set[str]] = {host.name: set() for host in machines}
    guests = []
    for number in range(vms):
        group = next(names, None)
        guests.append(_vm(number, _home(number, machines, group, members), group, dice))
    return Fleet(machines, tuple(guests), groups, limits or Limits(waves=(1, 5, 10), max_per_domain=3), SWITCHOVER)


def _host(number: int) -> Host:
    newer = number % 2 == 1
    return Host(
        name=f"hv{number + 1:03d}",
        ram_bytes=(512 if newer else 384) * GIB,
        cpus=NEW_CPU.count if newer else OLD_CPU.count,
        cpu=NEW_CPU if newer else OLD_CPU,
        pauses=PAUSES,
        link_mbit=25000.0,
        mounts=(SHARED,),
        domain=f"rack{number // HOSTS_PER_RACK + 1}",
        pool=True,
    )


def _group(number: int) -> Group:
    size = GROUP_SIZES[number % len(GROUP_SIZES)]
    return Group(f"g{number}", min_available=size - (1 if number % 3 else 2), anti_affinity=number % 4 != 0)


def _home(number: int, hosts: tuple[Host, ...], group: Group | None, members: dict[str, set[str]]) -> str:
    """Hosts in turn; members of a group that must be apart are."""
    for step in range(len(hosts)):
        name = hosts[(number + step) % len(hosts)].name
        if group is None or not group.anti_affinity or group.name not in members[name]:
            if group is not None:
                members[name].add(group.name)
            return name
    return hosts[number % len(hosts)].name


def _vm(number: int, host: str, group: Group | None, dice: random.Random) -> Vm:
    critical = dice.random() < 0.08
    passthrough = not critical and dice.random() < 0.03
    shared = critical or dice.random() < 0.8
    named_cpu = dice.random() < 0.5
    return Vm(
        name=f"vm{number + 1:04d}",
        uuid=f"00000000-0000-4000-8000-{number:012d}",
        host=host,
        vcpus=dice.choice((2, 4, 4, 8, 16)),
        ram_bytes=dice.choice((4, 8, 16, 16, 32, 64)) * GIB,
        disks=(Disk("vda", f"/srv/vms/{number}.qcow2" if shared else f"/var/lib/libvirt/images/{number}.qcow2"),),
        cpu_mode="custom" if named_cpu else "host-model",
        cpu_model="Skylake-Server" if named_cpu else "",
        held=("it drives the host's device 0000:3b:00.0 itself",) if passthrough else (),
        bound=("it drives the host's device 0000:3b:00.0 itself",) if passthrough else (),
        treatments=_treatments(critical, passthrough),
        priority=90 if critical else dice.choice((10, 50, 50, 70)),
        max_pause_s=_limit(critical, passthrough, dice),
        critical=critical,
        group=group.name if group else "",
        return_home=critical and dice.random() < 0.5,
        rule="by rule 1 (tag critical)" if critical else "by rule 3 (every VM)",
        pooled=True,
    )


def _limit(critical: bool, passthrough: bool, dice: random.Random) -> float | None:
    if critical:
        return 1.0
    return None if passthrough else dice.choice((None, None, 60.0))


def _treatments(critical: bool, passthrough: bool) -> tuple[Treatment, ...]:
    if critical:
        return (Treatment.LIVE,)
    return (Treatment.IN_PLACE, Treatment.RESTART) if passthrough else (Treatment.IN_PLACE, Treatment.LIVE)
