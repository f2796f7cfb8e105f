# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics are valid text of Prometheus' format, say what the journal says, and stand in nobody's way."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import agent, config, metrics, recover, turn
from ansible_collections.holdfast.kvm.plugins.module_utils._core.attach import Boot
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import Journal, open_journal

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (-?\d+(?:\.\d+)?)')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\[\\"n])*)"')
HOSTILE = 'a"b\\c\nd{e="f"} 1'


@pytest.fixture
def there(tmp_path: Path) -> Config:
    """A host with a collector's directory."""
    (tmp_path / "metrics").mkdir()
    return Config(state_dir=tmp_path / "state", metrics_dir=tmp_path / "metrics")


def begun(state_dir: Path, *names: str) -> Journal:
    state_dir.mkdir(exist_ok=True)
    journal = open_journal(state_dir)
    vms = [{"name": name, "uuid": f"u-{name}", "priority": 50} for name in names]
    kernel = {"from": "6.12", "to": "7.2"}
    journal.record("begin", generation="g-1", host="hv1", kernel=kernel, qemu="10.0.2", boot_id="old", vms=vms)
    journal.record("suspending")
    return journal


def ended(state_dir: Path, *names: str) -> Journal:
    """A generation that went well; each VM was paused for 2.5 s."""
    journal = begun(state_dir, *names)
    for name in names:
        journal.record("vm_paused", uuid=f"u-{name}", moment=1000.0)
        journal.record("vm_saved", uuid=f"u-{name}")
    for event in ("suspended", "jumping"):
        journal.record(event)
    journal.record("arrived", boot_id="new", kernel="7.2")
    journal.record("attached")
    for name in names:
        journal.record("vm_verified", uuid=f"u-{name}")
        journal.record("vm_resuming", uuid=f"u-{name}")
        journal.record("vm_resumed", uuid=f"u-{name}", moment=1002.5)
    journal.record("restored", qemu="11.1.3")
    return journal


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Every sample by metric. Fails on a line that the format does not allow, and on one without HELP and TYPE."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    declared: list[str] = []
    assert text.endswith("\n")
    for line in text.split("\n")[:-1]:
        if line.startswith("#"):
            declared.append(line.split()[2])
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        assert declared.count(match[1]) == 2
        found.setdefault(match[1], []).append((dict(LABEL.findall(match[2] or "")), float(match[3])))
    return found


def on(entries: list[tuple[dict[str, str], float]]) -> list[str]:
    """The values that a set of states says 1 of."""
    return [value for labels, number in entries for value in labels.values() if number == 1]


def test_a_good_upgrade(there: Config) -> None:
    journal = ended(there.state_dir, "db1", "web")
    told = samples(metrics.text_of(journal.view, "3f9a0c2b7d10"))
    assert on(told["holdfast_journal_state"]) == ["restored"]
    assert on(told["holdfast_last_upgrade_result"]) == ["upgraded"]
    assert told["holdfast_vms_waiting"] == [({}, 0)]
    assert told["holdfast_vm_pause_seconds"] == [({"vm": name, "uuid": f"u-{name}"}, 2.5) for name in ("db1", "web")]
    assert told["holdfast_agent_info"] == [({"version": "3f9a0c2b7d10"}, 1)]
    assert told["holdfast_generation_info"][0][0] == {
        "generation": "g-1", "kernel_from": "6.12", "kernel_to": "7.2", "qemu_from": "10.0.2", "qemu_to": "11.1.3"
    }  # fmt: skip
    at = told["holdfast_last_upgrade_timestamp_seconds"][0][1]
    assert at == pytest.approx(journal.view["ended_at"], abs=0.001)
    assert "holdfast_vm_waiting" not in told


def test_what_comes_after_the_end_does_not_move_it(there: Config) -> None:
    journal = ended(there.state_dir, "db1")
    at = journal.view["ended_at"]
    journal.record("warning", text="later")
    assert journal.view["updated_at"] > at
    assert journal.view["ended_at"] == at


def test_a_vm_that_waits_is_counted_and_named(there: Config) -> None:
    journal = begun(there.state_dir, "db1", "web")
    journal.record("vm_paused", uuid="u-db1")
    journal.record("vm_saved", uuid="u-db1")
    journal.record("failed", reason="it broke")
    told = samples(metrics.text_of(journal.view, ""))
    assert told["holdfast_vms_waiting"] == [({}, 1)]
    assert told["holdfast_vm_waiting"] == [({"vm": "db1", "uuid": "u-db1", "state": "suspended"}, 1)]
    assert on(told["holdfast_last_upgrade_result"]) == ["failed"]


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({}, "upgraded"),
        ({"fell_back": True}, "fell_back"),
        ({"state": "aborted"}, "aborted"),
        ({"state": "failed"}, "failed"),
        ({"vms": [{"state": "given_up"}]}, "failed"),
    ],
)
def test_results_are_the_reports_words(changes: dict[str, Any], result: str) -> None:
    view = {"state": "restored", "fell_back": False, "vms": [{"state": "resumed"}], **changes}
    assert metrics.result_of(view) == result


def test_a_generation_that_has_not_ended_has_no_result(there: Config) -> None:
    told = samples(metrics.text_of(begun(there.state_dir, "db1").view, ""))
    assert on(told["holdfast_journal_state"]) == ["suspending"]
    assert not [name for name in told if name.startswith("holdfast_last_upgrade")]


def test_a_name_stays_inside_its_label(there: Config) -> None:
    told = samples(metrics.text_of(ended(there.state_dir, HOSTILE).view, "v"))
    (labels, pause) = told["holdfast_vm_pause_seconds"][0]
    assert labels["vm"] == r"a\"b\\c\nd{e=\"f\"} 1"
    assert pause == 2.5
    assert metrics.escaped("\ud800") == "?"


def test_it_is_written_whole_and_readable_for_the_collector(there: Config) -> None:
    ended(there.state_dir, "db1")
    metrics.publish(there)
    assert there.metrics_dir
    path = there.metrics_dir / "holdfast.prom"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert on(samples(path.read_text())["holdfast_last_upgrade_result"]) == ["upgraded"]
    assert [one.name for one in there.metrics_dir.iterdir()] == ["holdfast.prom"]


def test_a_damaged_journal_is_said(there: Config) -> None:
    ended(there.state_dir, "db1")
    path = there.state_dir / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b"db1", b"db2"))
    metrics.publish(there)
    assert there.metrics_dir
    assert on(samples((there.metrics_dir / metrics.NAME).read_text())["holdfast_journal_state"]) == ["damaged"]


def test_without_the_collectors_directory_nothing_is_made(tmp_path: Path) -> None:
    metrics.publish(Config(state_dir=tmp_path / "state", metrics_dir=tmp_path / "metrics"))
    metrics.publish(Config(state_dir=tmp_path / "state", metrics_dir=None))
    assert list(tmp_path.iterdir()) == []


def test_metrics_that_cannot_be_written_stop_nothing(
    there: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_arguments: object, **_more: object) -> None:
        raise HoldfastError("cannot write: No space left on device")

    monkeypatch.setattr(metrics.durable, "write_text", full)
    metrics.publish(there)
    assert "No space left" in capsys.readouterr().err


@contextmanager
def _at_once() -> Iterator[None]:
    yield


@pytest.mark.parametrize("words", [["recover"], ["give-up", "db1"]])
def test_the_agent_publishes_however_its_work_ends(
    there: Config, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    def fail(*_arguments: object) -> str:
        ended(there.state_dir, "db1")
        raise HoldfastError("VMs are left")

    monkeypatch.setattr(config, "load", lambda: there)
    monkeypatch.setattr(turn, "taken", _at_once)
    monkeypatch.setattr(recover, words[0].replace("-", "_"), fail)
    assert agent.main(words) == 1
    assert there.metrics_dir
    assert (there.metrics_dir / metrics.NAME).exists()


@pytest.mark.parametrize(("boot", "published"), [(Boot.ORDINARY, True), (Boot.JUMPED, False), (Boot.AGAIN, False)])
def test_a_boot_publishes_unless_vms_are_about_to_be_restored(
    there: Config, monkeypatch: pytest.MonkeyPatch, boot: Boot, published: bool
) -> None:
    from ansible_collections.holdfast.kvm.plugins.module_utils._core import attach, kvm

    monkeypatch.setattr(config, "load", lambda: there)
    monkeypatch.setattr(attach, "attach", lambda _config: boot)
    monkeypatch.setattr(kvm, "make_ready", lambda: None)
    assert agent.main(["attach"]) == 0
    assert there.metrics_dir
    assert (there.metrics_dir / metrics.NAME).exists() is published


def test_the_configuration_names_the_directory_or_none(tmp_path: Path) -> None:
    pool = config.PoolConfig("fsdax", Path("/p"), ())
    path = tmp_path / "agent.json"
    for wanted in (Path("/srv/metrics"), None):
        written = Config(pool, metrics_dir=wanted)
        path.write_text(config.text_of(written))
        assert config.load(path) == written
    path.write_text(config.text_of(replace(written, metrics_dir=Path("x"))).replace('"metrics_dir": "x",', ""))
    assert config.load(path).metrics_dir == config.METRICS_DIR, "an agent that was prepared before there were metrics"
