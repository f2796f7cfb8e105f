# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The batches of a plan, for the head of a play. Reading is in _plan_file."""

from __future__ import annotations

DOCUMENTATION = r"""
name: batches
short_description: The hosts of each batch of a plan
version_added: 0.1.0
description:
  - Reads a C(plan.json) on the controller and returns a list of hosts for each of its batches, in their order.
  - Made for the C(hosts) and the C(serial) of a play, which then goes through the hosts as the plan has them.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  _terms:
    description: One plan.json, or the directory that it is in. With no term, or an empty one, there is no batch.
    type: list
    elements: str
  within:
    description:
      - Hosts that may be returned, those of C(--limit) mostly; others are left out, and batches without hosts. When not
        given, all hosts of the inventory.
    type: list
    elements: str
  must_exist:
    description: Whether a plan that is not there is an error. One that is yet to be made has no batches.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Go through the hosts as planned
  hosts: "{{ query('holdfast.kvm.batches', holdfast_plan) | flatten }}"
  serial: "{{ query('holdfast.kvm.batches', holdfast_plan) | map('length') }}"
  tasks:
    - name: Say which batch it is
      ansible.builtin.debug:
        var: ansible_play_batch
"""

RETURN = r"""
_list:
  description: A list of host names for each batch.
  type: list
  elements: list
  sample: [[hv2], [hv1, hv3]]
"""

from pathlib import Path
from typing import Any, Collection, Mapping

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.plugin_utils._plan_file import read_plan


class LookupModule(LookupBase):
    """``query('holdfast.kvm.batches', PATH)``."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[list[str]]:
        self.set_options(var_options=variables, direct=kwargs)
        paths = [str(term) for term in terms if term]
        if not paths:
            return []
        known = set(((variables or {}).get("groups") or {}).get("all", ()))
        within = self.get_option("within")
        path = Path(paths[0]).expanduser().absolute()
        if not path.exists() and not self.get_option("must_exist"):
            return []
        if "@" in str((variables or {}).get("ansible_limit", "")):
            raise AnsibleLookupError("with a plan --limit takes names and patterns of hosts, and not a file of them")
        try:
            plan = read_plan(path)
            return batches(plan, known, known if within is None else set(within))
        except BadInput as error:
            raise AnsibleLookupError(str(error)) from error


def batches(plan: Mapping[str, Any], known: Collection[str], within: Collection[str]) -> list[list[str]]:
    """Hosts of each batch that are among ``within``. Raises BadInput when a host is not ``known`` to the inventory."""
    planned = [[str(host) for host in batch["hosts"]] for batch in plan["batches"]]
    strangers = [host for hosts in planned for host in hosts if host not in known]
    if strangers:
        raise BadInput(
            f"the plan upgrades {', '.join(strangers)}, which the inventory does not have",
            "use the inventory that the plan was made with, or plan again",
        )
    chosen = [[host for host in hosts if host in within] for hosts in planned]
    return [hosts for hosts in chosen if hosts]
