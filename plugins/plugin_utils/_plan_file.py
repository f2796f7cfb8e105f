# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place that reads a plan.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.document import SCHEMA_VERSION, decisions_digest


def read_plan(path: Path) -> dict[str, Any]:
    """A plan that this version wrote, from its file or the directory that it is in. Raises BadInput."""
    file = path / "plan.json" if path.is_dir() else path
    try:
        plan: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read: {error}", "name a plan.json that holdfast plan wrote") from error
    if not isinstance(plan, dict) or plan.get("schema_version") != SCHEMA_VERSION or "fleet" not in plan:
        raise BadInput(
            f"{file} is no plan of schema version {SCHEMA_VERSION}", "plan again with this version of holdfast"
        )
    if not _is_as_made(plan):
        raise BadInput(
            f"{file} is not as it was made: what it decides was changed since, and nobody has checked that",
            "say in the policy what shall be different, and plan again",
        )
    return plan


def _is_as_made(plan: dict[str, Any]) -> bool:
    try:
        return bool(plan["decisions_sha256"] == decisions_digest(plan))
    except (KeyError, TypeError):
        return False
