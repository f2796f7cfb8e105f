# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was measured, and what follows from it: medians, ratios, targets. Pure.

Every pause is what an outsider sees: seconds between two words of a guest that speaks every 100 ms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import median
from typing import Any

SCHEMA_VERSION = 1
GROWTH_LIMIT = 1.1
REBOOT_LIMIT = 0.2
SMALL_MIB, LARGE_MIB = 512, 4096
RENEWAL_LIMIT = 2.0


class Subject(StrEnum):
    """What is measured: three ways to put a host on a fresh kernel, one to put VMs into a fresh QEMU, and the floor.

    The floor has two halves; the first is what a fresh QEMU costs at least.
    """

    HOLDFAST = "holdfast"
    ONLY_QEMU = "only_qemu"
    SAVE_KEXEC = "save_kexec"
    SAVE_REBOOT = "save_reboot"
    BARE_QEMU = "bare_qemu"
    MINIMAL_INIT = "minimal_init"


# After these the guest goes on in RAM that stayed in its place.
RESTORED = (Subject.HOLDFAST, Subject.ONLY_QEMU)
WAYS = (Subject.HOLDFAST, Subject.SAVE_KEXEC, Subject.SAVE_REBOOT)
TITLES = {
    Subject.HOLDFAST: "holdfast",
    Subject.ONLY_QEMU: "holdfast, QEMU only",
    Subject.SAVE_KEXEC: "suspend to disk + kexec",
    Subject.SAVE_REBOOT: "suspend to disk + reboot",
    Subject.BARE_QEMU: "floor: bare QEMU",
    Subject.MINIMAL_INIT: "floor: kexec to a minimal init",
}


@dataclass(frozen=True)
class Phase:
    """A part of a pause, by the host's own clock, which a boot may shift by up to a second."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Measurement:
    """One pause. ``touched_mib``: RAM that the guest had written; 0 where no guest took part.

    ``saved_bytes``: what was written for the guest. ``attach_s``: what attaching the pool took at boot.
    ``speed_before``, ``speed_after``: MiB/s at which the guest read all that, right before and right after. None for
    what was not measured.
    """

    subject: Subject
    touched_mib: int
    number: int
    pause_s: float
    phases: tuple[Phase, ...] = ()
    saved_bytes: int = 0
    attach_s: float | None = None
    speed_before: float | None = None
    speed_after: float | None = None


@dataclass(frozen=True)
class Ratios:
    """How the ways compare at one size; None where something was not measured."""

    touched_mib: int
    kexec_to_holdfast: float | None
    reboot_to_holdfast: float | None
    holdfast_to_floor: float | None


@dataclass(frozen=True)
class Target:
    """A promise: ``found`` must be at most ``limit``. Both None when its sizes were not measured."""

    name: str
    limit: float
    found: float | None
    reached: bool | None

    @property
    def verdict(self) -> str:
        """For people."""
        if self.found is None:
            return f"not measured: {self.name} (at most {self.limit:.2f})"
        word = "reached" if self.reached else "NOT reached"
        return f"{word}: {self.name}: {self.found:.2f} (at most {self.limit:.2f})"


def sizes_of(measured: Sequence[Measurement]) -> tuple[int, ...]:
    """Sizes that any guest was measured at, MiB, ascending."""
    return tuple(sorted({one.touched_mib for one in measured if one.subject is not Subject.MINIMAL_INIT}))


def pause_of(measured: Sequence[Measurement], subject: Subject, touched_mib: int) -> float | None:
    """The median pause, seconds; None when it was not measured."""
    found = [one.pause_s for one in measured if (one.subject, one.touched_mib) == (subject, touched_mib)]
    return median(found) if found else None


def floor_of(measured: Sequence[Measurement], touched_mib: int) -> float | None:
    """The least that a live update could cost, seconds: a kexec that leads to nothing, and a QEMU without libvirt."""
    qemu = pause_of(measured, Subject.BARE_QEMU, touched_mib)
    jump = pause_of(measured, Subject.MINIMAL_INIT, 0)
    return None if qemu is None or jump is None else qemu + jump


def quotient(above: float | None, below: float | None) -> float | None:
    """``above / below``, None when either is missing."""
    return above / below if above is not None and below else None


def ratios(measured: Sequence[Measurement]) -> tuple[Ratios, ...]:
    """One entry per size."""
    return tuple(_ratios_at(measured, size) for size in sizes_of(measured))


def _ratios_at(measured: Sequence[Measurement], size: int) -> Ratios:
    ours, by_kexec, by_reboot = (pause_of(measured, way, size) for way in WAYS)
    return Ratios(size, quotient(by_kexec, ours), quotient(by_reboot, ours), quotient(ours, floor_of(measured, size)))


def targets(measured: Sequence[Measurement]) -> tuple[Target, ...]:
    """What the bench has to show."""
    large = pause_of(measured, Subject.HOLDFAST, LARGE_MIB)
    growth = quotient(large, pause_of(measured, Subject.HOLDFAST, SMALL_MIB))
    share = quotient(large, pause_of(measured, Subject.SAVE_REBOOT, LARGE_MIB))
    largest = max(sizes_of(measured), default=0)
    renewal, bare = (pause_of(measured, one, largest) for one in (Subject.ONLY_QEMU, Subject.BARE_QEMU))
    return (
        _target("holdfast at 4 GiB / holdfast at 0.5 GiB", GROWTH_LIMIT, growth),
        _target("holdfast / suspend to disk + reboot, at 4 GiB", REBOOT_LIMIT, share),
        _target("holdfast, QEMU only / bare QEMU, at the largest size", RENEWAL_LIMIT, quotient(renewal, bare)),
    )


def speed_kept(measured: Sequence[Measurement], subject: Subject) -> float | None:
    """How fast guests read their RAM right after, by how fast they did right before; the median. None: not measured."""
    found = [quotient(one.speed_after, one.speed_before) for one in measured if one.subject is subject]
    known = [ratio for ratio in found if ratio is not None]
    return median(known) if known else None


def _target(name: str, limit: float, found: float | None) -> Target:
    return Target(name, limit, found, None if found is None else found <= limit)


def phase_medians(measured: Sequence[Measurement], subject: Subject, touched_mib: int) -> tuple[Phase, ...]:
    """The phases of one way at one size, in their order."""
    found: dict[str, list[float]] = {}
    for one in measured:
        if (one.subject, one.touched_mib) == (subject, touched_mib):
            for phase in one.phases:
                found.setdefault(phase.name, []).append(phase.seconds)
    return tuple(Phase(name, median(seconds)) for name, seconds in found.items())


def saved_mib(measured: Sequence[Measurement], subject: Subject, touched_mib: int) -> float | None:
    """The median of what was written for the guest, MiB; None when it was not measured."""
    found = [one.saved_bytes for one in measured if (one.subject, one.touched_mib) == (subject, touched_mib)]
    return median(found) / (1 << 20) if found else None


def caption(setting: Mapping[str, Any]) -> str:
    """What was measured on, in one line; and how to read seconds that an emulator made."""
    host, emulated = setting["host"], setting["accelerator"]["name"] == "tcg"
    kind = "emulated host: compare, do not quote seconds" if emulated else "virtual host"
    return (
        f"{kind}; {host['cpus']} CPUs, {host['ram_mib'] / 1024:g} GiB, kernel {setting['kernel']}, {qemu_of(setting)}"
    )


def qemu_of(setting: Mapping[str, Any]) -> str:
    """``QEMU emulator version 10.0.2 (Debian …)`` as ``QEMU 10.0.2``."""
    return f"QEMU {setting['qemu'].removeprefix('QEMU emulator version ').split()[0]}"


def document(setting: Mapping[str, Any], measured: Sequence[Measurement], ended: str) -> dict[str, Any]:
    """``bench.json``. ``setting``: what was measured on; ``ended``: ``no`` while it runs, ``yes``, or why not."""
    return {
        "bench_schema": SCHEMA_VERSION,
        "ended": ended,
        "setting": dict(setting),
        "measurements": [asdict(one) for one in measured],
        "medians": [_medians_at(measured, size) for size in sizes_of(measured)],
        "ratios": [asdict(one) for one in ratios(measured)],
        "targets": [asdict(one) for one in targets(measured)],
        "speed_kept": {one.value: speed_kept(measured, one) for one in RESTORED},
    }


def _medians_at(measured: Sequence[Measurement], size: int) -> dict[str, Any]:
    pauses = {f"{way.value}_s": pause_of(measured, way, size) for way in (*WAYS, Subject.ONLY_QEMU, Subject.BARE_QEMU)}
    jump = pause_of(measured, Subject.MINIMAL_INIT, 0)
    return {"touched_mib": size, **pauses, "minimal_init_s": jump, "floor_s": floor_of(measured, size)}


def measurements_from(document: Mapping[str, Any]) -> tuple[Measurement, ...]:
    """The measurements of a ``bench.json``."""
    return tuple(
        Measurement(
            **{
                **entry,
                "subject": Subject(entry["subject"]),
                "phases": tuple(Phase(**phase) for phase in entry["phases"]),
            }
        )
        for entry in document["measurements"]
    )
