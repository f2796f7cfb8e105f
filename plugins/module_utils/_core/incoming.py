# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The definition in a save image, made ready for a stream of device state that comes later; and back.

Changes are made in the text itself, as in ``domain``: all the rest stays as libvirt wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence

from .xmltext import Document, Edit

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
_INCOMING = ("-incoming", "defer")


def restore_xml(xml: str) -> str:
    """The definition in a save image made ready to be started for an incoming stream that comes later.

    ``-incoming defer`` is appended to the operator's own QEMU arguments; one that an earlier restore left is dropped.
    """
    document = Document.read(without_incoming(xml))
    line = document.child("commandline", QEMU_NAMESPACE)
    if line and not document.is_empty_tag(line):
        prefix = document.prefix_of(line)
        return document.edited([Edit(*document.content_end(line), _arguments(prefix))])
    root = document.root
    prefix = document.declared_prefix(root, QEMU_NAMESPACE)
    edits = [] if prefix else [document.attribute_edit(root, f" xmlns:qemu='{QEMU_NAMESPACE}'")]
    prefix = prefix or "qemu:"
    if line:
        edits.append(Edit(line.start, line.end, ""))
    new = f"<{prefix}commandline>{_arguments(prefix)}</{prefix}commandline>\n"
    return document.edited([*edits, Edit(*document.content_end(root), new)])


def without_incoming(xml: str) -> str:
    """The definition without holdfast's ``-incoming defer``, for another start or a live migration."""
    document = Document.read(xml)
    line = document.child("commandline", QEMU_NAMESPACE)
    if line is None:
        return xml
    arguments = document.children(line, "arg", QEMU_NAMESPACE)
    starts = incoming_pairs([entry.attributes.get("value", "") for entry in arguments])
    if not starts:
        return xml
    if len(document.children(line)) == 2 * len(starts):
        return document.edited([Edit(line.start, document.after(line.end), "")])
    gone = [arguments[index + step] for index in starts for step in (0, 1)]
    return document.edited([Edit(document.before(entry.start), entry.end, "") for entry in gone])


def waits_for_state(xml: str) -> bool:
    """Whether its QEMU would wait for a state, and boot nothing."""
    document = Document.read(xml)
    line = document.child("commandline", QEMU_NAMESPACE)
    arguments = document.children(line, "arg", QEMU_NAMESPACE) if line else ()
    return bool(incoming_pairs([entry.attributes.get("value", "") for entry in arguments]))


def incoming_pairs(values: Sequence[str]) -> tuple[int, ...]:
    """Where ``-incoming defer`` begins in a list of arguments."""
    return tuple(index for index in range(len(values) - 1) if tuple(values[index : index + 2]) == _INCOMING)


# --- changing ------------------------------------------------------------------------------------------------------


def _arguments(prefix: str) -> str:
    return "".join(f"<{prefix}arg value='{value}'/>" for value in _INCOMING)
