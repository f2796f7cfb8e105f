# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same hypervisor with a pool of DAX devices: the kind of a prepared host is changed, and everybody carries on."""

from __future__ import annotations

import json

import pytest
from rack import Rack

from holdfast.faults import matrix, strike
from holdfast.faults.catalogue import Ending, Fault
from holdfast.lab import scene
from holdfast.lab.guests.definitions import GUESTS

pytestmark = pytest.mark.long

NOTHING = Fault("nothing goes wrong", "any", "", "true", (Ending.UPGRADED,))
LIVE = "/var/lib/holdfast/pool/dax/libvirt/qemu"
# What a process under the profile of a VM's QEMU is told when it opens the RAM of each VM, and the devices themselves.
OPENED_AS = f"""\
import glob, os, sys
def told(path):
    try:
        os.close(os.open(path, os.O_RDWR))
        return "opened"
    except OSError as exc:
        return exc.strerror
places = sorted(glob.glob("{LIVE}/*/*")) + sorted(glob.glob("/dev/dax*.[1-9]*"))
with open("/proc/self/attr/apparmor/current", "w") as profile:
    profile.write("changeprofile libvirt-" + sys.argv[1])
print("\\n".join(path + " " + told(path) for path in places))
"""
# How many of a device's pages are not zeros, and how many there are.
USED_PAGES = """\
import mmap, os, sys
with open(sys.argv[1], "rb", buffering=0) as device:
    ram = mmap.mmap(device.fileno(), int(sys.argv[2]), prot=mmap.PROT_READ)
    pages = range(0, len(ram), 4096)
    print(sum(ram[at : at + 4096] != bytes(4096) for at in pages), len(pages))
"""


@pytest.fixture(scope="module")
def with_devices(prepared: Rack) -> Rack:
    """The hypervisor with another kind of pool, and all guests at work in it."""
    refused = prepared.playbook("prepare", "--limit", "hv1", "-e", "prepare_pool_kind=devdax")
    if prepared.on_host("virsh -q list --name").split():
        assert refused.status != 0
        assert "VMs run with their RAM in the pool of kind fsdax" in refused.text
    for name in prepared.on_host("virsh -q list --name").split():
        prepared.on_host(f"virsh -q destroy {name}")
    done = prepared.playbook(
        "prepare", "--limit", "hv1", "-e", "prepare_pool_kind=devdax", "-e", "prepare_reboot_ok=true"
    )
    assert done.status == 0
    strike.install(scene.start_guests(prepared.folder))
    return prepared


def node_of(rack: Rack, name: str) -> str:
    return rack.on_host(f"ls {LIVE}/*-{name}/pc.ram").strip()


def used_pages(rack: Rack, name: str) -> tuple[int, int]:
    """Of the RAM of a running VM: pages that are not zeros, and all."""
    size = next(guest.ram_mib for guest in GUESTS if guest.name == name) << 20
    script = f"python3 - {node_of(rack, name)} {size} <<'END'\n{USED_PAGES}END\n"
    used, pages = rack.on_host(script).split()
    return int(used), int(pages)


def test_every_guest_has_a_device_and_large_pages(with_devices: Rack) -> None:
    for guest in GUESTS:
        node = node_of(with_devices, guest.name)
        assert with_devices.on_host(f"stat -c %F {node}").strip() == "character special file"
        maps = with_devices.on_host(f"grep -A 25 {node} /proc/$(pgrep -f 'guest={guest.name},')/smaps")
        assert "MMUPageSize:        2048 kB" in maps


def test_a_qemu_opens_the_ram_of_its_own_vm_only(with_devices: Rack) -> None:
    first, *others = GUESTS
    told = with_devices.on_host(f"python3 - {first.uuid} <<'END'\n{OPENED_AS}END\n")
    answers = dict(line.split(" ", 1) for line in told.splitlines())
    assert answers.pop(node_of(with_devices, first.name)) == "opened"
    assert set(answers.values()) == {"Permission denied"}
    assert {node_of(with_devices, other.name) for other in others} < set(answers)


def test_a_vm_gets_nothing_of_what_another_had_in_its_ram(with_devices: Rack) -> None:
    used, pages = used_pages(with_devices, "tick1")
    assert used > pages // 10
    with_devices.on_host("virsh -q destroy tick1; virsh -q start --paused tick1")
    # Its firmware and tables are there already.
    assert used_pages(with_devices, "tick1")[0] < pages // 50
    with_devices.on_host("virsh -q resume tick1")
    scene.start_guests(with_devices.folder)


def test_every_guest_carries_on(with_devices: Rack) -> None:
    row = matrix.one(with_devices.host, NOTHING)
    print(row)
    assert row.trouble == ()
    assert (row.vms_lost, row.vms_run_twice) == (0, 0)
    assert all(vm["ram_verified"] for vm in with_devices.journal()["vms"])
    assert json.loads(with_devices.on_host("cat /etc/holdfast/agent.json"))["pool"]["kind"] == "devdax"
