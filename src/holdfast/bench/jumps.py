# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three ways to put a host on a fresh kernel with a guest on it, each measured by the guest's pause.

The pause needs no controller in any of them: one call starts it, the host does the rest by itself.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from itertools import pairwise
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError

from ..lab.guests.observer import compare, take
from ..lab.hosts import BOOT_LIMIT_S, Host, console_on_failure, on_host, wait_until_usable
from .figures import Measurement, Phase, Subject
from .pause import Rig, observe

PROGRAMS = "/usr/local/lib/holdfast-bench"
STATE = "/var/lib/holdfast-bench"
UNIT = "holdfast-bench-restore.service"
INSTALLED = (
    *("request-live-update", "suspend-to-disk", "restore-from-disk", "jump-to-minimal-init", "bare-qemu"),
    "describe-pool",
)
# On the console, when a new kernel runs the first program of its initrd.
READY = "as init process"
# No way is over faster than this; a guest that is short of CPU may be silent for a second or two.
SILENCE_S = 3.0


@dataclass(frozen=True)
class Way:
    """How one way is started, what the new kernel's command line then has and has not, and what the host noted.

    ``noted``: a command for the host. ``read``: what that printed, as phases and bytes written for the guest.
    """

    start: Callable[[Rig], str]
    has: str
    has_not: tuple[str, ...]
    noted: str
    read: Callable[[str], tuple[tuple[Phase, ...], int]]


def program(name: str) -> str:
    """Text of one of our programs for the host."""
    return (resources.files(__package__) / "files" / name).read_text()


def put(path: str, text: str, mode: str = "755") -> str:
    """Shell lines that write a file on the host."""
    return f"cat >{path} <<'END_OF_FILE'\n{text}END_OF_FILE\nchmod {mode} {path}\n"


def install(host: Host) -> None:
    """Put our programs on a prepared host, and remember the command line that its boot loader gives."""
    lines = f"set -eu\nmkdir -p {PROGRAMS} {STATE}\ncat /proc/cmdline >{STATE}/cmdline\n"
    lines += "".join(put(f"{PROGRAMS}/{name}", program(name)) for name in INSTALLED)
    lines += put(f"/etc/systemd/system/{UNIT}", program(UNIT), "644")
    on_host(host, f"{lines}systemctl daemon-reload\nsystemctl enable -q {UNIT}\n")


def measure(subject: Subject, rig: Rig, touched_mib: int, number: int) -> Measurement:
    """Measure one way, and prove that the host took it and that the guest carried on. Raises HoldfastError."""
    before, boot = take(rig.witness), boot_id(rig.host)
    way, speed_before = WAYS[subject], rig.witness.speed()
    with console_on_failure(rig.host):
        held = observe(
            rig.listener(subject.value),
            lambda: on_host(rig.host, way.start(rig)),
            lambda held: held.longest_gap_s > SILENCE_S and has_jumped(rig.host, boot),
            rig.lost,
        )
        speed_after = rig.witness.speed()
        settle(rig.host)
    after = take(rig.witness, held=(held,))
    trouble = compare(before, after)
    if trouble:
        raise HoldfastError(f"{subject.value} at {touched_mib} MiB: the guest did not carry on: {'; '.join(trouble)}")
    seen = Measurement(subject, touched_mib, number, held.longest_gap_s)
    measurement = _read(rig, way, replace(seen, speed_before=speed_before, speed_after=speed_after))
    if subject is not Subject.HOLDFAST and measurement.saved_bytes < touched_mib << 20:
        raise HoldfastError(
            f"{subject.value}: libvirt wrote {measurement.saved_bytes} bytes for {touched_mib} MiB of touched RAM",
            "this is no suspend to disk; see whether x-ignore-shared was left on",
        )
    return measurement


def boot_id(host: Host) -> str:
    """Id of the host's present boot."""
    return on_host(host, "cat /proc/sys/kernel/random/boot_id", timeout_s=30).strip()


def has_jumped(host: Host, boot: str) -> bool:
    """Whether another kernel than that of this boot answers."""
    with contextlib.suppress(CommandFailed):
        return boot_id(host) != boot
    return False


def settle(host: Host) -> None:
    """Wait until the host has started everything, so that the next measurement does not compete with it."""
    wait_until_usable(host)
    on_host(host, "systemctl is-system-running --wait >/dev/null || true", timeout_s=BOOT_LIMIT_S)


def _read(rig: Rig, way: Way, bare: Measurement) -> Measurement:
    """Complete a measurement by what the host noted. Raises HoldfastError when the host came another way."""
    stamps = "--property=ExecMainStartTimestampMonotonic,ExecMainExitTimestampMonotonic"
    told = on_host(rig.host, f"cat /proc/cmdline\nsystemctl show {stamps} holdfast-pool.service\n{way.noted}\n")
    cmdline, first, second, noted = told.split("\n", 3)
    if way.has not in cmdline or any(word in cmdline for word in way.has_not):
        raise HoldfastError(f"the host did not come by way of {bare.subject.value}: its command line is {cmdline}")
    phases, saved_bytes = way.read(noted)
    return replace(bare, phases=phases, saved_bytes=saved_bytes, attach_s=attach_seconds(first, second))


def attach_seconds(*lines: str) -> float:
    """Seconds between the two stamps (microseconds since boot) that systemd shows of a unit's program."""
    stamps = dict(line.split("=", 1) for line in lines)
    begin, end = (int(stamps[f"ExecMain{event}TimestampMonotonic"]) for event in ("Start", "Exit"))
    return (end - begin) / 1e6


def journal_phases(text: str) -> tuple[tuple[Phase, ...], int]:
    """The phases of a live update and the bytes of its only VM's state. Raises HoldfastError unless it was restored."""
    view: Mapping[str, Any] = json.loads(text)
    if view["state"] != "restored" or not all(vm["ram_verified"] for vm in view["vms"]):
        raise HoldfastError(f"the live update ended as {view['state']}: {view.get('reason', '')}")
    phases = tuple(Phase(phase["name"], phase["seconds"]) for phase in view["phases"])
    return phases, sum(vm["state_bytes"] for vm in view["vms"])


def noted_phases(text: str) -> tuple[tuple[Phase, ...], int]:
    """Phases from the ``name epoch-seconds`` lines of suspend-to-disk and restore-from-disk, and the bytes saved.

    ``boot`` ends when systemd starts to attach the pool, as it does (a second apart) for holdfast: ``up`` is the
    host's uptime in seconds at ``restore``, ``attach_us`` its uptime in microseconds at the attach.
    """
    at = {name: float(value) for name, value in (line.split() for line in text.splitlines())}
    at["arrived"] = at["restore"] - at["up"] + at["attach_us"] / 1e6
    names = ("save", "sync", "boot", "libvirt", "restore")
    moments = ("save", "saved", "synced", "arrived", "restore", "restored")
    steps = [(name, at[end] - at[begin]) for name, (begin, end) in zip(names, pairwise(moments), strict=True)]
    return tuple(Phase(name, round(seconds, 3)) for name, seconds in steps), int(at["bytes"])


def _start_live_update(rig: Rig) -> str:
    return f"{PROGRAMS}/request-live-update everything {rig.guest.name} {rig.guest.uuid}\n"


def _start_suspend(way: str) -> Callable[[Rig], str]:
    def start(rig: Rig) -> str:
        words = ["systemd-run", "-q", "--no-block", "--collect", f"{PROGRAMS}/suspend-to-disk", rig.guest.name, way]
        return f"{shlex.join(words)}\n"

    return start


GENERATION, BENCH = "holdfast.generation=", "bench.way="
STEPS = f"""\
cat {STATE}/steps
echo attach_us $(systemctl show --value --property=ExecMainStartTimestampMonotonic holdfast-pool.service)"""
WAYS: Mapping[Subject, Way] = {
    Subject.HOLDFAST: Way(_start_live_update, GENERATION, (BENCH,), "holdfast-agent status --json", journal_phases),
    Subject.SAVE_KEXEC: Way(_start_suspend("kexec"), f"{BENCH}kexec", (GENERATION,), STEPS, noted_phases),
    Subject.SAVE_REBOOT: Way(_start_suspend("reboot"), "BOOT_IMAGE=", (GENERATION, BENCH), STEPS, noted_phases),
}
