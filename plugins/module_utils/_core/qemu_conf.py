# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One setting in libvirt's qemu.conf, between two marker lines so that it can be found and taken out again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

from .errors import HoldfastError

PATH = Path("/etc/libvirt/qemu.conf")
BEGIN = "# BEGIN holdfast"
END = "# END holdfast"

_BLOCK = re.compile(rf"^{BEGIN}\n.*?^{END}\n", re.MULTILINE | re.DOTALL)
_SETTING = re.compile(r'^\s*memory_backing_dir\s*=\s*"(?P<directory>[^"]*)"', re.MULTILINE)


def memory_backing_dir(text: str) -> str:
    """The directory that qemu.conf names for file-backed RAM; empty when it keeps libvirt's default."""
    found = _SETTING.search(text)
    return found["directory"] if found else ""


def with_memory_backing_dir(text: str, directory: Optional[str]) -> str:
    """``text`` with our block naming ``directory``, or without our block for None.

    Raises HoldfastError when somebody else's line already sets another directory.
    """
    rest = _BLOCK.sub("", text)
    if directory is None:
        return rest
    theirs = memory_backing_dir(rest)
    if theirs:
        raise HoldfastError(
            f'{PATH} already sets memory_backing_dir = "{theirs}", outside the lines that holdfast keeps',
            "take that line out: the VM RAM of a prepared host lives in the pool",
        )
    separator = "" if not rest or rest.endswith("\n") else "\n"
    return f'{rest}{separator}{BEGIN}\nmemory_backing_dir = "{directory}"\n{END}\n'
