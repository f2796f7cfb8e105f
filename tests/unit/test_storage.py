# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM whose disks come late waits for them after a jump, for a while, and nobody waits for it."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import storage
from ansible_collections.holdfast.kvm.plugins.module_utils._core.storage import Storage

JUMPED: Any = SimpleNamespace(view={"boot_id": {"from": "old", "to": "new"}})
STAYED: Any = SimpleNamespace(view={"boot_id": {"from": "old", "to": ""}})
XML = """<domain><memory>1</memory><devices>
<disk type='file'><source file='{0}/top'/><backingStore type='file'><source file='{0}/base'/></backingStore></disk>
<disk type='block'><source dev='{0}/nbd0'/></disk>
<disk type='file' device='cdrom'><source file='{0}/gone.iso'/></disk>
<disk type='network'><source protocol='rbd' name='pool/image'/></disk>
</devices></domain>"""


def vm(name: str, *disks: Path) -> dict[str, Any]:
    return {"uuid": name, "name": name, "disks": [str(disk) for disk in disks]}


def test_paths_are_those_that_are_there_with_what_they_stand_on(tmp_path: Path) -> None:
    for name in ("top", "base"):
        (tmp_path / name).touch()
    domain: Any = SimpleNamespace(xml=lambda: XML.format(tmp_path))
    assert storage.of(domain) == (f"{tmp_path}/base", f"{tmp_path}/top")


@pytest.mark.parametrize(("sectors", "there"), [("0\n", False), ("8192\n", True)])
def test_a_device_without_a_size_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sectors: str, there: bool
) -> None:
    (tmp_path / "43:0").mkdir()
    (tmp_path / "43:0/size").write_text(sectors)
    monkeypatch.setattr(storage, "DEVICES", tmp_path)
    device = SimpleNamespace(st_mode=stat.S_IFBLK, st_rdev=os.makedev(43, 0))
    with monkeypatch.context() as looking:
        looking.setattr(storage.os, "stat", lambda _path: device)
        found = storage.lacking({"disks": ["/dev/nbd0"]})
    assert (found == []) is there


def test_those_that_are_there_come_first_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    vms = [vm("db", tmp_path / "late"), vm("web", tmp_path / "here"), vm("mail"), vm("tick", tmp_path / "late")]
    there, late = Storage(JUMPED, 60).sorted_out(vms)
    assert ([one["name"] for one in there], [one["name"] for one in late]) == (["web", "mail"], ["db", "tick"])


def test_each_comes_when_its_disks_are_there_and_the_others_in_the_end(tmp_path: Path) -> None:
    """libvirt has the last word on those that are missing still."""
    (tmp_path / "here").touch()
    vms = [vm("db", tmp_path / "never"), vm("web", tmp_path / "here"), vm("tick", tmp_path / "late")]
    told: list[str] = []
    order = []
    for some in Storage(JUMPED, 1.0).as_they_come(vms, told.append):
        order.append([one["name"] for one in some])
        (tmp_path / "late").touch()
    assert order == [["web"], ["tick"], ["db"]]
    assert told[0] == "what the disks of db, tick are on is not there yet, and is waited for"
    assert told[1:] == [f"VM db: what its disks are on is missing, still after 1 s: {tmp_path}/never"]


def test_a_disk_that_comes_is_waited_for(tmp_path: Path) -> None:
    timer = threading.Timer(0.3, (tmp_path / "late").touch)
    timer.start()
    assert Storage(JUMPED, 30).wait_for(vm("db", tmp_path / "late")) == ""
    assert (tmp_path / "late").exists()


def test_one_that_does_not_come_is_named(tmp_path: Path) -> None:
    found = Storage(JUMPED, 0.2).wait_for(vm("db", tmp_path / "late"))
    assert found == f"VM db: what its disks are on is missing, still after 0 s: {tmp_path}/late"


def test_without_a_jump_nobody_waits(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert "is missing: " in Storage(STAYED, 60).wait_for(vm("db", tmp_path / "late"))
    assert time.monotonic() - begun < 5


def test_a_server_that_does_not_answer_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def hanging(path: str) -> bool:
        return answered.wait(30) if path.endswith("nfs") else True

    monkeypatch.setattr(storage, "_is_there", hanging)
    monkeypatch.setattr(storage, "LOOK_LIMIT_S", 0.1)
    there, late = Storage(JUMPED, 60).sorted_out([vm("db", tmp_path / "disk"), vm("web", tmp_path / "nfs")])
    assert ([one["name"] for one in there], [one["name"] for one in late]) == (["db"], ["web"])
    assert (
        Storage(JUMPED, 0.2)
        .wait_for(vm("web", tmp_path / "nfs"))
        .startswith("VM web: what its disks are on is missing")
    )
    answered.set()


def test_a_record_of_an_older_agent_names_no_disks() -> None:
    assert Storage(JUMPED, 0).wait_for({"uuid": "1", "name": "db"}) == ""
