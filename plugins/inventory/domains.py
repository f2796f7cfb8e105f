# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thin: reading is in collect, deciding in policy."""

from __future__ import annotations

DOCUMENTATION = r"""
name: domains
short_description: List the VMs of hypervisors, with what an upgrade would do with each
version_added: 0.1.0
description:
  - Asks libvirt on every hypervisor that another inventory source has named, over a read-only connection, and lists its
    VMs, running or not, with the decision of C(holdfast_policy) about each.
  - A VM is listed as C(VM.HYPERVISOR), so that two VMs of one name stay two, in the group C(vms_on_HYPERVISOR), which
    is in the group C(holdfast_vms). Nothing is said about how to reach the VM itself.
  - A hypervisor that does not answer is a warning, and its VMs are missing; when none answers, this source fails.
  - Every VM becomes a host of the group C(all). Keep the file out of inventories whose playbooks act on that.
author:
  - holdfast contributors (@holdfast-kvm)
requirements:
  - Python's libvirt binding on the controller; the package holdfast brings it
options:
  plugin:
    description: Says that the file is for this plugin.
    required: true
    choices: [holdfast.kvm.domains]
  group:
    description:
      - The hypervisors, a group of an inventory source that is read before this one. Sources are read in the order in
        which they are named, files of a directory by their names.
      - The variable C(holdfast_libvirt_uri) of a hypervisor says where its libvirt is. Without it that is
        C(qemu+ssh://) to C(ansible_host) with C(ansible_user), C(ansible_port) and C(ansible_ssh_private_key_file).
    type: str
    default: hypervisors
  parallel:
    description: How many hypervisors are asked at the same time.
    type: int
    default: 16
  use_vars_plugins:
    description: Read C(group_vars) and C(host_vars) of the hypervisors too, where C(holdfast_policy) mostly is.
    type: bool
    default: true
extends_documentation_fragment:
  - constructed
"""

EXAMPLES = r"""
# domains.yml. Read it after the inventory with the hypervisors:
#   ansible-inventory -i inventory/ -i domains.yml --graph holdfast_vms
plugin: holdfast.kvm.domains
# If wanted, groups of VMs by what becomes of them: treatment_in_place, treatment_live
keyed_groups:
  - prefix: treatment
    key: holdfast_vm_treatment
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Sequence, Tuple
from urllib.parse import quote

from ansible.errors import AnsibleParserError
from ansible.inventory.helpers import get_group_vars
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable
from ansible.utils.vars import combine_vars
from ansible.vars.plugins import get_vars_from_inventory_sources

from ansible_collections.holdfast.kvm.plugins.module_utils._core import collect, hypervisor, policy
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, HoldfastError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import Treatment, VmFacts, plain

PARENT = "holdfast_vms"
NEEDED = (
    "holdfast_libvirt_uri",
    "holdfast_policy",
    "ansible_host",
    "ansible_user",
    "ansible_port",
    "ansible_ssh_private_key_file",
)


@dataclass(frozen=True)
class Answer:
    """What one hypervisor's libvirt said: its VMs, or why there is no answer."""

    vms: Tuple[VmFacts, ...] = ()
    error: str = ""


class InventoryModule(BaseInventoryPlugin, Constructable):
    """One host per VM."""

    NAME = "holdfast.kvm.domains"

    def verify_file(self, path: str) -> bool:
        """By its name, as other plugins do: each file is offered to all of them."""
        return bool(super().verify_file(path)) and path.endswith(("domains.yml", "domains.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        names = self._hypervisors()
        variables = {name: self._variables(name) for name in names}
        uris = [uri_of(name, variables[name]) for name in names]
        with ThreadPoolExecutor(max_workers=max(int(self.get_option("parallel")), 1)) as pool:
            answers = dict(zip(names, pool.map(ask, uris)))
        self._warn(answers)
        self.inventory.add_group(PARENT)
        for name in names:
            self._add(name, answers[name].vms, variables[name].get("holdfast_policy") or [])

    def _hypervisors(self) -> List[str]:
        group = self.inventory.groups.get(self.get_option("group"))
        names = [host.name for host in group.get_hosts()] if group else []
        if not names:
            raise AnsibleParserError(
                f"no inventory source before this one has a host in the group {self.get_option('group')}. Name the "
                "inventory with the hypervisors before this file, or another group with the option group"
            )
        return names

    def _variables(self, name: str) -> Dict[str, Any]:
        """What is needed of a hypervisor's variables, with templates resolved."""
        host = self.inventory.hosts[name]
        found = combine_vars(get_group_vars(host.get_groups()), host.get_vars())
        if self.get_option("use_vars_plugins"):
            sources = self.inventory.processed_sources
            of_groups = get_vars_from_inventory_sources(self.loader, sources, host.get_groups(), "all")
            of_host = get_vars_from_inventory_sources(self.loader, sources, [host], "all")
            found = combine_vars(combine_vars(combine_vars(found, of_groups), host.get_vars()), of_host)
        self.templar.available_variables = found
        return {key: self.templar.template(found[key]) for key in NEEDED if key in found}

    def _warn(self, answers: Mapping[str, Answer]) -> None:
        silent = {name: answer.error for name, answer in answers.items() if answer.error}
        for name, error in silent.items():
            self.display.warning(f"VMs of {name} are not listed: {error}")
        if len(silent) == len(answers):
            raise AnsibleParserError("no hypervisor answers, so no VM can be listed; the warnings say why")

    def _add(self, host: str, vms: Sequence[VmFacts], rules: object) -> None:
        group = self._sanitize_group_name(f"vms_on_{host}")
        self.inventory.add_group(group)
        self.inventory.add_child(PARENT, group)
        decisions = self._decisions(host, vms, rules)
        for vm in vms:
            name = f"{vm.name}.{host}"
            if name in self.inventory.hosts:
                self.display.warning(f"VM {vm.name} of {host} is not listed: the inventory has a host {name} already")
                continue
            self.inventory.add_host(name, group=group)
            variables = {**variables_of(host, vm), **decisions.get(vm.uuid, {})}
            for key, value in variables.items():
                self.inventory.set_variable(name, key, value)
            self._construct(name, variables)

    def _decisions(self, host: str, vms: Sequence[VmFacts], rules: object) -> Dict[str, Dict[str, Any]]:
        try:
            # A list of what is wanted, which a plan judges: here no treatment is out of reach.
            known = policy.parse_rules(rules, available=tuple(Treatment))
            return {one.uuid: decided(one) for one in policy.decide(known, vms)}
        except BadInput as error:
            self.display.warning(f"VMs of {host} are listed without their treatment: {error}")
            return {}

    def _construct(self, name: str, variables: Dict[str, Any]) -> None:
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)


def ask(uri: str) -> Answer:
    """The VMs that libvirt knows there."""
    try:
        with hypervisor.look(uri) as found:
            return Answer(collect.listed_vms(found))
    except HoldfastError as error:
        return Answer(error=str(error))


def uri_of(name: str, variables: Mapping[str, Any]) -> str:
    """Where a hypervisor's libvirt is: by its own word for it, else over SSH as Ansible goes, never asking a person."""
    given = variables.get("holdfast_libvirt_uri")
    if given:
        return str(given)
    user = f"{quote(str(variables['ansible_user']))}@" if variables.get("ansible_user") else ""
    address = str(variables.get("ansible_host") or name)
    host = f"[{address}]" if ":" in address else address
    port = f":{variables['ansible_port']}" if variables.get("ansible_port") else ""
    key = variables.get("ansible_ssh_private_key_file")
    options = ["no_tty=1"] + ([f"keyfile={quote(str(key))}"] if key else [])
    return f"qemu+ssh://{user}{host}{port}/system?{'&'.join(options)}"


def variables_of(host: str, vm: VmFacts) -> Dict[str, Any]:
    """Sizes are bytes."""
    return {
        "holdfast_vm_host": host,
        "holdfast_vm_name": vm.name,
        "holdfast_vm_uuid": vm.uuid,
        "holdfast_vm_title": vm.title,
        "holdfast_vm_state": vm.state,
        "holdfast_vm_ram_bytes": vm.ram_bytes,
    }


def decided(decision: policy.Decision) -> Dict[str, Any]:
    """The decision about a VM, as variables."""
    fields: Dict[str, Any] = dict(plain(decision))  # type: ignore[call-overload]
    return {f"holdfast_vm_{key}": value for key, value in fields.items() if key not in ("name", "uuid")}
