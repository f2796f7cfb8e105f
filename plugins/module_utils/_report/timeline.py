# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the picture of a live update shows, in seconds around the moment the first VM stopped.

Both drawings (SVG in the HTML page, characters in the terminal) are made from this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Mapping, Optional, Sequence, Tuple

# What happens before the first pause is context: it may take this share of the picture, and no more.
_LEAD_IN_SHARE = 0.25


@dataclass(frozen=True)
class Phase:
    """One phase; ``start_s`` and ``end_s`` are cut to the picture, ``seconds`` is its whole length."""

    name: str
    start_s: float
    end_s: float
    seconds: float


@dataclass(frozen=True)
class Bar:
    """One VM from pause to resume. ``ended`` is false when it was never resumed: the bar is open to the right."""

    vm: Mapping[str, Any]
    start_s: float
    saved_s: float
    restore_s: float
    end_s: float
    ended: bool


@dataclass(frozen=True)
class Timeline:
    """``earlier`` phases ended before the picture begins."""

    start_s: float
    end_s: float
    phases: Tuple[Phase, ...]
    earlier: Tuple[Phase, ...]
    bars: Tuple[Bar, ...]

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s


def timeline(host: Mapping[str, Any]) -> Optional[Timeline]:
    """The picture of one host of a report; None when no VM was paused and no phase is on record."""
    paused = [vm for vm in host["vms"] if vm["paused_at"] is not None]
    moments = [vm["paused_at"] for vm in paused] or [phase["start"] for phase in host["phases"]]
    if not moments:
        return None
    zero = min(moments)
    phases = [
        Phase(entry["name"], entry["start"] - zero, entry["start"] - zero + entry["seconds"], entry["seconds"])
        for entry in host["phases"]
    ]
    end_s = max([phase.end_s for phase in phases] + [_last_moment(vm) - zero for vm in paused] + [0.001])
    start_s = max(min([phase.start_s for phase in phases] + [0.0]), -end_s * _LEAD_IN_SHARE)
    return Timeline(
        start_s=start_s,
        end_s=end_s,
        phases=tuple(_cut(phase, start_s) for phase in phases if phase.end_s > start_s),
        earlier=tuple(phase for phase in phases if phase.end_s <= start_s),
        bars=tuple(sorted((_bar(vm, zero, end_s) for vm in paused), key=lambda bar: (bar.end_s, bar.start_s))),
    )


def ticks(start_s: float, end_s: float, about: int = 8) -> List[float]:
    """Round numbers of seconds (1, 2 or 5 times a power of ten apart) for an axis; zero is one of them."""
    raw = max(end_s - start_s, 1e-6) / about
    power = 10.0 ** _floor_log10(raw)
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = -int(-start_s / step)
    return [round(index * step, 6) for index in range(first, int(end_s / step) + 1)]


def _floor_log10(value: float) -> int:
    return int(f"{value:e}".split("e")[1])


def _cut(phase: Phase, start_s: float) -> Phase:
    return Phase(phase.name, max(phase.start_s, start_s), phase.end_s, phase.seconds)


def _last_moment(vm: Mapping[str, Any]) -> float:
    moments: Sequence[Optional[float]] = (vm["paused_at"], vm["saved_at"], vm["restore_started_at"], vm["resumed_at"])
    return max(moment for moment in moments if moment is not None)


def _bar(vm: Mapping[str, Any], zero: float, end_s: float) -> Bar:
    ended = vm["resumed_at"] is not None
    start = vm["paused_at"] - zero
    end = max(vm["resumed_at"] - zero, start) if ended else end_s
    saved = end if vm["saved_at"] is None else min(max(vm["saved_at"] - zero, start), end)
    restore = end if vm["restore_started_at"] is None else min(max(vm["restore_started_at"] - zero, saved), end)
    return Bar(vm=vm, start_s=start, saved_s=saved, restore_s=restore, end_s=end, ended=ended)
