# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt's word: an image is replaced only where no running VM is on it, and an error says what was asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import hypervisor as libvirt_door
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import ARRIVES, LEAVES
from ansible_collections.holdfast.kvm.plugins.module_utils._core.hypervisor import Domain, Hypervisor

FOLDER = "/images"
IMAGE = f"{FOLDER}/db.qcow2"


class Words:
    """The part of libvirt's binding that is needed."""

    VIR_CONNECT_LIST_DOMAINS_ACTIVE = 1
    VIR_ERR_NO_STORAGE_VOL = 50
    VIR_ERR_OPERATION_UNSUPPORTED = 84
    VIR_DOMAIN_JOB_NONE = 0
    VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT = 5

    class libvirtError(Exception):
        code = 50

        def get_error_code(self) -> int:
            return self.code


class Guest:
    """A VM that has a QEMU, with the inside of its ``<disk>``; without one, libvirt does not tell its definition."""

    def __init__(self, disk: str | None) -> None:
        self.disk = disk

    def name(self) -> str:
        return "db"

    def UUIDString(self) -> str:
        return "u"

    def XMLDesc(self, _flags: int) -> str:
        if self.disk is None:
            raise Words.libvirtError("Domain not found")
        disk = f"<disk type='file'>{self.disk}<target dev='vda'/></disk>"
        return f"<domain><name>db</name><memory>64</memory><devices>{disk}</devices></domain>"


class Host:
    """libvirt's connection, and its storage pool of one directory."""

    def __init__(self, *active: Guest, files: set[str]) -> None:
        self.active, self.files = list(active), files
        self.deleted: list[str] = []

    def listAllDomains(self, which: int) -> list[Guest]:
        assert which == Words.VIR_CONNECT_LIST_DOMAINS_ACTIVE
        return self.active

    def getVersion(self) -> int:
        raise Words.libvirtError("connection reset")

    def storagePoolLookupByTargetPath(self, path: str) -> Host:
        assert path == FOLDER
        return self

    def refresh(self, _flags: int) -> None:
        """Nothing is kept."""

    def storageVolLookupByName(self, name: str) -> Volume:
        if name not in self.files:
            raise Words.libvirtError("no such volume")
        return Volume(self, name)

    def createXML(self, xml: str, _flags: int) -> None:
        self.files.add(xml)


class Volume:
    def __init__(self, host: Host, name: str) -> None:
        self.host, self.name = host, name

    def delete(self, _flags: int) -> None:
        self.host.files.remove(self.name)
        self.host.deleted.append(self.name)


@pytest.fixture(autouse=True)
def _words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_door, "libvirt", Words)


@pytest.mark.parametrize(
    "disk",
    [
        f"<source file='{IMAGE}'/>",
        "<source file='/images/../images/db.qcow2'/>",
        f"<source dev='{IMAGE}'/>",
        f"<source file='/top'/><backingStore type='file'><source file='/mid'/>"
        f"<backingStore type='file'><source file='{IMAGE}'/></backingStore></backingStore>",
        f"<source file='/top'/><mirror type='file'><source file='{IMAGE}'/></mirror>",
    ],
    ids=["on it", "otherwise written", "as a device", "stands on it", "being copied to it"],
)
def test_an_image_is_not_replaced_under_a_vm_that_is_on_it(disk: str) -> None:
    host = Host(Guest("<source file='/other'/>"), Guest(disk), files={"db.qcow2"})
    with pytest.raises(HoldfastError, match=f"{IMAGE} is not replaced: VM db is on it"):
        Hypervisor(host).make_image(IMAGE, "new")
    assert (host.deleted, host.files) == ([], {"db.qcow2"})


def test_an_image_is_not_replaced_when_nobody_can_tell() -> None:
    host = Host(Guest(None), files={"db.qcow2"})
    with pytest.raises(HoldfastError, match="cannot read its definition"):
        Hypervisor(host).make_image(IMAGE, "new")
    assert (host.deleted, host.files) == ([], {"db.qcow2"})


def test_an_image_that_no_running_vm_is_on_is_replaced() -> None:
    host = Host(Guest("<source file='/other'/>"), Guest("<source pool='p' volume='v'/>"), files={"db.qcow2"})
    Hypervisor(host).make_image(IMAGE, "new")
    assert (host.deleted, host.files) == (["db.qcow2"], {"new"})


def test_a_connection_that_broke_is_an_error_that_says_what_was_asked() -> None:
    host = Host(files=set())
    with pytest.raises(HoldfastError, match="which QEMU it has: connection reset"):
        Hypervisor(host).qemu_version()


class Restarted:
    """A connection to a daemon that is not there any more."""

    def broken(self, *_arguments: int) -> None:
        raise Words.libvirtError("End of file while reading data")

    listAllDomains = getLibVersion = isAlive = broken


@pytest.mark.parametrize("question", ["running", "domains", "libvirt_version"])
def test_a_daemon_that_was_restarted_is_an_error_like_any_other(question: str) -> None:
    with pytest.raises(HoldfastError, match="End of file while reading data"):
        getattr(Hypervisor(Restarted()), question)()


def test_a_connection_whose_daemon_was_restarted_does_not_answer_any_more() -> None:
    assert not Hypervisor(Restarted()).answers()


@pytest.mark.parametrize(("hung_s", "refused_s"), [(0, 100), (300, 100)], ids=["stopped", "hanging"])
def test_a_daemon_has_its_time_to_restart_however_long_it_hung_before(
    monkeypatch: pytest.MonkeyPatch, hung_s: int, refused_s: int
) -> None:
    clock = [0.0]
    monkeypatch.setattr(libvirt_door.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(libvirt_door.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))

    @contextmanager
    def connect(_uri: str) -> Iterator[str]:
        if clock[0] < hung_s:
            clock[0] = hung_s
        if clock[0] < hung_s + refused_s:
            raise HoldfastError("libvirt does not answer")
        yield "connected"

    monkeypatch.setattr(libvirt_door, "connect", connect)
    with libvirt_door.connect_patiently() as connection:
        assert connection == "connected"


def test_where_there_is_no_image_yet_nobody_is_asked() -> None:
    host = Host(Guest(None), files=set())
    Hypervisor(host).make_image(IMAGE, "new")
    assert (host.deleted, host.files) == ([], {"new"})


@pytest.mark.parametrize(
    ("reason", "on_purpose", "away", "unknown"),
    [
        (0, True, False, True),
        (1, True, False, False),
        (2, True, False, False),
        (3, False, False, False),
        (4, True, True, False),
        (5, True, True, False),
        (6, False, False, False),
        (7, True, False, False),
        (8, False, False, False),
    ],
    ids=["unknown", "shut down", "destroyed", "crashed", "migrated", "saved", "failed", "snapshot", "daemon"],
)
def test_only_a_qemu_that_broke_says_that_nobody_took_the_vm_away(
    reason: int, on_purpose: bool, away: bool, unknown: bool
) -> None:
    """libvirt's daemon has forgotten why a VM is off when it was restarted."""
    guest = Guest(None)
    domain = Domain(guest)
    guest.state = lambda: [5, reason]  # type: ignore[attr-defined]
    assert (domain.ended_on_purpose(), domain.went_away(), domain.ended_unseen()) == (on_purpose, away, unknown)
    guest.state = lambda: [1, reason]  # type: ignore[attr-defined]
    assert not any((domain.ended_on_purpose(), domain.went_away(), domain.ended_unseen()))


class Busy(Guest):
    """A VM that has a QEMU, and the job that libvirt tells of; or refuses to, with this code."""

    def __init__(self, state: int, kind: int = 0, operation: int = 0, refused: int = 0) -> None:
        super().__init__(None)
        self.now, self.kind, self.operation, self.refused = state, kind, operation, refused

    def ID(self) -> int:
        return 3

    def state(self) -> list[int]:
        return [self.now, 0]

    def jobInfo(self) -> list[int]:
        if self.refused:
            error = Words.libvirtError("migration statistics are available only on the source host")
            error.code = self.refused
            raise error
        return [self.kind]

    def jobStats(self, _flags: int) -> dict[str, int]:
        return {"type": self.kind, "operation": self.operation}


@pytest.mark.parametrize(
    ("guest", "job"),
    [
        (Busy(1), ""),
        (Busy(1, kind=2, operation=5), LEAVES),
        (Busy(1, kind=2, operation=2), "job type 2"),
        (Busy(3, refused=84), ARRIVES),
    ],
    ids=["none", "leaves", "another", "arrives"],
)
def test_a_vm_that_is_on_its_way_is_told_from_others(guest: Busy, job: str) -> None:
    """libvirt tells of the job of one that arrives only at its source."""
    assert Domain(guest).job() == job


def test_a_job_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(VmError, match="VM db: cannot read its jobs"):
        Domain(Busy(3, refused=55)).job()
