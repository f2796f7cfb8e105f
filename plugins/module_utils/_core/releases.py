# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel releases: which are installed, which is the newest, which one an upgrade goes to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Sequence, Tuple

from .errors import BadInput
from .facts import HostFacts

BOOT = Path("/boot")

_PIECE = re.compile(r"[0-9]+|[a-z]+|~")
# apt-get --simulate: "Inst linux-image-7.2.12+deb13-amd64 (7.2.12-1~bpo13+1 Debian Backports:… [amd64])"
_ANNOUNCED = re.compile(r"^Inst linux-image-([0-9]\S*?)(?:-unsigned)? ", re.MULTILINE)


def installed(boot: Path = BOOT) -> Tuple[str, ...]:
    """Releases that have both an image and an initrd in ``boot``, the newest last."""
    images = (path.name[len("vmlinuz-") :] for path in boot.glob("vmlinuz-*"))
    return tuple(sorted((name for name in images if (boot / f"initrd.img-{name}").exists()), key=_age))


def announced(simulation: str) -> Tuple[str, ...]:
    """Releases that a package installation would bring, from what ``apt-get --simulate`` printed."""
    return tuple(sorted(set(_ANNOUNCED.findall(simulation)), key=_age))


def choose(wanted: str, available: Sequence[str], running: str) -> str:
    """The release to go to: ``wanted``, or the newest of the running kernel's flavour when it is empty.

    Raises BadInput naming what is available.
    """
    listed = ", ".join(sorted(available, key=_age)) or "none"
    if wanted and wanted not in available:
        raise BadInput(
            f"kernel {wanted} is not installed (image and initrd in {BOOT}); installed: {listed}",
            "ask for one of those, or name the package that brings it in stage_packages",
        )
    if not available:
        raise BadInput(f"no kernel with image and initrd in {BOOT}", "install a kernel package of the distribution")
    alike = [release for release in available if flavour(release) == flavour(running)]
    return wanted or max(alike or available, key=_age)


def is_up_to_date(host: HostFacts, kernel_to: str, qemus: Sequence[str]) -> bool:
    """Whether there is nothing to gain: the kernel runs, and every VM runs on the installed QEMU (``qemus``)."""
    installed_qemu = ".".join(map(str, host.qemu.version))
    return host.kernel == kernel_to and not host.journal_open and all(version == installed_qemu for version in qemus)


def flavour(release: str) -> str:
    """``amd64`` of 6.12.107+deb13-amd64, ``cloud-amd64`` of 6.1.0-28-cloud-amd64; empty where releases have none."""
    return "-".join(part for part in release.split("-")[1:] if not part[:1].isdigit())


def _age(release: str) -> Tuple[Tuple[int, int, str], ...]:
    """Sort key, older first: numbers by value, ``~`` before everything as in Debian's version order."""
    pieces = [_piece(text) for text in _PIECE.findall(release)]
    return (*pieces, (0, 0, ""))


def _piece(text: str) -> Tuple[int, int, str]:
    if text == "~":
        return (-1, 0, "")
    return (2, int(text), "") if text.isdigit() else (1, 0, text)
