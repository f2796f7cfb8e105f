# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The jump: load a kernel by file, prove that it is loaded, and go.

Only kexec_file_load (``kexec -s``) is ever used: the older call places its segments by the firmware's memory map,
in which VM RAM looks free.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Optional

from .command import run
from .errors import CommandFailed, HoldfastError

LOADED = Path("/sys/kernel/kexec_loaded")
# How many kernels may still be loaded in this boot, -1 for any number (kernel/kexec_core.c, since 6.3). It can only be
# lowered, and from 0 on it counts: so it tells whether anybody has loaded or unloaded a kernel since.
LOADS_LEFT = Path("/proc/sys/kernel/kexec_load_limit_reboot")
PLENTY_OF_LOADS = 1 << 30
CRASH_LOADED = Path("/sys/kernel/kexec_crash_loaded")
CRASH_SIZE = Path("/sys/kernel/kexec_crash_size")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CMDLINE = Path("/proc/cmdline")
LAST_WORDS_LIMIT_S = 20.0
TAINT = Path("/proc/sys/kernel/tainted")


def boot_id() -> str:
    """This boot's id: every boot, a kexec included, draws a new one."""
    return BOOT_ID.read_text().strip()


def running_cmdline() -> str:
    """Command line of the running kernel."""
    return CMDLINE.read_text().strip()


def running_release() -> str:
    """Release of the running kernel, as ``uname -r``."""
    return os.uname().release


def taint() -> int:
    """The kernel's taint, as bits."""
    return int(TAINT.read_text())


def image_of(release: str) -> tuple[Path, Path]:
    """Kernel image and initrd of an installed release. Raises HoldfastError naming what is installed."""
    image, initrd = Path(f"/boot/vmlinuz-{release}"), Path(f"/boot/initrd.img-{release}")
    if not (image.exists() and initrd.exists()):
        there = ", ".join(sorted(path.name[8:] for path in Path("/boot").glob("vmlinuz-*"))) or "none"
        raise HoldfastError(f"kernel {release} is not installed (image or initrd missing)", f"installed: {there}")
    return image, initrd


def initrd_bytes(release: str) -> int:
    """Size of a release's initrd; 0 when it has none."""
    path = Path(f"/boot/initrd.img-{release}")
    return path.stat().st_size if path.exists() else 0


def load(image: Path, initrd: Path, cmdline: str) -> Optional[int]:
    """Load a kernel for the jump, replacing any that was loaded. Raises HoldfastError if it is not loaded then.

    Returns a mark of this load for ``check_loaded``.
    """
    if loads_left() == -1:
        LOADS_LEFT.write_text(str(PLENTY_OF_LOADS))
    try:
        _kexec("-s", "-l", str(image), f"--initrd={initrd}", f"--command-line={cmdline}")
    except CommandFailed as exc:
        hint = "look for lockdown or signature messages in the kernel log; no VM was paused for this"
        raise HoldfastError(f"the kernel refuses to load {image}: {exc.message}", hint) from exc
    if LOADED.read_text().strip() != "1":
        raise HoldfastError(f"{image} did not stay loaded", "nothing was changed; see the kernel log")
    return loads_left()


def loads_left() -> Optional[int]:
    """How many kernels may still be loaded for a jump; -1: any number, None: this kernel does not say."""
    return int(LOADS_LEFT.read_text()) if LOADS_LEFT.exists() else None


def check_loaded(mark: Optional[int]) -> None:
    """Raise HoldfastError unless the kernel that got this mark is still the one that is loaded.

    A kernel older than 6.3 has no marks: there only an unloaded kernel is noticed, not one loaded in its place.
    """
    if LOADED.read_text().strip() != "1":
        raise HoldfastError("the new kernel is no longer loaded", "something else on this host unloaded it")
    if loads_left() != mark:
        raise HoldfastError(
            "another kernel may be loaded in place of the new one",
            "something else on this host called kexec since: find out what, then run the upgrade again",
        )


def unload() -> None:
    """Forget a loaded kernel, so that an ordinary reboot is an ordinary reboot."""
    if LOADED.read_text().strip() == "1":
        _kexec("-s", "-u")


def mem_available(root: Path = Path("/")) -> int:
    """Bytes of the host's own RAM that are free, or can be freed; 0 when it does not say."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return 0
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def crash_area_bytes() -> int:
    """RAM that this kernel keeps for a crash kernel; 0 without ``crashkernel=``, or when it found no room."""
    # One that knows of no crash kernels has no such file.
    return int(CRASH_SIZE.read_text()) if CRASH_SIZE.exists() else 0


def load_crash(image: Path, initrd: Path, cmdline: str) -> None:
    """Load a kernel that takes over when this one panics. Raises HoldfastError if it is not loaded then."""
    _kexec("-s", "-p", str(image), f"--initrd={initrd}", f"--command-line={cmdline}")
    if not crash_loaded():
        raise HoldfastError(f"{image} did not stay loaded as crash kernel", "see the kernel log")


def crash_loaded() -> bool:
    """Whether a crash kernel is loaded."""
    return CRASH_LOADED.read_text().strip() == "1"


def unload_crash() -> None:
    """Forget the crash kernel."""
    if crash_loaded():
        _kexec("-s", "-p", "-u")


def last_words() -> str:
    """In a crash kernel: the message of the panic that led here; empty when it cannot be read."""
    try:
        log = run(["vmcore-dmesg", "/proc/vmcore"], timeout_s=LAST_WORDS_LIMIT_S)
    except CommandFailed:
        return ""
    found = re.findall(r"Kernel panic - not syncing: (.*)", log)
    return found[-1].strip() if found else ""


def jump() -> None:
    """Go to the loaded kernel at once. Does not return; raises CommandFailed if the kernel refuses.

    Network interfaces are left to the drivers' own shutdown, and disks were synced by the caller (filesystems).
    """
    _kexec("-e", "--no-ifdown")
    raise CommandFailed("the jump returned", "the host is still on the old kernel")


def _kexec(*words: str) -> None:
    """kexec(8), which otherwise ends each of its calls with a sync(2), those that only load a kernel included.

    That would go through all RAM of all VMs while they run, and wait for ever for a disk that does not answer
    (filesystems). Raises CommandFailed.
    """
    run(["kexec", "--no-sync", *words], timeout_s=300)
