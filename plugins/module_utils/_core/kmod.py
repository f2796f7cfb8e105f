# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module files of an installed kernel: which are needed for some modules, in the order in which they are loaded."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, List, Sequence, Tuple

from .errors import HoldfastError

_OPENERS: Dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}


def module_name(path: str) -> str:
    """``nd_pmem`` for ``kernel/drivers/nvdimm/nd-pmem.ko.xz``: as /sys/module writes it."""
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def loading_order(names: Sequence[str], dependencies: str, built_in: str) -> Tuple[str, ...]:
    """Files to load one after the other, relative to the kernel's directory; what is built in needs none.

    ``dependencies`` and ``built_in`` are the texts of modules.dep and modules.builtin. Raises HoldfastError for a
    module that the kernel does not have.
    """
    there = {module_name(line) for line in built_in.split()}
    needs = _needs(dependencies)
    order: Dict[str, None] = {}
    for name in names:
        if name in needs:
            order.update(dict.fromkeys(needs[name]))
        elif name not in there:
            raise HoldfastError(f"the kernel has no module {name}", "install the package with its modules")
    return tuple(order)


def available(dependencies: str) -> FrozenSet[str]:
    """Modules that a kernel has as files."""
    return frozenset(_needs(dependencies))


def _needs(dependencies: str) -> Dict[str, List[str]]:
    """Files by module: what it depends on, then itself. modules.dep lists the last to load first."""
    lines = (line.partition(":") for line in dependencies.splitlines() if line)
    return {module_name(path): [*reversed(after.split()), path] for path, _, after in lines}


def unpacked(path: Path) -> bytes:
    """The module as the kernel takes it, its signature included. Raises HoldfastError when it cannot be read."""
    opener = _OPENERS.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            content: bytes = file.read()
    except (OSError, EOFError, lzma.LZMAError) as exc:
        raise HoldfastError(f"the module {path} cannot be read: {exc}", "install the kernel's package again") from exc
    if not content.startswith(b"\x7fELF"):
        raise HoldfastError(f"{path} is no module, or packed in a way that is not known", "install its package again")
    return content
