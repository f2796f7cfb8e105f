# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fault matrix says what it does: names, moments and verdicts. What really breaks is broken in the lab."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import TRANSITIONS, VM_STATES
from holdfast.faults import matrix, strike, table
from holdfast.faults.catalogue import FAULTS, Ending


def test_every_fault_has_a_name_of_its_own_and_strikes_at_an_event_that_exists() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    known = {*TRANSITIONS, *VM_STATES, "phase_begin"}
    assert {fault.event.split()[0] for fault in FAULTS if fault.event} <= known


def test_random_moments_come_again_with_their_seed() -> None:
    assert matrix.delays(50, seed=7) == matrix.delays(50, seed=7)
    assert matrix.delays(50, seed=7) != matrix.delays(50, seed=8)


@pytest.mark.parametrize(
    ("journal", "expected"),
    [
        ({"generation": "g", "state": "restored"}, Ending.UPGRADED),
        ({"generation": "g", "state": "restored", "fell_back": True}, Ending.FELL_BACK),
        ({"generation": "g", "state": "aborted"}, Ending.ABORTED),
        ({"generation": "g", "state": "failed"}, Ending.FAILED),
        ({"generation": "another", "state": "restored"}, Ending.REFUSED),
    ],
)
def test_how_it_ended(journal: dict[str, Any], expected: Ending) -> None:
    assert strike.ending(journal, "g") is expected


def test_the_table_names_who_did_not_carry_on_and_what_is_wrong() -> None:
    fates = {"db1": "carried on", "tick1": "started afresh"}
    row = matrix.Row("a RAM file missing", "restore", True, "failed", fates, 1, 0, 41.2, True, ("db1 runs twice",))
    line = table.text([row]).splitlines()[-1]
    assert "tick1 started afresh | 1 | 0 | 41 s *" in line
    assert "db1 runs twice" in line
