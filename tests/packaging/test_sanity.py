# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible's own sanity tests, over the collection as it is installed.

Those that fetch packages for an environment of their own (import, pylint, validate-modules and others) are left out:
this suite needs no network. ``tests/unit/test_house.py`` holds documentation and argument specs together instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SANITY = (
    "action-plugin-docs",
    "compile",
    "empty-init",
    "ignores",
    "line-endings",
    "no-assert",
    "no-get-exception",
    "no-illegal-filenames",
    "no-smart-quotes",
    "replace-urlopen",
    "shebang",
    "symlinks",
    "use-argspec-type-path",
    "use-compat-six",
)


@pytest.fixture(scope="session")
def tree(from_tarball: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that ansible-test accepts: a real directory of the right name, and a git repository.

    The collection does not carry its tests, so ansible-test's configuration is put beside it.
    """
    copy = tmp_path_factory.mktemp("sanity") / "ansible_collections" / "holdfast" / "kvm"
    shutil.copytree(from_tarball, copy)
    (copy / "tests").mkdir()
    shutil.copy(repository / "tests" / "config.yml", copy / "tests")
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    return copy


def test_sanity(tree: Path) -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    chosen = [option for name in SANITY for option in ("--test", name)]
    ansible_test = Path(sys.executable).with_name("ansible-test")
    # Git must not look outside the copy, nor ansible-test into the user's home.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "GIT_"))}
    environment |= {"HOME": str(tree.parents[2]), "PATH": f"{ansible_test.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [ansible_test, "sanity", "--color", "no", "--python", python, *chosen],
        cwd=tree, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
