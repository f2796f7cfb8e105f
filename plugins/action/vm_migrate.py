# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of a live migration: it watches, and tells how far the migration is.

The module runs on the host by itself, so a controller that loses its connection loses the sight of it and nothing else.
"""

from __future__ import annotations

import json
import shlex
import time
from contextlib import suppress
from typing import Any

from ansible.errors import AnsibleConnectionFailure

from ansible_collections.holdfast.kvm.plugins.plugin_utils._absence import Patient, pauses_between_tries
from ansible_collections.holdfast.kvm.plugins.plugin_utils._progress import tell

MODULE = "holdfast.kvm.vm_migrate"
PROGRESS_DIR = "/run/holdfast/migrations"
DEFAULT_DEADLINE_S = 1800
# What the module needs around its migrations: both hosts are asked, images are made, tries are spaced.
MODULE_SPARE_S = 300
POLL_S = 2.0
# A look takes a tenth of a slow host's time at most.
PAUSE_PER_LOOK, LONGEST_POLL_S = 9.0, 15.0
# How much further a migration must be, in percent, for another line on a screen that keeps all of them.
WORTH_A_LINE_PERCENT = 10.0


def probe(results_file: str) -> str:
    """The shell line that asks for the end of the module, and for the progress of all migrations here."""
    return f"cat {shlex.quote(results_file)}; echo; echo migrations=; cat {PROGRESS_DIR}/*.json 2>/dev/null; true"


def read_probe(text: str, vm: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The module's result, empty while it works, and the progress of ``vm``, empty when there is none."""
    head, _, tail = text.replace("\r\n", "\n").partition("migrations=\n")
    result = _object(head)
    lines = (_object(part) for part in tail.replace("}{", "}\n{").splitlines())
    progress = next((line for line in lines if line.get("vm") == vm), {})
    return ({} if "started" in result else result), progress


def _object(text: str) -> dict[str, Any]:
    """A JSON object; empty for one that is being written just now."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def news(before: dict[str, Any], now: dict[str, Any]) -> str:
    """A line for a person about the change, empty when it is not worth one."""
    same = (now.get("state"), now.get("try")) == (before.get("state"), before.get("try"))
    if same and now.get("percent", 0.0) - before.get("percent", 0.0) < WORTH_A_LINE_PERCENT:
        return ""
    what = "its disks are being copied" if now.get("state") == "copying" else f"memory, round {now.get('round', 1)}"
    return f"{now.get('vm')} on its way to {now.get('to')}: {now.get('percent', 0.0):.0f} %, {what}"


class ActionModule(Patient):
    """Runs the module of the same name in the background of the host, and watches it."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        self._supports_check_mode = True
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._host = (task_vars or {}).get("inventory_hostname", "host")
        self._vm = str(self._task.args.get("name") or "")
        if self._task.check_mode:
            return {**result, **self._module(task_vars)}
        tell(self._host, line=f"{self._vm} leaves for {self._task.args.get('destination')}")
        started = self._begin(task_vars)
        if not started.get("results_file"):
            return {**result, **started}
        ended = self._watch(str(started["results_file"]))
        self._forget(str(started["results_file"]))
        tell(self._host, line=str(ended.get("msg") or ""), migration={"vm": self._vm, "state": _end_of(ended)})
        return {**result, **ended}

    def _begin(self, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """As ``async`` would, for this one call."""
        before, self._task.async_val = self._task.async_val, int(self._limit_s())
        try:
            return self._module(task_vars, wrap_async=True)
        finally:
            self._task.async_val = before

    def _module(self, task_vars: dict[str, Any] | None, **how: bool) -> dict[str, Any]:
        done: dict[str, Any] = self._execute_module(
            module_name=MODULE, module_args=dict(self._task.args), task_vars=task_vars, **how
        )
        return done

    def _limit_s(self) -> float:
        return 2 * self._seconds("deadline_s", DEFAULT_DEADLINE_S) + MODULE_SPARE_S

    def _watch(self, results_file: str) -> dict[str, Any]:
        """Look until the module has ended; the host may be out of sight for a while."""
        deadline = time.monotonic() + self._limit_s()
        seen: dict[str, Any] = {}
        pauses = pauses_between_tries()
        while time.monotonic() < deadline:
            begun = time.monotonic()
            try:
                answer = self._low_level_execute_command(probe(results_file), sudoable=True)
            except AnsibleConnectionFailure:
                self._reset_connection()
                time.sleep(next(pauses))
                continue
            ended, now = read_probe(answer["stdout"], self._vm)
            if ended:
                return ended
            self._publish(seen, now)
            seen = now or seen
            time.sleep(max(POLL_S, min(PAUSE_PER_LOOK * (time.monotonic() - begun), LONGEST_POLL_S)))
        return {
            "failed": True,
            "whereabouts": "unproven",
            "msg": f"the end of the migration of {self._vm} was not seen within {self._limit_s():.0f} s. It may go on: "
            "look at both hosts (virsh list --all) before anything else is done to the VM",
        }

    def _publish(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        if now and now != before:
            tell(self._host, line=news(before, now), migration=now)

    def _forget(self, results_file: str) -> None:
        with suppress(AnsibleConnectionFailure):
            self._low_level_execute_command(f"rm -f {shlex.quote(results_file)}", sudoable=True)


def _end_of(ended: dict[str, Any]) -> str:
    if ended.get("failed"):
        return "stays" if ended.get("whereabouts") == "source" else "failed"
    return "moved"
