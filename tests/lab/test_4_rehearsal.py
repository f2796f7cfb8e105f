# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A new kernel that would fail is found out in a throw-away VM, while every guest runs on.

These tests tell one story and run in this order: ``make faults``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest
from rack import Rack

from holdfast.lab import hosts, scene

pytestmark = pytest.mark.faults

# Packages are slow to install under emulation.
INSTALL_LIMIT_S = 900
CONSOLE = "/var/lib/holdfast/rehearsal/console.log"


@pytest.fixture(scope="module")
def release(prepared: Rack) -> str:
    """An installed kernel that does not run."""
    running = prepared.on_host("uname -r").strip()
    if others := [one for one in installed(prepared) if one != running]:
        return others[-1]
    hosts.on_host(
        prepared.host,
        "apt-get update -q && apt-get install -q -y -t trixie-backports linux-image-amd64",
        timeout_s=INSTALL_LIMIT_S,
    )
    return next(one for one in reversed(installed(prepared)) if one != running)


@pytest.fixture(scope="module")
def at_work(prepared: Rack) -> Iterator[scene.Watch]:
    """All guests at work, watched from here on."""
    with scene.watched(scene.start_guests(prepared.folder)) as watching:
        yield watching


def test_a_good_kernel_reaches_its_self_test_and_touches_nothing(
    at_work: scene.Watch, prepared: Rack, release: str
) -> None:
    before = standing(prepared)
    print(prepared.on_host("free -m"))
    print(told := prepared.on_host(f"holdfast-agent rehearse {release}"))
    print(prepared.on_host(f"cat {CONSOLE}"))
    assert f"kernel {release} reached its self-test, and passed" in told
    assert standing(prepared) == before
    assert prepared.on_host("ls /var/lib/holdfast/rehearsal").split() == ["console.log"]
    assert prepared.on_host("pgrep -fc 'name [h]oldfast-rehearsal' || true").strip() == "0"


def test_a_damaged_initrd_is_refused(at_work: scene.Watch, prepared: Rack, release: str) -> None:
    initrd = f"/boot/initrd.img-{release}"
    with changed(prepared, initrd, f"truncate -s $(($(stat -c %s {initrd}) / 2)) {initrd}"):
        refused(prepared, release, "its initrd is damaged", "it panicked")


def test_an_initrd_that_lacks_the_disks_driver_is_refused(at_work: scene.Watch, prepared: Rack, release: str) -> None:
    """Before a rehearsal would find it."""
    initrd, listed = f"/boot/initrd.img-{release}", "/etc/initramfs-tools/modules"
    assert "virtio_blk" in prepared.on_host(f"cat {listed}")
    forgotten = changed(prepared, listed, f"sed -i /virtio_blk/d {listed}")
    with forgotten, changed(prepared, initrd, f"mkinitramfs -o {initrd} {release}"):
        refused(prepared, release, f"{initrd} lacks virtio_blk")


def test_a_kernel_without_the_pools_driver_is_refused(at_work: scene.Watch, prepared: Rack, release: str) -> None:
    driver = module(prepared, release, "nd_pmem")
    with changed(prepared, driver, f"rm {driver}"):
        refused(prepared, release, "nd_pmem")


def test_a_driver_of_another_kernel_is_refused(at_work: scene.Watch, prepared: Rack, release: str) -> None:
    driver = module(prepared, release, "nd_pmem")
    other = module(prepared, prepared.on_host("uname -r").strip(), "nd_pmem")
    with changed(prepared, driver, f"cp {other} {driver}"):
        refused(prepared, release, "its module nd_pmem cannot be loaded")


def test_a_rehearsed_upgrade_goes_on_to_its_end(at_work: scene.Watch, prepared: Rack, release: str) -> None:
    done = upgrade(prepared, release)
    assert done[0] == 0
    assert "throw-away VM" in done[1]
    assert prepared.on_host("uname -r").strip() == release
    assert prepared.journal()["state"] == "restored"
    assert at_work.finish() == []


def installed(rack: Rack) -> list[str]:
    return rack.on_host("ls /boot/vmlinuz-* | sed 's/.*vmlinuz-//' | sort -V").split()


def module(rack: Rack, release: str, name: str) -> str:
    return rack.on_host(f"find /lib/modules/{release}/ -name '{name}.ko*'").strip()


def standing(rack: Rack) -> tuple[str, ...]:
    """Which boot this is, which VMs run in which QEMU, and whether a live update was begun."""
    looks = (
        "cat /proc/sys/kernel/random/boot_id",
        "virsh -q list | sort",
        "pgrep -f guest= | sort",
        "ls /var/lib/holdfast /var/lib/holdfast/history 2>/dev/null | grep -v rehearsal | sort",
        "cat /sys/kernel/kexec_loaded",
    )
    return tuple(rack.on_host(look) for look in looks)


@contextlib.contextmanager
def changed(rack: Rack, path: str, command: str) -> Iterator[None]:
    """A file of the host is other than it should be while the block runs."""
    rack.on_host(f"cp -p {path} /root/kept-$(basename {path}) && {command}")
    try:
        yield
    finally:
        rack.on_host(f"mv /root/kept-$(basename {path}) {path}")


def upgrade(rack: Rack, release: str) -> tuple[int, str]:
    wish = json.dumps({"stage_packages": [], "stage_kernel": release, "live_update_force": True})
    done = rack.run("holdfast", "upgrade", "--rehearse", "-i", str(rack.inventory), "-e", wish)
    return done.status, " ".join(done.text.split())


def refused(rack: Rack, release: str, *reasons: str) -> None:
    """Refused as by preflight, with one of these reasons; everything on the host is as it was."""
    before = standing(rack)
    status, text = upgrade(rack, release)
    print(rack.on_host(f"cat {CONSOLE} 2>/dev/null || true"))
    assert status == 3
    assert any(reason in text for reason in reasons)
    assert "no VM was touched" in text
    assert standing(rack) == before
