# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What action plugins tell about long work: on the screen, and to whoever reads HOLDFAST_PROGRESS_FILE."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.utils.display import Display

from ansible_collections.holdfast.kvm.plugins.module_utils._core.printable import one_line

display = Display()

PROGRESS_FILE_VARIABLE = "HOLDFAST_PROGRESS_FILE"


def tell(host: str, line: str = "", **entry: Any) -> None:
    """Say ``line`` on the screen, if there is one, and append everything to the progress file."""
    if line:
        display.display(f"{host}: {one_line(line)}")
        write(host, {"line": line})
    if entry:
        write(host, entry)


def write(host: str, entry: dict[str, Any]) -> None:
    """Append one JSON line. One write in append mode, so hosts upgraded side by side do not mix their lines."""
    path = os.environ.get(PROGRESS_FILE_VARIABLE)
    if not path:
        return
    line = json.dumps({"host": host, "time": time.time(), **entry}) + "\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        display.warning(f"cannot write progress to {path}: {error}")
        return
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
