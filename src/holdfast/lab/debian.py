# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian packages for the lab, from wherever this machine's own apt gets them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError

from ..command import run

SUITE = "trixie"
# What apt says of somebody else who is at work; its lock on installing it waits for by itself, that on the lists not.
LOCKED = "Could not get lock"
OTHERS_LIMIT_S = 300.0
LOOK_S = 5.0
WAITING = ("-o", f"DPkg::Lock::Timeout={OTHERS_LIMIT_S:.0f}")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def _repositories() -> list[str]:
    targets = _index_targets()
    if not targets.strip():  # a machine whose apt has never been updated lists nothing
        update()
        targets = _index_targets()
    debian = {line.split()[0].rstrip("/") for line in targets.splitlines() if " Debian" in line}
    if not debian:
        raise HoldfastError("apt on this machine knows no Debian repository", "add one and run apt-get update")
    return sorted(debian)


def _index_targets() -> str:
    return run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL) $(RELEASE)"])


def sources(suite: str = SUITE) -> list[str]:
    """The ``deb`` lines of a Debian release with updates, security and backports, for mmdebstrap."""
    known = _repositories()
    security = [uri for uri in known if "security" in uri]
    plain = [uri for uri in known if "security" not in uri]
    if not plain:
        raise HoldfastError("apt on this machine knows only a security repository", "add the main Debian repository")
    suites = [suite, f"{suite}-updates", f"{suite}-backports"]
    lines = [f"deb [signed-by={KEYRING}] {plain[0]} {name} main" for name in suites]
    return lines + [f"deb [signed-by={KEYRING}] {uri} {suite}-security main" for uri in security[:1]]


def install(packages: dict[str, str]) -> None:
    """Install what is missing. ``packages`` maps a program to the package that has it."""
    missing = sorted({package for program, package in packages.items() if not shutil.which(program)})
    if missing:
        update()
        _apt_install(missing, [])


def install_from_backports(package: str, codename: str) -> None:
    """Install a package from this machine's backports, by a private source list: its own configuration stays."""
    plain = next(uri for uri in _repositories() if "security" not in uri)
    with TemporaryDirectory() as scratch:
        parts = Path(scratch, "sources")
        parts.mkdir()
        Path(scratch, "lists/partial").mkdir(parents=True)
        suites = [codename, f"{codename}-updates", f"{codename}-backports"]
        text = "".join(f"deb [signed-by={KEYRING}] {plain} {name} main\n" for name in suites)
        (parts / "backports.list").write_text(text)
        options = [f"Dir::Etc::sourceparts={parts}", "Dir::Etc::sourcelist=/dev/null"]
        options += [f"Dir::State::lists={scratch}/lists", "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache="]
        flags = [word for option in options for word in ("-o", option)]
        update(flags)
        _apt_install([package], [*flags, "-t", f"{codename}-backports"])


def update(flags: Sequence[str] = ()) -> None:
    """Refresh the lists, once nobody else does so, as a machine does that has just started. Raises CommandFailed."""
    deadline = time.monotonic() + OTHERS_LIMIT_S
    while True:
        try:
            run(["apt-get", "update", "-q", *flags], env={"LC_ALL": "C"})
            return
        except CommandFailed as exc:
            if LOCKED not in str(exc) or time.monotonic() > deadline:
                raise
        time.sleep(LOOK_S)


def _apt_install(packages: list[str], flags: list[str]) -> None:
    run(
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", *WAITING, *flags, *packages],
        timeout_s=1800,
        env={"DEBIAN_FRONTEND": "noninteractive"},
        hint="the lab needs root and a working apt on a Debian machine",
    )
