# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Before a jump everything unwritten reaches its disk, and the pool is not asked for it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import command, filesystems
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError

LIMIT_S = 30.0
POOL = Path("/var/lib/holdfast/pool")
OURS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw - proc proc rw
24 22 254:2 / /srv/two\\040words rw - xfs /dev/vdb rw
25 23 0:30 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw,direct
26 22 259:0 / /var/lib/holdfast/pool rw - ext4 /dev/pmem0 rw,dax=always
27 22 254:1 /var/log /mnt rw - ext4 /dev/vda1 rw
28 22 259:0 /libvirt /srv/again rw - ext4 /dev/pmem0 rw,dax=always
"""
CONTAINER = """\
90 1 0:77 / / rw - overlay overlay rw
91 90 254:9 / /data rw - ext4 /dev/vdc rw
92 90 259:0 / /host/pool rw - ext4 /dev/pmem0 rw,dax=always
93 90 254:1 /etc/hosts /etc/hosts rw - ext4 /dev/vda1 rw
"""


class Host:
    """/proc of a host whose processes live in mount namespaces; what is synced, and what never ends."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.synced: list[str] = []
        self.hangs: tuple[str, ...] = ()
        self.process("self", "mnt:[1]", OURS)

    def process(self, number: str, namespace: str, mountinfo: str) -> None:
        (self.root / "proc" / number / "ns").mkdir(parents=True)
        (self.root / "proc" / number / "ns/mnt").symlink_to(namespace)
        (self.root / "proc" / number / "mountinfo").write_text(mountinfo)

    def run_beside(self, calls: dict[str, list[str]], limit_s: float) -> tuple[str, ...]:
        assert limit_s == LIMIT_S
        assert all(argv == ["sync", "-f", "--", place] for place, argv in calls.items())
        self.synced = list(calls)
        return self.hangs

    def sync(self) -> None:
        filesystems.sync_all_but(POOL, LIMIT_S, self.root)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host(tmp_path)
    monkeypatch.setattr(filesystems, "run_beside", found.run_beside)
    return found


def test_every_file_system_is_synced_once_and_the_pool_is_not(host: Host) -> None:
    host.sync()
    assert sorted(host.synced) == ["/", "/srv/two words"]


def test_what_only_a_container_has_mounted_is_synced_there(host: Host) -> None:
    host.process("700", "mnt:[1]", OURS)
    host.process("701", "mnt:[2]", CONTAINER)
    host.process("702", "mnt:[2]", CONTAINER)
    host.sync()
    inside = [place.removeprefix(f"{host.root}/proc/70") for place in host.synced if place.startswith(str(host.root))]
    assert sorted(inside) in (["1/root/", "1/root/data"], ["2/root/", "2/root/data"])
    assert "/srv/two words" in host.synced


def test_without_a_mounted_pool_its_directory_is_as_any_other(host: Host) -> None:
    (host.root / "proc/self/mountinfo").write_text(OURS.splitlines()[0] + "\n")
    host.sync()
    assert host.synced == ["/"]


def test_a_process_that_ends_meanwhile_is_passed_over(host: Host) -> None:
    (host.root / "proc/800").mkdir()
    host.sync()
    assert "/" in host.synced


def test_a_file_system_that_does_not_answer_is_named_and_nobody_waits_for_it_for_ever(host: Host) -> None:
    """A dead server's, for example: sync(2) would never return, with all VMs suspended."""
    host.hangs = ("/mnt/backup",)
    with pytest.raises(HoldfastError, match="not written to disk within 30 s: /mnt/backup"):
        host.sync()


def test_programs_that_do_not_end_are_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of the agent's unit, which systemd would not end before them."""
    monkeypatch.setattr(command, "NO_UNIT", tmp_path / "cgroup.procs")
    begun = time.monotonic()
    late = command.run_beside({"quick": ["true"], "broken": ["false"], "slow": ["sleep", "60"]}, 0.5)
    assert late == ("slow",)
    assert time.monotonic() - begun < 30
    assert int(command.NO_UNIT.read_text()) > 1


def test_a_host_without_such_groups_syncs_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "NO_UNIT", tmp_path / "absent/cgroup.procs")
    assert command.run_beside({"quick": ["true"]}, 10) == ()
