#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prove on a host that every VM carried on."""

from __future__ import annotations

DOCUMENTATION = r"""
module: verify
short_description: Prove that every VM of a host carried on
version_added: 0.1.0
description:
  - Asks libvirt, every VM's QEMU and the journal how a host is after a live update, and fails with every problem at
    once.
  - Every VM of the live update runs again (or is paused, if it was), on the installed QEMU, and copies its RAM when
    it is migrated or saved next. The journal is closed, and no suspended VM is left in the pool.
  - What was well before the live update is well again. libvirt's networks and storage pools that were active are
    active, bridges that carried VMs' frames out of the host carry them, guest agents that answered answer, and the
    kernel's taint tells of no new trouble. The look before is in the journal.
  - Reads only. Without O(generation) it looks at the VMs that run and at the journal, and expects nothing of kernel and
    QEMU.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  generation:
    description: The live update that should have been carried out. Empty when none was.
    type: str
    default: ""
  kernel:
    description: The release that should be running. Empty to accept any.
    type: str
    default: ""
  command:
    description: A shell command on the host that must succeed, within a minute. Not run in check mode.
    type: str
    default: ""
  guest_agents:
    description:
      - Whether a guest agent that answered before, and does not now, is a problem. Whoever is root in a guest can
        silence its agent.
    type: bool
    default: true
  wait_s:
    description: Seconds that networks, storage pools, bridges and guest agents may take to be as they were before.
    type: int
    default: 60
attributes:
  check_mode:
    description: Changes nothing in any mode.
    support: full
  diff_mode:
    description: Changes nothing in any mode.
    support: none
  idempotent:
    description: Changes nothing.
    support: full
seealso:
  - module: holdfast.kvm.live_update
"""

EXAMPLES = r"""
- name: Prove that every VM carried on
  holdfast.kvm.verify:
    generation: "{{ updated.generation }}"
    kernel: "{{ updated.kernel.to }}"
"""

RETURN = r"""
vms_not_running:
  description: Names of VMs of the live update that do not run as before, or whose QEMU does not answer.
  type: list
  elements: str
  returned: always
  sample: []
problems:
  description: What is not as it should be, one sentence each.
  type: list
  elements: str
  returned: always
  sample: []
kernel:
  description: The running kernel's release.
  type: str
  returned: always
  sample: 7.2.12+deb13-amd64
boot:
  description:
    - What the VMs waited for between the start of the new kernel and their restore, the kernel first, in its order.
      Empty without O(generation), and when this boot is not the one that it jumped into.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: A unit of systemd, or C(kernel and initrd).
      type: str
    start:
      description: Seconds from the kernel's start until it began.
      type: float
    seconds:
      description: How long it took.
      type: float
  sample:
    - {name: kernel and initrd, start: 0.0, seconds: 3.1}
    - {name: libvirtd.service, start: 7.4, seconds: 0.9}
told:
  description:
    - Errors in the kernel's log of a kind that was not there when the live update began, one sentence each, a few at
      most. They are no problem by themselves.
  type: list
  elements: str
  returned: always
  sample: []
vms:
  description: Every running VM.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: Its name.
      type: str
    uuid:
      description: Its UUID.
      type: str
    state:
      description: What libvirt says of it.
      type: str
    qemu:
      description: Version of the QEMU that runs it. Empty when its monitor does not answer.
      type: str
    ram_stays_in_place:
      description: Whether its next migration would leave out its RAM. Must be false whenever a VM runs.
      type: bool
    trouble:
      description: Why its monitor does not answer, else empty.
      type: str
  sample:
    - {name: db1, uuid: 6d0bb2f2-7d4a-4b0e-9b0b-0d4f3c5f1a11, state: running, qemu: 11.1.3, ram_stays_in_place: false,
       trouble: ""}
"""

import os
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, Iterator, List, Mapping, Sequence

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    boot_path,
    config,
    gates,
    health,
    journal,
    kernel_log,
    kexec,
    monitor,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.hypervisor import Domain, Hypervisor, connect
from ansible_collections.holdfast.kvm.plugins.module_utils._core.printable import argument
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

# How long a guest that was shut down for the upgrade may take until its agent answers. It is worth the wait: while it
# starts, its group has one member less, and the next host would take another.
GUEST_START_S = 600.0

ARGUMENTS: Dict[str, Any] = {
    "generation": {"type": "str", "default": ""},
    "kernel": {"type": "str", "default": ""},
    "command": {"type": "str", "default": ""},
    "guest_agents": {"type": "bool", "default": True},
    "wait_s": {"type": "int", "default": 60},
}


@dataclass(frozen=True)
class RunningVm:
    """One VM that has a QEMU now."""

    name: str
    uuid: str
    state: str
    qemu: str = ""
    ram_stays_in_place: bool = False
    trouble: str = ""


@dataclass(frozen=True)
class Expected:
    """What should be true; empty strings expect nothing. ``guest_agents``: that they answer as before."""

    generation: str = ""
    kernel: str = ""
    guest_agents: bool = True


def look_at(domain: Domain) -> RunningVm:
    """One VM as libvirt and its QEMU describe it. A silent monitor is a finding, not an end."""
    state = domain.state()
    try:
        return RunningVm(
            domain.name, domain.uuid, state, monitor.qemu_version(domain), monitor.ram_stays_in_place(domain)
        )
    except VmError as error:
        return RunningVm(domain.name, domain.uuid, state, trouble=str(error))


def problems(expected: Expected, kernel: str, view: Mapping[str, Any], vms: Sequence[RunningVm]) -> List[str]:
    """Everything that is not as it should be. ``view`` is the newest journal as a dictionary."""
    found = list(_host_problems(expected, kernel, view))
    found += [problem for vm in vms for problem in _running_problems(vm)]
    if expected.generation and view.get("generation") == expected.generation:
        by_uuid = {vm.uuid: vm for vm in vms}
        found += [problem for record in view.get("vms", []) for problem in _vm_problems(record, by_uuid, view)]
    return found


def not_running(expected: Expected, view: Mapping[str, Any], vms: Sequence[RunningVm]) -> List[str]:
    """Names of VMs of the live update of which nobody can say that they run as before."""
    if not expected.generation or view.get("generation") != expected.generation:
        return []
    fine = {(vm.uuid, vm.state) for vm in vms if not vm.trouble}
    return [
        record["name"]
        for record in view.get("vms", [])
        if (record["uuid"], "paused" if record.get("was_paused") else "running") not in fine
    ]


def _host_problems(expected: Expected, kernel: str, view: Mapping[str, Any]) -> Iterator[str]:
    if expected.kernel and kernel != expected.kernel:
        yield f"kernel {kernel} runs, not {expected.kernel}"
    if expected.generation and view.get("generation") != expected.generation:
        yield f"the newest journal is of generation {view.get('generation', '(none)')}, not {expected.generation}"
    elif expected.generation and view["state"] != "restored":
        yield f"the journal of {expected.generation} ends in '{view['state']}', not in 'restored'"
    elif view["state"] not in ("none", *journal.TERMINAL):
        yield f"live update {view.get('generation')} is not finished: its journal says '{view['state']}'"


def _running_problems(vm: RunningVm) -> Iterator[str]:
    if vm.trouble:
        yield vm.trouble
    if vm.ram_stays_in_place:
        switch = f"virsh qemu-monitor-command --hmp --domain={argument(vm.name)}"
        yield (
            f"VM {vm.name}: x-ignore-shared is still on, so its next live migration would lose its RAM; switch it off: "
            f"{switch} 'migrate_set_capability x-ignore-shared off'"
        )


def _vm_problems(record: Mapping[str, Any], vms: Mapping[str, RunningVm], view: Mapping[str, Any]) -> Iterator[str]:
    name, vm = record["name"], vms.get(record["uuid"])
    wanted = "paused" if record.get("was_paused") else "running"
    qemu = view.get("qemu", {}).get("to", "")
    if vm is None:
        yield f"VM {name} does not run: {record.get('error') or 'see holdfast-agent status'}"
    elif vm.state != wanted:
        yield f"VM {name} is {vm.state}, not {wanted}"
    elif qemu and vm.qemu and vm.qemu != qemu:
        yield f"VM {name} runs on QEMU {vm.qemu}, not on {qemu}"


def gate_problems(hypervisor: Hypervisor, expected: Expected, view: Mapping[str, Any], wait_s: float) -> List[str]:
    """What is worse than before the live update; without one there is nothing to compare with."""
    if not expected.generation or view.get("generation") != expected.generation:
        return []
    before = gates.from_record(view.get("before", {}))
    before = before if expected.guest_agents else replace(before, guest_agents=())
    restarted = {vm["uuid"] for vm in view.get("vms", []) if vm["state"] == "started"}
    if restarted & set(before.guest_agents):
        wait_s = max(wait_s, GUEST_START_S)
    now = gates.look_patiently(hypervisor, before, wait_s)
    return gates.worse(before, now, {vm["uuid"]: vm["name"] for vm in view.get("vms", [])})


def waited_for(expected: Expected, view: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """What the VMs waited for in this boot; of no other one is anything known. It is never worth a failure."""
    if not expected.generation or view.get("generation") != expected.generation:
        return []
    if view["boot_id"]["to"] != kexec.boot_id():
        return []
    try:
        return [asdict(step) for step in boot_path.look()]
    except CommandFailed:
        return []


def told(expected: Expected, view: Mapping[str, Any]) -> List[str]:
    """Errors in the kernel's log that were not there before the live update; it is never worth a failure."""
    if not expected.generation or view.get("generation") != expected.generation:
        return []
    return kernel_log.new_ones(view.get("before", {}).get("complaints"), kernel_log.complaints())


def verify(expected: Expected, wait_s: float) -> Dict[str, Any]:
    """Look at this host. Raises HoldfastError when libvirt, the configuration or the journal cannot be read."""
    view = journal.latest(config.load().state_dir).view
    kernel = os.uname().release
    with connect() as hypervisor:
        vms = [look_at(domain) for domain in hypervisor.running()]
        worse = gate_problems(hypervisor, expected, view, wait_s)
    return {
        "problems": [*problems(expected, kernel, view, vms), *worse],
        "vms_not_running": not_running(expected, view, vms),
        "kernel": kernel,
        "boot": waited_for(expected, view),
        "told": told(expected, view),
        "vms": [asdict(vm) for vm in vms],
    }


def act(module: AnsibleModule) -> Dict[str, Any]:
    options = module.params
    found = verify(Expected(options["generation"], options["kernel"], options["guest_agents"]), options["wait_s"])
    if options["command"] and not module.check_mode:
        found["problems"] += health.command_problems("the operator's command", options["command"])
    if found["problems"]:
        module.fail_json(msg="Not everything carried on: " + "; ".join(found["problems"]), **found)
    return found


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
