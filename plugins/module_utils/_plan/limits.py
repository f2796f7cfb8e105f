# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator's limits on a campaign, as the options of the plan have them."""

from __future__ import annotations

from typing import Any, Mapping, Sequence, Tuple

from .._core.errors import BadInput
from .model import Limits

EMPTY: Mapping[str, str] = {}


def parse_limits(options: Mapping[str, Any], hosts: Sequence[str], origins: Mapping[str, str] = EMPTY) -> Limits:
    """Limits for a fleet of these hosts, percentages counted out; ``origins`` says where an option is written.

    Raises BadInput naming the option.
    """
    return _Options(options, hosts, origins).limits()


class _Options:
    def __init__(self, options: Mapping[str, Any], hosts: Sequence[str], origins: Mapping[str, str]) -> None:
        self._options, self._hosts, self._origins = options, hosts, origins

    def limits(self) -> Limits:
        most = self._count("max_unavailable", self._options["max_unavailable"])
        waves = tuple(min(self._count("waves", entry), most) for entry in self._options["waves"])
        if not waves:
            raise self._bad("waves", "the list is empty", "name how many hosts each batch may have, like [1, '10%']")
        return Limits(
            waves=waves,
            canaries=self._canaries(waves[0]),
            max_per_domain=self._whole("max_per_domain"),
            reserve_hosts=self._whole("reserve_hosts"),
            cpu_ratio=self._above_zero("cpu_ratio"),
            shared_paths=tuple(str(path) for path in self._options["shared_paths"]),
            copy_storage=bool(self._options["copy_storage"]),
            stage_s=self._above_zero("stage_s"),
        )

    def _bad(self, name: str, what: str, hint: str) -> BadInput:
        origin = self._origins.get(name)
        return BadInput(f"{name} at {origin}: {what}" if origin else f"{name}: {what}", hint)

    def _count(self, name: str, value: Any) -> int:
        """A number of hosts, from itself or from a percentage; as Ansible's serial, that is at least one host."""
        text = str(value).strip()
        digits = text[:-1] if text.endswith("%") else text
        if not digits.isdigit() or int(digits) < 1:
            raise self._bad(name, f"{value!r} is neither a number of hosts nor a percentage", "write 5 or '10%'")
        return max(int(digits) * len(self._hosts) // 100, 1) if text.endswith("%") else int(digits)

    def _canaries(self, room: int) -> Tuple[str, ...]:
        found = tuple(dict.fromkeys(str(name) for name in self._options["canaries"]))
        unknown = [name for name in found if name not in self._hosts]
        if unknown:
            hint = f"hosts: {', '.join(self._hosts)}"
            raise self._bad("canaries", f"{', '.join(unknown)} is not a host of this plan", hint)
        if len(found) > room:
            raise self._bad(
                "canaries",
                f"{len(found)} of them contradict waves, whose first one has {room} host{'s' if room > 1 else ''}",
                "make the first wave larger, or name fewer canaries",
            )
        return found

    def _whole(self, name: str) -> int:
        if self._options[name] < 0:
            raise self._bad(name, f"{self._options[name]} is negative", "0 means no limit")
        return int(self._options[name])

    def _above_zero(self, name: str) -> float:
        if self._options[name] <= 0:
            raise self._bad(name, f"{self._options[name]} is not above 0", "leave it out for the default")
        return float(self._options[name])
