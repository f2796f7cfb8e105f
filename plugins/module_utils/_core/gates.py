# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is the host as well as it was? What is looked at before a live update, and again before the next host is begun.

The look before is in the journal: it outlives the jump, and whoever started the upgrade.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Iterator, List, Mapping, Tuple

from . import health, kexec, lanes, monitor, ways_out
from .hypervisor import Domain, Hypervisor

# A healthy guest answers within milliseconds; one that is stuck holds up nobody but its lane.
AGENT_LIMIT_S = 5
LANES = 16
LOOK_S = 1.0
# Bits of the kernel's taint that tell of trouble (Documentation/admin-guide/tainted-kernels.rst). The others say what
# was loaded: modules from elsewhere, live patches, firmware with a workaround.
TROUBLE = {
    **health.DAMAGE,
    1: "that a module was forced in",
    3: "that a module was forced out",
    9: "a warning with a stack trace",
}


@dataclass(frozen=True)
class Health:
    """One look. ``networks`` and ``storage_pools`` are libvirt's active ones, by name.

    ``guest_agents``: uuids of the VMs whose agent in the guest answers. ``ways_out``: bridges, switches and cards by
    which VMs' frames leave the host. ``taint``: the kernel's, as bits.
    """

    networks: Tuple[str, ...] = ()
    storage_pools: Tuple[str, ...] = ()
    guest_agents: Tuple[str, ...] = ()
    taint: int = 0
    ways_out: Tuple[str, ...] = ()


def from_record(raw: Mapping[str, Any]) -> Health:
    """The look before, out of a journal; one that has none expects nothing but a kernel without trouble."""
    lists = {name: tuple(raw.get(name, ())) for name in ("networks", "storage_pools", "guest_agents", "ways_out")}
    return Health(**lists, taint=int(raw.get("taint", 0)))


def look(hypervisor: Hypervisor, before: Health = Health()) -> Health:
    """How this host is now, and what there was ``before``. Asks each running VM's agent, if it has one."""
    answered: List[str] = []

    def ask(domain: Domain) -> None:
        if domain.state() == "running" and monitor.guest_agent_answers(domain, AGENT_LIMIT_S):
            answered.append(domain.uuid)

    lanes.in_order(ask, hypervisor.running(), LANES)
    return Health(
        tuple(one.name for one in hypervisor.networks()),
        tuple(one.name for one in hypervisor.storage_pools()),
        tuple(sorted(answered)),
        kexec.taint(),
        ways_out.carrying(before.ways_out),
    )


def look_patiently(hypervisor: Hypervisor, before: Health, limit_s: float) -> Health:
    """Look again and again, until nothing of ``before`` is missing: after a boot, some of it comes by and by."""
    deadline = time.monotonic() + limit_s
    while True:
        now = look(hypervisor, before)
        if not any(missing(before, now)) or time.monotonic() > deadline:
            return now
        time.sleep(LOOK_S)


def missing(before: Health, now: Health) -> Tuple[Tuple[str, ...], ...]:
    """Networks, storage pools, uuids and ways out that were there before and are not now, in this order."""

    def gone(old: Tuple[str, ...], new: Tuple[str, ...]) -> Tuple[str, ...]:
        return tuple(name for name in old if name not in new)

    return (
        gone(before.networks, now.networks),
        gone(before.storage_pools, now.storage_pools),
        gone(before.guest_agents, now.guest_agents),
        gone(before.ways_out, now.ways_out),
    )


def worse(before: Health, now: Health, names: Mapping[str, str]) -> List[str]:
    """What is worse than before, one sentence each. ``names`` has the VMs' names by uuid."""
    return list(_worse(before, now, names))


def _worse(before: Health, now: Health, names: Mapping[str, str]) -> Iterator[str]:
    networks, storage_pools, silent, cut_off = missing(before, now)
    for name in networks:
        yield f"libvirt's network {name} was active before, and is not now"
    for name in storage_pools:
        yield f"libvirt's storage pool {name} was active before, and is not now"
    for uuid in silent:
        yield f"VM {names.get(uuid, uuid)}: its guest agent answered before, and does not now"
    for name in cut_off:
        yield ways_out.lost(name)
    for bit, what in TROUBLE.items():
        if now.taint & ~before.taint & 1 << bit:
            yield f"the kernel reports {what} (taint {now.taint}, before {before.taint}): see its log"
