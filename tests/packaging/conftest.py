# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wheel and the collection, built once and installed away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml


@dataclass(frozen=True)
class Installation:
    """A Python that has holdfast, and an environment that has nothing else of this machine's user."""

    python: Path
    environment: dict[str, str]
    directory: Path

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run ``python -m ARGUMENTS`` away from the checkout; raises AssertionError with its output when it fails."""
        return checked([self.python, "-m", *arguments], self.directory, self.environment)

    def command(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command that the wheel installed, in the same way."""
        return checked([self.python.with_name(name), *arguments], self.directory, self.environment)


def checked(
    command: list[str | Path], directory: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done


def clean_environment(home: Path) -> dict[str, str]:
    """An empty home, so that no collection installed there is found, and an empty ansible.cfg."""
    home.mkdir()
    configuration = home / "ansible.cfg"
    configuration.touch()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON"))}
    return kept | {"HOME": str(home), "ANSIBLE_CONFIG": str(configuration), "ANSIBLE_NOCOLOR": "1"}


@pytest.fixture(scope="session")
def version(repository: Path) -> str:
    return yaml.safe_load((repository / "galaxy.yml").read_text())["version"]


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as a packager would: what the sdist forgets is missing here too."""
    target = tmp_path_factory.mktemp("wheel")
    checked([sys.executable, "-m", "build", "--no-isolation", "--outdir", target, repository], repository)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="session")
def tarball(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("tarball")
    checked([sys.executable, "-m", "ansible", "galaxy", "collection", "build", "--output-path", target], repository)
    return next(target.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def from_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel in a virtual environment of its own.

    Its dependencies are lent by the environment that runs the tests, by one line in a .pth file, since fetching and
    compiling them again takes a minute. Such a line adds a directory and reads no .pth file in it, so the editable
    install of the checkout stays unseen.
    """
    directory = tmp_path_factory.mktemp("from-wheel")
    environment = clean_environment(directory / "home")
    checked([sys.executable, "-m", "venv", "--without-pip", "venv"], directory)
    python = directory / "venv" / "bin" / "python"
    find_purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = Path(checked([python, "-c", find_purelib], directory, environment).stdout.strip())
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    checked(install, directory)
    (purelib / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installation(python, environment, directory)


@pytest.fixture(scope="session")
def from_tarball(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``ansible-galaxy`` put the collection, without any server to ask."""
    directory = tmp_path_factory.mktemp("from-tarball")
    environment = clean_environment(directory / "home")
    environment["ANSIBLE_COLLECTIONS_PATH"] = str(directory)
    # --force: galaxy also sees the checkout's own collection, and would have nothing to do.
    install = ["collection", "install", "--offline", "--force", "--collections-path", directory, tarball]
    checked([sys.executable, "-m", "ansible", "galaxy", *install], directory, environment)
    return directory / "ansible_collections" / "holdfast" / "kvm"
