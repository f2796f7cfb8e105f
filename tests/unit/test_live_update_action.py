# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The live_update action survives a lost connection and believes only what is proven."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleConnectionFailure

from ansible_collections.holdfast.kvm.plugins.action import live_update

GENERATION = "g-20261121T020000-ab12cd"
OLD, NEW = "6.12.107+deb13-amd64", "7.2.12+deb13-amd64"
STARTED = {
    "changed": True,
    "generation": GENERATION,
    "boot_id": "boot-1",
    "kernel": {"from": OLD, "to": NEW},
    "qemu_to": "11.1.3",
    "vms": [{"name": "db1"}],
}
UNIT = "holdfast-live-update.service"
LOST = AnsibleConnectionFailure("Failed to connect to the host via ssh: Connection timed out")


class Clock:
    """Time that passes only when somebody sleeps; each look at it costs a tenth of a second."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 0.1
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeConnection:
    """Has the options of the ssh connection plugin and counts resets."""

    transport = "ssh"

    def __init__(self) -> None:
        self.options: dict[str, Any] = {"timeout": 10, "reconnection_retries": 0, "ssh_extra_args": "-o Port=22"}
        self.history: list[tuple[str, Any]] = []
        self.resets = 0
        self._shell = MagicMock(tmpdir="/tmp")

    def get_option(self, name: str) -> Any:
        return self.options[name]

    def set_option(self, name: str, value: Any) -> None:
        self.options[name] = value
        self.history.append((name, value))

    def reset(self) -> None:
        self.resets += 1


def journal(state: str, vm: str = "pending", reason: str = "", generation: str = GENERATION) -> dict[str, Any]:
    error = "state file denied" if vm == "failed" else ""
    times = {"paused_at": 10.0, "resumed_at": 51.2} if vm == "resumed" else {}
    return {
        "generation": generation,
        "state": state,
        "reason": reason,
        "vms": [{"name": "db1", "state": vm, "error": error, **times}],
        "warnings": [],
    }


def answer(
    state: dict[str, Any] | None,
    boot: str = "boot-1",
    kernel: str = OLD,
    generation: str = "",
    units: str = "activating active inactive",
    stamp: str | None = None,
) -> dict[str, Any]:
    """One recorded answer to the probe; without a journal when it has not changed."""
    token = f" holdfast.generation={generation}" if generation else ""
    text = f"boot_id={boot}\nkernel={kernel}\ncmdline=root=/dev/vda memmap=1G!4G{token}\nunits={units}\n"
    if state is None:
        return {"rc": 0, "stdout": text + f"stamp={stamp}\n", "stderr": ""}
    written = json.dumps(state, indent=1)
    stamp = stamp or f"7-{len(written)}-{hash(written)}"
    return {"rc": 0, "stdout": text + f"stamp={stamp}\njournal=\n{written}\n", "stderr": ""}


def after_jump(state: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return answer(state, **{"boot": "boot-2", "kernel": NEW, "generation": GENERATION, **changes})


class Stage:
    """An action with a fake connection that plays recorded answers, the last one for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[Any], **args: Any) -> None:
        self.connection = FakeConnection()
        self.commands: list[str] = []
        self.lines: list[str] = []
        self.answers = answers
        self.started: Any = STARTED
        self.said = ""
        self.task = MagicMock(args=args, check_mode=False, async_val=0)
        screen = MagicMock(display=self.lines.append)
        monkeypatch.setattr(live_update, "time", Clock())
        monkeypatch.setattr(live_update, "display", screen)

    def run(self) -> dict[str, Any]:
        action = live_update.ActionModule(
            self.task, self.connection, MagicMock(), MagicMock(), MagicMock(), MagicMock()
        )
        action._execute_module = self._module
        action._low_level_execute_command = self._command
        result: dict[str, Any] = action.run(task_vars={"inventory_hostname": "hv1"})
        return result

    def _module(self, **call: Any) -> dict[str, Any]:
        if isinstance(self.started, Exception):
            raise self.started
        return dict(self.started)

    def _command(self, command: str, sudoable: bool) -> dict[str, Any]:
        self.commands.append(command)
        if command == live_update.what_was_said(UNIT):
            return {"rc": 0, "stdout": self.said, "stderr": ""}
        now = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(now, Exception):
            raise now
        return dict(now)


JOURNEY = [
    answer({"state": "none"}, units="inactive active inactive"),
    answer(journal("suspending")),
    answer(journal("suspended", "suspended")),
    LOST,
    LOST,
    LOST,
    after_jump(journal("restoring", "suspended"), units="inactive active activating"),
    after_jump(journal("restored", "resumed"), units="inactive active active"),
]


def test_a_host_that_is_slow_to_answer_is_asked_less_often() -> None:
    assert live_update.pause_after(0.03, poll_s=2) == 2
    assert live_update.pause_after(0.8, poll_s=2) == pytest.approx(7.2)
    assert live_update.pause_after(30.0, poll_s=2) == 15
    assert live_update.pause_after(30.0, poll_s=60) == 60


def test_follows_a_host_through_the_jump_and_proves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, list(JOURNEY))
    result = stage.run()
    assert result["result"] == "upgraded"
    assert result["changed"] is True
    assert result["failed"] is False
    assert result["proof"] == {"boot_id_changed": True, "kernel_matches": True, "generation_on_command_line": True}
    assert result["boot_id"] == {"from": "boot-1", "to": "boot-2"}
    assert result["kernel"] == {"from": OLD, "to": NEW, "running": NEW}
    assert result["journal"]["state"] == "restored"


def test_tells_each_step_once_and_turns_absence_into_news(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, list(JOURNEY))
    stage.run()
    told = [line.removeprefix("hv1: ") for line in stage.lines]
    assert told[1:4] == ["suspending the VMs", "db1 suspended", "all VMs suspended"]
    assert told[4] == "away"
    assert told[5].startswith("answers again after")
    assert told[6:9] == ["restoring the VMs", "db1 resumed after 41.2 s", "all VMs restored"]
    assert len(told) == 10


def test_writes_each_changed_journal_to_the_progress_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    path = tmp_path / "progress.jsonl"
    monkeypatch.setenv("HOLDFAST_PROGRESS_FILE", str(path))
    Stage(monkeypatch, list(JOURNEY)).run()
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert {entry["host"] for entry in entries} == {"hv1"}
    states = [entry["journal"]["state"] for entry in entries if "journal" in entry]
    assert states == ["suspending", "suspended", "restoring", "restored"]


def test_an_unwritable_progress_file_does_not_stop_the_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_PROGRESS_FILE", "/nonexistent/progress.jsonl")
    assert Stage(monkeypatch, list(JOURNEY)).run()["result"] == "upgraded"


def test_does_not_start_the_agent_for_a_journal_it_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [answer(journal("suspending"), stamp="7-100-5"), answer(None, stamp="7-100-5"), *JOURNEY[2:]]
    stage = Stage(monkeypatch, answers)
    assert stage.run()["result"] == "upgraded"
    assert "[ \"$stamp\" = '' ]" in stage.commands[0]
    assert '[ "$stamp" = 7-100-5 ]' in stage.commands[1]


def test_connection_gets_keepalives_for_the_watch_and_its_own_options_back(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, list(JOURNEY), connect_timeout_s=7)
    before = dict(stage.connection.options)
    stage.run()
    assert ("timeout", 7) in stage.connection.history
    assert (
        "ssh_extra_args",
        "-o Port=22 -o ServerAliveInterval=3 -o ServerAliveCountMax=3",
    ) in stage.connection.history
    assert stage.connection.options == before
    assert stage.connection.resets == 5


def test_a_host_that_never_returns_fails_and_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, [*JOURNEY[:3], LOST], timeout_s=60)
    result = stage.run()
    assert result["failed"] is True
    assert "unreachable" not in result
    assert result["result"] == "failed"
    for part in ("hv1", "60 s", GENERATION, "'suspended'", "acts by itself", "console", "journal.jsonl", "is safe"):
        assert part in result["msg"]
    assert result["journal"]["state"] == "suspended"


def test_an_aborted_live_update_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = answer(journal("aborted", "resumed", reason="kexec -s refused the kernel"))
    result = Stage(monkeypatch, [answer(journal("suspending")), ending]).run()
    assert result["failed"] is True
    assert result["result"] == "aborted"
    assert "kexec -s refused the kernel" in result["msg"]


def test_another_boot_on_the_old_kernel_fell_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = after_jump(journal("restored", "resumed", reason="new kernel panicked"), kernel=OLD)
    result = Stage(monkeypatch, [answer(journal("suspended")), LOST, ending]).run()
    assert (result["failed"], result["result"]) == (True, "fell_back")
    assert "new kernel panicked" in result["msg"]


def test_a_host_that_went_back_says_so_in_its_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it was upgraded to the kernel that ran already, so that the kernel proves nothing."""
    state = {**journal("restored", "resumed", reason="there is no /dev/kvm"), "fell_back": True}
    result = Stage(monkeypatch, [answer(journal("suspended")), LOST, after_jump(state)]).run()
    assert (result["failed"], result["result"]) == (True, "fell_back")
    assert "there is no /dev/kvm" in result["msg"]


@pytest.mark.parametrize("vm", ["lost", "restarted", "given_up"])
def test_a_vm_that_lost_its_memory_is_a_failure(monkeypatch: pytest.MonkeyPatch, vm: str) -> None:
    state = {**journal("restored", vm), "fell_back": True}
    result = Stage(monkeypatch, [answer(journal("suspended")), LOST, after_jump(state, kernel=OLD)]).run()
    assert result["result"] == "failed"
    assert f"db1: {vm}" in result["msg"]


def test_a_host_on_its_way_back_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    leaving = {**journal("falling_back", "suspended"), "boot_id": {"from": "boot-1", "to": "boot-2"}}
    back = {**journal("restored", "resumed", reason="no VM came back"), "fell_back": True}
    failed_unit = after_jump(leaving, units="inactive active failed")
    answers = [*[failed_unit] * (live_update.LOOKS_BEFORE_DEAD + 1), LOST, after_jump(back, boot="boot-3", kernel=OLD)]
    stage = Stage(monkeypatch, answers)
    assert stage.run()["result"] == "fell_back"
    assert "hv1: going back to the old kernel" in stage.lines


@pytest.mark.parametrize(
    ("ending", "false_proof"),
    [
        (after_jump(journal("restored", "resumed"), boot="boot-1"), "boot_id_changed"),
        (after_jump(journal("restored", "resumed"), kernel="7.3.4+deb13-amd64"), "kernel_matches"),
        (
            after_jump(journal("restored", "resumed"), generation="g-20200101T000000-000000"),
            "generation_on_command_line",
        ),
        (after_jump(journal("restored", "resumed"), generation=""), "generation_on_command_line"),
    ],
)
def test_a_restored_journal_without_proof_of_the_jump_fails(
    monkeypatch: pytest.MonkeyPatch, ending: dict[str, Any], false_proof: str
) -> None:
    result = Stage(monkeypatch, [answer(journal("suspended")), ending]).run()
    assert (result["failed"], result["result"]) == (True, "failed")
    assert [name for name, proven in result["proof"].items() if not proven] == [false_proof]
    assert false_proof in result["msg"]


def test_a_cold_boot_of_the_old_kernel_that_lost_the_vms_is_no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = answer(journal("failed", "lost", reason="the contents of the pool are gone"), boot="boot-3")
    result = Stage(monkeypatch, [answer(journal("jumping", "suspended")), LOST, ending]).run()
    assert (result["failed"], result["result"]) == (True, "failed")
    assert "the contents of the pool are gone" in result["msg"]


def test_a_failed_vm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Stage(monkeypatch, [after_jump(journal("failed", "failed", reason="1 of 1 VMs not restored"))]).run()
    assert (result["failed"], result["result"]) == (True, "failed")
    assert "1 of 1 VMs not restored; db1: state file denied" in result["msg"]


@pytest.mark.parametrize(
    ("dead", "unit"),
    [
        (answer({"state": "none"}, units="failed active inactive"), "holdfast-live-update.service"),
        (answer(journal("suspended", "suspended"), units="failed active inactive"), "holdfast-live-update.service"),
        (after_jump(journal("attached", "suspended"), units="inactive active failed"), "holdfast-restore.service"),
        (after_jump(journal("arrived", "suspended"), units="inactive failed inactive"), "holdfast-pool.service"),
    ],
)
def test_units_that_gave_up_end_the_wait_early(monkeypatch: pytest.MonkeyPatch, dead: Any, unit: str) -> None:
    stage = Stage(monkeypatch, [dead])
    result = stage.run()
    assert (result["failed"], result["result"]) == (True, "failed")
    assert f"journalctl -u {unit}" in result["msg"]
    assert len(stage.commands) == live_update.LOOKS_BEFORE_DEAD + 1


def test_a_rehearsal_alone_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, [LOST], rehearse_only=True)
    stage.started = {**STARTED, "changed": False, "rehearsal_s": 21.4}
    result = stage.run()
    assert (result["changed"], result["rehearsal_s"], result["result"]) == (False, 21.4, "skipped")
    assert stage.commands == []
    assert stage.lines == ["hv1: tries the new kernel out in a throw-away VM"]


def test_whatever_the_agent_refuses_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, [answer({"state": "none"}, units="failed active inactive")])
    stage.said = "holdfast: VM web9 runs, which the plan does not know. Plan again\nno generation is in flight\n"
    told = f"hv1 refused live update {GENERATION}, and no VM was touched: VM web9 runs, which the plan does not know."
    assert stage.run()["msg"].startswith(told)


def test_an_agent_that_ended_in_the_middle_is_told_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, [answer(journal("suspended", "suspended"), units="failed active inactive")])
    stage.said = "holdfast: the first error\nholdfast: no room on /var\n"
    message = stage.run()["msg"]
    assert "'suspended'): no room on /var. The host acts by itself" in message
    assert "no VM was touched" not in message


@pytest.mark.parametrize("at_first", [journal("suspending"), journal("failed", "suspended", reason="no room")])
def test_a_host_that_brings_its_vms_back_by_itself_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, at_first: dict[str, Any]
) -> None:
    """The agent was killed, and once more while it took VMs back; or some VM did not come back at the first try."""
    working = answer(at_first, units="failed active activating")
    over = answer(journal("aborted", "resumed", reason="the agent was ended"), units="failed active inactive")
    stage = Stage(monkeypatch, [*[working] * (live_update.LOOKS_BEFORE_DEAD + 2), over])
    assert stage.run()["result"] == "aborted"


def test_an_older_closed_journal_is_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    older = answer(journal("restored", "resumed", generation="g-20260101T000000-000000"))
    stage = Stage(monkeypatch, [older], timeout_s=30)
    result = stage.run()
    assert result["result"] == "failed"
    assert result["journal"] == {}
    assert "did not end within 30 s" in result["msg"]


def test_a_garbled_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = {"rc": 0, "stdout": "boot_id=boot-1\nkern", "stderr": ""}
    broken = {"rc": 0, "stdout": answer(journal("suspended"))["stdout"][:-20], "stderr": ""}
    refused = {"rc": 1, "stdout": "", "stderr": "System is going down."}
    assert Stage(monkeypatch, [cut, broken, refused, *JOURNEY[3:]]).run()["result"] == "upgraded"


def test_a_local_connection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, list(JOURNEY))
    stage.connection.transport = "local"
    result = stage.run()
    assert result["failed"] is True
    assert "connection: local" in result["msg"]
    assert stage.commands == []


@pytest.mark.parametrize(
    "module_result",
    [
        {"failed": True, "refused": True, "blockers": [{"code": "x"}], "msg": "refused"},
        {"failed": True, "lock_held": True, "msg": "another live update runs"},
        {"changed": False, "result": "skipped", "msg": "already up to date"},
    ],
)
def test_what_the_module_says_without_starting_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, module_result: Any
) -> None:
    stage = Stage(monkeypatch, list(JOURNEY))
    stage.started = module_result
    result = stage.run()
    assert {key: result[key] for key in module_result} == module_result
    assert result["result"] == "skipped"
    assert stage.commands == []


def test_check_mode_returns_the_plan_and_watches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, list(JOURNEY))
    stage.task.check_mode = True
    result = stage.run()
    assert (result["kernel"], result["result"]) == (STARTED["kernel"], "skipped")
    assert stage.commands == []


def test_a_connection_lost_while_starting_fails_instead_of_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, list(JOURNEY))
    stage.started = LOST
    result = stage.run()
    assert result["failed"] is True
    assert "unreachable" not in result
    assert "is safe" in result["msg"]


def test_waits_between_tries_grow_and_stay_bounded() -> None:
    pauses = live_update.pauses_between_tries()
    waited = [int(next(pauses)) for _ in range(6)]
    assert waited == [1, 2, 4, 8, 8, 8]


def renewed(state: str, *qemus: str, reason: str = "") -> dict[str, Any]:
    vms = [{"name": f"vm{number}", "state": "resumed", "qemu": qemu} for number, qemu in enumerate(qemus)]
    return {**journal(state, reason=reason), "only": "qemu", "vms": vms}


def test_vms_that_all_run_on_the_installed_qemu_are_upgraded_without_a_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, [answer(renewed("restored", "11.1.3", "11.1.3"))], only="qemu")
    result = stage.run()
    assert (result["failed"], result["result"]) == (False, "upgraded")
    assert result["proof"] == {"boot_id_kept": True, "every_vm_renewed": True}
    assert "every VM runs on QEMU 11.1.3" in result["msg"]
    assert not any("kernel" in line for line in stage.lines)


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        (renewed("restored", "11.1.3", "10.0.2"), ("failed", "every_vm_renewed is false")),
        (
            renewed("aborted", "11.1.3", "10.0.2", reason="vm1 broke"),
            ("aborted", "some on the QEMU they had: vm1 broke"),
        ),
    ],
)
def test_vms_that_kept_their_qemu_are_not_upgraded(
    monkeypatch: pytest.MonkeyPatch, ending: dict[str, Any], told: tuple[str, str]
) -> None:
    result = Stage(monkeypatch, [answer(ending)], only="qemu").run()
    assert (result["failed"], result["result"]) == (True, told[0])
    assert told[1] in result["msg"]
