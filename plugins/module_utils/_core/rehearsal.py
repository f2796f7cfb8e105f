# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Try the next kernel out before any VM is paused: boot it in a small throw-away VM on the host itself.

It gets the kernel image, the initrd, and the command line that the jump would use, but for amounts of RAM. An archive
in front of the initrd holds a script, and the modules of the next kernel that the pool needs after the jump. The
initrd's ``/init`` runs the script instead of mounting the root file system (``boot=``, initramfs-tools(7)): in the VM's
own RAM it does what the agent will do in the pool, says what came of it on the serial console, and ends.

Nothing of the host's is in the VM: no disk, no network, none of the pool.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from . import collect, cpio, kexec, kmod, turn
from .cmdline import rehearsal_command_line
from .command import run
from .config import Config
from .errors import CommandFailed, HoldfastError, Refused
from .fsdax import MKFS, MKFS_EXTENDED, MOUNT_OPTIONS
from .printable import lines, printable
from .regions import MIB, size_text
from .resources import Region

ROOT = Path("/")
FOLDER, CONSOLE = "rehearsal", "console.log"
BOOT = "holdfast-rehearsal"
VERDICT = "holdfast rehearsal verdict:"
PASSED = "passed"
# What the agent loads after the jump, before it can attach the pool, and what runs VMs. kvm_amd and kvm_intel need a
# processor that offers virtualisation once more; kvm, on which they stand, does not.
MODULES = ("nd_e820", "nd_pmem", "ext4", "kvm")
# What ext4 asks for by itself, in kernels that have it as a module.
ASKED_FOR = ("crc32c_generic",)
# Above any kernel, which starts at 16 MiB, and below the initrd, which QEMU puts at the end of RAM.
POOL = Region(256 * MIB, 128 * MIB)
FILE_SYSTEM_BYTES = 32 * MIB
BASE_BYTES = 768 * MIB
INITRD_FOLD = 3
UNIT_BYTES = 64 * MIB
# For the host while the VM runs.
SPARE_BYTES = 256 * MIB
# A kernel is up within seconds; emulated hosts need a minute or two.
LIMIT_S = 300
END_S = 15
DEVICE_LIMIT_S = 30
TAIL_LINES = 20
# A kernel goes on with what it could unpack (init/initramfs.c), so a VM may pass all the same.
DAMAGED = "Initramfs unpacking failed"


def rehearse(config: Config, release: str, line: str) -> float:
    """Boot an installed kernel with ``line``, the jump's command line, up to the self-test; returns seconds.

    Raises Refused, with the end of the VM's console, when it does not get there or the self-test finds a fault. No VM
    of the host was touched then. The console stays in the state directory.
    """
    begun, folder = time.monotonic(), config.state_dir / FOLDER
    try:
        with turn.taken():
            found, told = _boot(folder, release, line)
    except OSError as exc:
        raise Refused(f"kernel {release} cannot be rehearsed: {exc}", f"see to {folder}; no VM was touched") from exc
    except HoldfastError as exc:
        hint = f"{exc.hint}; no VM was touched" if exc.hint else "no VM was touched"
        raise Refused(f"kernel {release} cannot be rehearsed: {exc.message}", hint) from exc
    if found:
        raise Refused(
            f"the rehearsal of kernel {release} failed: {found}; the end of its console:\n{told}",
            f"no VM was touched; all that it said is in {folder / CONSOLE}",
        )
    return time.monotonic() - begun


def _boot(folder: Path, release: str, line: str) -> Tuple[str, str]:
    """Boot the VM and wait for its end; returns what is wrong, or nothing, and the last lines that were said."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    console, whole = folder / CONSOLE, folder / "initrd"
    image, initrd = kexec.image_of(release)
    try:
        cpio.put_in_front(whole, _extras(folder, release), initrd)
        ram_bytes = ram_for(whole.stat().st_size)
        _require_ram(ram_bytes)
        words = _run(arguments(image, whole, rehearsal_command_line(line, POOL, BOOT), ram_bytes, console))
    finally:
        whole.unlink(missing_ok=True)
    said = _text(console)
    return fault(said), tail(said) or lines(words) or "(nothing)"


def ram_for(initrd_bytes: int) -> int:
    """RAM of the VM: the kernel unpacks its initrd beside the packed one."""
    return -(-(BASE_BYTES + INITRD_FOLD * initrd_bytes) // UNIT_BYTES) * UNIT_BYTES


def arguments(image: Path, initrd: Path, line: str, ram_bytes: int, console: Path) -> List[str]:
    """QEMU for the throw-away VM: no disk, no network, no screen; it ends instead of rebooting.

    ``timeout`` ends it also when the agent is no longer there to do so.
    """
    return [
        *("timeout", f"--kill-after={END_S}", str(LIMIT_S)),
        *(collect.QEMU, "-name", BOOT, "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-smp", "1"),
        *("-m", f"{ram_bytes // MIB}M", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-serial", f"file:{console}", "-kernel", str(image), "-initrd", str(initrd), "-append", line),
    ]


def fault(console: str) -> str:
    """What the VM's console says against the kernel; empty when the self-test was reached and passed."""
    if DAMAGED in console:
        return "its initrd is damaged, the kernel could not unpack it"
    verdicts = re.findall(rf"^{re.escape(VERDICT)} (.*?)\s*$", console, re.MULTILINE)
    if verdicts:
        # The first is the last: a VM that cannot switch itself off may go on talking.
        return "" if verdicts[0] == PASSED else printable(verdicts[0])
    panic = re.findall(r"Kernel panic - not syncing: (.*)", console)
    if panic:
        return f"it panicked: {printable(panic[-1].strip())}"
    return f"it did not reach the self-test within {LIMIT_S} s" if console.strip() else "it said nothing"


def tail(console: str) -> str:
    """The last lines of a console, fit to be shown."""
    said = [printable(line.rstrip()) for line in console.splitlines() if line.strip()]
    return "\n".join(said[-TAIL_LINES:])


def self_test(modules: Sequence[Tuple[str, str]], of_root: Sequence[str]) -> str:
    """The script that the initrd's ``/init`` reads in place of the one that would mount the root file system.

    ``of_root`` names modules that the initrd itself must have; ``modules`` are names and files that came along, in the
    order to load them. Only what any initrd's shell has is used.
    """
    loads = [f"holdfast_initrd_has {name}" for name in of_root]
    loads += [f"holdfast_load {name} /holdfast/{file}" for name, file in modules]
    return _SELF_TEST.replace("@LOADS@", "\n    ".join(loads))


_SELF_TEST = f"""\
# Written by holdfast: the self-test of a rehearsal, in a throw-away VM.
holdfast_verdict() {{
    # From here on the kernel keeps silent, and each line is whole.
    echo 1 >/proc/sys/kernel/printk
    sleep 1
    echo
    echo "{VERDICT} $*"
    sleep 1
    echo o >/proc/sysrq-trigger
    sleep 5
    echo b >/proc/sysrq-trigger
    while :; do sleep 60; done
}}

holdfast_load() {{
    [ -d "/sys/module/$1" ] || insmod "$2"
    [ -d "/sys/module/$1" ] || holdfast_verdict "its module $1 cannot be loaded"
}}

holdfast_initrd_has() {{
    [ -d "/sys/module/$1" ] || modprobe "$1"
    [ -d "/sys/module/$1" ] || holdfast_verdict "its initrd lacks $1, and would not find the root file system"
}}

mount_top() {{
    :
}}

mount_premount() {{
    :
}}

mountroot() {{
    # kmod is every program of its own, by the name that it is called by.
    command -v insmod >/dev/null || ln -s "$(command -v modprobe)" /bin/insmod
    [ -e /sys/devices/platform/e820_pmem ] || holdfast_verdict "it kept no RAM free for memmap="
    @LOADS@
    waited=0
    while [ ! -b /dev/pmem0 ]; do
        [ "$waited" -lt {DEVICE_LIMIT_S} ] || holdfast_verdict "it made no /dev/pmem0 of the RAM that it kept free"
        sleep 1
        waited=$((waited + 1))
    done
    cat /holdfast/pool.img >/dev/pmem0 || holdfast_verdict "its /dev/pmem0 cannot be written"
    mkdir /holdfast/pool
    mount -t ext4 -o {MOUNT_OPTIONS} /dev/pmem0 /holdfast/pool || holdfast_verdict "it cannot mount the pool"
    case "$(cat /proc/mounts)" in
        *" /holdfast/pool ext4 "*dax=always*) ;;
        *) holdfast_verdict "it mounts the pool without DAX" ;;
    esac
    echo kept >/holdfast/pool/probe
    sync
    [ "$(cat /holdfast/pool/probe)" = kept ] || holdfast_verdict "it does not keep what is written into the pool"
    umount /holdfast/pool || holdfast_verdict "it cannot let go of the pool"
    holdfast_verdict {PASSED}
}}
"""


def _extras(folder: Path, release: str) -> bytes:
    """The archive in front of the initrd. Raises HoldfastError when a module is absent or cannot be read."""
    place = ROOT / "lib/modules" / release
    dependencies, built_in = (_text(place / f"modules.{name}") for name in ("dep", "builtin"))
    files: Dict[str, bytes] = {}
    modules = []
    asked_for = [name for name in ASKED_FOR if name in kmod.available(dependencies)]
    for path in kmod.loading_order([*asked_for, *MODULES], dependencies, built_in):
        name = kmod.module_name(path)
        files[f"holdfast/{name}.ko"] = kmod.unpacked(place / path)
        modules.append((name, f"{name}.ko"))
    there = {kmod.module_name(line) for line in built_in.split()}
    of_root = [name for name in collect.root_modules(ROOT) if name not in there]
    files[f"scripts/{BOOT}"] = self_test(modules, of_root).encode()
    files["holdfast/pool.img"] = _file_system(folder / "pool.img")
    return cpio.archive(files)


def _file_system(path: Path) -> bytes:
    """An empty file system as the pool has one: an initrd has no program to make it."""
    with path.open("wb") as file:
        file.truncate(FILE_SYSTEM_BYTES)
    run([*MKFS.split(), "-E", MKFS_EXTENDED, str(path)], timeout_s=60)
    content = path.read_bytes()
    path.unlink()
    return content


def _require_ram(ram_bytes: int) -> None:
    free = kexec.mem_available()
    if free < ram_bytes + SPARE_BYTES:
        found = f"its VM needs {size_text(ram_bytes)}, and {size_text(free)} of host RAM are available"
        raise HoldfastError(found, "stop something on the host, or upgrade without a rehearsal")


def _run(argv: Sequence[str]) -> str:
    """Run the VM to its end, whatever that is; returns what QEMU itself complained of."""
    try:
        return run(argv, timeout_s=LIMIT_S + 2 * END_S)
    except CommandFailed as exc:
        return exc.message.rpartition("ended with ")[2]


def _text(path: Path) -> str:
    """A file's text; empty when it is not there. Consoles end their lines in their own way."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\r", "")
    except FileNotFoundError:
        return ""
