# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal survives what happens to files, and lets nothing happen twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import attach, durable
from ansible_collections.holdfast.kvm.plugins.module_utils._core.attach import Boot
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, JournalError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import (
    Journal,
    holds_suspended,
    latest,
    open_journal,
)

GENERATION = "g-20261121T020000-ab12cd"
UUID = "11111111-2222-3333-4444-555555555555"


def begun(state_dir: Path) -> Journal:
    journal = open_journal(state_dir)
    journal.record(
        "begin",
        generation=GENERATION,
        host="hv1",
        kernel={"from": "6.12", "to": "7.2"},
        qemu="10.0.2",
        boot_id="boot-1",
        vms=[{"name": "db1", "uuid": UUID, "priority": 50, "treatment": "in_place", "reason": ""}],
    )
    return journal


def suspended(state_dir: Path) -> Journal:
    journal = begun(state_dir)
    journal.record("suspending")
    journal.record("vm_paused", uuid=UUID, was_paused=False, moment=100.0)
    journal.record("vm_saved", uuid=UUID, state_bytes=1000, ram_bytes=2000)
    journal.record("suspended")
    return journal


def jumping(state_dir: Path) -> Journal:
    journal = suspended(state_dir)
    journal.record("jumping")
    return journal


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    written = suspended(tmp_path)
    assert open_journal(tmp_path).view == written.view
    assert written.vm(UUID)["paused_at"] == 100.0


def test_a_cut_off_last_line_is_dropped(tmp_path: Path) -> None:
    journal = suspended(tmp_path)
    with journal.path.open("ab") as file:
        file.write(b'0123456789abcdef {"event": "jump')
    assert open_journal(tmp_path).state == "suspended"


def test_recording_goes_on_after_a_cut_off_line(tmp_path: Path) -> None:
    journal = suspended(tmp_path)
    with journal.path.open("ab") as file:
        file.write(b"0123456789abcdef {")
    open_journal(tmp_path).record("jumping")
    assert open_journal(tmp_path).state == "jumping"


def test_recording_goes_on_after_a_line_that_a_full_disk_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = suspended(tmp_path)
    with monkeypatch.context() as full:

        def half(path: Path, line: str) -> None:
            with path.open("a") as file:
                file.write(line[: len(line) // 2])
            raise HoldfastError("cannot write: No space left on device")

        full.setattr(durable, "append_line", half)
        with pytest.raises(HoldfastError, match="No space left"):
            journal.record("jumping")
    assert (journal.state, open_journal(tmp_path).state) == ("suspended", "suspended")
    journal.record("jumping")
    assert open_journal(tmp_path).state == "jumping"


def test_a_line_that_was_written_but_not_synced_counts_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever recorded it was told so, and did not act upon it."""
    journal = suspended(tmp_path)
    append = durable.append_line

    def unsynced(path: Path, line: str) -> None:
        append(path, line)
        raise HoldfastError("cannot write: Input/output error")

    monkeypatch.setattr(durable, "append_line", unsynced)
    with pytest.raises(HoldfastError, match="Input/output"):
        journal.record("jumping")
    assert (journal.state, open_journal(tmp_path).state) == ("suspended", "suspended")


def test_a_damaged_line_makes_the_journal_unreadable_and_the_pool_untouchable(tmp_path: Path) -> None:
    journal = suspended(tmp_path)
    journal.path.write_bytes(journal.path.read_bytes().replace(b"vm_paused", b"vm_pausex"))
    with pytest.raises(JournalError, match="line 3"):
        open_journal(tmp_path)
    assert holds_suspended(tmp_path)


def test_one_bit_that_flips_is_said_and_costs_nothing(tmp_path: Path) -> None:
    journal = suspended(tmp_path)
    whole = journal.path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        journal.path.write_bytes(bytes(damaged))
        found = open_journal(tmp_path)
        assert (found.state, found.vms) == (journal.state, journal.vms), place
        line = whole[:place].count(b"\n") + 1
        # What is between the copies may be anything.
        between = whole.splitlines()[line - 1][place - whole.rfind(b"\n", 0, place) - 1 :].startswith(b"\t")
        told = [text for text in found.view["warnings"] if f"all the same: line {line}" in text]
        assert bool(told) != between, place


def test_no_flipped_bit_makes_another_history(tmp_path: Path) -> None:
    """The journal that is too short by a line is the dangerous one. No bit is one too many either."""
    journal = suspended(tmp_path)
    whole = journal.path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            journal.path.write_bytes(bytes(damaged))
            assert open_journal(tmp_path).vms == journal.vms, (place, bit)


def test_a_journal_with_a_damaged_copy_goes_on(tmp_path: Path) -> None:
    journal = suspended(tmp_path)
    journal.path.write_bytes(journal.path.read_bytes().replace(b"vm_paused", b"vm_pausex", 1))
    open_journal(tmp_path).record("jumping")
    assert open_journal(tmp_path).state == "jumping"


def test_a_saved_state_is_consumed_at_most_once(tmp_path: Path) -> None:
    journal = suspended(tmp_path)
    journal.record("restoring")
    journal.record("vm_resuming", uuid=UUID)
    with pytest.raises(JournalError, match="at most once"):
        journal.record("vm_resuming", uuid=UUID)
    with pytest.raises(JournalError, match="at most once"):
        open_journal(tmp_path).record("vm_resuming", uuid=UUID)


def test_no_jump_before_everything_is_suspended(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="jumping does not follow staged"):
        begun(tmp_path).record("jumping")


def test_a_finished_journal_moves_to_the_history_and_is_still_the_latest(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    journal.record("aborted", reason="asked to")
    journal.archive()
    assert open_journal(tmp_path).state == "none"
    assert latest(tmp_path).view["reason"] == "asked to"


def test_an_unfinished_journal_does_not_move(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="not finished"):
        begun(tmp_path).archive()


def test_a_state_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=r"cannot write .*absent"):
        begun(tmp_path / "absent")


@pytest.mark.parametrize(
    ("boot_id", "cmdline", "expected"),
    [
        ("boot-1", "root=/dev/vda1", Boot.SAME),
        ("boot-2", f"root=/dev/vda1 holdfast.generation={GENERATION}", Boot.JUMPED),
        ("boot-2", "root=/dev/vda1", Boot.STRANGE),
        ("boot-2", "root=/dev/vda1 holdfast.generation=g-20200101T000000-000000", Boot.STRANGE),
    ],
)
def test_whose_boot_it_is(tmp_path: Path, boot_id: str, cmdline: str, expected: Boot) -> None:
    assert attach.judge_boot(jumping(tmp_path), boot_id, cmdline) is expected


def test_a_generation_arrives_once(tmp_path: Path) -> None:
    journal = jumping(tmp_path)
    journal.record("arrived", boot_id="boot-2", kernel="7.2")
    cmdline = f"holdfast.generation={GENERATION}"
    assert attach.judge_boot(journal, "boot-2", cmdline) is Boot.AGAIN
    # Another kernel of ours, the crash kernel say: RAM was kept.
    assert attach.judge_boot(journal, "boot-3", cmdline) is Boot.JUMPED


def test_an_attach_that_is_tried_again_is_no_way_back(tmp_path: Path) -> None:
    journal = jumping(tmp_path)
    for boot_id, fell_back in (("boot-2", False), ("boot-2", False), ("boot-3", True)):
        journal.record("arrived", boot_id=boot_id, kernel="7.2")
        assert journal.view["fell_back"] is fell_back


def test_an_ordinary_boot_is_one_without_a_generation(tmp_path: Path) -> None:
    assert attach.judge_boot(open_journal(tmp_path), "boot-1", "root=/dev/vda1") is Boot.ORDINARY
