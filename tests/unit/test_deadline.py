# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Suspending has an end: the saves are cancelled, and an agent that still does not return ends itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import deadline, filesystems, live_update
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, VmError

SOON_S = 0.05
LONG_S = 30.0


class Saving:
    """A VM whose save ends when it is cancelled; ``busy``: whether it is being saved at all."""

    def __init__(self, busy: bool = True, refuses: bool = False) -> None:
        self.busy, self.refuses = busy, refuses
        self.cancelled = threading.Event()

    def job(self) -> str:
        return "save" if self.busy else ""

    def cancel_job(self) -> None:
        if self.refuses:
            raise VmError("its job cannot be cancelled")
        self.cancelled.set()


class Libvirt:
    def __init__(self, *vms: Saving) -> None:
        self.vms = vms

    def running(self) -> tuple[Saving, ...]:
        return self.vms


def answering(monkeypatch: pytest.MonkeyPatch, *vms: Saving) -> None:
    @contextmanager
    def connect() -> Iterator[Libvirt]:
        yield Libvirt(*vms)

    monkeypatch.setattr(deadline, "connect", connect)


def test_what_is_done_in_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = Saving()
    answering(monkeypatch, vm)
    with deadline.enforced(LONG_S):
        pass
    assert not vm.cancelled.is_set()


def test_it_says_how_much_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch)
    with deadline.enforced(LONG_S) as left_s:
        assert LONG_S - 5 < left_s() <= LONG_S
    with pytest.raises(HoldfastError), deadline.enforced(SOON_S) as left_s:
        time.sleep(2 * SOON_S)
    assert left_s() == 0


@pytest.mark.parametrize(("left_s", "limit_s"), [(500.0, filesystems.VMS_WAIT_S), (7.0, 7.0), (0.0, 0.0)])
def test_what_is_written_before_the_jump_has_no_longer(
    monkeypatch: pytest.MonkeyPatch, left_s: float, limit_s: float
) -> None:
    limits: list[float] = []
    monkeypatch.setattr(live_update.filesystems, "sync_all_but", lambda _place, limit: limits.append(limit))
    pool = SimpleNamespace(commit=lambda: None, mount_point=lambda: "/pool")
    journal = SimpleNamespace(vms=[{"state": "suspended"}], phase=lambda _name: nullcontext())
    live_update._write_out(Libvirt(), pool, journal, lambda: left_s)  # type: ignore[arg-type]
    assert limits == [limit_s]


def test_every_save_is_cancelled_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn, idle, saved = Saving(refuses=True), Saving(busy=False), Saving()
    answering(monkeypatch, stubborn, idle, saved)
    with pytest.raises(HoldfastError, match=r"longer than its deadline .* raise deadline_s"), deadline.enforced(SOON_S):
        assert saved.cancelled.wait(LONG_S)
    assert not idle.cancelled.is_set()


def test_a_failure_within_it_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch)
    with pytest.raises(VmError, match="no room"), deadline.enforced(LONG_S):
        raise VmError("no room")


HANGS = f"""
import threading, time
from ansible_collections.holdfast.kvm.plugins.module_utils._core import deadline

def connect():
    threading.Event().wait()

deadline.connect, deadline.GRACE_S = connect, {SOON_S}
with deadline.enforced({SOON_S}):
    time.sleep({LONG_S})
"""


def test_an_agent_whose_libvirt_does_not_answer_even_then_ends_itself() -> None:
    """So that its unit brings the VMs back."""
    ended = subprocess.run([sys.executable, "-c", HANGS], check=False, timeout=LONG_S)
    assert ended.returncode == -signal.SIGKILL
