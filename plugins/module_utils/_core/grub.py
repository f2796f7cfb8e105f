# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot loader's part of the pool: kernel arguments for every installed and every future kernel (Debian's GRUB)."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Optional, Sequence

from . import command, durable
from .errors import HoldfastError

PATH = Path("/etc/default/grub.d/holdfast.cfg")
DEFAULTS = Path("/etc/default/grub")
GENERATED = Path("/boot/grub/grub.cfg")
_LINUX = ("linux", "linuxefi", "linux16")
# The part of the menu that os-prober makes (/etc/grub.d/30_os-prober).
_OTHER_SYSTEMS = "os-prober"


def config_text(arguments: Sequence[str]) -> str:
    """A file for /etc/default/grub.d that appends ``arguments`` to the command line of all menu entries."""
    return (
        "# RAM for VMs, kept out of the kernel's allocator. Written by holdfast; removed by its remove playbook.\n"
        f'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {" ".join(arguments)}"\n'
    )


def installed_text(path: Path = PATH) -> str:
    """What is configured now; empty when nothing is."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def install(text: str, path: Path = PATH, generated: Path = GENERATED) -> None:
    """Put ``text`` in place (empty: remove the file) and regenerate the boot menu.

    The earlier file and the earlier menu come back when the menu cannot be made, or does not carry the arguments.
    Raises HoldfastError, CommandFailed.
    """
    before, menu = installed_text(path), _menu(generated)
    try:
        _put(text, path)
        command.run(["update-grub"], timeout_s=300)
        _require_in_menu(text, generated)
    except BaseException:
        _put(before, path)
        _put_menu_back(menu, generated)
        raise


def arguments_of(text: str) -> tuple[str, ...]:
    """The arguments inside what ``config_text`` made."""
    for line in text.splitlines():
        if line.startswith("GRUB_CMDLINE_LINUX="):
            return tuple(line.split("=", 1)[1].strip('"').split()[1:])
    return ()


def is_set_elsewhere(argument: str, defaults: Path = DEFAULTS, ours: Path = PATH) -> bool:
    """Whether the boot loader's configuration, our own file apart, names a kernel argument of this name."""
    for path in (defaults, *sorted(ours.parent.glob("*.cfg"))):
        if path != ours and path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            if any(f"{argument}=" in line and not line.lstrip().startswith("#") for line in lines):
                return True
    return False


def _put(text: str, path: Path) -> None:
    if text:
        # Made here, readable for all as packages make it: durable's own directories are private.
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(path, text, mode=0o644)
    elif path.exists():
        path.unlink()
        durable.sync(path.parent)


def _menu(generated: Path) -> Optional[bytes]:
    return generated.read_bytes() if generated.exists() else None


def _put_menu_back(menu: Optional[bytes], generated: Path) -> None:
    """Not by update-grub: whatever made it fail may do so again, and the next boot takes what is there."""
    if menu is not None and _menu(generated) != menu:
        mode = generated.stat().st_mode & 0o777 if generated.exists() else 0o600
        durable.write_bytes(generated, menu, mode)


def _kernels(menu: str) -> Iterator[Sequence[str]]:
    """The words of each line that starts a kernel of this system: not another one's, nor a memory test."""
    section = ""
    for line in menu.splitlines():
        words = line.split()
        if words[:2] == ["###", "BEGIN"]:
            section = Path(words[2]).name
        if words[:1] and words[0] in _LINUX and _is_kernel(words) and not section.endswith(_OTHER_SYSTEMS):
            yield words


def _is_kernel(words: Sequence[str]) -> bool:
    return len(words) > 1 and Path(words[1]).name.startswith("vmlinu")


def _require_in_menu(text: str, generated: Path) -> None:
    menu = (_menu(generated) or b"").decode(errors="replace")
    kernels = list(_kernels(menu))
    for argument in arguments_of(text):
        if not kernels or any(argument not in words for words in kernels):
            raise HoldfastError(
                f"update-grub made {generated} without {argument} on every kernel's command line",
                "see whether /etc/default/grub or a later file in /etc/default/grub.d sets GRUB_CMDLINE_LINUX anew",
            )
