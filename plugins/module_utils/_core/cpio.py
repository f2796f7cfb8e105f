# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cpio archive, as the kernel unpacks it in front of an initrd (its buffer-format.rst).

The format is ``newc``: a header of hexadecimal fields, the name, the content, each filled up to four bytes.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path, PurePosixPath
from typing import Mapping

_TRAILER = "TRAILER!!!"
_BLOCK_BYTES = 512


def archive(files: Mapping[str, bytes]) -> bytes:
    """Regular files, by their path without a leading slash, after the directories that they are in.

    The length is a multiple of 512 bytes, so that another archive may follow, compressed or not.
    """
    folders = sorted({str(above) for name in files for above in PurePosixPath(name).parents if str(above) != "."})
    entries = [_entry(number, name, stat.S_IFDIR | 0o755, b"") for number, name in enumerate(folders, 1)]
    first = len(entries) + 1
    entries += [_entry(first + at, name, stat.S_IFREG | 0o755, files[name]) for at, name in enumerate(sorted(files))]
    whole = b"".join([*entries, _entry(0, _TRAILER, 0, b"")])
    return whole + bytes(-len(whole) % _BLOCK_BYTES)


def put_in_front(path: Path, extras: bytes, initrd: Path) -> None:
    """Write an archive and an initrd behind it, which is read, and ends, as it would by itself. Raises OSError.

    For root alone, since keys of disks may be in an initrd.
    """
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as whole, initrd.open("rb") as own:
        whole.write(extras)
        shutil.copyfileobj(own, whole)


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    links = 2 if stat.S_ISDIR(mode) else 1
    path = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device (2), device of a node (2), length of the name, no checksum
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _filled(head + path) + _filled(content)


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
