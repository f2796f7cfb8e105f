# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The question that ``batches`` answers, from the treatments chosen so far: the limits on a batch, and the canary."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Sequence, Tuple

from .batches import Limit, Puzzle, fits
from .choice import Choices
from .model import Fleet

_MIB = 1 << 20


def puzzle(fleet: Fleet, choices: Choices) -> Puzzle:
    """How the hosts that are not left out may be put together."""
    hosts = choices.hosts()
    limits = [*_quorums(choices, hosts), *_domains(fleet, hosts), *_reserve(fleet, choices, hosts)]
    real = tuple(limit for limit in limits if any(limit.weights.values()))
    plain = Puzzle(hosts, fleet.limits.waves, real)
    return replace(plain, first=_first(fleet, choices, plain))


def at_stake(choices: Choices, host: str) -> Tuple[bool, int, int, str]:
    """For sorting: hosts with little to lose first, and empty ones last, since they tell nothing."""
    vms = choices.resident(host)
    return not vms, sum(1 for vm in vms if vm.critical), sum(vm.priority for vm in vms), host


def reserve_kept(fleet: Fleet, choices: Choices, batch: Sequence[str]) -> bool:
    """Whether the reserve is there while these hosts are upgraded."""
    return all(sum(limit.weights[host] for host in batch) <= limit.bears for limit in _reserve(fleet, choices, batch))


def _first(fleet: Fleet, choices: Choices, puzzle: Puzzle) -> Tuple[str, ...]:
    """The first batch: the canaries, or where a lone first host has the least at stake; else left to the search."""
    named = [host for host in fleet.limits.canaries if host in puzzle.hosts]
    while named and not fits(puzzle, named, 0):
        named.pop()
    if named or not puzzle.hosts or puzzle.size(0) > 1:
        return tuple(named)
    return (min(puzzle.hosts, key=lambda host: at_stake(choices, host)),)


def _quorums(choices: Choices, hosts: Sequence[str]) -> List[Limit]:
    found = []
    for group, running, bears in choices.quorums():
        weights = {host: len(choices.paused(host, group.name)) for host in hosts}
        counted = f"{running} members, {group.min_available} of them needed, so {bears} paused at a time"
        found.append(Limit(f"group {group.name}: {counted}", max(bears, 1), weights))
    return found


def _domains(fleet: Fleet, hosts: Sequence[str]) -> List[Limit]:
    most = fleet.limits.max_per_domain
    where = {host.name: host.domain for host in fleet.hosts if host.domain}
    domains = sorted({where[host] for host in hosts if host in where}) if most else []
    return [
        Limit(f"fault domain {domain}: {most} at a time", most, {h: int(where.get(h) == domain) for h in hosts})
        for domain in domains
    ]


def _reserve(fleet: Fleet, choices: Choices, hosts: Sequence[str]) -> List[Limit]:
    """Free RAM on the hosts that stay, enough for the fleet's largest ones.

    What is gone with a host is its room, less what stays in it. VMs that are moved away take as much room elsewhere as
    they leave behind, so wherever they are, this is exact.
    """
    count = fleet.limits.reserve_hosts
    if not count:
        return []
    known = {host.name: host for host in fleet.hosts}
    sizes = {name: host.ram_bytes for name, host in known.items()}
    free = sum(sizes.values()) - sum(known[vm.host].room_taken_by(vm) for vm in fleet.vms)
    kept = sum(sorted(sizes.values(), reverse=True)[:count])
    staying = {host: sum(map(known[host].room_taken_by, choices.paused(host))) for host in hosts}
    # At least one, so that where nothing is to spare every host goes alone.
    weights = {host: max(-(-(sizes[host] - staying[host]) // _MIB), 1) for host in hosts}
    many = f"{count} host{'s' if count > 1 else ''}"
    text = f"a reserve of {many} (plan_reserve_hosts), which needs free RAM on hosts not being upgraded"
    return [Limit(text, max((free - kept) // _MIB, 0), weights)]
