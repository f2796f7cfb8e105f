# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab host is made of: its networks, shared with the others, and its firmware."""

from __future__ import annotations

import configparser
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from holdfast.lab import emulator, hosts, image, switch, up
from holdfast.lab.emulator import Firmware
from holdfast.lab.hosts import Host
from holdfast.lab.switch import Forward


def host(name: str, folder: Path, number: int) -> Host:
    forwards = (Forward("ssh", switch.address(number), 22, 2200 + number),)
    address = f"192.168.77.{number}"
    return Host(name, 0, "tcg", 2048, 2, str(folder), "key", forwards=forwards, peer_address=address)


def networks(name: str, folder: Path, number: int) -> dict[str, configparser.SectionProxy]:
    files = hosts._identity(host(name, folder, number), number)
    parsed = {}
    for file, text in files.items():
        if file.endswith(".network"):
            parser = configparser.ConfigParser(strict=False)
            parser.read_string(text)
            parsed[file.split("-")[1].split(".")[0]] = parser["Network"]
    return parsed


def test_every_host_has_its_card_in_its_bridge_and_addresses_of_its_own(tmp_path: Path) -> None:
    each = [networks(f"hv{number}", tmp_path, number) for number in range(1, switch.MOST_HOSTS + 1)]
    assert {networks["uplink"]["Bridge"] for networks in each} == {"br0"}
    assert [networks["br0"]["Address"] for networks in each] == ["10.0.2.15/24", "10.0.2.16/24", "10.0.2.17/24"]
    assert [networks["peers"]["Address"] for networks in each] == [
        "192.168.77.1/24",
        "192.168.77.2/24",
        "192.168.77.3/24",
    ]


def cables() -> tuple[switch.Cables, ...]:
    return tuple(
        tuple((7000 + 10 * number + card, 7100 + 10 * number + card) for card in range(len(switch.CARDS)))
        for number in range(1, switch.MOST_HOSTS + 1)
    )


def test_the_switch_has_a_socket_for_each_cable(tmp_path: Path) -> None:
    """Nobody depends on another host: guests on hv3 are reached while hv1 is in its jump."""
    offered = " ".join(switch._arguments(tmp_path, (), cables()))
    for number, of_host in enumerate(cables(), start=1):
        plugged = replace(host(f"hv{number}", tmp_path / f"hv{number}", number), cables=of_host)
        words = " ".join(hosts._arguments(plugged, 1, number))
        assert words.count("virtio-net-pci") == len(switch.CARDS)
        for here, there in of_host:
            assert f"local.port={here},remote.type=inet,remote.host=127.0.0.1,remote.port={there}" in words
            assert f"local.port={there},remote.type=inet,remote.host=127.0.0.1,remote.port={here}" in offered


def test_the_outside_does_not_hear_what_hosts_say_to_each_other(tmp_path: Path) -> None:
    """libslirp would answer for them, and send what it hears to addresses that are not the lab's."""
    words = switch._arguments(tmp_path, (), cables())
    hubs = {word.split("netdev=")[1]: word.split("hubid=")[1][0] for word in words if word.startswith("hubport,")}
    assert hubs["outside"] == "0"
    assert {name: hub for name, hub in hubs.items() if name.startswith("peers")} == {
        f"peers{number}": "1" for number in range(1, switch.MOST_HOSTS + 1)
    }


def test_a_host_has_its_own_ssh_and_leads_to_every_guest() -> None:
    ssh = tuple(Forward(f"hv{number}.ssh", switch.address(number), 22, 2200 + number) for number in (1, 2))
    guest = Forward("db1.redis", "10.0.2.50", 6379, 4000)
    found = switch.Switch(1, "/lab", (*ssh, guest)).of("hv2")
    assert found == (replace(ssh[1], name="ssh"), guest)


def test_a_switch_that_has_ended_is_known_to_have(tmp_path: Path) -> None:
    """The pid on record may be another process by now; ours here, for example."""
    found = switch.Switch(os.getpid(), str(tmp_path), ())
    assert not found.alive
    switch.stop(found)


def test_a_uefi_host_keeps_the_firmwares_variables_for_itself(tmp_path: Path) -> None:
    plain = host("hv1", tmp_path / "hv1", 1)
    by_uefi = replace(plain, firmware=Firmware.UEFI, uefi_code="/cache/uefi-code.fd")
    flash = [word for word in hosts._arguments(by_uefi, 1, 1) if "if=pflash" in word]
    assert ["readonly=on" in word for word in flash] == [True, False]
    assert f"file={tmp_path}/hv1/uefi-variables.fd" in flash[1]
    assert not [word for word in hosts._arguments(plain, 1, 1) if "if=pflash" in word]


def test_root_and_esp_lie_side_by_side_up_to_the_end_of_the_disk() -> None:
    table = image._partition_table()
    (root, root_sectors), (esp, esp_sectors) = (struct.unpack_from("<II", table, at + 8) for at in (0, 16))
    assert len(table) == 64
    assert root + root_sectors == esp
    assert (esp + esp_sectors) * image.SECTOR == image.DISK_BYTES


@pytest.mark.parametrize("nodes", [0, -1, 64])
def test_a_number_of_nodes_that_cannot_be_is_refused_before_anything_is_built(tmp_path: Path, nodes: int) -> None:
    with pytest.raises(BadInput, match="NUMA nodes is not possible"):
        up.up(tmp_path, up.Wish(nodes=nodes))


def test_each_numa_node_of_a_host_with_two_cpus_has_one_of_them() -> None:
    words = emulator.machine_arguments("kvm", 4096, cpus=2, nodes=2)
    assert words[words.index("-smp") + 1] == "2,sockets=2"
    assert [word for word in words if word.startswith("cpu,")] == [
        "cpu,node-id=0,socket-id=0",
        "cpu,node-id=1,socket-id=1",
    ]
