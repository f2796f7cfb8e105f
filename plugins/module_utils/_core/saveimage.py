# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt's save image: a header, the domain XML, then QEMU's own stream.

Layout from libvirt's qemu_saveimage.h (version 2): 16 bytes magic, then native 32-bit version, data length,
was-running, compressed, cookie offset, and padding up to 92 bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from .errors import VmError

MAGIC = b"LibvirtQemudSave"
HEADER_BYTES = 92
LARGEST_XML = 4 << 20


@dataclass(frozen=True)
class SaveImage:
    """The domain XML of a save image, and where QEMU's stream begins in the file (bytes)."""

    xml: str
    stream_offset: int


def is_whole(path: Path) -> bool:
    """Whether libvirt finished this image: it writes the magic last, over another one."""
    try:
        with path.open("rb") as image:
            return image.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read(path: Path) -> SaveImage:
    """Parse a save image. Raises VmError when it is not one, or is compressed or truncated."""
    with path.open("rb") as image:
        header = image.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES or header[:16] != MAGIC:
            raise VmError(f"{path} is not a complete libvirt save image", "keep it, and restore nothing from it")
        version, length, _running, compressed, cookie = struct.unpack_from("=5I", header, 16)
        if version != 2 or compressed or not 0 < length <= LARGEST_XML or cookie > length:
            found = f"version {version}, compressed {compressed}, {length} bytes of XML"
            raise VmError(f"{path} has a header this agent does not know: {found}", "set save_image_format to raw")
        data = image.read(length)
    if len(data) < length:
        raise VmError(f"{path} ends within its XML", "keep it, and restore nothing from it")
    text = data[: cookie or length].split(b"\0", 1)[0].decode()
    return SaveImage(text, HEADER_BYTES + length)
