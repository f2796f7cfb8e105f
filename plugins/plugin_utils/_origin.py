# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where in the inventory a value is written: ansible-core 2.19 and newer tag values with their file and line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

try:
    from ansible._internal._datatag._tags import Origin
except ImportError:  # not promised by ansible-core; without it, errors name the rule by its number only
    Origin = None


def origin_of(value: Any) -> str:
    """``FILE:LINE``, or an empty string when Ansible does not know."""
    tag = Origin.get_tag(value) if Origin is not None else None
    if tag is None or not tag.path:
        return ""
    return f"{tag.path}:{tag.line_num}" if tag.line_num else str(tag.path)


def origins_of_entries(entries: Any) -> tuple[str, ...]:
    """For each entry of a list; nothing for what is no list."""
    if not isinstance(entries, Sequence) or isinstance(entries, (str, bytes)):
        return ()
    return tuple(origin_of(entry) for entry in entries)


def origins_of_keys(entries: Any) -> dict[str, str]:
    """For each key of a mapping; nothing for what is no mapping."""
    if not isinstance(entries, Mapping):
        return {}
    return {str(key): origin_of(key) or origin_of(value) for key, value in entries.items()}


def origins_of_values(entries: Mapping[str, Any]) -> dict[str, str]:
    """For each key, where its value is written."""
    return {str(key): origin_of(value) for key, value in entries.items()}
