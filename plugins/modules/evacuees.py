# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide which VMs leave a host before its live update."""

from __future__ import annotations

DOCUMENTATION = r"""
module: evacuees
short_description: Which VMs are moved away from a host before its upgrade
version_added: 0.1.0
description:
  - Looks at the host and its VMs, and says which of them the policy wants moved away, where to, and in which order.
    Moves none.
  - A host that is up to date is not evacuated.
  - Refuses when a VM is to be moved and no destination is known, and when a VM could not be moved (O(stuck)) and its
    policy allows nothing else.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  policy:
    description: Rules for the VMs, as of M(holdfast.kvm.live_update).
    type: list
    elements: dict
    default: []
  destinations:
    description: The host that each VM is to be moved to, by name of the VM.
    type: dict
    default: {}
  stuck:
    description: VMs that could not be moved, by name, with the reason.
    type: dict
    default: {}
  elsewhere:
    description: Names or uuids of VMs that are on other hosts now.
    type: list
    elements: str
    default: []
  kernel:
    description: Release that the host is to go to, as of M(holdfast.kvm.live_update).
    type: str
    default: ""
  longest_pause_s:
    description: Seconds that a VM without C(max_pause_s) may stand still.
    type: float
    default: 2.0
  force:
    description: Whether to evacuate a host that is up to date, too.
    type: bool
    default: false
attributes:
  check_mode:
    description: Only looks, in any case.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: Changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: Who leaves?
  holdfast.kvm.evacuees:
    policy:
      - match: {name: "db-*"}
        critical: true
    destinations: {db-1: hv2}
"""

RETURN = r"""
departures:
  description:
    - The VMs to be moved, in this order, with C(name), C(uuid), C(destination), C(longest_pause_s), C(journey) as of
      M(holdfast.kvm.vm_migrate), and the C(reason).
  type: list
  elements: dict
  returned: success
  sample: [{name: db-1, destination: hv2, longest_pause_s: 2.0, journey: away, reason: "by rule 1 (name db-*)"}]
unmoved:
  description: VMs that could not be moved and get the next treatment that their policy allows, with the reason.
  type: dict
  returned: success
  sample: {}
"""

from dataclasses import asdict
from typing import Any, Dict, Tuple

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    away,
    collect,
    config,
    evacuees,
    monitor,
    policy,
    releases,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import HostFacts, Treatment, VmFacts
from ansible_collections.holdfast.kvm.plugins.module_utils._core.hypervisor import connect
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

ARGUMENTS: Dict[str, Any] = {
    "policy": {"type": "list", "elements": "dict", "default": []},
    "destinations": {"type": "dict", "default": {}},
    "stuck": {"type": "dict", "default": {}},
    "elsewhere": {"type": "list", "elements": "str", "default": []},
    "kernel": {"type": "str", "default": ""},
    "longest_pause_s": {"type": "float", "default": 2.0},
    "force": {"type": "bool", "default": False},
}


def act(module: AnsibleModule) -> Dict[str, Any]:
    """Look and decide. Raises BadInput, Refused."""
    params = module.params
    rules = policy.parse_rules(params["policy"])
    if not params["destinations"] and not any(rule.treatments[0] is Treatment.LIVE for rule in rules):
        return {"departures": [], "unmoved": {}, "msg": "the policy wants nobody moved"}
    host, vms, current = looked(params)
    if current and not params["force"]:
        return {"departures": [], "unmoved": {}, "msg": f"already up to date: kernel {host.kernel}"}
    elsewhere = (*params["elsewhere"], *away.known_names(config.load().state_dir))
    decisions = policy.decide(rules, vms, elsewhere)
    stuck = {str(name): str(why) for name, why in params["stuck"].items()}
    chosen = evacuees.choose(decisions, vms, params["destinations"], stuck, params["longest_pause_s"])
    return {"departures": [asdict(one) for one in chosen.departures], "unmoved": dict(chosen.unmoved)}


def looked(params: Dict[str, Any]) -> Tuple[HostFacts, Tuple[VmFacts, ...], bool]:
    """The host, its VMs, and whether there is nothing to upgrade. Raises BadInput when no kernel is installed."""
    configuration = config.load()
    host = collect.host_facts(configuration)
    with connect() as hypervisor:
        vms = collect.vm_facts(hypervisor, configuration)
        qemus = monitor.qemu_versions(hypervisor.running())
    # In a check nothing was staged, so the kernel that is asked for may not be there yet.
    installed = releases.installed()
    known = [*installed, params["kernel"]] if params["kernel"] else installed
    target = releases.choose(params["kernel"], known, host.kernel)
    return host, vms, releases.is_up_to_date(host, target, qemus)


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
