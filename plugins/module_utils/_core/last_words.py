# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why the agent failed, in its own words: the last error in the log of the unit that ran it."""

from __future__ import annotations

from .printable import one_line

# What the agent begins an error with, which is one line.
ERROR = "holdfast: "


def of(log: str) -> str:
    """The last error in what a unit printed, empty when there is none. Pure."""
    errors = [line for line in log.splitlines() if line.startswith(ERROR)]
    return one_line(errors[-1][len(ERROR) :]) if errors else ""
