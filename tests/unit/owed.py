# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host with a real journal, of whose VMs some are off for the upgrade and owed a start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import kexec, monitor, restarts
from ansible_collections.holdfast.kvm.plugins.module_utils._core import request as requests
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import open_journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.request import Request

# The VM that stays in place.
DB = "33333333-0000-0000-0000-000000000000"
Guest = TypeVar("Guest")


class Host(Generic[Guest]):
    """``make``: a guest, from the host, its uuid and its name."""

    def __init__(self, state_dir: Path, wanted: Request, make: Callable[[Any, str, str], Guest]) -> None:
        self.config = Config(state_dir=state_dir)
        self.journal = open_journal(state_dir)
        self.guests = {vm.uuid: make(self, vm.uuid, vm.name) for vm in wanted.vms}
        requests.write(state_dir, wanted)
        vms = [vars(vm) for vm in wanted.vms]
        fields = {"host": "hv1", "kernel": {"from": "6.12", "to": "7.2"}, "qemu": "10", "boot_id": "old", "vms": vms}
        self.journal.record("begin", generation=wanted.generation, **fields)

    def connected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be the host that is asked."""

        @contextmanager
        def connect() -> Iterator[Any]:
            yield self

        monkeypatch.setattr(restarts, "connect_patiently", connect)
        monkeypatch.setattr(monitor, "qemu_version", lambda _domain: "11.1.3")
        monkeypatch.setattr(kexec, "running_cmdline", lambda: "root=/dev/vda1")

    def answers(self) -> bool:
        return True

    def domain(self, uuid: str) -> Guest:
        return self.guests[uuid]

    def state_of(self, name: str) -> str:
        return next(str(vm["state"]) for vm in self.journal.vms if vm["name"] == name)

    def arrive(self) -> None:
        for event in ("suspending", "vm_paused", "vm_saved", "suspended", "jumping", "arrived", "attached"):
            self.journal.record(event, uuid=DB, boot_id="new", kernel="7.2", ram_bytes=1, state_bytes=1)

    def resume(self) -> None:
        self.journal.record("restoring")
        self.journal.record("vm_resuming", uuid=DB)
        self.journal.record("vm_resumed", uuid=DB, qemu="11.1.3")
