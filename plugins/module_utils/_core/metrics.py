# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal as metrics, for node_exporter's textfile collector: how the last live update of this host ended.

Written when a generation ends and at boot, and only where the collector's directory is there. Metrics are a by-product:
whatever is wrong with them stands in nobody's way.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from . import durable, journal
from .config import Config
from .errors import HoldfastError, JournalError

NAME = "holdfast.prom"
STATES = ("none", "damaged", *dict.fromkeys(after for _, after in journal.TRANSITIONS.values() if after))
RESULTS = ("upgraded", "fell_back", "aborted", "failed")
# VMs in one of these states run on as if nothing had happened, or were started again as their policy wants.
CARRIED_ON = ("resumed", "pending", "started")

Labels = Mapping[str, str]
Sample = Tuple[Labels, float]


@contextmanager
def published_after(config: Config) -> Iterator[None]:
    """Publish when the block ends, however it ends."""
    try:
        yield
    finally:
        publish(config)


def publish(config: Config) -> None:
    """Write the metrics if this host collects them. Never raises a HoldfastError: it says on stderr what is wrong."""
    directory = config.metrics_dir
    if directory is None or not directory.is_dir():
        return
    try:
        # Here, not above: who only comes by on the way to a VM does not wait for it.
        from . import packing

        text = text_of(_view(config), packing.packed_version(str(packing.PATH)))
        # The collector has a user of its own.
        durable.write_text(directory / NAME, text, mode=0o644)
    except HoldfastError as exc:
        print(f"holdfast: no metrics: {exc}", file=sys.stderr)


def _view(config: Config) -> Dict[str, Any]:
    try:
        return journal.latest(config.state_dir).view
    except JournalError:
        return {"state": "damaged"}


def text_of(view: Mapping[str, Any], agent_version: str) -> str:
    """Prometheus' text format, version 0.0.4, for the view of a journal."""
    state = str(view["state"])
    waiting = [vm for vm in view.get("vms", []) if vm["state"] in journal.WAITING]
    families = [
        _family("holdfast_agent_info", "Version of the agent.", [({"version": agent_version}, 1)]),
        _family("holdfast_journal_state", "State of the newest journal: 1 for the one it is in.", _set(STATES, state)),
        _family("holdfast_vms_waiting", "VMs of the newest live update that are not back.", [({}, len(waiting))]),
        _family(
            "holdfast_vm_waiting",
            "A VM that is not back, by the journal's word for it.",
            [({**_names(vm), "state": str(vm["state"])}, 1) for vm in waiting],
        ),
        *_generation(view),
        *_ended(view),
    ]
    return "".join(families)


def _generation(view: Mapping[str, Any]) -> List[str]:
    """Which live update the other figures are of."""
    if not view.get("generation"):
        return []
    labels = {"generation": str(view["generation"])}
    for software in ("kernel", "qemu"):
        labels.update({f"{software}_{end}": str(view[software].get(end, "")) for end in ("from", "to")})
    known = ((vm, journal.pause_s(vm)) for vm in view["vms"])
    pauses = [(_names(vm), seconds) for vm, seconds in known if seconds is not None]
    return [
        _family("holdfast_generation_info", "The newest live update.", [(labels, 1)]),
        _family("holdfast_vm_pause_seconds", "How long a VM was paused in the newest live update.", pauses),
    ]


def _ended(view: Mapping[str, Any]) -> List[str]:
    if view["state"] not in journal.TERMINAL:
        return []
    ended_at = view["ended_at"]
    return [
        _family("holdfast_last_upgrade_timestamp_seconds", "When the newest live update ended.", [({}, ended_at)]),
        _family(
            "holdfast_last_upgrade_duration_seconds",
            "From its beginning to its end.",
            [({}, max(ended_at - view["begun_at"], 0.0))],
        ),
        _family(
            "holdfast_last_upgrade_result",
            "How the newest live update ended: 1 for its result.",
            _set(RESULTS, result_of(view), "result"),
        ),
    ]


def result_of(view: Mapping[str, Any]) -> str:
    """How a live update that has ended came out, in the report's words."""
    carried_on = all(vm["state"] in CARRIED_ON for vm in view["vms"])
    if view["state"] == "failed" or not carried_on:
        return "failed"
    if view["state"] == "aborted":
        return "aborted"
    return "fell_back" if view["fell_back"] else "upgraded"


def _names(vm: Mapping[str, Any]) -> Labels:
    return {"vm": str(vm["name"]), "uuid": str(vm["uuid"])}


def _set(known: Sequence[str], present: str, label: str = "state") -> List[Sample]:
    """One sample for each value there is: alerts can tell "not in this state" from "no figures"."""
    return [({label: value}, float(value == present)) for value in dict.fromkeys((*known, present))]


def _family(name: str, meaning: str, samples: Sequence[Sample]) -> str:
    """All samples of one metric, with what it means; nothing at all without a sample."""
    if not samples:
        return ""
    lines = [f"# HELP {name} {meaning}", f"# TYPE {name} gauge"]
    lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    inside = ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def escaped(value: str) -> str:
    """A label's value, as the text format wants it: backslash, quote and line feed escaped, and valid UTF-8."""
    text = value.encode("utf-8", "replace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    """Whole numbers without a point; times to the millisecond."""
    return str(int(value)) if value == int(value) else f"{value:.3f}"
