# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a run is, as a pure reducer: ``after = reduce(before, event)``. It neither draws nor reads a clock.

Two sources feed it: the events of ansible-runner (which host is in which role, what failed), and the lines that the
action plugins write while one long task of theirs watches a host (the host's journal, a migration, and remarks). An
event that comes twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

ROLE_PREFIX = "holdfast.kvm."
LIVE_UPDATE = "live_update"
RECOVER_ACTION = "holdfast.kvm.recover"
REPORT_ACTION = "holdfast.kvm.report"
PLAN_CHECK_ACTION = "holdfast.kvm.plan_check"
# A failure of one of these outside a role is the playbook's gate between hosts speaking, not the host.
GATE_ACTIONS = ("ansible.builtin.assert", "ansible.builtin.fail", "assert", "fail")
REACH_ACTION = "ansible.builtin.wait_for_connection"


class ExitCode(IntEnum):
    """What ``holdfast`` tells its caller."""

    DONE = 0
    HOST_FAILED = 2
    REFUSED = 3
    STOPPED = 4
    LOCKED = 5


class HostStatus(StrEnum):
    """Where a host stands in the run."""

    WAITING = "waiting"
    WORKING = "working"
    DONE = "done"
    UPGRADED = "upgraded"
    FELL_BACK = "fell_back"
    ABORTED = "aborted"
    SKIPPED = "skipped"
    FAILED = "failed"
    REFUSED = "refused"
    LOCKED = "locked"
    UNREACHABLE = "unreachable"


HARD_STOP = (
    "a hard stop ends this controller, and nothing on the hosts: a live update or a migration that has begun goes on "
    "there by itself, unseen; VMs that were moved away stay there, and no report is written. 'holdfast recover' then "
    "waits for the hosts and says how they stand. Ctrl-C once more: hard stop. Otherwise the hosts in hand are finished"
)
FAILURES = (HostStatus.FAILED, HostStatus.FELL_BACK, HostStatus.ABORTED, HostStatus.UNREACHABLE)
# VMs that do not run, or not with the RAM that they had.
VMS_IN_TROUBLE = ("failed", "lost", "restarted", "given_up")
# What ansible said first about a host explains more than what follows from it.
SETTLED = (*FAILURES, HostStatus.REFUSED, HostStatus.LOCKED)


class Kind(StrEnum):
    """What a happening is about."""

    BATCH = "batch"
    PHASE = "phase"
    REMARK = "remark"
    VM_PAUSED = "vm_paused"
    VM_RESUMED = "vm_resumed"
    VM_FAILED = "vm_failed"
    HOST = "host"
    STOP = "stop"


@dataclass(frozen=True)
class VmProgress:
    """One VM of a host's journal. Times are seconds since the epoch by the host's clock, 0 for "not yet"."""

    name: str
    state: str = "pending"
    priority: int = 0
    ram_bytes: int = 0
    paused_at: float = 0.0
    resumed_at: float = 0.0
    error: str = ""

    @property
    def paused(self) -> bool:
        """Whether its guest stands still."""
        return bool(self.paused_at) and self.state not in (
            "pending",
            "resumed",
            "lost",
            "restarted",
            "given_up",
            "started",
        )


@dataclass(frozen=True)
class MoveProgress:
    """One VM on its way to another host, or home. ``state``: copying, sending, moved, stays, failed."""

    vm: str
    to: str = ""
    state: str = ""
    percent: float = 0.0
    left_bytes: int = 0
    bytes_per_s: float = 0.0
    round: int = 0

    @property
    def under_way(self) -> bool:
        return self.state in ("copying", "sending")

    @property
    def left_s(self) -> float | None:
        """Seconds until what is left now is sent; a VM that goes on writing takes longer."""
        return self.left_bytes / self.bytes_per_s if self.under_way and self.bytes_per_s else None


@dataclass(frozen=True)
class HostProgress:
    """One host. ``began_at``: when its turn came, 0 for not yet.

    ``clock_ahead_s`` is how far the controller's clock is ahead of the host's, at most.
    """

    name: str
    status: HostStatus = HostStatus.WAITING
    phase: str = ""
    journal_state: str = ""
    kernel: tuple[str, str] = ("", "")
    qemu: tuple[str, str] = ("", "")
    vms: tuple[VmProgress, ...] = ()
    moves: tuple[MoveProgress, ...] = ()
    error: str = ""
    began_at: float = 0.0
    heard_at: float = 0.0
    clock_ahead_s: float | None = None

    def pause_s(self, vm: VmProgress, now: float) -> float | None:
        """Seconds that a VM has been paused so far, or was in all; None before its pause, and for one that was lost."""
        if vm.paused_at and vm.resumed_at:
            return max(vm.resumed_at - vm.paused_at, 0.0)
        if not vm.paused:
            return None
        return max(now - (self.clock_ahead_s or 0.0) - vm.paused_at, 0.0)


@dataclass(frozen=True)
class Happening:
    """Something worth a line. ``at`` is seconds since the epoch by the controller's clock."""

    at: float
    kind: Kind
    text: str
    host: str = ""
    vm: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class PlannedBatch:
    """Hosts that a plan upgrades together, and how long that was predicted to take."""

    hosts: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Progress:
    """A whole run. ``batches`` are those of its plan, none without one; ``outdated``: it is for another fleet."""

    campaign: str
    started_at: float = 0.0
    hosts: tuple[HostProgress, ...] = ()
    happenings: tuple[Happening, ...] = ()
    last_counter: int = 0
    stop_asked: bool = False
    warned: bool = False
    cancelled: bool = False
    ended_at: float | None = None
    return_code: int | None = None
    report_json: str = ""
    report_html: str = ""
    batches: tuple[PlannedBatch, ...] = ()
    outdated: bool = False

    def host(self, name: str) -> HostProgress:
        return next((host for host in self.hosts if host.name == name), HostProgress(name))


@dataclass(frozen=True)
class RunBegan:
    """ansible-playbook is about to start for these hosts, in these batches of a plan."""

    at: float
    hosts: tuple[str, ...]
    batches: tuple[PlannedBatch, ...] = ()


@dataclass(frozen=True)
class AnsibleEvent:
    """One event of ansible-runner, as it comes."""

    data: Mapping[str, Any]


@dataclass(frozen=True)
class ProgressLine:
    """One line of the live_update action plugin: a host's journal, or a remark about it."""

    data: Mapping[str, Any]


@dataclass(frozen=True)
class StopAsked:
    """The person wants no further host to begin."""

    at: float


@dataclass(frozen=True)
class StopAskedAgain:
    """The person does not want to wait, and has yet to hear what that means."""

    at: float


@dataclass(frozen=True)
class CancelAsked:
    """The person wants ansible-playbook killed."""

    at: float


@dataclass(frozen=True)
class RunEnded:
    """ansible-playbook is gone."""

    at: float
    return_code: int


Event = RunBegan | AnsibleEvent | ProgressLine | StopAsked | StopAskedAgain | CancelAsked | RunEnded


def reduce(progress: Progress, event: Event) -> Progress:
    """The run after an event. Unknown, old and repeated events leave it as it is."""
    match event:
        case RunBegan(at, hosts, batches):
            waiting = tuple(HostProgress(name) for name in hosts)
            return replace(progress, started_at=at, hosts=waiting, batches=batches)
        case AnsibleEvent(data):
            return _ansible(progress, data)
        case ProgressLine(data):
            return _line(progress, data)
        case StopAsked(at):
            text = "stopping after the hosts that have begun; Ctrl-C again tells what a hard stop means"
            return (
                progress
                if progress.stop_asked
                else _told(replace(progress, stop_asked=True), Happening(at, Kind.STOP, text))
            )
        case StopAskedAgain(at):
            return (
                progress
                if progress.warned
                else _told(replace(progress, stop_asked=True, warned=True), Happening(at, Kind.STOP, HARD_STOP))
            )
        case CancelAsked(at):
            text = "stopping at once: a live update that has begun goes on by itself on its host"
            return (
                progress
                if progress.cancelled
                else _told(
                    replace(progress, stop_asked=True, warned=True, cancelled=True), Happening(at, Kind.STOP, text)
                )
            )
        case RunEnded(at, return_code):
            return replace(progress, ended_at=at, return_code=return_code)


def exit_code(progress: Progress) -> ExitCode:
    """The exit code of a run that has ended."""
    found = {host.status for host in progress.hosts}
    if found.intersection(FAILURES) or (HostStatus.REFUSED in found and HostStatus.UPGRADED in found):
        return ExitCode.HOST_FAILED
    if HostStatus.LOCKED in found:
        return ExitCode.LOCKED
    if HostStatus.REFUSED in found:
        return ExitCode.REFUSED
    unfinished = found.intersection((HostStatus.WAITING, HostStatus.WORKING, HostStatus.SKIPPED))
    if progress.cancelled or (progress.stop_asked and unfinished):
        return ExitCode.STOPPED
    return ExitCode.HOST_FAILED if progress.return_code or not found else ExitCode.DONE


def is_over(progress: Progress, batch: PlannedBatch) -> bool:
    """Whether no host of a batch is still to be worked on."""
    busy = (HostStatus.WAITING, HostStatus.WORKING)
    return not any(progress.host(name).status in busy for name in batch.hosts)


def current_batch(progress: Progress) -> int:
    """The number of the batch that is under way, counted from 1: the first that is not over, at last the last."""
    open_ones = (number for number, batch in enumerate(progress.batches, start=1) if not is_over(progress, batch))
    return next(open_ones, len(progress.batches))


def time_left_s(progress: Progress, now: float) -> float:
    """Seconds that the campaign still takes by its plan. A batch that takes longer than planned is taken for over."""
    return sum(_batch_left_s(progress, batch, now) for batch in progress.batches if not is_over(progress, batch))


def _batch_left_s(progress: Progress, batch: PlannedBatch, now: float) -> float:
    begun = [host.began_at for host in map(progress.host, batch.hosts) if host.began_at]
    return max(batch.seconds - (now - min(begun)), 0.0) if begun else batch.seconds


def _told(progress: Progress, *happenings: Happening) -> Progress:
    return replace(progress, happenings=(*progress.happenings, *happenings))


def _with_host(progress: Progress, host: HostProgress) -> Progress:
    if not any(known.name == host.name for known in progress.hosts):
        return replace(progress, hosts=(*progress.hosts, host))
    return replace(progress, hosts=tuple(host if known.name == host.name else known for known in progress.hosts))


def _ansible(progress: Progress, data: Mapping[str, Any]) -> Progress:
    counter = int(data.get("counter") or 0)
    if counter and counter <= progress.last_counter:
        return progress
    progress = replace(progress, last_counter=max(counter, progress.last_counter))
    details: Mapping[str, Any] = data.get("event_data") or {}
    at = _moment(data.get("created"))
    match data.get("event"):
        case "runner_on_start":
            return _entered(progress, at, details)
        case "runner_on_ok":
            return _succeeded(progress, at, details)
        case "runner_on_failed" if not details.get("ignore_errors"):
            return _failed(progress, at, details)
        case "runner_on_unreachable":
            return _unreachable(progress, at, details)
        case "runner_retry":
            return _waits(progress, at, details)
        case "playbook_on_stats":
            return _finished(progress, details)
    return progress


def _entered(progress: Progress, at: float, details: Mapping[str, Any]) -> Progress:
    """A host starts a task: its phase is the task's role."""
    role, name = _role(details), details.get("host")
    if not role or not name:
        return progress
    host = progress.host(name)
    if role == host.phase or host.status in SETTLED:
        return progress
    told = [*_batch_news(progress, at, name), Happening(at, Kind.PHASE, role, name)]
    status = HostStatus.WORKING if host.status is HostStatus.WAITING else host.status
    host = replace(host, phase=role, status=status, began_at=host.began_at or at)
    return _told(_with_host(progress, host), *told)


def _batch_news(progress: Progress, at: float, name: str) -> list[Happening]:
    """A line when the first host of a batch begins."""
    for number, batch in enumerate(progress.batches, start=1):
        if name in batch.hosts and not any(progress.host(other).began_at for other in batch.hosts):
            text = f"batch {number} of {len(progress.batches)}: {', '.join(batch.hosts)}"
            return [Happening(at, Kind.BATCH, text, seconds=time_left_s(progress, at))]
    return []


def _succeeded(progress: Progress, at: float, details: Mapping[str, Any]) -> Progress:
    result: Mapping[str, Any] = details.get("res") or {}
    action = details.get("resolved_action")
    if action == REPORT_ACTION:
        return _reported(progress, at, result)
    # Asked once for all hosts, so it is not the one that fails.
    if action == PLAN_CHECK_ACTION and result.get("refused"):
        return _failed(progress, at, details)
    if action == ROLE_PREFIX + LIVE_UPDATE and details.get("host"):
        progress = _journal(progress, details["host"], at, result.get("journal"))
        # "skipped" by the host itself means that there was nothing to do; a host that the gate skips never gets here.
        status = _status(result.get("result"))
        status = HostStatus.DONE if status is HostStatus.SKIPPED else status
        return _verdict(progress, at, details["host"], status, "")
    if action == RECOVER_ACTION and details.get("host"):
        return _recovered(progress, at, details["host"], result)
    return progress


def _recovered(progress: Progress, at: float, name: str, result: Mapping[str, Any]) -> Progress:
    """Nothing waits on this host. Its journal may be of long ago, so only what was changed just now is shown of it."""
    if result.get("changed"):
        progress = _journal(progress, name, at, result.get("journal"))
    progress = _told(progress, Happening(at, Kind.REMARK, str(result.get("standing") or ""), name))
    return _verdict(progress, at, name, HostStatus.DONE, "")


def _failed(progress: Progress, at: float, details: Mapping[str, Any]) -> Progress:
    name, result = details.get("host"), details.get("res") or {}
    if not name:
        return progress
    message = str(result.get("msg") or f"task '{details.get('task')}' failed")
    if result.get("stop_asked") is True:
        return _verdict(replace(progress, stop_asked=True), at, name, HostStatus.SKIPPED, message)
    if result.get("lock_held") is True:
        return _verdict(progress, at, name, HostStatus.LOCKED, message)
    if result.get("refused") is True:
        progress = replace(progress, outdated=progress.outdated or result.get("outdated") is True)
        return _verdict(progress, at, name, HostStatus.REFUSED, message)
    action = details.get("resolved_action") or details.get("task_action")
    if not _role(details) and action in GATE_ACTIONS:
        message = "stopped on request before its upgrade; run again to go on" if progress.stop_asked else message
        return _verdict(progress, at, name, HostStatus.SKIPPED, message)
    if action == REACH_ACTION:
        return _unreachable(progress, at, details)
    progress = _journal(progress, name, at, result.get("journal"))
    return _verdict(progress, at, name, _status(result.get("result")) or HostStatus.FAILED, message)


def _waits(progress: Progress, at: float, details: Mapping[str, Any]) -> Progress:
    """A host looks again at what is in its way for now: told once, however often it looks."""
    name, result = details.get("host"), details.get("res") or {}
    if not name:
        return progress
    words = [f"waits for VM {found.get('vm')}: {found.get('message')}" for found in result.get("blockers") or ()]
    told = {event.text for event in progress.happenings if event.host == name}
    return _told(progress, *(Happening(at, Kind.REMARK, text, name) for text in words if text not in told))


def _unreachable(progress: Progress, at: float, details: Mapping[str, Any]) -> Progress:
    name, result = details.get("host"), details.get("res") or {}
    if not name:
        return progress
    message = (
        f"{name} cannot be reached: {str(result.get('msg') or 'no answer').strip()}. Try 'ansible -m ping {name}' "
        "with the same inventory, and check its address, SSH key and host key"
    )
    return _verdict(progress, at, name, HostStatus.UNREACHABLE, message)


def _verdict(progress: Progress, at: float, name: str, status: HostStatus | None, error: str) -> Progress:
    """The first bad verdict about a host stays."""
    host = progress.host(name)
    if status is None or host.status is status or host.status in SETTLED:
        return progress
    told = Happening(at, Kind.HOST, status.value, name)
    return _told(_with_host(progress, replace(host, status=status, error=error)), told)


def _reported(progress: Progress, at: float, result: Mapping[str, Any]) -> Progress:
    """The report was written. What it says of a host counts, unless more is known already."""
    progress = replace(
        progress, report_json=str(result.get("report_json") or ""), report_html=str(result.get("report_html") or "")
    )
    for name, word in (result.get("results") or {}).items():
        status = _status(word)
        if status in (HostStatus.FAILED, HostStatus.FELL_BACK, HostStatus.ABORTED, HostStatus.UPGRADED):
            progress = _verdict(progress, at, name, status, "")
    return progress


def _finished(progress: Progress, details: Mapping[str, Any]) -> Progress:
    """Who ran to the end without a verdict had nothing to upgrade."""
    lost = {**(details.get("failures") or {}), **(details.get("dark") or {})}
    return replace(
        progress,
        hosts=tuple(
            replace(host, status=HostStatus.FAILED if host.name in lost else HostStatus.DONE)
            if host.status is HostStatus.WORKING
            else host
            for host in progress.hosts
        ),
    )


def _line(progress: Progress, data: Mapping[str, Any]) -> Progress:
    name, at = data.get("host"), float(data.get("at") or data.get("time") or 0.0)
    if not isinstance(name, str) or at < progress.host(name).heard_at:
        return progress
    if isinstance(data.get("journal"), Mapping):
        return _journal(progress, name, at, data["journal"])
    if isinstance(data.get("migration"), Mapping):
        return _migration(progress, name, data["migration"])
    remark = data.get("line")
    host = progress.host(name)
    # The journal has told already what a remark says about a VM.
    if not remark or at == host.heard_at or any(str(remark).startswith(f"{vm.name} ") for vm in host.vms):
        return progress
    return _told(_with_host(progress, replace(host, heard_at=at)), Happening(at, Kind.REMARK, str(remark), name))


def _migration(progress: Progress, name: str, migration: Mapping[str, Any]) -> Progress:
    """How far one VM is on its way; a line of its own for people comes beside it."""
    host, vm = progress.host(name), str(migration.get("vm") or "")
    known = next((move for move in host.moves if move.vm == vm), MoveProgress(vm))
    ram_left, disk_left = (int(migration.get(key) or 0) for key in ("ram_left_bytes", "disk_left_bytes"))
    move = replace(
        known,
        to=str(migration.get("to") or known.to),
        state=str(migration.get("state") or ""),
        percent=float(migration.get("percent") or 0.0),
        left_bytes=ram_left + disk_left,
        bytes_per_s=float(migration.get("bytes_per_s") or 0.0),
        round=int(migration.get("round") or 0),
    )
    others = tuple(other for other in host.moves if other.vm != vm)
    return _with_host(progress, replace(host, moves=(*others, move)))


def _journal(progress: Progress, name: str, at: float, journal: object) -> Progress:
    if not isinstance(journal, Mapping) or not journal.get("state"):
        return progress
    before = progress.host(name)
    vms = tuple(_vm(entry) for entry in journal.get("vms") or [])
    newest = max((max(vm.paused_at, vm.resumed_at) for vm in vms), default=0.0)
    after = replace(
        before,
        status=HostStatus.WORKING if before.status is HostStatus.WAITING else before.status,
        journal_state=str(journal["state"]),
        kernel=_pair(journal.get("kernel")),
        qemu=_pair(journal.get("qemu")),
        vms=vms,
        heard_at=max(at, before.heard_at),
        clock_ahead_s=_least(before.clock_ahead_s, at - newest if newest else None),
    )
    return _told(_with_host(progress, after), *_vm_happenings(before, after, at))


def _vm_happenings(before: HostProgress, after: HostProgress, at: float) -> list[Happening]:
    known = {vm.name: vm for vm in before.vms}
    told = []
    for vm in after.vms:
        old = known.get(vm.name, VmProgress(vm.name))
        if vm.paused_at and not old.paused_at:
            told.append(Happening(at, Kind.VM_PAUSED, "paused", after.name, vm.name))
        if vm.resumed_at and not old.resumed_at:
            told.append(Happening(at, Kind.VM_RESUMED, "resumed", after.name, vm.name, after.pause_s(vm, at)))
        if vm.state in VMS_IN_TROUBLE and old.state != vm.state:
            text = ": ".join(part for part in (vm.state.replace("_", " "), vm.error) if part)
            told.append(Happening(at, Kind.VM_FAILED, text, after.name, vm.name))
    return told


def _vm(entry: Mapping[str, Any]) -> VmProgress:
    return VmProgress(
        name=str(entry.get("name") or ""),
        state=str(entry.get("state") or "pending"),
        priority=int(entry.get("priority") or 0),
        ram_bytes=int(entry.get("ram_bytes") or 0),
        paused_at=float(entry.get("paused_at") or 0.0),
        resumed_at=float(entry.get("resumed_at") or 0.0),
        error=str(entry.get("error") or ""),
    )


def _pair(value: object) -> tuple[str, str]:
    known = value if isinstance(value, Mapping) else {}
    return str(known.get("from") or ""), str(known.get("to") or "")


def _least(first: float | None, second: float | None) -> float | None:
    known: Sequence[float] = [value for value in (first, second) if value is not None]
    return min(known, default=None)


def _role(details: Mapping[str, Any]) -> str:
    role = str(details.get("resolved_role") or "")
    return role.removeprefix(ROLE_PREFIX) if role.startswith(ROLE_PREFIX) else ""


def _status(word: object) -> HostStatus | None:
    try:
        return HostStatus(str(word))
    except ValueError:
        return None


def _moment(created: object) -> float:
    try:
        return datetime.fromisoformat(str(created)).timestamp()
    except ValueError:
        return 0.0
