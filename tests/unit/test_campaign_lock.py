# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host is held by one campaign at a time, and the hold outlives everything but its end."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import campaign
from ansible_collections.holdfast.kvm.plugins.module_utils._core.campaign import Holder
from ansible_collections.holdfast.kvm.plugins.modules.campaign_lock import refusal

OURS = Holder("boot/1/10/99", "ctl1", "ann", 1000.0)
THEIRS = Holder("boot/1/11/99", "ctl2", "bob", 2000.0)


@pytest.fixture(autouse=True)
def _run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "RUN_DIR", tmp_path / "run")


def test_a_host_is_held_by_one(tmp_path: Path) -> None:
    assert campaign.holder(tmp_path) is None
    assert campaign.take(tmp_path, OURS) is None
    assert campaign.take(tmp_path, OURS) is None
    assert campaign.take(tmp_path, THEIRS) == OURS
    assert campaign.holder(tmp_path) == OURS


def test_the_dead_are_replaced(tmp_path: Path) -> None:
    campaign.take(tmp_path, OURS)
    assert campaign.take(tmp_path, THEIRS, over=["someone"]) == OURS
    assert campaign.take(tmp_path, THEIRS, over=[OURS.id]) is None
    assert campaign.holder(tmp_path) == THEIRS


def test_nobody_ends_anothers_hold_by_mistake(tmp_path: Path) -> None:
    campaign.take(tmp_path, OURS)
    assert campaign.release(tmp_path, THEIRS.id) is None
    assert campaign.holder(tmp_path) == OURS
    assert campaign.release(tmp_path) == OURS
    assert campaign.holder(tmp_path) is None
    assert campaign.release(tmp_path) is None


def test_a_damaged_lock_is_somebodys(tmp_path: Path) -> None:
    (tmp_path / campaign.NAME).write_text("{")
    other = campaign.take(tmp_path, OURS)
    assert other
    assert "unknown controller" in refusal(other)
    assert campaign.release(tmp_path) == other


def test_the_refusal_says_who_and_what_to_do() -> None:
    assert "begun by bob on ctl2 at 1970-01-01 00:33:20 UTC" in refusal(THEIRS)
    assert "holdfast recover" in refusal(THEIRS)


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    got: list[str] = []

    def ask(number: int) -> None:
        if campaign.take(tmp_path, Holder(f"id{number}")) is None:
            got.append(f"id{number}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = campaign.holder(tmp_path)
    assert found
    assert got == [found.id]
