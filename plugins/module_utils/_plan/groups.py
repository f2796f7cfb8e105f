# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups of VMs that stand for one service, as the inventory has them.

::

    holdfast_groups:
      db: {min_available: 2, anti_affinity: true}
"""

from __future__ import annotations

from typing import Mapping, Tuple

from .._core.errors import BadInput
from .model import Group

_KEYS = ("min_available", "anti_affinity")


def parse_groups(entries: object, origins: Mapping[str, str]) -> Tuple[Group, ...]:
    """Groups by name; ``origins`` says where each is written. Raises BadInput naming the group."""
    if not isinstance(entries, Mapping):
        raise BadInput(f"holdfast_groups is not a mapping: {entries!r}", "write NAME: {min_available: 2}")
    return tuple(_group(str(name), entry, origins.get(str(name), "")) for name, entry in entries.items())


def place(group: Group) -> str:
    """The group as an error names it."""
    return f"group {group.name} at {group.origin}" if group.origin else f"group {group.name}"


def _group(name: str, entry: object, origin: str) -> Group:
    where = place(Group(name, origin=origin))
    if not isinstance(entry, Mapping):
        raise BadInput(f"{where} is not a mapping: {entry!r}", f"use the keys {', '.join(_KEYS)}")
    unknown = sorted(str(key) for key in entry if key not in _KEYS)
    if unknown:
        raise BadInput(f"{where} has unknown keys: {', '.join(unknown)}", f"known: {', '.join(_KEYS)}")
    least, apart = entry.get("min_available", 0), entry.get("anti_affinity", False)
    if isinstance(least, bool) or not isinstance(least, int) or least < 0:
        raise BadInput(
            f"{where}: min_available {least!r} is not a whole number from 0", "it counts members that always run"
        )
    if not isinstance(apart, bool):
        raise BadInput(f"{where}: anti_affinity {apart!r} is not true or false", "leave it out for false")
    return Group(name, int(least), apart, origin)
