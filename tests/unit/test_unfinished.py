# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An upgrade whose controller died is known on this machine, and ``recover --resume`` goes on with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast import unfinished, upgrade
from holdfast.cli import main
from holdfast.progress import ExitCode
from holdfast.upgrade import Wish

# A controller that is at work until somebody kills it.
AT_WORK = """
import sys, time
from pathlib import Path
from holdfast import unfinished
with unfinished.on_record(Path(sys.argv[1]), unfinished.asked(sys.argv[3:], Path(sys.argv[2]))):
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "hosts.yml"
    path.write_text("hypervisors: {}\n")
    return path


@pytest.fixture
def state() -> Path:
    return upgrade.state_dir(os.environ)


@pytest.fixture
def wishes(monkeypatch: pytest.MonkeyPatch) -> list[Wish]:
    """What is carried out, all of it well."""
    found: list[Wish] = []
    monkeypatch.setattr(upgrade, "carry_out", lambda wish, _view: found.append(wish) or ExitCode.DONE)
    return found


def killed(state: Path, inventory: Path, words: list[str], cwd: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", AT_WORK, str(state), str(inventory), *words], cwd=cwd, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    assert unfinished.died(state, str(inventory)) == ()
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_what_was_killed_is_gone_on_with_where_it_was_begun(
    state: Path, inventory: Path, wishes: list[Wish], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun here"
    begun.mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["upgrade", "-i", "../hosts.yml", "--limit", "hv1", "-e", "a=secret", "--campaign", "may"]
    killed(state, inventory, words, begun)
    assert main(["recover", "-i", str(inventory), "--resume"]) == ExitCode.DONE
    assert [wish.playbook for wish in wishes] == [upgrade.RECOVER, upgrade.UPGRADE]
    assert (wishes[1].limit, wishes[1].campaign, wishes[1].extra_vars) == ("hv1", "may", ("a=secret",))
    assert Path.cwd() == begun
    # That came to its end, so there is nothing left.
    assert unfinished.died(state, str(inventory)) == ()
    assert main(["recover", "-i", str(inventory), "--resume"]) == ExitCode.DONE
    assert len(wishes) == 3


def test_recover_tells_of_it_and_does_not_go_on_unasked(
    state: Path, inventory: Path, wishes: list[Wish], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["upgrade", "-i", str(inventory), "-e", "a=secret", "--extra-vars=b=secret", "-ec=secret"]
    killed(state, inventory, words, tmp_path)
    assert main(["recover", "-i", str(inventory)]) == ExitCode.DONE
    told = capsys.readouterr().err
    assert "died with its controller" in told
    assert "--resume" in told
    assert "secret" not in told
    assert [wish.playbook for wish in wishes] == [upgrade.RECOVER]
    assert len(unfinished.died(state, str(inventory))) == 1


@pytest.mark.parametrize("words", [("--check",), ()])
def test_it_does_not_go_on_while_a_vm_waits_nor_in_check_mode(
    words: tuple[str, ...], state: Path, inventory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = ExitCode.DONE if words else ExitCode.HOST_FAILED
    found: list[Wish] = []
    monkeypatch.setattr(upgrade, "carry_out", lambda wish, _view: found.append(wish) or code)
    killed(state, inventory, ["upgrade", "-i", str(inventory)], tmp_path)
    assert main(["recover", "-i", str(inventory), "--resume", *words]) == code
    assert [wish.playbook for wish in found] == [upgrade.RECOVER]
    assert len(unfinished.died(state, str(inventory))) == 1


def test_an_upgrade_that_ends_by_itself_leaves_no_record(
    state: Path, inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_wish: Wish, _view: object) -> ExitCode:
        assert len(list((state / unfinished.FOLDER).iterdir())) == 1
        return ExitCode.REFUSED

    monkeypatch.setattr(upgrade, "carry_out", refused)
    assert main(["upgrade", "-i", str(inventory)]) == ExitCode.REFUSED
    assert list((state / unfinished.FOLDER).iterdir()) == []


def test_a_new_upgrade_takes_the_place_of_the_one_that_died(
    state: Path, inventory: Path, wishes: list[Wish], tmp_path: Path
) -> None:
    killed(state, inventory, ["upgrade", "-i", str(inventory), "--limit", "hv1"], tmp_path)
    other = tmp_path / "others.yml"
    killed(state, other, ["upgrade", "-i", str(other)], tmp_path)
    assert main(["upgrade", "-i", str(inventory), "--check"]) == ExitCode.DONE
    assert len(unfinished.died(state, str(inventory))) == 1
    assert main(["upgrade", "-i", str(inventory)]) == ExitCode.DONE
    assert unfinished.died(state, str(inventory)) == ()
    assert len(unfinished.died(state, str(other))) == 1


def test_a_record_that_was_cut_off_is_none(state: Path, inventory: Path) -> None:
    (state / unfinished.FOLDER).mkdir(parents=True)
    (state / unfinished.FOLDER / "x.json").write_text('{"words": ["upgr')
    assert unfinished.died(state, str(inventory)) == ()


def test_of_several_the_newest_comes_last(state: Path, inventory: Path) -> None:
    (state / unfinished.FOLDER).mkdir(parents=True)
    old = replace(unfinished.asked(["upgrade"], inventory), since=1.0)
    with unfinished.on_record(state, old):
        text = next((state / unfinished.FOLDER).iterdir()).read_text()
    for name, since in (("b", "1.0"), ("a", "2.0")):
        (state / unfinished.FOLDER / f"{name}.json").write_text(text.replace('"since": 1.0', f'"since": {since}'))
    assert [one.since for _path, one in unfinished.died(state, str(inventory))] == [1.0, 2.0]


def test_where_its_folder_is_gone_that_is_one_clear_error(
    state: Path, inventory: Path, wishes: list[Wish], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    killed(state, inventory, ["upgrade", "-i", str(inventory)], begun)
    begun.rmdir()
    assert main(["recover", "-i", str(inventory), "--resume"]) == ExitCode.HOST_FAILED
    assert "cannot be entered" in capsys.readouterr().err
    assert len(wishes) == 1
