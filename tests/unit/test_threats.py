# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The threat model (docs/threat-model.md), line by line."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import stat
import struct
import subprocess
import sys
import time
from html import escape
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    agent,
    domain,
    domain_ram,
    durable,
    fsdax,
    guard,
    hook,
    installation,
    integrity,
    journal,
    kexec,
    packing,
    permit,
    request,
    reservation,
    saveimage,
    suspend,
    turn,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core import config as configuration
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config, PoolConfig
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, HoldfastError, VmError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import RamFile
from ansible_collections.holdfast.kvm.plugins.modules import verify

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "docs" / "threat-model.md"
UUID = "11111111-2222-4333-8444-555555555555"
NAMESPACE = domain.HOLDFAST_NAMESPACE


def definition(name: str = "db1", extra: str = "", before: str = "") -> str:
    return (
        f"{before}<domain type='kvm' id='3'><name>{name}</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory>"
        f"<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>{extra}<devices/></domain>"
    )


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# The model itself


def test_every_test_that_the_model_names_exists() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", MODEL.read_text())
    assert len(named) > 20
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]
    assert missing == []


# A VM's definition is hostile


def test_the_hook_hands_no_name_to_the_agent(tmp_path: Path) -> None:
    """A name like an option would be read as one; ``--help`` ends with 0, which libvirt takes for consent."""
    told = tmp_path / "told"
    script = installation.HOOK_SCRIPT.replace(f"/usr/bin/python3 -I {packing.PATH}", f"printf '%s\\n' >{told}")
    assert str(told) in script
    subprocess.run(["/bin/sh", "-s", "--", "--help", "start", "begin", "-"], input=script, text=True, check=True)
    assert told.read_text().split() == ["hook", "start", "begin"]


def test_the_agent_acts_on_a_vm_called_like_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    acted: list[str] = []
    monkeypatch.setattr(agent.configuration, "load", Config)
    monkeypatch.setattr(hook, "run", lambda _config, operation, _sub, xml: acted.append(f"{operation} {xml[:7]}"))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(definition("--help").encode())))
    assert agent.main(["hook", "start", "begin"]) == 0
    assert acted == ["start <domain"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"<domain>\xff</domain>", "is not UTF-8"),
        (b" " * (hook.LARGEST_XML + 1), "is larger than"),
        (b"", "cannot be read"),
        (b"<domain", "cannot be read"),
        (b"<domain id='x'><name>a</name><memory>4</memory></domain>", "is not a number"),
    ],
)
def test_a_definition_that_cannot_be_is_one_line_and_a_veto(
    text: bytes, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = Config(PoolConfig("fsdax", tmp_path / "pool", ()), tmp_path)
    monkeypatch.setattr(agent.configuration, "load", lambda: config)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text)))
    assert agent.main(["hook", "start", "begin"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.parametrize("before", ["", "\ufeff", "<?xml version='1.0'?>\n<!-- a --><!-- b -->\n"])
def test_entities_are_refused_before_they_are_read(before: str) -> None:
    entities = "<!DOCTYPE domain [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]>"
    with pytest.raises(BadInput, match="document type"):
        domain.vm_facts(definition("&b;", before=before + entities))


def test_a_text_that_only_speaks_of_entities_is_no_reason_to_refuse() -> None:
    extra = "<description><![CDATA[<!DOCTYPE html><!ENTITY]]></description><metadata><!--<!DOCTYPE x>--></metadata>"
    assert domain.vm_facts(definition(extra=extra)).name == "db1"


@pytest.mark.parametrize("name", ["../../../etc/cron.d/x", "a/../../b", "a\0b"])
def test_a_name_cannot_leave_its_directory(name: str) -> None:
    with pytest.raises(VmError, match="cannot be part of a path"):
        domain.live_directories(3, name)


@pytest.mark.parametrize("cell", ["0/../../../../etc/passwd", "-1", "x", ""])
def test_a_ram_file_cannot_leave_its_directory(cell: str) -> None:
    numa = f"<cpu><numa><cell id='{cell}' memory='65536' unit='KiB'/></numa></cpu>"
    with pytest.raises(BadInput, match="is not a number"):
        domain.vm_facts(definition(extra=numa))


@pytest.mark.parametrize("size", ["-4", "99999999999999999999"])
def test_an_impossible_size_of_ram_is_refused(size: str) -> None:
    numa = f"<cpu><numa><cell id='0' memory='{size}' unit='GiB'/></numa></cpu>"
    with pytest.raises(BadInput, match="is not a size"):
        domain.vm_facts(definition(extra=numa))


def test_a_name_is_what_libvirt_says_to_the_blank() -> None:
    """Without its blank a stranger's ``db1 `` would be judged, and treated, by the rule for ``db1``."""
    assert domain.vm_facts(definition("db1 ")).name == "db1 "


@pytest.mark.parametrize(
    "record",
    [
        "<memoryBacking/><devices><disk><source file='/etc/shadow'/></disk></devices><memoryBacking/>",
        "<devices/>",
        "<memoryBacking><source file='/etc/shadow'><x/></source></memoryBacking>",
        "<memoryBacking><commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'/></memoryBacking>",
        "<?xml version='1.0'?><memoryBacking/>",
        "no XML",
    ],
)
def test_what_metadata_records_cannot_add_anything_else(record: str) -> None:
    """Metadata may be written by whoever may label a VM. What comes out of it is only ever where RAM comes from."""
    tag = "original-memory-backing"
    extra = f"<metadata><h:{tag} xmlns:h='{NAMESPACE}'>{escape(record)}</h:{tag}></metadata>"
    with pytest.raises(BadInput, match="is not what holdfast recorded"):
        domain.from_pool_backing(definition(extra=extra))


@pytest.mark.parametrize("name", ["x; reboot", "$(reboot)", "a b", "--all", "it's"])
def test_a_command_line_that_is_suggested_is_quoted(name: str, tmp_path: Path) -> None:
    vm = verify.RunningVm(name, UUID, "running", "11.1.3", ram_stays_in_place=True)
    (problem,) = verify.problems(verify.Expected(), "6.12", {"state": "none"}, [vm])
    words = shlex.split(problem.partition("switch it off: ")[2])
    assert words[:4] == ["virsh", "qemu-monitor-command", "--hmp", f"--domain={name}"]
    current = journal.open_journal(tmp_path)
    begin(current, name)
    current.record("vm_lost", uuid=UUID)
    config = Config(PoolConfig("fsdax", tmp_path / "pool", ()), tmp_path)
    with pytest.raises(HoldfastError) as caught:
        hook.run(config, "prepare", "begin", definition(name))
    said = caught.value.hint.partition("all the same: ")[2]
    assert shlex.split(said) == ["holdfast-agent", "give-up", "--", name]


def begin(current: journal.Journal, name: str) -> None:
    vm = {"name": name, "uuid": UUID, "priority": 50}
    kernel = {"from": "6.12", "to": "7.2"}
    current.record("begin", generation="g-1", host="hv1", kernel=kernel, qemu="10", boot_id="old", vms=[vm])


# QEMU runs as an unprivileged user, and owns the directory of its RAM


class Mounted(fsdax.FsdaxPool):
    """A pool in a plain directory."""

    @property
    def mounted(self) -> bool:
        return True


@pytest.fixture
def pool(tmp_path: Path) -> Mounted:
    (tmp_path / "pool/holdfast").mkdir(parents=True, mode=0o700)
    (tmp_path / "pool/libvirt/qemu/3-db1").mkdir(parents=True)
    return Mounted(PoolConfig("fsdax", tmp_path / "pool", ()), tmp_path / "state")


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_only_a_plain_file_is_kept_as_ram(kind: str, pool: Mounted, tmp_path: Path) -> None:
    """A pipe would hold the agent for ever, a link would have it read, as root, what it names."""
    place = tmp_path / "pool/libvirt/qemu/3-db1/pc.ram"
    {"symlink": lambda: place.symlink_to("/etc/shadow"), "fifo": lambda: os.mkfifo(place), "directory": place.mkdir}[
        kind
    ]()
    with pytest.raises(VmError, match=r"pc\.ram is no plain file"):
        pool.keep(UUID, 3, "db1")
    assert pool.ram_of(UUID) == ()


def test_a_link_in_the_way_of_new_ram_is_not_followed(pool: Mounted, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "pool/libvirt/qemu/3-db1/pc.ram").symlink_to(victim)
    with pytest.raises(VmError, match="cannot start"):
        pool.reserve_vm(3, "db1", (RamFile("pc.ram", 8192),))
    assert victim.read_text() == "kept"


@pytest.mark.parametrize("uuid", ["", ".", "..", "../../etc", f"{UUID}/.."])
def test_only_a_uuid_names_a_place_in_the_vault(uuid: str, pool: Mounted) -> None:
    with pytest.raises(HoldfastError, match="is not a VM's uuid"):
        pool.release(uuid)


# Users of the host


def test_what_the_agent_writes_is_for_root_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        current = journal.open_journal(tmp_path / "state")
        durable.write_text(tmp_path / "state" / guard.NAME, "{}")
        request.write(tmp_path / "state", request.Request("g-1", "7.2"))
        begin(current, "db1")
        current.record("aborted", reason="")
        assert mode_of(tmp_path / "state/journal.jsonl") == 0o600
        current.archive()
    finally:
        os.umask(before)
    found = {path.relative_to(tmp_path).as_posix(): mode_of(path) for path in sorted(tmp_path.rglob("*"))}
    assert found == {
        "state": 0o700,
        f"state/{guard.NAME}": 0o600,
        "state/history": 0o700,
        "state/history/g-1.jsonl": 0o600,
        f"state/{request.NAME}": 0o600,
    }


def test_the_state_directory_lets_qemu_pass_and_nobody_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "CONFIG", tmp_path / "etc/agent.json")
    (tmp_path / "state").mkdir(mode=0o777)
    empty = reservation.Files(agent="", boot="", libvirt="")
    reservation.put(empty, reservation.Files(agent="{}", boot="", libvirt=""), tmp_path / "state")
    assert mode_of(tmp_path / "state") == 0o711
    assert mode_of(tmp_path / "etc/agent.json") & 0o022 == 0


def test_permits_and_locks_are_behind_a_closed_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, act in (("permit", lambda: permit.granted(UUID)), ("turn", turn.taken)):
        monkeypatch.setattr(permit, "RUN_DIR", tmp_path / name)
        monkeypatch.setattr(turn, "RUN_DIR", tmp_path / name)
        with act():
            assert mode_of(tmp_path / name) == 0o700


def test_a_permit_ends_with_the_agent_that_gave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permit, "RUN_DIR", tmp_path)
    child = os.fork()
    if not child:
        with permit.granted(UUID):
            (tmp_path / "granted").touch()
            signal.pause()
    try:
        while not (tmp_path / "granted").exists():
            time.sleep(0.01)
        assert permit.holds(UUID)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not permit.holds(UUID)
    with permit.granted(UUID):
        assert permit.holds(UUID)
    assert not permit.holds(UUID)


def test_a_link_in_the_way_of_durable_state_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    for name in (".journal.new", "log"):
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(HoldfastError, match="cannot write"):
        durable.write_text(tmp_path / "journal", "x")
    with pytest.raises(HoldfastError, match="cannot write"):
        durable.append_line(tmp_path / "log", "x")
    assert victim.read_text() == "kept"


def test_what_root_runs_is_not_for_others_to_change() -> None:
    assert all(file.mode & 0o022 == 0 for file in installation.FILES)
    assert packing.SHEBANG == b"#!/usr/bin/python3 -I\n", "isolated: no module of a user's directory is imported"
    assert "/usr/bin/python3 -I" in installation.HOOK_SCRIPT


# Memory stays where it is, and texts are shown, not obeyed


def test_nothing_of_a_vms_memory_is_on_record(pool: Mounted, tmp_path: Path) -> None:
    secret = b"correct horse battery staple"
    (tmp_path / "pool/libvirt/qemu/3-db1/pc.ram").write_bytes(secret * 512)
    pool.keep(UUID, 3, "db1")
    header = saveimage.MAGIC + struct.pack("=5I", 2, 1, 1, 0, 0)
    suspend.state_path(pool, UUID).write_bytes(header.ljust(saveimage.HEADER_BYTES, b"\0") + b"\0" + secret)
    evidence = suspend._evidence(pool, UUID, integrity.FULL)
    assert set(evidence) == {"state_bytes", "state_sha256", "ram_proofs"}
    assert set(evidence["ram_proofs"]["pc.ram"]) == {"inode", "size_bytes", "coverage", "sha256"}
    assert "horse" not in json.dumps(evidence)


def test_the_vault_is_closed_and_what_is_kept_is_in_it(pool: Mounted, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "pool/libvirt/qemu/3-db1/pc.ram").write_bytes(b"ram")
        pool.keep(UUID, 3, "db1")
    finally:
        os.umask(before)
    assert mode_of(pool.vault_of(UUID)) == 0o700
    assert suspend.state_path(pool, UUID).is_relative_to(pool.vault())


def test_the_agent_prints_nothing_that_a_terminal_obeys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    current = journal.open_journal(tmp_path)
    begin(current, "a\x1b]0;owned\x07\u202eb\x9b")
    current.record("vm_failed", uuid=UUID, error="QEMU says \x1b[2J\nholdfast: all is well")
    monkeypatch.setattr(agent.configuration, "load", lambda: Config(None, tmp_path))
    assert agent.main(["status"]) == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) == 2
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", told)


# The jump, and the way to the hosts


def test_kernels_are_loaded_by_file_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``kexec -s``: the kernel checks the signature where it enforces them, and never places itself in the pool."""
    called: list[list[str]] = []
    monkeypatch.setattr(kexec, "run", lambda argv, **_: called.append(argv) or "")
    for mark in ("LOADED", "CRASH_LOADED"):
        monkeypatch.setattr(kexec, mark, tmp_path / mark)
        (tmp_path / mark).write_text("1\n")
    monkeypatch.setattr(kexec, "LOADS_LEFT", tmp_path / "loads left")
    kexec.load(Path("/boot/vmlinuz"), Path("/boot/initrd"), "quiet")
    kexec.load_crash(Path("/boot/vmlinuz"), Path("/boot/initrd"), "quiet")
    kexec.unload()
    kexec.unload_crash()
    assert all(argv[:3] == ["kexec", "--no-sync", "-s"] for argv in called), called
    callers = re.compile(r"""run\(\s*\[\s*["']kexec""")
    core = (ROOT / "plugins/module_utils/_core").glob("*.py")
    others = [path.name for path in core if callers.search(path.read_text()) and path.name != "kexec.py"]
    assert others == [], "one door to kexec"


UNCHECKED = re.compile(
    r"StrictHostKeyChecking[= ]+(?:no|accept-new|off)|AutoAddPolicy|WarningPolicy"
    r"|host_key_checking\s*[=:]\s*[\"']?false|UserKnownHostsFile[= ]+/dev/null",
    re.IGNORECASE,
)


def test_nothing_reaches_a_host_without_its_key() -> None:
    folders = ("src", "plugins", "roles", "playbooks", "inventory", "tests/lab", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [ROOT / "ansible.cfg", ROOT / "README.md"]
    found = [str(path) for path in files if UNCHECKED.search(path.read_text(errors="replace"))]
    assert found == []


def test_no_password_of_a_console_is_in_a_result() -> None:
    """libvirt tells root; what a module returns is shown, logged and kept by AWX."""
    graphics = """<graphics type='vnc' port='-1' passwd='correct "horse' passwdValidTo='2027-01-01T00:00:00'/>"""
    spice = '<graphics type="spice" passwd = "battery"/>'
    before = f"<domain><devices>{graphics}{spice}</devices></domain>"
    told = domain_ram.Conversion("db1", before, before.replace("<domain>", "<domain><memoryBacking/>"), False)
    shown = str(told.difference)
    assert "horse" not in shown
    assert "battery" not in shown
    assert shown.count("2027-01-01") == 2
    assert "<memoryBacking/>" in told.difference["after"]
