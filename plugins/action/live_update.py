# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start a live update, follow it through the jump, and prove the jump. Documented in modules/live_update.py.

The host acts by itself; this plugin only watches. A lost connection is therefore progress, not a failure, and a host
that does not come back makes the task fail (not the host unreachable), so that rescue and always sections still run.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.utils.display import Display

from ansible_collections.holdfast.kvm.plugins.module_utils._core import last_words
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import pause_s
from ansible_collections.holdfast.kvm.plugins.module_utils._core.printable import one_line
from ansible_collections.holdfast.kvm.plugins.module_utils._core.request import EVERYTHING, ONLY_QEMU
from ansible_collections.holdfast.kvm.plugins.plugin_utils import _progress
from ansible_collections.holdfast.kvm.plugins.plugin_utils._absence import Patient, pauses_between_tries

display = Display()

AGENT = "/usr/local/sbin/holdfast-agent"
UPDATE_UNIT = "holdfast-live-update.service"
POOL_UNIT = "holdfast-pool.service"
RESTORE_UNIT = "holdfast-restore.service"
JOURNAL_PATH = "/var/lib/holdfast/journal.jsonl"

DEFAULT_TIMEOUT_S = 1800
DEFAULT_CONNECT_TIMEOUT_S = 10
DEFAULT_POLL_S = 2
# A host that takes long to answer is short of CPU, and its VMs wait for that CPU: looking takes a tenth of its time.
PAUSE_PER_LOOK = 9.0
LONGEST_POLL_S = 15.0
# Polls in a row that must find the unit at rest before it counts as dead: systemd may not have started it yet.
LOOKS_BEFORE_DEAD = 4

TERMINAL_STATES = ("restored", "aborted", "failed")

WHERE_TO_LOOK = (
    "The host acts by itself and needs no controller. Look at its console (serial or BMC), and at its journal "
    f"{JOURNAL_PATH} ('{AGENT} status') once it answers. 'holdfast recover' finishes or takes back what is in flight, "
    "and is safe at any time"
)

STATE_NEWS = {
    "staged": "new kernel loaded",
    "suspending": "suspending the VMs",
    "suspended": "all VMs suspended",
    "jumping": "jump",
    "arrived": "on the new kernel",
    "attached": "pool attached",
    "restoring": "restoring the VMs",
    "restored": "all VMs restored",
    "aborted": "aborted",
    "falling_back": "going back to the old kernel",
    "failed": "failed",
}
# VMs that lost what was in their RAM, or do not run.
FAILED_VM_STATES = ("failed", "lost", "restarted", "given_up", "shutting_down", "shut_down", "storing", "stored")


def probe(known_stamp: str) -> str:
    """The shell line that asks for everything the proof and the journal need, in one round trip.

    The agent is started only when the journal file is not the one of ``known_stamp``: while VMs are being suspended and
    restored, the host's CPUs have better things to do than to start an interpreter every two seconds.
    """
    return (
        'echo "boot_id=$(cat /proc/sys/kernel/random/boot_id)"; '
        'echo "kernel=$(uname -r)"; '
        'echo "cmdline=$(cat /proc/cmdline)"; '
        f"echo units=$(systemctl is-active {UPDATE_UNIT} {POOL_UNIT} {RESTORE_UNIT}); "
        f"stamp=$(stat -c %i-%s-%Y {JOURNAL_PATH} 2>&1); "
        'echo "stamp=$stamp"; '
        f'[ "$stamp" = {shlex.quote(known_stamp)} ] || {{ echo journal=; timeout 30 {AGENT} status --json; }}'
    )


def what_was_said(unit: str) -> str:
    """The shell line that prints what a unit of the host said in its last run."""
    run = f'"$(systemctl show --value --property=InvocationID {unit})"'
    return f"journalctl --sync; journalctl --quiet --output=cat _SYSTEMD_INVOCATION_ID={run}"


class NoAnswer(Exception):
    """The host did not answer, or not with a journal. The text says why."""


@dataclass(frozen=True)
class Sighting:
    """One answer of the host: who is running, and how far its journal got. ``took_s``: seconds until it was here."""

    boot_id: str
    kernel: str
    cmdline: str
    update_unit: str = ""
    pool_unit: str = ""
    restore_unit: str = ""
    stamp: str = ""
    journal: dict[str, Any] = field(default_factory=dict)
    took_s: float = 0.0


@dataclass(frozen=True)
class Start:
    """What the module returned: the identity of the live update that is followed."""

    generation: str
    boot_id: str
    kernel_from: str
    kernel_to: str
    only: str = EVERYTHING
    qemu_to: str = ""


@dataclass(frozen=True)
class Ending:
    """How following ended: the last sighting, and why it ended if not by a terminal journal."""

    seen: Sighting
    trouble: str = ""


def pause_after(took_s: float, poll_s: float) -> float:
    """Seconds to leave a host alone after a look that took ``took_s``: at least what the operator asked for."""
    return max(poll_s, min(PAUSE_PER_LOOK * took_s, LONGEST_POLL_S))


def read_probe(text: str, known: Sighting) -> Sighting:
    """Parse the answer to ``probe(known.stamp)``. Raises NoAnswer when it is cut short, as when a host goes down."""
    # Over SSH with privilege escalation there is a terminal in between, which ends its lines in its own way.
    head, changed, journal_text = text.replace("\r\n", "\n").partition("journal=\n")
    lines = dict(line.split("=", 1) for line in head.splitlines() if "=" in line)
    if not lines.get("boot_id") or not lines.get("kernel") or (not changed and lines.get("stamp") != known.stamp):
        raise NoAnswer("the answer was cut short")
    update_unit, pool_unit, restore_unit = [*lines.get("units", "").split(), "", "", ""][:3]
    return Sighting(
        boot_id=lines["boot_id"],
        kernel=lines["kernel"],
        cmdline=lines.get("cmdline", ""),
        update_unit=update_unit,
        pool_unit=pool_unit,
        restore_unit=restore_unit,
        stamp=lines.get("stamp", ""),
        journal=read_journal(journal_text) if changed else known.journal,
    )


def read_journal(text: str) -> dict[str, Any]:
    """The journal as the agent prints it. Raises NoAnswer when it printed something else."""
    try:
        journal = json.loads(text)
    except ValueError as error:
        raise NoAnswer(f"{AGENT} status gave no journal: {text.strip()[:200] or error}") from error
    if not isinstance(journal, dict):
        raise NoAnswer(f"{AGENT} status gave no journal: {text.strip()[:200]}")
    return journal


def aim(start: Start) -> str:
    """What it is to lead to, for a person."""
    if start.only == ONLY_QEMU:
        return f"every VM to QEMU {start.qemu_to}"
    return f"kernel {start.kernel_from} -> {start.kernel_to}"


def prove(start: Start, seen: Sighting) -> dict[str, bool]:
    """Three independent proofs that this very live update jumped into the wanted kernel; or that it renewed all VMs."""
    if start.only == ONLY_QEMU:
        return {
            "boot_id_kept": seen.boot_id == start.boot_id,
            "every_vm_renewed": all(vm.get("qemu") == start.qemu_to for vm in seen.journal.get("vms", [])),
        }
    return {
        "boot_id_changed": seen.boot_id != start.boot_id,
        "kernel_matches": seen.kernel == start.kernel_to,
        "generation_on_command_line": f"holdfast.generation={start.generation}" in seen.cmdline.split(),
    }


def judge(start: Start, seen: Sighting) -> str:
    """The result of a live update whose journal is terminal: upgraded, fell_back, aborted or failed."""
    state, proof = seen.journal.get("state"), prove(start, seen)
    if state == "failed" or any(is_failed(vm) for vm in seen.journal.get("vms", [])):
        return "failed"
    if state == "restored" and all(proof.values()) and not fell_back(seen):
        return "upgraded"
    if start.only == ONLY_QEMU:
        return "aborted" if state == "aborted" else "failed"
    # The journal says so itself; another boot on the old kernel with every VM back is the way back in any case.
    back_on_old = not proof["kernel_matches"] and seen.kernel == start.kernel_from
    if proof["boot_id_changed"] and (back_on_old or fell_back(seen)):
        return "fell_back"
    return "aborted" if state == "aborted" and not proof["boot_id_changed"] else "failed"


def fell_back(seen: Sighting) -> bool:
    """Whether the host went back to the old kernel, by its journal."""
    return seen.journal.get("fell_back") is True


def explain(start: Start, seen: Sighting, result: str) -> str:
    """One sentence for a person about a terminal journal."""
    reason = seen.journal.get("reason") or "the journal gives no reason"
    if result == "upgraded" and start.only == ONLY_QEMU:
        return f"live update {start.generation} done: every VM runs on QEMU {start.qemu_to}"
    if result == "aborted" and start.only == ONLY_QEMU:
        return f"live update {start.generation} was ended, all VMs run, some on the QEMU they had: {reason}"
    if result == "upgraded":
        return f"live update {start.generation} done: kernel {start.kernel_from} -> {seen.kernel}"
    if result == "aborted":
        return f"live update {start.generation} was aborted before the jump, the VMs run on the old kernel: {reason}"
    if result == "fell_back":
        return f"live update {start.generation} fell back to kernel {seen.kernel}: {reason}"
    lost = [vm for vm in seen.journal.get("vms", []) if is_failed(vm)]
    missing = [name for name, proven in prove(start, seen).items() if not proven]
    if missing and not lost and seen.journal.get("state") == "restored":
        return (
            f"live update {start.generation} says restored, but that is not proven ({', '.join(missing)} is false: "
            f"boot id {seen.boot_id}, kernel {seen.kernel}, wanted {start.kernel_to}). Look at the host before going on"
        )
    vms = [f"{vm.get('name')}: {vm.get('error') or vm.get('state')}" for vm in lost]
    return f"live update {start.generation} failed: {'; '.join([reason, *vms])}"


def is_failed(vm: dict[str, Any]) -> bool:
    """Whether the VM did not carry on: it does not run, or not with the RAM it had."""
    return vm.get("state") in FAILED_VM_STATES


def our_journal(start: Start, seen: Sighting) -> dict[str, Any]:
    """The journal of this generation; empty while the host still shows the one before."""
    return seen.journal if seen.journal.get("generation") == start.generation else {}


def state_of(start: Start, seen: Sighting) -> str:
    return str(our_journal(start, seen).get("state", "none"))


def is_leaving(start: Start, seen: Sighting) -> bool:
    """Whether the agent's last deed in this kernel is to leave it: its unit may look then as if it had ended."""
    state = state_of(start, seen)
    if state == "falling_back":
        return bool(seen.boot_id == seen.journal.get("boot_id", {}).get("to"))
    return state == "jumping" and seen.boot_id == start.boot_id


def is_recovering(seen: Sighting) -> bool:
    """Whether VMs are being brought back, in whatever boot: systemd begins that when the live update fails, too."""
    return seen.restore_unit in ("activating", "deactivating")


def is_over(start: Start, seen: Sighting) -> bool:
    """Whether the journal has come to its end; one that failed may still come to a better one."""
    state = state_of(start, seen)
    return state in TERMINAL_STATES and not (state == "failed" and is_recovering(seen))


def is_dead(start: Start, seen: Sighting) -> bool:
    """Whether nothing on the host carries this live update on any more: then waiting is of no use."""
    if is_leaving(start, seen) or is_recovering(seen):
        return False
    if seen.boot_id == start.boot_id:
        return seen.update_unit in ("inactive", "failed")
    return "failed" in (seen.pool_unit, seen.restore_unit)


def untouched(outcome: dict[str, Any]) -> str:
    """The result of a module run that started nothing: a plan, or a refusal, leaves the host skipped."""
    refused = outcome.get("refused") or outcome.get("lock_held")
    return "failed" if outcome.get("failed") and not refused else "skipped"


def news(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What a person wants to hear about the change from one journal to the next, a line each."""
    known = {vm.get("name"): vm.get("state") for vm in before.get("vms", [])}
    for vm in now.get("vms", []):
        if vm.get("state") != known.get(vm.get("name"), "pending"):
            yield vm_news(vm)
    state = now.get("state", "")
    if state != before.get("state"):
        reason = f": {now['reason']}" if now.get("reason") else ""
        yield STATE_NEWS.get(state, state) + reason
    told = len(before.get("warnings", []))
    for warning in now.get("warnings", [])[told:]:
        yield f"warning: {warning}"


def vm_news(vm: dict[str, Any]) -> str:
    line = f"{vm.get('name')} {vm.get('state')}"
    seconds = pause_s(vm)
    if vm.get("state") == "resumed" and seconds is not None:
        return f"{line} after {seconds:.1f} s"
    return f"{line}: {vm['error']}" if vm.get("error") else line


class ActionModule(Patient):
    """Runs the module of the same name, then watches the host until its journal is closed."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        self._supports_check_mode = True
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._host = (task_vars or {}).get("inventory_hostname", "host")
        if self._connection.transport == "local":
            return {**result, "failed": True, "changed": False, "msg": self._refuse_local()}
        try:
            started = self._start(task_vars or {})
        except AnsibleConnectionFailure as error:
            return {**result, "failed": True, "result": "failed", "msg": self._lost_at_start(error)}
        nothing_begins = self._task.check_mode or self._wants("rehearse_only")
        if started.get("failed") or nothing_begins or not started.get("generation"):
            return {**result, "result": untouched(started), **started}
        return {**result, **self._watch(started)}

    def _refuse_local(self) -> str:
        return (
            f"{self._host} has connection: local. A live update jumps into another kernel and would take this "
            "controller down with it. Reach the host through SSH from another machine"
        )

    def _lost_at_start(self, error: Exception) -> str:
        return (
            f"Lost {self._host} while the live update was being started: {error}. If it was started, the host finishes "
            f"it by itself. {WHERE_TO_LOOK}"
        )

    def _start(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Run the module: judge everything once more, rehearse if asked to, write the request, start the unit."""
        if (self._wants("rehearse") or self._wants("rehearse_only")) and not self._task.check_mode:
            self._say("tries the new kernel out in a throw-away VM")
        started: dict[str, Any] = self._execute_module(
            module_name="holdfast.kvm.live_update", module_args=dict(self._task.args), task_vars=task_vars
        )
        return started

    def _wants(self, option: str) -> bool:
        return bool(boolean(self._task.args.get(option, False), strict=False))

    def _watch(self, started: dict[str, Any]) -> dict[str, Any]:
        """Follow the live update to its end and turn that end into the task's result."""
        kernel, only = started["kernel"], self._task.args.get("only") or EVERYTHING
        start = Start(started["generation"], started["boot_id"], kernel["from"], kernel["to"], only, started["qemu_to"])
        self._say(f"live update {start.generation} started, {aim(start)}")
        options = self._expect_absence(int(self._seconds("connect_timeout_s", DEFAULT_CONNECT_TIMEOUT_S)))
        try:
            ending = self._follow(start)
        finally:
            self._set_connection_options(options)
        return {**started, "changed": True, **self._conclude(start, ending)}

    def _conclude(self, start: Start, ending: Ending) -> dict[str, Any]:
        seen = ending.seen
        result = "failed" if ending.trouble else judge(start, seen)
        message = ending.trouble or explain(start, seen, result)
        self._say(message)
        return {
            "failed": result != "upgraded",
            "result": result,
            "msg": message,
            "journal": our_journal(start, seen),
            "proof": prove(start, seen),
            "boot_id": {"from": start.boot_id, "to": seen.boot_id},
            "kernel": {"from": start.kernel_from, "to": start.kernel_to, "running": seen.kernel},
        }

    def _follow(self, start: Start) -> Ending:
        """Watch until the journal is terminal, the host's units gave up, or the time is over."""
        deadline = time.monotonic() + self._timeout_s()
        seen = Sighting(boot_id=start.boot_id, kernel=start.kernel_from, cmdline="")
        dead_looks = 0
        while time.monotonic() < deadline:
            try:
                now = self._look_until(deadline, seen)
            except NoAnswer as error:
                return Ending(seen, self._gone(start, seen, error))
            self._publish(our_journal(start, seen), our_journal(start, now))
            seen = now
            if is_over(start, seen):
                return Ending(seen)
            dead_looks = dead_looks + 1 if is_dead(start, seen) else 0
            if dead_looks >= LOOKS_BEFORE_DEAD:
                return Ending(seen, self._dead(start, seen))
            time.sleep(pause_after(seen.took_s, self._seconds("poll_s", DEFAULT_POLL_S)))
        return Ending(seen, self._unfinished(start, seen))

    def _look_until(self, deadline: float, known: Sighting) -> Sighting:
        """Look until the host answers. Raises the last NoAnswer once the deadline is over."""
        lost_at = time.monotonic()
        for attempt, pause in enumerate(pauses_between_tries()):
            try:
                seen = self._look(known)
            except NoAnswer as error:
                if attempt == 0:
                    self._say("away")
                display.vv(f"{self._host}: no answer yet: {error}", host=self._host)
                if time.monotonic() + pause >= deadline:
                    raise
                self._reset_connection()
                time.sleep(pause)
                continue
            if attempt:
                self._say(f"answers again after {time.monotonic() - lost_at:.1f} s, kernel {seen.kernel}")
            return seen
        raise AssertionError("pauses_between_tries never ends")

    def _look(self, known: Sighting) -> Sighting:
        """Ask the host once. Raises NoAnswer for every way in which a host that goes down or comes up may fail."""
        asked_at = time.monotonic()
        try:
            answer = self._low_level_execute_command(probe(known.stamp), sudoable=True)
        except AnsibleError as error:
            raise NoAnswer(str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)) from error
        if answer["rc"] != 0:
            raise NoAnswer(answer["stderr"].strip() or answer["stdout"].strip() or f"status code {answer['rc']}")
        return replace(read_probe(answer["stdout"], known), took_s=time.monotonic() - asked_at)

    def _publish(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """Tell the screen and the progress file what changed."""
        if not now or now == before:
            return
        self._write_progress({"journal": now})
        for line in news(before, now):
            self._say(line)

    def _say(self, line: str) -> None:
        display.display(f"{self._host}: {one_line(line)}")
        self._write_progress({"line": line})

    def _write_progress(self, entry: dict[str, Any]) -> None:
        _progress.write(self._host, entry)

    def _timeout_s(self) -> float:
        return self._seconds("timeout_s", DEFAULT_TIMEOUT_S)

    def _gone(self, start: Start, seen: Sighting, error: Exception) -> str:
        return (
            f"{self._host} gave no usable answer within {self._timeout_s():.0f} s of live update {start.generation}; "
            f"its journal was last seen as '{state_of(start, seen)}' ({error}). {WHERE_TO_LOOK}"
        )

    def _unfinished(self, start: Start, seen: Sighting) -> str:
        return (
            f"{self._host} answers, but live update {start.generation} did not end within {self._timeout_s():.0f} s; "
            f"its journal says '{state_of(start, seen)}'. {WHERE_TO_LOOK}"
        )

    def _dead(self, start: Start, seen: Sighting) -> str:
        after_jump = POOL_UNIT if seen.pool_unit == "failed" else RESTORE_UNIT
        unit = UPDATE_UNIT if seen.boot_id == start.boot_id else after_jump
        said = self._last_words(unit) or f"'journalctl -u {unit}' on the host says why"
        if unit == UPDATE_UNIT and not our_journal(start, seen):
            return f"{self._host} refused live update {start.generation}, and no VM was touched: {said}"
        return (
            f"{unit} on {self._host} ended without closing live update {start.generation} (journal: "
            f"'{state_of(start, seen)}'): {said}. {WHERE_TO_LOOK}"
        )

    def _last_words(self, unit: str) -> str:
        """The error that the agent printed in a unit's last run; empty when it cannot be had."""
        try:
            answer = self._low_level_execute_command(what_was_said(unit), sudoable=True)
        except AnsibleError:
            return ""
        return last_words.of(answer["stdout"])
