# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pool's block device: found by its physical range, never by its name; several joined in their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import pmem
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import Region

GIB = 1 << 30
LOW, HIGH = Region(4 * GIB, GIB, node=0), Region(8 * GIB, 2 * GIB, node=1)


class Host:
    """Memory devices by name; a device mapper that makes and removes one device."""

    def __init__(self, root: Path, devices: dict[str, Region]) -> None:
        self.root = root
        self.calls: list[tuple[list[str], str]] = []
        self.made_of = sorted(devices)
        for number, (name, region) in enumerate(devices.items()):
            above = root / f"sys/devices/ndbus0/region{number}"
            (above / "namespace").mkdir(parents=True)
            (above / "resource").write_text(f"{region.start:#x}\n")
            (above / "size").write_text(f"{region.size}\n")
            (root / "sys/class/block" / name).mkdir(parents=True)
            (root / "sys/class/block" / name / "device").symlink_to(above / "namespace")
            (root / "dev").mkdir(exist_ok=True)
            (root / "dev" / name).touch()

    def run(self, argv: list[str], stdin: str = "", **_more: object) -> str:
        self.calls.append((argv, stdin))
        if argv[:2] == ["dmsetup", "create"]:
            self.join(self.made_of)
        return ""

    def join(self, parts: list[str], name: str = "holdfast") -> None:
        entry = self.root / "sys/class/block/dm-3"
        (entry / "dm").mkdir(parents=True)
        (entry / "dm/name").write_text(f"{name}\n")
        for part in parts:
            (entry / "slaves" / part).mkdir(parents=True)


def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **devices: Region) -> Host:
    found = Host(tmp_path, devices)
    monkeypatch.setattr(pmem, "run", found.run)
    monkeypatch.setattr(pmem, "DEVICE_TIMEOUT_S", 0.0)
    monkeypatch.setattr(pmem, "DEVICE_TIMEOUT_S_PER_GIB", 0.0)
    return found


def test_one_region_is_its_own_device_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = host(tmp_path, monkeypatch, pmem0=Region(16 * GIB, GIB), pmem7=LOW)
    assert pmem.device_of((LOW,), tmp_path) == "/dev/pmem7"
    assert [argv[0] for argv, _ in here.calls] == ["modprobe"]


def test_several_are_joined_in_the_pools_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = host(tmp_path, monkeypatch, pmem0=HIGH, pmem1=LOW)
    assert pmem.device_of((LOW, HIGH), tmp_path) == "/dev/dm-3"
    # The driver before the devices, or they are attached one after the other.
    assert here.calls[0][0] == ["modprobe", "-a", "nd_pmem", "nd_e820", "dm_mod"]
    argv, table = here.calls[1]
    assert argv == ["dmsetup", "create", "--noudevsync", "holdfast"]
    assert table == "0 2097152 linear /dev/pmem1 0\n2097152 4194304 linear /dev/pmem0 0\n"


def test_a_joined_device_is_used_again_in_the_same_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = host(tmp_path, monkeypatch, pmem0=LOW, pmem1=HIGH)
    here.join(["pmem0", "pmem1"])
    assert pmem.device_of((LOW, HIGH), tmp_path) == "/dev/dm-3"
    assert [argv[0] for argv, _ in here.calls] == ["modprobe"]


def test_a_device_of_our_name_that_is_made_of_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = host(tmp_path, monkeypatch, pmem0=LOW, pmem1=HIGH)
    here.join(["sda"])
    with pytest.raises(HoldfastError, match="is made of sda, but the pool of pmem0, pmem1"):
        pmem.device_of((LOW, HIGH), tmp_path)


@pytest.mark.parametrize("other", [Region(4 * GIB, 2 * GIB), Region(5 * GIB, GIB)])
def test_a_device_of_another_range_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Region) -> None:
    host(tmp_path, monkeypatch, pmem0=other)
    with pytest.raises(HoldfastError, match="no device at 0x100000000-0x13fffffff"):
        pmem.device_of((LOW,), tmp_path)
