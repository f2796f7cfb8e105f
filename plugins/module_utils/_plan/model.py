# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan is made from, and what it is. Frozen data without logic: the planner and its checker share this alone.

Sizes are bytes, times seconds; times of a plan count from its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Optional, Tuple

from .._core.facts import CpuFacts, Disk, Mount, Treatment

# --- what it is made from ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pauses:
    """How long VMs of one host stand still, from measured runs or assumed; ``basis`` says which.

    ``floor``: while nothing can be done about it, from the last VM saved to the first one restored. ``each``: what one
    more round of ``parallel`` VMs costs, saving and restoring them. In seconds, the median and the 95th percentile.
    """

    floor_p50_s: float
    floor_p95_s: float
    each_p50_s: float
    each_p95_s: float
    parallel: int
    basis: str
    measured: bool


@dataclass(frozen=True)
class Switchover:
    """How long a VM stands still at the end of a live migration, in seconds."""

    p50_s: float
    p95_s: float
    basis: str


@dataclass(frozen=True)
class Host:
    """A hypervisor. ``ram_bytes`` is all its room for VM RAM, taken and free; ``cpus`` 0 when it is not known.

    ``pool``: it was prepared, and that room is its pool, which only VMs that are ``pooled`` take of.

    ``page_bytes``: RAM blocks of VMs in its pool are multiples of that.

    ``blockers`` is why it cannot be upgraded now; ``done`` says that it has been. ``domain``: hosts that share a rack,
    or whatever fails together. ``qemu``: the version that is installed, empty when it is not known.
    """

    name: str
    ram_bytes: int
    cpus: int
    cpu: CpuFacts
    pauses: Pauses
    link_mbit: float
    mounts: Tuple[Mount, ...] = ()
    domain: str = ""
    blockers: Tuple[str, ...] = ()
    done: bool = False
    pool: bool = False
    qemu: Tuple[int, ...] = ()
    page_bytes: int = 1

    def room_taken_by(self, vm: Vm) -> int:
        """Bytes of ``ram_bytes`` that a VM takes while it runs here."""
        return 0 if self.pool and not vm.pooled else vm.ram_bytes


@dataclass(frozen=True)
class Vm:
    """A VM that runs now. ``pooled``: its RAM is a shared file, as a pool keeps it; ``ram_blocks``: their sizes, bytes.

    ``held`` is why it cannot stay in place, ``bound`` why it cannot leave its host. ``treatments`` are those its policy
    allows, in its order; ``rule`` is the rule that says so. ``writes_bytes_per_s``: how fast it writes to its RAM, None
    when nobody looked. ``qemu``: the version that it runs on, empty when it is not known.
    """

    name: str
    uuid: str
    host: str
    vcpus: int
    ram_bytes: int
    disks: Tuple[Disk, ...] = ()
    cpu_mode: str = ""
    cpu_model: str = ""
    cpu_features: Tuple[str, ...] = ()
    held: Tuple[str, ...] = ()
    bound: Tuple[str, ...] = ()
    treatments: Tuple[Treatment, ...] = (Treatment.IN_PLACE,)
    priority: int = 50
    max_pause_s: Optional[float] = None
    critical: bool = False
    group: str = ""
    return_home: bool = False
    may_restart: bool = False
    rule: str = ""
    pooled: bool = False
    ram_blocks: Tuple[int, ...] = ()
    writes_bytes_per_s: Optional[int] = None
    qemu: Tuple[int, ...] = ()


@dataclass(frozen=True)
class Group:
    """VMs that stand for one service: at least ``min_available`` of them always run. ``origin``: FILE:LINE."""

    name: str
    min_available: int = 0
    anti_affinity: bool = False
    origin: str = ""


@dataclass(frozen=True)
class Limits:
    """What the operator lets a campaign do.

    ``waves``: hosts of each batch, the last number goes on. ``canaries`` are the first batch, when named.
    ``max_per_domain`` 0: no limit. ``reserve_hosts``: as many hosts could fail in each batch, and their VMs would find
    room. ``cpu_ratio``: virtual CPUs for each processor. ``shared_paths``: what lies below is the same on every host.
    ``copy_storage``: whether a live migration may copy disks that the other host does not reach.
    """

    waves: Tuple[int, ...] = (1,)
    canaries: Tuple[str, ...] = ()
    max_per_domain: int = 0
    reserve_hosts: int = 1
    cpu_ratio: float = 4.0
    shared_paths: Tuple[str, ...] = ()
    copy_storage: bool = False
    stage_s: float = 120.0


@dataclass(frozen=True)
class Fleet:
    """Everything a plan is made from. ``notes`` are worth knowing, and go into the plan's warnings."""

    hosts: Tuple[Host, ...]
    vms: Tuple[Vm, ...]
    groups: Tuple[Group, ...]
    limits: Limits
    switchover: Switchover
    notes: Tuple[str, ...] = ()


# --- what it is ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One treatment of one VM: allowed by its policy, possible by the facts, and why not.

    ``pause`` is predicted, ``work_s`` is what it costs the campaign, ``sent_bytes`` what it sends over the network.
    """

    treatment: Treatment
    allowed: bool
    possible: bool
    reason: str = ""
    remedy: str = ""
    pause_p50_s: float = 0.0
    pause_p95_s: float = 0.0
    work_s: float = 0.0
    sent_bytes: int = 0


@dataclass(frozen=True)
class VmPlan:
    """What happens to one VM. ``instead_of`` is the treatment it would have had, and ``reason`` says why not."""

    name: str
    uuid: str
    host: str
    treatment: Treatment
    reason: str
    rule: str
    pause_p50_s: float
    pause_p95_s: float
    basis: str
    options: Tuple[Option, ...] = ()
    instead_of: Optional[Treatment] = None


class Purpose(str, Enum):
    """Why a VM is moved."""

    EVACUATE = "evacuate"
    RETURN = "return"


@dataclass(frozen=True)
class Move:
    """One live migration. ``again``: it could only go to a host that is next, and will be moved once more."""

    vm: str
    uuid: str
    source: str
    destination: str
    purpose: Purpose
    start_s: float
    seconds: float
    sent_bytes: int
    copied_disks: Tuple[str, ...] = ()
    again: bool = False


@dataclass(frozen=True)
class Batch:
    """Hosts that are upgraded together, in the order in which they begin.

    Evacuations, from ``start_s``; then the upgrade, from ``upgrade_start_s`` for ``upgrade_s``; then returns.
    ``reserve_kept``: whether the operator's reserve is there meanwhile.
    """

    number: int
    hosts: Tuple[str, ...]
    start_s: float
    upgrade_start_s: float
    upgrade_s: float
    seconds: float
    evacuations: Tuple[Move, ...] = ()
    returns: Tuple[Move, ...] = ()
    reserve_kept: bool = True


class Absence(str, Enum):
    """Why a host is in no batch."""

    DONE = "done"
    DEFERRED = "deferred"
    BLOCKED = "blocked"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True)
class Obstacle:
    """A VM on whose account a host cannot be upgraded, and what would make it possible."""

    vm: str
    uuid: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A host that is in no batch."""

    host: str
    why: Absence
    reason: str
    vms: Tuple[Obstacle, ...] = ()


@dataclass(frozen=True)
class Bound:
    """How good the plan is: ``batches`` is the proven least number, and ``limited_by`` what sets it.

    ``gap``: by what part the plan's number is above it, 0 for the best. ``solver``: who found and proved it.
    """

    batches: int
    gap: float
    limited_by: str
    solver: str


@dataclass(frozen=True)
class Plan:
    """A campaign before it begins."""

    batches: Tuple[Batch, ...]
    vms: Tuple[VmPlan, ...]
    left_out: Tuple[LeftOut, ...]
    seconds: float
    bound: Bound
    warnings: Tuple[str, ...] = field(default=())

    @property
    def complete(self) -> bool:
        """Whether no host is left out because the plan could not be made for it."""
        return not any(entry.why in (Absence.BLOCKED, Absence.IMPOSSIBLE) for entry in self.left_out)
