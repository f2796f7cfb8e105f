# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs that this host sent away."""

from __future__ import annotations

DOCUMENTATION = r"""
module: evacuated
short_description: VMs that a host sent away, and that are to come home
version_added: 0.1.0
description:
  - Reads which VMs were moved away from this host by M(holdfast.kvm.vm_migrate), from the host's own record. Any
    controller can bring them home.
  - A VM that runs here again is at home, and no longer on the record. One that is still arriving is not at home yet.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  forget:
    description: Names of VMs that do not come home.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Changes no record.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: Changes a record only when it is out of date.
    support: full
"""

EXAMPLES = r"""
- name: Which VMs are away?
  holdfast.kvm.evacuated:
  register: away
"""

RETURN = r"""
vms:
  description:
    - VMs that are away, with C(name), C(uuid), the host they went to (C(to)), since when (C(at)), and their images that
      stayed behind and are stale (C(images)).
  type: list
  elements: dict
  returned: success
  sample: [{name: db1, uuid: 6d0b..., to: hv2, at: "2026-11-21T02:00:00Z", images: []}]
came_home:
  description: VMs that were taken off the record.
  type: list
  elements: str
  returned: success
  sample: []
"""

from dataclasses import asdict
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils._core import away, config, evacuation
from ansible_collections.holdfast.kvm.plugins.module_utils._core.hypervisor import connect
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

ARGUMENTS: Dict[str, Any] = {"forget": {"type": "list", "elements": "str", "default": []}}


def act(module: AnsibleModule) -> Dict[str, Any]:
    """Compare the record with what runs here. Raises HoldfastError."""
    state_dir = config.load().state_dir
    known = away.read(state_dir)
    if not known:
        return {"vms": [], "came_home": []}
    with connect() as hypervisor:
        # One that is still arriving may have to stay where it is.
        at_home = {vm.uuid for vm in hypervisor.running() if evacuation.stays(hypervisor, vm)}
    done = [one for one in known if one.uuid in at_home or one.name in module.params["forget"]]
    if not module.check_mode:
        for one in done:
            away.forget(state_dir, one.uuid)
    return {
        "changed": bool(done),
        "vms": [asdict(one) for one in known if one not in done],
        "came_home": [one.name for one in done],
    }


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
