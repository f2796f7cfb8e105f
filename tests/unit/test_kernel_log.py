# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An error that a kernel did not have before is told once, and one that only has other numbers in it is not."""

from __future__ import annotations

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import kernel_log
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed
from ansible_collections.holdfast.kvm.plugins.module_utils._core.kernel_log import kinds, new_ones

BEFORE = kinds(["ACPI BIOS Error (bug): at 0x7f10", "e1000 0000:00:03.0: reset 3"])


def test_numbers_and_addresses_make_no_new_kind() -> None:
    assert BEFORE is not None
    assert new_ones(BEFORE, ["ACPI BIOS Error (bug): at 0xdeadbeef", "e1000 0000:01:00.0: reset 12"]) == []
    assert len(kinds(["reset 1", "reset 2", "other"]) or []) == 2


def test_each_new_kind_is_told_once_with_its_first_line() -> None:
    lines = ["reset 9", "I/O error, dev vda, sector 8", "I/O error, dev vda, sector 16", "a\x1b[2Jb"]
    told = new_ones(BEFORE, lines)
    assert [one.rpartition("before: ")[2] for one in told] == ["reset 9", "I/O error, dev vda, sector 8", "a\ufffd[2Jb"]


def test_a_flood_is_cut_short_and_says_where_the_rest_is() -> None:
    told = new_ones([], [f"error of kind {letter}" for letter in "abcdefgh"])
    assert len(told) == kernel_log.MOST_TOLD + 1
    assert told[-1] == "3 more errors of other kinds in the kernel's log: journalctl -k -p err"
    assert all(len(one) < 400 for one in new_ones([], ["x" * 9000]))


def test_the_guards_own_timer_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["watchdog: watchdog0: watchdog did not stop!", "iTCO_wdt: watchdog did not stop!"]
    monkeypatch.setattr(kernel_log, "run", lambda _argv: "\n".join(lines) + "\n")
    assert kernel_log.complaints() == lines[1:]


def test_where_nobody_could_look_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_argv: object) -> str:
        raise CommandFailed("no journalctl")

    monkeypatch.setattr(kernel_log, "run", refuse)
    assert kernel_log.complaints() is None
    assert kinds(None) is None
    assert new_ones(None, ["error"]) == new_ones([], None) == []


def test_of_the_log_before_nothing_but_what_tells_its_lines_apart_is_on_record() -> None:
    assert BEFORE is not None
    assert all(len(kind) == kernel_log.KIND_DIGITS and int(kind, 16) >= 0 for kind in BEFORE)
