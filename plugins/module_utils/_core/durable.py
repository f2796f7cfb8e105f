# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The core's one door to state that must survive a power cut: write, fsync, rename, fsync the directory."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import HoldfastError


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace ``path`` so that a reader, or the host after a crash, sees the old text or the new, never a part."""
    write_bytes(path, text.encode(), mode)


def write_bytes(path: Path, data: bytes, mode: int = 0o600) -> None:
    """As ``write_text``, for what is no text."""
    draft = path.with_name(f".{path.name}.new")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        try:
            os.fchmod(handle, mode)
            _write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.rename(draft, path)
        sync(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line; it is on the medium when this returns."""
    with _explained(path):
        existed = path.exists()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            _write_all(handle, line.encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
        if not existed:
            sync(path.parent)


def truncate(path: Path, size_bytes: int) -> None:
    """Cut a file off, durably."""
    with _explained(path):
        handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            os.ftruncate(handle, size_bytes)
            os.fsync(handle)
        finally:
            os.close(handle)


def move(source: Path, target: Path) -> None:
    """Rename within one file system, durably at both ends."""
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.rename(source, target)
        sync(target.parent)
        if source.parent != target.parent:
            sync(source.parent)


def sync(path: Path) -> None:
    """Make what was written to a file durable, by whomever, or the names in a directory. Raises HoldfastError."""
    with _explained(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


class _explained:
    """Turn a full or read-only medium into an error that names the place and the remedy."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, exc: object, trace: object) -> None:
        if isinstance(exc, OSError):
            hint = f"make {self.path.parent} writable by root, with room for a few megabytes"
            raise HoldfastError(f"cannot write {self.path}: {exc.strerror}", hint) from exc
