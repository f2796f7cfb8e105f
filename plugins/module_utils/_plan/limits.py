# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator's limits on a campaign, as the options of the plan have them."""

from __future__ import annotations

from typing import Any, Mapping, Sequence, Tuple

from .._core.errors import BadInput
from .model import Limits


def parse_limits(options: Mapping[str, Any], hosts: Sequence[str]) -> Limits:
    """Limits for a fleet of these hosts, percentages counted out. Raises BadInput naming the option."""
    most = _count(options["max_unavailable"], len(hosts), "max_unavailable")
    waves = tuple(min(_count(entry, len(hosts), "waves"), most) for entry in options["waves"])
    if not waves:
        raise BadInput("waves is empty", "name how many hosts each batch may have, like [1, '10%']")
    return Limits(
        waves=waves,
        canaries=_canaries(options["canaries"], hosts, waves[0]),
        max_per_domain=_whole(options, "max_per_domain"),
        reserve_hosts=_whole(options, "reserve_hosts"),
        cpu_ratio=_above_zero(options, "cpu_ratio"),
        shared_paths=tuple(str(path) for path in options["shared_paths"]),
        copy_storage=bool(options["copy_storage"]),
        stage_s=_above_zero(options, "stage_s"),
    )


def _count(value: Any, hosts: int, name: str) -> int:
    """A number of hosts, from itself or from a percentage; as Ansible's serial, a percentage is at least one host."""
    text = str(value).strip()
    digits = text[:-1] if text.endswith("%") else text
    if not digits.isdigit() or int(digits) < 1:
        raise BadInput(f"{name}: {value!r} is neither a number of hosts nor a percentage", "write 5 or '10%'")
    return max(int(digits) * hosts // 100, 1) if text.endswith("%") else int(digits)


def _canaries(names: Sequence[Any], hosts: Sequence[str], room: int) -> Tuple[str, ...]:
    found = tuple(dict.fromkeys(str(name) for name in names))
    unknown = [name for name in found if name not in hosts]
    if unknown:
        raise BadInput(f"canaries: {', '.join(unknown)} is not a host of this plan", f"hosts: {', '.join(hosts)}")
    if len(found) > room:
        raise BadInput(
            f"canaries contradicts waves: {len(found)} canaries, but the first wave has {room} hosts",
            "make the first wave larger, or name fewer canaries",
        )
    return found


def _whole(options: Mapping[str, Any], name: str) -> int:
    if options[name] < 0:
        raise BadInput(f"{name}: {options[name]} is negative", "0 means no limit")
    return int(options[name])


def _above_zero(options: Mapping[str, Any], name: str) -> float:
    if options[name] <= 0:
        raise BadInput(f"{name}: {options[name]} is not above 0", "leave it out for the default")
    return float(options[name])
