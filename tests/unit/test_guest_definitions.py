# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's guests differ in what an upgrade could trip over, and never in name, address or identity."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import monitor
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from holdfast.lab.guests.definitions import (
    GUESTS,
    Firmware,
    GuestSpec,
    Machine,
    Role,
    bench_guest,
    define_script,
    domain_xml,
    forwards,
)
from holdfast.lab.guests.witness import settings_from


def domain(guest: GuestSpec) -> ET.Element:
    return ET.fromstring(domain_xml(guest))


def cmdline(guest: GuestSpec) -> str:
    return domain(guest).findtext("os/cmdline") or ""


def test_default_guests_cover_machines_firmware_cpu_models_and_sizes() -> None:
    domains = [domain(guest) for guest in GUESTS]
    assert {each.find("os/type").get("machine") for each in domains} == {"q35", "pc"}
    assert {each.find("cpu").get("mode") for each in domains} == {"host-model", "host-passthrough"}
    assert {guest.firmware for guest in GUESTS} == {Firmware.BIOS, Firmware.UEFI}
    assert len({each.findtext("memory") for each in domains}) == len(GUESTS)
    assert len({guest.priority for guest in GUESTS}) == len(GUESTS)


@pytest.mark.parametrize("key", ["name", "ip", "mac", "uuid", "disk", "console"])
def test_no_two_guests_share(key: str) -> None:
    assert len({getattr(guest, key) for guest in GUESTS}) == len(GUESTS)


def test_identity_is_the_same_in_every_run() -> None:
    first, second = GuestSpec("db1", "10.0.2.50"), GuestSpec("db1", "10.0.2.50")
    assert (first.uuid, first.mac) == (second.uuid, second.mac) == (GUESTS[0].uuid, "52:54:00:0f:02:32")


def test_disk_network_and_console_are_where_the_host_has_them() -> None:
    devices = domain(GUESTS[0]).find("devices")
    assert devices.find("disk/source").get("file") == "/var/lib/libvirt/images/db1.qcow2"
    assert devices.find("interface/source").get("bridge") == "br0"
    assert devices.find("serial/source").attrib == {
        "path": "/var/log/libvirt/qemu/db1-console.log",
        "append": "on",
    }


def test_only_a_guest_with_a_database_has_a_guest_agent() -> None:
    channels = {guest.name: domain(guest).find("devices/channel/target") for guest in GUESTS}
    assert {name for name, target in channels.items() if target is not None} == {"db1"}
    assert channels["db1"].get("name") == monitor.GUEST_AGENT


def test_ram_is_left_to_libvirt_until_prepare_converts_the_definition() -> None:
    assert all(domain(guest).find("memoryBacking") is None for guest in GUESTS)


def test_uefi_is_flash_with_variables_of_the_guest_s_own() -> None:
    guest = domain(GuestSpec("u", "10.0.2.99", firmware=Firmware.UEFI))
    assert guest.find("os/loader").attrib == {"readonly": "yes", "type": "pflash"}
    assert guest.find("os/nvram").get("template") != guest.findtext("os/loader")
    assert domain(GuestSpec("b", "10.0.2.98")).find("os/loader") is None


def test_the_witness_understands_the_kernel_arguments() -> None:
    guest = GuestSpec("db7", "10.0.2.57", role=Role.DB, memory_mib=16, machine=Machine.PC)
    settings = settings_from(cmdline(guest), "some-boot")
    assert (settings.name, settings.role, settings.memory_mib) == ("db7", "db", 16)
    assert "guest.ip=10.0.2.57/24 guest.gw=10.0.2.2" in cmdline(guest)


def test_forwards_name_every_service_of_every_guest() -> None:
    assert {each.name: (each.address, each.port) for each in forwards(GUESTS)} == {
        "db1.witness": ("10.0.2.50", 7000),
        "db1.redis": ("10.0.2.50", 6379),
        "tick1.witness": ("10.0.2.51", 7000),
        "uefi1.witness": ("10.0.2.52", 7000),
    }


def test_a_bench_guest_has_room_for_what_it_is_to_touch() -> None:
    for touched_mib in (512, 4096):
        guest = bench_guest(touched_mib)
        assert guest.ram_mib - touched_mib > 256
        assert guest.memory_mib == 1


def test_define_script_is_valid_shell_and_starts_nothing() -> None:
    script = define_script()
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0
    assert script.count("virsh -q define") == len(GUESTS)
    assert "virsh -q start" not in script


@pytest.mark.parametrize("name", ["", "Db1", "a b", "x<y", "1a", "a" * 40])
def test_a_name_that_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="not a host name"):
        GuestSpec(name, "10.0.2.50")
