# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt's save image: a header, the domain XML, then QEMU's own stream.

Layout from libvirt's qemu_saveimage.h (version 2): 16 bytes magic, then native 32-bit version, data length,
was-running, format, cookie offset, and padding up to 92 bytes. The stream alone may be compressed.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Tuple

from . import command
from .errors import CommandFailed, VmError

MAGIC = b"LibvirtQemudSave"
HEADER_BYTES = 92
LARGEST_XML = 4 << 20
# What libvirt pipes the stream through, by its number in the header (virQEMUSaveFormat, qemu_saveimage_format.h). The
# sixth one, sparse, is a stream of another kind, which QEMU would have to be prepared for.
PACKERS = ("", "gzip", "bzip2", "xz", "lzop", "zstd")


@dataclass(frozen=True)
class SaveImage:
    """The domain XML of a save image, and where QEMU's stream begins in the file (bytes).

    ``packer``: the program that compressed the stream; empty when none did.
    """

    xml: str
    stream_offset: int
    packer: str = ""


def is_whole(path: Path) -> bool:
    """Whether there is such an image, and libvirt finished it: it writes the magic last, over another one.

    Raises VmError when nobody can tell: an image that cannot be read now is none that is gone.
    """
    try:
        with path.open("rb") as image:
            return image.read(len(MAGIC)) == MAGIC
    except FileNotFoundError:
        return False
    except OSError as exc:
        hint = "it is kept: mount or mend what it is on, then recover again"
        raise VmError(f"{path} cannot be read: {exc.strerror}", hint) from exc


def read(path: Path) -> SaveImage:
    """Parse a save image. Raises VmError when it is not one, is truncated, or has a stream that cannot be unpacked."""
    with path.open("rb") as image:
        header = image.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES or header[:16] != MAGIC:
            raise VmError(f"{path} is not a complete libvirt save image", "keep it, and restore nothing from it")
        version, length, _running, packed, cookie = struct.unpack_from("=5I", header, 16)
        if version != 2 or packed >= len(PACKERS) or not 0 < length <= LARGEST_XML or cookie > length:
            found = f"version {version}, format {packed}, {length} bytes of XML"
            hint = "keep it, and try again with a newer holdfast"
            raise VmError(f"{path} has a header this agent does not know: {found}", hint)
        data = image.read(length)
    if len(data) < length:
        raise VmError(f"{path} ends within its XML", "keep it, and restore nothing from it")
    text = data[: cookie or length].split(b"\0", 1)[0].decode()
    return SaveImage(text, HEADER_BYTES + length, PACKERS[packed])


@contextmanager
def stream(path: Path, limit_s: float) -> Iterator[Tuple[Path, int]]:
    """A file with the stream as QEMU reads it, and where in it that begins (bytes).

    This is the image itself, unless libvirt compressed it: then a file beside it, for as long as it is needed. One that
    cannot be asked for a plain image does so, if its daemon was started with such a qemu.conf. Raises VmError; the
    image is as it was.
    """
    image = read(path)
    if not image.packer:
        yield path, image.stream_offset
        return
    try:
        _unpack(path, image, limit_s)
        yield unpacked(path), 0
    finally:
        unpacked(path).unlink(missing_ok=True)


def unpacked(path: Path) -> Path:
    """Where the stream of a compressed image is meanwhile."""
    return path.with_name(f"{path.name}.unpacked")


def _unpack(path: Path, image: SaveImage, limit_s: float) -> None:
    # As libvirt does it (qemuSaveImageGetCompressionCommand). lzop would end with an error after a mere warning.
    options = ["-dc", "--ignore-warn"] if image.packer == "lzop" else ["-dc"]
    try:
        command.run_over([image.packer, *options], path, image.stream_offset, unpacked(path), timeout_s=limit_s)
    except (CommandFailed, OSError) as exc:
        hint = "it is as it was: mend that, and try again"
        raise VmError(f"{path} is compressed, and cannot be unpacked: {exc}", hint) from exc
