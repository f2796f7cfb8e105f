# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much RAM is kept for the crash kernel (``crashkernel=``): enough for the old kernel to bring all VMs back in it.

Their RAM is in the pool. What has to fit is the kernel, its initrd, libvirt, the agent, and what the VMs' QEMU
processes need besides guest RAM, so it grows with how many there are, and not with how large they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from .config import SMALL_PAGE_BYTES, PoolConfig
from .errors import BadInput
from .regions import (
    MIB,
    default_host_reserve,
    expected_vms,
    page_tables_bytes,
    parse_size,
    size_text,
    structures_bytes,
    total_ram,
)
from .resources import Region

# The kernel, systemd and libvirt, of which 140 MiB were in use in the lab, and the room that a jump out of the crash
# kernel needs (256 MiB, see preflight).
BASE_BYTES = 512 * MIB
# At its start the crash kernel holds its initrd twice, packed and unpacked, and modules hardly shrink when packed.
INITRD_FOLD = 3
# Per-CPU areas, threads of the kernel, and the slabs that each CPU fills.
PER_CPU_BYTES = 2 * MIB
# QEMU's own memory; 30 MiB were seen with two disks and a network card, and each CPU and disk has threads.
QEMU_BYTES = 64 * MIB
UNIT_BYTES = 64 * MIB
AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class CrashWish:
    """``size`` is ``auto``, ``none`` or a size; ``present_bytes`` is kept by ``auto`` when it is enough.

    A new initrd, a little larger or smaller, is no reason for a reboot. ``vms``: how many the host may have.
    """

    size: str
    cpus: int
    initrd_bytes: int
    present_bytes: int = 0
    host_reserve_bytes: Optional[int] = None
    vms: Optional[int] = None


@dataclass(frozen=True)
class CrashArea:
    """``size_bytes`` to reserve; 0 when nothing is reserved, for ``reason``."""

    size_bytes: int = 0
    reason: str = ""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The kernel arguments. The kernel chooses the place, below 4 GiB if it can."""
        return (f"crashkernel={self.size_bytes // MIB}M",) if self.size_bytes else ()


def size_for(
    pool: Sequence[Region], cpus: int, initrd_bytes: int, qemu_bytes: int = 0, page_bytes: int = SMALL_PAGE_BYTES
) -> int:
    """Bytes that a crash kernel needs on a host with this pool, so many CPUs, and an initrd of this size.

    ``qemu_bytes``: what all QEMU processes have besides guest RAM and its page tables; ``page_bytes``: of the pool.
    """
    own = BASE_BYTES + cpus * PER_CPU_BYTES + initrd_bytes * INITRD_FOLD
    whole = own + structures_bytes(pool, page_bytes) + page_tables_bytes(pool) + qemu_bytes
    return -(-whole // UNIT_BYTES) * UNIT_BYTES


def choose(wish: CrashWish, firmware: Sequence[Region], config: PoolConfig) -> CrashArea:
    """What to reserve beside this pool. Raises BadInput for a size asked for that does not work."""
    if wish.size == NONE:
        return CrashArea(0, "it is switched off")
    pool, page_bytes = config.regions, config.page_bytes
    pool_bytes = sum(region.size for region in pool)
    qemus = expected_vms(pool_bytes, wish.vms) * QEMU_BYTES
    needed = size_for(pool, wish.cpus, wish.initrd_bytes, qemus, page_bytes)
    size = max(needed, wish.present_bytes) if wish.size == AUTO else parse_size(wish.size)
    if size < needed or size % MIB:
        raise BadInput(
            f"a crash kernel of {size_text(size)} is too small for this host, or no whole number of MiB",
            f"ask for {size_text(needed)}, or for {AUTO}, or say how many VMs the host may have",
        )
    reserve = default_host_reserve(firmware) if wish.host_reserve_bytes is None else wish.host_reserve_bytes
    left = total_ram(firmware) - pool_bytes - structures_bytes(pool, page_bytes) - size
    if left >= reserve:
        return CrashArea(size)
    reason = f"{size_text(size)} for it would leave the host {size_text(max(0, left))}, less than {size_text(reserve)}"
    if wish.size == AUTO:
        return CrashArea(0, reason)
    raise BadInput(f"no crash kernel is possible: {reason}", "make the pool smaller, or lower the host's reserve")
