# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab host is made of: its network, on one cable with the others, and its firmware."""

from __future__ import annotations

import configparser
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from holdfast.lab import emulator, hosts, image, up
from holdfast.lab.emulator import Firmware
from holdfast.lab.hosts import Forward, Host


def host(name: str, folder: Path, number: int) -> Host:
    forwards = (Forward("ssh", "10.0.2.15", 22, 2200 + number),)
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


def test_guests_reach_each_other_on_every_host_and_the_world_through_the_first(tmp_path: Path) -> None:
    first, second = networks("hv1", tmp_path, 1), networks("hv2", tmp_path, 2)
    assert first["peers"]["Bridge"] == second["peers"]["Bridge"] == first["uplink"]["Bridge"] == "br0"
    assert "Bridge" not in second["uplink"]
    assert second["uplink"]["Address"] == "10.0.2.15/24"
    assert second["br0"]["Address"] == "192.168.77.2/24"


def test_the_second_host_dials_the_cable_that_the_first_one_offers(tmp_path: Path) -> None:
    cables = [" ".join(hosts._peer_link(host(f"hv{n}", tmp_path / f"hv{n}", n), n)) for n in (1, 2)]
    assert all(f"addr.path={tmp_path}/peers.sock" in cable for cable in cables)
    assert "server=on" in cables[0]
    assert "server=off" in cables[1]
    assert cables[0].split("mac=")[1] != cables[1].split("mac=")[1]


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
