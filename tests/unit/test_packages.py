# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nobody jumps while packages are installed, and no package is installed while somebody is about to jump."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import packages
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, Refused

# As dpkg does (dbmodify.c): it does not wait.
DPKG = """
import fcntl, sys
lock = open(sys.argv[1], "a+")
try:
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit("locked")
print("at work", flush=True)
sys.stdin.read()
"""


@contextmanager
def dpkg_at_work() -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", DPKG, str(packages.LOCK)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
        try:
            yield process
        finally:
            process.kill()


def dpkg_may_work() -> bool:
    words = [sys.executable, "-c", DPKG, str(packages.LOCK)]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def test_nothing_is_installed_meanwhile() -> None:
    with packages.held():
        assert not dpkg_may_work()
    assert dpkg_may_work()


def test_an_installation_that_does_not_end_is_named() -> None:
    with dpkg_at_work() as process:
        with pytest.raises(Refused) as refused, packages.held(limit_s=0.1):
            raise AssertionError("packages are being installed")
        assert re.search(rf"by python\S* \(process {process.pid}\)", str(refused.value))


def test_an_installation_that_ends_is_waited_for() -> None:
    with dpkg_at_work() as process:
        assert process.stdin
        process.stdin.close()
        with packages.held(limit_s=10):
            assert process.wait(10) == 0


def test_vms_that_wait_do_not_wait_for_an_installation() -> None:
    with dpkg_at_work(), packages.held_if_free():
        pass
    with packages.held_if_free():
        assert not dpkg_may_work()


def test_a_host_without_dpkg_has_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "LOCK", tmp_path / "absent/lock-frontend")
    with packages.held(), packages.held_if_free():
        pass
    assert not packages.LOCK.parent.exists()


def test_what_was_cut_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "ii  adduser\niU  qemu-system-x86\nrc  old\niF  libvirt0\niHR grub-common\nun  ghost\nit  man-db\n"
    monkeypatch.setattr(packages, "run", lambda _words: listed)
    assert packages.halfway() == ("grub-common", "libvirt0", "qemu-system-x86")


def test_another_distribution_has_nothing_that_we_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_words: list[str]) -> str:
        raise CommandFailed("dpkg-query is not installed on this host")

    monkeypatch.setattr(packages, "run", absent)
    assert packages.halfway() == ()
