# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The floor: what a live update cannot be faster than with this kernel and this QEMU on this host."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError

from ..lab.guests.definitions import BRIDGE, INITRD, KERNEL, GuestSpec, kernel_arguments
from ..lab.guests.observer import compare, take
from ..lab.hosts import BOOT_LIMIT_S, Host, console_on_failure, on_host
from .figures import Measurement, Phase, Subject
from .jumps import PROGRAMS, STATE, program, put, settle
from .pause import Rig, observe

JUMP, ARRIVED = "holdfast-bench: jump", "holdfast-bench: minimal init"
JUMP_LIMIT_S = 180.0
LOOK_S = 0.005


def start_bare(rig: Rig) -> None:
    """End the guest under libvirt and boot it again, from the same disk, in a QEMU without libvirt."""
    on_host(rig.host, f"virsh -q destroy {rig.guest.name}")
    bare_qemu(rig, "start")
    rig.witness.wait(BOOT_LIMIT_S)


def measure_bare(rig: Rig, touched_mib: int, number: int) -> Measurement:
    """Save, quit, start, incoming, cont by QMP, RAM in place; seen from outside as the ways are."""
    before = take(rig.witness)
    told: list[str] = []
    with console_on_failure(rig.host):
        held = observe(
            rig.listener("bare QEMU"),
            lambda: told.append(bare_qemu(rig, "cycle")),
            lambda _held: True,
            rig.lost,
        )
    trouble = compare(before, take(rig.witness, held=(held,)))
    if trouble:
        raise HoldfastError(f"bare QEMU at {touched_mib} MiB: the guest did not carry on: {'; '.join(trouble)}")
    steps = json.loads(told[0])
    phases = tuple(Phase(name, round(seconds, 3)) for name, seconds in steps["steps"].items())
    return Measurement(
        Subject.BARE_QEMU, touched_mib, number, held.longest_gap_s, phases, saved_bytes=steps["state_bytes"]
    )


def bare_qemu(rig: Rig, verb: str) -> str:
    """Run our bare-qemu on the host; return what it prints."""
    settings = shlex.quote(json.dumps(bare_settings(rig.guest)))
    return on_host(rig.host, f"echo {settings} | {PROGRAMS}/bare-qemu {verb}\n")


def bare_settings(guest: GuestSpec) -> dict[str, str | int]:
    """What bare-qemu needs to know of a guest."""
    return {
        "ram_mib": guest.ram_mib,
        "disk": guest.disk,
        "mac": guest.mac,
        "bridge": BRIDGE,
        "kernel": KERNEL,
        "initrd": INITRD,
        "append": kernel_arguments(guest),
    }


def measure_jump(host: Host, number: int) -> Measurement:
    """kexec of the running kernel to a minimal init: seconds from ``kexec -e`` to the init's word on the console.

    The host then starts again through its firmware. Raises HoldfastError.
    """
    words = ["systemd-run", "-q", "--no-block", "--collect", f"{PROGRAMS}/jump-to-minimal-init", f"{STATE}/minimal"]
    sights = sightings(host.console, (JUMP, ARRIVED))
    next(sights)  # nothing that is already on the console counts
    with console_on_failure(host):
        on_host(host, put(f"{STATE}/init", program("minimal-init")) + _initrd_lines() + shlex.join(words) + "\n")
        began, arrived = next(sights), next(sights)
        settle(host)
    return Measurement(Subject.MINIMAL_INIT, 0, number, arrived - began)


def _initrd_lines() -> str:
    """Shell lines that make the initrd: the guests' own has a busybox, and the kernel unpacks archives in a row."""
    size = len(program("minimal-init").encode())
    begin, end = newc_header("minimal-init", 0o100755, size), b"\0" * (-size % 4) + newc_header("TRAILER!!!", 0, 0)
    parts = f"cat {INITRD}; printf '{printable(begin)}'; cat {STATE}/init; printf '{printable(end)}'"
    return f"{{ {parts}; }} >{STATE}/minimal\n"


def newc_header(name: str, mode: int, size: int) -> bytes:
    """Header and name of one entry of a cpio archive, as the kernel unpacks it (buffer-format.rst in its documents)."""
    stored = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(stored), 0)
    text = b"070701" + b"".join(b"%08X" % value for value in fields) + stored
    return text + b"\0" * (-len(text) % 4)


def printable(raw: bytes) -> str:
    """Bytes as ``printf`` of a shell takes them."""
    return "".join(chr(byte) if 32 < byte < 127 and byte not in b"%\\'" else f"\\{byte:03o}" for byte in raw)


def sightings(console: Path, words: tuple[str, ...]) -> Iterator[float]:
    """Monotonic times at which the words appear at the end of a growing file, one after the other; first a 0.0.

    Raises HoldfastError when one does not within JUMP_LIMIT_S seconds.
    """
    with console.open("rb") as log:
        log.seek(0, 2)
        yield 0.0
        seen = b""
        for word in words:
            deadline = time.monotonic() + JUMP_LIMIT_S
            while word.encode() not in seen:
                if time.monotonic() > deadline:
                    raise HoldfastError(f"{word!r} was not seen within {JUMP_LIMIT_S:.0f} s on {console}")
                time.sleep(LOOK_S)
                seen += log.read()
            yield time.monotonic()
