# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine: Ansible, the copy of the collection that it uses, Python, and the keys to the hosts."""

from __future__ import annotations

import json
import os
import platform
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import paramiko

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed

from ..command import run
from ..upgrade import collections_root, installed_tool
from .findings import Examination, Finding, Level, good, problem, warning

COLLECTION = "holdfast.kvm"
OLDEST_ANSIBLE = (2, 19)
OLDEST_PYTHON = (3, 11)
KEYS = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")


@dataclass(frozen=True)
class Copy:
    """One copy of the collection on this machine: the directory that holds galaxy.yml or MANIFEST.json."""

    path: Path

    @property
    def version(self) -> str:
        """Empty when it does not say."""
        manifest, galaxy = self.path / "MANIFEST.json", self.path / "galaxy.yml"
        try:
            if manifest.is_file():
                return str(json.loads(manifest.read_text())["collection_info"]["version"])
            found = re.search(r"^version: *(\S+)", galaxy.read_text(), re.MULTILINE)
            return found[1] if found else ""
        except (OSError, KeyError, TypeError, ValueError):
            return ""

    def __str__(self) -> str:
        return f"{self.path} (version {self.version or 'unknown'})"


def examine(environment: Mapping[str, str]) -> Examination:
    """Everything about this machine. ``environment`` is what ``holdfast`` gives to Ansible."""
    findings = [_python(), _ansible(metadata.version("ansible-core")), *_collection(environment), *_ssh()]
    return Examination("this machine", tuple(findings))


def _python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return problem("Python", found, "install holdfast under Python 3.11 or newer")
    return good("Python", found)


def _ansible(version: str) -> Finding:
    tool = installed_tool("ansible-playbook")
    found = f"ansible-core {version}, {tool}"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_ANSIBLE:
        return problem("Ansible", found, "install ansible-core 2.19 or newer beside holdfast")
    return good("Ansible", found)


def _collection(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Which copy runs, and whether another one would run without ``holdfast``, or lies in wait."""
    own = Copy(collections_root() / "ansible_collections" / Path(*COLLECTION.split(".")))
    used, plain = copy_used(environment), copy_used({})
    yield judged_copies(own, used, plain)
    yield from unused_copies([one for one in (used, plain, own) if one], copies_there(environment))


def judged_copies(own: Copy, used: Copy | None, plain: Copy | None) -> Finding:
    """``used``: by ``holdfast``; ``plain``: by an ansible-playbook that is called by hand, here and now."""
    if used is None or not _same(used, own):
        found = f"holdfast's own copy is {own}, and Ansible uses {used or 'none'}"
        return problem("collection", found, "install holdfast again, and look at ANSIBLE_COLLECTIONS_PATH")
    if plain is None:
        remedy = f"set ANSIBLE_COLLECTIONS_PATH={collections_root()} for it, or use holdfast only"
        return warning("collection", f"{used}; ansible-playbook called by hand here finds none", remedy)
    if not _same(plain, own):
        remedy = f"remove {plain.path}, or name {collections_root()} first in collections_path"
        return warning("collection", f"{used}, but ansible-playbook called by hand here uses {plain}", remedy)
    return good("collection", str(used))


def unused_copies(used: Sequence[Copy], there: Sequence[Copy]) -> Iterator[Finding]:
    """A further copy does nothing until a path changes, and then its version matters."""
    for copy in there:
        if not any(_same(copy, one) for one in used):
            found = f"a further copy is there, unused: {copy}"
            yield warning("collection", found, "remove it, unless somebody works on it")


def _same(first: Copy, second: Copy) -> bool:
    return first.path.resolve() == second.path.resolve()


def copy_used(environment: Mapping[str, str]) -> Copy | None:
    """The copy that Ansible loads modules from with this environment; None when it finds none."""
    tool = installed_tool("ansible-doc")
    try:
        found = json.loads(run([tool, "--json", f"{COLLECTION}.host_info"], env=environment, timeout_s=120))
        file = Path(found[f"{COLLECTION}.host_info"]["doc"]["filename"])
    except (CommandFailed, ValueError, KeyError):
        return None
    return Copy(file.parents[2])


def copies_there(environment: Mapping[str, str]) -> list[Copy]:
    """All copies that Ansible can see, used or not."""
    tool = installed_tool("ansible-galaxy")
    try:
        listed = json.loads(run([tool, "collection", "list", COLLECTION, "--format", "json"], env=environment))
    except (CommandFailed, ValueError):
        return []
    return [Copy(Path(root) / Path(*COLLECTION.split("."))) for root in listed]


def _ssh() -> Iterator[Finding]:
    try:
        run(["ssh", "-V"], timeout_s=30)
    except CommandFailed as error:
        yield problem("ssh", error.message, "install openssh-client: Ansible reaches hosts with it")
        return
    yield from judged_keys(Path("~/.ssh").expanduser(), _agents_keys())


def _agents_keys() -> int:
    if not os.environ.get("SSH_AUTH_SOCK"):
        return 0
    try:
        return len(paramiko.Agent().get_keys())
    except paramiko.SSHException:
        return 0


def judged_keys(folder: Path, in_agent: int) -> list[Finding]:
    """The keys that ssh offers by itself. The inventory may name others; then their hosts say whether they fit."""
    keys = [folder / name for name in KEYS if (folder / name).is_file()]
    findings = [_open_key(key) for key in keys if stat.S_IMODE(key.stat().st_mode) & 0o077]
    told = [f"{in_agent} in the agent"] if in_agent else []
    told += [str(key) for key in keys]
    if told:
        return [*findings, Finding("ssh keys", Level.GOOD, ", ".join(told))]
    remedy = "make one (ssh-keygen), start the agent, or name one with ansible_ssh_private_key_file"
    return [warning("ssh keys", f"none in {folder}, and none in an agent", remedy)]


def _open_key(key: Path) -> Finding:
    mode = stat.S_IMODE(key.stat().st_mode)
    return problem("ssh keys", f"others may read {key} (mode {mode:04o}), so ssh ignores it", f"chmod 600 {key}")
