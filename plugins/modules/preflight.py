#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thin: gathering is in collect, judging in preflight."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Find everything that stands against upgrading a host in place
version_added: 0.1.0
description:
  - Judges the host, its VMs and the kernel it is to go to, and lists every blocker at once. Touches nothing.
  - Fails when there is a blocker.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  kernel:
    description:
      - Release to go to, as C(uname -r) will print it. It must be installed.
      - When empty, the running one; then everything but the new kernel is judged.
    type: str
    default: ""
  policy:
    description: Rules for the VMs, as in M(holdfast.kvm.live_update). Only VMs that stay in place are judged.
    type: list
    elements: dict
    default: []
  command:
    description:
      - A shell command on the host that must succeed, within a minute. It should look and change nothing. Not run in
        check mode.
    type: str
    default: ""
  only:
    description: C(qemu) leaves out what matters only to a host that goes to another kernel.
    type: str
    choices: [everything, qemu]
    default: everything
attributes:
  check_mode:
    description: Reads only, and judges in check mode as well.
    support: full
  diff_mode:
    description: Changes nothing, so there is nothing to show.
    support: none
  idempotent:
    description: Changes nothing.
    support: full
seealso:
  - module: holdfast.kvm.live_update
  - module: holdfast.kvm.host_info
"""

EXAMPLES = r"""
- name: Can this host be upgraded in place
  holdfast.kvm.preflight:
    kernel: 7.2.12+deb13-amd64
"""

RETURN = r"""
blockers:
  description: Every reason against it, with C(code), C(message), C(remedy) and C(vm), empty for the host itself.
  type: list
  elements: dict
  returned: always
  sample: [{code: hostdev, message: "PCI device 0000:3b:00.0 is passed through", remedy: detach it, vm: gpu1}]
warnings_found:
  description: What is worth knowing, in the same form.
  type: list
  elements: dict
  returned: always
  sample: []
staying:
  description: Running VMs that are to stay in place, with C(name) and C(uuid).
  type: list
  elements: dict
  returned: always
  sample: [{name: db1, uuid: 6d0b8a1c-3d3f-4c57-9f0e-3f2f3a1f7a55}]
refused:
  description: Whether there is a blocker; nothing was touched then.
  type: bool
  returned: always
  sample: false
kernel:
  description: The running release (C(from)) and the one that was judged (C(to)).
  type: dict
  returned: always
  sample: {from: 6.12.107+deb13-amd64, to: 7.2.12+deb13-amd64}
"""

import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Sequence

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils import _core as core
from ansible_collections.holdfast.kvm.plugins.module_utils._core import agent as program
from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    away,
    cmdline,
    collect,
    health,
    installation,
    packing,
    policy,
    preflight,
    releases,
    request,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    config as configuration,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, Refused
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import (
    Blocker,
    HostFacts,
    KernelFacts,
    Verdict,
    VmFacts,
    plain,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.hypervisor import connect
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

# Ansible sends along what a module imports: the agent, to be compared, and by its own imports the rest of the core.
ENTRY = program.main
ARGUMENTS: Dict[str, Any] = {
    "kernel": {"type": "str", "default": ""},
    "policy": {"type": "list", "elements": "dict", "default": []},
    "command": {"type": "str", "default": ""},
    "only": {"type": "str", "choices": [request.EVERYTHING, request.ONLY_QEMU], "default": request.EVERYTHING},
}


def target_of(wanted: str, host: HostFacts) -> KernelFacts:
    """The kernel to judge, with the command line that a live update would give it. Raises BadInput."""
    release = releases.choose(wanted, releases.installed(), host.kernel) if wanted else host.kernel
    generation = cmdline.new_generation(time.time(), secrets.token_hex(3))
    line = cmdline.next_command_line(host.cmdline, generation=generation)
    return replace(collect.kernel_facts(release), cmdline=line)


def staying(vms: Sequence[VmFacts], decisions: Sequence[policy.Decision]) -> List[Dict[str, str]]:
    """Running VMs that are to stay on this host, suspended or shut down meanwhile."""
    running = {vm.uuid for vm in vms if vm.domain_id >= 0}
    kept = (one for one in decisions if one.treatment in policy.STAYING and one.uuid in running)
    return [{"name": one.name, "uuid": one.uuid} for one in kept]


def with_command(verdict: Verdict, command: str) -> Verdict:
    """The verdict, and what the operator's own command says: a host that is not well is not begun."""
    remedy = "put that right, or change preflight_command"
    found = health.command_problems("the operator's command", command)
    return replace(verdict, blockers=(*verdict.blockers, *(Blocker("command", text, remedy) for text in found)))


def act(module: AnsibleModule) -> Dict[str, Any]:
    """Gather, judge, and fail with every blocker. Raises BadInput."""
    rules = policy.parse_rules(module.params["policy"])
    config = configuration.load()
    host = collect.host_facts(config)
    target = target_of(module.params["kernel"], host)
    found_outdated = installation.outdated(packing.core_sources(core))
    host = replace(host, image_signed=collect.image_signed(Path(target.image)), outdated=found_outdated)
    try:
        with connect() as hypervisor:
            vms = collect.vm_facts(hypervisor, config)
    except HoldfastError as exc:
        # A blocker like the others. Whom the policy names, only libvirt knows.
        host, vms, rules = replace(host, libvirt_active=False, libvirt_error=exc.message), (), ()
    decisions = policy.decide(rules, vms, away.known_names(config.state_dir))
    if module.params["only"] == request.ONLY_QEMU:
        verdict = preflight.judge_renewal(host, vms, decisions)
    else:
        verdict = preflight.judge(host, vms, target, decisions=decisions)
    if module.params["command"] and not module.check_mode:
        verdict = with_command(verdict, module.params["command"])
    found: Dict[str, Any] = {
        "blockers": [plain(entry) for entry in verdict.blockers],
        "warnings_found": [plain(entry) for entry in verdict.warnings],
        "staying": staying(vms, decisions),
        "refused": not verdict.passed,
        "kernel": {"from": host.kernel, "to": target.release},
    }
    try:
        preflight.require_passed(verdict, host.hostname)
    except Refused as error:
        module.fail_json(msg=str(error), **found)
    return found


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
