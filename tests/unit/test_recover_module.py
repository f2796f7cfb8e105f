# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recover module tells what waits and why, gives up only what still waits, and touches nothing in a check."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args

from ansible_collections.holdfast.kvm.plugins.module_utils._core import journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import Journal
from ansible_collections.holdfast.kvm.plugins.modules import recover

GENERATION = "g-20261121T020000-ab12cd"
DB, WEB = "u-db", "u-web"
VMS = [
    {"name": "db", "uuid": DB, "priority": 80, "treatment": "in_place", "reason": ""},
    {"name": "web", "uuid": WEB, "priority": 20, "treatment": "in_place", "reason": "", "may_restart": True},
]


class Ended(Exception):
    """The module printed its result and left."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result)
        self.result = result


class Host:
    """A real journal, and a systemd behind which a test plays the agent."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.commands: list[str] = []
        self.units = "inactive\n\ninactive\n"
        self.said = ""
        self.agent: Callable[[], None] = lambda: None

    @property
    def journal(self) -> Journal:
        return journal.open_journal(self.state_dir)

    def record(self, *events: str, **fields: Any) -> None:
        current = self.journal
        for event in events:
            current.record(event, **fields)

    def begun(self) -> None:
        kernel = {"from": "6.12", "to": "7.2"}
        self.record("begin", generation=GENERATION, host="hv1", kernel=kernel, qemu="10", boot_id="old", vms=VMS)
        self.record("suspending")

    def arrived(self) -> None:
        self.begun()
        for uuid in (DB, WEB):
            self.record("vm_paused", uuid=uuid, was_paused=False)
            self.record("vm_saved", uuid=uuid, ram_bytes=1, state_bytes=1)
        self.record("suspended", "jumping")
        self.record("arrived", boot_id="new", kernel="7.2")
        self.record("attached", "restoring")

    def resumed(self, *uuids: str) -> None:
        for uuid in uuids:
            self.record("vm_resuming", uuid=uuid)
            self.record("vm_resumed", uuid=uuid, moment=2.0, qemu="11")

    def closed(self, ending: str, **fields: Any) -> None:
        self.record(ending, qemu="11", **fields)
        if self.journal.is_settled:
            self.journal.archive()

    def run(self, argv: list[str], **_more: object) -> str:
        self.commands.append(" ".join(argv[:2]))
        if argv[:2] == ["systemctl", "start"]:
            self.agent()
        elif argv[0] == "setsid":
            self.give_up(argv[argv.index("--") + 1 :])
        elif argv[:2] == ["systemctl", "show"]:
            return self.units if "ActiveState" in argv[3] else "0123abcd\n"
        return self.said if argv[0] == "journalctl" and "--sync" not in argv else ""

    def give_up(self, names: list[str]) -> None:
        current = self.journal
        for vm in current.vms:
            if vm["name"] in names:
                current.record("vm_given_up", uuid=vm["uuid"])
        if current.is_settled:
            current.archive()

    def fails_saying(self, words: str) -> None:
        self.said = f"pool attached\nholdfast: {words}\n"
        raise CommandFailed("systemctl start ended with 1: Job failed. See journalctl -xe")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host(tmp_path)

    def exit_json(_module: object, **result: Any) -> None:
        raise Ended(result)

    def fail_json(_module: object, msg: str, **result: Any) -> None:
        raise Ended({"failed": True, "msg": msg, **result})

    monkeypatch.setattr(basic.AnsibleModule, "exit_json", exit_json)
    monkeypatch.setattr(basic.AnsibleModule, "fail_json", fail_json)
    monkeypatch.setattr(recover.config, "load", lambda: Config(state_dir=tmp_path))
    monkeypatch.setattr(recover.command, "run", found.run)
    boots_as(monkeypatch, "new", f"ro holdfast.generation={GENERATION}")
    return found


def boots_as(monkeypatch: pytest.MonkeyPatch, boot_id: str, cmdline: str = "ro") -> None:
    monkeypatch.setattr(recover.attach.kexec, "boot_id", lambda: boot_id)
    monkeypatch.setattr(recover.attach.kexec, "running_cmdline", lambda: cmdline)


def run(*, check: bool = False, **options: Any) -> dict[str, Any]:
    with patch_module_args({**options, "_ansible_check_mode": check}), pytest.raises(Ended) as ended:
        recover.main()
    json.dumps(ended.value.result)  # it must be fit to be printed
    return ended.value.result


def names_waiting(result: dict[str, Any]) -> list[str]:
    return [vm["name"] for vm in result["waiting"]]


@pytest.mark.parametrize("check", [False, True])
def test_a_host_with_nothing_in_flight_is_left_alone(host: Host, check: bool) -> None:
    result = run(check=check)
    assert (result["changed"], result["state"], result["standing"]) == (False, "none", "no live update is in flight")
    assert host.commands == []


def test_a_journal_that_is_missing_is_not_taken_for_a_host_at_rest(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = SimpleNamespace(state_dir=host.state_dir, pool="a pool")
    monkeypatch.setattr(recover.config, "load", lambda: prepared)
    result = run()
    assert result["failed"]
    assert f"started for live update {GENERATION}, of which there is no journal" in result["msg"]
    assert "put " in result["msg"]
    assert host.commands == []


def test_what_was_in_flight_is_finished_once(host: Host) -> None:
    host.arrived()

    def agent() -> None:
        host.resumed(DB, WEB)
        host.closed("restored", reason="")

    host.agent = agent
    result = run()
    assert (result["changed"], result["state"], result["waiting"]) == (True, "restored", [])
    assert result["standing"] == f"live update {GENERATION} is done"
    again = run()
    assert not again["changed"]
    assert again["standing"] == f"no live update is in flight; the last live update {GENERATION} is done"
    assert host.commands == ["systemctl start"]


def test_a_host_that_went_back_says_so(host: Host) -> None:
    host.arrived()

    def agent() -> None:
        host.record("falling_back", reason="there is no /dev/kvm")
        host.record("arrived", boot_id="back", kernel="6.12")
        host.record("attached", "restoring")
        host.resumed(DB, WEB)
        host.closed("restored", reason="there is no /dev/kvm")

    host.agent = agent
    assert run()["standing"] == f"live update {GENERATION} fell back to kernel 6.12: there is no /dev/kvm"


@pytest.mark.parametrize(
    ("boot", "words"),
    [
        (("new", f"ro holdfast.generation={GENERATION}"), "would be restored, or the host goes back"),
        (("third", f"ro holdfast.generation={GENERATION}"), "would be restored, or the host goes back"),
        (("cold", "ro"), "RAM is gone"),
        (("old", "ro"), "would go on under the kernel that runs"),
    ],
)
def test_a_check_says_what_would_be_done_and_does_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch, boot: tuple[str, str], words: str
) -> None:
    host.arrived()
    before = host.journal.path.read_bytes()
    boots_as(monkeypatch, *boot)
    result = run(check=True, give_up=["db", "ghost"])
    assert result["changed"]
    assert words in result["standing"]
    assert result["standing"].endswith("given up unless they come back: db")
    assert (names_waiting(result), result["given_up"]) == (["db", "web"], ["db"])
    assert host.commands == ["systemctl show"]
    assert host.journal.path.read_bytes() == before


def test_a_check_knows_that_the_host_is_at_work(host: Host) -> None:
    host.arrived()
    host.units = "inactive\n\nactivating\n"
    assert "at work" in run(check=True)["standing"]


def test_a_vm_that_cannot_be_brought_back_fails_with_the_agents_words_and_a_remedy(host: Host) -> None:
    host.arrived()

    def agent() -> None:
        host.resumed(WEB)
        host.record("vm_failed", uuid=DB, error="QEMU refuses its state")
        host.record("failed", reason="not brought back: db: QEMU refuses its state")
        host.fails_saying("not brought back: db: QEMU refuses its state -- their RAM and state are kept")

    host.agent = agent
    result = run()
    assert result["failed"]
    assert result["msg"].startswith("not brought back: db: QEMU refuses its state")
    assert "VM db (failed): its RAM and state are kept" in result["msg"]
    assert (names_waiting(result), result["changed"], result["state"]) == (["db"], True, "failed")


def test_without_the_agents_words_systemds_are_told(host: Host) -> None:
    host.arrived()

    def agent() -> None:
        raise CommandFailed("Unit holdfast-restore.service not found.")

    host.agent = agent
    assert run()["msg"].startswith("Unit holdfast-restore.service not found.")


def test_a_recovery_that_takes_longer_is_left_to_the_host(host: Host) -> None:
    host.arrived()

    def agent() -> None:
        host.units = "inactive\n\nactivating\n"
        raise CommandFailed("systemctl did not end within 5 s")

    host.agent = agent
    result = run(timeout_s=5, give_up=["db"])
    assert "still under way after 5 s" in result["msg"]
    assert "setsid --wait" not in host.commands


def test_only_what_still_waits_is_given_up(host: Host) -> None:
    host.arrived()

    def agent() -> None:
        if host.journal.vm(WEB)["state"] == "suspended":
            host.resumed(WEB)
        host.record("vm_failed", uuid=DB, error="QEMU refuses its state")
        host.record("failed", reason="not brought back: db")
        host.fails_saying("not brought back: db")

    host.agent = agent
    result = run(give_up=["db", "web"])
    assert "failed" not in result
    assert (result["given_up"], result["waiting"]) == (["db"], [])
    assert result["standing"].endswith("; given up: db")
    assert host.journal.state == "none"
    again = run(give_up=["db", "web"])
    assert (again["changed"], again["given_up"]) == (False, ["db"])


def test_a_vm_that_lost_its_ram_waits_until_it_is_given_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.arrived()
    boots_as(monkeypatch, "cold")

    def agent() -> None:
        if host.journal.state != "failed":
            host.record("failed", reason="the contents of its RAM are gone")
            for uuid in (DB, WEB):
                host.record("vm_lost", uuid=uuid, error="its RAM was lost")
            host.record("vm_restarted", uuid=WEB)

    host.agent = agent
    result = run()
    assert result["failed"]
    assert "VM db (lost): its RAM is gone: give it up" in result["msg"]
    assert "started afresh: web" in result["standing"]
    assert not run(check=True)["changed"]
    done = run(give_up=["db"])
    assert (done.get("failed"), done["waiting"], host.journal.state) == (None, [], "none")


def test_a_damaged_journal_is_told_and_nothing_is_started(host: Host) -> None:
    host.arrived()
    lines = host.journal.path.read_text().splitlines(keepends=True)
    host.journal.path.write_text("".join([lines[0], lines[1].replace("event", "evemt"), *lines[2:]]))
    result = run()
    assert "is damaged" in result["msg"]
    assert host.commands == []
