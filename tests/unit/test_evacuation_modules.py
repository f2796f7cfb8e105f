# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules and action plugins of an evacuation: options become wishes, outcomes become results, nothing in a check."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleConnectionFailure
from module_run import run

from ansible_collections.holdfast.kvm.plugins.action import tls as tls_action
from ansible_collections.holdfast.kvm.plugins.action import vm_migrate as migrate_action
from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    away,
    certificates,
    collect,
    config,
    evacuation,
    monitor,
    releases,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.evacuation import Outcome
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import HostFacts, QemuFacts, Runs, VmFacts
from ansible_collections.holdfast.kvm.plugins.module_utils._core.images import CopyPlan
from ansible_collections.holdfast.kvm.plugins.module_utils._core.migration import Whereabouts
from ansible_collections.holdfast.kvm.plugins.modules import evacuated, evacuees, tls, vm_migrate
from ansible_collections.holdfast.kvm.plugins.plugin_utils import _progress

OLD, NEW = "6.12.107+deb13-amd64", "7.2.12+deb13-amd64"
VMS = tuple(VmFacts(name, f"uuid-{name}", state="running", domain_id=number) for number, name in enumerate("ab", 1))
MOVED = Outcome(Whereabouts.DESTINATION, pause_s=0.21, seconds=12.3, tries=1)
STAYED = Outcome(Whereabouts.SOURCE, error="connection reset", tries=2)


class Hosts:
    """Two hosts whose libvirt answers, and what the core was asked to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.outcome = MOVED
        self.moves: list[Any] = []
        self.stays = True
        self.trouble: HoldfastError | None = None
        self.asked: list[str] = []
        self.here, self.there = MagicMock(name="here"), MagicMock(name="there")
        self.vm = MagicMock(uuid="uuid-db")
        self.vm.name = "db"
        self.running = {id(self.here): [self.vm], id(self.there): []}
        monkeypatch.setattr(vm_migrate, "connect", self.connect)
        monkeypatch.setattr(vm_migrate, "reach", self.connect)
        monkeypatch.setattr(evacuation, "stays", lambda _here, _vm: self.stays)
        monkeypatch.setattr(evacuation, "find", self.find)
        monkeypatch.setattr(evacuation, "attempted", self.attempted)
        monkeypatch.setattr(vm_migrate, "Move", self.move)
        monkeypatch.setattr(vm_migrate.signal, "signal", lambda *_: None)
        monkeypatch.setattr(config, "load", lambda: config.Config(state_dir=folder))

    @contextlib.contextmanager
    def connect(self, uri: str = "here") -> Iterator[Any]:
        self.asked.append(uri)
        if self.trouble and uri != "here":
            raise self.trouble
        yield self.here if uri == "here" else self.there

    def find(self, hypervisor: Any, name: str) -> Any:
        return next((vm for vm in self.running[id(hypervisor)] if vm.name == name), None)

    def move(self, *_parts: Any) -> Any:
        return MagicMock(copy=CopyPlan(), wish=_parts[3])

    def attempted(self, move: Any, journey: Any, _folder: Path) -> Outcome:
        self.moves.append((move.wish, journey))
        return self.outcome


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hosts:
    return Hosts(monkeypatch, tmp_path)


# vm_migrate


def test_a_vm_that_was_moved_is_a_change(hosts: Hosts) -> None:
    result = run(vm_migrate, name="db", destination="hv2", home="hv1")
    assert (result["changed"], result["moved"], result["whereabouts"]) == (True, True, "destination")
    assert "db runs at hv2 after 12 s, where it stood still for 0.21 s" in result["msg"]
    assert hosts.asked == ["here", "qemu+tls://hv2/system"]


def test_a_vm_that_stays_is_a_failure_that_says_where_it_is(hosts: Hosts) -> None:
    hosts.outcome = STAYED
    result = run(vm_migrate, name="db", destination="hv2")
    assert (result["failed"], result["whereabouts"]) == (True, "source")
    assert "runs on where it was: connection reset" in result["msg"]


@pytest.mark.parametrize("place", [Whereabouts.BOTH, Whereabouts.NOWHERE, Whereabouts.UNPROVEN])
def test_a_vm_of_which_nobody_knows_is_left_to_a_person(hosts: Hosts, place: Whereabouts) -> None:
    hosts.outcome = replace(STAYED, whereabouts=place)
    result = run(vm_migrate, name="db", destination="hv2")
    assert result["failed"]
    assert result["whereabouts"] == place.name.lower()
    assert "before anything else is done to it" in result["msg"]


@pytest.mark.parametrize(("stays", "place"), [(True, "source"), (False, "unproven")])
def test_a_destination_that_does_not_answer_leaves_the_vm_where_it_is(hosts: Hosts, stays: bool, place: str) -> None:
    hosts.trouble, hosts.stays = HoldfastError("libvirt does not answer at hv2"), stays
    result = run(vm_migrate, name="db", destination="hv2")
    assert (result["failed"], result["refused"], result["whereabouts"]) == (True, False, place)


def test_a_vm_that_is_there_already_is_no_change(hosts: Hosts) -> None:
    hosts.running = {id(hosts.here): [], id(hosts.there): [hosts.vm]}
    result = run(vm_migrate, name="db", destination="hv2")
    assert (result["changed"], result["whereabouts"], hosts.moves) == (False, "destination", [])


def test_a_vm_that_another_migration_brought_there_meanwhile_is_no_change(hosts: Hosts) -> None:
    hosts.outcome = Outcome(Whereabouts.DESTINATION)
    result = run(vm_migrate, name="db", destination="hv2", journey="home", copy_storage=True)
    assert (result["changed"], result["moved"], result["whereabouts"]) == (False, False, "destination")
    assert (result["copied"], result["pause_s"], result["msg"]) == ([], None, "VM db is at hv2 already")


def test_a_vm_that_runs_nowhere_is_named(hosts: Hosts) -> None:
    result = run(vm_migrate, name="other", destination="hv2")
    assert result["failed"]
    assert "other runs neither here nor at hv2" in result["msg"]


def test_a_check_asks_both_hosts_and_moves_nothing(hosts: Hosts) -> None:
    result = run(vm_migrate, check=True, name="db", destination="hv2")
    assert (result["changed"], result["moved"], result["whereabouts"]) == (True, False, "source")
    assert len(hosts.asked) == 2
    assert hosts.moves == []


def test_addresses_and_limits_reach_the_core(hosts: Hosts) -> None:
    run(
        vm_migrate,
        name="db",
        destination="hv2",
        address="10.0.0.2",
        uri="qemu+ssh://{address}/system",
        longest_pause_s=0.1,
        journey="home",
    )
    wish, journey = hosts.moves[0]
    assert (wish.address, wish.uri) == ("10.0.0.2", "qemu+ssh://10.0.0.2/system")
    assert (wish.bounds.wanted_pause_s, wish.bounds.longest_pause_s) == (0.1, 0.1)
    assert journey.way is evacuation.Way.HOME


@pytest.mark.parametrize("option", ["longest_pause_s", "tries", "deadline_s", "connections", "stall_s"])
def test_a_number_that_cannot_be_is_refused(hosts: Hosts, option: str) -> None:
    result = run(vm_migrate, name="db", destination="hv2", **{option: 0})
    assert result["refused"]
    assert option in result["msg"]
    assert hosts.asked == []


# evacuated, evacuees


def sent_away(monkeypatch: pytest.MonkeyPatch, folder: Path, names: str, **here: Runs) -> None:
    """VMs on the record of a host, and what its libvirt says of those that have a QEMU here."""
    for name in names:
        away.note(folder, away.Away(f"uuid-{name}", name, "hv2", "2026"))
    vms = {f"uuid-{name}": MagicMock(uuid=f"uuid-{name}", runs=lambda it=runs: it) for name, runs in here.items()}
    hypervisor = MagicMock(running=lambda: list(vms.values()), find=vms.get)
    monkeypatch.setattr(config, "load", lambda: config.Config(state_dir=folder))
    monkeypatch.setattr(evacuated, "connect", lambda: contextlib.nullcontext(hypervisor))


def test_who_runs_here_again_is_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent_away(monkeypatch, tmp_path, "abc", a=Runs.RUNS)
    assert run(evacuated, check=True)["came_home"] == ["a"]
    assert len(away.read(tmp_path)) == 3
    result = run(evacuated, forget=["c"])
    assert (result["changed"], result["came_home"]) == (True, ["a", "c"])
    assert [one["name"] for one in result["vms"]] == ["b"]
    assert run(evacuated)["changed"] is False


def test_who_is_still_arriving_is_not_at_home_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its migration may fail, and then it would be on nobody's record."""
    sent_away(monkeypatch, tmp_path, "ab", a=Runs.ARRIVING, b=Runs.STANDS)
    assert run(evacuated)["came_home"] == ["b"]
    assert [one.name for one in away.read(tmp_path)] == ["a"]


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = HostFacts(kernel=OLD, qemu=QemuFacts((11, 1, 3)))
    monkeypatch.setattr(config, "load", lambda: config.Config(state_dir=tmp_path))
    monkeypatch.setattr(collect, "host_facts", lambda _config: host)
    monkeypatch.setattr(collect, "vm_facts", lambda *_: VMS)
    monkeypatch.setattr(evacuees, "connect", lambda: contextlib.nullcontext(MagicMock()))
    monkeypatch.setattr(monitor, "qemu_versions", lambda _vms: ["11.1.3"])
    monkeypatch.setattr(releases, "installed", lambda: (OLD, NEW))


def test_who_leaves_is_said(fleet: None) -> None:
    policy = [{"match": {"name": "a"}, "treatment": "live"}]
    (one,) = run(evacuees, policy=policy, destinations={"a": "hv2"})["departures"]
    assert (one["name"], one["destination"], one["journey"]) == ("a", "hv2", "for_good")
    assert run(evacuees, policy=policy)["refused"] is True


def test_a_host_is_not_even_looked_at_when_nobody_is_to_leave(fleet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "host_facts", lambda _config: pytest.fail("looked at"))
    assert run(evacuees, policy=[{"treatments": ["in_place", "live"]}])["departures"] == []


def test_a_host_that_is_up_to_date_is_not_emptied(fleet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"policy": [{"treatment": "live"}], "destinations": {"a": "hv2", "b": "hv2"}, "kernel": OLD}
    assert run(evacuees, **options)["departures"] == []
    assert len(run(evacuees, force=True, **options)["departures"]) == 2


def test_a_rule_for_a_vm_that_is_away_is_no_slip_of_the_pen(fleet: None, tmp_path: Path) -> None:
    away.note(tmp_path, away.Away("uuid-gone", "gone", "hv2", "2026"))
    assert run(evacuees, policy=[{"match": {"name": "gone"}, "treatment": "live"}])["departures"] == []


# The controller's part of a migration


class Stage:
    """An action with a fake connection that plays recorded answers, the last one for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[Any], **options: Any) -> None:
        self.answers, self.lines, self.calls, self.commands = answers, [], [], []
        self.told: list[dict[str, Any]] = []
        arguments = {"name": "db", "destination": "hv2", **options}
        self.task = MagicMock(args=arguments, check_mode=False, async_val=0)
        self.connection = MagicMock(_shell=MagicMock(tmpdir="/tmp"))
        monkeypatch.setattr(migrate_action.time, "sleep", lambda _seconds: None)
        monkeypatch.setattr(_progress, "display", MagicMock(display=self.lines.append))
        monkeypatch.setattr(_progress, "write", lambda _host, entry: self.told.append(entry))

    def run(self) -> dict[str, Any]:
        action = migrate_action.ActionModule(self.task, self.connection, *[MagicMock() for _ in range(4)])
        action._execute_module = self._module  # type: ignore[method-assign]
        action._low_level_execute_command = self._command  # type: ignore[method-assign]
        result: dict[str, Any] = action.run(task_vars={"inventory_hostname": "hv1"})
        return result

    def _module(self, **call: Any) -> dict[str, Any]:
        self.calls.append((call["module_name"], call.get("wrap_async", False), self.task.async_val))
        return {"results_file": "/root/.ansible_async/j1.2", "ansible_job_id": "j1.2", "changed": True}

    def _command(self, command: str, sudoable: bool) -> dict[str, Any]:
        self.commands.append(command)
        now = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(now, Exception):
            raise now
        return {"rc": 0, "stdout": now, "stderr": ""}


WORKS = '{"started": 1, "finished": 0}\n\nmigrations=\n'


def on_its_way(percent: float, vm: str = "db", state: str = "sending") -> str:
    return json.dumps({"vm": vm, "to": "hv2", "state": state, "percent": percent, "round": 1, "try": 1})


def ended(**result: Any) -> str:
    return json.dumps({"changed": True, "msg": "VM db runs at hv2", **result}) + "\n\nmigrations=\n"


def test_a_migration_is_watched_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    other = on_its_way(3.0, vm="other")
    stage = Stage(
        monkeypatch,
        [WORKS, WORKS + other + on_its_way(20.0), WORKS + on_its_way(21.0), ended(whereabouts="destination")],
    )
    result = stage.run()
    assert result["whereabouts"] == "destination"
    assert stage.calls[0][:2] == ("holdfast.kvm.vm_migrate", True)
    assert stage.calls[0][2] > migrate_action.DEFAULT_DEADLINE_S
    assert stage.task.async_val == 0
    assert stage.commands[-1] == "rm -f /root/.ansible_async/j1.2"
    seen = [entry["migration"] for entry in stage.told if "migration" in entry]
    assert [(one["vm"], one.get("percent")) for one in seen] == [("db", 20.0), ("db", 21.0), ("db", None)]
    assert seen[-1]["state"] == "moved"
    assert len(stage.lines) == 3


def test_a_lost_connection_is_no_lost_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, [AnsibleConnectionFailure("gone"), WORKS, ended(whereabouts="destination")])
    assert stage.run()["whereabouts"] == "destination"
    assert stage.connection.reset.called


def test_a_half_written_answer_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, ['{"chan', WORKS + '{"vm": "d', ended(whereabouts="source", failed=True)])
    assert stage.run()["failed"]
    assert stage.told[-1]["migration"]["state"] == "stays"


def test_in_a_check_nothing_is_put_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, [WORKS])
    stage.task.check_mode = True
    stage.run()
    assert [call[1] for call in stage.calls] == [False]


# tls


class Signer:
    """The action plugin of ``tls`` over a host that has what it was given."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.check = folder, False
        self.has = {party: {"authority": "", "certificate": ""} for party in certificates.PLACES}
        self.given: list[dict[str, Any]] = []
        self.listens = False

    def run(self, **options: Any) -> dict[str, Any]:
        task = MagicMock(args={"authority_dir": str(self.folder), **options}, check_mode=self.check, async_val=0)
        connection = MagicMock(_shell=MagicMock(tmpdir="/tmp"))
        action = tls_action.ActionModule(task, connection, *[MagicMock() for _ in range(4)])
        action._execute_module = self._module  # type: ignore[method-assign]
        result: dict[str, Any] = action.run(task_vars={})
        return result

    def _module(self, module_args: dict[str, Any], **_call: Any) -> dict[str, Any]:
        if "bundles" not in module_args:
            return {"changed": False, "present": dict(self.has), "listens": self.listens}
        self.given.append(module_args["bundles"])
        for party, bundle in module_args["bundles"].items():
            self.has[party] = {"authority": bundle["authority"], "certificate": bundle["certificate"]}
        self.listens = True
        return {"changed": True}


def test_certificates_are_made_once(tmp_path: Path) -> None:
    signer = Signer(tmp_path / "pki")
    first = signer.run(names=["hv1"])
    assert (first["changed"], sorted(first["made"])) == (True, ["libvirt", "qemu"])
    assert signer.given[0]["libvirt"]["authority"] != signer.given[0]["qemu"]["authority"]
    again = signer.run(names=["hv1"])
    assert (again["changed"], again["made"], len(signer.given)) == (False, {}, 1)


def test_only_what_is_due_is_made_anew(tmp_path: Path) -> None:
    signer = Signer(tmp_path / "pki")
    signer.run(names=["hv1"])
    signer.has["qemu"]["certificate"] = ""
    assert signer.run(names=["hv1"])["made"] == {"qemu": "there is none"}


def test_a_daemon_that_is_deaf_is_made_to_listen(tmp_path: Path) -> None:
    signer = Signer(tmp_path / "pki")
    signer.run(names=["hv1"])
    signer.listens = False
    assert signer.run(names=["hv1"])["changed"] is True
    assert signer.given[-1] == {}


def test_a_check_makes_not_even_an_authority(tmp_path: Path) -> None:
    signer = Signer(tmp_path / "pki")
    signer.check = True
    assert signer.run(names=["hv1"])["changed"] is True
    assert not (tmp_path / "pki").exists()
    assert signer.given == []


@pytest.mark.parametrize("check", [False, True])
def test_a_host_that_another_controller_prepared_keeps_its_certificates(tmp_path: Path, check: bool) -> None:
    """Else a controller that lost its directory would cut one host after the other off from the rest."""
    signer = Signer(tmp_path / "pki")
    signer.run(names=["hv1"])
    for folder in (tmp_path / "lost", tmp_path / "lost"):
        signer.folder, signer.check = folder, check
        refused = signer.run(names=["hv1"])
        assert refused["failed"]
        assert "state=absent" in refused["msg"]
    Signer(tmp_path / "other").run(names=["hv2"])
    signer.folder = tmp_path / "other"
    assert "of another authority" in signer.run(names=["hv1"])["msg"]
    assert len(signer.given) == 1
    assert not (tmp_path / "lost").exists()


def test_a_certificate_for_nobody_is_refused(tmp_path: Path) -> None:
    result = Signer(tmp_path / "pki").run()
    assert result["failed"]
    assert "needs a name" in result["msg"]


def test_a_playbook_cannot_hand_in_certificates_of_its_own(tmp_path: Path) -> None:
    signer = Signer(tmp_path / "pki")
    signer.run(names=["hv1"], bundles={"qemu": {"key": "mine"}})
    assert "mine" not in json.dumps(signer.given)


def test_the_host_writes_what_it_is_given_and_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[Any] = []
    conf = tmp_path / "libvirtd.conf"
    conf.write_text("# theirs\n")
    monkeypatch.setattr(certificates, "present", dict)
    monkeypatch.setattr(certificates, "install", lambda bundles, group: done.append((sorted(bundles), group)))
    monkeypatch.setattr(certificates, "listen", lambda *units: done.append(units))
    monkeypatch.setattr(certificates, "deafen", lambda *units: done.append(units))
    monkeypatch.setattr(certificates, "remove", lambda: ["etc/pki/qemu/ca-cert.pem"])
    bundle = {"authority": "a", "certificate": "c", "key": "k"}
    assert run(tls, daemon_conf=str(conf), bundles={"qemu": bundle})["changed"] is True
    units = ("libvirtd-tls.socket", "libvirtd.service")
    assert done == [(["qemu"], "libvirt-qemu"), units]
    assert certificates.DAEMON_SETTING in conf.read_text()
    removed = run(tls, daemon_conf=str(conf), state="absent")
    assert removed["removed"] == ["/etc/pki/qemu/ca-cert.pem"]
    assert conf.read_text() == "# theirs\n"
    assert run(tls, daemon_conf=str(conf), state="absent")["changed"] is False
