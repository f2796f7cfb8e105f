# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Before a jump everything unwritten reaches its disk, and the pool is not asked for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import filesystems
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed

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
    """/proc of a host whose processes live in mount namespaces; what is synced."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.synced: list[str] = []
        self.process("self", "mnt:[1]", OURS)

    def process(self, number: str, namespace: str, mountinfo: str) -> None:
        (self.root / "proc" / number / "ns").mkdir(parents=True)
        (self.root / "proc" / number / "ns/mnt").symlink_to(namespace)
        (self.root / "proc" / number / "mountinfo").write_text(mountinfo)

    def run(self, argv: list[str], timeout_s: float) -> str:
        assert argv[:3] == ["sync", "-f", "--"]
        self.synced = argv[3:]
        return ""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host(tmp_path)
    monkeypatch.setattr(filesystems, "run", found.run)
    return found


def test_every_file_system_is_synced_once_and_the_pool_is_not(host: Host) -> None:
    filesystems.sync_all_but(POOL, host.root)
    assert sorted(host.synced) == ["/", "/proc", "/srv/two words"]


def test_what_only_a_container_has_mounted_is_synced_there(host: Host) -> None:
    host.process("700", "mnt:[1]", OURS)
    host.process("701", "mnt:[2]", CONTAINER)
    host.process("702", "mnt:[2]", CONTAINER)
    filesystems.sync_all_but(POOL, host.root)
    inside = [place.removeprefix(f"{host.root}/proc/70") for place in host.synced if place.startswith(str(host.root))]
    assert sorted(inside) in (["1/root/", "1/root/data"], ["2/root/", "2/root/data"])
    assert "/srv/two words" in host.synced


def test_without_a_mounted_pool_its_directory_is_as_any_other(host: Host) -> None:
    (host.root / "proc/self/mountinfo").write_text(OURS.splitlines()[0] + "\n")
    filesystems.sync_all_but(POOL, host.root)
    assert host.synced == ["/"]


def test_a_process_that_ends_meanwhile_is_passed_over(host: Host) -> None:
    (host.root / "proc/800").mkdir()
    filesystems.sync_all_but(POOL, host.root)
    assert "/" in host.synced


def test_a_file_system_that_fails_keeps_nobody_from_the_jump(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with sync(2). The VMs' own data is elsewhere: QEMU has flushed their disks when it saved them."""

    def fail(_argv: list[str], timeout_s: float) -> str:
        raise CommandFailed("sync ended with 1: error syncing '/srv': Input/output error")

    monkeypatch.setattr(filesystems, "run", fail)
    filesystems.sync_all_but(POOL, host.root)
