# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pack the core into one executable file: the agent.

The file is a zip archive with a ``#!`` line, holding the package ``holdfast_core`` and a ``__main__``. Every source has
its compiled form beside it, marked as not to be checked against the source: that saves the compilation at each start.
zipimport looks for ``name.pyc`` first; a Python with another byte code skips it and takes the source.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pkgutil
import py_compile
import re
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Mapping

from .errors import HoldfastError

PATH = Path("/usr/local/sbin/holdfast-agent")
PACKAGE = "holdfast_core"
# Isolated from the environment and the user's site directory, but not from the distribution's packages (no -S):
# libvirt's binding is one of them.
SHEBANG = b"#!/usr/bin/python3 -I\n"
MAIN = f"from {PACKAGE}.agent import main\n\nraise SystemExit(main())\n".encode()

# ``from .module import …``, or ``from . import module, …``, maybe in brackets over several lines.
_OWN_IMPORT = re.compile(r"^\s*from \.(\w*) import (\([^)]*\)|[^\n#]+)", re.MULTILINE)
_EPOCH = (1980, 1, 1, 0, 0, 0)
_RW_R_R = 0o100644 << 16


def core_sources(package: ModuleType) -> dict[str, bytes]:
    """Source of each module of the agent, by file name; from a directory and from a zip archive alike.

    Not of all that is in the package: what Ansible ships of it with a module depends on what else that module imports.
    Raises HoldfastError when the package cannot give its sources.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    sources = {"__init__.py": b""}
    for name in names:
        source = pkgutil.get_data(package.__name__, f"{name}.py")
        if source is None:
            raise HoldfastError(f"no source of {package.__name__}.{name} to pack", "install the collection again")
        sources[f"{name}.py"] = source
    if "agent.py" not in sources:
        raise HoldfastError(f"{package.__name__} has no agent to pack", "install the collection again")
    return _reached(sources, "agent.py")


def _reached(sources: Mapping[str, bytes], start: str) -> dict[str, bytes]:
    """What this file imports of its own package, in its functions as well, and what that imports in turn."""
    found, left = {"__init__.py"}, [start]
    while left:
        name = left.pop()
        if name not in found and name in sources:
            found.add(name)
            for module, names in _OWN_IMPORT.findall(sources[name].decode()):
                listed = [module] if module else names.strip("()").split(",")
                left += [f"{words[0]}.py" for words in map(str.split, listed) if words]
    return {name: source for name, source in sources.items() if name in found}


def version_of(sources: Mapping[str, bytes], magic: bytes = importlib.util.MAGIC_NUMBER) -> str:
    """Twelve hexadecimal digits that change with any source, and with the byte code of the Python that packs them.

    ``magic`` is the number of that byte code, of this Python unless said otherwise.
    """
    digest = hashlib.sha256(magic + SHEBANG)
    for name, source in sorted(_members(sources).items()):
        digest.update(f"{name} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:12]


def pack(sources: Mapping[str, bytes]) -> bytes:
    """The executable file. Raises HoldfastError when a source does not compile."""
    buffer = io.BytesIO()
    # Stored, not deflated: a start then needs no zlib.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, source in sorted(_members(sources).items()):
            archive.writestr(_entry(name), source)
            archive.writestr(_entry(name + "c"), _compiled(name, source))
        archive.comment = version_of(sources).encode()
    return SHEBANG + buffer.getvalue()


def is_current(packed: bytes, sources: Mapping[str, bytes]) -> bool:
    """Whether ``packed`` is what ``pack`` would make of ``sources``.

    Compares sources and version, not byte code: that may differ from one run to the next for the same meaning.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            return (
                packed.startswith(SHEBANG)
                and archive.comment == version_of(sources).encode()
                and all(archive.read(name) == source for name, source in _members(sources).items())
            )
    except (zipfile.BadZipFile, KeyError):
        return False


def packed_version(path: str) -> str:
    """The version of an installed agent; empty when there is none, or when it is not one of ours."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment.decode("ascii", errors="replace")
    except (OSError, zipfile.BadZipFile):
        return ""


def _members(sources: Mapping[str, bytes]) -> dict[str, bytes]:
    return {"__main__.py": MAIN, **{f"{PACKAGE}/{name}": source for name, source in sources.items()}}


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = _RW_R_R
    return entry


def _compiled(name: str, source: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        plain, compiled = Path(directory, "source.py"), Path(directory, "source.pyc")
        plain.write_bytes(source)
        try:
            py_compile.compile(
                str(plain),
                cfile=str(compiled),
                dfile=name,
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        except py_compile.PyCompileError as error:
            raise HoldfastError(f"{name} cannot be packed: {error.msg}", "install the collection again") from error
        return compiled.read_bytes()
