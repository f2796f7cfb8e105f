# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reducer follows a run from two sources, does not mind repeats, and ends with the promised exit code."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.progress import (
    AnsibleEvent,
    CancelAsked,
    Event,
    ExitCode,
    HostStatus,
    Kind,
    PlannedBatch,
    Progress,
    ProgressLine,
    RunBegan,
    RunEnded,
    StopAsked,
    StopAskedAgain,
    current_batch,
    exit_code,
    reduce,
    time_left_s,
)

BEGIN = 1000.0
BEGAN = RunBegan(BEGIN, ("hv1", "hv2"))
ENDED = RunEnded(BEGIN + 99, 0)
FAILED_RUN = RunEnded(BEGIN + 99, 2)


def after(*events: Event) -> Progress:
    progress = Progress("spring")
    for event in events:
        progress = reduce(progress, event)
    return progress


def ansible(kind: str, host: str, role: str = "", counter: int = 0, **details: Any) -> AnsibleEvent:
    data = {"host": host, **details, **({"resolved_role": f"holdfast.kvm.{role}", "role": role} if role else {})}
    return AnsibleEvent({"event": kind, "counter": counter, "created": "2026-11-21T02:00:00+00:00", "event_data": data})


def failed(host: str, role: str = "stage", **result: Any) -> AnsibleEvent:
    return ansible("runner_on_failed", host, role, res={"msg": "it broke", **result})


def live_update(host: str, result: str) -> AnsibleEvent:
    action = "holdfast.kvm.live_update"
    return ansible("runner_on_ok", host, "live_update", resolved_action=action, res={"result": result})


def upgraded(host: str) -> AnsibleEvent:
    return live_update(host, "upgraded")


def gate(host: str) -> AnsibleEvent:
    return ansible("runner_on_failed", host, resolved_action="ansible.builtin.assert", res={"msg": "stopped"})


def journal(state: str = "suspending", **vms: dict[str, Any]) -> dict[str, Any]:
    return {
        "state": state,
        "kernel": {"from": "6.12", "to": "7.2"},
        "qemu": {"from": "10.0", "to": "11.1"},
        "vms": [{"name": name, **entry} for name, entry in vms.items()],
    }


def line(at: float, entry: dict[str, Any], host: str = "hv1") -> ProgressLine:
    return ProgressLine({"at": at, "host": host, "journal": entry})


def recovered(host: str, **result: Any) -> AnsibleEvent:
    return ansible("runner_on_ok", host, resolved_action="holdfast.kvm.recover", res=result)


def test_a_host_with_nothing_left_to_recover_is_done() -> None:
    old = journal("restored", db1={"state": "resumed", "paused_at": 10.0, "resumed_at": 12.0})
    calm = recovered("hv1", changed=False, standing="no live update is in flight", journal=old)
    busy = recovered("hv2", changed=True, standing="live update g-1 is done", journal=old)
    progress = after(BEGAN, calm, busy, ENDED)
    assert exit_code(progress) is ExitCode.DONE
    assert {host.status for host in progress.hosts} == {HostStatus.DONE}
    told = [(event.host, event.text) for event in progress.happenings if event.kind is Kind.REMARK]
    assert told == [("hv1", "no live update is in flight"), ("hv2", "live update g-1 is done")]
    assert (progress.host("hv1").vms, len(progress.host("hv2").vms)) == ((), 1)


def test_a_vm_that_waits_makes_its_host_a_failed_one() -> None:
    entry = journal("failed", db1={"state": "lost", "error": "power cut"})
    waits = ansible(
        "runner_on_failed",
        "hv1",
        resolved_action="holdfast.kvm.recover",
        res={"msg": "VM db1 (lost)", "journal": entry},
    )
    progress = after(BEGAN, waits, recovered("hv2", standing="no live update is in flight"), FAILED_RUN)
    assert exit_code(progress) is ExitCode.HOST_FAILED
    assert progress.host("hv1").error == "VM db1 (lost)"
    assert [event.text for event in progress.happenings if event.kind is Kind.VM_FAILED] == ["lost: power cut"]


PAUSED = {"state": "suspended", "paused_at": 1010.0}
RESUMED = {"state": "resumed", "paused_at": 1010.0, "resumed_at": 1018.5}


def test_phase_is_the_role_of_the_task_that_runs() -> None:
    progress = after(BEGAN, ansible("runner_on_start", "hv1", "preflight"), ansible("runner_on_start", "hv1", "stage"))
    assert progress.host("hv1").phase == "stage"
    assert progress.host("hv1").status is HostStatus.WORKING
    assert progress.host("hv2").status is HostStatus.WAITING
    assert [happening.text for happening in progress.happenings] == ["preflight", "stage"]


def test_roles_of_others_are_no_phase() -> None:
    assert after(BEGAN, ansible("runner_on_start", "hv1", resolved_role="debops.apt")).host("hv1").phase == ""


def test_journal_gives_vms_versions_and_pauses() -> None:
    progress = after(BEGAN, line(1010.1, journal(db1=PAUSED)), line(1019, journal("restored", db1=RESUMED)))
    host = progress.host("hv1")
    assert host.kernel == ("6.12", "7.2")
    assert host.pause_s(host.vms[0], now=5000) == 8.5
    assert [(told.kind, told.vm, told.seconds) for told in progress.happenings] == [
        (Kind.VM_PAUSED, "db1", None),
        (Kind.VM_RESUMED, "db1", 8.5),
    ]


def test_pause_so_far_grows_and_allows_for_a_host_clock_that_is_wrong() -> None:
    behind = after(BEGAN, line(1110.2, journal(db1=PAUSED))).host("hv1")
    assert behind.pause_s(behind.vms[0], now=1112.2) == pytest.approx(2.0)


@pytest.mark.parametrize("word", ["at", "time"])
def test_older_lines_are_ignored(word: str) -> None:
    new, old = journal("restored", db1=RESUMED), journal(db1=PAUSED)
    events = [ProgressLine({word: at, "host": "hv1", "journal": entry}) for at, entry in ((1019, new), (1011, old))]
    assert after(BEGAN, *events).host("hv1").journal_state == "restored"


def test_every_event_may_come_twice() -> None:
    events: list[Event] = [
        BEGAN,
        ansible("runner_on_start", "hv1", "preflight", counter=1),
        ansible("runner_on_start", "hv1", "live_update", counter=2),
        line(1010.1, journal(db1=PAUSED)),
        ProgressLine({"at": 1011, "host": "hv1", "line": "away"}),
        line(1019, journal("restored", db1=RESUMED)),
        ansible("runner_on_start", "hv1", "verify", counter=3),
        failed("hv2"),
        StopAsked(1020),
        StopAskedAgain(1021),
        CancelAsked(1022),
        FAILED_RUN,
    ]
    once, twice = after(*events), after(*[event for event in events for _ in range(2)])
    assert once == twice
    assert after(*events, *events[1:]) == once


def test_remarks_are_told_but_not_twice_what_the_journal_says() -> None:
    progress = after(
        BEGAN,
        line(1010.1, journal(db1=PAUSED)),
        ProgressLine({"time": 1010.2, "host": "hv1", "line": "db1 suspended"}),
        ProgressLine({"time": 1012, "host": "hv1", "line": "away"}),
    )
    assert [told.text for told in progress.happenings] == ["paused", "away"]


@pytest.mark.parametrize("data", [{}, {"host": "hv1"}, {"host": 7, "line": "x"}, {"host": "hv1", "journal": "x"}])
def test_lines_that_mean_nothing_change_nothing(data: dict[str, Any]) -> None:
    assert after(BEGAN, ProgressLine(data)) == after(BEGAN)


def test_ignored_errors_are_none() -> None:
    event = ansible("runner_on_failed", "hv1", "stage", ignore_errors=True, res={"msg": "never mind"})
    assert after(BEGAN, event).host("hv1").status is HostStatus.WAITING


def test_who_is_waited_for_is_told_once() -> None:
    blockers = [{"code": "vm-moving", "vm": "db1", "message": "it is being migrated"}]
    again = [ansible("runner_retry", "hv1", "preflight", res={"blockers": blockers}) for _ in range(3)]
    progress = after(BEGAN, *again, ansible("runner_retry", "hv2", "prepare", res={"msg": "not yet"}))
    assert [told.text for told in progress.happenings] == ["waits for VM db1: it is being migrated"]
    assert progress.host("hv1").status is HostStatus.WAITING


def test_first_verdict_about_a_host_stays() -> None:
    progress = after(BEGAN, failed("hv1", "preflight", refused=True, msg="2 blockers"), failed("hv1", "report"))
    assert progress.host("hv1").status is HostStatus.REFUSED
    assert progress.host("hv1").error == "2 blockers"


def test_report_names_its_files_and_corrects_a_host() -> None:
    written = {
        "report_json": "/r/report.json",
        "report_html": "/r/report.html",
        "results": {"hv1": "failed", "hv2": "skipped"},
    }
    event = ansible("runner_on_ok", "hv1", "report", resolved_action="holdfast.kvm.report", res=written)
    progress = after(BEGAN, upgraded("hv2"), event)
    assert progress.report_html == "/r/report.html"
    assert progress.host("hv1").status is HostStatus.FAILED
    assert progress.host("hv2").status is HostStatus.UPGRADED


def stats(**failures: int) -> AnsibleEvent:
    return AnsibleEvent({"event": "playbook_on_stats", "event_data": {"failures": failures, "dark": {}}})


WORKING = [ansible("runner_on_start", host, "verify") for host in ("hv1", "hv2")]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([upgraded("hv1"), upgraded("hv2"), ENDED], ExitCode.DONE),
        ([*WORKING, stats(), ENDED], ExitCode.DONE),
        ([*WORKING, stats(hv2=1), FAILED_RUN], ExitCode.HOST_FAILED),
        ([failed("hv1"), FAILED_RUN], ExitCode.HOST_FAILED),
        ([failed("hv1", "live_update", result="fell_back"), FAILED_RUN], ExitCode.HOST_FAILED),
        ([failed("hv1", "live_update", result="aborted"), FAILED_RUN], ExitCode.HOST_FAILED),
        ([ansible("runner_on_unreachable", "hv1", res={"msg": "no route"}), FAILED_RUN], ExitCode.HOST_FAILED),
        ([FAILED_RUN], ExitCode.HOST_FAILED),
        ([failed("hv1", "preflight", refused=True), FAILED_RUN], ExitCode.REFUSED),
        ([failed("hv1", "preflight", refused=True), gate("hv2"), FAILED_RUN], ExitCode.REFUSED),
        ([upgraded("hv1"), failed("hv2", "preflight", refused=True), FAILED_RUN], ExitCode.HOST_FAILED),
        ([failed("hv1", "preflight", refused=True), failed("hv2"), FAILED_RUN], ExitCode.HOST_FAILED),
        ([upgraded("hv1"), StopAsked(1), gate("hv2"), FAILED_RUN], ExitCode.STOPPED),
        ([upgraded("hv1"), StopAsked(1), ENDED], ExitCode.STOPPED),
        ([upgraded("hv1"), upgraded("hv2"), StopAsked(1), ENDED], ExitCode.DONE),
        ([upgraded("hv1"), live_update("hv2", "skipped"), StopAsked(1), ENDED], ExitCode.DONE),
        ([failed("hv1"), StopAsked(1), FAILED_RUN], ExitCode.HOST_FAILED),
        ([CancelAsked(1), RunEnded(2, 254)], ExitCode.STOPPED),
        ([failed("hv1", "stage", lock_held=True), FAILED_RUN], ExitCode.LOCKED),
        ([failed("hv1", "stage", lock_held=True), failed("hv2"), FAILED_RUN], ExitCode.HOST_FAILED),
    ],
)
def test_exit_code(events: list[Event], expected: ExitCode) -> None:
    assert exit_code(after(BEGAN, *events)) is expected


def test_run_without_hosts_has_failed() -> None:
    assert exit_code(after(RunBegan(BEGIN, ()), ENDED)) is ExitCode.HOST_FAILED


def test_unreachable_host_is_named_with_a_remedy() -> None:
    event = ansible(
        "runner_on_failed", "hv1", resolved_action="ansible.builtin.wait_for_connection", res={"msg": "timed out"}
    )
    host = after(BEGAN, event).host("hv1")
    assert host.status is HostStatus.UNREACHABLE
    assert "hv1 cannot be reached" in host.error
    assert "SSH key" in host.error


# A campaign with a plan

CREATED = 1795226400.0  # as ansible() says
PLANNED = RunBegan(CREATED, ("hv1", "hv2", "hv3"), (PlannedBatch(("hv1",), 100.0), PlannedBatch(("hv2", "hv3"), 200.0)))


def test_the_time_left_is_that_of_the_batches_that_are_not_over() -> None:
    begun = after(PLANNED)
    assert (current_batch(begun), time_left_s(begun, CREATED + 50)) == (1, 300.0)
    at_work = after(PLANNED, ansible("runner_on_start", "hv1", "preflight"))
    assert time_left_s(at_work, CREATED + 40) == 260.0
    assert time_left_s(at_work, CREATED + 400) == 200.0, "a batch that takes longer takes no time from the others"
    first_over = after(PLANNED, ansible("runner_on_start", "hv1", "preflight"), upgraded("hv1"))
    assert (current_batch(first_over), time_left_s(first_over, CREATED + 400)) == (2, 200.0)
    half_over = after(PLANNED, upgraded("hv1"), ansible("runner_on_start", "hv2", "stage"), upgraded("hv2"))
    assert (current_batch(half_over), time_left_s(half_over, CREATED + 50)) == (2, 150.0)
    over = after(PLANNED, upgraded("hv1"), upgraded("hv2"), upgraded("hv3"))
    assert (current_batch(over), time_left_s(over, CREATED)) == (2, 0.0)


def test_a_batch_is_announced_once_with_its_hosts() -> None:
    starts = [ansible("runner_on_start", host, "preflight") for host in ("hv1", "hv2", "hv3")]
    told = [one for one in after(PLANNED, *starts).happenings if one.kind is Kind.BATCH]
    assert [one.text for one in told] == ["batch 1 of 2: hv1", "batch 2 of 2: hv2, hv3"]
    assert told[0].seconds == 300.0


def migration(host: str, **found: Any) -> ProgressLine:
    return ProgressLine({"host": host, "time": BEGIN + 5, "migration": {"vm": "db1", **found}})


def test_a_vm_on_its_way_is_followed_and_forgotten_by_nobody_else() -> None:
    figures = {"to": "hv2", "percent": 40.0, "ram_left_bytes": 600, "disk_left_bytes": 0, "bytes_per_s": 200.0}
    progress = after(BEGAN, migration("hv1", state="sending", round=2, **figures))
    (move,) = progress.host("hv1").moves
    assert (move.vm, move.to, move.percent, move.round, move.left_s) == ("db1", "hv2", 40.0, 2, 3.0)
    assert move.under_way
    (move,) = (
        after(BEGAN, migration("hv1", state="sending", **figures), migration("hv1", state="moved")).host("hv1").moves
    )
    assert not move.under_way
    assert move.to == "hv2"
    assert progress.host("hv2").moves == ()


def test_a_remark_about_a_move_is_told_once() -> None:
    remark = ProgressLine({"host": "hv1", "time": BEGIN + 5, "line": "db1 leaves for hv2"})
    progress = after(BEGAN, remark, remark)
    assert [happening.text for happening in progress.happenings] == ["db1 leaves for hv2"]
