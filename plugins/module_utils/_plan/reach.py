# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a VM that runs on one host could run on another: its CPU, its QEMU, its disks, and where its RAM would be.

How much room there is, is another matter.
"""

from __future__ import annotations

from typing import Dict, FrozenSet, List, Sequence, Tuple

from .._core.facts import Disk
from .._core.regions import size_text
from .model import Host, Limits, Vm

# CPUs that are the host's own, so that only the same processor will do.
_THE_HOSTS_OWN = ("host-passthrough", "maximum")


class Reach:
    """Answers about one fleet, remembered: many VMs ask the same of the same two hosts."""

    def __init__(self, hosts: Sequence[Host], limits: Limits) -> None:
        self._hosts = {host.name: host for host in hosts}
        self._limits = limits
        self._flags: Dict[str, FrozenSet[str]] = {host.name: frozenset(host.cpu.flags) for host in hosts}
        self._supersets: Dict[Tuple[str, str], bool] = {}
        self._known: Dict[Tuple[str, str], List[str]] = {}

    def obstacles(self, vm: Vm, destination: str) -> List[str]:
        """Why it could not run there, empty when it could."""
        key = (vm.uuid, destination)
        if key not in self._known:
            storage = [] if self._limits.copy_storage else self._storage(vm, destination)
            self._known[key] = [
                *self._cpu(vm, destination),
                *storage,
                *self._backing(vm, destination),
                *self._qemu(vm, destination),
            ]
        return self._known[key]

    def copied(self, vm: Vm, source: str, destination: str) -> Tuple[Disk, ...]:
        """Disks that have to be copied on the way from one host to another."""
        return tuple(disk for disk in vm.disks if not self._reached(disk, source, destination))

    def _cpu(self, vm: Vm, destination: str) -> List[str]:
        here, there = self._hosts[vm.host].cpu, self._hosts[destination].cpu
        if vm.cpu_mode in _THE_HOSTS_OWN:
            same = (here.vendor, here.name) == (there.vendor, there.name) and self._has_all(vm.host, destination)
            return [] if same else ["has another processor, and the VM's CPU is its host's own"]
        if self._named_model(vm) and vm.cpu_model in there.models:
            return []
        if here.vendor == there.vendor and self._has_all(vm.host, destination):
            return []
        return [f"cannot give it the CPU {vm.cpu_model or vm.cpu_mode or 'that it has'}"]

    @staticmethod
    def _named_model(vm: Vm) -> bool:
        """A model by name and nothing else: libvirt knows whether a host can give it."""
        return bool(vm.cpu_model) and not vm.cpu_features

    def _has_all(self, source: str, destination: str) -> bool:
        """Whether the other processor has everything that this one has: then it can give whatever this one gave."""
        key = (source, destination)
        if key not in self._supersets:
            self._supersets[key] = bool(self._flags[source]) and self._flags[source] <= self._flags[destination]
        return self._supersets[key]

    def _backing(self, vm: Vm, destination: str) -> List[str]:
        """A VM keeps its kind of RAM when it moves; at home it may stay what it was."""
        pool, page_bytes = self._hosts[destination].pool, self._hosts[destination].page_bytes
        if destination == vm.host:
            return []
        if pool and vm.pooled and any(size % page_bytes for size in vm.ram_blocks):
            return [f"has a pool with pages of {size_text(page_bytes)}, and the VM's RAM is no multiple of that"]
        if vm.pooled == pool:
            return []
        if pool:
            return ["would have to give it RAM of its own: the VM's is not in a pool (cold or restart brings it there)"]
        return ["has no pool (prepare), and would keep the VM's RAM in a file on its disk"]

    def _qemu(self, vm: Vm, destination: str) -> List[str]:
        """QEMU reads the state of older ones, not of newer ones. At home it is the new one when the VM comes back."""
        there = self._hosts[destination].qemu
        if destination == vm.host or not there or there >= vm.qemu:
            return []
        return [f"has QEMU {_dotted(there)}, older than the {_dotted(vm.qemu)} that the VM runs on"]

    def _storage(self, vm: Vm, destination: str) -> List[str]:
        return [
            f"does not reach its disk {disk.target} ({disk.source})"
            for disk in vm.disks
            if not self._reached(disk, vm.host, destination)
        ]

    def _reached(self, disk: Disk, source: str, destination: str) -> bool:
        if source == destination or not disk.source or disk.kind == "network":
            return True
        if any(_below(disk.source, path) for path in self._limits.shared_paths):
            return True
        mounts = {mount for mount in self._hosts[source].mounts if _below(disk.source, mount.path)}
        return bool(mounts & set(self._hosts[destination].mounts))


def _dotted(version: Tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")
