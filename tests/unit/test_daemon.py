# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirt daemon that hangs is ended while VMs wait for it; one that is slow, starts, or answers is not."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import daemon
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed

PID = 4711
LONG_S = 30.0


class Host:
    """``answer``: how the daemon answers. ``state``: what systemd says of it."""

    def __init__(self) -> None:
        self.answer, self.state = "no", "active"
        self.asked = 0
        self.killed = threading.Event()

    def run(self, argv: list[str], *, timeout_s: float = 60) -> str:
        if argv[0] == "systemctl":
            here = argv[-1] == "libvirtd.service"
            return f"MainPID={PID if here else 0}\nActiveState={self.state if here else 'inactive'}\n"
        self.asked += 1
        if self.answer == "no":
            time.sleep(timeout_s)
            raise CommandFailed(f"python3 did not end within {timeout_s} s")
        if self.answer == "an error":
            raise CommandFailed("python3 ended with 1: cannot connect")
        return ""

    def kill(self, pid: int, number: int) -> None:
        assert (pid, number) == (PID, signal.SIGKILL)
        self.killed.set()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host()
    monkeypatch.setattr(daemon, "run", found.run)
    monkeypatch.setattr(daemon.os, "kill", found.kill)
    for name, seconds in (("HANGS_S", 0.2), ("ANSWER_S", 0.05), ("LOOK_S", 0.01)):
        monkeypatch.setattr(daemon, name, seconds)
    return found


def test_a_daemon_that_hangs_is_ended_once(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    with daemon.ended_if_it_hangs():
        assert host.killed.wait(LONG_S)
        asked = host.asked
        time.sleep(0.1)
        assert host.asked == asked
    assert "has not answered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "state"), [("yes", "active"), ("an error", "active"), ("no", "activating"), ("no", "inactive")]
)
def test_any_other_is_left_alone(host: Host, answer: str, state: str) -> None:
    host.answer, host.state = answer, state
    with daemon.ended_if_it_hangs():
        assert not host.killed.wait(0.6)


def test_nobody_is_asked_when_all_is_over(host: Host) -> None:
    with daemon.ended_if_it_hangs():
        pass
    time.sleep(0.1)
    asked = host.asked
    assert not host.killed.wait(0.4)
    assert host.asked == asked
