# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A new kernel's KVM that takes features away from a guest's CPU is found before any VM runs on it."""

from __future__ import annotations

import json
import struct
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import cpu, health, journal, kexec, monitor
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.request import Request

DB, WEB = "11111111-2222-4333-8444-555555555555", "21111111-2222-4333-8444-555555555555"
# Transactional memory: CPUID 7, EBX, bits 4 and 11. Kernels have taken it away from CPUs that had it.
HLE, RTM = 1 << 4, 1 << 11
BEFORE = {"1.0.ecx": 0x8000_0001, "7.0.ebx": HLE | RTM | 1}
NOW = {"1.0.ecx": 0x8000_0001, "7.0.ebx": 1}


def entry(leaf: int, subleaf: int, *registers: int) -> bytes:
    return struct.pack("=10I", leaf, subleaf, 1, *registers, 0, 0, 0)


def test_what_kvm_answers_is_read_by_leaf_subleaf_and_register() -> None:
    answer = struct.pack("=II", 2, 0) + entry(0xD, 1, 15, 0, 0, 0) + entry(0x80000001, 0, 0, 0, 0x121, 0x2FD3FBFF)
    left_over = entry(0x99, 0, 1, 1, 1, 1)
    assert cpu.read_entries(answer + left_over) == {
        "d.1.eax": 15,
        "80000001.0.ecx": 0x121,
        "80000001.0.edx": 0x2FD3FBFF,
    }


def test_what_qemu_answers_is_read_alike() -> None:
    words = [
        {"cpuid-register": "EDX", "cpuid-input-eax": 1, "features": 0x783FBFF},
        {"cpuid-register": "EBX", "cpuid-input-eax": 7, "cpuid-input-ecx": 0, "features": RTM},
        {"cpuid-register": "EAX", "cpuid-input-eax": 0xD, "cpuid-input-ecx": 1, "features": 0},
    ]
    assert cpu.read_features(words) == {"1.0.edx": 0x783FBFF, "7.0.ebx": RTM}


def test_only_what_kvm_offered_before_and_the_guest_has_is_missed() -> None:
    assert cpu.taken_away(BEFORE, NOW, {"7.0.ebx": RTM | 1}) == ["CPUID 7.0.ebx bit 11"]
    # A guest without it; a feature that QEMU makes by itself; one that is new.
    assert cpu.taken_away(BEFORE, NOW, {"7.0.ebx": 1, "1.0.ecx": 1 << 5}) == []
    assert cpu.taken_away(NOW, BEFORE, {"7.0.ebx": RTM | 1}) == []
    # A whole register that is not offered any more.
    assert cpu.taken_away(BEFORE, {"7.0.ebx": RTM | HLE | 1}, {"1.0.ecx": 1}) == ["CPUID 1.0.ecx bit 0"]


def test_the_way_back_to_an_older_kernel_takes_nothing_away() -> None:
    """As seen: 6.12 does not list the TSC deadline timer nor the hypervisor's bit, and QEMU gives a guest both."""
    newer = {"1.0.ecx": 3254264321, "80000001.0.ecx": 373, "40000001.0.eax": 16809723, "6.0.eax": 4}
    older = {"1.0.ecx": 3254264321 & ~(1 << 24 | 1 << 31), "80000001.0.ecx": 373}
    assert cpu.taken_away(newer, older, newer) == []


def test_each_vm_that_would_lose_something_is_named_with_it() -> None:
    noted = {"offered": BEFORE, "guests": {DB: {"7.0.ebx": HLE | RTM}, WEB: {"7.0.ebx": 1}}}
    (found,) = cpu.problems(noted, NOW, {DB: "db1", WEB: "web1"})
    assert "VM db1" in found
    assert found.endswith("CPUID 7.0.ebx bit 4, CPUID 7.0.ebx bit 11")
    # Not of one that is not here any more, nor where one of the two looks failed: the absence of KVM is told elsewhere.
    assert cpu.problems(noted, NOW, {WEB: "web1"}) == []
    assert cpu.problems(noted, {}, {DB: "db1"}) == []
    assert cpu.problems({"offered": {}, "guests": noted["guests"]}, NOW, {DB: "db1"}) == []
    assert cpu.problems({}, NOW, {DB: "db1"}) == []


def test_a_qemu_that_does_not_tell_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_domain: Any, command: str, **_arguments: Any) -> Any:
        raise VmError(f"QEMU does not take {command}")

    monkeypatch.setattr(monitor, "execute", refuses)
    assert cpu.of_guest(SimpleNamespace(uuid=DB)) == {}  # type: ignore[arg-type]


def test_a_host_without_kvm_offers_nothing(tmp_path: Path) -> None:
    assert cpu.offered(tmp_path / "kvm") == {}
    (tmp_path / "kvm").write_text("no device")
    assert cpu.offered(tmp_path / "kvm") == {}


def test_the_kernel_is_unfit_then_unless_the_vm_is_back_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = journal.open_journal(tmp_path)
    vms = [{"name": name, "uuid": uuid, "treatment": "in_place", "priority": 50} for name, uuid in (("db1", DB),)]
    noted = {"offered": BEFORE, "guests": {DB: {"7.0.ebx": RTM}}}
    kernel = {"from": "6", "to": "7"}
    record.record("begin", generation="g-1", host="h", kernel=kernel, qemu="", boot_id="b", cpu=noted, vms=vms)
    record.record("suspending")
    record.record("vm_paused", uuid=DB, was_paused=False)
    record.record("vm_saved", uuid=DB, state_bytes=1, state_sha256="", ram_proofs={}, ram_bytes=1)
    monkeypatch.setattr(health, "KVM", tmp_path)
    monkeypatch.setattr(kexec, "taint", lambda: 0)
    monkeypatch.setattr(cpu, "offered", lambda: NOW)
    libvirt = SimpleNamespace(libvirt_version=lambda: (11, 3, 0))
    monkeypatch.setattr(health, "connect_patiently", lambda: nullcontext(libvirt))
    # Read anew, as the next kernel does.
    again = journal.open_journal(tmp_path)
    assert [text for text in health.problems(Request("g-1", "7"), again) if "CPUID 7.0.ebx bit 11" in text]
    assert json.loads(json.dumps(again.view["cpu"])) == noted
