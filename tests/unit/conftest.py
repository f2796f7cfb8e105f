# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit tests decide things. They need no host, no network, and nothing from the home of whoever runs them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import autostart, capability_cache, packages


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def connect_nearby(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a unit test tried to reach {address}: unit tests have no network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_nearby)


@pytest.fixture(autouse=True)
def _own_libvirt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the agent leaves for libvirt's daemon is not for that of the machine under the tests."""
    monkeypatch.setattr(autostart, "DONE", tmp_path / "run-libvirt/qemu/autostarted")
    monkeypatch.setattr(capability_cache, "CACHE", tmp_path / "libvirt-capabilities")


@pytest.fixture(autouse=True)
def _own_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody waits for the package manager of the machine under the tests, or keeps it waiting."""
    monkeypatch.setattr(packages, "LOCK", tmp_path / "lock-frontend")


@pytest.fixture(autouse=True)
def _own_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the command keeps its runs, and which of them it finds."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def _own_ansible(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A collection below the user's home would hide the working tree; a fact cache would carry state between tests."""
    for name in [name for name in os.environ if name.startswith("ANSIBLE_")]:
        monkeypatch.delenv(name)
    home: Path = tmp_path_factory.getbasetemp() / "ansible-home"
    monkeypatch.setenv("ANSIBLE_HOME", str(home))
