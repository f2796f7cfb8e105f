#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thin: the conversion of a definition is in domain, the choice of VMs in domain_ram."""

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_ram
short_description: Convert VM definitions so that their RAM is in the pool, or back
version_added: 0.1.0
description:
  - Changes the stored definition of VMs to shared, file-backed RAM, and records in it what was there before.
  - Takes effect at the next start of a VM. Running VMs go on as they are; those that still need a restart are named.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  vms:
    description: Names of VMs, or C(all) for every VM that has a stored definition.
    type: list
    elements: str
    default: [all]
  state:
    description: Whether RAM shall be in the C(pool), or where it was before the conversion (C(original)).
    type: str
    choices: [pool, original]
    default: pool
attributes:
  check_mode:
    description: Converts in memory only.
    support: full
  diff_mode:
    description: Shows each changed definition.
    support: full
  idempotent:
    description: A definition that is converted is left alone.
    support: full
seealso:
  - module: holdfast.kvm.pool
"""

EXAMPLES = r"""
- name: Let every VM have its RAM in the pool
  holdfast.kvm.domain_ram:
  register: converted

- name: Say which VMs must be restarted
  ansible.builtin.debug:
    msg: "Shut down and start: {{ converted.restart_needed | join(', ') }}"
  when: converted.restart_needed | length > 0
"""

RETURN = r"""
vms:
  description: The VMs that were asked for, with C(name), C(changed), C(restart_needed) and C(refusal), why not.
  type: list
  elements: dict
  returned: success
  sample: [{name: db1, changed: true, restart_needed: true, refusal: ""}]
restart_needed:
  description: Names of running VMs whose RAM is still where it was. A reboot from inside is not enough.
  type: list
  elements: str
  returned: success
  sample: [db1]
"""

from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils._core import collect, config, domain_ram
from ansible_collections.holdfast.kvm.plugins.module_utils._core.domain_ram import ALL, Backing, Conversion
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.module_utils._core.hypervisor import connect
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

ARGUMENTS: Dict[str, Any] = {
    "vms": {"type": "list", "elements": "str", "default": [ALL]},
    "state": {"type": "str", "choices": [one.value for one in Backing], "default": Backing.POOL.value},
}


def act(module: AnsibleModule) -> Dict[str, Any]:
    """Convert in memory, then store unless it is a check. Raises HoldfastError."""
    names = module.params["vms"]
    here = config.load()
    unit = here.pool.page_bytes if here.pool and here.pool.kind == config.DEVDAX else 1
    with connect() as hypervisor:
        vms = collect.vm_facts(hypervisor, here)
        conversions = domain_ram.plan(hypervisor, vms, names, Backing(module.params["state"]), unit)
        refuse_named(conversions, names)
        if not module.check_mode:
            domain_ram.put(hypervisor, conversions)
    for one in conversions:
        if one.refusal:
            module.warn(one.refusal)
    return {
        "changed": any(one.changed for one in conversions),
        "vms": [described(one) for one in conversions],
        "restart_needed": [one.name for one in conversions if one.restart_needed],
        "diff": [one.difference for one in conversions if one.changed],
    }


def refuse_named(conversions: List[Conversion], names: List[str]) -> None:
    """Raise BadInput when a VM that was asked for by its name cannot be converted."""
    refusals = [one.refusal for one in conversions if one.refusal and one.name in names]
    if refusals:
        raise BadInput("; ".join(refusals))


def described(one: Conversion) -> Dict[str, Any]:
    return {
        "name": one.name,
        "changed": one.changed,
        "restart_needed": one.restart_needed,
        "refusal": one.refusal,
    }


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
