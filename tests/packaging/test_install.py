# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``pip install holdfast`` brings the command and the collection, and Ansible finds both without configuration."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Installation

ROOT = Path(__file__).parents[2]
CARRIED = ("meta", "playbooks", "plugins", "roles")
IN_WHEEL = "ansible_collections/holdfast/kvm/"


def test_both_carry_the_same_files(wheel: Path, from_tarball: Path) -> None:
    names = [name.removeprefix(IN_WHEEL) for name in zipfile.ZipFile(wheel).namelist() if name.startswith(IN_WHEEL)]
    in_collection = {
        str(path.relative_to(from_tarball))
        for part in CARRIED
        for path in (from_tarball / part).rglob("*")
        if path.is_file()
    }
    assert {name for name in names if name != "galaxy.yml"} == in_collection


def test_neither_carries_what_is_not_theirs(wheel: Path, from_tarball: Path) -> None:
    in_wheel = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in in_wheel if not name.endswith(".dist-info")} == {"ansible_collections", "holdfast"}
    foreign = ("build", "src", "tests", "tools", "inventory", "pyproject.toml", ".venv", ".git")
    assert [name for name in foreign if (from_tarball / name).exists()] == []
    assert list(from_tarball.rglob("__pycache__")) == []


def test_the_version_is_that_of_galaxy_yml(from_wheel: Installation, from_tarball: Path, version: str) -> None:
    listed = json.loads(from_wheel.run("ansible", "galaxy", "collection", "list", "--format", "json").stdout)
    assert [found["holdfast.kvm"]["version"] for found in listed.values() if "holdfast.kvm" in found] == [version]
    manifest = json.loads((from_tarball / "MANIFEST.json").read_text())
    assert manifest["collection_info"]["version"] == version


def test_ansible_documents_every_module(from_wheel: Installation) -> None:
    modules = {f"holdfast.kvm.{path.stem}" for path in (ROOT / "plugins" / "modules").glob("*.py")}
    listed = json.loads(from_wheel.run("ansible", "doc", "--json", "--list", "holdfast.kvm").stdout)
    assert set(listed) == modules
    documents = json.loads(from_wheel.run("ansible", "doc", "--json", *sorted(modules)).stdout)
    assert set(documents) == modules


def test_ansible_documents_every_role(from_wheel: Installation) -> None:
    roles = {f"holdfast.kvm.{path.parents[1].name}" for path in ROOT.glob("roles/*/meta/argument_specs.yml")}
    listed = json.loads(from_wheel.run("ansible", "doc", "--json", "--type", "role", "--list", "holdfast.kvm").stdout)
    assert set(listed) == roles


@pytest.mark.parametrize("playbook", sorted(path.stem for path in ROOT.glob("playbooks/*.yml")))
def test_a_playbook_is_found_by_name(from_wheel: Installation, playbook: str) -> None:
    from_wheel.run("ansible", "playbook", "--syntax-check", "--inventory", "hv1,", f"holdfast.kvm.{playbook}")


def test_the_command_answers(from_wheel: Installation) -> None:
    assert "upgrade" in from_wheel.command("holdfast", "--help").stdout
