# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of pools that are measured, by the words that the bench has for them, and a lab host that gets one."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import DEVDAX, FSDAX

from ..command import run
from ..upgrade import ansible_environment

PREPARE_LIMIT_S = 1800.0
STOCK, LARGE = "none", f"{DEVDAX}-1G"
DEVICES = (LARGE, DEVDAX)
KINDS = (*DEVICES, FSDAX)


def settings(kind: str) -> dict[str, str]:
    """What the prepare playbook is told."""
    if kind in DEVICES:
        return {"prepare_pool_kind": DEVDAX, "prepare_pool_page": "1G" if kind == LARGE else "2M"}
    return {"prepare_pool_kind": kind}


def prepare(lab: Path, kind: str, **variables: object) -> None:
    """Give the lab's host a pool by the playbook, whose log lies beside the lab. Raises HoldfastError."""
    wanted = {"prepare_reboot_ok": True, **settings(kind), **variables}
    inventory = str((lab / "inventory/hosts.yml").absolute())
    words = ["ansible-playbook", "-i", inventory, "-e", json.dumps(wanted), "holdfast.kvm.prepare"]
    run(words, env=ansible_environment(os.environ), log=lab.parent / "prepare.log", timeout_s=PREPARE_LIMIT_S)
