#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation only: the work is done on the controller, by the action plugin of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: plan_check
short_description: Compare a plan with the fleet, and say what it has for each host
version_added: 0.1.0
description:
  - Fails when the hosts are not as the plan has them, naming what changed. A VM came, left, or is where the plan never
    puts it; its RAM or its policy changed; a group or a fault domain did.
  - A VM may be on any host where the plan has it at some time, so that a campaign that was cut off goes on.
  - Fails also when the plan has a treatment that the upgrade does not carry out, and when this controller is a VM that
    the plan pauses.
  - Runs on the controller and touches no host.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  plan:
    description: The plan.json, or the directory that it is in.
    type: path
    required: true
  fleet:
    description:
      - What was found just now on each host to compare, by its name. C(vms) is from M(holdfast.kvm.vm_info); C(policy),
        C(groups) and C(domain) are as for M(holdfast.kvm.plan).
    type: dict
    required: true
  elsewhere:
    description:
      - VMs of other hosts, by the host's name, as M(holdfast.kvm.vm_info) lists them. When given, the hosts of O(fleet)
        are about to begin, and too few running members of a group are a reason not to. The lookup
        P(holdfast.kvm.fellow_hosts#lookup) knows which hosts matter; one that is missing has nothing that runs.
    type: dict
  controller_may_pause:
    description: Whether this controller may be a VM that the plan pauses.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reads only, and compares in check mode as well.
    support: full
  diff_mode:
    description: Changes nothing, so there is nothing to show.
    support: none
  idempotent:
    description: Changes nothing.
    support: full
  action:
    description: This module has an action plugin, and runs on the controller only.
    support: full
seealso:
  - module: holdfast.kvm.plan
"""

EXAMPLES = r"""
- name: Make sure that the plan still holds for this host
  holdfast.kvm.plan_check:
    plan: plans/spring/plan.json
    fleet:
      hv1:
        vms: "{{ found_on_hv1.vms }}"
        policy: "{{ holdfast_policy }}"
  delegate_to: localhost
  become: false
"""

RETURN = r"""
batches:
  description: How many batches the plan has.
  type: int
  returned: success
  sample: 3
hosts:
  description:
    - For each host of O(fleet) that is in a batch, its C(batch), counted from 1; C(destinations), the host that each VM
      goes to, by the VM's name; and C(policy), a rule for each VM that is there, with the treatment that was decided.
  type: dict
  returned: success
  sample: {hv1: {batch: 1, destinations: {db1: hv2}, policy: []}}
refused:
  description: Whether the plan cannot be carried out; nothing was touched then.
  type: bool
  returned: failure
  sample: true
outdated:
  description: Whether that is because the hosts are not as the plan has them. Another plan may be carried out then.
  type: bool
  returned: failure
  sample: true
"""
