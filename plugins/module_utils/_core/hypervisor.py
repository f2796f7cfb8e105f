# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The core's one door to libvirt."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import Any, Iterator, List, Tuple

from .errors import HoldfastError, VmError
from .resources import Service

try:
    import libvirt
except ImportError:  # on a controller without the binding, or where only the pure parts are used
    libvirt = None

URI = "qemu:///system"
RETRY_S = 0.5
# Why a VM is off (virDomainShutoffReason): it was shut down, destroyed, migrated away, saved.
ENDED_ON_PURPOSE = (1, 2, 4, 5)
STATES = {0: "nostate", 1: "running", 2: "blocked", 3: "paused", 4: "shutdown", 5: "shutoff", 6: "crashed"}


class Domain:
    """One libvirt domain. Every method raises VmError with libvirt's own words and the VM's name."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.name: str = raw.name()
        self.uuid: str = raw.UUIDString()

    def _call(self, what: str, method: str, *args: Any) -> Any:
        try:
            return getattr(self.raw, method)(*args)
        except libvirt.libvirtError as exc:
            raise VmError(f"VM {self.name}: cannot {what}: {exc}") from exc

    @property
    def id(self) -> int:
        """Id of the running domain, -1 when it is off."""
        return int(self.raw.ID())

    def state(self) -> str:
        """``running``, ``paused``, ``shutoff``, …"""
        return STATES.get(self._call("read its state", "state")[0], "unknown")

    def ended_on_purpose(self) -> bool:
        """Whether it is off, and because somebody wanted it; not when its QEMU crashed, or nobody knows."""
        state, reason = self._call("read its state", "state")[:2]
        return STATES.get(state) == "shutoff" and reason in ENDED_ON_PURPOSE

    def xml(self) -> str:
        """Definition of the running VM, or the stored one when it is off."""
        return str(self._call("read its definition", "XMLDesc", 0))

    def stored_xml(self) -> str:
        """The persistent definition, with secrets, fit to be defined again."""
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        return str(self._call("read its stored definition", "XMLDesc", flags))

    def persistent(self) -> bool:
        return bool(self._call("read whether it is persistent", "isPersistent"))

    def autostart(self) -> bool:
        return bool(self.raw.isPersistent() and self._call("read its autostart", "autostart"))

    def job(self) -> str:
        """Name of the job in progress (a migration, a backup, …), empty when there is none."""
        if self.id < 0:
            return ""
        kind = int(self._call("read its jobs", "jobInfo")[0])
        return "" if kind == libvirt.VIR_DOMAIN_JOB_NONE else f"job type {kind}"

    def block_jobs(self, targets: tuple[str, ...]) -> Tuple[str, ...]:
        """Targets of the disks that have a block job running."""
        if self.id < 0:
            return ()
        return tuple(target for target in targets if self._call("read its block jobs", "blockJobInfo", target, 0))

    def disk_bytes(self, target: str) -> int:
        """What a disk takes up where it is kept; 0 when that cannot be seen, behind a network for example."""
        try:
            return int(self._call("look at its disk", "blockInfo", target)[1])
        except VmError:
            return 0

    def cancel_job(self) -> None:
        """End the job in progress (a save), if there is one."""
        self._call("cancel its job", "abortJob")

    def start(self) -> None:
        """Start it from its stored definition."""
        self._call("start it", "create")

    def pause(self) -> None:
        self._call("pause it", "suspend")

    def resume(self) -> None:
        self._call("resume it", "resume")

    def destroy(self) -> None:
        self._call("end it", "destroy")

    def save(self, path: str) -> None:
        """Write its state to ``path`` and end its QEMU; it stays paused in the image."""
        self._call("save it", "saveFlags", path, None, libvirt.VIR_DOMAIN_SAVE_PAUSED)


class Hypervisor:
    """A connection to the host's libvirt."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def domains(self) -> List[Domain]:
        """All VMs, running or defined."""
        return [Domain(raw) for raw in self.connection.listAllDomains(0)]

    def running(self) -> List[Domain]:
        """VMs that have a QEMU, paused ones included."""
        return [Domain(raw) for raw in self.connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)]

    def domain(self, uuid: str) -> Domain:
        """A VM by uuid. Raises VmError."""
        try:
            return Domain(self.connection.lookupByUUIDString(uuid))
        except libvirt.libvirtError as exc:
            raise VmError(f"libvirt knows no VM {uuid}: {exc}") from exc

    def create_paused(self, name: str, xml: str) -> Domain:
        """Start a VM from XML without running its CPUs. Raises VmError."""
        try:
            return Domain(self.connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED))
        except libvirt.libvirtError as exc:
            raise VmError(f"VM {name}: cannot be started for its restore: {exc}") from exc

    def define(self, xml: str) -> Domain:
        """Store a definition. Raises VmError."""
        try:
            return Domain(self.connection.defineXML(xml))
        except libvirt.libvirtError as exc:
            raise VmError(f"libvirt refuses the definition: {exc}") from exc

    def networks(self) -> Tuple[Service, ...]:
        """libvirt's active networks; none where it has no networks, or does not answer for them."""
        return self._services("listAllNetworks", "VIR_CONNECT_LIST_NETWORKS_ACTIVE")

    def storage_pools(self) -> Tuple[Service, ...]:
        """libvirt's active storage pools; none where it has none, or does not answer for them."""
        return self._services("listAllStoragePools", "VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE")

    def _services(self, method: str, which: str) -> Tuple[Service, ...]:
        # Daemons of their own, where libvirt's modular ones run: they may be absent while that of QEMU is well.
        try:
            found = getattr(self.connection, method)(getattr(libvirt, which))
            services = [Service(one.name(), bool(one.autostart())) for one in found]
        except libvirt.libvirtError:
            return ()
        return tuple(sorted(services, key=lambda one: one.name))

    def libvirt_version(self) -> Tuple[int, int, int]:
        return _version(int(self.connection.getLibVersion()))

    def capabilities_xml(self) -> str:
        """What VMs can be given on this host; an empty element when libvirt cannot tell, without KVM for example."""
        try:
            return str(self.connection.getDomainCapabilities(None, None, None, "kvm", 0))
        except libvirt.libvirtError:
            return "<domainCapabilities/>"


@contextmanager
def connect(uri: str = URI) -> Iterator[Hypervisor]:
    """Connect to libvirt; waits for a daemon that systemd is still starting. Raises HoldfastError."""
    with _opened(uri, "open") as hypervisor:
        yield hypervisor


@contextmanager
def look(uri: str) -> Iterator[Hypervisor]:
    """Connect to libvirt, here or elsewhere, to read only. Raises HoldfastError."""
    with _opened(uri, "openReadOnly") as hypervisor:
        yield hypervisor


@contextmanager
def _opened(uri: str, method: str) -> Iterator[Hypervisor]:
    if libvirt is None:
        raise HoldfastError("Python's libvirt binding is not installed", "install the package python3-libvirt")
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        connection = getattr(libvirt, method)(uri)
    except libvirt.libvirtError as exc:
        hint = "start libvirt's daemon; a host without libvirt and QEMU is no hypervisor"
        raise HoldfastError(f"libvirt does not answer at {uri}: {exc}", hint) from exc
    try:
        yield Hypervisor(connection)
    finally:
        connection.close()


@contextmanager
def connect_patiently(uri: str = URI, limit_s: float = 120.0) -> Iterator[Hypervisor]:
    """As ``connect``, for as long as a daemon that is being restarted may need."""
    with ExitStack() as stack:
        deadline = time.monotonic() + limit_s
        while True:
            try:
                hypervisor = stack.enter_context(connect(uri))
                break
            except HoldfastError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)
        yield hypervisor


def _version(number: int) -> Tuple[int, int, int]:
    return number // 1000000, number // 1000 % 1000, number % 1000
