# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM's definition (libvirt's domain XML) says, and the few changes holdfast makes to one.

Changes are made in the text itself, at the places where the parser found the elements: all the rest stays byte for byte
as the operator or libvirt wrote it, prefixes, comments and white space included.
"""

from __future__ import annotations

import posixpath
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from html import escape

from . import devices as dev
from . import images
from .bindings import numbers
from .errors import BadInput, VmError
from .facts import RamBacking, VmFacts
from .incoming import QEMU_NAMESPACE, incoming_pairs
from .resources import RamFile
from .xmltext import Document, Edit, Element

HOLDFAST_NAMESPACE = "urn:holdfast:kvm:1"
# What a VM that was moved away carries with it, for people to see; the record that is acted on is its home's.
EVACUATED_NAMESPACE = "urn:holdfast:evacuated:1"
# Of its own: `virsh metadata --set` replaces everything of its namespace, and the one above holds holdfast's record.
TAGS_NAMESPACE = "urn:holdfast:tags:1"

_RECORD = "original-memory-backing"
_SHORT_NAME_LENGTH = 20
_MIB = 1 << 20
_LARGEST_SIZE = 1 << 62
# What may stand before the root element, apart from a document type.
_PROLOG = re.compile(r"\ufeff?(?:\s+|<\?.*?\?>|<!--.*?-->)*", re.DOTALL)
# libvirt's words for <memoryBacking> and what is below it (domaincommon.rng).
_BACKING_WORDS = frozenset("memoryBacking hugepages page nosharepages locked source access allocation discard".split())

# Modes of <numatune> that no page may break; others are wishes.
_BINDING = ("strict", "restrictive")

# Names of QEMU's default RAM block by machine type (default_ram_id); with NUMA cells libvirt names them ram-node<N>.
_RAM_BLOCKS = {"pc": "pc.ram", "q35": "pc.ram", "microvm": "microvm.ram", "virt": "mach-virt.ram"}

# libvirt's scaled integers: <memory unit='...'>.
_UNITS = {
    "b": 1, "bytes": 1,
    "kb": 10**3, "k": 1 << 10, "kib": 1 << 10,
    "mb": 10**6, "m": 1 << 20, "mib": 1 << 20,
    "gb": 10**9, "g": 1 << 30, "gib": 1 << 30,
    "tb": 10**12, "t": 1 << 40, "tib": 1 << 40,
}  # fmt: skip


# --- reading -------------------------------------------------------------------------------------------------------


def vm_facts(
    xml: str,
    *,
    state: str = "shutoff",
    domain_id: int | None = None,
    definition: str = "",
    job: str = "",
    persistent: bool = True,
    autostart: bool = False,
    ram_files_present: Sequence[str] = (),
    migration_blockers: Sequence[str] = (),
) -> VmFacts:
    """Facts of one VM from ``xml``, its running definition if it runs, and from what only libvirt and QEMU know.

    ``definition`` is the persistent definition, where the next start takes its RAM from; ``domain_id`` is needed only
    when ``xml`` has none. Raises BadInput when an XML text cannot be used.
    """
    root = _parsed(xml)
    machines = root.find("devices")
    devices = machines if machines is not None else ET.Element("devices")
    cpu = root.find("cpu")
    files = _ram_files(root)
    tsc = root.find("clock/timer[@name='tsc']")
    frequency = tsc.get("frequency") if tsc is not None else None
    return VmFacts(
        # With its blanks: stripped, it would be another VM's.
        name=root.findtext("name") or "",
        uuid=_text(root, "uuid"),
        title=_text(root, "title"),
        tags=tuple(_text(root, f"metadata/{{{TAGS_NAMESPACE}}}tags").split()),
        state=state,
        domain_id=_number(root.get("id", "-1")) if domain_id is None else domain_id,
        ram_bytes=sum(entry.size_bytes for entry in files),
        vcpus=_number(_text(root, "vcpu") or "1"),
        machine=_attribute(root, "os/type", "machine"),
        emulator=_text(root, "devices/emulator"),
        cpu_mode=cpu.get("mode", "custom") if cpu is not None else "",
        cpu_model=_text(root, "cpu/model"),
        features=_cpu_features(root),
        tsc_frequency=_number(frequency) if frequency else None,
        firmware=_firmware(root),
        ram_backing=_ram_backing(root),
        ram_discard=_discards(root),
        ram_files=files,
        ram_files_present=tuple(ram_files_present),
        memory_devices=dev.memory_devices(devices),
        disks=dev.disks(devices),
        bridges=dev.sources(devices, "bridge"),
        networks=dev.sources(devices, "network"),
        hostdevs=dev.hostdevs(devices),
        filesystems=dev.filesystems(devices),
        video_bytes=dev.video_bytes(devices),
        launch_security=_attribute(root, "launchSecurity", "type"),
        unsafe_devices=dev.unsafe(devices) + _unsafe_features(root),
        watched_devices=dev.watched(devices) + _own_arguments(root),
        migration_blockers=tuple(migration_blockers),
        job=job or dev.block_job(devices),
        persistent=persistent,
        autostart=autostart,
        definition_converted=_in_pool(_parsed(definition)) if definition else False,
    )


def emulator_of(xml: str) -> str:
    """The QEMU binary that a definition names; empty when it leaves that to libvirt. Raises BadInput."""
    return _text(_parsed(xml), "devices/emulator")


def ram_in_file(xml: str) -> bool:
    """Whether the RAM of a VM with this definition is a file, or what is in a file's place, wherever it runs."""
    return _ram_backing(_parsed(xml)) in (RamBacking.FILE_SHARED, RamBacking.FILE_PRIVATE)


def live_directory(domain_id: int, name: str) -> str:
    """libvirt's name for a running VM's private directory: ``<id>-<first 20 characters of the name>``.

    As ``virDomainDefGetShortName`` of a daemon in a UTF-8 locale makes it; see ``live_directories``.
    """
    return f"{domain_id}-{name[:_SHORT_NAME_LENGTH]}"


def live_directories(domain_id: int, name: str) -> tuple[str, ...]:
    """Every name libvirt may have given that directory, the likeliest first.

    In a locale that cannot decode the name (the daemon started with LANG=C), libvirt counts bytes instead of
    characters and may cut one in two: such a name has surrogate escapes, as ``os.fsdecode`` makes them.
    Raises VmError for a name that would lead elsewhere; libvirt defines no such VM.
    """
    if "/" in name or "\0" in name:
        raise VmError(f"VM {name!r}: its name cannot be part of a path", "give it a name without a slash")
    cut = name.encode("utf-8", "surrogateescape")[:_SHORT_NAME_LENGTH]
    by_bytes = f"{domain_id}-{cut.decode('utf-8', 'surrogateescape')}"
    return tuple(dict.fromkeys((live_directory(domain_id, name), by_bytes)))


def _parsed(xml: str) -> ET.Element:
    # libvirt never writes a document type; one could only smuggle in entities that grow without end.
    # It stands before the root element; the words themselves may be part of any VM's description.
    prolog = _PROLOG.match(xml)
    if xml.startswith("<!", prolog.end() if prolog else 0):
        raise BadInput("the domain XML has a document type", "use the XML as libvirt prints it (virsh dumpxml)")
    try:
        root = ET.fromstring(xml)
    except (ET.ParseError, ValueError) as error:
        raise BadInput(f"the domain XML cannot be read: {error}", "look at the output of virsh dumpxml") from error
    if root.tag != "domain" or root.find("memory") is None:
        raise BadInput(f"<{root.tag}> is not a libvirt domain with <memory>", "look at the output of virsh dumpxml")
    return root


def _text(root: ET.Element, path: str) -> str:
    return (root.findtext(path) or "").strip()


def _attribute(root: ET.Element, path: str, name: str) -> str:
    element = root.find(path)
    return element.get(name, "") if element is not None else ""


def _number(text: str) -> int:
    if not re.fullmatch(r"-1|[0-9]{1,18}", text.strip(), re.ASCII):
        raise BadInput(f"{text!r} in the domain XML is not a number", "look at virsh dumpxml")
    return int(text)


def _bytes(number: str, unit: str) -> int:
    try:
        size = int(number) * _UNITS[unit.lower()]
    except (KeyError, ValueError):
        size = -1
    if not 0 <= size < _LARGEST_SIZE:
        raise BadInput(f"{number} {unit} in the domain XML is not a size", "look at virsh dumpxml")
    return size


def _size(element: ET.Element) -> int:
    return _bytes((element.text or "").strip(), element.get("unit", "KiB"))


def _ram_files(root: ET.Element) -> tuple[RamFile, ...]:
    cells = root.findall("cpu/numa/cell")
    if cells:
        sized = ((cell, _bytes(cell.get("memory", "0"), cell.get("unit", "KiB"))) for cell in cells)
        return tuple(
            RamFile(f"ram-node{_cell_number(cell)}", _whole_mib(size), _bound_to(root, cell))
            for cell, size in sized
            if size
        )
    # <memory> counts memory modules too; they have files of their own.
    modules = sum(_size(entry) for entry in root.findall("devices/memory/target/size"))
    main = sum(_size(entry) for entry in root.findall("memory")) - modules
    return (RamFile(_ram_block(_attribute(root, "os/type", "machine")), _whole_mib(main), _bound_to(root)),)


def _bound_to(root: ET.Element, cell: ET.Element | None = None) -> tuple[int, ...]:
    """The host's NUMA nodes that must hold a cell's RAM, or all of a VM's: ``strict`` is what libvirt takes unsaid."""
    named = root.findall("numatune/memory")
    if cell is not None:
        number = _cell_number(cell)
        named = [entry for entry in root.findall("numatune/memnode") if entry.get("cellid") == str(number)] or named
    return next((numbers(entry.get("nodeset", "")) for entry in named if entry.get("mode", "strict") in _BINDING), ())


def _cell_number(cell: ET.Element) -> int:
    """Part of a file's name, so nothing but a number."""
    text = cell.get("id", "")
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII):
        raise BadInput(f"{text!r}, of a NUMA cell in the domain XML, is not a number", "look at virsh dumpxml")
    return int(text)


def _ram_block(machine: str) -> str:
    family = "q35" if "q35" in machine else machine.split("-")[0]
    return _RAM_BLOCKS.get(family, "pc.ram")


def _whole_mib(size: int) -> int:
    return -(-size // _MIB) * _MIB


def _cpu_features(root: ET.Element) -> tuple[str, ...]:
    named = [
        entry.get("name", "")
        for entry in root.findall("cpu/feature")
        if entry.get("policy", "require") in ("require", "force")
    ]
    # QEMU gives an unmigratable CPU everything the host has, the invariant TSC included.
    if _attribute(root, "cpu", "migratable") == "off":
        named.append("invtsc")
    return tuple(dict.fromkeys(named))


def _firmware(root: ET.Element) -> str:
    is_efi = _attribute(root, "os", "firmware") == "efi" or _attribute(root, "os/loader", "type") == "pflash"
    return "efi" if is_efi else "bios"


def _ram_backing(root: ET.Element) -> RamBacking:
    if root.find("memoryBacking/hugepages") is not None:
        return RamBacking.HUGEPAGES
    source = _attribute(root, "memoryBacking/source", "type")
    if source == "memfd":
        return RamBacking.MEMFD
    if source != "file":
        return RamBacking.ANONYMOUS
    general = _attribute(root, "memoryBacking/access", "mode")
    access = {cell.get("memAccess", general) for cell in root.findall("cpu/numa/cell")} or {general}
    return RamBacking.FILE_SHARED if access == {"shared"} else RamBacking.FILE_PRIVATE


def _discards(root: ET.Element) -> bool:
    by_cell = any(cell.get("discard") == "yes" for cell in root.findall("cpu/numa/cell"))
    return by_cell or root.find("memoryBacking/discard") is not None


def _in_pool(root: ET.Element) -> bool:
    return _ram_backing(root) is RamBacking.FILE_SHARED and not _discards(root)


def _unsafe_features(root: ET.Element) -> tuple[str, ...]:
    passthrough = _attribute(root, "features/hyperv", "mode") == "passthrough"
    return ("Hyper-V enlightenments in passthrough mode",) if passthrough else ()


def _own_arguments(root: ET.Element) -> tuple[str, ...]:
    arguments = root.findall("qemu:commandline/qemu:arg", {"qemu": QEMU_NAMESPACE})
    values = [entry.get("value", "") for entry in arguments]
    ours = incoming_pairs(values)
    return ("QEMU arguments of your own: nobody checked them",) if len(values) > 2 * len(ours) else ()


def to_pool_backing(xml: str) -> tuple[str, bool]:
    """A persistent definition whose next start has its RAM in the pool; and whether that changed anything.

    Anonymous, private and memfd RAM becomes a shared file, allocated on demand (preallocation would make the pause
    grow with RAM); ``<discard/>`` goes, since it tells QEMU to throw the RAM away; ``<locked/>`` and
    ``<nosharepages/>`` stay. What was there is recorded in ``<metadata>`` for ``from_pool_backing``. Huge pages are
    refused with BadInput: the operator reserved them for this VM, and they would lie idle beside the pool without
    anybody having said so.
    """
    root = _parsed(xml)
    _refuse_unconvertible(root)
    if _in_pool(root):
        return xml, False
    document = Document.read(_without_record(xml))
    backing = document.child("memoryBacking")
    if backing:
        place = Edit(backing.start, backing.end, _pool_backing(document, backing))
    else:
        memory = document.child("currentMemory") or document.required_child("memory")
        place = Edit(memory.end, memory.end, "\n  " + _pool_backing(document, None))
    record = _record_edit(document, document.text_of(backing) if backing else "")
    return document.edited([record, place]), True


def from_pool_backing(xml: str) -> tuple[str, bool]:
    """The definition as it was before ``to_pool_backing``; and whether that changed anything.

    A ``<memoryBacking>`` that somebody has changed since is left alone: only the record goes. Raises BadInput for a
    record that holdfast did not write: a VM's metadata may be written by others than its definition.
    """
    root = _parsed(xml)
    record = root.find(f"metadata/{{{HOLDFAST_NAMESPACE}}}{_RECORD}")
    if record is None:
        return xml, False
    plain = _without_record(xml)
    document = Document.read(plain)
    backing = document.child("memoryBacking")
    if backing is None or not _in_pool(root):
        return plain, True
    if record.text:
        original = _checked_record(_text(root, "name"), record.text)
        return document.edited([Edit(backing.start, backing.end, original)]), True
    return document.edited([Edit(document.before(backing.start), backing.end, "")]), True


def is_converted(xml: str) -> bool:
    """Whether holdfast gave the VM its shared file, and not its operator."""
    return _parsed(xml).find(f"metadata/{{{HOLDFAST_NAMESPACE}}}{_RECORD}") is not None


def on_whole_images(xml: str, targets: Sequence[str]) -> str:
    """The definition with those disks on images that stand on no other: their whole content is copied."""
    _parsed(xml)
    document = Document.read(xml)
    devices = document.required_child("devices")
    edits = []
    for disk in document.children(devices, "disk"):
        named = {entry.attributes.get("dev", "") for entry in document.children(disk, "target")}
        if named & set(targets):
            edits += [
                Edit(entry.start, entry.end, "<backingStore/>") for entry in document.children(disk, "backingStore")
            ]
    return document.edited(edits)


def disk_sources(xml: str) -> tuple[images.Source, ...]:
    """The disks of a running VM with the image that each stands on, by its running definition; not yet sized."""
    devices = _parsed(xml).find("devices")
    found = devices.findall("disk") if devices is not None else []
    return tuple(_disk_source(entry) for entry in found if entry.find("source") is not None)


def _disk_source(entry: ET.Element) -> images.Source:
    plain = dev.disk(entry)
    base = entry.find("backingStore/source")
    return images.Source(
        target=plain.target,
        path=plain.source,
        kind=plain.kind,
        format=plain.driver,
        readonly=plain.readonly,
        base=(base.get("file") or base.get("dev") or "") if base is not None else "",
        base_format=_attribute(entry, "backingStore/format", "type"),
    )


def disk_files(xml: str) -> frozenset[str]:
    """Every file that the disks of a running VM are on, also those that they stand on or are being copied to."""
    devices = _parsed(xml).find("devices")
    found = devices.findall("disk") if devices is not None else []
    named = (source.get("file") or source.get("dev") for disk in found for source in disk.iter("source"))
    return frozenset(posixpath.normpath(path) for path in named if path)


def image_xml(image: images.Image) -> str:
    """libvirt's description of an image to be made (a storage volume)."""
    name = escape(image.path.rpartition("/")[2])
    base = (
        f"<backingStore><path>{escape(image.base)}</path><format type='{escape(image.base_format)}'/></backingStore>"
        if image.base
        else ""
    )
    return (
        f"<volume><name>{name}</name><capacity unit='bytes'>{image.capacity_bytes}</capacity>"
        f"<target><format type='{escape(image.format)}'/></target>{base}</volume>"
    )


def evacuated_xml(home: str, at: str) -> str:
    """The mark of a VM that was moved away: from where, and when (ISO 8601)."""
    return f"<evacuated home='{escape(home)}' at='{escape(at)}'/>"


def _refuse_unconvertible(root: ET.Element) -> None:
    name = _text(root, "name")
    if root.find("memoryBacking/hugepages") is not None:
        raise BadInput(
            f"VM {name} uses <hugepages/>, so its RAM cannot be in the pool",
            "remove <hugepages/> from its definition, and give the reserved huge pages back to the host",
        )
    for cell in root.findall("cpu/numa/cell"):
        if cell.get("memAccess", "shared") != "shared" or cell.get("discard") == "yes":
            raise BadInput(
                f"NUMA cell {cell.get('id', '')} of VM {name} asks for private or discarded RAM",
                "remove memAccess= and discard= from its <cell> elements",
            )


def _checked_record(name: str, text: str) -> str:
    """The text, if it says where RAM comes from and nothing else."""
    try:
        words = {entry.tag for entry in ET.fromstring(text).iter()} if text.startswith("<memoryBacking") else {""}
    except ET.ParseError:
        words = {""}
    if not words <= _BACKING_WORDS:
        raise BadInput(
            f"VM {name}: <{_RECORD}> in its metadata is not what holdfast recorded",
            "remove it, and write its <memoryBacking> by hand (virsh edit)",
        )
    return text


def _pool_backing(document: Document, backing: Element | None) -> str:
    kept = [
        document.text_of(child)
        for child in (document.children(backing) if backing else ())
        if child.name in ("locked", "nosharepages")
    ]
    wanted = [*kept, "<source type='file'/>", "<access mode='shared'/>", "<allocation mode='ondemand'/>"]
    return "<memoryBacking>" + "".join(f"\n    {line}" for line in wanted) + "\n  </memoryBacking>"


def _record_edit(document: Document, original: str) -> Edit:
    record = f"<holdfast:{_RECORD} xmlns:holdfast='{HOLDFAST_NAMESPACE}'>{escape(original)}</holdfast:{_RECORD}>"
    metadata = document.child("metadata")
    if metadata is None:
        memory = document.required_child("memory").start
        return Edit(memory, memory, f"<metadata>\n    {record}\n  </metadata>\n  ")
    if document.is_empty_tag(metadata):
        return Edit(metadata.start, metadata.end, f"<metadata>\n    {record}\n  </metadata>")
    inside = document.start_tag_end(metadata)
    return Edit(inside, inside, f"\n    {record}")


def _without_record(xml: str) -> str:
    document = Document.read(xml)
    metadata = document.child("metadata")
    records = document.children(metadata, _RECORD, HOLDFAST_NAMESPACE) if metadata else ()
    if not metadata or not records:
        return xml
    if len(document.children(metadata)) == len(records):
        return document.edited([Edit(metadata.start, document.after(metadata.end), "")])
    return document.edited([Edit(document.before(entry.start), entry.end, "") for entry in records])
