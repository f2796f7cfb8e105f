# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The emulator that lab hypervisors run in: which one, how fast, and with what machine.

QEMU older than 10 crashes a hypervisor's kernel when kvm_amd loads under emulation, so set-up sees to a newer one.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError

from ..command import run
from . import debian

BINARY = "qemu-system-x86_64"
BELOW_PCI_HOLE_MIB = 2048
OLDEST = (10, 0)
# Without extended state: guests here do not need it, and emulation has to carry it through every exit of a guest.
# Without AES instructions, whose drivers test themselves at each boot, and without the guard around the kernel's access
# to user memory, which ends a translated block each time. With those for SHA, as every EPYC has them: 100 MB are hashed
# when a kernel is loaded.
EMULATED_CPU = "EPYC,+svm,+npt,-smap,-aes,-pclmulqdq,-xsave,-xsaveopt,-xgetbv1,-avx,-avx2,-f16c,-fma"
# The model has 40 bits of address, of which what is above the last TiB's hole is not RAM.
MOST_BY_40_BITS_MIB = 900 << 10
WIDE_ADDRESSES = ",phys-bits=42"


class Firmware(StrEnum):
    """What a machine starts by, be it a hypervisor or a guest."""

    BIOS = "bios"
    UEFI = "uefi"


@dataclass(frozen=True)
class Accelerator:
    """``name`` is ``kvm`` or ``tcg``; ``why`` is for people."""

    name: str
    why: str


def version() -> tuple[int, int]:
    """Version of the installed emulator, (0, 0) when there is none."""
    if not shutil.which(BINARY):
        return (0, 0)
    found = re.search(r"version (\d+)\.(\d+)", run([BINARY, "--version"]))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def ensure() -> None:
    """Install an emulator of at least version 10 if this machine has none. Needs root."""
    if version() >= OLDEST:
        return
    codename = _codename()
    if codename == "bookworm":
        debian.install_from_backports("qemu-system-x86", codename)
    else:
        debian.install({BINARY: "qemu-system-x86"})
    if version() < OLDEST:
        raise HoldfastError(f"the lab needs QEMU >= 10, this machine has {version()}", "use Debian 12 or newer")


def accelerator() -> Accelerator:
    """KVM when a virtual machine here can itself run virtual machines, else emulation."""
    flags = set(re.findall(r"\b(?:svm|vmx)\b", Path("/proc/cpuinfo").read_text()))
    if not flags:
        return Accelerator("tcg", "this machine's CPU offers no virtualisation")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accelerator("tcg", "/dev/kvm cannot be opened")
    module = "kvm_amd" if "svm" in flags else "kvm_intel"
    nested = Path(f"/sys/module/{module}/parameters/nested")
    if not nested.exists() or nested.read_text().strip() not in ("1", "Y"):
        return Accelerator("tcg", f"{module} does not allow nested virtualisation")
    try:
        run(
            [BINARY, "-accel", "kvm", "-cpu", "host", "-M", "q35", "-display", "none", "-monitor", "stdio"]
            + ["-S", "-nodefaults", "-serial", "none"],
            stdin="quit\n",
            timeout_s=20,
        )
    except CommandFailed as exc:
        return Accelerator("tcg", f"KVM refuses a virtual machine: {exc.message.splitlines()[-1]}")
    return Accelerator("kvm", f"{module} with nested virtualisation")


def cpus(accelerator_name: str) -> int:
    """How many CPUs a lab hypervisor gets.

    One under emulation. With two, emulated SVM mixes up guest and hypervisor, and the hypervisor's kernel dies
    (hosts.emulator_failed): in five labs of six on an idle machine, mostly within a minute of their guests' time. With
    QEMU 11.1.3 it lasts longer, but a lab ended with a reset after twenty minutes all the same.
    """
    return 1 if accelerator_name == "tcg" else 2


def machine_arguments(accelerator_name: str, ram_mib: int, cpus: int, nodes: int) -> list[str]:
    """Machine, CPU and RAM of a lab hypervisor; an AMD one under emulation, because TCG implements SVM.

    NUMA nodes share the RAM above the PCI hole; the first one has what is below it as well, as in servers. With one CPU
    all nodes but one have memory only.
    """
    if accelerator_name == "kvm":
        engine = ["-accel", "kvm", "-cpu", "host"]
    else:
        wide = WIDE_ADDRESSES if ram_mib > MOST_BY_40_BITS_MIB else ""
        engine = ["-accel", "tcg,thread=multi,tb-size=1024", "-cpu", EMULATED_CPU + wide]
    # No graphics, disk controllers or ports that nobody uses: a kernel under emulation takes seconds to drive them.
    board = ["-M", "q35,sata=off,smbus=off", "-nodefaults", "-vga", "none"]
    # A node's CPUs are named by their socket.
    size = ["-smp", f"{cpus},sockets={cpus}", "-m", f"{ram_mib}M"]
    return [BINARY, *board, *engine, *size, *_numa_arguments(ram_mib, cpus, nodes)]


def _numa_arguments(ram_mib: int, cpus: int, nodes: int) -> list[str]:
    if nodes == 1:
        return ["-object", _memory("node0", ram_mib), "-machine", "memory-backend=node0"]
    share = max(ram_mib - BELOW_PCI_HOLE_MIB, ram_mib // 2) // nodes
    words = []
    for node, size in enumerate([ram_mib - share * (nodes - 1)] + [share] * (nodes - 1)):
        words += ["-object", _memory(f"node{node}", size)]
        words += ["-numa", f"node,nodeid={node},memdev=node{node}"]
    return words + [word for cpu in range(cpus) for word in ("-numa", f"cpu,node-id={cpu % nodes},socket-id={cpu}")]


def _memory(name: str, size_mib: int) -> str:
    # A host may declare more than this machine has: what it never touches costs nothing.
    return f"memory-backend-ram,id={name},size={size_mib}M,reserve=off"


def uefi_arguments(code: Path, variables: Path) -> list[str]:
    """UEFI firmware that enforces Secure Boot, as servers come from their makers; ``variables`` is the host's own file.

    The firmware keeps its keys from the operating system by way of system management mode.
    """
    flash = "if=pflash,format=raw"
    return [
        *("-global", "driver=cfi.pflash01,property=secure,value=on"),
        *("-drive", f"{flash},unit=0,readonly=on,file={code}", "-drive", f"{flash},unit=1,file={variables}"),
    ]


def _codename() -> str:
    words = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return words.get("VERSION_CODENAME", "").strip('"')
