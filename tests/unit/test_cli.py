# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: one clear error for bad input, Ansible's environment, and how a run is watched and stopped."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, CommandFailed
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.document import decisions_digest
from ansible_collections.holdfast.kvm.plugins.module_utils._report.build import build_report
from holdfast import upgrade
from holdfast.cli import main
from holdfast.progress import HARD_STOP, ExitCode, Kind, Progress, RunBegan, exit_code
from holdfast.upgrade import Place, Wish


def test_missing_inventory_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upgrade", "-i", str(tmp_path / "nope.yml")]) == ExitCode.HOST_FAILED
    assert "nope.yml does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"schema_version": 9, "campaign": "x", "created": "", "hosts": []}']
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    assert main(["report", str(path)]) == ExitCode.HOST_FAILED
    assert str(path) in capsys.readouterr().err


def test_report_is_found_in_its_directory_and_turned_into_a_page(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(build_report("spring", "2026-11-21T02:03:04Z", [])))
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "page.html")]) == ExitCode.DONE
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_recover_names_the_vms_to_give_up_and_uses_its_own_playbook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes: list[Wish] = []

    def carry_out(wish: Wish, _view: object) -> ExitCode:
        wishes.append(wish)
        return ExitCode.DONE

    monkeypatch.setattr(upgrade, "carry_out", carry_out)
    words = ["recover", "-i", str(tmp_path), "--limit", "hv1", "--give-up", "db 1", "--give-up", "web", "--check"]
    assert main(words) == ExitCode.DONE
    assert (wishes[0].playbook, wishes[0].limit, wishes[0].check) == (upgrade.RECOVER, "hv1", ("--check",))
    assert json.loads(wishes[0].extra_vars[0]) == {"holdfast_give_up": ["db 1", "web"]}
    assert main(["recover", "-i", str(tmp_path)]) == ExitCode.DONE
    assert wishes[1].extra_vars == ()


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        ((), ()),
        (("--verify-ram", "full"), ({"live_update_verify_ram": "full"},)),
        (("--rehearse",), ({"live_update_rehearse": True},)),
        (("--only", "qemu"), ({"holdfast_only": "qemu"},)),
    ],
)
def test_options_of_an_upgrade_are_variables_of_its_roles(
    words: tuple[str, ...], variables: tuple[dict[str, Any], ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes: list[Wish] = []
    monkeypatch.setattr(upgrade, "carry_out", lambda wish, _view: wishes.append(wish) or ExitCode.DONE)
    assert main(["upgrade", "-i", str(tmp_path), "-e", "a=b", *words]) == ExitCode.DONE
    given, *ours = wishes[0].extra_vars
    assert given == "a=b"
    assert tuple(map(json.loads, ours)) == variables


LISTED = """
playbook: /x/playbooks/upgrade.yml

  play #1 (localhost): Make sure that there is a fleet\tTAGS: []
    pattern: ['localhost']
    hosts (1):
      localhost

  play #2 (hypervisors): Upgrade each host in place\tTAGS: []
    pattern: ['hypervisors']
    hosts (2):
      hv2
      hv1

  play #3 (hypervisors): Again\tTAGS: []
    pattern: ['hypervisors']
    hosts (1):
      hv1
"""


def test_hosts_are_listed_once_and_in_order() -> None:
    assert upgrade.hosts_listed(LISTED) == ("hv2", "hv1")


def test_hosts_are_ordered_as_a_person_would() -> None:
    assert upgrade.by_name(["hv10", "hv2", "b", "hv1.x2", "7"]) == ["7", "b", "hv1.x2", "hv2", "hv10"]


def listing(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], str]) -> None:
    monkeypatch.setattr(upgrade, "run", lambda *_, **__: answer())


BATCHES = [
    {"hosts": ["hv10", "hv2"], "seconds": 60, "evacuations": []},
    {"hosts": ["hv1"], "seconds": 30, "evacuations": []},
]
PLAN: dict[str, Any] = {"schema_version": 1, "fleet": {}, "limits": {}, "vms": [], "batches": BATCHES}


def test_hosts_of_a_plan_come_in_its_order_and_others_by_name(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, "decisions_sha256": decisions_digest(PLAN)}))
    batches = upgrade.planned_batches(tmp_path)
    assert upgrade.in_order(("hv1", "hv2", "hv10"), batches) == (("hv10", "hv2", "hv1"), batches)
    hosts, limited = upgrade.in_order(("hv1", "hv2"), batches)
    assert (hosts, [batch.hosts for batch in limited]) == (("hv2", "hv1"), [("hv2",), ("hv1",)])
    assert upgrade.in_order(("hv10", "hv2"), ()) == (("hv2", "hv10"), ())


def test_a_plan_that_cannot_be_read_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.json").write_text('{"schema_version": 0}')
    assert main(["upgrade", "-i", str(tmp_path), "--plan", str(tmp_path)]) == ExitCode.HOST_FAILED
    assert "is no plan of schema version 1" in capsys.readouterr().err


def test_a_plan_is_named_to_the_playbook_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (variables,) = upgrade.plan_variables(Path("may/plan.json"))
    assert json.loads(variables) == {"holdfast_plan": f"{tmp_path}/may/plan.json"}
    assert upgrade.plan_variables(None) == ()


def test_inventory_without_hosts_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listing(monkeypatch, lambda: "    hosts (0):\n")
    with pytest.raises(BadInput, match=r"has no host for .* within --limit web") as caught:
        upgrade.chosen_hosts(Wish(tmp_path, limit="web"), {})
    assert "--graph" in caught.value.hint


def test_inventory_that_ansible_refuses_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse() -> str:
        raise CommandFailed("ansible-playbook ended with 1:\n[WARNING]: noise\n[ERROR]: leaves us with no hosts")

    listing(monkeypatch, refuse)
    with pytest.raises(BadInput, match="leaves us with no hosts") as caught:
        upgrade.chosen_hosts(Wish(tmp_path), {})
    assert "noise" not in caught.value.message


def test_environment_puts_our_collection_first_and_checks_host_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ansible.cfg").touch()
    found = upgrade.ansible_environment({"PATH": "/bin", "ANSIBLE_COLLECTIONS_PATH": "/theirs"})
    ours, theirs = found["ANSIBLE_COLLECTIONS_PATH"].split(os.pathsep)
    assert theirs == "/theirs"
    assert (Path(ours) / "ansible_collections" / "holdfast" / "kvm" / "plugins").is_dir()
    assert found["ANSIBLE_HOST_KEY_CHECKING"] == "True"
    assert found["ANSIBLE_CONFIG"] == str(tmp_path / "ansible.cfg")
    assert "ANSIBLE_CONFIG" not in upgrade.ansible_environment({"ANSIBLE_CONFIG": "/mine"})


def test_run_directory_is_private_and_new(tmp_path: Path) -> None:
    first, second = upgrade.new_place(tmp_path / "state"), upgrade.new_place(tmp_path / "state")
    assert first.root != second.root
    assert stat.S_IMODE(first.root.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(BadInput, match="cannot be made"):
        upgrade.new_place(tmp_path / "state")


def test_variable_files_are_found_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = upgrade.ansible_arguments(Wish(Path("i"), "hv1", ("--check",), ("@vars.yml", "a=b")))
    assert words == ["--limit", "hv1", "--check", "--extra-vars", f"@{tmp_path}/vars.yml", "--extra-vars", "a=b"]


def test_extra_vars_are_on_no_command_line_and_in_no_artifact_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Any]] = {"lines": [], "values": []}

    def listed(words: list[str], **_more: object) -> str:
        look(words)
        return LISTED

    def look(words: list[str]) -> None:
        seen["lines"].append(" ".join(words))
        files = [Path(word[1:]) for word in words if word.startswith("@")]
        assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3
        seen["values"].append([json.loads(file.read_text()) for file in files])

    def play(**options: Any) -> Any:
        look(shlex.split(options["cmdline"]))
        root = Path(options["private_data_dir"])
        for artifact in ("env/envvars", "artifacts/ansible/command", "artifacts/ansible/stdout"):
            (root / artifact).parent.mkdir(parents=True, exist_ok=True)
            (root / artifact).write_text("TOKEN=tr0ub4dor" if "stdout" not in artifact else "")
        return SimpleNamespace(rc=0)

    monkeypatch.setattr(upgrade, "run", listed)
    monkeypatch.setitem(sys.modules, "ansible_runner", SimpleNamespace(run=play))
    given = ("token=tr0ub4dor a='b c'", '{"token": "tr0ub4dor"}', '{"t": "tr0ub4dor"}')
    upgrade.carry_out(Wish(tmp_path, extra_vars=given), Silent)
    assert len(seen["lines"]) == 2
    assert not any("tr0ub4dor" in line for line in seen["lines"])
    for values in seen["values"]:
        assert values == [{"token": "tr0ub4dor", "a": "b c"}, {"token": "tr0ub4dor"}, {"t": "tr0ub4dor"}]
    kept = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert kept, "the log of the run stays"
    assert not any("tr0ub4dor" in path.read_text() for path in kept)


def test_what_a_killed_run_left_behind_is_deleted_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state" / "holdfast"
    killed, living, cut_off = (upgrade.new_place(state) for _ in range(3))
    cut_off.progress_file.unlink()
    for place in (killed, living, cut_off):
        upgrade.as_files(("token=tr0ub4dor",), place.variables)
    monkeypatch.setattr(upgrade, "run", lambda _words, **_more: LISTED)
    monkeypatch.setitem(sys.modules, "ansible_runner", SimpleNamespace(run=lambda **_options: SimpleNamespace(rc=0)))
    with living.at_work():
        upgrade.carry_out(Wish(tmp_path), Silent)
    assert [place.variables.exists() for place in (killed, living, cut_off)] == [False, True, False]
    assert killed.progress_file.exists()


def test_progress_file_is_read_line_by_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.touch()
    lines = upgrade.progress_lines(path)
    assert next(lines) == []
    with path.open("a") as handle:
        handle.write('{"host": "hv1", "line": "a"}\nnonsense\n{"host": ')
        handle.flush()
        assert [event.data["line"] for event in next(lines)] == ["a"]
        handle.write('"hv1", "line": "b"}\n')
        handle.flush()
        assert [event.data["line"] for event in next(lines)] == ["b"]


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Silent:
    """A view that only remembers."""

    shown: Progress | None = None
    closed: Progress | None = None

    def show(self, progress: Progress) -> None:
        self.shown = progress

    def close(self, progress: Progress) -> None:
        self.closed = progress


def started(host: str) -> Mapping[str, Any]:
    return {"event": "runner_on_start", "event_data": {"host": host, "resolved_role": "holdfast.kvm.live_update"}}


def finished(host: str) -> Mapping[str, Any]:
    action = "holdfast.kvm.live_update"
    return {
        "event": "runner_on_ok",
        "event_data": {"host": host, "resolved_action": action, "res": {"result": "upgraded"}},
    }


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return upgrade.new_place(tmp_path / "state")


def test_first_interrupt_leaves_a_stop_file_and_lets_the_host_finish(place: Place) -> None:
    def start(on_event: Callable[[Mapping[str, Any]], bool], cancelled: Callable[[], bool]) -> int:
        on_event(started("hv1"))
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(place.stop_file.exists)
        assert not cancelled()
        on_event(finished("hv1"))
        return 0

    view = Silent()
    progress = upgrade.watched(Progress("spring"), RunBegan(1.0, ("hv1", "hv2")), place, view, start)
    assert exit_code(progress) is ExitCode.STOPPED
    assert not progress.cancelled
    assert view.closed == progress


def test_second_interrupt_tells_what_the_third_does(place: Place) -> None:
    view = Silent()

    def start(on_event: Callable[[Mapping[str, Any]], bool], cancelled: Callable[[], bool]) -> int:
        # Two signals at the same moment would arrive as one.
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(place.stop_file.exists)
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: view.shown is not None and view.shown.warned)
        assert not cancelled()
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(cancelled)
        return 254

    progress = upgrade.watched(Progress("spring"), RunBegan(1.0, ("hv1",)), place, view, start)
    assert [one.text for one in progress.happenings if one.kind is Kind.STOP][1] == HARD_STOP
    assert progress.cancelled
    assert exit_code(progress) is ExitCode.STOPPED


def test_signals_are_given_back(place: Place) -> None:
    before = signal.getsignal(signal.SIGINT)
    upgrade.watched(
        Progress("spring"),
        RunBegan(1.0, ("hv1",)),
        place,
        Silent(),
        lambda on_event, _: int(not on_event(finished("hv1"))),
    )
    assert signal.getsignal(signal.SIGINT) is before


def test_failure_that_nothing_explains_points_to_the_log(place: Place) -> None:
    place.log.parent.mkdir(parents=True)
    place.log.write_text("noise\n[ERROR]: couldn't resolve module/action 'nope'\nmore\n")
    with pytest.raises(CommandFailed, match="couldn't resolve module") as caught:
        upgrade.watched(Progress("spring"), RunBegan(1.0, ("hv1",)), place, Silent(), lambda *_: 4)
    assert str(place.log) in caught.value.hint
