# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where VM RAM lives: the one interface that every kind of pool has.

Its kinds are ``fsdax`` and ``devdax``. Others (kernel live-update memfds) come behind the same interface.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Protocol, Sequence, Tuple

from .config import DEVDAX, FSDAX, Config
from .errors import HoldfastError
from .resources import KeptRam, RamFile, Room


class Content(Enum):
    """What is in the reserved RAM when the pool is attached."""

    FRESH = "fresh"
    """Nothing of worth: a cold boot, or a boot that belongs to no generation."""

    TRUSTED = "trusted"
    """The RAM of suspended VMs: this boot is the one their generation asked for."""


class Pool(Protocol):
    """Reserve, attach, place a VM, check a VM, release. All methods raise HoldfastError.

    ``uuid`` names a VM for good; ``domain_id`` and ``name`` name its present QEMU, as libvirt's directories do.
    """

    def reserve(self) -> Tuple[str, ...]:
        """The kernel arguments that keep the pool out of the kernel's allocator."""

    def devices(self) -> Tuple[str, ...]:
        """Paths of device nodes that QEMU may be given; libvirt has to let it open them."""

    def attach(self, content: Content) -> None:
        """Make the reserved RAM usable; never touches what is in it when it is trusted."""

    def commit(self) -> None:
        """Have everything in the reserved RAM, ready for the jump. The pool stays attached, should there be none."""

    def mount_point(self) -> Path:
        """Where its file system is while it is attached."""

    def vault(self) -> Path:
        """The agent's own directory on the pool, which lives and dies with it."""

    def vault_of(self, uuid: str) -> Path:
        """The part of the vault that belongs to one VM; made by ``keep``, taken away by ``release``."""

    def ram_of(self, uuid: str) -> Tuple[KeptRam, ...]:
        """The kept RAM of a VM, readable, to be checked; none when nothing is kept."""

    def room(self) -> Room:
        """How much there is, and is free, while it is attached."""

    def reserve_vm(self, domain_id: int, name: str, files: Sequence[RamFile]) -> None:
        """Set aside the RAM of a VM that starts; fail when the pool has not enough."""

    def keep(self, uuid: str, domain_id: int, name: str) -> Tuple[RamFile, ...]:
        """Hold the RAM of a running VM, so that it outlives the end of its QEMU."""

    def place(self, uuid: str, domain_id: int, name: str) -> None:
        """Put the kept RAM where the QEMU that is about to start opens it."""

    def check_placed(self, uuid: str, domain_id: int, name: str) -> None:
        """Fail unless the QEMU that was started for a VM has the RAM that is kept for it."""

    def release(self, uuid: str) -> None:
        """Forget what is kept for a VM; its RAM is free once no QEMU uses it."""


def open_pool(config: Config) -> Pool:
    """The pool of a prepared host. Raises HoldfastError when there is none, or none of a known kind."""
    # The kinds import this file; and the one that is not here is not waited for.
    if config.required_pool.kind == FSDAX:
        from .fsdax import FsdaxPool

        return FsdaxPool(config.required_pool, config.state_dir)
    if config.required_pool.kind == DEVDAX:
        from .devdax import DevdaxPool

        return DevdaxPool(config.required_pool, config.state_dir)
    raise HoldfastError(
        f"the pool is of the unknown kind {config.required_pool.kind!r}",
        f"this agent knows {FSDAX} and {DEVDAX}: run the prepare playbook",
    )
