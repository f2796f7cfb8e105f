# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt's qemu.conf: our settings, between two marker lines so that they can be found and taken out again.

And one of the operator's, which is only read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional, Sequence

from .errors import HoldfastError

PATH = Path("/etc/libvirt/qemu.conf")
BEGIN = "# BEGIN holdfast"
END = "# END holdfast"

# libvirt's default, which a list of our own takes the place of (defaultDeviceACL, qemu_cgroup.c).
OWN_DEVICES = tuple(f"/dev/{name}" for name in "null full zero random urandom ptmx kvm userfaultfd".split())

_BLOCK = re.compile(rf"^{BEGIN}\n.*?^{END}\n", re.MULTILINE | re.DOTALL)
_SETTING = r"""^\s*{name}\s*=\s*(?P<quote>["'])(?P<value>.*?)(?P=quote)"""


def memory_backing_dir(text: str) -> str:
    """The directory that qemu.conf names for file-backed RAM; empty when it keeps libvirt's default."""
    return _value(text, "memory_backing_dir")


def save_image_format(text: str) -> str:
    """How libvirt writes save images, unless it is asked for another format; empty when it keeps its default, raw."""
    return _value(text, "save_image_format")


def may_use_apparmor(text: str) -> bool:
    """Whether libvirt confines QEMU by AppArmor where the host has that: it does by itself."""
    found = re.search(r"^\s*security_driver\s*=\s*(?P<value>\[[^\]]*\]|.*)", text, re.MULTILINE)
    return not found or "apparmor" in found["value"]


def _value(text: str, name: str) -> str:
    found = re.search(_SETTING.format(name=name), text, re.MULTILINE)
    return found["value"] if found else ""


def with_memory_backing_dir(text: str, directory: Optional[str], devices: Sequence[str] = ()) -> str:
    """``text`` with our block naming ``directory``, or without our block for None.

    ``devices`` are those that QEMU may open besides libvirt's own. Raises HoldfastError when somebody else's line
    already sets another directory, or other devices.
    """
    rest = _BLOCK.sub("", text)
    if directory is None:
        return rest
    theirs = memory_backing_dir(rest)
    if theirs:
        raise HoldfastError(
            f'{PATH} already sets memory_backing_dir = "{theirs}", outside the lines that holdfast keeps',
            "take that line out: the VM RAM of a prepared host lives in the pool",
        )
    if devices and re.search(r"^\s*cgroup_device_acl\s*=", rest, re.MULTILINE):
        raise HoldfastError(
            f"{PATH} already sets cgroup_device_acl, outside the lines that holdfast keeps",
            "take it out; holdfast sets it to libvirt's own list and the pool's devices",
        )
    separator = "" if not rest or rest.endswith("\n") else "\n"
    allowed = f"cgroup_device_acl = [{', '.join(map(_quoted, (*OWN_DEVICES, *devices)))}]\n" if devices else ""
    return f'{rest}{separator}{BEGIN}\nmemory_backing_dir = "{directory}"\n{allowed}{END}\n'


def _quoted(path: str) -> str:
    return f'"{path}"'
