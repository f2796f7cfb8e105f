# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""DAX devices by sysfs: which regions and devices there are, and what is written to make one and to remove it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import daxdev
from ansible_collections.holdfast.kvm.plugins.module_utils._core.daxdev import DaxBus, Device
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import SOFT_KIND, Region

GIB = 1 << 30
REGION = Region(4 * GIB, GIB, SOFT_KIND)
PIECES = ((4 * GIB, 256 << 20), (4 * GIB + (512 << 20), 128 << 20))


class Kernel:
    """A sysfs as dax_hmem makes it: one region, whose first device has no RAM, and what is written into it."""

    def __init__(self, root: Path) -> None:
        self.root, self.written, self.next = root, [], 1
        self.bus = DaxBus(root)
        (root / "sys/bus/dax/drivers/device_dax").mkdir(parents=True)
        (root / "sys/bus/dax/devices").mkdir()
        self.device("dax1.0", 1, resource=REGION.start)

    def device(self, name: str, minor: int, ranges: tuple[tuple[int, int], ...] = (), *, resource: int = 0) -> Path:
        real = self.root / "sys/devices/platform/hmem.1" / name
        (real.parent / "dax_region").mkdir(parents=True, exist_ok=True)
        real.mkdir()
        (real / "dev").write_text(f"252:{minor}\n")
        (real / "resource").write_text(f"{resource or ranges[0][0]:#x}\n")
        for number, (start, size) in enumerate(ranges):
            self.mapping(real, number, start, start + size - 1)
        (self.root / "sys/bus/dax/devices" / name).symlink_to(real)
        return real

    def mapping(self, real: Path, number: int, start: int, last: int) -> None:
        where = real / f"mapping{number}"
        where.mkdir()
        (where / "start").write_text(f"{start:#x}\n")
        (where / "end").write_text(f"{last:#x}\n")

    def write(self, path: Path, text: str) -> None:
        self.written.append((path.name if path.parent.name != "dax_region" else f"dax_region/{path.name}", text))
        real = path.parent.resolve()
        if path.name == "create":
            self.device(f"dax1.{self.next}", 2 + self.next, resource=REGION.start)
        elif path.name == "mapping":
            start, last = (int(part, 16) for part in text.split("-"))
            self.mapping(real, len(list(real.glob("mapping*"))), start, last)
        elif path.name == "new_id":
            (self.root / "sys/bus/dax/devices" / text / "driver").symlink_to(path.parent)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = Kernel(tmp_path)
    monkeypatch.setattr(daxdev, "_write", found.write)
    monkeypatch.setattr(daxdev, "run", lambda *_: "")
    monkeypatch.setattr(daxdev, "REGION_LIMIT_S", 0.0)
    return found


def test_a_device_is_made_of_just_the_ranges_that_are_asked_for(kernel: Kernel) -> None:
    made = kernel.bus.make(REGION, PIECES, 2 << 20)
    assert made == Device("dax1.1", PIECES, os.makedev(252, 3))
    assert kernel.written == [
        ("dax_region/create", "1"),
        ("align", "2097152"),
        ("mapping", "100000000-10fffffff"),
        ("mapping", "120000000-127ffffff"),
        ("new_id", "dax1.1"),
    ]
    assert kernel.bus.devices() == (made,)
    assert made.size_bytes == 384 << 20


def test_pieces_are_in_the_order_in_which_they_are_mapped(kernel: Kernel) -> None:
    many = tuple((5 * GIB - (number + 1) * (2 << 20), 2 << 20) for number in range(12))
    kernel.device("dax1.1", 3, many)
    assert kernel.bus.devices()[0].ranges == many


def test_a_device_that_is_not_as_it_was_asked_for_is_removed(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(path: Path, text: str) -> None:
        kernel.write(path, "100000000-1001fffff" if path.name == "mapping" else text)

    monkeypatch.setattr(daxdev, "_write", other)
    with pytest.raises(HoldfastError, match=r"has not made dax1\.1 as it was asked for"):
        kernel.bus.make(REGION, PIECES[:1], 2 << 20)
    assert kernel.written[-3:] == [("unbind", "dax1.1"), ("size", "0"), ("dax_region/delete", "dax1.1")]


def test_a_device_is_unbound_and_emptied_before_it_is_deleted(kernel: Kernel) -> None:
    kernel.bus.make(REGION, PIECES, 2 << 20)
    kernel.written.clear()
    kernel.bus.remove("dax1.1")
    assert kernel.written == [("unbind", "dax1.1"), ("size", "0"), ("dax_region/delete", "dax1.1")]


def test_no_device_where_the_kernel_has_no_region(kernel: Kernel) -> None:
    with pytest.raises(HoldfastError, match="no DAX region at 0x200000000-0x23fffffff"):
        kernel.bus.make(Region(8 * GIB, GIB, SOFT_KIND), PIECES, 2 << 20)


def test_a_range_without_a_region_is_waited_for_and_named(kernel: Kernel) -> None:
    kernel.bus.ready((REGION,))
    with pytest.raises(HoldfastError, match="no DAX region at 0x200000000-0x23fffffff"):
        kernel.bus.ready((REGION, Region(8 * GIB, GIB, SOFT_KIND)))


def test_ram_that_the_kernel_took_for_itself_is_no_pool(kernel: Kernel) -> None:
    real = kernel.device("dax1.1", 3, PIECES)
    (real / "driver").symlink_to("../../../../bus/dax/drivers/kmem")
    with pytest.raises(HoldfastError, match=r"has taken dax1\.1, of the pool, for its own memory") as refused:
        kernel.bus.ready((REGION,))
    assert "prepare" in refused.value.hint


def test_what_the_kernel_refuses_is_told(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="create: 1 is refused: No such file"):
        daxdev._write(tmp_path / "dax_region/create", "1")
