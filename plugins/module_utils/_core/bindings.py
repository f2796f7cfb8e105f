# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What binds a VM to CPUs and NUMA nodes of its host, taken off where a crash kernel has not got them.

A crash kernel has RAM of one node and lacks a CPU; libvirt refuses to start a VM that is bound to what is absent. The
VM's RAM lies on its node in any case: it is in the pool. Changes are made in the text, as in ``domain``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .errors import BadInput
from .xmltext import Document, Edit, Element

# The kernel knows fewer CPUs, and fewer nodes, than that.
_RANGE = re.compile(r"(?P<without>\^?)(?P<first>[0-9]{1,4})(?:-(?P<last>[0-9]{1,4}))?", re.ASCII)
_CPUSET = re.compile(r"""\s+cpuset\s*=\s*(?:'[^']*'|"[^"]*")""")
_PINS = ("vcpupin", "emulatorpin", "iothreadpin")


@dataclass(frozen=True)
class Present:
    """Numbers of the CPUs that are online, and of the NUMA nodes that have RAM."""

    cpus: frozenset[int]
    nodes: frozenset[int]


def present(root: Path = Path("/")) -> Present:
    """What the running kernel has. A kernel without NUMA has node 0."""
    system = root / "sys/devices/system"
    try:
        nodes = numbers((system / "node/has_memory").read_text())
    except OSError:
        nodes = (0,)
    return Present(frozenset(numbers((system / "cpu/online").read_text())), frozenset(nodes))


def numbers(text: str) -> tuple[int, ...]:
    """Those of a set as libvirt and the kernel write one, ``0-2,^1``; none for an empty one. Raises BadInput."""
    taken: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _RANGE.fullmatch(part)
        if not match:
            raise BadInput(f"{text!r} is not a set of CPUs or NUMA nodes", "look at virsh dumpxml")
        several = range(int(match["first"]), int(match["last"] or match["first"]) + 1)
        taken = taken.difference(several) if match["without"] else taken.union(several)
    return tuple(sorted(taken))


def loosened(xml: str, here: Present) -> tuple[str, tuple[str, ...]]:
    """The definition without what binds it to something absent, and the names of the elements that were changed."""
    document = Document.read(xml)
    changed: list[Element] = []
    edits: list[Edit] = []
    for entry in _binding(document):
        nodesets = [each.attributes.get("nodeset", "") for each in document.children(entry)]
        nodes = {node for text in nodesets for node in numbers(text)}
        if nodes <= here.nodes and set(numbers(entry.attributes.get("cpuset", ""))) <= here.cpus:
            continue
        changed.append(entry)
        if entry.name == "vcpu":
            edits.append(Edit(entry.start, entry.end, _CPUSET.sub("", document.text_of(entry), count=1)))
        else:
            edits.append(Edit(document.before(entry.start), entry.end, ""))
    return document.edited(edits), tuple(dict.fromkeys(entry.name for entry in changed))


def _binding(document: Document) -> tuple[Element, ...]:
    """Each element that may bind, none within another one."""
    cputune = document.child("cputune")
    pins = [entry for entry in document.children(cputune) if entry.name in _PINS] if cputune else []
    return tuple(entry for entry in (document.child("vcpu"), document.child("numatune"), *pins) if entry)
