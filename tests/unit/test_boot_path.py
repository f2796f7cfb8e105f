# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the restore waited for is read from systemd's ordering and stamps, without a unit that nobody waited for."""

from __future__ import annotations

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import boot_path
from ansible_collections.holdfast.kvm.plugins.module_utils._core.boot_path import Step, Unit, path, read_units

# As systemd 257 prints them; a property that a unit has not got is left out.
SHOWN = """\
Id=holdfast-restore.service
After=libvirtd.socket libvirtd.service holdfast-pool.service network.target system.slice
InactiveExitTimestampMonotonic=35800000
ActiveEnterTimestampMonotonic=0

Id=libvirtd.service
After=holdfast-pool.service basic.target ghost.service
InactiveExitTimestampMonotonic=34500000
ActiveEnterTimestampMonotonic=35650000

Id=libvirtd.socket
After=-.slice
InactiveExitTimestampMonotonic=22500000
ActiveEnterTimestampMonotonic=22500000

Id=holdfast-pool.service
After=systemd-remount-fs.service
InactiveExitTimestampMonotonic=18450000
ActiveEnterTimestampMonotonic=34230000

Id=systemd-remount-fs.service
After=basic.target
InactiveExitTimestampMonotonic=17500000
ActiveEnterTimestampMonotonic=18400000

Id=basic.target
After=
InactiveExitTimestampMonotonic=24000000
ActiveEnterTimestampMonotonic=24000000

Id=network.target
After=
InactiveExitTimestampMonotonic=33000000
ActiveEnterTimestampMonotonic=33000000

After=nothing
"""


def test_the_path_goes_from_the_kernel_to_the_restore_by_what_was_up_last() -> None:
    assert path(read_units(SHOWN), 10_710_000) == [
        Step("kernel and initrd", 0.0, 10.71),
        Step("systemd-remount-fs.service", 17.5, 0.9),
        Step("holdfast-pool.service", 18.45, 15.78),
        Step("libvirtd.service", 34.5, 1.15),
    ]


def test_what_is_up_at_once_is_left_out_and_its_own_wait_is_not() -> None:
    units = {
        boot_path.RESTORE: Unit(boot_path.RESTORE, ("network.target",), 9_000_000, 0),
        "network.target": Unit("network.target", ("slow.service",), 8_000_000, 8_000_000),
        "slow.service": Unit("slow.service", (), 3_000_000, 7_900_000),
    }
    assert [step.name for step in path(units, 2_000_000)] == [boot_path.KERNEL, "slow.service"]


def test_units_that_wait_for_each_other_come_to_an_end() -> None:
    units = {
        boot_path.RESTORE: Unit(boot_path.RESTORE, ("a", "b"), 3, 0),
        "a": Unit("a", ("b",), 1, 1),
        "b": Unit("b", ("a",), 1, 1),
    }
    assert [step.name for step in path(units, 1)] == [boot_path.KERNEL]


@pytest.mark.parametrize("shown", ["", SHOWN.replace("=35800000", "=0")])
def test_a_boot_without_a_restore_has_no_path(shown: str) -> None:
    assert path(read_units(shown), 1) == []


def test_systemd_is_asked_for_units_that_are_over_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], timeout_s: float) -> str:
        assert timeout_s >= 120, "it took more than a minute on a host that was busy"
        if "--value" in argv:
            return "10710000\n"
        return SHOWN if "--all" in argv else SHOWN.replace("Id=holdfast-restore.service", "")

    monkeypatch.setattr(boot_path, "run", run)
    assert [step.name for step in boot_path.look()][:1] == [boot_path.KERNEL]
