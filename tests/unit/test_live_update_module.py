# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's part of a live update decides rightly, refuses a second run, and touches nothing in a check."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, Refused
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import (
    Blocker,
    HostFacts,
    KernelFacts,
    QemuFacts,
    Verdict,
    VmFacts,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import Journal
from ansible_collections.holdfast.kvm.plugins.modules import live_update

OLD, NEW = "6.12.107+deb13-amd64", "7.2.12+deb13-amd64"
CMDLINE = "BOOT_IMAGE=/boot/vmlinuz-6.12 root=/dev/vda1 ro memmap=0x60000000!0x100000000 nokaslr"
DB = VmFacts("db1", "00000000-0000-4000-8000-000000000001", state="running", domain_id=1)
WEB = VmFacts("web1", "00000000-0000-4000-8000-000000000002", state="running", domain_id=2)
OFF = VmFacts("old1", "00000000-0000-4000-8000-000000000003")
HOST = HostFacts(hostname="hv1", boot_id="boot-1", kernel=OLD, cmdline=CMDLINE, qemu=QemuFacts(version=(11, 1, 3)))


class Exit(Exception):
    """What exit_json and fail_json do to a module."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(str(result))
        self.result = result


class Lab:
    """A host on which every door of the core is a stand-in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.state_dir = directory
        self.host = HOST
        self.vms: tuple[VmFacts, ...] = (DB, OFF, WEB)
        self.qemus = ["10.0.13", "10.0.13"]
        self.installed = (OLD, NEW)
        self.verdict = Verdict()
        self.unit = "ActiveState=inactive\nJob=\n"
        self.commands: list[list[str]] = []
        self.judged: list[KernelFacts] = []
        config = Config(pool=None, state_dir=directory)
        monkeypatch.setattr(live_update, "LOCK", directory / "run" / "request.lock")
        monkeypatch.setattr(live_update, "load", lambda: config)
        monkeypatch.setattr(live_update.command, "run", self._run)
        monkeypatch.setattr(live_update.releases, "installed", lambda: self.installed)
        monkeypatch.setattr(live_update.collect, "host_facts", lambda _config: self.host)
        monkeypatch.setattr(live_update.collect, "vm_facts", lambda *_: self.vms)
        monkeypatch.setattr(live_update.collect, "kernel_facts", KernelFacts)
        monkeypatch.setattr(live_update.collect, "image_signed", lambda _path: None)
        monkeypatch.setattr(live_update.preflight, "judge", self._judge)
        monkeypatch.setattr(live_update.monitor, "qemu_version", lambda version: version)
        monkeypatch.setattr(live_update, "connect", self._connect)

    def update(self, check_mode: bool = False, **params: Any) -> dict[str, Any]:
        defaults = {name: argument.get("default") for name, argument in live_update.ARGUMENTS.items()}
        module = SimpleNamespace(params={**defaults, **params}, check_mode=check_mode, fail_json=self._fail)
        try:
            return live_update.act(module)  # type: ignore[arg-type]
        except Exit as ended:
            return ended.result

    @property
    def request(self) -> dict[str, Any] | None:
        path = self.state_dir / "request.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def started(self) -> bool:
        return ["systemctl", "start", "--no-block", "holdfast-live-update.service"] in self.commands

    def open_journal(self, *events: str) -> None:
        journal = Journal.load(self.state_dir / "journal.jsonl")
        kernel = {"from": OLD, "to": NEW}
        journal.record("begin", generation="g-1", host="hv1", kernel=kernel, qemu="", boot_id="boot-1", vms=[])
        for event in events:
            journal.record(event)

    def _run(self, argv: list[str]) -> str:
        self.commands.append(argv)
        return self.unit

    def _judge(self, _host: HostFacts, _vms: Any, target: KernelFacts, **_: Any) -> Verdict:
        self.judged.append(target)
        return self.verdict

    def _fail(self, **result: Any) -> None:
        raise Exit({"failed": True, **result})

    @contextmanager
    def _connect(self) -> Any:
        yield SimpleNamespace(running=lambda: self.qemus)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    return Lab(monkeypatch, tmp_path)


POLICY = [{"match": {"name": "db*"}, "treatment": "in_place", "priority": 90, "max_pause_s": None}]


def test_starts_with_a_request_for_the_running_vms(lab: Lab) -> None:
    result = lab.update(policy=POLICY, parallel=4)
    assert result["changed"] is True
    assert lab.started
    assert lab.request is not None
    assert lab.request["generation"] == result["generation"]
    assert (lab.request["kernel_to"], lab.request["parallel"]) == (NEW, 4)
    assert [vm["name"] for vm in lab.request["vms"]] == ["db1", "web1"]
    assert lab.request["vms"][0] == {
        "name": "db1",
        "uuid": DB.uuid,
        "priority": 90,
        "treatment": "in_place",
        "reason": "by rule 1 (name db*)",
        "may_restart": False,
    }


def test_a_check_returns_the_plan_and_touches_nothing(lab: Lab) -> None:
    result = lab.update(check_mode=True, policy=POLICY)
    assert result["changed"] is True
    assert result["kernel"] == {"from": OLD, "to": NEW}
    assert result["suspend_order"] == ["web1", "db1"]
    assert result["restore_order"] == ["db1", "web1"]
    assert result["diff"]["before"].splitlines()[0] == "BOOT_IMAGE=/boot/vmlinuz-6.12"
    assert result["diff"]["after"].splitlines() == [
        "root=/dev/vda1",
        "ro",
        "memmap=0x60000000!0x100000000",
        "nokaslr",
        f"holdfast.generation={result['generation']}",
    ]
    assert not lab.started
    assert list(lab.state_dir.iterdir()) == []


def test_a_check_plans_for_a_kernel_that_is_not_staged_yet_and_says_so(lab: Lab) -> None:
    lab.installed = (OLD,)
    result = lab.update(check_mode=True, kernel=NEW)
    assert result["kernel"]["to"] == NEW
    assert f"kernel {NEW} is not installed yet" in result["findings"][0]
    assert lab.judged[0].release == OLD


def test_a_kernel_that_is_not_installed_is_refused(lab: Lab) -> None:
    with pytest.raises(BadInput, match=rf"kernel 9\.9 is not installed .*{OLD.replace('+', '.')}"):
        lab.update(kernel="9.9")
    assert not lab.started


def test_the_running_kernel_with_current_qemus_is_up_to_date(lab: Lab) -> None:
    lab.qemus = ["11.1.3", "11.1.3"]
    result = lab.update(kernel=OLD)
    assert (result.get("changed", False), result["result"]) == (False, "skipped")
    assert not lab.started


@pytest.mark.parametrize(("qemus", "params"), [(["11.1.3", "10.0.13"], {}), (["11.1.3"], {"force": True})])
def test_an_older_qemu_or_force_updates_the_running_kernel_again(lab: Lab, qemus: Any, params: Any) -> None:
    lab.qemus = qemus
    assert lab.update(kernel=OLD, **params)["changed"] is True
    assert lab.started


def test_with_only_qemu_the_kernel_stays_and_what_concerns_it_is_not_judged(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = Blocker("state-dir-full", "no room", "make room")
    monkeypatch.setattr(live_update.preflight, "judge_renewal", lambda *_: Verdict(blockers=(blocker,)))
    assert lab.update(only="qemu")["blockers"][0]["code"] == "state-dir-full"
    assert not lab.started
    monkeypatch.setattr(live_update.preflight, "judge_renewal", lambda *_: Verdict())
    monkeypatch.setattr(live_update.rehearsal, "rehearse", lambda *_: pytest.fail("there is no kernel to try"))
    result = lab.update(only="qemu", kernel=NEW, rehearse=True)
    assert (result["kernel"], result["qemu_to"]) == ({"from": OLD, "to": OLD}, "11.1.3")
    assert result["diff"]["before"] == result["diff"]["after"]
    assert (lab.started, lab.judged) == (True, [])
    assert lab.request is not None
    assert (lab.request["only"], [vm["name"] for vm in lab.request["vms"]]) == ("qemu", ["db1", "web1"])


def test_every_blocker_is_returned_and_nothing_is_touched(lab: Lab) -> None:
    blockers = (Blocker("a", "no pool", "prepare"), Blocker("b", "its RAM is a memfd", "convert", vm="db1"))
    lab.verdict = Verdict(blockers=blockers)
    result = lab.update()
    assert result["refused"] is True
    assert [blocker["code"] for blocker in result["blockers"]] == ["a", "b"]
    assert "no pool" in result["msg"]
    assert "VM db1: its RAM is a memfd" in result["msg"]
    assert lab.request is None


@pytest.mark.parametrize("unit", ["ActiveState=activating\nJob=7\n", "ActiveState=inactive\nJob=7\n"])
def test_a_busy_unit_holds_the_lock(lab: Lab, unit: str) -> None:
    lab.unit = unit
    result = lab.update()
    assert result["lock_held"] is True
    assert lab.request is None


@pytest.mark.parametrize("events", [(), ("suspending",), ("suspending", "suspended", "jumping")])
def test_an_open_journal_holds_the_lock(lab: Lab, events: tuple[str, ...]) -> None:
    lab.open_journal(*events)
    result = lab.update()
    assert result["lock_held"] is True
    assert "g-1" in result["msg"]
    assert not lab.started


def test_a_failed_journal_is_for_preflight_to_judge_even_on_the_wanted_kernel(lab: Lab) -> None:
    lab.open_journal("failed")
    lab.host = HostFacts(**{**vars(HOST), "journal_open": True})
    lab.qemus = []
    lab.verdict = Verdict(blockers=(Blocker("journal-open", "generation g-1 has not ended", "see status"),))
    assert lab.update(kernel=OLD)["refused"] is True


def test_two_runs_at_the_same_moment_start_one_live_update(lab: Lab) -> None:
    with live_update.alone():
        assert lab.update()["lock_held"] is True
    assert lab.request is None
    assert lab.update()["changed"] is True


def rehearsing(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], float]) -> list[tuple[str, str]]:
    """What is rehearsed from here on, each time with this outcome."""
    asked: list[tuple[str, str]] = []

    def rehearse(_config: Config, release: str, line: str) -> float:
        asked.append((release, line))
        return answer()

    monkeypatch.setattr(live_update.rehearsal, "rehearse", rehearse)
    return asked


def test_a_kernel_is_rehearsed_with_the_line_of_the_jump_before_anything_starts(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds() -> float:
        assert not lab.started
        return 21.37

    asked = rehearsing(monkeypatch, seconds)
    result = lab.update(rehearse=True)
    assert asked == [(NEW, result["cmdline"]["after"])]
    assert result["rehearsal_s"] == 21.4
    assert lab.started


def test_a_kernel_that_fails_its_rehearsal_is_refused_and_nothing_starts(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> float:
        raise Refused("the rehearsal failed")

    rehearsing(monkeypatch, fail)
    with pytest.raises(Refused, match="the rehearsal failed"):
        lab.update(rehearse=True)
    assert not lab.started
    assert lab.request is None


def test_nothing_is_rehearsed_in_a_check_or_unasked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = rehearsing(monkeypatch, lambda: 1.0)
    assert lab.update(check_mode=True, rehearse=True)["rehearsal_s"] is None
    assert lab.update()["rehearsal_s"] is None
    assert asked == []


def test_the_newest_live_update_is_the_last_one_although_the_clock_was_set_back(lab: Lab) -> None:
    history = lab.state_dir / "history"
    history.mkdir(parents=True)
    (history / "g-20991231T235958-ab12cd.jsonl").touch()
    assert lab.update()["generation"].startswith("g-20991231T235959-")


def test_a_rehearsal_alone_starts_nothing_and_comes_before_vms_are_moved_away(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = rehearsing(monkeypatch, lambda: 2.0)
    result = lab.update(rehearse_only=True, policy=MOVED, elsewhere=["gone"])
    assert (result["changed"], result["rehearsal_s"], len(asked)) == (False, 2.0, 1)
    assert not lab.started
    assert lab.request is None


MOVED = [{"match": {"name": "db1"}, "treatments": ["live", "in_place"]}, {"match": {"name": "gone"}}]


def test_a_vm_that_is_to_be_moved_away_and_still_runs_here_stops_the_live_update(lab: Lab) -> None:
    with pytest.raises(Refused, match="to be moved away and still run here: db1"):
        lab.update(policy=MOVED, elsewhere=["gone"])
    assert lab.request is None
    assert not lab.started


def test_one_that_could_not_be_moved_stays_in_place_like_the_others(lab: Lab) -> None:
    lab.update(policy=MOVED, elsewhere=["gone"], unmoved=["db1"])
    assert lab.request is not None
    assert {vm["name"]: vm["treatment"] for vm in lab.request["vms"]} == {"db1": "in_place", "web1": "in_place"}


def test_one_that_is_to_be_shut_down_is_in_the_request_and_in_neither_order(lab: Lab) -> None:
    result = lab.update(policy=[{"match": {"name": "db1"}, "treatment": "restart"}], shutdown_s=60)
    assert lab.request is not None
    assert {vm["name"]: vm["treatment"] for vm in lab.request["vms"]} == {"db1": "restart", "web1": "in_place"}
    assert lab.request["shutdown_s"] == 60
    assert (result["suspend_order"], result["restore_order"], result["shut_down"]) == (["web1"], ["web1"], ["db1"])


def test_those_that_left_are_in_nobodys_way(lab: Lab) -> None:
    lab.vms, lab.qemus = (OFF, WEB), ["10.0.13"]
    lab.update(policy=MOVED, elsewhere=["gone", "db1"])
    assert lab.request is not None
    assert [vm["name"] for vm in lab.request["vms"]] == ["web1"]


def test_a_check_takes_it_that_they_will_have_left(lab: Lab) -> None:
    assert lab.update(check_mode=True, policy=MOVED, elsewhere=["gone"])["restore_order"] == ["web1"]


def test_the_hosts_own_record_says_who_is_away(lab: Lab) -> None:
    live_update.away.note(lab.state_dir, live_update.away.Away("u", "gone", "hv2", "2026-11-21T02:00:00Z"))
    assert lab.update(check_mode=True, policy=MOVED)["changed"] is True
