#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation only: the work is done on the controller, by the action plugin of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Plan the upgrade of a fleet
version_added: 0.1.0
description:
  - Decides what happens to each VM, which hosts are upgraded together, where VMs go that must be moved, and in which
    order; predicts pauses and duration; says what limits the plan, and what would make possible what is not.
  - Writes C(plan.json), by the schema in C(docs/plan.schema.json), and C(plan.html), a page that needs no other file.
  - Every plan is gone through by a checker that shares no code with the planner, before anybody sees it.
  - Runs on the controller and touches no host. OR-tools makes better plans (the Python package's extra C(plan)).
author:
  - holdfast contributors (@holdfast-kvm)
options:
  dest:
    description: Directory on the controller for the two files. Created when missing.
    type: path
    required: true
  fleet:
    description:
      - What was found on each host, by its name. C(host), C(journal) and C(switchovers_s) are from
        M(holdfast.kvm.host_info), C(vms) from M(holdfast.kvm.vm_info), C(blockers) from M(holdfast.kvm.preflight)
        without a policy.
      - C(policy) is the list of rules, as in M(holdfast.kvm.live_update), and C(groups) the groups that they name, each
        with C(min_available), members that always run, and C(anti_affinity), members are kept apart.
      - C(domain) is what hosts share that fails together, a rack for example. C(link_mbit) is what VMs are sent over,
        1000 when left out.
    type: dict
    required: true
  reports:
    description:
      - Earlier campaigns' C(report.json), or directories that hold one. Pauses are predicted from these and from what
        the hosts have on record themselves, which comes first.
    type: list
    elements: path
    default: []
  done:
    description: Hosts that are upgraded already, when a campaign is planned anew between its waves.
    type: list
    elements: str
    default: []
  done_since:
    description:
      - A moment in UTC, as C(created) of a plan has it. Hosts whose own journals say that they were upgraded since then
        are done, too.
    type: str
    default: ""
  waves:
    description: How many hosts each batch may have, as numbers or percentages. The last one goes on to the end.
    type: list
    elements: str
    default: ["1", "10%"]
  canaries:
    description: Hosts of the first batch. When left out and the first wave is a single host, one with little at stake.
    type: list
    elements: str
    default: []
  max_unavailable:
    description: How many hosts may be away at a time, in any wave, as a number or a percentage.
    type: str
    default: 100%
  max_per_domain:
    description: How many hosts of one fault domain may be away at a time. 0 for no limit.
    type: int
    default: 0
  reserve_hosts:
    description:
      - While several hosts are upgraded together, the others keep as much RAM free as this many of the fleet's largest
        hosts have. A host alone is upgraded in any case, and the plan says when the reserve is not there. 0 for none.
    type: int
    default: 1
  cpu_ratio:
    description: Virtual CPUs that a host may have for each of its processors, when VMs are moved to it.
    type: float
    default: 4.0
  shared_paths:
    description: Directories that are the same on all hosts. Network file systems are found without being named.
    type: list
    elements: str
    default: []
  copy_storage:
    description: Whether a live migration may copy disks that the other host does not reach.
    type: bool
    default: false
  parallel:
    description: VMs that are suspended, and restored, at the same time, as in M(holdfast.kvm.live_update).
    type: int
    default: 2
  stage_s:
    description: Seconds that installing the new packages on a host takes, for the predicted duration.
    type: float
    default: 120.0
attributes:
  check_mode:
    description: Plans, says whether the files would change, and writes nothing.
    support: full
  diff_mode:
    description: The plan is its own record, a difference between two of them tells nothing.
    support: none
  idempotent:
    description: A plan that says the same, apart from the time it was made, is left alone.
    support: full
  action:
    description: This module has an action plugin, and runs on the controller only.
    support: full
seealso:
  - module: holdfast.kvm.host_info
  - module: holdfast.kvm.vm_info
  - module: holdfast.kvm.preflight
"""

EXAMPLES = r"""
- name: Plan the upgrade of two hosts
  holdfast.kvm.plan:
    dest: "{{ playbook_dir }}/plans/spring"
    fleet:
      hv1: "{{ hostvars['hv1'].holdfast_plan_found }}"
      hv2: "{{ hostvars['hv2'].holdfast_plan_found }}"
    waves: [1, 5, "10%"]
  delegate_to: localhost
  become: false
  run_once: true
"""

RETURN = r"""
plan_json:
  description: Path of the plan for programs.
  type: str
  returned: success
  sample: /srv/plans/spring/plan.json
plan_html:
  description: Path of the plan for people.
  type: str
  returned: success
  sample: /srv/plans/spring/plan.html
summary:
  description: The plan in plain lines.
  type: list
  elements: str
  returned: success
  sample:
    - "2 hosts in 2 batches, 3 VMs in place, 1 VM live, about 6 min 40 s"
    - "the number of batches is set by the waves, 1, 1 hosts at a time; fewer are not possible (counting)"
    - "batch 1: hv2; at once, takes 3 min 20 s, longest pause 14.9 s"
complete:
  description: Whether every host is in a batch that is not done, and none waits for a VM that its policy defers.
  type: bool
  returned: success
  sample: true
batches:
  description: The hosts of each batch.
  type: list
  elements: list
  returned: success
  sample: [[hv2], [hv1]]
decisions_sha256:
  description: Digest of what was decided, the same for every plan that may be carried out in place of this one.
  type: str
  returned: success
  sample: 0b5c1f...
refused:
  description: Whether the policy, an option or a host's answer cannot be used; C(hint) says what to do.
  type: bool
  returned: failure
  sample: true
"""
