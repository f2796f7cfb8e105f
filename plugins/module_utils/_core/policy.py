# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to each VM, and in which order: the operator's rules, first match wins.

A rule as the inventory writes it::

    - match: {name: "db-*"}      # or uuid:, title: or tag:; no match: means every VM
      treatments: [in_place, live]   # allowed ones, the first that is possible is taken; or one: treatment: in_place
      priority: 90               # 0..100, default 50: suspended last, restored first
      max_pause_s: 5             # seconds; no limit by default
      critical: true             # never paused for a host's sake: moved away live, or its host waits
      group: db                  # one of the fleet's groups, which say how many members must run
      return_home: true          # after a live migration, back to its host; not by default
      may_restart: true          # started afresh when its RAM is lost, by a power cut for example; not by default

Contradictions are refused, within a rule and between rules: a rule that can never apply was meant to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Optional

from .errors import BadInput
from .facts import Treatment, VmFacts

DEFAULT_PRIORITY = 50
HIGHEST_PRIORITY = 100

# What the upgrade of a host can do by itself. The plan of a fleet knows all of them.
AVAILABLE = (Treatment.IN_PLACE, Treatment.LIVE, Treatment.COLD, Treatment.RESTART)
# With these a VM is on its host while that is upgraded, suspended, on its disk or off.
STAYING = (Treatment.IN_PLACE, Treatment.COLD, Treatment.RESTART)
# These keep a VM running, or leave it alone; with all others it stands still for as long as its host needs.
KEEP_RUNNING = (Treatment.LIVE, Treatment.DEFER)

_MATCHED_BY = ("name", "uuid", "title", "tag")
_KEYS = (
    "match",
    "treatment",
    "treatments",
    "priority",
    "max_pause_s",
    "critical",
    "group",
    "return_home",
    "may_restart",
)


@dataclass(frozen=True)
class Rule:
    """One rule: VMs whose ``field`` matches ``pattern`` (empty ``field``: all VMs). ``number`` counts from 1.

    ``treatments`` are those allowed, the preferred one first. ``origin`` is where the inventory says so, as FILE:LINE.
    """

    number: int
    field: str = ""
    pattern: str = ""
    treatments: tuple[Treatment, ...] = (Treatment.IN_PLACE,)
    priority: int = DEFAULT_PRIORITY
    max_pause_s: float | None = None
    may_restart: bool = False
    critical: bool = False
    group: str = ""
    return_home: bool = False
    origin: str = ""

    @property
    def is_glob(self) -> bool:
        return self.field != "uuid" and any(character in self.pattern for character in "*?[")

    def __str__(self) -> str:
        return f"rule {self.number} ({self.field} {self.pattern})" if self.field else f"rule {self.number} (every VM)"

    def matches(self, vm: VmFacts) -> bool:
        if not self.field:
            return True
        if self.field == "uuid":
            return vm.uuid.lower() == self.pattern.lower()
        values = _values(self.field, vm)
        return any(fnmatchcase(value, self.pattern) if self.is_glob else value == self.pattern for value in values)


@dataclass(frozen=True)
class Decision:
    """What happens to one VM, and why; ``max_pause_s`` is in seconds, None without a limit.

    ``treatment`` is the preferred one of ``treatments``.
    """

    name: str
    uuid: str
    treatment: Treatment
    priority: int
    reason: str
    max_pause_s: float | None = None
    may_restart: bool = False
    treatments: tuple[Treatment, ...] = ()
    critical: bool = False
    group: str = ""
    return_home: bool = False


def parse_rules(
    entries: object, origins: Sequence[str] = (), available: Sequence[Treatment] = AVAILABLE
) -> tuple[Rule, ...]:
    """Rules from the inventory's list; raises BadInput naming the rule for everything that is not understood.

    ``origins`` says for each entry where it is written, FILE:LINE, and may be shorter. The preferred treatment of each
    rule must be an ``available`` one.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, (str, bytes)):
        raise BadInput("the policy is not a list of rules", "write one entry per rule, starting with '- match:'")
    known = dict(enumerate(origins, start=1))
    rules = tuple(_rule(number, entry, known.get(number, "")) for number, entry in enumerate(entries, start=1))
    for rule in rules:
        _check_reached(rule, rules[: rule.number - 1])
        _check_available(rule, available)
    return rules


def decide(
    rules: Sequence[Rule], vms: Sequence[VmFacts], elsewhere: Sequence[str] = (), unmoved: Sequence[str] = ()
) -> tuple[Decision, ...]:
    """One decision per VM, in the order of ``vms``.

    ``elsewhere`` names VMs that are known to be on other hosts. ``unmoved`` names VMs that could not be moved away, and
    get what their policy allows next.

    Raises BadInput for a rule that names one single VM which does not exist: that is a slip of the pen, and the VM that
    was meant would be treated by some other rule without anybody noticing.
    """
    for rule in rules:
        if rule.pattern not in elsewhere:
            check_known(rule, vms)
    return tuple(_settled(_decision(rules, vm), unmoved) for vm in vms)


def next_best(decision: Decision) -> Optional[Treatment]:
    """What happens to a VM that cannot be moved: the next treatment that its policy allows; None: its host waits."""
    later = decision.treatments[decision.treatments.index(Treatment.LIVE) + 1 :]
    found = next(iter(later), Treatment.DEFER)
    return None if found is Treatment.DEFER else found


def suspend_order(decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """The least important VM first: it pauses longest."""
    return tuple(sorted(decisions, key=lambda decision: (decision.priority, decision.name)))


def restore_order(decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """The most important VM first; among equals the one suspended first, so that their pauses come out alike."""
    return tuple(sorted(decisions, key=lambda decision: (-decision.priority, decision.name)))


def check_known(rule: Rule, vms: Sequence[VmFacts]) -> None:
    """Raise BadInput when the rule names one single VM, and none of ``vms`` is the one."""
    if not rule.field or rule.is_glob or rule.field == "tag" or any(rule.matches(vm) for vm in vms):
        return
    known = ", ".join(sorted(value for vm in vms for value in _values(rule.field, vm))) or "none"
    raise BadInput(
        f"policy {rule}{f' at {rule.origin}' if rule.origin else ''}: there is no VM with this {rule.field}",
        f"correct the rule or remove it; VMs here: {known}",
    )


def place(rule: Rule) -> str:
    """The rule as an error names it, with file and line where they are known."""
    return _place(rule.number, rule.origin)


def _place(number: int, origin: str) -> str:
    return f"policy rule {number} at {origin}" if origin else f"policy rule {number}"


def _values(field: str, vm: VmFacts) -> tuple[str, ...]:
    if field == "tag":
        return vm.tags
    value = {"name": vm.name, "uuid": vm.uuid, "title": vm.title}[field]
    return (value,) if value else ()


def _decision(rules: Sequence[Rule], vm: VmFacts) -> Decision:
    rule = next((rule for rule in rules if rule.matches(vm)), None)
    chosen = rule or Rule(number=0)
    return Decision(
        name=vm.name,
        uuid=vm.uuid,
        treatment=chosen.treatments[0],
        priority=chosen.priority,
        reason=f"by {rule}" if rule else "by default: no rule matches",
        max_pause_s=chosen.max_pause_s,
        may_restart=chosen.may_restart,
        treatments=chosen.treatments,
        critical=chosen.critical,
        group=chosen.group,
        return_home=chosen.return_home,
    )


def _settled(decision: Decision, unmoved: Sequence[str]) -> Decision:
    if decision.name not in unmoved or Treatment.LIVE not in decision.treatments:
        return decision
    reason = f"{decision.reason}; live was not possible"
    return replace(decision, treatment=next_best(decision) or decision.treatment, reason=reason)


def _check_reached(rule: Rule, earlier: Sequence[Rule]) -> None:
    for other in earlier:
        if not other.field or (other.field, other.pattern) == (rule.field, rule.pattern):
            raise BadInput(
                f"{place(rule)} contradicts rule {other.number}: it never applies, since {other} takes the same VMs",
                "the first match wins: remove one of the two, or put the narrower one first",
            )


def _check_available(rule: Rule, available: Sequence[Treatment]) -> None:
    if rule.treatments[0] not in available:
        raise BadInput(
            f"{place(rule)}: {rule.treatments[0].value} keeps its host from being upgraded: only a plan does that",
            f"run holdfast plan; or put {', '.join(entry.value for entry in available)} first",
        )


def _rule(number: int, entry: object, origin: str) -> Rule:
    where = _place(number, origin)
    if not isinstance(entry, Mapping):
        raise BadInput(f"{where} is not a mapping", f"use the keys {', '.join(_KEYS)}")
    unknown = sorted(str(key) for key in entry if key not in _KEYS)
    if unknown:
        raise BadInput(f"{where} has unknown keys: {', '.join(unknown)}", f"known: {', '.join(_KEYS)}")
    field, pattern = _match(where, entry.get("match") or {})
    critical = _yes_or_no(where, "critical", entry.get("critical", False))
    rule = Rule(
        number=number,
        field=field,
        pattern=pattern,
        treatments=_treatments(where, entry, Treatment.LIVE if critical else Treatment.IN_PLACE),
        priority=_priority(where, entry.get("priority", DEFAULT_PRIORITY)),
        max_pause_s=_max_pause(where, entry.get("max_pause_s")),
        may_restart=_yes_or_no(where, "may_restart", entry.get("may_restart", False)),
        critical=critical,
        group=_group(where, entry.get("group", "")),
        return_home=_yes_or_no(where, "return_home", entry.get("return_home", False)),
        origin=origin,
    )
    _check_coherent(where, rule)
    return rule


def _check_coherent(where: str, rule: Rule) -> None:
    pausing = [entry.value for entry in rule.treatments if entry not in KEEP_RUNNING]
    if rule.critical and pausing:
        raise BadInput(
            f"{where} contradicts itself: critical, and yet {', '.join(pausing)}, which pauses the VM",
            "a critical VM has the treatments live and defer; without critical, max_pause_s limits the pause",
        )
    if rule.return_home and Treatment.LIVE not in rule.treatments:
        raise BadInput(
            f"{where} contradicts itself: return_home, but the VM is never moved ({_listed(rule.treatments)})",
            "add live to its treatments, or leave return_home out",
        )


def _match(where: str, match: object) -> tuple[str, str]:
    if match == {}:
        return "", ""
    if isinstance(match, Mapping) and len(match) == 1:
        ((field, pattern),) = match.items()
        if field in _MATCHED_BY and isinstance(pattern, str) and pattern:
            return str(field), str(pattern)
    raise BadInput(
        f"{where}: cannot match by {match!r}",
        f"give exactly one of {', '.join(_MATCHED_BY)} with a text, e.g. match: {{name: 'db-*'}}",
    )


def _treatments(where: str, entry: Mapping[str, object], otherwise: Treatment) -> tuple[Treatment, ...]:
    if "treatment" in entry and "treatments" in entry:
        raise BadInput(
            f"{where} contradicts itself: both treatment and treatments",
            "keep treatments; treatment is the short form for a single one",
        )
    if "treatments" not in entry:
        return (_treatment(where, entry.get("treatment", otherwise.value)),)
    values = entry["treatments"]
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)) or not values:
        raise BadInput(f"{where}: treatments {values!r} is not a list", "write [in_place, live], the preferred first")
    found = tuple(_treatment(where, value) for value in values)
    if len(set(found)) < len(found):
        raise BadInput(f"{where}: treatments names one twice ({_listed(found)})", "the order is the preference")
    return found


def _treatment(where: str, value: object) -> Treatment:
    known = [treatment.value for treatment in Treatment]
    if value not in known:
        raise BadInput(f"{where}: unknown treatment {value!r}", f"known: {', '.join(known)}")
    return Treatment(value)


def _listed(treatments: Sequence[Treatment]) -> str:
    return ", ".join(entry.value for entry in treatments)


def _priority(where: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= HIGHEST_PRIORITY:
        raise BadInput(
            f"{where}: priority {value!r} is not a whole number from 0 to {HIGHEST_PRIORITY}",
            "higher means more important: suspended last, restored first",
        )
    return int(value)


def _max_pause(where: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise BadInput(
            f"{where}: max_pause_s {value!r} is not a number of seconds above 0",
            "leave it out for no limit",
        )
    return float(value)


def _group(where: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{where}: group {value!r} is not a name", "name one of holdfast_groups, or leave it out")
    return str(value)


def _yes_or_no(where: str, key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadInput(f"{where}: {key} {value!r} is not true or false", "leave it out for false")
    return value
