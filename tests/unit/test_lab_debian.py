# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's packages come although the machine is just refreshing its lists by itself."""

from __future__ import annotations

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed
from holdfast.lab import debian


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What apt says, call by call; empty when it did as it was told."""
    said: list[str] = []

    def run(_words: list[str], **_more: object) -> str:
        if text := said.pop(0):
            raise CommandFailed(f"apt-get update ended with 100: {text}")
        return ""

    monkeypatch.setattr(debian, "run", run)
    monkeypatch.setattr(debian, "LOOK_S", 0.0)
    return said


def test_lists_that_somebody_else_refreshes_are_waited_for(answers: list[str]) -> None:
    answers += ["E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)"] * 2 + [""]
    debian.update()
    assert answers == []


def test_another_trouble_is_told_at_once(answers: list[str]) -> None:
    answers += ["E: The repository is not signed", ""]
    with pytest.raises(CommandFailed, match="not signed"):
        debian.update()
    assert answers == [""]


def test_somebody_who_never_ends_is_told(answers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "OTHERS_LIMIT_S", -1.0)
    answers += ["E: Could not get lock", ""]
    with pytest.raises(CommandFailed, match="Could not get lock"):
        debian.update()
