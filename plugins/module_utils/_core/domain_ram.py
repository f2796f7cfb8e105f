# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the next start of a VM takes its RAM from: convert definitions to the pool, and back."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Dict, Iterable, List, Sequence, Tuple

from . import domain
from .errors import BadInput, VmError
from .facts import VmFacts
from .hypervisor import Hypervisor
from .regions import size_text

ALL = "all"


class Backing(str, Enum):
    """``ORIGINAL`` is what the definition said before it was converted."""

    POOL = "pool"
    ORIGINAL = "original"


# libvirt tells root the passwords of consoles (<graphics passwd=…>), and a definition is stored with them.
_PASSWORD = re.compile(r"""(\bpasswd\s*=\s*)("[^"]*"|'[^']*')""")


@dataclass(frozen=True)
class Conversion:
    """One VM's stored definition before and after; ``refusal`` says why it cannot be converted."""

    name: str
    before: str
    after: str
    restart_needed: bool
    refusal: str = ""

    @property
    def changed(self) -> bool:
        return self.before != self.after

    @property
    def difference(self) -> Dict[str, str]:
        """Before and after as Ansible shows them; results of modules are kept where many can read them."""
        header = f"definition of {self.name}"
        before, after = (_PASSWORD.sub(r"\1'(not shown)'", xml) for xml in (self.before, self.after))
        return {"before_header": header, "before": before, "after_header": header, "after": after}


def plan(
    hypervisor: Hypervisor, vms: Sequence[VmFacts], names: Sequence[str], backing: Backing, unit_bytes: int = 1
) -> List[Conversion]:
    """What to do for the VMs called ``names`` (``all``: every stored one). Raises BadInput for a name nobody has.

    The pool gives RAM in whole units of ``unit_bytes`` only.
    """
    require_known(vms, names)
    chosen = [vm for vm in vms if vm.name in names or (ALL in names and vm.persistent)]
    return [_conversion(hypervisor, vm, backing, unit_bytes) for vm in chosen]


def put(hypervisor: Hypervisor, conversions: Iterable[Conversion]) -> None:
    """Store the changed definitions. Running VMs go on as they are. Raises VmError."""
    for conversion in conversions:
        if conversion.changed:
            hypervisor.define(conversion.after)


def _conversion(hypervisor: Hypervisor, vm: VmFacts, backing: Backing, unit_bytes: int) -> Conversion:
    if not vm.persistent:
        reason = f"VM {vm.name} is transient: it has no stored definition -- define it first (virsh define)"
        return Conversion(vm.name, "", "", restart_needed=False, refusal=reason)
    before = hypervisor.domain(vm.uuid).stored_xml()
    change = domain.to_pool_backing if backing is Backing.POOL else domain.from_pool_backing
    try:
        after, _ = change(before)
    except BadInput as error:
        return Conversion(vm.name, before, before, restart_needed=False, refusal=str(error))
    if backing is Backing.POOL and not _is_whole(after, unit_bytes):
        refusal = f"the RAM of VM {vm.name} is no multiple of {size_text(unit_bytes)}, as this host's pool needs it"
        return Conversion(vm.name, before, before, restart_needed=False, refusal=f"{refusal} -- change its <memory>")
    return Conversion(vm.name, before, after, restart_needed=_restart_needed(vm, after))


def not_whole(hypervisor: Hypervisor, unit_bytes: int) -> Tuple[str, ...]:
    """Names of the VMs that a pool could take, but not one that gives RAM in whole units of so many bytes only."""
    found = []
    for vm in hypervisor.domains():
        # One that no pool can take, or that has just been undefined, has no say in it.
        with suppress(BadInput, VmError):
            if vm.persistent():
                after, _ = domain.to_pool_backing(vm.stored_xml())
                found += [] if _is_whole(after, unit_bytes) else [vm.name]
    return tuple(sorted(found))


def _is_whole(definition: str, unit_bytes: int) -> bool:
    """Whether all RAM of a converted definition is a multiple of ``unit_bytes``."""
    return not any(
        file.size_bytes % unit_bytes for file in domain.vm_facts(definition, definition=definition).ram_files
    )


def _restart_needed(vm: VmFacts, definition: str) -> bool:
    """Whether the VM's present QEMU has its RAM elsewhere than its next one will."""
    next_in_pool = domain.vm_facts(definition, definition=definition).definition_converted
    return vm.running and bool(vm.ram_files_present) != next_in_pool


def require_known(vms: Sequence[VmFacts], names: Sequence[str]) -> None:
    """Raise BadInput unless every name belongs to a VM of this host."""
    known = {vm.name for vm in vms}
    unknown: Tuple[str, ...] = tuple(name for name in names if name != ALL and name not in known)
    if unknown:
        raise BadInput(
            f"this host has no VM called {', '.join(unknown)}", f"VMs here: {', '.join(sorted(known)) or 'none'}"
        )
