#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation only: the work is done on the controller, by the action plugin of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: controller_check
short_description: Refuse to pause the VM that this controller is
version_added: 0.1.0
description:
  - Fails when the machine that runs Ansible is one of the VMs, by its DMI product uuid, which is for root alone to
    read, or by its machine id, which systemd makes from that uuid at a VM's first boot.
  - A controller in a container, or with a machine id of its own making, is not recognised.
  - Runs on the controller and touches no host.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  vms:
    description: The VMs of a host that are to be paused, each with C(name) and C(uuid).
    type: list
    elements: dict
    required: true
  may_pause:
    description: Whether the controller may be one of them.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reads only, and looks in check mode as well.
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
  - module: holdfast.kvm.preflight
"""

EXAMPLES = r"""
- name: Find out what would be paused
  holdfast.kvm.preflight:
  register: judged

- name: Make sure that this controller is not paused
  holdfast.kvm.controller_check:
    vms: "{{ judged.staying }}"
"""

RETURN = r"""
vm:
  description: Name of the VM that this controller is, or an empty text.
  type: str
  returned: always
  sample: ""
refused:
  description: Whether the controller would be paused; nothing was touched then.
  type: bool
  returned: failure
  sample: true
"""
