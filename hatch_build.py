# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the Ansible collection into the wheel, beside the command line."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COLLECTION = "ansible_collections/holdfast/kvm"
PARTS = ("galaxy.yml", "meta", "playbooks", "plugins", "roles")


class CollectionInWheel(BuildHookInterface):
    """Map the collection's parts to where Ansible looks in site-packages.

    A hook rather than ``force-include`` in pyproject.toml, since hatchling copies force-included files into an editable
    install too, and there the copy would hide the working tree from Ansible and from Python.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        build_data["force_include"].update({part: f"{COLLECTION}/{part}" for part in PARTS})
