# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The views show what the reducer knows, whatever a VM is called and however small the terminal is."""

from __future__ import annotations

import json
from dataclasses import replace

from rich.console import Console

from ansible_collections.holdfast.kvm.plugins.module_utils._report.build import HostOutcome, build_report
from holdfast.chart import chart
from holdfast.progress import (
    Happening,
    HostProgress,
    HostStatus,
    Kind,
    MoveProgress,
    PlannedBatch,
    Progress,
    VmProgress,
)
from holdfast.view import JsonView, PlainView, drawn, sentence, shown_hosts, shown_vms

HOSTILE = "[red]x[/nope]\x1b[31m\u202e"
VM = VmProgress("db1", "suspended", 90, 1 << 30, paused_at=1010.0)
HOST = HostProgress(
    "hv1", HostStatus.WORKING, "live_update", "jumping", ("6.12", "7.2"), ("10.0", "11.1"), (VM,), clock_ahead_s=0.0
)
RUN = Progress(
    "spring", 1000.0, (HOST, HostProgress("hv2")), (Happening(1010.0, Kind.VM_PAUSED, "paused", "hv1", "db1"),)
)


def rendered(progress: Progress, height: int = 40) -> str:
    console = Console(width=120, height=height, record=True, force_terminal=False, file=None, quiet=False)
    with console.capture() as capture:
        console.print(drawn(progress, 1013.0, height))
    return capture.get()


def test_picture_shows_hosts_vms_pause_and_last_happenings() -> None:
    text = rendered(RUN)
    for word in ("spring", "13.0 s", "live update, jumping", "6.12 → 7.2", "waiting", "db1", "3.00 s", "1 of 1"):
        assert word in text
    assert "hv1 db1 paused" in text


def test_a_vm_on_its_way_has_a_bar_until_it_has_arrived() -> None:
    move = MoveProgress("web1", "hv2", "sending", 41.7, 3 << 20, 1 << 20, 2)
    host = HostProgress("hv1", HostStatus.WORKING, "evacuate", moves=(move,))
    text = rendered(Progress("spring", 1000.0, (host,)))
    for word in ("web1", "hv2", "42 %, memory, round 2", "3 MiB"):
        assert word in text
    there = replace(host, moves=(replace(move, state="moved"),))
    assert "web1" not in rendered(Progress("spring", 1000.0, (there,)))


def test_names_are_shown_and_not_obeyed() -> None:
    vm = VmProgress(HOSTILE, "failed", error=HOSTILE)
    host = HostProgress(HOSTILE, HostStatus.FAILED, HOSTILE, HOSTILE, (HOSTILE, HOSTILE), vms=(vm,), error=HOSTILE)
    host = replace(host, moves=(MoveProgress(HOSTILE, HOSTILE, "sending"),))
    run = Progress(HOSTILE, 1000.0, (host,), (Happening(1001.0, Kind.VM_FAILED, HOSTILE, HOSTILE, HOSTILE),))
    lines: list[str] = []
    PlainView(lines.append).close(run)
    text = rendered(run) + "".join(lines)
    assert "[red]" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_many_vms_fit_and_those_in_trouble_come_first() -> None:
    vms = [VmProgress(f"vm{number}", "resumed", paused_at=1.0, resumed_at=2.0) for number in range(100)]
    order = [*vms, VmProgress("broken", "failed"), VmProgress("still", "suspended", paused_at=1.0)]
    assert [vm.name for vm in shown_vms(order, 3)] == ["vm0", "broken", "still"]
    host = HostProgress("hv1", HostStatus.WORKING, vms=tuple(order))
    text = rendered(Progress("spring", 1000.0, (host,)), height=24)
    assert len(text.splitlines()) <= 24
    assert "broken" in text


def test_a_lost_vm_is_named_and_its_pause_is_not_counted_on() -> None:
    lost = VmProgress("db1", "given_up", paused_at=1010.0, error="power cut")
    text = rendered(Progress("spring", 1000.0, (HostProgress("hv1", HostStatus.FAILED, vms=(lost,)),)))
    assert "given up" in text
    assert "3.00 s" not in text


def test_plain_view_tells_each_happening_once() -> None:
    lines: list[str] = []
    view = PlainView(lines.append)
    view.show(RUN)
    view.show(RUN)
    view.close(RUN)
    assert len(lines) == 1
    assert lines[0].endswith("hv1 db1 paused")


def test_json_view_ends_with_the_exit_code() -> None:
    lines: list[str] = []
    failed = HostProgress("hv1", HostStatus.FAILED, error="it broke\nhere")
    JsonView(lines.append).close(Progress("spring", 1000.0, (failed,), RUN.happenings, ended_at=1099.0, return_code=2))
    told = [json.loads(line) for line in lines]
    assert told[0] == {"at": 1010.0, "kind": "vm_paused", "text": "paused", "host": "hv1", "vm": "db1"}
    assert told[-1]["kind"] == "end"
    assert told[-1]["exit_code"] == 2
    assert told[-1]["hosts"] == [{"host": "hv1", "status": "failed", "error": "it broke\nhere"}]


def test_chart_of_a_report_draws_a_bar_per_vm() -> None:
    vm = {
        "name": HOSTILE,
        "state": "resumed",
        "paused_at": 10.0,
        "saved_at": 11.0,
        "restore_started_at": 18.0,
        "resumed_at": 20.0,
        "ram_bytes": 1 << 30,
        "state_bytes": 1 << 20,
        "ram_verified": True,
    }
    entry = {"state": "restored", "vms": [vm], "phases": [{"name": "boot", "start": 11.0, "seconds": 7.0}]}
    waits = {"kernel and initrd": 3.1, "short.service": 0.2, "slow.service": 9.5, "libvirtd.service": 0.9}
    boot = [{"name": name, "start": 0.0, "seconds": seconds} for name, seconds in waits.items()]
    outcomes = [HostOutcome("hv1", entry, boot=boot), HostOutcome("hv2")]
    report = build_report("spring", "2026-11-21T02:03:04Z", outcomes)
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(chart(report, 100))
    text = capture.get()
    assert "░" in text
    assert "10.0 s" in text
    assert "boot 7.00 s" in text
    assert "waited longest for: kernel and initrd 3.10 s, slow.service 9.50 s, libvirtd.service 0.90 s" in text
    assert "hv2  skipped" in text
    assert "\x1b" not in text


def campaign(*hosts: HostProgress) -> Progress:
    batches = tuple(PlannedBatch((host.name,), 60.0) for host in hosts)
    return Progress("spring", 1000.0, hosts, batches=batches)


def test_picture_of_a_campaign_shows_batches_and_the_time_left() -> None:
    done = HostProgress("hv3", HostStatus.UPGRADED, began_at=1000.0)
    at_work = HostProgress("hv1", HostStatus.WORKING, "stage", began_at=1003.0)
    text = rendered(campaign(done, at_work, HostProgress("hv2")))
    assert "batch 2 of 3; hosts: 1 done, 1 under way, 1 waiting; about 110.0 s left by the plan" in text
    assert [line.split()[:2] for line in text.splitlines() if " hv" in line] == [
        ["1", "hv3"],
        ["2", "hv1"],
        ["3", "hv2"],
    ]
    assert "longer than planned" in rendered(campaign(HostProgress("hv1", HostStatus.WORKING, began_at=10.0)))


def test_batch_that_is_over_by_the_plan_has_no_time_left_to_tell() -> None:
    assert sentence(Happening(1000.0, Kind.BATCH, "batch 1 of 2: hv1", seconds=60.0)).endswith("about 60.0 s left")
    assert sentence(Happening(1000.0, Kind.BATCH, "batch 2 of 2: hv2", seconds=0.0)) == "batch 2 of 2: hv2"


def test_many_hosts_fit_and_those_in_trouble_come_first() -> None:
    done = [HostProgress(f"hv{number}", HostStatus.UPGRADED) for number in range(100)]
    hosts = [*done, HostProgress("bad", HostStatus.FAILED), HostProgress("busy", HostStatus.WORKING)]
    assert [host.name for host in shown_hosts(hosts, 3)] == ["hv0", "bad", "busy"]
    text = rendered(campaign(*hosts), height=24)
    assert len(text.splitlines()) <= 24
    assert "and 94 more" in text
