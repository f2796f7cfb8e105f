# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast VMs write is asked of all at the same time, and nobody waits for one that does not say."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import hypervisor as libvirt_door
from ansible_collections.holdfast.kvm.plugins.module_utils._core import writes
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.hypervisor import Hypervisor

MIB = 1 << 20


class Vm:
    def __init__(self, uuid: str, refuses: bool = False) -> None:
        self.uuid, self.refuses = uuid, refuses
        self.asked: list[int] = []

    def count_writes(self, seconds: int) -> None:
        if self.refuses:
            raise VmError("VM paused1: domain is not running")
        self.asked.append(seconds)


class Host:
    """Answers of ``writes``, one after the other, the last one again and again."""

    def __init__(self, vms: list[Vm], *answers: dict[str, int | None]) -> None:
        self.vms, self.answers = vms, list(answers)

    def running(self) -> list[Vm]:
        return self.vms

    def writes(self) -> dict[str, int | None]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def test_all_are_asked_at_once_and_waited_for() -> None:
    vms = [Vm("a"), Vm("b")]
    host = Host(vms, {"a": None, "b": None}, {"a": MIB, "b": None}, {"a": MIB, "b": 0})
    assert writes.measure(host, 1) == {"a": MIB, "b": 0}  # type: ignore[arg-type]
    assert [vm.asked for vm in vms] == [[1], [1]]


def test_one_that_refuses_is_left_out_with_what_an_earlier_look_found() -> None:
    host = Host([Vm("a"), Vm("b", refuses=True)], {"a": MIB, "b": 7 * MIB})
    assert writes.measure(host, 1) == {"a": MIB}  # type: ignore[arg-type]


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "ANSWER_LIMIT_S", 0.0)
    host = Host([Vm("a"), Vm("b")], {"a": MIB, "b": None})
    assert writes.measure(host, 0) == {"a": MIB}  # type: ignore[arg-type]


def test_libvirts_words_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """As libvirt 11.3 says it (virConnectGetAllDomainStats)."""

    class Words:
        VIR_DOMAIN_STATS_DIRTYRATE = 256
        VIR_CONNECT_GET_ALL_DOMAINS_STATS_RUNNING = 64
        VIR_DOMAIN_DIRTYRATE_MEASURED = 2
        libvirtError = OSError

    class Raw:
        def __init__(self, uuid: str) -> None:
            self.uuid = uuid

        def UUIDString(self) -> str:
            return self.uuid

    class Connection:
        def getAllDomainStats(self, kind: int, which: int) -> list[tuple[Any, dict[str, Any]]]:
            assert (kind, which) == (256, 64)
            measured = {"dirtyrate.calc_status": 2, "dirtyrate.calc_period": 1, "dirtyrate.megabytes_per_second": 3}
            return [(Raw("a"), measured), (Raw("b"), {"dirtyrate.calc_status": 1}), (Raw("c"), {})]

    monkeypatch.setattr(libvirt_door, "libvirt", Words)
    assert Hypervisor(Connection()).writes() == {"a": 3 * MIB, "b": None}
