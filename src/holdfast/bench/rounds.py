# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of the bench: a lab host of its own, one guest that takes ever more RAM, every way at every size."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import FSDAX
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, HoldfastError

from ..command import step
from ..lab import emulator
from ..lab.guests.definitions import GuestSpec, bench_guest
from ..lab.hosts import Lab, emulator_failed, on_host
from ..lab.up import Wish, down, up
from . import floor, jumps, plot, pools, renewal
from .figures import TITLES, WAYS, Measurement, Subject, caption, document
from .pause import Rig

SIZES_MIB = (512, 1024, 2048, 4096)
# The pool begins at 4 GiB; what the emulated machine has below that (2 GiB), and 1 GiB above the pool, is the host's.
HOST_OWN_MIB = 3072
POOL_STEP_MIB = 512
# One request's worth: emulated, a guest writes some 15 MiB a second.
FILL_STEP_MIB = 512
GUEST_LIMIT_S = 600.0
# Hosts that one run may use up: emulated ones sometimes break down.
ATTEMPTS = 3
FACTS = """\
uname -r
qemu-system-x86_64 --version | head -n 1
virsh --version
cat /proc/cmdline
"""
NOTES = (
    "pauses are seen from outside: the longest silence of a guest that speaks every 100 ms on one connection",
    "every way leads to the same kernel release and QEMU that ran before, the distribution's own, so that only the"
    " way differs; libvirt 11.3 cannot restore a plain save file with QEMU 11, so QEMU stays at 10",
    "save_kexec is the best case: the kernel is loaded before the pause, no service is stopped, only a sync precedes"
    " the jump",
    "save_reboot goes through firmware and boot loader; the emulated firmware takes a second or two, a server's"
    " minutes",
    "save_kexec and save_reboot restore by a systemd unit as soon as libvirt answers, and read the image from a disk"
    " that this machine's page cache holds",
    "save_kexec and save_reboot make and attach an empty pool at boot, because the guest's RAM is placed there;"
    " attach_s says how long that took, the loading of KVM included, in every way",
    "in a pool of kind fsdax libvirt's QEMU maps a RAM file at an address that is no multiple of 2 MiB, so by 4 KiB"
    " pages; what that costs the restores of save_kexec and save_reboot, which write all RAM anew, is in their figures",
    "phases are by the host's own clock, which a boot may shift by up to a second; boot lasts until systemd begins to"
    " attach the pool, libvirt from there (holdfast: from the attached pool) until libvirt's daemon can be asked to"
    " restore",
    "only_qemu is a live update of QEMU alone, into the QEMU that was there before, on the same kernel: to compare with"
    " bare QEMU",
    "speed is that of one thread of the guest that reads all that it has touched, once: before, and as soon as it has"
    " gone on, when the host still boots and the new QEMU has yet to map each page",
    "the floor is bare QEMU (save, quit, start, incoming, cont by QMP, RAM in place, mapped at a multiple of 2 MiB)"
    " plus a kexec that leads to a minimal init, with the same kernel and command line",
)


# How each is measured on a guest under libvirt, in the order in which that is done.
MEASURES: dict[Subject, Callable[[Rig, int, int], Measurement]] = {
    **{way: partial(jumps.measure, way) for way in WAYS},
    Subject.ONLY_QEMU: renewal.measure,
}


@dataclass(frozen=True)
class Plan:
    """What to measure. ``sizes_mib`` ascending: the guest takes more, and gives nothing back.

    The floor is measured on a pool of kind ``fsdax`` only: bare QEMU has its RAM in a file of it.
    """

    folder: Path
    sizes_mib: tuple[int, ...] = SIZES_MIB
    rounds: int = 1
    pool_kind: str = FSDAX

    def __post_init__(self) -> None:
        if not self.sizes_mib or any(size <= 0 for size in self.sizes_mib) or self.rounds < 1:
            raise BadInput("a bench needs at least one size and one round", "for example: --sizes 512,4096 --rounds 1")
        object.__setattr__(self, "sizes_mib", tuple(sorted(set(self.sizes_mib))))

    @property
    def guest(self) -> GuestSpec:
        """One guest for all sizes, so that nothing but touched RAM differs between them."""
        guest = bench_guest(max(self.sizes_mib))
        # Only whole pages are RAM of a guest.
        page_mib = 1024 if self.pool_kind == pools.LARGE else 1
        return replace(guest, ram_mib=-(-guest.ram_mib // page_mib) * page_mib)

    @property
    def pool_mib(self) -> int:
        """Room for the guest and the file system around it."""
        return (self.guest.ram_mib // POOL_STEP_MIB + 1) * POOL_STEP_MIB

    @property
    def numbers(self) -> range:
        """The rounds, counted from 1."""
        return range(1, self.rounds + 1)

    @property
    def host_mib(self) -> int:
        return self.pool_mib + HOST_OWN_MIB


@dataclass
class Record:
    """What was found so far, on disk after every measurement."""

    path: Path
    setting: dict[str, Any] = field(default_factory=dict)
    measured: list[Measurement] = field(default_factory=list)
    ended: str = "no"
    breakdowns: list[str] = field(default_factory=list)

    def has(self, subject: Subject, touched_mib: int, number: int) -> bool:
        """Whether this was measured already."""
        return any(
            (one.subject, one.touched_mib, one.number) == (subject, touched_mib, number) for one in self.measured
        )

    def add(self, measurement: Measurement) -> None:
        self.measured.append(measurement)
        self.write()

    def write(self) -> None:
        setting = {**self.setting, "breakdowns": self.breakdowns}
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(document(setting, self.measured, self.ended), indent=1) + "\n")
        draft.rename(self.path)


class EmulatorBroke(HoldfastError):
    """The emulation of the lab host broke down, by a fault of its own."""


def bench(plan: Plan) -> Record:
    """Measure everything, write ``bench.json`` and the pictures, take the lab down. Raises HoldfastError."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    record = Record(plan.folder / "bench.json")
    with _kept(record):
        _with_patience(lambda: _measure(plan, record), record)
    plot.draw(record.measured, caption(record.setting), plan.folder)
    return record


def _with_patience(work: Callable[[], None], record: Record) -> None:
    """Do it again, on a host made anew, when the emulator broke down: what was measured stays measured."""
    for _ in range(ATTEMPTS - 1):
        try:
            work()
            return
        except EmulatorBroke as exc:
            record.breakdowns.append(exc.message.splitlines()[0])
            print(
                f"  the emulator broke down, a known fault of it; on with a new host ({exc.message})", file=sys.stderr
            )
    work()


def _measure(plan: Plan, record: Record) -> None:
    """Everything that is not on record yet."""
    with _rig(plan) as rig:
        record.setting = describe(plan, rig)
        for size, number, subject in product(plan.sizes_mib, plan.numbers, MEASURES):
            if not record.has(subject, size, number):
                _fill(rig, size)
                with step(f"{size} MiB: {TITLES[subject]}"):
                    record.add(MEASURES[subject](rig, size, number))
        if plan.pool_kind == FSDAX:
            _measure_floor(plan, rig, record)


@contextmanager
def _kept(record: Record) -> Iterator[None]:
    """Whatever happens, the record says how it ended."""
    try:
        yield
        record.ended = "yes"
    except BaseException as exc:
        record.ended = f"{type(exc).__name__}: {exc}"
        raise
    finally:
        record.write()


@contextmanager
def _rig(plan: Plan) -> Iterator[Rig]:
    """A prepared lab host of our own with the guest running on it; taken down at the end."""
    folder = (plan.folder / "lab").absolute()
    folder.mkdir(exist_ok=True)
    down(folder)  # what an interrupted run left behind
    try:
        lab = up(folder, Wish(ram_mib=plan.host_mib, nodes=1, guests=(plan.guest,)))
        rig = Rig(lab.host("hv1"), plan.guest)
        with step("hv1: prepared"):
            pools.prepare(folder, plan.pool_kind, prepare_pool_size=f"{plan.pool_mib}M")
            jumps.settle(lab.host("hv1"))
        with step(f"{plan.guest.name}: started"):
            jumps.install(rig.host)
            on_host(rig.host, f"virsh -q start {plan.guest.name}")
            rig.witness.wait(GUEST_LIMIT_S)
        yield rig
    except HoldfastError as exc:
        if any(emulator_failed(host) for host in Lab.load(folder).hosts):
            raise EmulatorBroke(exc.message, exc.hint) from exc
        raise
    finally:
        down(folder)


def describe(plan: Plan, rig: Rig) -> dict[str, Any]:
    """What was measured on, and how."""
    kernel, qemu, libvirt, cmdline = on_host(rig.host, FACTS).splitlines()
    engine = emulator.accelerator()
    return {
        "accelerator": {"name": engine.name, "why": engine.why},
        "host": {
            "firmware": rig.host.firmware,
            "ram_mib": plan.host_mib,
            "cpus": rig.host.cpus,
            "pool_mib": plan.pool_mib,
            "pool_kind": plan.pool_kind,
            "cmdline": cmdline,
        },
        "guest": {"ram_mib": plan.guest.ram_mib, "cpus": 1},
        "kernel": kernel,
        "qemu": qemu,
        "libvirt": libvirt,
        "sizes_mib": list(plan.sizes_mib),
        "rounds": plan.rounds,
        "notes": list(NOTES),
    }


def _fill(rig: Rig, size_mib: int) -> None:
    """Let the guest touch RAM until it has touched ``size_mib`` on our account."""
    filled = int(rig.witness.state()["filled_mib"])
    if filled < size_mib:
        with step(f"{rig.guest.name}: fills {size_mib} MiB"):
            for begin in range(filled, size_mib, FILL_STEP_MIB):
                rig.witness.fill(min(FILL_STEP_MIB, size_mib - begin))


def _measure_floor(plan: Plan, rig: Rig, record: Record) -> None:
    with step(f"{rig.guest.name}: started without libvirt"):
        floor.start_bare(rig)
    for size, number in product(plan.sizes_mib, plan.numbers):
        if not record.has(Subject.BARE_QEMU, size, number):
            _fill(rig, size)
            with step(f"{size} MiB: {TITLES[Subject.BARE_QEMU]}"):
                record.add(floor.measure_bare(rig, size, number))
    floor.bare_qemu(rig, "stop")
    for number in plan.numbers:
        if not record.has(Subject.MINIMAL_INIT, 0, number):
            with step(TITLES[Subject.MINIMAL_INIT]):
                record.add(floor.measure_jump(rig.host, number))
