# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A document on the controller twice, for programs and for people: NAME.json and NAME.html in one directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.kvm.plugins.plugin_utils._whole_file import replace


@dataclass(frozen=True)
class DocumentPair:
    """Where both files of ``name`` go. Documents say in ``created`` when they were made."""

    directory: Path
    name: str

    @property
    def json(self) -> Path:
        return self.directory / f"{self.name}.json"

    @property
    def html(self) -> Path:
        return self.directory / f"{self.name}.html"

    def holds(self, document: dict[str, Any]) -> bool:
        """Whether both files are there and say the same, apart from the time they were made."""
        try:
            before = json.loads(self.json.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        same = isinstance(before, dict) and {**before, "created": ""} == {**document, "created": ""}
        return same and self.html.is_file()

    def write(self, document: dict[str, Any], page: str) -> None:
        """Write both, the page first: who waits for the document finds the page beside it. Raises OSError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        replace(self.html, page)
        replace(self.json, json.dumps(document, indent=2) + "\n")
