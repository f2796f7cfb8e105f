#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thin: what goes into which file is in reservation, which region is chosen in regions."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pool
short_description: Reserve RAM of a host as the pool for its VMs, or give it back
version_added: 0.1.0
description:
  - Keeps RAM out of the kernel's allocator from the next boot on, with C(memmap=) and C(nokaslr) on the command line of
    every installed and every future kernel (Debian's GRUB, a file in C(/etc/default/grub.d)).
  - Chooses the regions from the firmware's memory map. A pool that fits the wish already stays where it is. A large one
    is kept in pieces, which the kernel attaches at the same time.
  - Keeps RAM for a crash kernel as well (C(crashkernel=)), in which the old kernel takes over, with the VMs, when a new
    one panics or hangs right after a live update.
  - Writes the agent's configuration, C(/etc/holdfast/agent.json), and sets C(memory_backing_dir) in
    C(/etc/libvirt/qemu.conf) between two marker lines.
  - Does not reboot, mount, or restart anything.
  - Changes nothing while a live update is in flight, a VM of one still waits, or the journal cannot be read, and asks
    for no reboot then. Gives no pool back in which a VM has its RAM.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  state:
    description: Whether the host shall have a pool.
    type: str
    choices: [present, absent]
    default: present
  regions:
    description:
      - RAM wanted, per NUMA node. Required when O(state=present).
      - Several regions are joined to one pool. A VM whose definition binds its memory to NUMA nodes gets its RAM there.
    type: list
    elements: dict
    suboptions:
      size:
        description:
          - Like C(1536M), C(2G), or C(50%) of the node's RAM; binary suffixes, a multiple of 2 MiB.
        type: str
        required: true
      node:
        description: NUMA node to take it from; V(all) for as much from every one.
        type: str
        default: "0"
      start:
        description:
          - Physical address, like C(0x100000000) or C(4G). Chosen when left out, which is nearly always right.
        type: str
  kind:
    description:
      - V(fsdax) keeps VM RAM as files of a DAX file system. Every page of the pool is described by the kernel at its
        start, in 1/64 of the pool's size, whether a VM uses it or not.
      - V(devdax) keeps the RAM of each VM as a DAX device of its own, in soft-reserved RAM (C(dax_hmem)). Nothing is
        described before its VM starts, and then in less than 1/200 of its size, so that a host of any size is attached
        at once. The RAM of each VM is a multiple of 2 MiB, and is cleared when it starts. It needs a libvirt that
        confines QEMU by AppArmor, as Debian's does.
      - V(auto) is the kind of the pool that is there; for a new one V(devdax) from 64 GiB on, where AppArmor is and the
        RAM of every VM a multiple of 2 MiB.
      - The kind changes at the next boot, while no VM has its RAM in the pool.
    type: str
    choices: [auto, fsdax, devdax]
    default: auto
  page:
    description:
      - Size of the pages of a pool of kind V(devdax). With V(1G) almost nothing is needed to describe them, and a VM's
        RAM is there sooner after a live update; the RAM of each VM is then a multiple of 1 GiB.
    type: str
    choices: [2M, 1G]
    default: 2M
  host_reserve:
    description:
      - RAM that must be left for the host itself, like C(4G). When left out, 2 GiB or 5 % of the host's RAM, whichever
        is more.
    type: str
  crash_kernel:
    description:
      - RAM kept for that. V(auto) computes it from the pool, the CPUs and the initrd; it leaves it out, with the
        reason, when it does not fit beside the pool, or when the boot loader's configuration has a C(crashkernel=)
        already. V(none) leaves it out. A size like C(1G) that is too small, or does not fit, is refused.
    type: str
    default: auto
  max_vms:
    description:
      - How many VMs the host may have at a time. Each adds to what the crash kernel needs, and to what is kept for
        device states in a pool of kind V(devdax). When left out, one for each 4 GiB of the pool.
    type: int
  metrics_dir:
    description:
      - Directory of node_exporter's textfile collector, for the agent's configuration. The agent puts C(holdfast.prom)
        into it if it is there. Empty for no metrics.
    type: str
    default: /var/lib/prometheus/node-exporter
attributes:
  check_mode:
    description: Chooses, checks and shows everything, writes nothing.
    support: full
  diff_mode:
    description: Shows the three files before and after.
    support: full
  idempotent:
    description: A pool that fits the wish is left as it is.
    support: full
seealso:
  - module: holdfast.kvm.domain_ram
  - module: holdfast.kvm.agent
"""

EXAMPLES = r"""
- name: Keep 24 GiB for VMs
  holdfast.kvm.pool:
    regions:
      - size: 24G
  register: pool

- name: Keep 80 % of the RAM of every NUMA node
  holdfast.kvm.pool:
    regions:
      - size: 80%
        node: all

- name: Boot with it
  ansible.builtin.reboot:
  when: pool.reboot_required

- name: Give the RAM back at the next boot
  holdfast.kvm.pool:
    state: absent
"""

RETURN = r"""
regions:
  description: The pool's physical ranges in bytes, C(start), C(size) and C(node). Empty when there is none.
  type: list
  elements: dict
  returned: success
  sample: [{start: 4294967296, size: 1610612736, node: 0, kind: System RAM}]
kind:
  description: The pool's kind. Empty when there is none.
  type: str
  returned: success
  sample: fsdax
argument:
  description: The kernel arguments, as they are on every command line. Empty when there is no pool.
  type: str
  returned: success
  sample: memmap=0x60000000!0x100000000 nokaslr crashkernel=640M
crash_kernel:
  description: Size of what is kept for the crash kernel. Empty when nothing is.
  type: str
  returned: success
  sample: 640 MiB
crash_kernel_reason:
  description: Why nothing is kept for a crash kernel.
  type: str
  returned: success
  sample: ""
reboot_required:
  description: Whether the running kernel was started with another reservation than the one that is now configured.
  type: bool
  returned: success
  sample: true
libvirt_changed:
  description: Whether libvirt's daemon must be restarted to read its configuration. That stops no VM.
  type: bool
  returned: success
  sample: true
mounted:
  description: Whether the pool is mounted now.
  type: bool
  returned: success
  sample: false
refused:
  description: Whether the wish cannot be granted; nothing was touched then, and C(msg) says why.
  type: bool
  returned: failure
  sample: true
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Dict, List, Sequence

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils._core import collect, domain_ram, reservation, turn
from ansible_collections.holdfast.kvm.plugins.module_utils._core import config as configuration
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config
from ansible_collections.holdfast.kvm.plugins.module_utils._core.crash_area import CrashArea
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, HoldfastError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import plain
from ansible_collections.holdfast.kvm.plugins.module_utils._core.grub import arguments_of
from ansible_collections.holdfast.kvm.plugins.module_utils._core.hypervisor import connect
from ansible_collections.holdfast.kvm.plugins.module_utils._core.regions import (
    PoolWish,
    nodes_with_ram,
    parse_size,
    size_text,
    total_ram,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.reservation import Files, Wish
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import Region
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

PAGES = {"2M": configuration.SMALL_PAGE_BYTES, "1G": configuration.LARGE_PAGE_BYTES}
ARGUMENTS: Dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "regions": {
        "type": "list",
        "elements": "dict",
        "options": {
            "size": {"type": "str", "required": True},
            "node": {"type": "str", "default": "0"},
            "start": {"type": "str"},
        },
    },
    "kind": {
        "type": "str",
        "choices": [reservation.AUTO, configuration.FSDAX, configuration.DEVDAX],
        "default": reservation.AUTO,
    },
    "page": {"type": "str", "choices": list(PAGES), "default": "2M"},
    "host_reserve": {"type": "str"},
    "crash_kernel": {"type": "str", "default": "auto"},
    "max_vms": {"type": "int"},
    "metrics_dir": {"type": "str", "default": str(configuration.METRICS_DIR)},
}


def read_wish(params: Dict[str, Any], firmware: Sequence[Region]) -> Wish:
    """The caller's options, on a host with this RAM. Raises BadInput for one that cannot be read."""
    wishes = tuple(
        PoolWish(parse_size(one["size"], total_bytes=ram_of(node, firmware)), node, read_address(one["start"]))
        for one in params["regions"] or []
        for node in read_nodes(one["node"], firmware)
    )
    reserve = params["host_reserve"]
    reserve_bytes = parse_size(reserve, total_bytes=total_ram(firmware)) if reserve else None
    metrics_dir = configuration.directory_or_none(params["metrics_dir"])
    return Wish(
        wishes,
        params["kind"],
        reserve_bytes,
        params["crash_kernel"],
        metrics_dir,
        read_count(params["max_vms"]),
        PAGES[params["page"]],
    )


def chosen_kind(module: AnsibleModule, wish: Wish, current: Config, *, confined: bool) -> str:
    """The kind of the pool; one of devices is not chosen over the head of a VM that could not be in it.

    Raises HoldfastError when libvirt cannot be asked for its VMs.
    """
    kind = reservation.chosen_kind(wish, current, confined=confined)
    if wish.kind != reservation.AUTO or current.pool or kind != configuration.DEVDAX:
        return kind
    try:
        with connect() as hypervisor:
            names = domain_ram.not_whole(hypervisor, configuration.SMALL_PAGE_BYTES)
    except HoldfastError as exc:
        # A first check, before anything was installed.
        if not module.check_mode:
            raise
        module.warn(f"the pool will be of kind {kind} unless a VM could not be in it, which nobody knows yet: {exc}")
        return kind
    if not names:
        return kind
    module.warn(
        f"the pool is made of kind {configuration.FSDAX}: the RAM of {', '.join(names)} is no multiple of "
        f"{size_text(configuration.SMALL_PAGE_BYTES)}, as one of kind {configuration.DEVDAX} needs it"
    )
    return configuration.FSDAX


def read_count(number: int | None) -> int | None:
    """How many VMs, or None. Raises BadInput."""
    if number is not None and number < 1:
        raise BadInput(f"max_vms is {number}", "say how many VMs this host may have, or leave it out")
    return number


def read_nodes(text: str, firmware: Sequence[Region]) -> Sequence[int]:
    """``1``, or every node with RAM for ``all``. Raises BadInput."""
    if text == "all":
        return nodes_with_ram(firmware)
    if not text.isdecimal():
        raise BadInput(f"{text!r} is no NUMA node", "name it by its number, or all of them with: all")
    return (int(text),)


def ram_of(node: int, firmware: Sequence[Region]) -> int:
    """Bytes of System RAM of a node."""
    return total_ram([entry for entry in firmware if entry.node == node])


def read_address(text: str | None) -> int | None:
    """``0x100000000`` and ``4G`` alike. Raises BadInput."""
    if not text:
        return None
    if not text.lower().startswith("0x"):
        return parse_size(text)
    try:
        return int(text, 16)
    except ValueError as exc:
        raise BadInput(f"{text!r} is no address", "write it like 0x100000000 or 4G") from exc


def differences(before: Files, after: Files) -> List[Dict[str, str]]:
    """One entry per file that changes, as Ansible shows them."""
    paths = {"agent": configuration.CONFIG, "boot": reservation.grub.PATH, "libvirt": reservation.qemu_conf.PATH}
    return [
        {
            "before_header": str(path),
            "before": getattr(before, name),
            "after_header": str(path),
            "after": getattr(after, name),
        }
        for name, path in paths.items()
        if getattr(before, name) != getattr(after, name)
    ]


def act(module: AnsibleModule) -> Dict[str, Any]:
    """Choose, check, and write unless it is a check. Raises HoldfastError."""
    current, before = configuration.load(), reservation.read_files()
    running = collect.kexec.running_cmdline()
    reservation.check_kernel(running)
    firmware, crash = collect.firmware_map(), CrashArea()
    if module.params["state"] == "present":
        wish, confined = read_wish(module.params, firmware), reservation.is_confined(before)
        wish = replace(wish, kind=chosen_kind(module, wish, current, confined=confined))
        wanted = reservation.wanted_config(current, firmware, wish)
        reservation.check_confined(wanted, confined=confined)
        reservation.check_pages(wanted)
        crash = reservation.wanted_crash_area(before, wanted, firmware, wish)
        after = reservation.with_pool(before, wanted, crash)
    else:
        wanted, after = Config(state_dir=current.state_dir), reservation.without_pool(before)
    reboot = reservation.reboot_required(wanted, after.boot, running)
    reservation.check(before, after, current, wanted, reboot=reboot)
    if not module.check_mode:
        with turn.taken() if before != after else nullcontext():
            # Once more: a live update may have begun since, and none begins from here on.
            reservation.check(before, after, current, wanted, reboot=reboot)
            reservation.put(before, after, wanted.state_dir)
    return {
        "changed": before != after,
        "diff": differences(before, after),
        "regions": [plain(region) for region in wanted.pool.regions] if wanted.pool else [],
        "kind": wanted.pool.kind if wanted.pool else "",
        "argument": " ".join(arguments_of(after.boot)),
        "crash_kernel": size_text(crash.size_bytes) if crash.size_bytes else "",
        "crash_kernel_reason": crash.reason,
        "reboot_required": reboot,
        "libvirt_changed": before.libvirt != after.libvirt,
        "mounted": collect.pool_facts(wanted, running).mounted,
    }


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
