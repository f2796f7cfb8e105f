# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom else to ask before a batch begins. Reading is in _plan_file, the decision in quorum."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fellow_hosts
short_description: Other hosts with members of the groups that some hosts pause members of
version_added: 0.1.0
description:
  - Reads a C(plan.json) on the controller. Before hosts are upgraded, enough other members of each group have to run;
    these are the hosts on which the plan has those.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  _terms:
    description: The plan.json, or the directory that it is in; then a list of the hosts that are about to begin.
    type: list
    elements: raw
"""

EXAMPLES = r"""
- name: Look at other members of the groups of this batch
  holdfast.kvm.vm_info:
  delegate_to: "{{ item }}"
  loop: "{{ query('holdfast.kvm.fellow_hosts', holdfast_plan, ansible_play_batch) }}"
  run_once: true
"""

RETURN = r"""
_list:
  description: Host names, without those that are about to begin.
  type: list
  elements: str
  sample: [hv2, hv3]
"""

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.quorum import fellow_hosts
from ansible_collections.holdfast.kvm.plugins.plugin_utils._plan_file import read_plan


class LookupModule(LookupBase):
    """``query('holdfast.kvm.fellow_hosts', PATH, HOSTS)``."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        self.set_options(var_options=variables, direct=kwargs)
        try:
            path, hosts = terms
            return fellow_hosts(read_plan(Path(str(path)).expanduser().absolute()), [str(host) for host in hosts])
        except (BadInput, ValueError) as error:
            raise AnsibleLookupError(str(error)) from error
