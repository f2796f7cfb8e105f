# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers and names as a person reads them."""

from __future__ import annotations

from typing import Optional

from .._core.printable import printable as printable

UNKNOWN = "\u2013"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def shortened(text: str, limit: int) -> str:
    """At most ``limit`` characters; an ellipsis tells that some are missing."""
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


def seconds(value: Optional[float]) -> str:
    """A duration in seconds: ``0.42 s``, ``12.3 s``, ``6 min 05 s``."""
    if value is None:
        return UNKNOWN
    if abs(value) < 9.995:
        return f"{value:.2f} s"
    if abs(value) < 119.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def size(value: Optional[float]) -> str:
    """A size in bytes, in binary units: ``1.1 MiB``, ``2 GiB``."""
    if value is None:
        return UNKNOWN
    amount, unit = float(value), 0
    while amount >= 1023.95 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    text = f"{amount:.1f}".rstrip("0").rstrip(".")
    return f"{text} {_UNITS[unit]}"


def change(before: str, after: str) -> str:
    """``from → to``, or the one of them that is known."""
    if before and after and before != after:
        return f"{printable(before)} → {printable(after)}"
    return printable(after or before) or UNKNOWN
