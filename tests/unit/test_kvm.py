# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""KVM is ready when its driver is loaded and QEMU's group may open its device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

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


class Machine:
    """A CPU with SVM, and a node as the kernel makes it. ``waited``: how often udev was waited for, before it came."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device, self.rules = folder / "kvm", folder / "rules.d"
        self.loaded: list[list[str]] = []
        self.groups: list[tuple[int, int]] = []
        self.waited = 0
        self.device.touch(0o600)
        self.rules.mkdir()
        (folder / "cpuinfo").write_text("flags : svm\n")
        monkeypatch.setattr(kvm, "CPUINFO", folder / "cpuinfo")
        monkeypatch.setattr(kvm, "DEVICE", self.device)
        monkeypatch.setattr(kvm, "OWN_RULES", (self.rules, folder / "none.d"))
        monkeypatch.setattr(kvm, "run", self.loaded.append)
        monkeypatch.setattr(kvm.grp, "getgrnam", self.group)
        monkeypatch.setattr(kvm.os, "chown", lambda _path, owner, group: self.groups.append((owner, group)))
        monkeypatch.setattr(kvm.time, "sleep", self.udev_comes)

    def group(self, name: str) -> SimpleNamespace:
        return {"kvm": SimpleNamespace(gr_gid=109)}[name]

    def udev_comes(self, _seconds: float) -> None:
        self.waited += 1
        self.device.chmod(0o666)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_udev_is_not_waited_for(machine: Machine) -> None:
    kvm.make_ready()
    assert machine.loaded == [["modprobe", "kvm_amd"]]
    assert machine.groups == [(-1, 109)]
    assert machine.device.stat().st_mode & 0o777 == 0o660
    assert machine.waited == 0


def test_what_udev_has_done_stays(machine: Machine) -> None:
    machine.device.chmod(0o666)
    kvm.make_ready()
    assert machine.device.stat().st_mode & 0o777 == 0o666
    assert machine.groups == []


def test_rules_of_the_sites_own_are_waited_for(machine: Machine) -> None:
    (machine.rules / "60-site.rules").write_text('KERNEL=="kvm", GROUP="cloud", MODE="0666"\n')
    kvm.make_ready()
    assert (machine.waited, machine.groups) == (1, [])


def test_rules_for_other_devices_are_not(machine: Machine) -> None:
    (machine.rules / "60-site.rules").write_text('KERNEL=="kvmfr0", GROUP="cloud"\n')
    kvm.make_ready()
    assert machine.waited == 0


def test_where_there_is_no_such_group_udev_is_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(kvm.grp, "getgrnam", nobody)
    kvm.make_ready()
    assert (machine.waited, machine.groups) == (1, [])


def test_a_device_that_stays_closed_is_an_error(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.device.unlink()
    monkeypatch.setattr(kvm, "LIMIT_S", 0.0)
    with pytest.raises(CommandFailed, match="not open to its group"):
        kvm.make_ready()
    assert machine.loaded == [["modprobe", "kvm_amd"]]
