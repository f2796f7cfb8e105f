# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent in one file: what goes in, what makes it be packed again, and that it runs."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils import _core
from ansible_collections.holdfast.kvm.plugins.module_utils._core import packing
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError

SOURCES = {"__init__.py": b"", "agent.py": b"def main():\n    print('at work')\n    return 7\n"}


def members(packed: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        return sorted(archive.namelist())


def test_it_is_one_executable_file_with_sources_and_byte_code(tmp_path: Path) -> None:
    packed = packing.pack(SOURCES)
    assert packed.startswith(b"#!/usr/bin/python3 -I\n")
    assert "holdfast_core/agent.py" in members(packed)
    assert "holdfast_core/agent.pyc" in members(packed)


def test_the_packed_agent_runs_and_hands_on_its_exit_code(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_bytes(packing.pack(SOURCES))
    done = subprocess.run([sys.executable, "-I", str(agent)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "at work\n")


def test_byte_code_of_another_python_is_passed_over(tmp_path: Path) -> None:
    packed = packing.pack(SOURCES)
    agent = tmp_path / "agent"
    with zipfile.ZipFile(io.BytesIO(packed)) as old, zipfile.ZipFile(agent, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"\0\0\0\0" + old.read(name)[4:] if name.endswith(".pyc") else old.read(name))
    assert subprocess.run([sys.executable, "-I", str(agent)], capture_output=True, check=False).returncode == 7


def test_the_real_core_packs_and_explains_itself(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_bytes(packing.pack(packing.core_sources(_core)))
    done = subprocess.run([sys.executable, "-I", str(agent), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "live-update" in done.stdout


def test_the_core_is_read_out_of_a_zip_archive_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ansible sends modules as zip archives, so there are no files to read on the host."""
    archive = tmp_path / "payload.zip"
    with zipfile.ZipFile(archive, "w") as payload:
        payload.writestr("shipped/__init__.py", "")
        payload.writestr("shipped/agent.py", "main = 1\n")
    monkeypatch.syspath_prepend(str(archive))
    import shipped  # type: ignore[import-not-found]

    assert packing.core_sources(shipped) == {"__init__.py": b"", "agent.py": b"main = 1\n"}


def test_the_agent_is_the_same_whatever_else_was_shipped_with_a_module(tmp_path: Path) -> None:
    """What Ansible sends depends on what else the module imports: the one that installs and the one that compares."""
    whole = packing.core_sources(_core)
    assert "reservation.py" not in whole, "it is for modules alone"
    shipped = ModuleType("shipped")
    shipped.__path__ = [str(tmp_path)]
    for name, source in whole.items():
        (tmp_path / name).write_bytes(source)
    (tmp_path / "for_another_module.py").write_bytes(b"from . import agent\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing.pkgutil, "get_data", lambda _package, name: (tmp_path / name).read_bytes())
        assert packing.core_sources(shipped) == whole


def test_everything_is_packed_that_the_agent_imports() -> None:
    whole = packing.core_sources(_core)
    for name, source in whole.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                wanted = [node.module] if node.module else [alias.name for alias in node.names]
                assert {f"{module}.py" for module in wanted} <= set(whole), name


@pytest.mark.parametrize(
    "change",
    [
        {"agent.py": b"def main():\n    return 0\n"},
        {"more.py": b""},
    ],
)
def test_any_other_source_makes_it_stale(change: dict[str, bytes]) -> None:
    packed = packing.pack(SOURCES)
    assert packing.is_current(packed, SOURCES)
    assert not packing.is_current(packed, {**SOURCES, **change})
    assert packing.version_of(SOURCES) != packing.version_of({**SOURCES, **change})


@pytest.mark.parametrize("damaged", [b"", b"#!/bin/sh\n", packing.pack(SOURCES)[:-10]])
def test_something_else_in_its_place_is_never_current(damaged: bytes) -> None:
    assert not packing.is_current(damaged, SOURCES)


def test_the_version_is_read_from_the_installed_file(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    assert packing.packed_version(str(agent)) == ""
    agent.write_bytes(packing.pack(SOURCES))
    assert packing.packed_version(str(agent)) == packing.version_of(SOURCES)


def test_a_source_that_does_not_compile_is_named() -> None:
    with pytest.raises(HoldfastError, match=r"holdfast_core/bad\.py"):
        packing.pack({**SOURCES, "bad.py": b"def\n"})
