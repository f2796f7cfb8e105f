# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the bench concludes from what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.bench import figures, plot, summary
from holdfast.bench.figures import Measurement, Phase, Subject

PAUSES = {
    (Subject.HOLDFAST, 512): (40.0,),
    (Subject.HOLDFAST, 4096): (41.0, 90.0, 42.0),
    (Subject.SAVE_KEXEC, 512): (60.0,),
    (Subject.SAVE_KEXEC, 4096): (170.0,),
    (Subject.SAVE_REBOOT, 512): (80.0,),
    (Subject.SAVE_REBOOT, 4096): (210.0,),
    (Subject.ONLY_QEMU, 4096): (2.4,),
    (Subject.BARE_QEMU, 512): (1.0,),
    (Subject.BARE_QEMU, 4096): (1.2,),
    (Subject.MINIMAL_INIT, 0): (10.0, 12.0, 30.0),
}
PHASES = (Phase("load", 5.0), Phase("suspend", 2.0), Phase("boot", 25.0), Phase("restore", 12.0))
MEASURED = [
    Measurement(subject, size, number, pause, PHASES if subject is Subject.HOLDFAST else ())
    for (subject, size), pauses in PAUSES.items()
    for number, pause in enumerate(pauses, 1)
]


def test_several_rounds_give_the_median() -> None:
    assert figures.pause_of(MEASURED, Subject.HOLDFAST, 4096) == 42.0


def test_the_floor_is_a_bare_qemu_after_a_kexec_to_nothing() -> None:
    assert figures.floor_of(MEASURED, 4096) == pytest.approx(13.2)


def test_the_others_are_compared_with_holdfast_and_holdfast_with_the_floor() -> None:
    large = figures.ratios(MEASURED)[-1]
    assert large.touched_mib == 4096
    assert large.kexec_to_holdfast == pytest.approx(170 / 42)
    assert large.reboot_to_holdfast == pytest.approx(5.0)
    assert large.holdfast_to_floor == pytest.approx(42 / 13.2)


def test_reached_targets_are_called_reached() -> None:
    growth, share, renewal = figures.targets(MEASURED)
    assert (growth.found, growth.reached) == (pytest.approx(1.05), True)
    assert (share.found, share.reached) == (pytest.approx(0.2), True)
    assert (renewal.found, renewal.reached) == (pytest.approx(2.0), True)
    assert growth.verdict.startswith("reached: holdfast at 4 GiB / holdfast at 0.5 GiB: 1.05")


def test_a_missed_target_is_told_with_its_numbers() -> None:
    slower = [*MEASURED, *(Measurement(Subject.HOLDFAST, 4096, number, 60.0) for number in range(4, 9))]
    growth, share, _ = figures.targets(slower)
    assert not growth.reached
    assert not share.reached
    assert growth.verdict == "NOT reached: holdfast at 4 GiB / holdfast at 0.5 GiB: 1.50 (at most 1.10)"


def test_a_size_that_was_not_measured_decides_nothing() -> None:
    small = [one for one in MEASURED if one.touched_mib <= 512]
    assert [target.reached for target in figures.targets(small)][:2] == [None, None]
    assert "not measured" in figures.targets(small)[0].verdict


def test_a_guest_that_reads_slower_after_its_pause_is_shown() -> None:
    found = [Measurement(Subject.ONLY_QEMU, 512, n, 2.0, speed_before=200.0, speed_after=n * 60.0) for n in (1, 2, 3)]
    assert figures.speed_kept(found, Subject.ONLY_QEMU) == pytest.approx(0.6)
    assert figures.speed_kept(MEASURED, Subject.HOLDFAST) is None


def test_an_interrupted_run_still_has_a_document() -> None:
    document = figures.document({}, MEASURED[:1], "no")
    assert document["medians"] == [
        {
            "touched_mib": 512,
            "holdfast_s": 40.0,
            "save_kexec_s": None,
            "save_reboot_s": None,
            "only_qemu_s": None,
            "bare_qemu_s": None,
            "minimal_init_s": None,
            "floor_s": None,
        }
    ]
    assert document["ratios"][0]["reboot_to_holdfast"] is None


def test_seconds_of_an_emulator_are_called_so() -> None:
    setting = {
        "accelerator": {"name": "tcg"},
        "host": {"cpus": 2, "ram_mib": 8192},
        "kernel": "6.12",
        "qemu": "QEMU emulator version 10.0.2 (Debian 1:10.0.2)",
    }
    assert figures.caption(setting).startswith("emulated host: compare")
    assert figures.caption(setting).endswith("2 CPUs, 8 GiB, kernel 6.12, QEMU 10.0.2")


def test_measurements_survive_being_written_down() -> None:
    text = json.dumps(figures.document({"kernel": "6.12"}, MEASURED, "yes"))
    assert list(figures.measurements_from(json.loads(text))) == MEASURED


def test_the_tables_show_every_size_and_every_phase() -> None:
    assert summary.pauses(MEASURED).row_count == 2
    table = summary.phases(MEASURED, Subject.HOLDFAST)
    assert table.row_count == 2
    assert [column.header for column in table.columns][2:-1] == [phase.name for phase in PHASES]
    assert summary.number(None) == "-"


@pytest.mark.parametrize("measured", [MEASURED, MEASURED[:1]], ids=["all", "one"])
def test_the_picture_is_drawn_of_whatever_there_is(tmp_path: Path, measured: list[Measurement]) -> None:
    plot.draw(measured, "emulated", tmp_path)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "bench.svg").read_text()
