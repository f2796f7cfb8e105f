#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kernels a host has, and which one an upgrade would go to."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_info
short_description: Find the kernel that an upgrade goes to
version_added: 0.1.0
description:
  - Lists the installed kernels and picks the one to go to. Reads C(/boot), changes nothing.
  - A kernel counts as installed when both its image and its initrd are there.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  release:
    description:
      - Release to go to, as C(uname -r) will print it.
      - When empty, the newest installed one of the running kernel's flavour. A rescue or cloud kernel is never picked
        on a host that does not run one.
    type: str
    default: ""
  simulation:
    description:
      - What C(apt-get --simulate) printed, which is what M(ansible.builtin.apt) returns in check mode. Kernels that it
        would install count as available, so that a check tells the truth before anything is staged.
    type: str
    default: ""
attributes:
  check_mode:
    description: Changes nothing in any mode.
    support: full
  diff_mode:
    description: Changes nothing in any mode.
    support: none
  idempotent:
    description: Changes nothing.
    support: full
seealso:
  - module: holdfast.kvm.live_update
"""

EXAMPLES = r"""
- name: Find the newest installed kernel
  holdfast.kvm.kernel_info:
  register: kernels

- name: Make sure that a certain kernel is installed
  holdfast.kvm.kernel_info:
    release: 7.2.12+deb13-amd64
"""

RETURN = r"""
release:
  description: The release to go to.
  type: str
  returned: success
  sample: 7.2.12+deb13-amd64
running:
  description: The running release.
  type: str
  returned: success
  sample: 6.12.107+deb13-amd64
installed:
  description: Installed releases, the newest last.
  type: list
  elements: str
  returned: success
  sample: [6.12.107+deb13-amd64, 7.2.12+deb13-amd64]
announced:
  description: Releases that are not installed, but would be by the simulated installation.
  type: list
  elements: str
  returned: success
  sample: []
"""

import os
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils._core import releases
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

ARGUMENTS = {
    "release": {"type": "str", "default": ""},
    "simulation": {"type": "str", "default": ""},
}


def act(module: AnsibleModule) -> Dict[str, Any]:
    running = os.uname().release
    installed = releases.installed()
    announced = [release for release in releases.announced(module.params["simulation"]) if release not in installed]
    release = releases.choose(module.params["release"], [*installed, *announced], running)
    return {"release": release, "running": running, "installed": installed, "announced": announced}


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
