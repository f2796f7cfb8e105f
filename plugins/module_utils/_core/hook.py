# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The libvirt hook: what happens when any VM starts on this host.

libvirt waits for the hook and takes a failure as a veto. The hook must not call libvirt.
"""

from __future__ import annotations

from typing import Any, BinaryIO, Mapping

from . import cmdline, kexec, permit
from .config import Config
from .domain import is_converted, vm_facts
from .errors import BadInput, HoldfastError
from .facts import RamBacking, VmFacts
from .incoming import waits_for_state
from .journal import LEAVING, OPEN, STORED, open_journal
from .pool import open_pool
from .printable import argument

# Far above what libvirt itself takes over its own connection (4 MiB for one text).
LARGEST_XML = 16 << 20


def read_definition(stream: BinaryIO) -> str:
    """The VM's definition, as libvirt hands it to its hook. Raises BadInput for what libvirt would never write."""
    text = stream.read(LARGEST_XML + 1)
    if len(text) > LARGEST_XML:
        raise BadInput(f"the domain XML is larger than {LARGEST_XML >> 20} MiB", "look at virsh dumpxml")
    try:
        return text.decode()
    except UnicodeDecodeError as exc:
        raise BadInput(f"the domain XML is not UTF-8: {exc}", "look at virsh dumpxml") from exc


def run(config: Config, operation: str, sub_operation: str, xml: str) -> None:
    """Act on one hook call. Raises HoldfastError to forbid the start."""
    if config.pool is None or sub_operation != "begin":
        return
    vm = vm_facts(xml)
    # Another start may come at the same moment. One from a stored definition would boot, over the RAM that is kept.
    restored = waits_for_state(xml) and permit.holds(vm.uuid)
    if operation == "prepare" and not restored:
        _forbid_second_life(config, vm)
    elif operation == "start":
        _place(config, vm, restored, in_pool=is_converted(xml) or _pool_is_due(config))


def _forbid_second_life(config: Config, vm: VmFacts) -> None:
    """A VM that waits in the pool must not be started from its disk, by autostart or by hand."""
    journal = open_journal(config.state_dir)
    if journal.state in LEAVING and kexec.boot_id() in journal.view["boot_id"].values():
        found = f"VM {vm.name} cannot start: the host is about to jump into another kernel, by {journal.generation}"
        raise HoldfastError(found, "it would be lost in the jump; start it, or move it here, when that is over")
    for entry in journal.vms:
        # One that was defined anew, under the same name or with the same uuid, has the same disks.
        if entry["uuid"] == vm.uuid or entry["name"] == vm.name:
            _refuse_while_it_waits(journal.generation, entry)


def _refuse_while_it_waits(generation: str, entry: Mapping[str, Any]) -> None:
    name, state = entry["name"], entry["state"]
    if state in STORED:
        found = f"VM {name} was saved to disk with its RAM by generation {generation}"
        raise HoldfastError(found, "it must not be started from its disk; holdfast-agent recover brings it back")
    if state in OPEN:
        found = f"VM {name} is suspended in the pool by generation {generation}"
        raise HoldfastError(found, "it must not be started from its disk; see holdfast-agent status")
    if state == "lost" and not entry.get("may_restart"):
        found = f"VM {name} lost its RAM in generation {generation}, and its policy forbids a fresh start"
        remedy = f"holdfast-agent give-up -- {argument(name)}"
        raise HoldfastError(found, f"to start it from its disk all the same: {remedy}")


def _pool_is_due(config: Config) -> bool:
    """Whether VMs are to have their RAM in the pool: not before the reboot that keeps it free for the first time."""
    kept = cmdline.pool_arguments(kexec.running_cmdline())
    return bool(kept) or open_journal(config.state_dir).state != "none"


def _place(config: Config, vm: VmFacts, restored: bool, in_pool: bool) -> None:
    """Give a restored VM its RAM back; reserve RAM for a new one, so that the pool is never promised twice."""
    pool = open_pool(config)
    if restored and pool.ram_of(vm.uuid):
        pool.place(vm.uuid, vm.domain_id, vm.name)
    elif vm.ram_backing is RamBacking.FILE_SHARED and in_pool:
        pool.reserve_vm(vm.domain_id, vm.name, vm.ram_files)
