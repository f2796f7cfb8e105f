# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's guests as libvirt defines them: different sizes, machine types, CPU models and firmware."""

from __future__ import annotations

import ipaddress
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput

from ..emulator import Firmware
from ..switch import Forward

IMAGES = "/var/lib/libvirt/images"
BASE = f"{IMAGES}/lab/guest.qcow2"
KERNEL = f"{IMAGES}/lab/vmlinuz"
INITRD = f"{IMAGES}/lab/initrd"
LOGS = "/var/log/libvirt/qemu"
# The 32-bit build: the 64-bit one writes CR8 in its timer interrupt, which ends the emulator (hosts.emulator_failed).
# A 64-bit kernel is started by either.
UEFI_CODE = "/usr/share/OVMF/OVMF32_CODE_4M.fd"
UEFI_VARIABLES = "/usr/share/OVMF/OVMF32_VARS_4M.fd"
BRIDGE = "br0"
NODE_WITH_CPU = 0
GATEWAY = "10.0.2.2"
# The kernel and the witness: measured 130 MiB of 1 GiB, 370 MiB of 4 GiB (page structures, DMA bounce buffers).
OWN_NEEDS_MIB = 256


class Role(StrEnum):
    """What a guest does besides bearing witness. One with a database has QEMU's guest agent as well."""

    DB = "db"
    TICK = "tick"


class Machine(StrEnum):
    Q35 = "q35"
    PC = "pc"


SERVICES = {Role.DB: {"witness": 7000, "redis": 6379}, Role.TICK: {"witness": 7000}}
# Databases move between hosts of one make, so they get a named model; the others get all that the CPU has.
CPU_MODES = {Role.DB: "host-model", Role.TICK: "host-passthrough"}


@dataclass(frozen=True)
class GuestSpec:
    """One guest. ``ram_mib``: all of its RAM; ``memory_mib``: the part under the witness's checksum.

    ``ip`` is in 10.0.2.0/24; ``mac`` and ``uuid`` follow from ``ip`` and ``name`` when empty. ``node``: the host's NUMA
    node that its memory is bound to.
    """

    name: str
    ip: str
    role: Role = Role.TICK
    ram_mib: int = 192
    machine: Machine = Machine.Q35
    firmware: Firmware = Firmware.BIOS
    priority: int = 50
    memory_mib: int = 64
    autostart: bool = True
    node: int | None = None
    mac: str = ""
    uuid: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", self.name):
            raise BadInput(f"guest name {self.name!r} is not a host name", "use small letters, digits and dashes")
        last = int(ipaddress.IPv4Address(self.ip)) & 0xFF
        object.__setattr__(self, "mac", self.mac or f"52:54:00:0f:02:{last:02x}")
        object.__setattr__(self, "uuid", self.uuid or str(uuid.uuid5(uuid.NAMESPACE_OID, f"holdfast.lab/{self.name}")))

    @property
    def disk(self) -> str:
        """The guest's overlay on its host."""
        return f"{IMAGES}/{self.name}.qcow2"

    @property
    def console(self) -> str:
        """The guest's serial console log on its host."""
        return f"{LOGS}/{self.name}-console.log"


GUESTS = (
    GuestSpec("db1", "10.0.2.50", role=Role.DB, ram_mib=384, priority=80, node=0),
    GuestSpec("uefi1", "10.0.2.52", ram_mib=256, firmware=Firmware.UEFI, priority=50, autostart=False, node=1),
    GuestSpec("tick1", "10.0.2.51", ram_mib=192, machine=Machine.PC, priority=20),
)


def bench_guest(touched_mib: int, ip: str = "10.0.2.60") -> GuestSpec:
    """A guest with room for ``fill touched_mib``; it keeps no checksummed memory of its own."""
    ram_mib = touched_mib + touched_mib // 16 + OWN_NEEDS_MIB
    return GuestSpec(f"bench-{touched_mib}", ip, ram_mib=ram_mib, memory_mib=1, autostart=False)


def forwards(guests: Sequence[GuestSpec] = GUESTS) -> tuple[Forward, ...]:
    """Every service of every guest, named ``<guest>.witness`` and ``<guest>.redis``."""
    return tuple(
        Forward(f"{guest.name}.{service}", guest.ip, port)
        for guest in guests
        for service, port in SERVICES[guest.role].items()
    )


def kernel_arguments(guest: GuestSpec) -> str:
    """The guest's kernel command line. After a panic it boots again, with another boot id, instead of hanging."""
    own = {
        "name": guest.name,
        "role": guest.role.value,
        "ip": f"{guest.ip}/24",
        "gw": GATEWAY,
        "memory_mib": guest.memory_mib,
    }
    return " ".join(
        ["console=ttyS0 quiet mitigations=off panic=10", *(f"guest.{key}={value}" for key, value in own.items())]
    )


def domain_xml(guest: GuestSpec) -> str:
    """The libvirt definition, as an operator would have it before ``prepare``: RAM wherever libvirt puts it.

    The balloon stays libvirt's default, as in production. The console log is appended to, so that what a guest said
    before an upgrade is still there after it. Timers are as virt-install has them; a HPET, which QEMU itself makes tick
    250 times a second, would take an eighth of an emulated host's CPU for each guest.
    """
    return f"""\
<domain type='kvm'>
  <name>{guest.name}</name>
  <uuid>{guest.uuid}</uuid>
  <memory unit='MiB'>{guest.ram_mib}</memory>
  <vcpu>1</vcpu>
{_numatune(guest)}{_os(guest)}
  <features><acpi/><apic/></features>
  <cpu mode='{CPU_MODES[guest.role]}'/>
  <clock offset='utc'>
    <timer name='rtc' tickpolicy='catchup'/>
    <timer name='pit' tickpolicy='delay'/>
    <timer name='hpet' present='no'/>
  </clock>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{guest.disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <mac address='{guest.mac}'/>
      <source bridge='{BRIDGE}'/>
      <model type='virtio'/>
    </interface>
    <serial type='file'>
      <source path='{guest.console}' append='on'/>
    </serial>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <controller type='usb' model='none'/>
{_agent(guest)}  </devices>
</domain>
"""


def _agent(guest: GuestSpec) -> str:
    """The guest agent's channel, as virt-install gives it to every guest that may have one."""
    if guest.role is not Role.DB:
        return ""
    return "    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\n"


def _numatune(guest: GuestSpec) -> str:
    """Bound as operators do it, by ``strict``; it sends the guest to the node's CPUs as well, and only one has any."""
    if guest.node is None:
        return ""
    mode = "strict" if guest.node == NODE_WITH_CPU else "restrictive"
    return f"  <numatune><memory mode='{mode}' nodeset='{guest.node}'/></numatune>\n"


def _os(guest: GuestSpec) -> str:
    boot = (
        f"    <kernel>{KERNEL}</kernel>\n    <initrd>{INITRD}</initrd>\n"
        f"    <cmdline>{kernel_arguments(guest)}</cmdline>\n  </os>"
    )
    kind = f"    <type arch='x86_64' machine='{guest.machine.value}'>hvm</type>\n"
    if guest.firmware is Firmware.BIOS:
        return f"  <os>\n{kind}{boot}"
    flash = f"    <loader readonly='yes' type='pflash'>{UEFI_CODE}</loader>\n    <nvram template='{UEFI_VARIABLES}'/>\n"
    return f"  <os>\n{kind}{flash}{boot}"


def define_script(guests: Sequence[GuestSpec] = GUESTS) -> str:
    """A shell script for the host that makes the guests' disks and defines them, in one round trip; starts nothing.

    A disk that is there already is kept.
    """
    return "set -eu\n" + "".join(_define(guest) for guest in guests)


def _define(guest: GuestSpec) -> str:
    autostart = f"virsh -q autostart {guest.name}\n" if guest.autostart else ""
    return (
        f"[ -e {guest.disk} ] || qemu-img create -q -f qcow2 -F qcow2 -b {BASE} {guest.disk}\n"
        f"virsh -q define /dev/stdin <<'END'\n{domain_xml(guest)}END\n{autostart}"
    )
