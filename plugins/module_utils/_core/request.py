# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a controller asks of a host: one file, written once, read once by the agent."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Tuple

from . import durable
from .errors import HoldfastError
from .facts import Treatment

NAME = "request.json"
EVERYTHING, ONLY_QEMU = "everything", "qemu"


@dataclass(frozen=True)
class VmRequest:
    """One VM that shall go through the jump. Higher ``priority``: suspended later, restored earlier.

    ``treatment``: ``in_place``; ``cold``, then it is saved to disk before, and loaded after; or ``restart``, then it
    is shut down before, and started after.
    ``may_restart``: it may be started afresh from its disk when its RAM is lost, by power loss for example.
    """

    name: str
    uuid: str
    priority: int = 50
    treatment: str = "in_place"
    reason: str = ""
    may_restart: bool = False


@dataclass(frozen=True)
class Request:
    """One live update. ``parallel`` VMs at a time; ``deadline_s`` seconds for all suspending, and for one restore.

    ``fallback_after``: the host goes back to the old kernel when so many VMs failed and none was resumed; 0: never.
    ``health_command``: a shell command that must succeed on the new kernel before any VM is resumed.
    ``verify_ram``: ``sampled`` or ``full``, how much of the RAM is compared. ``only``: ``everything``, or
    ``qemu``, which renews the VMs' QEMU without a jump. ``shutdown_s``: seconds for a guest that is shut down.
    ``network_s``: seconds that VMs wait after the jump for what carries their frames; 0: none, and its silence is no
    reason to go back. ``storage_s``: seconds that they wait for what their disks are on.
    """

    generation: str
    kernel_to: str
    vms: Tuple[VmRequest, ...] = ()
    parallel: int = 2
    deadline_s: float = 600.0
    fallback_after: int = 3
    health_command: str = ""
    verify_ram: str = "sampled"
    only: str = EVERYTHING
    shutdown_s: float = 300.0
    # Several times what a link takes to be negotiated, or a bridge with STP to forward.
    network_s: float = 60.0
    # What an iSCSI target takes that is just being failed over.
    storage_s: float = 120.0

    @property
    def staying(self) -> Tuple[VmRequest, ...]:
        """VMs that are suspended and restored."""
        return self._treated(Treatment.IN_PLACE)

    @property
    def stored(self) -> Tuple[VmRequest, ...]:
        """VMs that are saved to disk and loaded."""
        return self._treated(Treatment.COLD)

    @property
    def restarting(self) -> Tuple[VmRequest, ...]:
        """VMs that are shut down and started."""
        return self._treated(Treatment.RESTART)

    def _treated(self, treatment: Treatment) -> Tuple[VmRequest, ...]:
        return tuple(vm for vm in self.vms if vm.treatment == treatment.value)


def write(state_dir: Path, request: Request) -> None:
    """Hand a request to the agent, durably."""
    durable.write_text(state_dir / NAME, json.dumps(asdict(request), indent=1))


def read(state_dir: Path) -> Request:
    """The request on this host. Raises HoldfastError when there is none or it is damaged."""
    path = state_dir / NAME
    try:
        raw = json.loads(path.read_text())
        return Request(**{**raw, "vms": tuple(VmRequest(**vm) for vm in raw["vms"])})
    except FileNotFoundError as exc:
        hint = "the live_update module writes it; run the upgrade playbook"
        raise HoldfastError(f"no live update is requested: {path} is absent", hint) from exc
    except (KeyError, TypeError, ValueError) as exc:
        raise HoldfastError(f"{path} cannot be understood: {exc!r}", "run the upgrade playbook again") from exc


def remove(state_dir: Path) -> None:
    """Forget a request that was carried out."""
    (state_dir / NAME).unlink(missing_ok=True)
