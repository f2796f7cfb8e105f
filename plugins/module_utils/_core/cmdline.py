# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arithmetic on kernel command lines: the pool's ``memmap=``, the generation token, the line for the next kernel.

The kernel hands the *firmware* memory map on to the next kernel; ``memmap=`` is applied by each kernel for itself.
A next command line without exactly the same ``memmap=`` would give the VMs' RAM to the page allocator, silently. So
the argument is carried over byte for byte and checked once more before the jump.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone

from .errors import BadInput, Refused
from .resources import SOFT_KIND, Region

GENERATION_OPTION = "holdfast.generation"
STAMP = "%Y%m%dT%H%M%S"

# What the kernel calls a range made by memmap=nn!ss, or by memmap=nn%ss+0xefffffff (see /proc/iomem).
POOL_KIND = "Persistent Memory (legacy)"

_KINDS = {"!": POOL_KIND, "%": SOFT_KIND, "@": "System RAM"}
# E820_TYPE_SOFT_RESERVED (arch/x86/include/asm/e820/types.h). Added, not changed from RAM: in the map of a crash kernel
# there is no RAM in that place. Where types overlap, the higher one counts.
_SOFT = "+0xefffffff"

# So that soft-reserved RAM is nobody's: no kernel is put into it by chance (randomisation does not know this form of
# memmap=), no device is made over all of it, and none of it becomes the host's own memory.
SOFT_OPTIONS = ("nokaslr", "dax_hmem.region_idle=1", "modprobe.blacklist=kmem")

# What a crash kernel's command line carries along, for the jump out of it.
CRASH_AREA_OPTION = "holdfast.crashkernel"
RAM_OPTION = "holdfast.ram"
ADDED_OPTION = "holdfast.added"

# x86 reads 2048 bytes with the final NUL, but the image header announces one less (arch/x86/boot/header.S,
# cmdline_size) and kexec_file_load counts the NUL against that: 2046 bytes of text are left.
LONGEST_BYTES = 2046

# Written by the boot loader or by kexec for one boot only; elfcorehdr= would make the next kernel a crash kernel.
_ONE_BOOT_ONLY = ("BOOT_IMAGE", "initrd", "elfcorehdr")

# What a kernel needs to start in a crash area after another one died: devices as they were left are to be reset, lost
# interrupts are to be looked for, and if it dies as well there is nothing left to wait for. Huge pages cost 110 MiB of
# what is available there, in free memory that the kernel holds ready for them; the pool's are not concerned.
# Debian's crash dumps would save the dead kernel's memory and reboot, with the VMs in it (kdump).
KDUMP_UNIT = "kdump-tools.service"
KDUMP_MASK = f"systemd.mask={KDUMP_UNIT}"
# As RuntimeWatchdogSec=0; systemd has it since its version 250, and an older one does not know the option.
WATCHDOG_OFF = "systemd.watchdog_sec=0"
CRASH_OPTIONS = ("reset_devices", "irqpoll", "transparent_hugepage=never", "panic=10")

# What a small VM cannot give, or what would leave nothing for its kernel.
_AMOUNTS_OF_RAM = frozenset(
    "memmap mem crashkernel hugepages hugepagesz default_hugepagesz hugetlb_cma cma movablecore kernelcore".split()
)
# Only what matters on the console, since each character costs the VM its time; and an end instead of a long wait, also
# when only a thread of the kernel dies, as the one that unpacks a damaged initrd does.
_REHEARSAL_OPTIONS = ("console=ttyS0,115200n8", "loglevel=5", "oops=panic", "panic=1")

# kexec_file_load puts elfcorehdr= before a crash kernel's command line (MAX_ELFCOREHDR_STR_LEN, kexec-bzimage64.c).
_ELFCOREHDR_BYTES = 30

_GENERATION = re.compile(r"g-\d{8}T\d{6}-[0-9a-f]{6}")
_MEMMAP_ENTRY = re.compile(r"(?P<size>\w+)(?P<kind>[!$#%@])(?P<start>\w+)")
_NUMBER = re.compile(r"(?P<digits>0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)(?P<suffix>[kKmMgGtTpPeE]?)")
_SUFFIX_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}


def split(cmdline: str) -> tuple[str, ...]:
    """Options of a command line as they are written; a double quote protects white space, as in the kernel."""
    options, current, quoted = [], "", False
    for character in cmdline:
        if character.isspace() and not quoted:
            if current:
                options.append(current)
            current = ""
            continue
        if character == '"':
            quoted = not quoted
        current += character
    return (*options, current) if current else tuple(options)


def name_of(option: str) -> str:
    """``memmap`` for ``memmap=1G!4G`` and for ``"memmap=1G!4G"``."""
    return option.replace('"', "").partition("=")[0]


def value_of(option: str) -> str:
    """``1G!4G`` for ``memmap=1G!4G``; empty for an option without a value."""
    return option.replace('"', "").partition("=")[2]


def has_option(cmdline: str, name: str) -> bool:
    """Is there an option of this name, with or without a value?"""
    return any(name_of(option) == name for option in _kernel_options(cmdline))


def memmap_arguments(cmdline: str) -> tuple[str, ...]:
    """Every ``memmap=`` option, byte for byte, in order."""
    return tuple(option for option in _kernel_options(cmdline) if name_of(option) == "memmap")


def pool_arguments(cmdline: str) -> tuple[str, ...]:
    """The ``memmap=`` options that keep RAM for a pool, byte for byte, in order."""
    return tuple(option for option in memmap_arguments(cmdline) if any(map(_is_pool, value_of(option).split(","))))


def memmap_entries(cmdline: str) -> tuple[str, ...]:
    """Single entries of all ``memmap=`` options, comma lists taken apart: KASLR can avoid four of them at most."""
    values = (value_of(option) for option in memmap_arguments(cmdline))
    return tuple(entry for value in values for entry in value.split(",") if entry)


def memmap_regions(cmdline: str) -> tuple[Region, ...]:
    """The pool's regions in the order of the command line; raises BadInput for one that cannot be read."""
    return tuple(_region(entry, "!" if "!" in entry else "%") for entry in memmap_entries(cmdline) if _is_pool(entry))


def soft_regions(cmdline: str) -> tuple[Region, ...]:
    """Those of the pool's regions that are soft-reserved."""
    return tuple(region for region in memmap_regions(cmdline) if region.kind == SOFT_KIND)


def format_memmap(*regions: Region) -> str:
    """The pool's option in its one form, e.g. ``memmap=0x60000000!0x100000000``; soft-reserved regions by their kind.

    Plain hexadecimal bytes: every size has exactly one spelling, nothing is rounded to a suffix, and it reads like
    ``/proc/iomem``. Several regions make one comma list: KASLR gives up altogether on a list that is too long for it
    (safe), but ignores the fifth separate option (VM RAM overwritten; arch/x86/boot/compressed/kaslr.c).
    """
    if not regions:
        raise BadInput("no region to format as memmap=", "choose at least one region for the pool")
    return "memmap=" + ",".join(map(_entry, regions))


def new_generation(now: float, random_hex: str, last: str = "") -> str:
    """Id of one live update from the time (epoch seconds) and six random hexadecimal digits.

    It sorts after ``last``, the host's last one, also when that was begun by a clock which has been set back since.
    """
    if last:
        begun = datetime.strptime(_checked_generation(last).split("-")[1], STAMP).replace(tzinfo=timezone.utc)
        now = max(now, begun.timestamp() + 1)
    stamp = datetime.fromtimestamp(now, tz=timezone.utc).strftime(STAMP)
    return _checked_generation(f"g-{stamp}-{random_hex}")


def generation_of(cmdline: str) -> str:
    """The generation that a kernel was started for.

    Empty when there is none, and also when several contradict each other: such a boot proves nothing.
    """
    found = {value_of(option) for option in _kernel_options(cmdline) if name_of(option) == GENERATION_OPTION}
    return found.pop() if len(found) == 1 else ""


def next_command_line(
    running: str, *, generation: str, add: Sequence[str] = (), drop: Sequence[str] = (), watchdog_off: bool = False
) -> str:
    """The command line for the next kernel: the running one, for another generation.

    ``add`` are whole options, ``drop`` names of options; neither may touch ``memmap=`` or holdfast's own options.
    ``watchdog_off``: systemd has no watchdog there, whatever its configuration says; the line after it says so no more.
    Raises BadInput, also when the result is longer than the kernel reads (LONGEST_BYTES).
    """
    _forbid_protected([*map(name_of, add), *drop])
    gone = {*_ONE_BOOT_ONLY, *drop, *_carried(running, ADDED_OPTION)}
    options = split(running)
    kernel = _kernel_options(running)
    kept = [option for option in kernel if not {option, name_of(option)} & gone and not _is_ours(option)]
    ram = next_memmap_arguments(running)[len(memmap_arguments(running)) :]
    added = [*ram, *_crash_area_again(running), *(_checked_option(option) for option in add)]
    added += [WATCHDOG_OFF, f"{ADDED_OPTION}={WATCHDOG_OFF}"] if watchdog_off else []
    token = f"{GENERATION_OPTION}={_checked_generation(generation)}"
    return _checked_length(" ".join([*kept, *added, token, *options[len(kernel) :]]))


def crash_command_line(line: str, ram: Sequence[Region] = ()) -> str:
    """The command line for the crash kernel of a kernel that is started with ``line``: same pool, same generation.

    The crash area is all its RAM, so it reserves none in turn. What it leaves out, and the host's ``ram`` that it
    cannot see, it carries along in options of ours, for a jump back into all of the host. Raises BadInput when the
    line gets too long.
    """
    options = split(line)
    kernel = _kernel_options(line)
    gone = ("crashkernel", *_ONE_BOOT_ONLY)
    kept = [option for option in kernel if name_of(option) not in gone]
    left_out = [f"{CRASH_AREA_OPTION}={value_of(option)}" for option in kernel if name_of(option) == "crashkernel"]
    added = [option for option in CRASH_OPTIONS if name_of(option) not in map(name_of, kernel)]
    names = list(map(name_of, added))
    # Whole, for the operator may mask others: systemd takes each of them.
    masked = [] if KDUMP_MASK in kernel else [KDUMP_MASK]
    carried = [*left_out, f"{ADDED_OPTION}={','.join([*names, *masked])}"]
    added += masked
    carried += [f"{RAM_OPTION}={_ram_entries(ram)}"] if ram else []
    words = [*kept, *added, *carried, *options[len(kernel) :]]
    return _checked_length(" ".join(words), LONGEST_BYTES - _ELFCOREHDR_BYTES)


def rehearsal_command_line(line: str, pool: Region, boot: str) -> str:
    """``line``, with which the next kernel is to be started, for a small VM that tries it out.

    All options stay but those that speak of amounts of the host's RAM. ``pool`` stands for the host's, ``boot`` names
    the script that the initrd runs instead of mounting the root file system, and the first serial line is the console.
    """
    options = split(line)
    kernel = _kernel_options(line)
    kept = [option for option in kernel if name_of(option) not in _AMOUNTS_OF_RAM]
    added = (format_memmap(pool), f"boot={boot}", *_REHEARSAL_OPTIONS)
    return _checked_length(" ".join([*kept, *added, *options[len(kernel) :]]))


def is_watchdog_off(running: str) -> bool:
    """Whether we have taken its watchdog from the systemd of this boot. Pure."""
    return WATCHDOG_OFF in _carried(running, ADDED_OPTION)


def crash_area_bytes(cmdline: str) -> int:
    """What a plain ``crashkernel=SIZE`` asks for; 0 when there is none, or one with ranges or a place."""
    found = [value_of(option) for option in _kernel_options(cmdline) if name_of(option) == "crashkernel"]
    return _number(found[-1], found[-1]) if found and _NUMBER.fullmatch(found[-1]) else 0


def is_crash_kernel(cmdline: str) -> bool:
    """Whether this is the command line of a kernel that took over from one that died."""
    return has_option(cmdline, "elfcorehdr")


def declared_ram(cmdline: str) -> tuple[Region, ...]:
    """RAM of the host that only the command line knows of: in a crash kernel, and after a jump out of one.

    Either is started with a memory map that has nothing but the crash area. Raises BadInput.
    """
    entries = [*_carried(cmdline, RAM_OPTION), *(entry for entry in memmap_entries(cmdline) if "@" in entry)]
    return tuple(_region(entry, kind="@") for entry in entries)


def next_memmap_arguments(running: str) -> tuple[str, ...]:
    """Every ``memmap=`` option that the next command line must have: the running ones, byte for byte, in order.

    Out of a crash kernel one comes on top, for RAM that it does not see.
    """
    ram = declared_ram(running) if is_crash_kernel(running) else ()
    return (*memmap_arguments(running), *([f"memmap={_ram_entries(ram)}"] if ram else []))


def _crash_area_again(running: str) -> list[str]:
    values = [value_of(option) for option in _kernel_options(running) if name_of(option) == CRASH_AREA_OPTION]
    return [f"crashkernel={value}" for value in values if is_crash_kernel(running)]


def _carried(cmdline: str, name: str) -> list[str]:
    """Members of one of the lists that a crash kernel's command line carries along."""
    values = [value_of(option) for option in _kernel_options(cmdline) if name_of(option) == name]
    return [member for value in values for member in value.split(",") if member]


def _ram_entries(ram: Sequence[Region]) -> str:
    return ",".join(f"{region.size:#x}@{region.start:#x}" for region in ram)


def check_next(running: str, new: str, pool_regions: Sequence[Region], generation: str) -> None:
    """Raise Refused unless ``new`` keeps exactly the pool and names the generation (nothing may jump otherwise)."""
    if not pool_regions:
        raise Refused("the pool has no region, so no VM RAM would survive the jump", "run the prepare playbook")
    old_arguments, new_arguments = next_memmap_arguments(running), memmap_arguments(new)
    if old_arguments != new_arguments:
        raise Refused(
            f"the next command line has {_listed(new_arguments)}, the running one has {_listed(old_arguments)}: "
            "the next kernel would use VM RAM as its own",
            "keep memmap= exactly as it is on the running command line",
        )
    _check_regions(new, pool_regions)
    lacking = missing_soft_options(new)
    if lacking:
        raise Refused(
            f"the next command line lacks {' '.join(lacking)}: the next kernel may use VM RAM as its own",
            "run the prepare playbook and reboot",
        )
    if generation_of(new) != _checked_generation(generation):
        raise Refused(
            f"the next command line does not carry {GENERATION_OPTION}={generation}",
            "load the kernel again for this generation",
        )
    _checked_length(new)


def missing_soft_options(cmdline: str) -> tuple[str, ...]:
    """What a command line that keeps soft-reserved RAM for a pool lacks for its safety. Pure."""
    if not soft_regions(cmdline):
        return ()
    # The operator may keep other modules away with the same option.
    present = {
        f"{name_of(option)}={part}" if part else name_of(option)
        for option in _kernel_options(cmdline)
        for part in value_of(option).split(",")
    }
    return tuple(option for option in SOFT_OPTIONS if option not in present)


def _check_regions(new: str, pool_regions: Sequence[Region]) -> None:
    found = sorted((region.start, region.size) for region in memmap_regions(new))
    wanted = sorted((region.start, region.size) for region in pool_regions)
    if found != wanted:
        raise Refused(
            f"the next command line keeps {_listed(pool_arguments(new))}, "
            f"but the pool is {format_memmap(*pool_regions)}",
            "run the prepare playbook and reboot, so that the command line and the pool agree",
        )


def _kernel_options(cmdline: str) -> tuple[str, ...]:
    """Options meant for the kernel: what follows ``--`` belongs to init."""
    options = split(cmdline)
    return options[: options.index("--")] if "--" in options else options


def _is_ours(option: str) -> bool:
    return name_of(option).startswith("holdfast.")


def _forbid_protected(names: Sequence[str]) -> None:
    for name in names:
        if name == "memmap" or name.startswith("holdfast."):
            raise BadInput(
                f"the kernel option {name} may be neither added nor dropped for a live update",
                "change the pool with the prepare playbook; holdfast sets its own options itself",
            )


def _checked_option(option: str) -> str:
    if split(option) != (option,) or option == "--" or option.count('"') % 2:
        raise BadInput(f"{option!r} is not one kernel option", "give one option per entry; quote white space inside it")
    return option


def _checked_generation(generation: str) -> str:
    if not _GENERATION.fullmatch(generation):
        raise BadInput(f"{generation!r} is not a generation id", "it looks like g-20261121T020000-ab12cd")
    return generation


def _checked_length(cmdline: str, longest_bytes: int = LONGEST_BYTES) -> str:
    length = len(cmdline.encode())
    if length > longest_bytes:
        raise BadInput(
            f"the next command line has {length} bytes, the kernel reads {longest_bytes}",
            "drop options that the next kernel does not need from the boot loader's configuration",
        )
    return cmdline


def _entry(region: Region) -> str:
    soft = region.kind == SOFT_KIND
    return f"{region.size:#x}{'%' if soft else '!'}{region.start:#x}{_SOFT if soft else ''}"


def _is_pool(entry: str) -> bool:
    """Whether an entry of ``memmap=`` keeps RAM for a pool: one that changes types otherwise is somebody else's."""
    return "!" in entry or ("%" in entry and entry.endswith(_SOFT))


def _region(entry: str, kind: str) -> Region:
    match = _MEMMAP_ENTRY.fullmatch(entry.removesuffix(_SOFT) if kind == "%" else entry)
    if not match or match["kind"] != kind:
        raise BadInput(f"cannot read memmap={entry}", "it looks like memmap=0x60000000!0x100000000 (size!start)")
    return Region(start=_number(match["start"], entry), size=_number(match["size"], entry), kind=_KINDS[kind])


def _number(text: str, entry: str) -> int:
    """The kernel's ``memparse``: hexadecimal, octal or decimal, then one binary suffix."""
    match = _NUMBER.fullmatch(text)
    if not match:
        raise BadInput(f"cannot read the number {text} in memmap={entry}", "use bytes, or a suffix K, M, G or T")
    digits = match["digits"]
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    return int(digits, base) << _SUFFIX_SHIFT[match["suffix"].lower()]


def _listed(arguments: Sequence[str]) -> str:
    return " ".join(arguments) or "no memmap="
