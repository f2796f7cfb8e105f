# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a live migration asks of libvirt, and what it means how it ended. Pure decisions; ``evacuation`` acts.

Flags and parameters have libvirt's names without ``VIR_MIGRATE_`` and ``VIR_MIGRATE_PARAM_``.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Dict, List, Tuple

from .errors import BadInput
from .facts import Runs
from .images import Copy, CopyPlan
from .switchover import Bounds

# Several connections at once (multifd); compatibly between QEMU's versions since 8.2.
MULTIFD_QEMU = (8, 2, 0)
# Multifd together with post-copy.
MULTIFD_POSTCOPY_QEMU = (10, 1, 0)
# QEMU's auto-converge takes this off the guest's CPU first, and each time that this was not enough.
THROTTLE_FIRST_PERCENT, THROTTLE_MORE_PERCENT = 20, 10


class PostCopy(Enum):
    """``IF_HOPELESS``: when a VM writes faster than it can be sent. Until it is over, a failing host ends the VM."""

    NEVER = "never"
    IF_HOPELESS = "if_hopeless"


class Encryption(Enum):
    """``NONE`` only for who asks for it by name: guest memory goes over the network as it is."""

    TLS = "tls"
    NONE = "none"


@dataclass(frozen=True)
class Wish:
    """What the caller asked for. Speeds in MiB/s, 0 without limit; times in seconds.

    ``address``: the destination as this host reaches it; ``uri``: its libvirt.
    """

    vm: str
    uri: str
    address: str
    bounds: Bounds = field(default_factory=Bounds)
    encryption: Encryption = Encryption.TLS
    postcopy: PostCopy = PostCopy.NEVER
    bandwidth_mib_s: int = 0
    connections: int = 4
    deadline_s: float = 1800.0
    tries: int = 2


@dataclass(frozen=True)
class Ends:
    """QEMU on both hosts: of the VM as it runs, and of the one that is installed at the destination."""

    source_qemu: Tuple[int, int, int]
    destination_qemu: Tuple[int, int, int]


class Whereabouts(Enum):
    """Where the VM is, proven from both sides."""

    SOURCE = "at the source"
    DESTINATION = "at the destination"
    BOTH = "at both hosts"
    NOWHERE = "at neither host"
    UNPROVEN = "unproven"


_THERE = (Runs.RUNS, Runs.STANDS)
_NOT_THERE = (Runs.OFF, Runs.ABSENT)


def may_begin(source: Runs, destination: Runs) -> bool:
    """Whether a VM may be moved: it is at the source, and the destination says that it has none of it."""
    return source in _THERE and destination in _NOT_THERE


def require_possible(wish: Wish, ends: Ends) -> None:
    """Raise BadInput for what can be known before: QEMU reads the state of older ones, not of newer ones."""
    if ends.destination_qemu < ends.source_qemu:
        raise BadInput(
            f"VM {wish.vm} runs on QEMU {_dotted(ends.source_qemu)}, {wish.address} has the older "
            f"{_dotted(ends.destination_qemu)}",
            "move it to a host with the same QEMU or a newer one",
        )


def flags(wish: Wish, ends: Ends, copy: CopyPlan, persistent: bool) -> List[str]:
    """Names of the flags. The source's definition goes with the VM: nobody must be able to start it there again."""
    names = ["LIVE", "PEER2PEER", "ABORT_ON_ERROR", "AUTO_CONVERGE"]
    names += ["PERSIST_DEST", "UNDEFINE_SOURCE"] if persistent else []
    names += ["TLS"] if wish.encryption is Encryption.TLS else []
    names += ["PARALLEL"] if _multifd(wish, ends) else []
    names += ["POSTCOPY"] if wish.postcopy is PostCopy.IF_HOPELESS else []
    if copy.copy is not Copy.NOTHING:
        names.append("NON_SHARED_INC" if copy.copy is Copy.TOP else "NON_SHARED_DISK")
    return names


def parameters(wish: Wish, ends: Ends, copy: CopyPlan, xml: str) -> Dict[str, Any]:
    """Parameters. ``xml`` is the definition that the destination gets, empty for the VM's own."""
    values: Dict[str, Any] = {
        "URI": f"tcp://{_in_uri(wish.address)}",
        "AUTO_CONVERGE_INITIAL": THROTTLE_FIRST_PERCENT,
        "AUTO_CONVERGE_INCREMENT": THROTTLE_MORE_PERCENT,
    }
    if wish.encryption is Encryption.TLS:
        values["TLS_DESTINATION"] = wish.address
    if wish.bandwidth_mib_s:
        values["BANDWIDTH"] = wish.bandwidth_mib_s
    if _multifd(wish, ends):
        values["PARALLEL_CONNECTIONS"] = wish.connections
    if copy.targets:
        values["MIGRATE_DISKS"] = list(copy.targets)
    if xml:
        values["DEST_XML"] = xml
    return values


def whereabouts(source: Runs, destination: Runs) -> Whereabouts:
    """Where the VM is. A VM that stands still counts for the one host only if the other has none of it."""
    if source is Runs.RUNS:
        return Whereabouts.BOTH if destination is Runs.RUNS else Whereabouts.SOURCE
    if source is Runs.STANDS:
        return Whereabouts.SOURCE if destination in _NOT_THERE else Whereabouts.UNPROVEN
    if source in _NOT_THERE and destination in _THERE:
        return Whereabouts.DESTINATION
    if source in _NOT_THERE and destination in _NOT_THERE:
        return Whereabouts.NOWHERE
    return Whereabouts.UNPROVEN


def _multifd(wish: Wish, ends: Ends) -> bool:
    oldest = min(ends.source_qemu, ends.destination_qemu)
    wanted = MULTIFD_POSTCOPY_QEMU if wish.postcopy is PostCopy.IF_HOPELESS else MULTIFD_QEMU
    return wish.connections > 1 and oldest >= wanted


def _in_uri(address: str) -> str:
    try:
        return f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
    except ValueError:
        return address


def _dotted(version: Tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
