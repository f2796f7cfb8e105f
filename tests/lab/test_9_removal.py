# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that is not to be upgraded in place any more: nothing of ours is left on it, and its VMs start as before."""

from __future__ import annotations

import pytest
from rack import Rack

from holdfast.lab import scene
from holdfast.lab.guests.definitions import GUESTS

pytestmark = pytest.mark.long

# Whatever has our name, in it or on it, but for the lab's own way to tell its hosts apart.
OURS = """\
find /etc /boot /usr /var/lib -xdev -name '*holdfast*' || true
grep -rIl --exclude='lab-identity*' holdfast /etc /boot/grub /usr/local /usr/lib/systemd || true
"""
SHUT_DOWN = """\
for name in $(virsh -q list --name); do virsh -q shutdown $name; done
until [ -z "$(virsh -q list --name)" ]; do sleep 1; done
"""
SOURCES = (
    "for name in $(virsh -q list --all --name); do virsh dumpxml --inactive $name; done | grep -c memoryBacking || true"
)


@pytest.fixture(scope="module")
def in_use(prepared: Rack) -> Rack:
    """The hypervisor with all guests at work in its pool."""
    scene.start_guests(prepared.folder)
    return prepared


def test_a_pool_in_use_is_not_given_back(in_use: Rack) -> None:
    before = in_use.on_host(OURS)
    refused = in_use.playbook("remove", "--limit", "hv1", "-e", "prepare_reboot_ok=true")
    assert refused.status == 2
    for guest in GUESTS:
        assert guest.name in refused.text
    assert in_use.on_host(OURS) == before
    assert set(in_use.on_host("virsh -q list --name").split()) == {guest.name for guest in GUESTS}


def test_nothing_of_ours_is_left_and_the_host_has_all_its_ram(in_use: Rack) -> None:
    with_a_pool = memory_kib(in_use)
    pool = sum(region["size"] for region in in_use.pool()["regions"])
    in_use.on_host(SHUT_DOWN)
    done = in_use.playbook("remove", "--limit", "hv1", "-e", "prepare_reboot_ok=true")
    assert done.status == 0
    assert in_use.on_host(OURS).split() == []
    assert in_use.on_host(SOURCES).strip() == "0"
    assert memory_kib(in_use) - with_a_pool >= 0.95 * (pool >> 10)
    command_line = in_use.on_host("cat /proc/cmdline")
    assert not any(word in command_line for word in ("memmap", "efi_fake_mem", "crashkernel", "holdfast"))


def test_its_vms_start_as_before(in_use: Rack) -> None:
    host = scene.start_guests(in_use.folder)
    for guest in GUESTS:
        assert scene.witness(host, guest).verify()["errors"] == []


def test_removing_it_once_more_changes_nothing(in_use: Rack) -> None:
    again = in_use.playbook("remove", "--limit", "hv1")
    assert again.status == 0
    assert "changed=0" in again.text


def memory_kib(rack: Rack) -> int:
    return int(rack.on_host("awk '/^MemTotal/ { print $2 }' /proc/meminfo"))
