# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is this controller itself one of the VMs? Then it would stand still, or go down, with its host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# The first one is for root alone. The second is made from the VM's uuid when a system boots as a VM for the first time
# (machine-id(5)), and may be another number: a controller that is not recognised here is not proven to be elsewhere.
IDENTITIES = (Path("/sys/class/dmi/id/product_uuid"), Path("/etc/machine-id"))


def own_identities(paths: Iterable[Path] = IDENTITIES) -> set[str]:
    """What this machine's VM would be called by its hypervisor: uuids without dashes."""
    return {text for text in map(_identity, paths) if text}


def _identity(path: Path) -> str:
    try:
        return _plain(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return ""


def _plain(uuid: str) -> str:
    return uuid.strip().replace("-", "").lower()


def controller_among(vms: Iterable[Mapping[str, Any]], identities: Iterable[str]) -> str:
    """The name of the VM that is this controller, or an empty text. Each VM has ``name`` and ``uuid``."""
    own = set(identities)
    return next((str(vm.get("name")) for vm in vms if _plain(str(vm.get("uuid") or "")) in own), "")


def pause_refusal(vm: str, host: str) -> str:
    """Why a campaign does not begin, and what to do."""
    return (
        f"this controller is VM {vm} on {host}, and would be paused with it: nobody would watch the campaign then. "
        f"Run it from a machine outside the fleet, or have {vm} moved away live before (treatment live in its policy, "
        "and a plan). To let it be paused: -e holdfast_controller_may_pause=true"
    )
