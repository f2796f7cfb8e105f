# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that is not as well as before its live update stops the roll, and says why."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import gates, health, journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config
from ansible_collections.holdfast.kvm.plugins.module_utils._core.gates import Health
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import Service
from ansible_collections.holdfast.kvm.plugins.modules import verify

UUID = "11111111-2222-4333-8444-555555555555"
BEFORE = Health(("lan", "wan"), ("ssd",), (UUID,), taint=1 << 12, ways_out=("br0",))
NAMES = {UUID: "db1"}


def test_nothing_is_worse_than_before() -> None:
    assert gates.worse(BEFORE, BEFORE, NAMES) == []
    better = Health(("dmz", "lan", "wan"), ("hdd", "ssd"), ("other", UUID), 0, ("br0", "br1"))
    assert gates.worse(BEFORE, better, NAMES) == []


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (replace(BEFORE, networks=("wan",)), "libvirt's network lan was active before"),
        (replace(BEFORE, storage_pools=()), "libvirt's storage pool ssd was active before"),
        (replace(BEFORE, guest_agents=()), "VM db1: its guest agent answered before"),
        (replace(BEFORE, ways_out=()), "br0 carried the frames of VMs out of the host before"),
        (replace(BEFORE, taint=1 << 12 | 1 << 9), "the kernel reports a warning with a stack trace"),
        (replace(BEFORE, taint=1 << 7), "the kernel reports an oops"),
    ],
)
def test_what_is_worse_is_named(now: Health, told: str) -> None:
    (problem,) = gates.worse(BEFORE, now, NAMES)
    assert problem.startswith(told)


@pytest.mark.parametrize("bit", [0, 2, 10, 11, 12, 13, 15, 16, 17])
def test_a_taint_that_says_only_what_was_loaded_is_no_trouble(bit: int) -> None:
    assert gates.worse(Health(), Health(taint=1 << bit), {}) == []


def test_a_look_comes_back_out_of_a_journal(tmp_path: Path) -> None:
    current = journal.open_journal(tmp_path)
    begun = {"generation": "g-1", "host": "hv1", "kernel": {}, "qemu": "", "boot_id": "b", "vms": []}
    current.record("begin", before=asdict(BEFORE), **begun)
    assert gates.from_record(journal.open_journal(tmp_path).view["before"]) == BEFORE
    assert gates.from_record({}) == Health()


class Host:
    """A hypervisor whose second network comes at the third look; one guest answers, one is stuck, one is paused."""

    looks = 0

    def networks(self) -> tuple[Service, ...]:
        self.looks += 1
        return (Service("lan"), Service("wan"))[: 2 if self.looks > 2 else 1]

    def storage_pools(self) -> tuple[Service, ...]:
        return (Service("ssd"),)

    def running(self) -> list[Any]:
        guests = ((UUID, "running", True), ("stuck", "running", False), ("still", "paused", True))
        return [SimpleNamespace(uuid=uuid, state=lambda s=state: s, answers=answers) for uuid, state, answers in guests]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(gates, "LOOK_S", 0.0)
    monkeypatch.setattr(gates.kexec, "taint", lambda: 1 << 12)
    monkeypatch.setattr(gates.ways_out, "carrying", lambda _also: ("br0",))
    monkeypatch.setattr(gates.monitor, "guest_agent_answers", lambda domain, _limit: domain.answers)
    return Host()


def test_only_running_guests_are_asked(host: Host) -> None:
    assert gates.look(host).guest_agents == (UUID,)  # type: ignore[arg-type]


def test_what_comes_by_and_by_is_waited_for(host: Host) -> None:
    assert gates.look_patiently(host, BEFORE, 60) == BEFORE  # type: ignore[arg-type]
    assert host.looks == 3


def test_what_does_not_come_is_not_waited_for_for_ever(host: Host) -> None:
    never = replace(BEFORE, networks=("gone", "lan"))
    assert gates.worse(never, gates.look_patiently(host, never, 0), NAMES) == [  # type: ignore[arg-type]
        "libvirt's network gone was active before, and is not now"
    ]


def test_verify_compares_with_the_look_in_the_journal_of_its_own_generation(host: Host) -> None:
    view = {"generation": "g-1", "before": asdict(replace(BEFORE, storage_pools=("ssd", "tape"))), "vms": []}
    host.looks = 3
    found = verify.gate_problems(host, verify.Expected("g-1"), view, 0)  # type: ignore[arg-type]
    assert found == ["libvirt's storage pool tape was active before, and is not now"]
    mute = {**view, "before": asdict(replace(BEFORE, guest_agents=(UUID, "silent")))}
    assert len(verify.gate_problems(host, verify.Expected("g-1"), mute, 0)) == 1  # type: ignore[arg-type]
    assert verify.gate_problems(host, verify.Expected("g-1", "", False), mute, 0) == []  # type: ignore[arg-type]
    assert verify.gate_problems(host, verify.Expected(), view, 0) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(("check", "problems"), [(False, 1), (True, 0)])
def test_the_operators_command_is_a_gate_unless_it_is_a_check(
    check: bool, problems: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(verify.config, "load", lambda: Config(None, tmp_path))
    monkeypatch.setattr(verify, "connect", lambda: contextlib.nullcontext(SimpleNamespace(running=list)))
    options: dict[str, Any] = {"generation": "", "kernel": "", "command": "echo raid is degraded >&2; false"}
    options |= {"guest_agents": True, "wait_s": 0}
    module = SimpleNamespace(params=options, check_mode=check, fail_json=lambda **found: told.update(found))
    found = verify.act(module)  # type: ignore[arg-type]
    assert len(found["problems"]) == problems
    assert ("raid is degraded" in json.dumps(told)) == bool(problems)


def test_damage_is_trouble_too() -> None:
    assert set(health.DAMAGE) < set(gates.TROUBLE)
