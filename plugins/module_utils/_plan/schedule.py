# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long things take: a live migration, the upgrade of a host; and when each migration of a batch begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, List, Optional, Sequence, Tuple

from .model import Host, Move

_MB = 1e6
# mVM (CNetwork.java) divides Mbit/s by 9 instead of 8 to cover what protocols take.
_BITS_PER_BYTE_SENT = 9
# mVM's figures for what every VM writes again and again.
HOT_MB = 5.0
HOT_S = 2.0
# A guest that writes faster than that is slowed down (auto-converge) until its migration ends.
SLOWED_TO = 0.9


def migration_s(size_bytes: int, link_mbit: float, writes_bytes_per_s: Optional[int] = None) -> float:
    """Seconds of one live migration that has the whole path to itself.

    mVM's formula, which reproduces its 500 published durations: all of it once, what was written meanwhile, and what
    was written during that. With nothing but a small hot set being written, where nobody has looked.
    """
    per_s = link_mbit / _BITS_PER_BYTE_SENT
    once = size_bytes / _MB / per_s
    hot_per_s = HOT_MB / HOT_S
    if per_s <= hot_per_s:
        return float("inf")
    if once <= HOT_S:
        return once + hot_per_s * once / (per_s - hot_per_s)
    cold_per_s = min(max(0.0, (writes_bytes_per_s or 0) / _MB - hot_per_s), SLOWED_TO * per_s)
    again = (HOT_MB + (once - HOT_S) * cold_per_s) / (per_s - cold_per_s)
    return once + again + HOT_MB / per_s * hot_per_s / (per_s - hot_per_s)


def is_slowed_down(writes_bytes_per_s: Optional[int], link_mbit: float) -> bool:
    """Whether a VM writes so fast that its migration over this link ends only because it is slowed down."""
    return (writes_bytes_per_s or 0) / _MB > SLOWED_TO * link_mbit / _BITS_PER_BYTE_SENT


def path_mbit(source: Host, destination: Host) -> float:
    """What two hosts' links carry between them, in Mbit/s."""
    return min(source.link_mbit, destination.link_mbit)


def in_line(moves: Sequence[Move], start_s: float) -> Tuple[Move, ...]:
    """The moves with their times: each has its path to itself, and those that share a link wait for one another.

    The longest first, each as soon as the source may send and the destination may receive. In the order of their times.
    """
    sends: Dict[str, float] = {}
    receives: Dict[str, float] = {}
    timed: List[Move] = []
    for move in sorted(moves, key=lambda move: (-move.seconds, move.vm, move.uuid)):
        begin = max(sends.get(move.source, start_s), receives.get(move.destination, start_s))
        timed.append(replace(move, start_s=round(begin, 3)))
        sends[move.source] = receives[move.destination] = round(begin + move.seconds, 3)
    return tuple(sorted(timed, key=lambda move: (move.start_s, move.source, move.vm)))


def end_s(moves: Sequence[Move], otherwise: float) -> float:
    """When the last of these moves has ended."""
    return max((move.start_s + move.seconds for move in moves), default=otherwise)


def upgrade_s(host: Host, staying: int, longest_pause_s: float, stage_s: float) -> float:
    """Seconds that one host's upgrade takes, when ``staying`` VMs are there; a guest that restarts may take longest."""
    figures = host.pauses
    lanes = -(-staying // figures.parallel)
    return stage_s + max(figures.floor_p50_s + lanes * figures.each_p50_s, longest_pause_s)
