#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thin: packing is in packing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: agent
short_description: Install the agent on a host, or remove it
version_added: 0.1.0
description:
  - Packs the core of this collection, which Ansible sends along with this module, into one executable file,
    C(/usr/local/sbin/holdfast-agent). It needs Python 3.9 or newer and the distribution's C(python3-libvirt) on the
    host, nothing else.
  - Installs the systemd units that attach the pool and restore the VMs at boot, enables them, and installs libvirt's
    hook in C(/etc/libvirt/hooks/qemu.d). Starts nothing.
  - Waits until no agent is at work on the host. While a live update is in flight, or a VM of one waits, the agent is
    neither replaced by another version nor removed; one that is missing or damaged is put right.
  - Removal stops the units, which unmounts the pool; that fails while a VM has its RAM in it.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  state:
    description: Whether the host shall have the agent.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Compares, writes nothing.
    support: full
  diff_mode:
    description: Shows the version of the agent, and the units and the hook, before and after.
    support: full
  idempotent:
    description: An agent with the same sources is left alone.
    support: full
seealso:
  - module: holdfast.kvm.pool
"""

EXAMPLES = r"""
- name: Install the agent
  holdfast.kvm.agent:
"""

RETURN = r"""
version:
  description: Twelve hexadecimal digits that change with any source. Empty when the agent is absent.
  type: str
  returned: success
  sample: 3f9a0c2b7d10
libvirt_changed:
  description:
    - Whether libvirt's daemon must be restarted to find its hook. That stops no VM.
    - It looks whether there is one only when it starts. A hook whose text is changed needs no restart.
  type: bool
  returned: success
  sample: false
"""

import os
from contextlib import nullcontext
from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils import _core as core
from ansible_collections.holdfast.kvm.plugins.module_utils._core import agent as program
from ansible_collections.holdfast.kvm.plugins.module_utils._core import config as configuration
from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    durable,
    installation,
    packing,
    reservation,
    turn,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.installation import HostFile
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

ARGUMENTS: Dict[str, Any] = {"state": {"type": "str", "choices": ["present", "absent"], "default": "present"}}
MODE = 0o755
# Ansible sends along what a module imports: the agent, and by its own imports the rest of the core.
ENTRY = program.main


def agent_is_current(sources: Dict[str, bytes]) -> bool:
    """Whether the installed agent was packed from these sources."""
    path = packing.PATH
    return path.exists() and path.stat().st_mode & 0o7777 == MODE and packing.is_current(path.read_bytes(), sources)


def check_version(version: str) -> None:
    """Raise Refused when this would put another version in the place of one whose generation is in flight.

    An agent imports from its file for as long as it runs, and the next one reads what it wrote. A host whose agent is
    missing or damaged brings nobody back, and may have any.
    """
    if packing.packed_version(str(packing.PATH)) not in ("", version):
        check_in_flight()


def check_in_flight() -> None:
    """Raise Refused while a generation is in flight here, or a VM of one waits."""
    reservation.check_in_flight(configuration.load().state_dir)


def present(module: AnsibleModule) -> Dict[str, Any]:
    """Install what is not as it shall be. Raises HoldfastError."""
    sources = packing.core_sources(core)
    version = packing.version_of(sources)
    stale = [file for file in installation.FILES if not file.is_current]
    pack_again = not agent_is_current(sources)
    diff = differences(version, {file: file.text for file in stale})
    put_again = bool(stale) or not installation.enabled()
    hook_is_new = any(file.text == installation.HOOK_SCRIPT and not os.access(file.path, os.X_OK) for file in stale)
    check_version(version)
    if not module.check_mode:
        with turn.taken() if pack_again or put_again else nullcontext():
            # Once more: a live update may have begun since, and none begins from here on.
            check_version(version)
            if pack_again:
                packing.PATH.parent.mkdir(parents=True, exist_ok=True)
                durable.write_bytes(packing.PATH, packing.pack(sources), mode=MODE)
            if put_again:
                installation.put(stale)
    return {
        "changed": pack_again or put_again,
        "version": version,
        "diff": diff,
        "libvirt_changed": hook_is_new,
    }


def absent(module: AnsibleModule) -> Dict[str, Any]:
    """Remove what is there. Raises Refused, or CommandFailed while the pool is in use."""
    there = [file for file in installation.FILES if file.path.exists()]
    changed = bool(there) or packing.PATH.exists()
    diff = differences("", dict.fromkeys(there, ""))
    if changed:
        check_in_flight()
    if changed and not module.check_mode:
        with turn.taken():
            check_in_flight()
            installation.take_away(there)
            packing.PATH.unlink(missing_ok=True)
    return {"changed": changed, "version": "", "diff": diff, "libvirt_changed": False}


def differences(version: str, wanted: Dict[HostFile, str]) -> List[Dict[str, str]]:
    """The agent by its version, every other file by its text."""
    before = packing.packed_version(str(packing.PATH))
    shown = [(str(packing.PATH), f"version {before or 'none'}\n", f"version {version or 'none'}\n")]
    shown += [(str(file.path), file.present_text, text) for file, text in wanted.items()]
    return [
        {"before_header": path, "before": old, "after_header": path, "after": new}
        for path, old, new in shown
        if old != new
    ]


def act(module: AnsibleModule) -> Dict[str, Any]:
    return present(module) if module.params["state"] == "present" else absent(module)


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
