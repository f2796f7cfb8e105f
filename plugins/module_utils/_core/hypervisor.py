# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The core's one door to libvirt."""

from __future__ import annotations

import posixpath
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from .errors import HoldfastError, VmError
from .facts import ARRIVES, LEAVES, SAVE_FORMAT_ON_REQUEST, Runs
from .resources import Service

try:
    import libvirt
except ImportError:  # on a controller without the binding, or where only the pure parts are used
    libvirt = None

URI = "qemu:///system"
RETRY_S = 0.5
EVENT_LOOP = "libvirt events"
KEEPALIVE_S, KEEPALIVE_TIMES = 5, 5
# Why a VM is off (virDomainShutoffReason). Nobody knows, as of every VM after a restart of the daemon; it was migrated
# away, or saved; its QEMU crashed, failed, or was ended by a daemon that could not get hold of it again.
UNKNOWN = 0
WENT_AWAY = (4, 5)
BROKE = (3, 6, 8)
# Why a VM is paused (virDomainPausedReason): it is being migrated, in pre-copy or post-copy, or the latter broke.
PAUSED_MIGRATION, PAUSED_POSTCOPY, PAUSED_POSTCOPY_FAILED = 2, 11, 12
ARRIVING = (PAUSED_MIGRATION, PAUSED_POSTCOPY, PAUSED_POSTCOPY_FAILED)
# As ``Domain.state`` says of one that has no QEMU.
OFF = ("shutoff", "crashed")
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

    def goes_on(self) -> bool:
        """Whether its CPUs run; not when that cannot be asked."""
        with suppress(VmError):
            return self.state() == "running"
        return False

    def ended_on_purpose(self) -> bool:
        """Whether it is off, and not because its QEMU broke: somebody wanted it, or nobody knows."""
        state, reason = self._call("read its state", "state")[:2]
        return STATES.get(state) == "shutoff" and reason not in BROKE

    def went_away(self) -> bool:
        """Whether it is off because it was moved to another host, or saved; not when nobody knows."""
        state, reason = self._call("read its state", "state")[:2]
        return STATES.get(state) == "shutoff" and reason in WENT_AWAY

    def ended_unseen(self) -> bool:
        """Whether it is off, and nobody knows why: the host, or libvirt's daemon, was started again since."""
        state, reason = self._call("read its state", "state")[:2]
        return STATES.get(state) == "shutoff" and reason == UNKNOWN

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
        return bool(self.persistent() and self._call("read its autostart", "autostart"))

    def job(self) -> str:
        """The job in progress (a migration, see ``facts.MOVING``, a backup, …), empty when there is none."""
        if self.id < 0:
            return ""
        try:
            kind = int(self.raw.jobInfo()[0])
        except libvirt.libvirtError as exc:
            # libvirt speaks of a migration at its source only.
            if exc.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
                return ARRIVES
            raise VmError(f"VM {self.name}: cannot read its jobs: {exc}") from exc
        if kind == libvirt.VIR_DOMAIN_JOB_NONE:
            return ""
        leaves = self.job_stats().get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
        return LEAVES if leaves else f"job type {kind}"

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

    def shutdown(self) -> None:
        """Ask the guest to shut down, by its agent or by ACPI; it does so in its own time, or not at all."""
        self._call("shut it down", "shutdown")

    def pause(self) -> None:
        self._call("pause it", "suspend")

    def resume(self) -> None:
        self._call("resume it", "resume")

    def destroy(self) -> None:
        self._call("end it", "destroy")

    def save(self, path: str) -> None:
        """Write its state to ``path`` and end its QEMU; it stays paused in the image.

        Uncompressed, whatever save_image_format is; in that format where libvirt cannot be asked for another.
        """
        if self._takes_save_format():
            parameters = {"file": path, "image_format": "raw"}
            self._call("save it", "saveParams", parameters, libvirt.VIR_DOMAIN_SAVE_PAUSED)
        else:
            self._call("save it", "saveFlags", path, None, libvirt.VIR_DOMAIN_SAVE_PAUSED)

    def _takes_save_format(self) -> bool:
        # The daemon refuses a parameter that it does not know. The binding may be older than it, and lack the call.
        try:
            version = _version(int(self.raw.connect().getLibVersion()))
        except libvirt.libvirtError as exc:
            raise VmError(f"VM {self.name}: cannot save it: {exc}") from exc
        return version >= SAVE_FORMAT_ON_REQUEST and hasattr(self.raw, "saveParams")

    def ram_bytes(self) -> int:
        """The largest RAM that it may have."""
        return int(self._call("read its size", "maxMemory")) << 10

    def migratable_xml(self) -> str:
        """The running definition as another host may be given it."""
        flags = libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE
        return str(self._call("read its migratable definition", "XMLDesc", flags))

    def migrate(self, uri: str, names: Sequence[str], values: Mapping[str, Any]) -> None:
        """Send it to the libvirt at ``uri``; returns when it runs there.

        ``names`` are flags without ``VIR_MIGRATE_``, ``values`` parameters without ``VIR_MIGRATE_PARAM_``.
        """
        flags = 0
        for name in names:
            flags |= getattr(libvirt, f"VIR_MIGRATE_{name}")
        parameters = {getattr(libvirt, f"VIR_MIGRATE_PARAM_{name}"): value for name, value in values.items()}
        self._call("migrate it", "migrateToURI3", uri, parameters, flags)

    def job_stats(self) -> Dict[str, Any]:
        """libvirt's figures of the job in progress (virDomainGetJobStats), times in ms; empty when there is none."""
        return self._stats(0)

    def completed_job_stats(self) -> Dict[str, Any]:
        """The same of the job that ended last; after a migration the destination has them. Empty when it has not."""
        return self._stats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)

    def _stats(self, flags: int) -> Dict[str, Any]:
        try:
            return dict(self.raw.jobStats(flags))
        except libvirt.libvirtError:  # it ended just now, or is not here any more
            return {}

    def allow_pause(self, pause_s: float) -> bool:
        """How long the migration in progress may stop the VM; False when there is none any more."""
        try:
            self.raw.migrateSetMaxDowntime(max(1, round(pause_s * 1000)), 0)
        except libvirt.libvirtError:
            return False
        return True

    def start_postcopy(self) -> None:
        """Let it run at the destination from now on, which fetches the rest of its RAM. Raises VmError."""
        self._call("switch its migration to post-copy", "migrateStartPostCopy", 0)

    def count_writes(self, seconds: int) -> None:
        """Let its QEMU find out how fast it writes to its RAM, within so many seconds. Raises VmError."""
        self._call("look at what it writes", "startDirtyRateCalc", seconds, 0)

    def set_metadata(self, namespace: str, prefix: str, element: str) -> None:
        """Put an element into its metadata, of this QEMU and of the stored definition; empty takes it out."""
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if self.id >= 0 else 0
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG if self.persistent() else 0
        kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
        self._call("write its metadata", "setMetadata", kind, element or None, prefix, namespace, flags)

    def runs(self) -> Runs:
        """Whether it runs here, for good or as the incoming half of a migration. Raises VmError."""
        state, reason = self._call("read its state", "state")[:2]
        word = STATES.get(state, "unknown")
        if word == "paused" and reason in ARRIVING:
            return Runs.ARRIVING
        return Runs.RUNS if word in ("running", "blocked") else Runs.STANDS if word == "paused" else Runs.OFF

    def postcopy_broke(self) -> bool:
        """Whether it is paused since its post-copy migration broke: a part of its RAM is at the other host then."""
        state, reason = self._call("read its state", "state")[:2]
        return STATES.get(state) == "paused" and reason == PAUSED_POSTCOPY_FAILED

    def disk_capacity(self, target: str) -> int:
        """Size of a disk as the guest sees it, in bytes. Raises VmError."""
        return int(self._call("look at its disk", "blockInfo", target)[0])


class Hypervisor:
    """A connection to the host's libvirt."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def domains(self) -> List[Domain]:
        """All VMs, running or defined. Raises HoldfastError."""
        return self._listed(0)

    def running(self) -> List[Domain]:
        """VMs that have a QEMU, paused ones included. Raises HoldfastError."""
        return self._listed(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)

    def _listed(self, which: int) -> List[Domain]:
        with _told("libvirt does not say which VMs it has"):
            return [Domain(raw) for raw in self.connection.listAllDomains(which)]

    def answers(self) -> bool:
        """Whether there is still a daemon at the other end, as far as the last question has shown."""
        try:
            return bool(self.connection.isAlive())
        except libvirt.libvirtError:
            return False

    def writes(self) -> Dict[str, Optional[int]]:
        """By uuid, what ``count_writes`` found: bytes per second; None while it counts. Without VMs that do not say."""
        kind, which = libvirt.VIR_DOMAIN_STATS_DIRTYRATE, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_RUNNING
        with _told("cannot read how fast VMs write"):
            answers = self.connection.getAllDomainStats(kind, which)
        said = {raw.UUIDString(): stats for raw, stats in answers if "dirtyrate.calc_status" in stats}
        over = libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED
        return {
            uuid: int(stats["dirtyrate.megabytes_per_second"]) << 20 if stats["dirtyrate.calc_status"] == over else None
            for uuid, stats in said.items()
        }

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

    def find(self, uuid: str) -> Optional[Domain]:
        """A VM by uuid, None when this libvirt knows none. Raises HoldfastError when it does not answer."""
        try:
            return Domain(self.connection.lookupByUUIDString(uuid))
        except libvirt.libvirtError as exc:
            if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise HoldfastError(f"libvirt does not say whether it has VM {uuid}: {exc}") from exc

    def qemu_version(self) -> Tuple[int, int, int]:
        """Version of the QEMU that is installed beside this libvirt. Raises HoldfastError."""
        with _told("libvirt does not say which QEMU it has"):
            return _version(int(self.connection.getVersion()))

    def image_exists(self, path: str) -> bool:
        """Whether there is a file of this name on the libvirt's host. Raises HoldfastError."""
        with self._directory(path) as pool:
            return _volume(pool, path) is not None

    def make_image(self, path: str, xml: str) -> None:
        """Make an image from libvirt's XML of a volume, in place of one of the same name that no running VM is on.

        Raises HoldfastError.
        """
        with self._directory(path) as pool, _told(f"cannot make the image {path}"):
            earlier = _volume(pool, path)
            if earlier is not None:
                # libvirt would delete it under a running VM, which would not even notice before it ends.
                self._require_unused(path)
                earlier.delete(0)
            pool.createXML(xml, 0)

    def remove_image(self, path: str) -> None:
        """Delete an image if it is there. Raises HoldfastError."""
        with self._directory(path) as pool, _told(f"cannot remove the image {path}"):
            volume = _volume(pool, path)
            if volume is not None:
                volume.delete(0)

    def _require_unused(self, path: str) -> None:
        """Raise HoldfastError when a VM that has a QEMU here is on this file, or nobody can tell."""
        # Not needed early at boot.
        from .domain import disk_files

        users = [vm.name for vm in self.running() if posixpath.normpath(path) in disk_files(vm.xml())]
        if users:
            raise HoldfastError(
                f"the image {path} is not replaced: VM {', '.join(users)} is on it",
                "look which host the VM runs on (virsh list --all)",
            )

    @contextmanager
    def _directory(self, path: str) -> Iterator[Any]:
        """The storage pool of an image's directory; one that is made for this ends with it, and its files stay."""
        directory = posixpath.dirname(path)
        try:
            pool, ours = self.connection.storagePoolLookupByTargetPath(directory), False
        except libvirt.libvirtError:
            pool, ours = self._open_directory(directory), True
        try:
            yield pool
        finally:
            if ours:
                with suppress(libvirt.libvirtError):
                    pool.destroy()

    def _open_directory(self, directory: str) -> Any:
        # Not needed early at boot, where they would stand before the restore.
        from html import escape
        from uuid import uuid4

        name = f"holdfast-{uuid4()}"
        xml = f"<pool type='dir'><name>{name}</name><target><path>{escape(directory)}</path></target></pool>"
        with _told(f"cannot look into {directory}"):
            return self.connection.storagePoolCreateXML(xml, 0)

    def libvirt_version(self) -> Tuple[int, int, int]:
        """Version of the daemon. Raises HoldfastError."""
        with _told("libvirt does not say its version"):
            return _version(int(self.connection.getLibVersion()))

    def capabilities_xml(self, emulator: Optional[str] = None) -> str:
        """What VMs of this QEMU binary, or the usual one, can be given on this host.

        An empty element when libvirt cannot tell, without KVM for example.
        """
        try:
            return str(self.connection.getDomainCapabilities(emulator, None, None, "kvm", 0))
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
def reach(uri: str) -> Iterator[Hypervisor]:
    """Connect to another host's libvirt. A host that dies meanwhile is noticed within half a minute.

    Without this, a call to it would wait for as long as TCP hopes, a quarter of an hour. Raises HoldfastError.
    """
    _watch_connections()
    with _opened(uri, "open") as hypervisor:
        with suppress(libvirt.libvirtError):  # a local connection has no need of it
            hypervisor.connection.setKeepAlive(KEEPALIVE_S, KEEPALIVE_TIMES)
        yield hypervisor


def _watch_connections() -> None:
    """Run libvirt's event loop, which sends and expects the signs of life; once, and before the connection is made."""
    if libvirt is None or any(thread.name == EVENT_LOOP for thread in threading.enumerate()):
        return
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, name=EVENT_LOOP, daemon=True).start()


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


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
    """As ``connect``, for as long as a daemon that is being restarted may need. Raises HoldfastError."""
    with ExitStack() as stack:
        deadline = None
        while True:
            try:
                hypervisor = stack.enter_context(connect(uri))
                break
            except HoldfastError:
                # From here on it is being restarted. How long it hung before, and we with it, is another matter.
                deadline = deadline or time.monotonic() + limit_s
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)
        yield hypervisor


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say of a failure what was tried."""
    try:
        yield
    except libvirt.libvirtError as exc:
        raise HoldfastError(f"{what}: {exc}") from exc


def _volume(pool: Any, path: str) -> Any:
    try:
        pool.refresh(0)
        return pool.storageVolLookupByName(posixpath.basename(path))
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None
        raise HoldfastError(f"cannot look for the image {path}: {exc}") from exc


def _version(number: int) -> Tuple[int, int, int]:
    return number // 1000000, number // 1000 % 1000, number % 1000
