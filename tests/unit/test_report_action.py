# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report action writes both files whole, only when they say something new, and nothing in check mode."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail

from ansible_collections.holdfast.kvm.plugins.action import report as action
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.document import decisions_digest

JOURNAL = {"state": "restored", "vms": [{"name": "db1", "state": "resumed", "paused_at": 10.0, "resumed_at": 12.0}]}


def run(dest: Path, check_mode: bool = False, plan: str = "", **outcomes: Any) -> dict[str, Any]:
    task = SimpleNamespace(
        args={"dest": str(dest), "campaign": "spring", "outcomes": outcomes, "plan": plan},
        check_mode=check_mode,
        async_val=0,
        action="holdfast.kvm.report",
        diff=False,
    )
    shell = SimpleNamespace(tmpdir=None)
    plugin = action.ActionModule(
        task=task,
        connection=SimpleNamespace(_shell=shell),
        play_context=None,
        loader=None,
        templar=None,
        shared_loader_obj=None,
    )
    return plugin.run(task_vars={})


UPGRADED = {"journal": JOURNAL, "result": "upgraded", "error": "", "proof": {"boot_id_changed": True}}


def test_writes_both_files_and_names_them(tmp_path: Path) -> None:
    result = run(tmp_path / "new" / "place", hv1=UPGRADED, hv2={})
    report = json.loads(Path(result["report_json"]).read_text(encoding="utf-8"))
    assert result["changed"]
    assert [host["result"] for host in report["hosts"]] == ["upgraded", "skipped"]
    assert result["results"] == {"hv1": "upgraded", "hv2": "skipped"}
    assert Path(result["report_html"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in (tmp_path / "new" / "place").iterdir()) == ["report.html", "report.json"]


def test_same_report_is_not_written_again(tmp_path: Path) -> None:
    run(tmp_path, hv1=UPGRADED)
    before = (tmp_path / "report.json").stat().st_ino
    assert not run(tmp_path, hv1=UPGRADED)["changed"]
    assert (tmp_path / "report.json").stat().st_ino == before
    assert run(tmp_path, hv1=UPGRADED, hv2={})["changed"]


def test_what_the_plan_predicted_stands_beside_what_happened(tmp_path: Path) -> None:
    times = {"state": "resumed", "paused_at": 10.0, "resumed_at": 12.0}
    vms = [{"name": "db1", "uuid": "u1", **times}, {"name": "new1", "uuid": "u2", **times}]
    entry = {**UPGRADED, "journal": {"state": "restored", "vms": vms}}
    vm = {"uuid": "u1", "treatment": "in_place", "pause_p95_s": 3.5}
    plan = {"schema_version": 1, "fleet": {}, "limits": {}, "batches": [], "vms": [vm]}
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "decisions_sha256": decisions_digest(plan)}))
    result = run(tmp_path / "report", plan=str(tmp_path), hv1=entry)
    (host,) = json.loads(Path(result["report_json"]).read_text(encoding="utf-8"))["hosts"]
    assert [vm["predicted_pause_s"] for vm in host["vms"]] == [3.5, None]
    assert "db1: paused 2.00 s (planned: up to 3.50 s), " in "\n".join(result["summary"])
    assert Path(result["report_html"]).read_text(encoding="utf-8").count("planned: up to 3.50 s") == 1


@pytest.mark.parametrize("text", [None, "{", '{"schema_version": 1, "fleet": {}}'])
def test_a_report_is_written_also_without_the_plan(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    result = run(tmp_path / "report", plan=str(tmp_path / "plan.json"), hv1=UPGRADED)
    assert result["results"] == {"hv1": "upgraded"}


def test_check_mode_tells_and_writes_nothing(tmp_path: Path) -> None:
    result = run(tmp_path / "place", check_mode=True, hv1=UPGRADED)
    assert result["changed"]
    assert not (tmp_path / "place").exists()


def test_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AnsibleActionFail, match=r"cannot be written to .*file.*on the controller"):
        run(tmp_path / "file", hv1=UPGRADED)


def test_half_written_report_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"schema_version": 1, "hos')
    assert run(tmp_path, hv1=UPGRADED)["changed"]
    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


def test_entry_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnsibleActionFail, match="hv1"):
        run(tmp_path, hv1="restored")
