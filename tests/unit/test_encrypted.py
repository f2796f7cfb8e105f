# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that asks for a passphrase at each boot is no host to jump with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import encrypted

MOUNTS = """\
22 1 253:2 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw
23 22 254:1 / /boot rw,relatime shared:2 - ext4 /dev/vda1 rw
24 22 0:42 / /var/lib/holdfast rw,relatime shared:3 - btrfs /dev/mapper/data rw
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """/ on LVM on LUKS on a partition, /boot on a plain one, the state directory on btrfs on LUKS."""
    for name, number, uuid, mapped in (
        ("dm-0", "253:0", "CRYPT-LUKS2-ab12-vda3_crypt", "vda3_crypt"),
        ("dm-1", "253:1", "CRYPT-LUKS2-cd34-data", "data"),
        ("dm-2", "253:2", "LVM-ef56", "vg-root"),
        ("vda1", "254:1", "", ""),
        ("vda3", "254:3", "", ""),
    ):
        place = tmp_path / "sys/devices" / name
        (place / "slaves").mkdir(parents=True)
        if uuid:
            (place / "dm").mkdir()
            (place / "dm/uuid").write_text(f"{uuid}\n")
            (place / "dm/name").write_text(f"{mapped}\n")
        for link in (tmp_path / "sys/dev/block" / number, tmp_path / "sys/class/block" / name):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(place)
    (tmp_path / "sys/devices/dm-2/slaves/dm-0").symlink_to(tmp_path / "sys/devices/dm-0")
    (tmp_path / "sys/devices/dm-0/slaves/vda3").symlink_to(tmp_path / "sys/devices/vda3")
    for name in ("proc/self", "etc", "dev/mapper"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTS)
    os.symlink("../dm-1", tmp_path / "dev/mapper/data")
    (tmp_path / "dev/dm-1").touch()
    return tmp_path


def crypttab(root: Path, *lines: str) -> None:
    (root / "etc/crypttab").write_text("# name device key options\n\n" + "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("entry", "asks"),
    [
        ("vda3_crypt UUID=1 none luks,discard", True),
        ("vda3_crypt UUID=1 - luks", True),
        ("vda3_crypt UUID=1", True),
        ("other UUID=1 /root/key luks", True),
        ("vda3_crypt UUID=1 /root/key luks", False),
        ("vda3_crypt UUID=1 none luks,tpm2-device=auto", False),
        ("vda3_crypt UUID=1 none luks,keyscript=/sbin/fetch", False),
    ],
)
def test_a_root_whose_passphrase_is_typed_is_found(root: Path, entry: str, asks: bool) -> None:
    crypttab(root, entry)
    assert encrypted.locked(["/", "/boot"], root) == (("vda3_crypt",) if asks else ())


def test_a_file_system_with_numbers_of_its_own_is_found_by_its_device(root: Path) -> None:
    crypttab(root, "vda3_crypt UUID=1 /root/key luks", "data UUID=2 none luks")
    assert encrypted.locked(["/", "/var/lib/holdfast"], root) == ("data",)


def test_one_that_is_opened_by_hand_is_found(root: Path) -> None:
    assert encrypted.locked(["/"], root) == ("vda3_crypt",)


def test_clevis_opens_them_by_itself(root: Path) -> None:
    (root / encrypted.CLEVIS).parent.mkdir(parents=True)
    (root / encrypted.CLEVIS).touch()
    assert encrypted.locked(["/"], root) == ()


def test_a_host_without_encryption_has_none(root: Path) -> None:
    assert encrypted.locked(["/boot"], root) == ()
