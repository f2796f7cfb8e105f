# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recover action survives a host that jumps back to its old kernel, and the playbook leaves no host out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleConnectionFailure

from ansible_collections.holdfast.kvm.plugins.action import recover

REPOSITORY = Path(__file__).parents[2]
LOST = AnsibleConnectionFailure("Failed to connect to the host via ssh: Connection timed out")
DONE = {"changed": False, "standing": "no live update is in flight", "waiting": []}


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Stage:
    """The action before a connection of which nothing is asked but its options, and a module with played answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[Any], **args: Any) -> None:
        self.answers = answers
        self.clock = Clock()
        self.options: dict[str, Any] = {"timeout": 10, "reconnection_retries": 0, "ssh_extra_args": "-o Port=22"}
        self.seen: list[dict[str, Any]] = []
        self.connection = MagicMock(
            transport="ssh", get_option=self.options.__getitem__, set_option=self.options.__setitem__
        )
        self.task = MagicMock(args=args, check_mode=False, async_val=0)
        monkeypatch.setattr(recover, "time", self.clock)
        monkeypatch.setattr(recover, "display", MagicMock())

    def run(self) -> dict[str, Any]:
        action = recover.ActionModule(self.task, self.connection, MagicMock(), MagicMock(), MagicMock(), MagicMock())
        action._execute_module = self._module
        result: dict[str, Any] = action.run(task_vars={"inventory_hostname": "hv1"})
        return result

    def _module(self, **_call: Any) -> dict[str, Any]:
        self.seen.append(dict(self.options))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


def test_a_host_with_nothing_to_recover_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, [DONE])
    assert stage.run()["changed"] is False
    assert len(stage.seen) == 1


def test_a_host_that_jumps_back_is_waited_for_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, [LOST, LOST, DONE])
    before = dict(stage.options)
    result = stage.run()
    assert (result.get("failed"), result["changed"], result["standing"]) == (None, True, DONE["standing"])
    assert len(stage.seen) == 3
    assert "ServerAliveInterval" in stage.seen[0]["ssh_extra_args"]
    assert stage.options == before


def test_a_failure_is_the_hosts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, [LOST, {"failed": True, "msg": "VM db (lost)", "waiting": [{"name": "db"}]}])
    assert stage.run()["msg"] == "VM db (lost)"


def test_a_host_that_does_not_return_fails_and_is_not_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, [LOST], timeout_s=60)
    result = stage.run()
    assert result["failed"] is True
    assert "unreachable" not in result
    assert "hv1 gave no answer within 60 s" in result["msg"]
    assert stage.clock.now <= 60


STUB = """
from ansible.module_utils.basic import AnsibleModule
def main():
    module = AnsibleModule({"give_up": {"type": "list", "elements": "str"}})
    module.fail_json(msg="db waits") if "db" not in module.params["give_up"] else module.exit_json(standing="well")
main()
"""

HOLD = """
from ansible.module_utils.basic import AnsibleModule
AnsibleModule({"state": {}}).exit_json()
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """The real playbook, over a module that fails on every host that has not been told to give db up."""
    collection = tmp_path / "ansible_collections" / "holdfast" / "kvm"
    shutil.copytree(REPOSITORY / "playbooks", collection / "playbooks")
    shutil.copy(REPOSITORY / "galaxy.yml", collection)
    (collection / "plugins/modules").mkdir(parents=True)
    (collection / "plugins/modules/recover.py").write_text(STUB)
    (collection / "plugins/modules/campaign_lock.py").write_text(HOLD)
    hosts = [
        "h1 ansible_host=127.0.0.1 ansible_port=1 ansible_connection=ssh",
        "h2 ansible_connection=local",
        "h3 ansible_connection=local holdfast_give_up='[\"db\"]'",
    ]
    (tmp_path / "inventory.ini").write_text("\n".join(["[hypervisors]", *hosts, ""]))
    return tmp_path


def test_a_host_that_fails_stops_no_other(fleet: Path) -> None:
    playbook = fleet / "ansible_collections/holdfast/kvm/playbooks/recover.yml"
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", fleet / "inventory.ini", playbook]
    extra = ("ansible_become=false", "holdfast_reach_timeout_s=2", f"ansible_python_interpreter={sys.executable}")
    quiet = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(fleet / "home"), "ANSIBLE_COLLECTIONS_PATH": str(fleet)}
    done = subprocess.run(
        [*command, *(part for pair in extra for part in ("-e", pair))],
        env={**os.environ, **quiet},
        cwd=fleet,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "db waits" in done.stdout
    assert "h3: well" in done.stdout
    recap = {line.split()[0]: line for line in done.stdout.partition("PLAY RECAP")[2].splitlines() if " : " in line}
    assert {name: "failed=1" in line for name, line in recap.items()} == {"h1": True, "h2": True, "h3": False}
