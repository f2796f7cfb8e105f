#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thin: gathering is in collect."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Gather what decides whether a host can be upgraded in place
version_added: 0.1.0
description:
  - Reads the host's kernel, firmware memory map, libvirt, QEMU, pool, agent and journal. Judges nothing; that is what
    M(holdfast.kvm.preflight) does.
author:
  - holdfast contributors (@holdfast-kvm)
options: {}
attributes:
  check_mode:
    description: Reads only.
    support: full
  diff_mode:
    description: Changes nothing, so there is nothing to show.
    support: none
  idempotent:
    description: Changes nothing.
    support: full
seealso:
  - module: holdfast.kvm.vm_info
  - module: holdfast.kvm.preflight
"""

EXAMPLES = r"""
- name: Look at the host
  holdfast.kvm.host_info:
  register: found

- name: Show the room that is left in its pool
  ansible.builtin.debug:
    msg: "{{ found.host.pool.free_bytes }}"
"""

RETURN = r"""
host:
  description: What was found. Sizes are bytes, versions are lists of three numbers.
  type: dict
  returned: success
  sample: {hostname: hv1, kernel: 6.12.107+deb13-amd64, has_kvm: true, pool: {mounted: true, free_bytes: 1207959552}}
summary:
  description: The most important of it in one line, for a person.
  type: str
  returned: success
  sample: "hv1: kernel 7.2.12+deb13-amd64, QEMU 11.1.3, pool 512 MiB free of 1.5 GiB, journal restored"
journal:
  description: The journal in flight, else the newest finished one, as C(holdfast-agent status --json) prints it.
  type: dict
  returned: success
  sample: {state: restored, generation: g-20261121T020000-ab12cd}
away:
  description: VMs that were moved away from this host and are to come home, as of M(holdfast.kvm.evacuated).
  type: list
  elements: dict
  returned: success
  sample: [{name: db1, uuid: 6d0b..., to: hv2, at: "2026-11-21T02:00:00Z", images: []}]
switchovers_s:
  description: How long VMs stood still at the end of the last live migrations from this host, the latest last, by QEMU.
  type: list
  elements: float
  returned: success
  sample: [0.31, 0.18]
"""

from typing import Any, Dict, Sequence

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    away,
    collect,
    config,
    journal,
    switchovers,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import JournalError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import HostFacts, plain
from ansible_collections.holdfast.kvm.plugins.module_utils._core.regions import size_text
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run


def act(_module: AnsibleModule) -> Dict[str, Any]:
    found = config.load()
    try:
        view = journal.latest(found.state_dir).view
    except JournalError as error:
        view = {"state": "damaged", "reason": str(error)}
    host = collect.host_facts(found)
    gone = away.read(found.state_dir)
    shown = {"host": plain(host), "journal": view, "away": [plain(one) for one in gone]}
    shown["switchovers_s"] = list(switchovers.read(found.state_dir))
    return {**shown, "summary": summary(host, view, gone)}


def summary(host: HostFacts, view: Dict[str, Any], gone: Sequence[away.Away] = ()) -> str:
    """One line for a person."""
    pool = "no pool mounted"
    if host.pool.mounted:
        pool = f"pool {size_text(host.pool.free_bytes)} free of {size_text(host.pool.size_bytes)}"
    qemu = ".".join(map(str, host.qemu.version))
    journal_text = f"journal {view['state']} {view.get('generation', '')}".rstrip()
    away_text = "".join(f", {one.name} away at {one.to}" for one in gone)
    return f"{host.hostname}: kernel {host.kernel}, QEMU {qemu}, {pool}, {journal_text}{away_text}"


def main() -> None:
    run({}, act)


if __name__ == "__main__":
    main()
