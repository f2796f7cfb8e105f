# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guard the boot after the jump: if the new kernel panics or hangs before it has restored the VMs, the old one returns.

The old kernel is loaded into the new one as its crash kernel, and a timer turns a hang into a panic. Both are set up
from a file that was written before the jump: at the new kernel's very beginning (early), which is taken over here; or,
where that did not work, when its root file system is mounted, or by the pool's unit.

The timer ends before the first VM is resumed. The crash kernel stays until the generation is closed and no VM waits in
the pool: those that are still suspended then would come back in it, and the journal sees to it that no other does.
"""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from . import crash_area, durable, kdump, kexec, regions
from .cmdline import WATCHDOG_OFF, crash_command_line, generation_of, has_option, is_crash_kernel, split
from .command import run
from .config import RUN_DIR, Config
from .errors import CommandFailed, HoldfastError

NAME = "crash-kernel.json"
PANIC_ON_OOPS = Path("/proc/sys/kernel/panic_on_oops")
WATCHDOGS = Path("/sys/class/watchdog")
SOFTDOG = Path("/sys/module/softdog")
DEVICES = Path("/dev")
# What softdog calls itself (drivers/watchdog/softdog.c), and the letter that lets a watchdog stop.
TIMER_IDENTITY = "Software Watchdog"
STOP = b"V"
# SHA-256, twice as fast in the lab. Absent from kernels that have it built in.
HASHING_DRIVER = "sha256_ssse3"
TIMER_DRIVER = "softdog"
# In /dev, which is the kernel's own and outlives the initramfs: this kernel was guarded early.
EARLY_MARK = "holdfast-guard"

# From this version on systemd.watchdog_sec= is an option of the command line.
SYSTEMD_VERSION = re.compile(r"systemd (\d+)")
FIRST_WITHOUT_WATCHDOG = 250

_ending = threading.Lock()


@dataclass(frozen=True)
class Staged:
    """What the next kernel needs to know; ``deadline_s`` is how long it has until the first VM is resumed.

    0 when nobody counts the time.
    """

    generation: str
    image: str
    initrd: str
    command_line: str
    deadline_s: float


def stage(config: Config, generation: str, release: str, line: str, deadline_s: float) -> str:
    """Put on record what shall take over when the next kernel, started with ``line``, fails.

    Returns what is missing of the guard; empty when all is well, or when no RAM is kept for a crash kernel.
    Raises HoldfastError when ``release`` is not installed any more.
    """
    # Not needed early at boot, where its XML parsers would stand before the restore.
    from . import collect

    forget(config.state_dir)
    if not has_option(line, "crashkernel"):
        return ""
    pool = config.required_pool
    # Without QEMUs: the VMs that it has no room for are kept in the pool.
    needed = crash_area.size_for(
        pool.regions, os.cpu_count() or 1, kexec.initrd_bytes(release), page_bytes=pool.page_bytes
    )
    found = kexec.crash_area_bytes()
    # A crash kernel has no crash area, but the kernel that it jumps to will.
    if found < needed and not is_crash_kernel(kexec.running_cmdline()):
        return f"{regions.size_text(found)} are kept for a crash kernel, and it needs {regions.size_text(needed)}"
    image, initrd = kexec.image_of(release)
    ram = regions.usable_ranges(collect.firmware_map())
    line = crash_command_line(line, ram)
    busy = _systemd_has_a_watchdog(line)
    staged = Staged(generation, str(image), str(initrd), line, 0.0 if busy else deadline_s)
    durable.write_text(config.state_dir / NAME, json.dumps(asdict(staged), indent=1))
    return "this systemd cannot be started without its watchdog, so a hang is left to that" if busy else ""


def begin(state_dir: Path) -> str:
    """Guard this boot if it is the one that was staged for; returns what was done, for people.

    Safe to call again. Raises HoldfastError when the boot should be guarded and is not.
    """
    staged = read(state_dir)
    running = kexec.running_cmdline()
    _take_over()
    if staged is None or generation_of(running) != staged.generation:
        return "this boot needs no guard"
    if is_crash_kernel(running):
        return "this is the crash kernel"
    if not _loaded_mark().exists():
        _load(staged)
        _mark(_loaded_mark(), "")
    if staged.deadline_s and not _timer_mark().exists():
        _start_timer(staged.deadline_s)
    limit = f", or restores no VM within {staged.deadline_s:.0f} s" if staged.deadline_s else ""
    return f"{staged.image} takes over if this kernel dies{limit}"


def end() -> None:
    """From here on nothing forces a panic. Before the first VM is resumed; cheap, and safe to call again."""
    with _ending:
        _take_over()
        mark = _timer_mark()
        if not mark.exists():
            return
        PANIC_ON_OOPS.write_text(mark.read_text())
        _stop_timer()
        mark.unlink()


def forget(state_dir: Path) -> None:
    """The generation is closed, or not yet begun: no kernel takes over any more."""
    end()
    (state_dir / NAME).unlink(missing_ok=True)
    if _loaded_mark().exists():
        kexec.unload_crash()
        _loaded_mark().unlink()
        kdump.let_go()


def forget_early(state_dir: Path) -> None:
    """For a boot that nobody needs guarded: somebody has jumped with what was loaded for a generation that is over."""
    if (DEVICES / EARLY_MARK).exists():
        forget(state_dir)


def _take_over() -> None:
    """What was begun early in this boot is ours from here on. Does nothing the second time. Raises HoldfastError."""
    early = DEVICES / EARLY_MARK
    if not early.exists():
        return
    # Before the look: its end unloads what it has loaded, and what was loaded before that.
    kdump.hold()
    if kexec.crash_loaded():
        _mark(_loaded_mark(), "")
    if SOFTDOG.exists():
        _mark(_timer_mark(), PANIC_ON_OOPS.read_text())
        with suppress(HoldfastError, OSError):  # it runs already; whether it can be stopped is found when it has to be
            _let_timer_run()
        PANIC_ON_OOPS.write_text("1")
    early.unlink()


def read(state_dir: Path) -> Staged | None:
    """What was staged, None when nothing was. Raises HoldfastError when it is damaged."""
    path = state_dir / NAME
    try:
        return Staged(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as exc:
        raise HoldfastError(f"{path} cannot be understood: {exc!r}", "no kernel takes over if this one dies") from exc


def _load(staged: Staged) -> None:
    """Raises HoldfastError."""
    kdump.hold()
    # VMs wait for this. A kernel before 6.16 makes checksums of what it loads by the CPU's own instructions only when
    # their driver is there, and so early udev has not brought it yet.
    with suppress(CommandFailed):
        run(["modprobe", "-q", HASHING_DRIVER])
    try:
        kexec.load_crash(Path(staged.image), Path(staged.initrd), staged.command_line)
    except HoldfastError:
        kdump.let_go()
        raise


def _systemd_has_a_watchdog(line: str) -> bool:
    """Whether the next kernel's may take ours, which may be the first one there is; nobody else could stop it then.

    It has none where ``line`` says so and it understands that.
    """
    if WATCHDOG_OFF not in split(line):
        return False
    found = SYSTEMD_VERSION.search(run(["systemctl", "--version"]))
    return not found or int(found[1]) < FIRST_WITHOUT_WATCHDOG


def _start_timer(deadline_s: float) -> None:
    """An oops ends this kernel at once, and a hang when the time is up. Raises HoldfastError; then there is neither."""
    if SOFTDOG.exists():
        raise HoldfastError("softdog is in use already: this kernel may hang for ever", "see /etc/modules-load.d")
    _mark(_timer_mark(), PANIC_ON_OOPS.read_text())
    try:
        limit = f"soft_margin={max(1, int(deadline_s))}"
        run(["modprobe", TIMER_DRIVER, limit, "soft_panic=1", "nowayout=0"])
        _let_timer_run()
        PANIC_ON_OOPS.write_text("1")
    except (HoldfastError, OSError) as exc:
        end()
        raise HoldfastError(f"this kernel may hang for ever: {exc}") from exc


def _let_timer_run() -> None:
    """Opening starts it, or starts it anew; closing without the letter lets it run on."""
    os.close(os.open(_timer_device(), os.O_WRONLY))


def _stop_timer() -> None:
    if not SOFTDOG.exists():
        return
    try:
        handle = os.open(_timer_device(), os.O_WRONLY)
        try:
            os.write(handle, STOP)
        finally:
            os.close(handle)
    except OSError as exc:
        raise HoldfastError(f"the timer that would end this kernel cannot be stopped: {exc}") from exc
    with suppress(CommandFailed):  # stopped is enough
        run(["modprobe", "-r", TIMER_DRIVER])
    with suppress(OSError):
        _name_the_first_watchdog()


def _name_the_first_watchdog() -> None:
    """What is in hardware came second, after ours: whoever feeds the first one looks for it by these names."""
    others = sorted(DEVICES.glob("watchdog[0-9]*"), key=lambda path: (len(path.name), path.name))
    for path in (DEVICES / "watchdog0", DEVICES / "watchdog"):
        if others and not path.exists():
            path.symlink_to(others[0].name)


def _timer_device() -> Path:
    """The device of softdog, whatever other watchdogs there are. Raises HoldfastError."""
    for watchdog in sorted(WATCHDOGS.glob("*")):
        if (watchdog / "identity").read_text().strip() == TIMER_IDENTITY:
            return DEVICES / watchdog.name
    raise HoldfastError("softdog has no device", "see the kernel log")


# In /run, for this boot only.
def _timer_mark() -> Path:
    return RUN_DIR / "panic-on-oops-before"


def _loaded_mark() -> Path:
    return RUN_DIR / "crash-kernel-loaded"


def _mark(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_text(text)
