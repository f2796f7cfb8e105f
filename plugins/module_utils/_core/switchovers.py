# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long VMs stood still at the end of live migrations from this host, for the next plan to predict from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Tuple

from . import durable

NAME = "switchovers.json"
# Enough for a 95th percentile; older ones were of another kernel and QEMU.
KEPT = 50


def read(state_dir: Path) -> Tuple[float, ...]:
    """Seconds, the latest last. A record that is missing or damaged is none: it serves predictions only."""
    try:
        return tuple(float(seconds) for seconds in json.loads((state_dir / NAME).read_text()))
    except (OSError, TypeError, ValueError):
        return ()


def note(state_dir: Path, pause_s: float) -> None:
    """Keep one more. Raises HoldfastError when it cannot be written."""
    durable.write_text(state_dir / NAME, json.dumps([*read(state_dir), pause_s][-KEPT:]) + "\n")
