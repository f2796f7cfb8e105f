# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing is restored that is not, to the bit that is looked at, what was saved; and nothing twice."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    fsdax,
    integrity,
    lanes,
    monitor,
    restore,
    saveimage,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import open_journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import KeptRam

UUID = "11111111-2222-3333-4444-555555555555"
XML = "<domain type='kvm'><name>db1</name><memory unit='KiB'>4096</memory></domain>"


def save_image(xml: str = XML, *, compressed: int = 0, version: int = 2, stream: bytes = b"QEVM") -> bytes:
    text = xml.encode() + b"\0"
    return saveimage.MAGIC + struct.pack("=5I", version, len(text), 1, compressed, 0).ljust(76, b"\0") + text + stream


class Kept:
    """A pool that keeps one VM in a plain directory."""

    coverage = integrity.SAMPLED

    def __init__(self, root: Path) -> None:
        self.root, self.placed = root, True
        (root / "ram").mkdir()
        (root / "ram/pc.ram").write_bytes(os.urandom(integrity.PAGE * 600))
        (root / "state").write_bytes(save_image())

    def vault_of(self, uuid: str) -> Path:
        return self.root

    def ram_of(self, uuid: str) -> tuple[KeptRam, ...]:
        return tuple(map(fsdax.kept_file, sorted((self.root / "ram").iterdir())))

    def check_placed(self, uuid: str, domain_id: int, name: str) -> None:
        assert (uuid, domain_id, name) == (UUID, FakeDomain.id, FakeDomain.name)
        if not self.placed:
            raise VmError(f"VM {name}: its QEMU has not got the RAM that is kept for it: pc.ram")

    def release(self, uuid: str) -> None:
        (self.root / "released").touch()

    def evidence(self) -> dict[str, Any]:
        return {
            "state_bytes": (self.root / "state").stat().st_size,
            "state_sha256": integrity.sha256(self.root / "state"),
            "ram_proofs": {ram.name: integrity.ram_proof(ram, UUID, self.coverage) for ram in self.ram_of(UUID)},
        }


@pytest.fixture
def pool(tmp_path: Path) -> Any:
    return Kept(tmp_path)


def record(pool: Any) -> dict[str, Any]:
    return {"name": "db1", "uuid": UUID, **pool.evidence()}


def test_what_was_saved_passes(pool: Any) -> None:
    restore.verify(pool, record(pool))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: (root / "state").unlink(), "state file .* is missing"),
        (lambda root: (root / "state").write_bytes(b"x"), "has 1 bytes"),
        (lambda root: _flip(root / "state", 100), "does not match its checksum"),
        (lambda root: (root / "ram/pc.ram").unlink(), "RAM pc.ram is missing"),
        (lambda root: _flip(root / "ram/pc.ram", 0), "RAM pc.ram is not what was saved"),
        (lambda root: os.truncate(root / "ram/pc.ram", 4096), "RAM pc.ram is not what was saved"),
        (lambda root: _replace(root / "ram/pc.ram"), "RAM pc.ram is not what was saved"),
    ],
)
def test_what_was_harmed_is_found(pool: Any, harm: Any, words: str) -> None:
    expected = record(pool)
    harm(pool.root)
    with pytest.raises(VmError, match=words):
        restore.verify(pool, expected)


@pytest.mark.parametrize("coverage", [integrity.SAMPLED, integrity.FULL])
def test_one_flipped_bit_is_found_by_a_full_proof_wherever_it_is(pool: Any, coverage: str) -> None:
    pool.coverage = coverage
    expected = record(pool)
    seen = 0
    for page in range(600):
        _flip(pool.root / "ram/pc.ram", page * integrity.PAGE + 77)
        try:
            restore.verify(pool, expected)
        except VmError:
            seen += 1
        _flip(pool.root / "ram/pc.ram", page * integrity.PAGE + 77)
    assert seen == (600 if coverage == integrity.FULL else integrity.SAMPLED_PAGES)


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def _replace(path: Path) -> None:
    """The same bytes in another file: somebody put a copy there."""
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


def test_a_save_image_is_taken_apart(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(save_image())
    image = saveimage.read(tmp_path / "state")
    assert image.xml == XML
    assert (tmp_path / "state").read_bytes()[image.stream_offset :] == b"QEVM"


@pytest.mark.parametrize(
    "data", [b"", b"QEVM", save_image()[:60], save_image()[:95], save_image(compressed=6), save_image(version=9)]
)
def test_anything_else_is_no_save_image(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "state").write_bytes(data)
    with pytest.raises(VmError):
        saveimage.read(tmp_path / "state")


class FakeDomain:
    name, uuid, id = "db1", UUID, 7

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.running = False

    def resume(self) -> None:
        self.calls.append("resume")

    def destroy(self) -> None:
        self.calls.append("destroy")

    def goes_on(self) -> bool:
        return self.running


class FakeHypervisor:
    def __init__(self, domain: FakeDomain) -> None:
        self.domain = domain

    def create_paused(self, name: str, xml: str) -> FakeDomain:
        assert "defer" in xml
        return self.domain


@pytest.fixture
def journal(tmp_path: Path, pool: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    state_dir = tmp_path / "state-dir"
    state_dir.mkdir()
    monkeypatch.setattr(restore.permit, "RUN_DIR", tmp_path / "run")
    journal = open_journal(state_dir)
    vm = {"name": "db1", "uuid": UUID, "priority": 50, "treatment": "in_place", "reason": ""}
    journal.record("begin", generation="g", host="h", kernel={}, qemu="", boot_id="b", vms=[vm])
    journal.record("suspending")
    journal.record("vm_saved", uuid=UUID, ram_bytes=1, **pool.evidence())
    journal.record("restoring")
    return journal


def test_the_saved_state_is_gone_before_the_guest_runs(
    pool: Any, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = FakeDomain()
    order: list[str] = []
    monkeypatch.setattr(monitor, "keep_ram_in_place", lambda _d: order.append("ignore-shared on"))
    monkeypatch.setattr(monitor, "load_state", lambda *_a: order.append("load"))
    monkeypatch.setattr(monitor, "copy_ram_again", lambda _d: order.append("ignore-shared off"))
    monkeypatch.setattr(monitor, "qemu_version", lambda _d: "11.1.3")

    def resume() -> None:
        assert not (pool.root / "state").exists()
        assert open_journal(journal.path.parent).vm(UUID)["state"] == "resuming"
        order.append("resume")

    monkeypatch.setattr(domain, "resume", resume)
    restore.restore(FakeHypervisor(domain), pool, journal, UUID, 10)  # type: ignore[arg-type]
    assert order == ["ignore-shared on", "load", "ignore-shared off", "resume"]
    assert journal.vm(UUID)["state"] == "resumed"
    with pytest.raises(VmError):
        restore.restore(FakeHypervisor(domain), pool, journal, UUID, 10)  # type: ignore[arg-type]


def test_a_state_that_libvirt_compressed_is_unpacked_for_qemu(
    pool: Any, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon before 11.2 does as its qemu.conf says, or said when it was started."""
    (pool.root / "state").write_bytes(save_image(compressed=1, stream=gzip.compress(b"QEVM" * 9000)))
    journal.record("vm_saved", uuid=UUID, ram_bytes=1, **pool.evidence())
    given: list[bytes] = []
    monkeypatch.setattr(monitor, "keep_ram_in_place", lambda _d: None)
    monkeypatch.setattr(monitor, "load_state", lambda _d, path, offset, _s: given.append(path.read_bytes()[offset:]))
    monkeypatch.setattr(monitor, "copy_ram_again", lambda _d: None)
    monkeypatch.setattr(monitor, "qemu_version", lambda _d: "11.1.3")
    restore.restore(FakeHypervisor(FakeDomain()), pool, journal, UUID, 10)  # type: ignore[arg-type]
    assert given == [b"QEVM" * 9000]
    assert journal.vm(UUID)["state"] == "resumed"
    assert not list(pool.root.glob("state.unpacked"))


@pytest.mark.parametrize(("line", "bound"), [("ro quiet", True), ("elfcorehdr=0x54000000 ro quiet", False)])
def test_only_a_crash_kernel_frees_a_vm_of_what_it_lacks(
    pool: Any, journal: Any, monkeypatch: pytest.MonkeyPatch, line: str, bound: bool
) -> None:
    """An ordinary kernel may have CPUs switched off that a VM's set names; libvirt has always taken that."""
    numatune = "<numatune><memory mode='strict' nodeset='9'/></numatune>"
    (pool.root / "state").write_bytes(save_image(XML.replace("</domain>", f"{numatune}</domain>")))
    monkeypatch.setattr(restore.kexec, "running_cmdline", lambda: line)
    given: list[str] = []
    hypervisor = SimpleNamespace(create_paused=lambda _name, xml: given.append(xml) or FakeDomain())
    restore._start(hypervisor, pool, journal, record(pool))  # type: ignore[arg-type]
    assert ("numatune" in given[0]) is bound
    assert [("numatune" in text) for text in journal.view["warnings"]] == ([] if bound else [True])


@pytest.mark.parametrize(
    ("line", "mib", "kept"), [("ro", 10, False), ("elfcorehdr=0x54000000 ro", 100, True), ("elfcorehdr=1", 200, False)]
)
def test_a_crash_kernel_without_room_for_another_qemu_keeps_the_vm(
    pool: Any, journal: Any, monkeypatch: pytest.MonkeyPatch, line: str, mib: int, kept: bool
) -> None:
    """Else it would kill one for want of RAM."""
    monkeypatch.setattr(restore.kexec, "running_cmdline", lambda: line)
    monkeypatch.setattr(restore.kexec, "mem_available", lambda: mib << 20)
    domain, pool.placed = FakeDomain(), False
    with pytest.raises(VmError, match="no RAM left for its QEMU" if kept else "has not got the RAM"):
        restore.restore(FakeHypervisor(domain), pool, journal, UUID, 10)  # type: ignore[arg-type]
    assert (domain.calls, (pool.root / "state").exists()) == ([] if kept else ["destroy"], True)


def test_a_state_that_qemu_refuses_is_kept(pool: Any, journal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise VmError("QEMU refuses its state")

    domain = FakeDomain()
    monkeypatch.setattr(monitor, "keep_ram_in_place", lambda _d: None)
    monkeypatch.setattr(monitor, "load_state", refuse)
    with pytest.raises(VmError, match="refuses its state"):
        restore.restore(FakeHypervisor(domain), pool, journal, UUID, 10)  # type: ignore[arg-type]
    assert domain.calls == ["destroy"]
    assert (pool.root / "state").exists()
    assert journal.vm(UUID)["state"] == "suspended"


@pytest.mark.parametrize("running", [False, True])
def test_a_qemu_that_has_other_ram_gets_no_state(
    pool: Any, journal: Any, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    """Whatever its CPUs do: what runs there, on zeros, is not the guest."""
    pool.placed = False
    domain = FakeDomain()
    domain.running = running
    for deed in ("keep_ram_in_place", "load_state", "copy_ram_again"):
        monkeypatch.setattr(monitor, deed, lambda *_a: pytest.fail("it was given the guest's state"))
    with pytest.raises(VmError, match="has not got the RAM"):
        restore.restore(FakeHypervisor(domain), pool, journal, UUID, 10)  # type: ignore[arg-type]
    assert domain.calls == ["destroy"]
    assert ((pool.root / "state").exists(), (pool.root / "released").exists()) == (True, False)
    assert journal.vm(UUID)["state"] == "suspended"


def test_a_guest_that_a_person_let_go_on_keeps_running_and_its_state_is_used(
    pool: Any, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waits for the network it is paused, and virsh resume is at hand."""
    domain = FakeDomain()
    told: list[str] = []
    monkeypatch.setattr(monitor, "keep_ram_in_place", lambda _d: None)
    monkeypatch.setattr(monitor, "load_state", lambda *_a: None)
    monkeypatch.setattr(monitor, "copy_ram_again", lambda _d: told.append("ram is copied"))
    monkeypatch.setattr(monitor, "qemu_version", lambda _d: "11.1.3")

    def ready(_domain: object) -> None:
        domain.running = True
        raise VmError("br0 is silent")

    restore.restore(FakeHypervisor(domain), pool, journal, UUID, 10, ready)  # type: ignore[arg-type]
    assert domain.calls == []
    assert (journal.vm(UUID)["state"], (pool.root / "state").exists()) == ("resumed", False)
    assert "let go on by somebody else (br0 is silent)" in journal.view["warnings"][0]
    assert told[-1] == "ram is copied"


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, str]]]:
    """What QEMU answers to each command, call by call; the commands that were sent to it are its keys."""
    answers: dict[str, list[dict[str, str]]] = {"migrate-incoming": [{}], "remove-fd": [{}]}
    monkeypatch.setattr(monitor, "execute", lambda _domain, command, **_words: answers[command].pop(0))
    monkeypatch.setattr(monitor, "_pass_file", lambda _domain, _image: None)
    monkeypatch.setattr(monitor, "LOOK_S", 0.0)
    return answers


def test_a_state_is_waited_for_until_qemu_has_all_of_it(qemu: dict[str, list[dict[str, str]]]) -> None:
    qemu["query-migrate"] = [{}, {"status": "active"}, {"status": "completed"}, {"status": "completed"}]
    qemu["query-status"] = [{"status": "inmigrate"}, {"status": "paused"}]
    monitor.load_state(FakeDomain(), Path("state"), 0, 10.0)  # type: ignore[arg-type]
    assert not any(qemu.values())


def test_a_state_that_qemu_cannot_take_is_refused_in_its_own_words(qemu: dict[str, list[dict[str, str]]]) -> None:
    qemu["query-migrate"] = [{"status": "active"}, {"status": "failed", "error-desc": "no such device"}]
    with pytest.raises(VmError, match="refuses its state: no such device"):
        monitor.load_state(FakeDomain(), Path("state"), 0, 10.0)  # type: ignore[arg-type]


def test_a_qemu_waits_for_its_state_until_it_has_all_of_it(qemu: dict[str, list[dict[str, str]]]) -> None:
    qemu["query-status"] = [{"status": status} for status in ("inmigrate", "paused", "io-error")]
    assert [monitor.waits_for_state(FakeDomain()) for _ in range(3)] == [True, False, False]  # type: ignore[arg-type]


def test_one_failure_takes_no_other_along() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 2:
            raise VmError("two")
        done.append(item)

    failures = lanes.in_order(work, [1, 2, 3], 1)
    assert (done, [item for item, _ in failures]) == ([1, 3], [2])


def test_nothing_new_is_begun_after_a_failure() -> None:
    begun: list[int] = []

    def fail_at_two(item: int) -> None:
        if item == 2:
            raise VmError("two")

    assert lanes.until_failure(begun.append, fail_at_two, [1, 2, 3], 1)[0][0] == 2
    assert begun == [1, 2]


def test_items_are_begun_strictly_in_order_and_finished_side_by_side() -> None:
    begun: list[int] = []
    assert lanes.until_failure(begun.append, lambda _item: None, list(range(50)), 4) == []
    assert begun == list(range(50))
