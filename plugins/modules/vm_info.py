#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thin: gathering is in collect."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_info
short_description: Gather what matters of a host's VMs for an upgrade in place
version_added: 0.1.0
description:
  - Reads every VM that libvirt knows on the host, running or not, from its running definition if it runs.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  names:
    description: VMs to return. All of them when empty. A name that nobody has is an error.
    type: list
    elements: str
    default: []
  policy:
    description:
      - Rules for the VMs, first match wins, as for M(holdfast.kvm.live_update). With it each VM says what an upgrade
        would do with it, in RV(vms).
      - A policy that cannot be used does not fail the module, since the facts are right without it; RV(policy_error)
        says what is wrong.
    type: list
    elements: dict
  measure_writes_s:
    description:
      - Seconds for which the running VMs are watched, all at the same time, for how fast they write to their RAM. QEMU
        looks at a sample of their pages for it, and their guests do not notice. 0 for not watching them.
    type: int
    default: 0
attributes:
  check_mode:
    description: Reads only.
    support: full
  diff_mode:
    description: Changes nothing, so there is nothing to show.
    support: none
  idempotent:
    description: Changes nothing.
    support: full
seealso:
  - module: holdfast.kvm.host_info
  - module: holdfast.kvm.domain_ram
"""

EXAMPLES = r"""
- name: Look at all VMs
  holdfast.kvm.vm_info:
  register: found

- name: Name those whose RAM is not in the pool
  ansible.builtin.debug:
    msg: "{{ found.vms | rejectattr('ram_files_present') | map(attribute='name') }}"
"""

RETURN = r"""
vms:
  description: The VMs by name. Sizes are bytes.
  type: list
  elements: dict
  returned: success
  sample: [{name: db1, uuid: 6d0b..., state: running, ram_bytes: 268435456, ram_backing: file-shared}]
  contains:
    decision:
      description:
        - What happens to the VM in an upgrade, C(treatment), C(reason), C(priority), C(max_pause_s) and C(may_restart).
        - Empty when the policy cannot be used.
      type: dict
      returned: when O(policy) is given
    writes_bytes_per_s:
      description: How fast it writes to its RAM, null when that was not measured.
      type: int
      returned: success
policy_error:
  description: Why the policy cannot be used, and what to do. Empty when it can.
  type: str
  returned: when O(policy) is given
  sample: ""
summary:
  description: One line per VM, for a person.
  type: list
  elements: str
  returned: success
  sample: ["db1: running, 256 MiB, RAM in the pool"]
"""

from dataclasses import replace
from typing import Any, Dict, Sequence

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils._core import away, collect, config, policy, writes
from ansible_collections.holdfast.kvm.plugins.module_utils._core.domain_ram import require_known
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import VmFacts, plain
from ansible_collections.holdfast.kvm.plugins.module_utils._core.hypervisor import connect
from ansible_collections.holdfast.kvm.plugins.module_utils._core.regions import size_text
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

ARGUMENTS: Dict[str, Any] = {
    "names": {"type": "list", "elements": "str", "default": []},
    "policy": {"type": "list", "elements": "dict"},
    "measure_writes_s": {"type": "int", "default": 0},
}


def act(module: AnsibleModule) -> Dict[str, Any]:
    names, rules, seconds = (module.params[key] for key in ("names", "policy", "measure_writes_s"))
    if not 0 <= seconds <= writes.LONGEST_S:
        raise BadInput(f"VMs cannot be watched for {seconds} s", f"give measure_writes_s from 0 to {writes.LONGEST_S}")
    with connect() as hypervisor:
        vms = collect.vm_facts(hypervisor, config.load())
        rates = writes.measure(hypervisor, seconds) if seconds else {}
    vms = tuple(replace(vm, writes_bytes_per_s=rates.get(vm.uuid)) for vm in vms)
    require_known(vms, names)
    chosen = [vm for vm in vms if not names or vm.name in names]
    found: Dict[str, Any] = {"vms": [plain(vm) for vm in chosen], "summary": [summary(vm) for vm in chosen]}
    return found if rules is None else decided(found, rules, vms)


def decided(found: Dict[str, Any], rules: object, vms: Sequence[VmFacts]) -> Dict[str, Any]:
    """``found`` with the decision about each of its VMs. The rules are judged over all ``vms`` of the host."""
    decisions: Dict[str, Any] = {}
    error = ""
    try:
        elsewhere = away.known_names(config.load().state_dir)
        decisions = {one.uuid: plain(one) for one in policy.decide(policy.parse_rules(rules), vms, elsewhere)}
    except BadInput as exc:
        error = str(exc)
    with_decisions = [{**vm, "decision": decisions.get(vm["uuid"], {})} for vm in found["vms"]]
    return {**found, "vms": with_decisions, "policy_error": error}


def summary(vm: VmFacts) -> str:
    """One line for a person."""
    if vm.running:
        place = "RAM in the pool" if vm.ram_files_present else "RAM not in the pool"
    else:
        place = "RAM in the pool at its next start" if vm.definition_converted else "not converted"
    return f"{vm.name}: {vm.state}, {size_text(vm.ram_bytes)}, {place}"


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
