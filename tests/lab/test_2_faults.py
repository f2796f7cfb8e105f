# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A few of the faults of ``make faults``, on the hypervisor of the upgrade: one of each kind of way back."""

from __future__ import annotations

import pytest
from rack import Rack

from holdfast.faults import matrix, strike
from holdfast.faults.catalogue import FAULTS
from holdfast.lab import scene

CHOSEN = (
    pytest.param("agent killed while VMs are saved", marks=pytest.mark.in_time),
    pytest.param("agent killed while a VM is resumed", marks=pytest.mark.long),
    pytest.param("the new kernel is found unfit", marks=pytest.mark.long),
)


@pytest.fixture(scope="module")
def sabotaged(prepared: Rack) -> Rack:
    """The hypervisor with all guests at work, and the saboteur on it."""
    strike.install(scene.start_guests(prepared.folder))
    return prepared


@pytest.mark.parametrize("name", CHOSEN)
def test_every_guest_comes_back(sabotaged: Rack, name: str) -> None:
    row = matrix.one(sabotaged.host, next(fault for fault in FAULTS if fault.name == name))
    print(row)
    assert row.trouble == ()
    assert (row.vms_lost, row.vms_run_twice) == (0, 0)
