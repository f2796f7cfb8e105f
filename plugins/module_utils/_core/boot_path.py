# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the restore of the VMs had to wait for in this boot: the kernel, then one unit after the other.

Of all the units that had to be up before, systemd's ordering (``After=``) and its stamps tell which one came last; and
before that one, which; down to the kernel. What is not on this path did not make the pause longer by being waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Tuple

from .command import run

RESTORE = "holdfast-restore.service"
BEGAN, WAS_UP = "InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic"
USERSPACE = "UserspaceTimestampMonotonic"
KERNEL = "kernel and initrd"
# Targets, slices, sockets: ordered before others, and up as soon as they are begun.
SHORTEST_S = 0.02
# Some hundred units, on a host that has just started its VMs; an emulated one with neighbours took more than a minute.
LIMIT_S = 300.0


@dataclass(frozen=True)
class Unit:
    """A unit as systemd shows it; microseconds since the kernel began, 0 for what has not been."""

    name: str
    after: Tuple[str, ...]
    began_us: int
    was_up_us: int


@dataclass(frozen=True)
class Step:
    """Something that was waited for. ``start``: seconds since the kernel began."""

    name: str
    start: float
    seconds: float


def look() -> List[Step]:
    """The path of this boot, the kernel first; empty when VMs were not restored in it. Raises CommandFailed."""
    wanted = ["Id", "After", BEGAN, WAS_UP]
    # All: the restore itself is over, and a unit that is not active is left out otherwise.
    shown = run(["systemctl", "show", "--all", f"--property={','.join(wanted)}", "*"], timeout_s=LIMIT_S)
    userspace_us = int(run(["systemctl", "show", f"--property={USERSPACE}", "--value"], timeout_s=LIMIT_S))
    return path(read_units(shown), userspace_us)


def read_units(text: str) -> Dict[str, Unit]:
    """Units by name, from what ``systemctl show`` prints of several: blocks of ``Property=value``."""
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n")]
    units = [_unit(block) for block in blocks if block.get("Id")]
    return {unit.name: unit for unit in units}


def path(units: Mapping[str, Unit], userspace_us: int) -> List[Step]:
    """What the restore waited for, in its order. Pure."""
    steps: List[Step] = []
    unit = units.get(RESTORE)
    if unit is None or not unit.began_us:
        return []
    while (unit := _last_before(units, unit)) is not None:
        steps.append(_step(unit.name, unit.began_us, unit.was_up_us))
    waited_for = [step for step in reversed(steps) if step.seconds >= SHORTEST_S]
    return [_step(KERNEL, 0, userspace_us), *waited_for]


def _last_before(units: Mapping[str, Unit], unit: Unit) -> Optional[Unit]:
    """Of the units that this one is ordered after, the one that was up last when it began."""
    earlier = [units[name] for name in unit.after if name in units]
    # Strictly: two units with one stamp, each ordered after the other by way of a third, would go on for ever.
    candidates = [one for one in earlier if 0 < one.was_up_us <= unit.began_us and one.began_us < unit.began_us]
    return max(candidates, key=lambda one: (one.was_up_us, one.name), default=None)


def _unit(block: Mapping[str, str]) -> Unit:
    after = tuple(block.get("After", "").split())
    return Unit(block["Id"], after, int(block.get(BEGAN) or 0), int(block.get(WAS_UP) or 0))


def _step(name: str, begin_us: int, end_us: int) -> Step:
    return Step(name, round(begin_us / 1e6, 3), round((end_us - begin_us) / 1e6, 3))
