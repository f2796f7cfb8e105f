# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt knows of QEMU counts for the kernel that starts until VMs are back, and is asked again then."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import capability_cache, durable
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError

OLD, NEW = "6.12.118+deb13-amd64", "7.3.4+deb14-amd64"
OLD_KERNEL = f"{OLD} #1 SMP PREEMPT_DYNAMIC Debian 6.12.118-1 (2026-11-20)"
NEW_KERNEL = f"{NEW} #1 SMP PREEMPT_DYNAMIC Debian 7.3.4-1 (2026-11-22)"
# An hour ago, in whole seconds, as libvirt compares it.
LONG_AGO = int(time.time()) - 3600


def entry(kernel: str, emulator: str = "/usr/bin/qemu-system-x86_64") -> str:
    return (
        f"<qemuCaps>\n  <emulator>{emulator}</emulator>\n  <qemuctime>1796065429</qemuctime>\n"
        f"  <flag name='kvm'/>\n  <kernelVersion>{kernel}</kernelVersion>\n  <arch>x86_64</arch>\n</qemuCaps>\n"
    )


class Home:
    """A host's files: libvirt's cache, our state directory, a QEMU binary."""

    def __init__(self, folder: Path) -> None:
        self.state, self.cache, self.qemu = folder / "state", folder / "cache", folder / "qemu-system-x86_64"
        self.cache.mkdir()
        self.qemu.write_text("ELF")
        self.qemu.chmod(0o755)
        os.utime(self.qemu, (LONG_AGO, LONG_AGO))

    def learnt(self, kernel: str, name: str = "926803") -> Path:
        path = self.cache / f"{name}.xml"
        path.write_text(entry(kernel, str(self.qemu)))
        return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(tmp_path)
    monkeypatch.setattr(capability_cache, "CACHE", home.cache)
    runs(monkeypatch, NEW_KERNEL)
    return home


def runs(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    release, version = kernel.split(" ", 1)
    monkeypatch.setattr(capability_cache.os, "uname", lambda: SimpleNamespace(release=release, version=version))


def test_what_was_learnt_under_the_kernel_that_was_left_counts_for_the_one_that_starts() -> None:
    assert capability_cache.taken_over(entry(OLD_KERNEL), NEW_KERNEL, (OLD, NEW)) == (
        "/usr/bin/qemu-system-x86_64",
        entry(NEW_KERNEL),
    )


@pytest.mark.parametrize(
    ("text", "running"),
    [
        pytest.param(entry(NEW_KERNEL), NEW_KERNEL, id="of the running kernel"),
        pytest.param(entry(OLD_KERNEL.replace("118", "90")), NEW_KERNEL, id="of a kernel long gone"),
        pytest.param("<qemuCaps/>", NEW_KERNEL, id="of a libvirt that writes no kernel"),
        pytest.param(entry(OLD_KERNEL) * 2, NEW_KERNEL, id="two in one"),
        pytest.param(entry(OLD_KERNEL).replace("#1", "#1 &amp;"), NEW_KERNEL, id="escaped"),
        pytest.param(entry(OLD_KERNEL), NEW_KERNEL + " <x>", id="would have to be escaped"),
    ],
)
def test_anything_else_is_left_alone(text: str, running: str) -> None:
    assert capability_cache.taken_over(text, running, (OLD, NEW)) is None


def test_the_file_is_roots_alone_and_a_second_time_changes_nothing(home: Home) -> None:
    path = home.learnt(OLD_KERNEL)
    capability_cache.take_over(home.state, (OLD, NEW))
    assert path.read_text() == entry(NEW_KERNEL, str(home.qemu))
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.stat().st_mtime_ns
    capability_cache.take_over(home.state, (OLD, NEW))
    assert path.stat().st_mtime_ns == before


def test_the_way_back_takes_it_over_once_more(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home.learnt(OLD_KERNEL)
    capability_cache.take_over(home.state, (OLD, NEW))
    runs(monkeypatch, OLD_KERNEL)
    capability_cache.take_over(home.state, (OLD, NEW))
    assert path.read_text() == entry(OLD_KERNEL, str(home.qemu))


def test_nothing_is_taken_over_before_it_is_noted_who_has_to_be_asked_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home.learnt(OLD_KERNEL)

    def full(_path: Path, _text: str) -> None:
        raise HoldfastError("cannot write")

    monkeypatch.setattr(durable, "write_text", full)
    with pytest.raises(HoldfastError):
        capability_cache.take_over(home.state, (OLD, NEW))
    assert path.read_text() == entry(OLD_KERNEL, str(home.qemu))


def test_in_the_end_both_the_file_and_what_the_daemon_has_in_its_memory_are_void(home: Home) -> None:
    path = home.learnt(OLD_KERNEL)
    capability_cache.take_over(home.state, (OLD, NEW))
    other = home.cache / "other.xml"
    other.write_text(entry(NEW_KERNEL))
    before = home.qemu.stat()
    time.sleep(0.02)
    capability_cache.renew(home.state)
    after = home.qemu.stat()
    assert after.st_ctime_ns > before.st_ctime_ns
    assert (after.st_mode, after.st_mtime_ns, after.st_ino) == (before.st_mode, before.st_mtime_ns, before.st_ino)
    assert not path.exists()
    assert other.exists(), "of a QEMU that was asked under this kernel"


def test_a_qemu_of_which_nothing_was_taken_over_is_not_touched(home: Home) -> None:
    path = home.learnt(NEW_KERNEL)
    capability_cache.take_over(home.state, (OLD, NEW))
    before = home.qemu.stat().st_ctime_ns
    capability_cache.renew(home.state)
    assert home.qemu.stat().st_ctime_ns == before
    assert path.exists()


def test_it_is_asked_again_once(home: Home) -> None:
    home.learnt(OLD_KERNEL)
    capability_cache.take_over(home.state, (OLD, NEW))
    capability_cache.renew(home.state)
    before = home.qemu.stat().st_ctime_ns
    capability_cache.renew(home.state)
    assert home.qemu.stat().st_ctime_ns == before


def test_a_qemu_that_was_removed_meanwhile_is_no_trouble(home: Home) -> None:
    home.learnt(OLD_KERNEL)
    capability_cache.take_over(home.state, (OLD, NEW))
    home.qemu.unlink()
    capability_cache.renew(home.state)


def test_where_a_binary_cannot_be_changed_the_file_is_void_all_the_same(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home.learnt(OLD_KERNEL)
    capability_cache.take_over(home.state, (OLD, NEW))

    def read_only(_path: str, _mode: int) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(capability_cache.os, "chmod", read_only)
    with pytest.raises(OSError, match="Read-only"):
        capability_cache.renew(home.state)
    assert not path.exists()
