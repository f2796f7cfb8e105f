# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After a live update every VM runs again as it did, or is named with what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import boot_path, kernel_log, kexec
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed
from ansible_collections.holdfast.kvm.plugins.modules.verify import (
    Expected,
    RunningVm,
    not_running,
    problems,
    told,
    waited_for,
)

NEW = "7.2.12+deb13-amd64"
EXPECTED = Expected("g-1", NEW)
DB = RunningVm("db1", "u-1", "running", "11.1.3")
VIEW: dict[str, Any] = {
    "generation": "g-1",
    "state": "restored",
    "qemu": {"from": "10.0.13", "to": "11.1.3"},
    "vms": [{"name": "db1", "uuid": "u-1", "state": "resumed", "error": ""}],
}


def test_nothing_is_wrong_when_every_vm_carried_on() -> None:
    assert problems(EXPECTED, NEW, VIEW, [DB]) == []


def test_a_vm_that_was_paused_before_is_paused_again() -> None:
    view = {**VIEW, "vms": [{**VIEW["vms"][0], "was_paused": True}]}
    assert problems(EXPECTED, NEW, view, [RunningVm("db1", "u-1", "paused", "11.1.3")]) == []
    assert problems(EXPECTED, NEW, view, [DB]) == ["VM db1 is running, not paused"]


@pytest.mark.parametrize(
    ("vms", "told"),
    [
        ([], "VM db1 does not run"),
        ([RunningVm("db1", "u-1", "paused", "11.1.3")], "VM db1 is paused, not running"),
        ([RunningVm("db1", "u-1", "running", "10.0.13")], "VM db1 runs on QEMU 10.0.13, not on 11.1.3"),
        ([RunningVm("db1", "u-1", "running", "11.1.3", True)], "VM db1: x-ignore-shared is still on"),
        ([RunningVm("db1", "u-1", "running", trouble="VM db1: no monitor")], "VM db1: no monitor"),
    ],
)
def test_a_vm_that_did_not_carry_on_is_named(vms: list[RunningVm], told: str) -> None:
    (problem,) = problems(EXPECTED, NEW, VIEW, vms)
    assert problem.startswith(told)


@pytest.mark.parametrize(
    ("vms", "names"),
    [
        ([], ["db1"]),
        ([RunningVm("db1", "u-1", "paused", "11.1.3")], ["db1"]),
        ([RunningVm("db1", "u-1", "running", trouble="VM db1: no monitor")], ["db1"]),
        # That is wrong, but others of its group may stand still.
        ([RunningVm("db1", "u-1", "running", "10.0.13")], []),
    ],
)
def test_those_that_are_not_known_to_run_are_named(vms: list[RunningVm], names: list[str]) -> None:
    assert not_running(EXPECTED, VIEW, vms) == names
    assert not_running(Expected(), VIEW, vms) == []


@pytest.mark.parametrize(
    ("kernel", "changes", "told"),
    [
        ("6.12", {}, f"kernel 6.12 runs, not {NEW}"),
        (NEW, {"state": "failed"}, "the journal of g-1 ends in 'failed'"),
        (NEW, {"generation": "g-0"}, "the newest journal is of generation g-0, not g-1"),
    ],
)
def test_a_host_that_is_not_where_it_should_be_is_told(kernel: str, changes: dict[str, str], told: str) -> None:
    (problem,) = problems(EXPECTED, kernel, {**VIEW, **changes}, [DB])
    assert problem.startswith(told)


def test_without_a_live_update_only_the_present_counts() -> None:
    assert problems(Expected(), "6.12", {"state": "none"}, [DB]) == []
    (problem,) = problems(Expected(), "6.12", {**VIEW, "state": "restoring"}, [DB])
    assert problem.startswith("live update g-1 is not finished")


def test_only_of_the_boot_that_it_jumped_into_is_it_told_what_the_vms_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = {"name": "kernel and initrd", "start": 0.0, "seconds": 3.0}
    monkeypatch.setattr(kexec, "boot_id", lambda: "b-2")
    monkeypatch.setattr(boot_path, "look", lambda: [boot_path.Step(**step)])
    arrived = {**VIEW, "boot_id": {"from": "b-1", "to": "b-2"}}
    assert waited_for(EXPECTED, arrived) == [step]
    assert waited_for(EXPECTED, {**arrived, "boot_id": {"from": "b-1", "to": ""}}) == []
    assert waited_for(Expected("g-2"), arrived) == []
    assert waited_for(Expected(), {"state": "none"}) == []


def test_what_is_new_in_the_kernels_log_is_told_and_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["ata1: error 17", "INFO: task kvm:4711 blocked for more than 120 seconds."]
    monkeypatch.setattr(kernel_log, "complaints", lambda: lines)
    view = {**VIEW, "before": {"complaints": kernel_log.kinds(["ata1: error 4"])}}
    (sentence,) = told(EXPECTED, view)
    assert sentence.endswith("there before: INFO: task kvm:4711 blocked for more than 120 seconds.")
    assert told(Expected("g-2"), view) == told(Expected(), {"state": "none"}) == []
    assert told(EXPECTED, VIEW) == [], "it was begun by an agent that did not look"


def test_a_systemd_that_does_not_say_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[boot_path.Step]:
        raise CommandFailed("systemctl did not end within 60 s")

    monkeypatch.setattr(kexec, "boot_id", lambda: "b-2")
    monkeypatch.setattr(boot_path, "look", refuse)
    assert waited_for(EXPECTED, {**VIEW, "boot_id": {"from": "b-1", "to": "b-2"}}) == []
