#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation only: the work is done on the controller, by the action plugin of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: report
short_description: Write the report of a campaign
version_added: 0.1.0
description:
  - Turns the journals of the upgraded hosts into C(report.json), by the schema in C(docs/report.schema.json), and into
    C(report.html), one page with a picture of the timeline that needs no other file and no network.
  - What a journal proves outweighs what a run claims. When the two disagree, the worse result is reported.
  - Runs on the controller and touches no host.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  dest:
    description: Directory on the controller for the two files. Created when missing.
    type: path
    required: true
  campaign:
    description: Name of the campaign, as it appears at the top of the report.
    type: str
    required: true
  outcomes:
    description:
      - What each host's live update left behind, by the host's name, in the order in which they appear in the report.
      - C(journal) is what RV(holdfast.kvm.live_update#module:journal) returned, or null for a host whose live update
        was never started.
      - C(result) is how the run saw the host end, one of C(upgraded), C(fell_back), C(aborted), C(skipped), C(failed).
        No word, or another one, leaves the judgement to the journal.
      - C(error) says what went wrong, for a person.
      - C(boot) is what RV(holdfast.kvm.verify#module:boot) returned, if anything.
      - Other keys are ignored. An empty dictionary stands for a host that was not touched.
    type: dict
    required: true
  evacuations:
    description:
      - What the C(evacuate) role left behind in C(holdfast_evacuation), by the host's name. Hosts may be missing.
    type: dict
    default: {}
  plan:
    description:
      - The C(plan.json) that the campaign carried out, or its directory, on the controller. The pauses that it
        predicted then stand beside those that were. Empty without a plan; one that cannot be read is left out.
    type: str
    default: ""
attributes:
  check_mode:
    description: Says whether the files would change, and writes nothing.
    support: full
  diff_mode:
    description: The report is its own record, a difference between two of them tells nothing.
    support: none
  idempotent:
    description: A report that says the same, apart from the time it was written, is left alone.
    support: full
  action:
    description: This module has an action plugin, and runs on the controller only.
    support: full
seealso:
  - module: holdfast.kvm.live_update
"""

EXAMPLES = r"""
- name: Write the report
  holdfast.kvm.report:
    dest: "{{ playbook_dir }}/reports/spring"
    campaign: spring kernel round
    outcomes:
      hv1: "{{ hostvars['hv1'].holdfast_live_update_result }}"
      hv2:
        result: skipped
        error: the new kernel is not installed
  delegate_to: localhost
  become: false
  run_once: true
"""

RETURN = r"""
report_json:
  description: Path of the report for machines.
  type: str
  returned: success
  sample: /srv/reports/spring/report.json
report_html:
  description: Path of the report for people.
  type: str
  returned: success
  sample: /srv/reports/spring/report.html
summary:
  description: The report in plain lines, one per host, VM and warning.
  type: list
  elements: str
  returned: success
  sample:
    - "hv1: upgraded, kernel 6.12.107+deb13-amd64 → 7.2.12+deb13-amd64, 1 of 1 VMs carried on, longest pause 8.52 s"
    - "  db1: paused 8.52 s, RAM 4 GiB verified, state 1.1 MiB"
results:
  description: The result of each host, by its name.
  type: dict
  returned: success
  sample:
    hv1: upgraded
"""
