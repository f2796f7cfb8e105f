# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""KVM is ready when its driver is loaded and QEMU's group may open its device."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import kvm
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed


@pytest.mark.parametrize(("flag", "driver"), [("svm", "kvm_amd"), ("vmx", "kvm_intel"), ("sse2", "")])
def test_the_driver_follows_from_the_cpu(flag: str, driver: str) -> None:
    assert kvm.driver_for(f"processor\t: 0\nflags\t\t: fpu {flag} avx\n") == driver


def test_the_kernels_own_node_is_not_enough(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    assert not kvm.open_to_group(device)
    device.touch(0o600)
    assert not kvm.open_to_group(device)
    device.chmod(0o660)
    assert kvm.open_to_group(device)


def test_a_device_that_stays_closed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[list[str]] = []
    (tmp_path / "cpuinfo").write_text("flags : svm\n")
    monkeypatch.setattr(kvm, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(kvm, "DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(kvm, "LIMIT_S", 0.0)
    monkeypatch.setattr(kvm, "run", loaded.append)
    with pytest.raises(CommandFailed, match="not open to its group"):
        kvm.make_ready()
    assert loaded == [["modprobe", "kvm_amd"]]
