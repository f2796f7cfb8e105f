# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lanes: as many as wanted, as many as there are CPUs."""

from __future__ import annotations

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import lanes


@pytest.mark.parametrize(("wanted", "cpus", "expected"), [(2, 8, 2), (8, 2, 2), (2, 1, 1), (0, 4, 1)])
def test_there_are_never_more_lanes_than_cpus(
    monkeypatch: pytest.MonkeyPatch, wanted: int, cpus: int, expected: int
) -> None:
    monkeypatch.setattr(lanes.os, "sched_getaffinity", lambda _pid: set(range(cpus)))
    assert lanes.bounded(wanted) == expected
