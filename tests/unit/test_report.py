# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report says what the journals prove, keeps to its schema, and shows hostile names without obeying them."""

from __future__ import annotations

import copy
import itertools
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._report import figures
from ansible_collections.holdfast.kvm.plugins.module_utils._report.build import HostOutcome, build_report, host_report
from ansible_collections.holdfast.kvm.plugins.module_utils._report.html import page
from ansible_collections.holdfast.kvm.plugins.module_utils._report.picture import WIDTH, label_positions
from ansible_collections.holdfast.kvm.plugins.module_utils._report.schema import HostResult, VmResult, violations
from ansible_collections.holdfast.kvm.plugins.module_utils._report.summary import summary_lines
from ansible_collections.holdfast.kvm.plugins.module_utils._report.timeline import ticks, timeline

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text(encoding="utf-8"))
START = 1_795_226_400.0
HOSTILE = "</title><img src=x onerror=alert(1)>\"'&\u202egnp\x1b[31m{{ 7*7 }}"


def vm(name: str = "db1", **changes: Any) -> dict[str, Any]:
    entry = {
        "name": name,
        "uuid": "4f1c2a3e-8e1d-4d0a-9c5f-000000000001",
        "state": "resumed",
        "error": "",
        "treatment": "in_place",
        "reason": "default policy",
        "priority": 50,
        "paused_at": START + 10,
        "saved_at": START + 10.5,
        "restore_started_at": START + 18,
        "resumed_at": START + 20.25,
        "ram_bytes": 1 << 30,
        "state_bytes": 1_150_000,
        "ram_verified": True,
    }
    return {**entry, **changes}


def journal(*vms: dict[str, Any], **changes: Any) -> dict[str, Any]:
    entry = {
        "generation": "g-20261121T020000-ab12cd",
        "state": "restored",
        "host": "hv1",
        "kernel": {"from": "6.12.107+deb13-amd64", "to": "7.2.12+deb13-amd64"},
        "qemu": {"from": "10.0.13", "to": "11.1.3"},
        "boot_id": {"from": "old", "to": "new"},
        "reason": "",
        "phases": [
            {"name": "load", "start": START, "seconds": 4.0},
            {"name": "suspend", "start": START + 10, "seconds": 1.0},
            {"name": "boot", "start": START + 11, "seconds": 6.5},
        ],
        "vms": list(vms) or [vm()],
        "warnings": [],
    }
    return {**entry, **changes}


def report_of(*outcomes: HostOutcome) -> dict[str, Any]:
    return build_report("spring", "2026-11-21T02:03:04Z", outcomes)


def result_of(entry: dict[str, Any] | None, hint: str = "", error: str = "") -> str:
    return str(host_report(HostOutcome("hv1", entry, hint, error))["result"])


def test_pause_is_from_paused_to_resumed() -> None:
    report = host_report(HostOutcome("hv1", journal(), "upgraded"))
    assert report["vms"][0]["pause_s"] == 10.25
    assert report["vms"][0]["result"] == "resumed"
    assert report["kernel"] == {"from": "6.12.107+deb13-amd64", "to": "7.2.12+deb13-amd64"}
    assert report["warnings"] == []


@pytest.mark.parametrize(
    ("entry", "hint", "error", "expected"),
    [
        (journal(), "upgraded", "", "upgraded"),
        (journal(), "", "", "upgraded"),
        (journal(vm(state="failed")), "upgraded", "", "failed"),
        (journal(vm(state="suspended", resumed_at=0)), "upgraded", "", "failed"),
        (journal(vm(state="resuming", resumed_at=0)), "upgraded", "", "failed"),
        (journal(), "failed", "verify found a lost connection", "failed"),
        (journal(), "fell_back", "", "fell_back"),
        (journal(vm(state="failed")), "fell_back", "", "failed"),
        (journal(fell_back=True), "", "", "fell_back"),
        (journal(fell_back=True), "upgraded", "", "fell_back"),
        (journal(vm(state="lost"), fell_back=True), "", "", "failed"),
        (journal(vm(state="restarted"), state="failed"), "", "", "failed"),
        (journal(state="aborted"), "aborted", "", "aborted"),
        (journal(vm(state="suspended", resumed_at=0), state="aborted"), "aborted", "", "failed"),
        (journal(state="staged"), "", "", "skipped"),
        (journal(state="jumping"), "", "", "failed"),
        (journal(), "skipped", "", "skipped"),
        (None, "", "", "skipped"),
        ({}, "", "", "skipped"),
        (None, "", "unreachable", "failed"),
        (None, "nonsense", "", "skipped"),
    ],
)
def test_worse_of_journal_and_claim_is_reported(
    entry: dict[str, Any] | None, hint: str, error: str, expected: str
) -> None:
    assert result_of(entry, hint, error) == expected


def test_unfinished_live_update_is_explained() -> None:
    report = host_report(HostOutcome("hv1", journal(vm(state="suspended", resumed_at=0), state="jumping")))
    assert "jumping" in report["error"]
    assert any("db1" in line for line in report["warnings"])


def test_resume_without_confirmation_is_not_called_resumed() -> None:
    report = host_report(HostOutcome("hv1", journal(vm(state="resuming", resumed_at=0))))
    assert report["vms"][0]["result"] == "failed"
    assert "never confirmed" in report["vms"][0]["error"]
    assert report["vms"][0]["pause_s"] is None


@pytest.mark.parametrize(
    ("state", "result", "words"),
    [
        ("paused", "suspended", "VM db1 is not running: "),
        ("lost", "lost", "VM db1 is not running, and its RAM is gone: power cut"),
        ("restarted", "restarted", "VM db1 was started afresh, since its RAM was gone: power cut"),
        ("given_up", "given_up", "VM db1 was given up by a person, its RAM is deleted: power cut"),
    ],
)
def test_a_vm_that_lost_its_memory_is_told_exactly(state: str, result: str, words: str) -> None:
    report = report_of(HostOutcome("hv1", journal(vm(state=state, error="power cut", resumed_at=0), state="failed")))
    host = report["hosts"][0]
    assert host["vms"][0]["result"] == result
    assert host["warnings"][0].startswith(words)
    assert violations(report) == []
    jsonschema.validate(report, SCHEMA)
    assert f'class="{result}"' in page(report)
    assert "power cut" in summary_lines(report)[1]


def test_the_published_results_are_those_of_the_code() -> None:
    host = SCHEMA["properties"]["hosts"]["items"]["properties"]
    assert host["result"]["enum"] == [result.value for result in HostResult]
    assert host["vms"]["items"]["properties"]["result"]["enum"] == [result.value for result in VmResult]


def test_unverified_ram_is_warned_about() -> None:
    report = host_report(HostOutcome("hv1", journal(vm(ram_verified=False))))
    assert report["warnings"] == ["VM db1 was resumed, but its RAM was not verified"]


def test_clock_that_went_backwards_gives_no_negative_pause() -> None:
    report = host_report(HostOutcome("hv1", journal(vm(resumed_at=START))))
    assert report["vms"][0]["pause_s"] is None
    assert any("clock" in line for line in report["warnings"])


def test_skipped_host_does_not_show_the_journal_of_an_earlier_run() -> None:
    report = host_report(HostOutcome("hv1", journal(), "skipped", "already on this kernel"))
    assert report["vms"] == []
    assert report["generation"] == ""
    assert report["error"] == "already on this kernel"


def test_what_is_new_in_the_kernels_log_is_a_warning() -> None:
    report = build_report("c", "2026-12-01T00:00:00Z", [HostOutcome("hv1", journal(), "upgraded", told=("an error",))])
    assert "an error" in report["hosts"][0]["warnings"]
    assert report["hosts"][0]["result"] == "upgraded"


BOOT = [
    {"name": "kernel and initrd", "start": 0.0, "seconds": 3.1},
    {"name": "a.service", "start": 4.0, "seconds": 1.5},
]
SAMPLES = [
    report_of(),
    report_of(
        HostOutcome("hv1", journal(), "upgraded", boot=BOOT),
        HostOutcome("hv2"),
        HostOutcome("hv3", None, "", "no answer"),
    ),
    report_of(HostOutcome(HOSTILE, journal(vm(HOSTILE, state="failed", error=HOSTILE), reason=HOSTILE))),
    report_of(HostOutcome("hv1", {"state": "suspending", "vms": [{"name": "a", "state": "pending"}, {}]})),
]


@pytest.mark.parametrize("report", SAMPLES)
def test_reports_keep_to_the_published_schema(report: dict[str, Any]) -> None:
    jsonschema.validate(report, SCHEMA, format_checker=jsonschema.FormatChecker())
    assert violations(report) == []


def broken(path: list[str | int], value: Any) -> dict[str, Any]:
    report = copy.deepcopy(SAMPLES[1])
    target: Any = report
    for step in path[:-1]:
        target = target[step]
    if value is None:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return report


@pytest.mark.parametrize(
    "report",
    [
        broken(["schema_version"], 2),
        broken(["campaign"], None),
        broken(["surprise"], "x"),
        broken(["hosts"], "hv1"),
        broken(["hosts", 0, "result"], "fine"),
        broken(["hosts", 0, "kernel"], {"from": "a"}),
        broken(["hosts", 0, "warnings"], [1]),
        broken(["hosts", 0, "phases", 0, "seconds"], "4"),
        broken(["hosts", 0, "boot", 1, "start"], "4"),
        broken(["hosts", 0, "vms", 0, "pause_s"], "long"),
        broken(["hosts", 0, "vms", 0, "ram_verified"], 1),
        broken(["hosts", 0, "vms", 0, "uuid"], None),
    ],
)
def test_both_checks_refuse_the_same(report: dict[str, Any]) -> None:
    assert violations(report) != []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, SCHEMA)


def test_check_without_library_knows_the_same_fields() -> None:
    host = SCHEMA["properties"]["hosts"]["items"]
    built = SAMPLES[1]["hosts"][0]
    assert set(host["properties"]) == set(built)
    assert set(host["properties"]["vms"]["items"]["properties"]) == set(built["vms"][0])


class Tags(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    return tags


def hostile(value: Any) -> Any:
    """The same value with every text in it replaced."""
    if isinstance(value, dict):
        return {key: hostile(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [hostile(entry) for entry in value]
    return HOSTILE if isinstance(value, str) else value


def test_no_text_of_a_report_becomes_markup() -> None:
    report = hostile(SAMPLES[1])
    for host, honest in zip(report["hosts"], SAMPLES[1]["hosts"], strict=True):
        host["result"] = honest["result"]
    text = page(report)
    assert set(parsed(text).tags) == set(parsed(page(SAMPLES[1])).tags)
    assert "img" not in parsed(text).tags
    assert not any(name.startswith("on") for name, _ in parsed(text).attributes)
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_page_needs_nothing_from_elsewhere() -> None:
    tags = parsed(page(SAMPLES[1]))
    assert not {"script", "link", "img", "iframe", "object"} & set(tags.tags)
    assert not {"src", "href", "srcset"} & {name for name, _ in tags.attributes}
    assert "default-src 'none'" in page(SAMPLES[1])


def test_page_shows_a_bar_per_vm_and_a_section_per_host() -> None:
    text = page(SAMPLES[1])
    assert text.count("<section>") == 3
    assert text.count('class="vm"') == 1
    assert "10.2 s" in text or "10.3 s" in text
    assert "1 of 3 hosts upgraded, 1 of 1 VM carried on" in text


def test_page_says_what_the_vms_waited_for() -> None:
    text = page(SAMPLES[1])
    assert text.count("From the new kernel's start to the restore") == 1, "of one host of three is it known"
    assert text.index("kernel and initrd") < text.index("a.service")
    assert "1.50 s" in text


def test_picture_starts_its_clock_at_the_first_pause() -> None:
    picture = timeline(host_report(HostOutcome("hv1", journal(vm(), vm("db2", paused_at=START + 9)))))
    assert picture is not None
    assert [bar.start_s for bar in picture.bars] == [1.0, 0.0] or [bar.start_s for bar in picture.bars] == [0.0, 1.0]
    assert picture.end_s == pytest.approx(11.25)


def test_long_preparations_do_not_squeeze_the_picture() -> None:
    phases = [{"name": "load", "start": START - 3600, "seconds": 3500.0}, *journal()["phases"][1:]]
    picture = timeline(host_report(HostOutcome("hv1", journal(phases=phases))))
    assert picture is not None
    assert [phase.name for phase in picture.earlier] == ["load"]
    assert picture.start_s >= -picture.end_s / 2


def test_vm_that_was_never_resumed_has_an_open_bar() -> None:
    picture = timeline(host_report(HostOutcome("hv1", journal(vm(state="kept", resumed_at=0)))))
    assert picture is not None
    assert not picture.bars[0].ended
    assert picture.bars[0].end_s == picture.end_s


def test_host_without_pauses_and_phases_has_no_picture() -> None:
    assert timeline(host_report(HostOutcome("hv1"))) is None


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.4), (-3.0, 42.0), (0.0, 1000.0), (-0.02, 9.99)])
def test_ticks_are_round_and_few(start: float, end: float) -> None:
    found = ticks(start, end)
    assert 0.0 in found
    assert 3 <= len(found) <= 12
    assert start <= found[0]
    assert found[-1] <= end


def test_labels_of_short_phases_do_not_overlap() -> None:
    wishes = [(160.0, 60.0), (161.0, 60.0), (162.0, 60.0), (1039.0, 60.0), (1039.5, 60.0)]
    middles = label_positions(wishes)
    assert all(after - before >= 60 for before, after in itertools.pairwise(middles))
    assert middles[-1] + 30 <= WIDTH


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00 s"), (0.417, "0.42 s"), (9.999, "10.0 s"), (42.04, "42.0 s"), (365.2, "6 min 05 s"), (None, "\u2013")],
)
def test_seconds(value: float | None, text: str) -> None:
    assert figures.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1_150_000, "1.1 MiB"), (2 << 30, "2 GiB"), ((1 << 30) - 1, "1 GiB"), (None, "\u2013")],
)
def test_size(value: int | None, text: str) -> None:
    assert figures.size(value) == text


def test_summary_has_a_line_per_host_vm_and_warning() -> None:
    lines = summary_lines(report_of(HostOutcome("hv1", journal(vm(), vm("db2", ram_verified=False)), "upgraded")))
    assert lines[0].startswith("hv1: upgraded, kernel 6.12.107+deb13-amd64 → 7.2.12+deb13-amd64, QEMU 10.0.13 → 11.1.3")
    assert lines[1] == "  db1: paused 10.2 s, RAM 1 GiB verified, state 1.1 MiB"
    assert "db2" in lines[2]
    assert lines[3].startswith("  warning: ")


def test_summary_cannot_be_used_to_write_to_a_terminal() -> None:
    assert not any("\x1b" in line or "\n" in line for line in summary_lines(SAMPLES[2]))


def test_vms_that_were_moved_away_are_told_beside_those_that_stayed() -> None:
    moved = {"uuid": "u2", "to": "hv2", "reason": "by rule 1", "pause_s": 0.2, "ram_bytes": 4096}
    back = {**moved, "home": True, "home_pause_s": 0.45}
    known = {"u2": 0.3}
    report = report_of(HostOutcome("hv1", journal(), evacuated={"web1": moved, "app1": back}, predicted=known))
    jsonschema.validate(report, SCHEMA)
    assert violations(report) == []
    (host,) = report["hosts"]
    assert host["result"] == "upgraded"
    assert [(one["name"], one["treatment"], one["result"], one["pause_s"]) for one in host["vms"][1:]] == [
        ("app1", "live", "returned", 0.45),
        ("web1", "live", "moved", 0.2),
    ]
    text = "\n".join(summary_lines(report))
    assert "3 of 3 VMs carried on" in text
    assert "web1: moved away alive, stood still for 0.20 s (planned: up to 0.30 s), by rule 1; to hv2" in text
    assert "moved away alive, and home again" in page(report)


def test_a_host_that_was_refused_still_says_who_left_it() -> None:
    (entry,) = report_of(HostOutcome("hv1", None, "skipped", evacuated={"web1": {"to": HOSTILE}}))["hosts"]
    assert (entry["result"], entry["vms"][0]["result"], entry["vms"][0]["pause_s"]) == ("skipped", "moved", None)
