# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of pools that are measured, by the words that the bench has for them."""

from __future__ import annotations

from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import DEVDAX, FSDAX

STOCK, LARGE = "none", f"{DEVDAX}-1G"
DEVICES = (LARGE, DEVDAX)
KINDS = (*DEVICES, FSDAX)


def settings(kind: str) -> dict[str, str]:
    """What the prepare playbook is told."""
    if kind in DEVICES:
        return {"prepare_pool_kind": DEVDAX, "prepare_pool_page": "1G" if kind == LARGE else "2M"}
    return {"prepare_pool_kind": kind}
