# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard of the next kernel's first seconds, before it has found its root file system.

An archive in front of its initrd holds the old kernel, its initrd, and all that it takes to load them. The initrd's own
``/init`` reads a file of the archive, as one of its settings (``conf/conf.d``, initramfs-tools), before it looks for
anything: that loads the old kernel as crash kernel, and starts the timer. Whatever comes of the rest, the old kernel
takes over when this one panics, and that is at the latest when the time is up. Where the initrd is damaged or empty,
the archive's own ``/init`` is left in its place, and has the old kernel take over at once.

Programs are those of klibc, which initramfs-tools needs itself, and kexec(8) with its libraries, all in a directory of
their own. Nothing is on the command line, which others may use again for another initrd. ``guard`` goes on from there.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, Sequence

from . import cpio, kmod
from .command import run
from .errors import HoldfastError
from .guard import EARLY_MARK, HASHING_DRIVER, TIMER_DRIVER, TIMER_IDENTITY, Staged

ROOT = Path("/")
HOME = "holdfast"
KLIBC = "usr/lib/klibc/bin"
# Read by the initrd's /init; of what initrds have there, none is called so.
SETTING = "conf/conf.d/holdfast"
PROGRAMS = ("cat", "insmod", "mkdir", "mount", "sh")
KEXEC = "usr/sbin/kexec"
# Absolute in each program, which the kernel must find without anything of the initrd. No longer than it was.
INTERPRETER = re.compile(rb"(?:/usr)?/lib/(klibc-[\w-]+\.so)\0")
NEW_INTERPRETER = f"/{HOME}/k.so".encode()
LIBRARY = re.compile(r"^\s*(\S+) => (/\S+)", re.MULTILINE)
LOADER = re.compile(r"^\s*(/\S*/ld-linux\S*)", re.MULTILINE)


@contextmanager
def in_front(staged: Staged, release: str, initrd: Path, place: Path) -> Iterator[Path]:
    """The initrd of kernel ``release`` with the guard in front of it, for as long as this lasts a file in ``place``.

    Raises HoldfastError when there is something missing for it, or no room.
    """
    whole = place / "initrd.guarded"
    try:
        try:
            cpio.put_in_front(whole, cpio.archive(files(staged, release)), initrd)
        except OSError as exc:
            raise HoldfastError(f"{whole} cannot be made: {exc}", "see to its disk") from exc
        yield whole
    finally:
        whole.unlink(missing_ok=True)


def files(staged: Staged, release: str) -> Dict[str, bytes]:
    """All that is in the archive, by path. Raises HoldfastError, OSError."""
    hashing = _modules(release, HASHING_DRIVER, must=False)
    timer = _modules(release, TIMER_DRIVER) if staged.deadline_s else {}
    return {
        f"{HOME}/guard": script(list(hashing), list(timer), staged.deadline_s).encode(),
        SETTING: f"/{HOME}/sh /{HOME}/guard >/dev/kmsg 2>&1\n".encode(),
        "init": _INIT.encode(),
        **{f"{HOME}/{name}.ko": content for name, content in {**hashing, **timer}.items()},
        **_programs(),
        **_kexec(),
        f"{HOME}/image": Path(staged.image).read_bytes(),
        f"{HOME}/initrd": Path(staged.initrd).read_bytes(),
        f"{HOME}/cmdline": staged.command_line.encode(),
    }


def script(hashing: Sequence[str], timer: Sequence[str], deadline_s: float) -> str:
    """What loads the old kernel and starts the timer.

    ``hashing`` and ``timer`` are names of modules that came along, each in the order to load them; no timer: none.
    """
    parameters = {TIMER_DRIVER: f" soft_margin={max(1, int(deadline_s))} soft_panic=1 nowayout=0"}
    first, then = (
        [f"insmod /{HOME}/{name}.ko{parameters.get(name, '')}" for name in each] for each in (hashing, timer)
    )
    return _SCRIPT.replace("@HASHING@", "\n".join(first)).replace("@TIMER@", "\n".join(then))


# For klibc's shell. A kernel that cannot load the old one goes on, and its later guard tries again.
_SCRIPT = f"""\
# Written by holdfast. After a jump, lets the old kernel take over if this one dies.
PATH=/{HOME}
@HASHING@
/{HOME}/ld.so --library-path /{HOME}/lib /{HOME}/kexec --no-sync -s -p /{HOME}/image --initrd=/{HOME}/initrd \\
    --command-line="$(cat /{HOME}/cmdline)" || exit 0
: >/dev/{EARLY_MARK}
echo "holdfast: the old kernel takes over if this one dies"
@TIMER@
for dog in /sys/class/watchdog/*; do
    [ -e "$dog/identity" ] || continue
    # Opening starts it, and closing without its letter lets it run on.
    case "$(cat "$dog/identity")" in
        "{TIMER_IDENTITY}") : >"/dev/${{dog##*/}}" ;;
    esac
done
"""

# An initrd that is whole has one of its own, which takes the place of this.
_INIT = f"""\
#!/{HOME}/sh
# Written by holdfast: runs when there is no other /init, and so nobody who would mount the root file system.
PATH=/{HOME}
mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
/{HOME}/sh /{HOME}/guard >/dev/kmsg 2>&1
echo "holdfast: the initrd of this kernel is damaged: it has no /init" >/dev/kmsg
echo c >/proc/sysrq-trigger
"""


def _modules(release: str, name: str, must: bool = True) -> Dict[str, bytes]:
    """A module and what it depends on, by name, in the order to load them; nothing of what is built in.

    Raises HoldfastError when it ``must`` be there and is not.
    """
    place = ROOT / "lib/modules" / release
    dependencies, built_in = ((place / f"modules.{one}").read_text() for one in ("dep", "builtin"))
    wanted = [name] if must or name in kmod.available(dependencies) else []
    return {
        kmod.module_name(path): kmod.unpacked(place / path)
        for path in kmod.loading_order(wanted, dependencies, built_in)
    }


def _programs() -> Dict[str, bytes]:
    found: Dict[str, bytes] = {}
    for name in PROGRAMS:
        path = ROOT / KLIBC / name
        if not path.exists():
            raise HoldfastError(f"{path} is missing", "install klibc-utils")
        content = path.read_bytes()
        interpreter = INTERPRETER.search(content)
        if not interpreter:
            raise HoldfastError(f"{path} is no program of klibc that is known", "install klibc-utils again")
        old = interpreter[0]
        found[f"{HOME}/{name}"] = content.replace(old, NEW_INTERPRETER.ljust(len(old), b"\0"))
        found[NEW_INTERPRETER.decode().lstrip("/")] = (ROOT / "usr/lib" / interpreter[1].decode()).read_bytes()
    return found


def _kexec() -> Dict[str, bytes]:
    """kexec(8), what loads it, and its libraries."""
    told = run(["ldd", str(ROOT / KEXEC)])
    loader, libraries = LOADER.search(told), LIBRARY.findall(told)
    if not loader or not libraries:
        raise HoldfastError(f"ldd does not say what {KEXEC} needs", "see ldd /usr/sbin/kexec")
    return {
        f"{HOME}/kexec": (ROOT / KEXEC).read_bytes(),
        f"{HOME}/ld.so": Path(loader[1]).read_bytes(),
        **{f"{HOME}/lib/{name}": Path(path).read_bytes() for name, path in libraries},
    }
