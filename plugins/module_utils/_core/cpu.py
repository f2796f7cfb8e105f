# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The CPU that a guest has: does the new kernel's KVM still offer all of it?

A kernel may take features away: for an erratum, with a microcode update, by another default (TSX). A guest that was
told of one at its boot would meet an illegal instruction, and QEMU's stream of state does not say which those are.

Features are bits of CPUID registers, by ``leaf.subleaf.register`` in hexadecimal (``7.0.ebx``): what KVM offers comes
from its own interface (KVM_GET_SUPPORTED_CPUID, Linux' Documentation/virt/kvm/api.rst), what a guest has from its QEMU.
"""

from __future__ import annotations

import fcntl
import struct
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping

from . import monitor
from .errors import VmError
from .hypervisor import Domain

DEVICE = Path("/dev/kvm")
KVM_GET_SUPPORTED_CPUID = 0xC008AE05
# KVM_MAX_CPUID_ENTRIES. One is function, index, flags, eax, ebx, ecx, edx and three words of padding.
MOST_ENTRIES = 256
HEADER, ENTRY = struct.Struct("=II"), struct.Struct("=10I")
REGISTERS = ("eax", "ebx", "ecx", "edx")
ALL_BITS = 0xFFFF_FFFF


def _all_but(*bits: int) -> int:
    return ALL_BITS & ~sum(1 << bit for bit in bits)


# Instructions and registers of the CPU itself. Left out is what QEMU gives a guest whatever KVM says, and what kernels
# list or do not list as they like (target/i386/kvm/kvm.c, kvm_arch_get_supported_cpuid): 6.12 does not list the TSC
# deadline timer and the hypervisor's own bit, later ones do. So are leaves that only tell of speed, errata, or KVM.
WATCHED = {
    # But for MONITOR, x2APIC, the TSC deadline timer, OSXSAVE, and the hypervisor's bit.
    "1.0.ecx": _all_but(3, 21, 24, 27, 31),
    # But for ERMS.
    "7.0.ebx": _all_but(9),
    # But for OSPKE.
    "7.0.ecx": _all_but(4),
    # But for FSRM, hybrid CPUs, and ARCH_CAPABILITIES.
    "7.0.edx": _all_but(4, 15, 29),
    # But for FZRM, FSRS, FSRC.
    "7.1.eax": _all_but(10, 11, 12),
    "7.1.edx": ALL_BITS,
    "d.1.eax": ALL_BITS,
    # But for TOPOEXT.
    "80000001.0.ecx": _all_but(22),
    "80000008.0.ebx": ALL_BITS,
}

Words = Dict[str, int]


def offered(device: Path = DEVICE) -> Words:
    """All that KVM offers to guests; nothing where there is no KVM."""
    answer = bytearray(HEADER.pack(MOST_ENTRIES, 0) + bytes(MOST_ENTRIES * ENTRY.size))
    try:
        with device.open("r+b", buffering=0) as kvm:
            fcntl.ioctl(kvm, KVM_GET_SUPPORTED_CPUID, answer, True)
    except OSError:
        return {}
    return read_entries(bytes(answer))


def read_entries(answer: bytes) -> Words:
    """KVM's answer (struct kvm_cpuid2) by leaf, subleaf and register. Pure."""
    count = HEADER.unpack_from(answer)[0]
    words: Words = {}
    for entry in range(count):
        leaf, subleaf, _flags, *values = ENTRY.unpack_from(answer, HEADER.size + entry * ENTRY.size)
        words.update({f"{leaf:x}.{subleaf:x}.{name}": value for name, value in zip(REGISTERS, values) if value})
    return words


def of_guest(domain: Domain) -> Words:
    """The features of a VM's first CPU as its guest has them; nothing when its QEMU does not tell."""
    try:
        first = monitor.execute(domain, "query-cpus-fast")[0]["qom-path"]
        return read_features(monitor.execute(domain, "qom-get", path=first, property="feature-words"))
    except (VmError, LookupError, TypeError):
        return {}


def read_features(words: Iterable[Mapping[str, Any]]) -> Words:
    """QEMU's answer (a list of X86CPUFeatureWordInfo) by leaf, subleaf and register. Pure."""
    return {
        f"{word['cpuid-input-eax']:x}.{word.get('cpuid-input-ecx', 0):x}.{word['cpuid-register'].lower()}": features
        for word in words
        if (features := int(word["features"]))
    }


def taken_away(before: Words, now: Words, guest: Words) -> List[str]:
    """What a guest has of the watched features that KVM offered before, and does not any more. Pure."""
    lost = {
        name: guest[name] & before.get(name, 0) & ~now.get(name, 0) & watched
        for name, watched in WATCHED.items()
        if name in guest
    }
    return [f"CPUID {name} bit {bit}" for name, bits in lost.items() for bit in range(32) if bits >> bit & 1]


def note(domains: Iterable[Domain]) -> Dict[str, Any]:
    """For the journal: what is offered before the jump, and what each of these VMs has, by uuid."""
    return {"offered": offered(), "guests": {domain.uuid: of_guest(domain) for domain in domains}}


def problems(noted: Mapping[str, Any], now: Words, names: Mapping[str, str]) -> List[str]:
    """What this kernel takes away from which VM (``names`` by uuid), a sentence each. Pure; ``noted``: by ``note``."""
    if not noted or not now:
        return []
    lost = {uuid: taken_away(noted["offered"], now, words) for uuid, words in noted["guests"].items() if uuid in names}
    return [
        f"VM {names[uuid]} would lose features of its CPU, which KVM does not offer any more: {', '.join(gone)}"
        for uuid, gone in lost.items()
        if gone
    ]
