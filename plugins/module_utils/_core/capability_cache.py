# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt knows of QEMU, kept through the jump: VMs do not stand still while its daemon asks again.

The daemon starts each QEMU binary a few times to learn what it can do, before it answers anybody, and keeps that in a
file. Another kernel makes the file void (virQEMUCapsIsValid), for what KVM offers may have changed with it. VMs that
are restored have no use for that: they have the CPU that they had, and whether this kernel still offers it is asked of
KVM itself (``cpu``). So the file is taken over for the kernel that starts, until they are back, and made void then.
Another QEMU, libvirt, microcode or processor makes it void as ever.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Collection, List, Optional, Tuple

from . import durable

CACHE = Path("/var/cache/libvirt/qemu/capabilities")
# In the state directory: the emulators whose files were taken over.
NOTE = "capabilities.json"
# libvirt's words, <release> and <version> of uname. What XML would write in another way is left alone.
_KERNEL = re.compile(r"(?<=<kernelVersion>)([^<&]*)(?=</kernelVersion>)")
_EMULATOR = re.compile(r"(?<=<emulator>)([^<&]*)(?=</emulator>)")
_NOT_AS_IT_IS = frozenset("<>&")


def take_over(state_dir: Path, releases: Collection[str]) -> None:
    """Have what libvirt learnt under these kernels (``uname -r``) count under the running one.

    Before its daemon starts; safe to call again. Raises HoldfastError, OSError or ValueError: libvirt asks QEMU then.
    """
    running = f"{os.uname().release} {os.uname().version}"
    answers = {path: taken_over(path.read_text(), running, releases) for path in sorted(CACHE.glob("*.xml"))}
    ours = {path: answer for path, answer in answers.items() if answer}
    if not ours:
        return
    # First whom to ask again: nobody may take for good what the old kernel offered for what this one does.
    emulators = {*_noted(state_dir), *(emulator for emulator, _text in ours.values())}
    durable.write_text(state_dir / NOTE, json.dumps(sorted(emulators)))
    for path, (_emulator, text) in ours.items():
        durable.write_text(path, text)


def taken_over(text: str, running: str, releases: Collection[str]) -> Optional[Tuple[str, str]]:
    """The emulator that a file is about, and its text for the running kernel. Pure.

    None when it is of the running kernel already, of none of the others, or not as we know such files.
    """
    kernels, emulators = _KERNEL.findall(text), _EMULATOR.findall(text)
    if len(kernels) != 1 or len(emulators) != 1 or _NOT_AS_IT_IS & set(running):
        return None
    if kernels[0] == running or kernels[0].split(" ")[0] not in releases:
        return None
    return emulators[0], _KERNEL.sub(lambda _found: running, text)


def renew(state_dir: Path) -> None:
    """Have libvirt ask again those of whom something was taken over, when somebody next needs to know. Safe again.

    It asks when a binary was changed; all that is changed of it here is the time of that (its ctime). Raises OSError
    when that cannot be: libvirt asks when its daemon is next started, then.
    """
    emulators = _noted(state_dir)
    for path in CACHE.glob("*.xml") if emulators else ():
        if set(_EMULATOR.findall(path.read_text())) & set(emulators):
            path.unlink(missing_ok=True)
    refused: Optional[OSError] = None
    for emulator in filter(os.path.exists, emulators):
        try:
            os.chmod(emulator, stat.S_IMODE(os.stat(emulator).st_mode))
        except OSError as exc:
            refused = exc
    # Only now: whoever is interrupted here does it all again.
    (state_dir / NOTE).unlink(missing_ok=True)
    if refused:
        raise refused


def _noted(state_dir: Path) -> List[str]:
    """Emulators of whom something was taken over, and who were not asked again yet."""
    try:
        return [str(each) for each in json.loads((state_dir / NOTE).read_text())]
    except (OSError, ValueError, TypeError):
        return []
