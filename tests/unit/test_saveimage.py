# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM is saved so that its state can be read again, whatever qemu.conf wants of other save images."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import hypervisor as libvirt_door
from ansible_collections.holdfast.kvm.plugins.module_utils._core import saveimage, suspend
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.hypervisor import Domain

XML = b"<domain><name>db1</name></domain>\0"
STREAM = b"QEVM" + os.urandom(5000) + b"\0" * 300_000
RAW, GZIP, BZIP2, XZ, LZOP, ZSTD, SPARSE = range(7)


def image(path: Path, number: int, stream: bytes) -> Path:
    header = saveimage.MAGIC + struct.pack("=5I", 2, len(XML), 1, number, 0)
    path.write_bytes(header.ljust(saveimage.HEADER_BYTES, b"\0") + XML + stream)
    return path


def zstd(data: bytes) -> bytes:
    if not shutil.which("zstd"):
        pytest.skip("zstd is not installed here")
    return subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout


class Raw:
    """libvirt's binding to one domain, with a daemon of this version."""

    def __init__(self, *version: int) -> None:
        number = version[0] * 1_000_000 + version[1] * 1_000 + version[2]
        self.connect = lambda: SimpleNamespace(getLibVersion=lambda: number)
        self.calls: list[tuple[Any, ...]] = []

    def name(self) -> str:
        return "db1"

    def UUIDString(self) -> str:
        return "11111111-2222-3333-4444-555555555555"

    def saveFlags(self, *arguments: Any) -> None:
        self.calls.append(("flags", *arguments))


class RawOfToday(Raw):
    def saveParams(self, *arguments: Any) -> None:
        self.calls.append(("params", *arguments))


PAUSED = libvirt_door.libvirt.VIR_DOMAIN_SAVE_PAUSED
PLAIN = ("flags", "/vault/state", None, PAUSED)


def test_what_cannot_be_read_is_not_called_half_an_image(tmp_path: Path) -> None:
    assert saveimage.is_whole(image(tmp_path / "state", RAW, STREAM))
    assert not saveimage.is_whole(tmp_path / "none")
    with pytest.raises(VmError, match="cannot be read: Not a directory"):
        saveimage.is_whole(tmp_path / "state" / "on a disk that answers with an error")


@pytest.mark.parametrize("version", [(11, 2, 0), (11, 3, 0), (12, 8, 0)])
def test_a_libvirt_that_takes_a_format_is_asked_for_an_uncompressed_image(version: tuple[int, int, int]) -> None:
    raw = RawOfToday(*version)
    Domain(raw).save("/vault/state")
    assert raw.calls == [("params", {"file": "/vault/state", "image_format": "raw"}, PAUSED)]


@pytest.mark.parametrize("raw", [RawOfToday(11, 1, 0), RawOfToday(8, 2, 0), Raw(11, 3, 0)])
def test_one_that_does_not_saves_as_ever(raw: Raw) -> None:
    """It would refuse a parameter that it does not know; a binding of before 8.4 has no such call."""
    Domain(raw).save("/vault/state")
    assert raw.calls == [PLAIN]


@pytest.mark.parametrize(
    ("number", "compress"),
    [(GZIP, gzip.compress), (BZIP2, bz2.compress), (XZ, lzma.compress), (ZSTD, zstd)],
    ids=["gzip", "bzip2", "xz", "zstd"],
)
def test_a_compressed_stream_is_unpacked_for_as_long_as_it_is_needed(
    tmp_path: Path, number: int, compress: Callable[[bytes], bytes]
) -> None:
    whole = image(tmp_path / "state", number, compress(STREAM)).read_bytes()
    with saveimage.stream(tmp_path / "state", 60) as (path, offset):
        assert path.read_bytes()[offset:] == STREAM
        assert path.stat().st_mode & 0o777 == 0o600, "a guest's RAM may be in it"
    assert [one.name for one in tmp_path.iterdir()] == ["state"]
    assert (tmp_path / "state").read_bytes() == whole


def test_one_that_is_not_compressed_is_used_where_it_is(tmp_path: Path) -> None:
    image(tmp_path / "state", RAW, STREAM)
    with saveimage.stream(tmp_path / "state", 60) as (path, offset):
        assert path == tmp_path / "state"
        assert path.read_bytes()[offset:] == STREAM


def test_what_cannot_be_unpacked_is_kept_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = image(tmp_path / "state", GZIP, gzip.compress(STREAM)[:-2000]).read_bytes()
    for words in ("cannot be unpacked: gzip -dc ended with", "install the package with gzip"):
        with pytest.raises(VmError, match=words), saveimage.stream(tmp_path / "state", 60):
            pytest.fail("half a stream")
        monkeypatch.setenv("PATH", str(tmp_path))
    assert [one.name for one in tmp_path.iterdir()] == ["state"]
    assert (tmp_path / "state").read_bytes() == whole


@pytest.mark.parametrize("number", [SPARSE, 99])
def test_a_format_that_nobody_here_can_read_is_refused(tmp_path: Path, number: int) -> None:
    image(tmp_path / "state", number, STREAM)
    with pytest.raises(VmError, match=f"format {number}"):
        saveimage.read(tmp_path / "state")


@pytest.mark.parametrize(
    ("number", "stream"), [(SPARSE, STREAM), (GZIP, b"no gzip")], ids=["of another format", "that cannot be unpacked"]
)
def test_no_host_jumps_with_a_state_that_could_not_be_read_after_the_jump(
    tmp_path: Path, number: int, stream: bytes
) -> None:
    with pytest.raises(VmError):
        suspend._check(image(tmp_path / "state", number, stream), "db1")


@pytest.mark.parametrize("trouble", ["too large", "cannot be unpacked"])
def test_in_the_boot_that_saved_it_a_state_is_tried_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """Nobody jumps with it; and to be off, with a state that nobody tries, is no better than a restore that fails."""
    image(tmp_path / "state", GZIP, b"no gzip" if trouble == "cannot be unpacked" else gzip.compress(STREAM))
    monkeypatch.setattr(suspend, "LARGEST_STATE_BYTES", 1 if trouble == "too large" else 1 << 20)
    pool: Any = SimpleNamespace(vault_of=lambda _uuid: tmp_path, ram_of=lambda _uuid: ())
    recorded: list[str] = []
    journal: Any = SimpleNamespace(path=tmp_path / "j", record=lambda event, **_fields: recorded.append(event))
    suspend.note_saved(pool, journal, {"uuid": "db1", "name": "db1"})
    assert recorded == ["vm_saved"]
