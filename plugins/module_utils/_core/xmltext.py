# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small changes to an XML text that leave every other byte as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.parsers import expat

from .errors import BadInput

_TAG = re.compile(rb"""<[^\s/>]+(?:\s+[^\s=]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*/?>""")


@dataclass(frozen=True)
class Element:
    """Where one element is: byte offsets of ``<`` of its start tag and behind its end tag."""

    namespace: str
    name: str
    start: int
    end: int
    depth: int
    attributes: dict[str, str]


@dataclass(frozen=True)
class Edit:
    """Put ``new`` in place of the bytes ``[start, end)``."""

    start: int
    end: int
    new: str


@dataclass(frozen=True)
class Document:
    """An XML text with the places of its elements, in the order of their start tags."""

    text: bytes
    elements: tuple[Element, ...]

    @classmethod
    def read(cls, xml: str) -> Document:
        """Raises BadInput for a text that is not XML, or that has a document type."""
        text = xml.encode()
        elements: list[Element] = []
        open_tags: list[tuple[str, int, dict[str, str]]] = []
        parser = expat.ParserCreate("UTF-8", namespace_separator=" ")

        def begin(name: str, attributes: dict[str, str]) -> None:
            open_tags.append((name, parser.CurrentByteIndex, attributes))

        def finish(_name: str) -> None:
            name, start, attributes = open_tags.pop()
            namespace, _, local = name.rpartition(" ")
            end = _element_end(text, start, parser.CurrentByteIndex)
            elements.append(Element(namespace, local, start, end, len(open_tags), attributes))

        parser.StartElementHandler, parser.EndElementHandler = begin, finish
        parser.StartDoctypeDeclHandler = _refuse_document_type
        try:
            parser.Parse(text, True)
        except expat.ExpatError as exc:
            raise BadInput(f"the domain XML cannot be read: {exc}", "look at the output of virsh dumpxml") from exc
        return cls(text, tuple(sorted(elements, key=lambda element: element.start)))

    @property
    def root(self) -> Element:
        return self.elements[0]

    def children(self, parent: Element, name: str = "", namespace: str | None = None) -> tuple[Element, ...]:
        return tuple(
            element
            for element in self.elements
            if element.depth == parent.depth + 1
            and parent.start < element.start < parent.end
            and (not name or element.name == name)
            and (namespace is None or element.namespace == namespace)
        )

    def child(self, name: str, namespace: str = "") -> Element | None:
        """First child of the root with this name."""
        return next(iter(self.children(self.root, name, namespace)), None)

    def required_child(self, name: str) -> Element:
        found = self.child(name)
        if found is None:
            raise BadInput(f"the domain XML has no <{name}>", "use the XML as libvirt prints it (virsh dumpxml)")
        return found

    def text_of(self, element: Element) -> str:
        return self.text[element.start : element.end].decode()

    def start_tag_end(self, element: Element) -> int:
        return _start_tag_end(self.text, element.start)

    def is_empty_tag(self, element: Element) -> bool:
        return self.start_tag_end(element) == element.end

    def content_end(self, element: Element) -> tuple[int, int]:
        """Where to insert at the end of an element's content, as an empty range."""
        place = self.text.rindex(b"</", element.start, element.end)
        return place, place

    def prefix_of(self, element: Element) -> str:
        """``qemu:`` for ``<qemu:commandline>``; empty when it has none."""
        tag = re.match(rb"<([^\s/>:]+:)?", self.text[element.start : element.end])
        return (tag[1] or b"").decode() if tag else ""

    def declared_prefix(self, element: Element, namespace: str) -> str:
        """``qemu:`` when the element's own start tag declares a prefix for the namespace; else empty."""
        tag = self.text[element.start : self.start_tag_end(element)]
        found = re.search(rb"xmlns:([^\s=]+)\s*=\s*[\"']" + re.escape(namespace.encode()) + rb"[\"']", tag)
        return found[1].decode() + ":" if found else ""

    def attribute_edit(self, element: Element, attribute: str) -> Edit:
        place = self.start_tag_end(element) - (2 if self.is_empty_tag(element) else 1)
        return Edit(place, place, attribute)

    def before(self, place: int) -> int:
        """Start of the white space in front of a place."""
        return len(self.text[:place].rstrip())

    def after(self, place: int) -> int:
        """End of the white space behind a place."""
        return len(self.text) - len(self.text[place:].lstrip())

    def edited(self, edits: Sequence[Edit]) -> str:
        text = self.text
        for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
            text = text[: edit.start] + edit.new.encode() + text[edit.end :]
        return text.decode()


def _refuse_document_type(*_declared: object) -> None:
    """libvirt never writes one; one could only smuggle in entities that grow without end."""
    raise BadInput("the domain XML has a document type", "use the XML as libvirt prints it (virsh dumpxml)")


def _element_end(text: bytes, start: int, end_tag: int) -> int:
    """End of an element; ``end_tag`` is where its end tag begins, if it has one (its first ``>`` closes it)."""
    first = _start_tag_end(text, start)
    return first if text[first - 2 : first] == b"/>" else text.index(b">", end_tag) + 1


def _start_tag_end(text: bytes, start: int) -> int:
    tag = _TAG.match(text, start)
    if tag is None:
        raise BadInput("a tag of the domain XML cannot be read", "use the XML as libvirt prints it (virsh dumpxml)")
    return tag.end()
