# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which devices of a VM bear a live update, read from its definition (libvirt's domain XML)."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from .facts import Disk

# Devices whose state QEMU cannot save (`unmigratable`, or a migration blocker), or that live in something which the
# jump takes away. Paths are below <devices>.
_UNSAFE = {
    "controller[@type='nvme']": "emulated NVMe controller",
    "crypto": "virtio-crypto device",
    "disk[@type='vhostuser']": "vhost-user disk",
    "disk[@type='vhostvdpa']": "vDPA disk",
    "disk/transient": "transient disk",
    "input[@type='passthrough']": "host input device",
    "interface[@type='vdpa']": "vDPA network interface",
    "iommu[@model='amd']": "AMD IOMMU",
    "serial/target[@type='usb-serial']": "USB serial port",
    "shmem": "shared memory device (ivshmem)",
    "smartcard[@mode='host']": "host smart card",
    "sound[@model='usb']": "USB sound device",
    "sound[@model='virtio']": "virtio sound device",
    "tpm/backend[@type='passthrough']": "host TPM",
    "video/driver[@name='vhostuser']": "vhost-user video",
    "video/model/acceleration[@accel3d='yes']": "3D acceleration (virgl)",
}

# Devices that carry on, but with something to know.
_WATCHED = {
    "disk[@device='lun']": "SCSI pass-through disk: reservations may be lost",
    "interface[@type='user']": "user-mode network: open connections end",
    "interface[@type='vhostuser']": "vhost-user network: its back end must be up again when the VM is restored",
    "tpm/backend[@type='emulator']": "TPM emulator: swtpm must not get older",
    "tpm/backend[@type='external']": "external TPM: it must be up again when the VM is restored",
    "vsock": "vsock: open connections end",
}


def unsafe(devices: ET.Element) -> tuple[str, ...]:
    """Devices that would not come back as they were."""
    return _matching(devices, _UNSAFE)


def watched(devices: ET.Element) -> tuple[str, ...]:
    """Devices that come back, with what the operator should know about them."""
    return _matching(devices, _WATCHED)


def disks(devices: ET.Element) -> tuple[Disk, ...]:
    """Disks with a source; an empty CD-ROM drive is none."""
    return tuple(disk(entry) for entry in devices.findall("disk") if entry.find("source") is not None)


def hostdevs(devices: ET.Element) -> tuple[str, ...]:
    """Devices of the host that the VM drives itself, e.g. ``pci 0000:01:00.0``."""
    found = [f"{entry.get('type', 'device')}{_host_address(entry)}" for entry in devices.findall("hostdev")]
    found += [f"network interface{_host_address(entry)}" for entry in devices.findall("interface[@type='hostdev']")]
    found += [f"NVMe disk {_target(entry)}" for entry in devices.findall("disk[@type='nvme']")]
    return tuple(found)


def filesystems(devices: ET.Element) -> tuple[str, ...]:
    """Shared file systems as ``kind:tag``; libvirt's default kind (``path``) is 9p."""
    found = []
    for entry in devices.findall("filesystem"):
        driver = entry.find("driver")
        kind = driver.get("type", "path") if driver is not None else "path"
        found.append(f"{'9p' if kind in ('path', 'handle') else kind}:{_target_dir(entry)}")
    return tuple(found)


def sources(devices: ET.Element, kind: str) -> tuple[str, ...]:
    """What the interfaces of one kind (``bridge`` or ``network``) hang on, each once, in order."""
    found = (entry.find("source") for entry in devices.findall(f"interface[@type='{kind}']"))
    return tuple(dict.fromkeys(source.get(kind, "") for source in found if source is not None))


def video_bytes(devices: ET.Element) -> int:
    """Video memory, which is a part of the device state; that of virtio cards is RAM of the guest."""
    models = devices.findall("video/model")
    # libvirt counts them in KiB. vgamem is a part of ram.
    sizes = (model.get(name, "") for model in models for name in ("ram", "vram"))
    return sum(int(size) << 10 for size in sizes if size.isdecimal())


def memory_devices(devices: ET.Element) -> tuple[str, ...]:
    """Models of memory modules beyond the VM's main RAM: ``dimm``, ``nvdimm``, ``virtio-mem``, ``virtio-pmem``."""
    return tuple(entry.get("model", "") for entry in devices.findall("memory"))


def block_job(devices: ET.Element) -> str:
    """A block job that libvirt notes in the running definition (``<mirror>``), in words; else empty."""
    busy = [_target(entry) for entry in devices.findall("disk") if entry.find("mirror") is not None]
    return f"block job on {', '.join(busy)}" if busy else ""


def _matching(devices: ET.Element, table: dict[str, str]) -> tuple[str, ...]:
    return tuple(what for path, what in table.items() if devices.find(path) is not None)


def disk(entry: ET.Element) -> Disk:
    """One disk; its source is empty when it has none."""
    source, driver = entry.find("source"), entry.find("driver")
    return Disk(
        target=_target(entry),
        source=_source_text(source) if source is not None else "",
        kind=entry.get("type", "file"),
        driver=driver.get("type", "raw") if driver is not None else "raw",
        readonly=entry.find("readonly") is not None,
    )


def _source_text(source: ET.Element) -> str:
    if source.get("protocol"):
        host = source.find("host")
        address = host.get("name", "") if host is not None else ""
        return f"{source.get('protocol')}://{address}/{source.get('name', '')}"
    if source.get("volume"):
        return f"{source.get('pool', '')}/{source.get('volume')}"
    return next((source.get(name, "") for name in ("file", "dev", "dir") if source.get(name)), "")


def _target(entry: ET.Element) -> str:
    target = entry.find("target")
    return target.get("dev", "") if target is not None else ""


def _target_dir(entry: ET.Element) -> str:
    target = entry.find("target")
    return target.get("dir", "") if target is not None else ""


def _host_address(entry: ET.Element) -> str:
    address = entry.find("source/address")
    if address is None:
        return ""
    if address.get("uuid"):
        return f" {address.get('uuid')}"
    if address.get("slot"):
        domain, bus, slot, function = (int(address.get(k, "0"), 0) for k in ("domain", "bus", "slot", "function"))
        return f" {domain:04x}:{bus:02x}:{slot:02x}.{function:x}"
    return " " + ":".join(address.attrib.values())
