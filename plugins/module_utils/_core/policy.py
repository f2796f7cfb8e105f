# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to each VM, and in which order: the operator's rules, first match wins.

A rule as the inventory writes it::

    - match: {name: "db-*"}      # or uuid:, or title:; no match: means every VM
      treatment: in_place        # the default
      priority: 90               # 0..100, default 50: suspended last, restored first
      max_pause_s: 5             # seconds; no limit by default
      may_restart: true          # started afresh when its RAM is lost, by a power cut for example; not by default
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .errors import BadInput
from .facts import Treatment, VmFacts

DEFAULT_PRIORITY = 50
HIGHEST_PRIORITY = 100

_MATCHED_BY = ("name", "uuid", "title")
_KEYS = ("match", "treatment", "priority", "max_pause_s", "may_restart")
_AVAILABLE = (Treatment.IN_PLACE,)


@dataclass(frozen=True)
class Rule:
    """One rule: VMs whose ``field`` matches ``pattern`` (empty ``field``: all VMs). ``number`` counts from 1."""

    number: int
    field: str = ""
    pattern: str = ""
    treatment: Treatment = Treatment.IN_PLACE
    priority: int = DEFAULT_PRIORITY
    max_pause_s: float | None = None
    may_restart: bool = False

    @property
    def is_glob(self) -> bool:
        return self.field != "uuid" and any(character in self.pattern for character in "*?[")

    def __str__(self) -> str:
        return f"rule {self.number} ({self.field} {self.pattern})" if self.field else f"rule {self.number} (every VM)"

    def matches(self, vm: VmFacts) -> bool:
        if not self.field:
            return True
        value = getattr(vm, self.field)
        if self.field == "uuid":
            return bool(value.lower() == self.pattern.lower())
        return fnmatchcase(value, self.pattern) if self.is_glob else bool(value == self.pattern)


@dataclass(frozen=True)
class Decision:
    """What happens to one VM, and why; ``max_pause_s`` is in seconds, None without a limit."""

    name: str
    uuid: str
    treatment: Treatment
    priority: int
    reason: str
    max_pause_s: float | None = None
    may_restart: bool = False


def parse_rules(entries: object) -> tuple[Rule, ...]:
    """Rules from the inventory's list; raises BadInput naming the rule for everything that is not understood."""
    if not isinstance(entries, Sequence) or isinstance(entries, (str, bytes)):
        raise BadInput("the policy is not a list of rules", "write one entry per rule, starting with '- match:'")
    return tuple(_rule(number, entry) for number, entry in enumerate(entries, start=1))


def decide(rules: Sequence[Rule], vms: Sequence[VmFacts]) -> tuple[Decision, ...]:
    """One decision per VM, in the order of ``vms``.

    Raises BadInput for a rule that names one single VM which does not exist: that is a slip of the pen, and the VM that
    was meant would be treated by some other rule without anybody noticing.
    """
    for rule in rules:
        _check_known(rule, vms)
    return tuple(_decision(rules, vm) for vm in vms)


def suspend_order(decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """The least important VM first: it pauses longest."""
    return tuple(sorted(decisions, key=lambda decision: (decision.priority, decision.name)))


def restore_order(decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """The most important VM first; among equals the one suspended first, so that their pauses come out alike."""
    return tuple(sorted(decisions, key=lambda decision: (-decision.priority, decision.name)))


def _decision(rules: Sequence[Rule], vm: VmFacts) -> Decision:
    rule = next((rule for rule in rules if rule.matches(vm)), None)
    reason = f"by {rule}" if rule else "by default: no rule matches"
    chosen = rule or Rule(number=0)
    limits = (chosen.max_pause_s, chosen.may_restart)
    return Decision(vm.name, vm.uuid, chosen.treatment, chosen.priority, reason, *limits)


def _check_known(rule: Rule, vms: Sequence[VmFacts]) -> None:
    if not rule.field or rule.is_glob or any(rule.matches(vm) for vm in vms):
        return
    known = ", ".join(sorted(getattr(vm, rule.field) for vm in vms if getattr(vm, rule.field))) or "none"
    raise BadInput(
        f"policy {rule}: there is no VM with this {rule.field}",
        f"correct the rule or remove it; VMs here: {known}",
    )


def _rule(number: int, entry: object) -> Rule:
    if not isinstance(entry, Mapping):
        raise BadInput(f"policy rule {number} is not a mapping", f"use the keys {', '.join(_KEYS)}")
    unknown = sorted(str(key) for key in entry if key not in _KEYS)
    if unknown:
        raise BadInput(f"policy rule {number} has unknown keys: {', '.join(unknown)}", f"known: {', '.join(_KEYS)}")
    field, pattern = _match(number, entry.get("match") or {})
    return Rule(
        number=number,
        field=field,
        pattern=pattern,
        treatment=_treatment(number, entry.get("treatment", Treatment.IN_PLACE.value)),
        priority=_priority(number, entry.get("priority", DEFAULT_PRIORITY)),
        max_pause_s=_max_pause(number, entry.get("max_pause_s")),
        may_restart=_may_restart(number, entry.get("may_restart", False)),
    )


def _match(number: int, match: object) -> tuple[str, str]:
    if match == {}:
        return "", ""
    if isinstance(match, Mapping) and len(match) == 1:
        ((field, pattern),) = match.items()
        if field in _MATCHED_BY and isinstance(pattern, str) and pattern:
            return str(field), pattern
    raise BadInput(
        f"policy rule {number}: cannot match by {match!r}",
        f"give exactly one of {', '.join(_MATCHED_BY)} with a text, e.g. match: {{name: 'db-*'}}",
    )


def _treatment(number: int, value: object) -> Treatment:
    known = [treatment.value for treatment in Treatment]
    if value not in known:
        raise BadInput(f"policy rule {number}: unknown treatment {value!r}", f"known: {', '.join(known)}")
    treatment = Treatment(value)
    if treatment not in _AVAILABLE:
        available = ", ".join(entry.value for entry in _AVAILABLE)
        raise BadInput(f"policy rule {number}: treatment {treatment.value} is not available yet", f"use {available}")
    return treatment


def _priority(number: int, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= HIGHEST_PRIORITY:
        raise BadInput(
            f"policy rule {number}: priority {value!r} is not a whole number from 0 to {HIGHEST_PRIORITY}",
            "higher means more important: suspended last, restored first",
        )
    return value


def _max_pause(number: int, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise BadInput(
            f"policy rule {number}: max_pause_s {value!r} is not a number of seconds above 0",
            "leave it out for no limit",
        )
    return float(value)


def _may_restart(number: int, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadInput(f"policy rule {number}: may_restart {value!r} is not true or false", "leave it out for false")
    return value
