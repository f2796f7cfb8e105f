# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel that was loaded for the jump is the one that is jumped to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import kexec, live_update
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError


class Kernel:
    """What the running kernel shows of kexec: whether one is loaded, and how many more may be."""

    def __init__(self, folder: Path, limit: str) -> None:
        self.loaded, self.limit = folder / "loaded", folder / "limit"
        self.loaded.write_text("0\n")
        self.calls: list[list[str]] = []
        if limit:
            self.limit.write_text(f"{limit}\n")

    def load(self, argv: Sequence[str] = (), **_limits: object) -> str:
        """kexec_file_load, by whomever: it counts down from a limit, and an unlimited number stays one."""
        self.calls.append(list(argv))
        if self.limit.exists() and (left := int(self.limit.read_text())) > 0:
            self.limit.write_text(f"{left - 1}\n")
        self.loaded.write_text("1\n")
        return ""


@pytest.fixture(params=["-1", "7", ""], ids=["unlimited", "limited already", "before 6.3"])
def kernel(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(tmp_path, request.param)
    monkeypatch.setattr(kexec, "LOADED", made.loaded)
    monkeypatch.setattr(kexec, "LOADS_LEFT", made.limit)
    monkeypatch.setattr(kexec, "run", made.load)
    return made


def _loaded() -> int | None:
    return kexec.load(Path("/boot/vmlinuz"), Path("/boot/initrd"), "quiet")


def test_a_kernel_that_nobody_touched_is_still_loaded(kernel: Kernel) -> None:
    kexec.check_loaded(_loaded())


def test_a_kernel_that_somebody_unloaded_is_noticed(kernel: Kernel) -> None:
    mark = _loaded()
    kernel.loaded.write_text("0\n")
    with pytest.raises(HoldfastError, match="no longer loaded"):
        kexec.check_loaded(mark)


def test_a_kernel_that_somebody_loaded_in_its_place_is_noticed(kernel: Kernel) -> None:
    mark = _loaded()
    kernel.load()
    if mark is None:  # a kernel that does not count
        kexec.check_loaded(mark)
        return
    with pytest.raises(HoldfastError, match="another kernel may be loaded"):
        kexec.check_loaded(mark)


def test_a_host_may_load_as_many_kernels_as_before_or_nearly(kernel: Kernel) -> None:
    before = kexec.loads_left()
    _loaded()
    assert kexec.loads_left() == {None: None, 7: 6, -1: kexec.PLENTY_OF_LOADS - 1}[before]


def test_kexec_is_never_asked_to_sync(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself it does so whatever it is asked for: through all RAM of running VMs, and without a limit in time."""
    monkeypatch.setattr(kexec, "CRASH_LOADED", kernel.loaded)
    _loaded()
    kexec.unload()
    kexec.load_crash(Path("/boot/vmlinuz"), Path("/boot/initrd"), "quiet")
    kexec.unload_crash()
    with pytest.raises(CommandFailed, match="returned"):
        kexec.jump()
    assert [argv[2:4] for argv in kernel.calls] == [
        ["-s", "-l"], ["-s", "-u"], ["-s", "-p"], ["-s", "-p"], ["-e", "--no-ifdown"]
    ]  # fmt: skip
    assert all(argv[:2] == ["kexec", "--no-sync"] for argv in kernel.calls)


def test_there_is_no_jump_to_another_kernel(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every VM is suspended by then; the caller resumes them all."""
    done: list[str] = []
    nothing: Callable[..., Any] = lambda *_args, **_fields: None  # noqa: E731
    monkeypatch.setattr(kexec, "jump", lambda: done.append("jump"))
    journal: Any = SimpleNamespace(vms=[{"state": "suspended"}], record=nothing)
    mark = _loaded()
    live_update._jump(journal, mark)
    assert done == ["jump"]
    kernel.loaded.write_text("0\n")
    with pytest.raises(HoldfastError, match="no longer loaded"):
        live_update._jump(journal, mark)
    assert done == ["jump"]


@pytest.mark.parametrize(
    ("states", "jumps"),
    [
        (("suspended", "shut_down"), True),
        (("suspended", "shutting_down"), False),
        (("suspended", "pending"), False),
        (("suspended", "started"), False),
    ],
)
def test_there_is_no_jump_unless_every_vm_is_suspended_or_shut_down_on_record(
    monkeypatch: pytest.MonkeyPatch, states: tuple[str, ...], jumps: bool
) -> None:
    """Libvirt shows nobody any more; what the journal does not know to be safe is not left behind all the same."""
    done: list[str] = []
    nothing: Callable[..., Any] = lambda *_args, **_fields: None  # noqa: E731
    monkeypatch.setattr(live_update.filesystems, "sync_all_but", lambda *_: done.append("synced"))
    journal: Any = SimpleNamespace(vms=[{"state": state} for state in states], phase=lambda _name: nullcontext())
    hypervisor: Any = SimpleNamespace(running=list)
    pool: Any = SimpleNamespace(commit=nothing, mount_point=nothing)
    with nullcontext() if jumps else pytest.raises(HoldfastError, match="not every VM is suspended"):
        live_update._write_out(hypervisor, pool, journal, lambda: 60.0)
    assert bool(done) is jumps
