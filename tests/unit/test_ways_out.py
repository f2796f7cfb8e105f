# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs go on when their bridge, switch or card carries frames out of the host again, whatever its ports are called."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import ways_out

FORWARDING, DISABLED = "3", "0"


class Net:
    """/sys/class/net as the kernel shows it: links to the devices, and from each to what is above and below it."""

    def __init__(self, root: Path) -> None:
        self.path, self.devices = root / "class/net", root / "devices"
        self.path.mkdir(parents=True)
        # Not a device, but bonding's own.
        (self.path / "bonding_masters").write_text("bond0\n")

    def add(self, name: str, master: str = "", *, carrier: str = "1", state: str = "", **files: str) -> Path:
        device = self.devices / name
        device.mkdir(parents=True)
        (self.path / name).symlink_to(device)
        for file, text in {"carrier": carrier, "uevent": f"INTERFACE={name}", **files}.items():
            (device / file).write_text(f"{text}\n")
        if master:
            (device / "master").symlink_to(self.devices / master)
            self.put_on(self.devices / master, name)
        if state:
            (device / "brport").mkdir()
            (device / "brport/state").write_text(f"{state}\n")
        return device

    def put_on(self, upper: Path, lower: str) -> None:
        (upper / f"lower_{lower}").symlink_to(self.devices / lower)

    def bridge(self, name: str) -> Path:
        device = self.add(name)
        (device / "bridge").mkdir()
        return device

    def card(self, name: str, master: str = "", **shape: str) -> Path:
        device = self.add(name, master, **shape)
        (device / "device").mkdir()
        return device

    def tap(self, name: str, master: str, state: str = FORWARDING) -> Path:
        return self.add(name, master, state=state, tun_flags="0x1002")


@pytest.fixture
def net(tmp_path: Path) -> Net:
    return Net(tmp_path)


def test_a_bridge_with_vms_leads_out_by_a_card_that_forwards(net: Net) -> None:
    net.bridge("br0")
    eth0 = net.card("eth0", "br0", state=FORWARDING)
    net.tap("vnet0", "br0")
    assert ways_out.carrying(net=net.path) == ("br0",)
    (eth0 / "brport/state").write_text("1\n")
    assert ways_out.carrying(net=net.path) == ()


def test_neither_a_network_within_the_host_nor_one_without_vms_is_a_way_out(net: Net) -> None:
    """Where only containers and VMs are, nothing is waited for: it may come back after the VMs, or because of them."""
    net.bridge("virbr0")
    net.tap("vnet0", "virbr0")
    net.bridge("docker0")
    net.add("veth1", "docker0", state=FORWARDING)
    net.bridge("br9")
    net.card("eth9", "br9", state=FORWARDING)
    net.add("veth2", "virbr0", state=FORWARDING)
    assert ways_out.carrying(net=net.path) == ()


def test_a_bond_and_a_vlan_on_it_lead_out_as_ports_of_a_bridge(net: Net) -> None:
    net.bridge("br0")
    bond = net.add("bond0")
    net.card("eth0", "bond0")
    net.card("eth1", "bond0", carrier="0")
    vlan = net.add("bond0.7", "br0", state=FORWARDING)
    net.put_on(vlan, "bond0")
    net.tap("vnet0", "br0")
    assert ways_out.carrying(net=net.path) == ("br0",)
    assert bond.exists()


def test_a_switch_of_its_own_kind_leads_out_by_the_carrier_of_its_cards(net: Net) -> None:
    """Open vSwitch: its ports have a master, and no state of a bridge."""
    net.add("ovs-system", carrier="0")
    eth0 = net.card("eth0", "ovs-system")
    net.add("vnet0", "ovs-system", tun_flags="0x1002")
    assert ways_out.carrying(net=net.path) == ("ovs-system",)
    (eth0 / "carrier").write_text("0\n")
    assert ways_out.carrying(net=net.path) == ()


def test_a_macvtap_leads_out_by_its_card(net: Net) -> None:
    net.card("eth0")
    macvtap = net.add("macvtap0")
    (macvtap / "macvtap").mkdir()
    net.put_on(macvtap, "eth0")
    assert ways_out.carrying(net=net.path) == ("eth0",)


def test_a_bridge_that_the_last_vm_has_left_is_looked_at_when_it_is_asked_for(net: Net) -> None:
    net.bridge("br0")
    net.card("eth0", "br0", state=FORWARDING)
    assert ways_out.carrying(net=net.path) == ()
    assert ways_out.carrying(("br0", "br1"), net.path) == ("br0",)


def test_after_the_jump_a_card_may_have_another_name(net: Net) -> None:
    net.bridge("br0")
    net.card("enp1s0np0", "br0", state=FORWARDING)
    assert ways_out.silent(("br0",), 0.0, net.path) == ()


def test_what_does_not_come_in_time_is_named(net: Net) -> None:
    net.bridge("br0")
    net.tap("vnet0", "br0")
    began = time.monotonic()
    assert ways_out.silent(("br0", "br1"), began + 0.1, net.path) == ("br0", "br1")
    assert 0.1 <= time.monotonic() - began < 5


def test_nobody_waits_in_vain(net: Net) -> None:
    net.bridge("br0")
    net.card("eth0", "br0", state=DISABLED)
    assert ways_out.silent(("br0",), time.monotonic() + 300, net.path, lambda: True) == ("br0",)


def test_what_comes_later_is_waited_for(net: Net) -> None:
    net.bridge("br0")
    eth0 = net.card("eth0", "br0", state=DISABLED)
    later = threading.Timer(0.1, lambda: (eth0 / "brport/state").write_text(FORWARDING))
    later.start()
    assert ways_out.silent(("br0",), time.monotonic() + 30, net.path) == ()
    later.join()


def test_this_machine_can_be_read() -> None:
    assert isinstance(ways_out.carrying(), tuple)
