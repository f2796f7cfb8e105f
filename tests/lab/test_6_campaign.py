# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A planned campaign over two hypervisors goes on after its controller was killed: ``make faults``.

Each host goes to its other kernel, whichever runs now. These tests tell one story and run in this order.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rack import LATER, Rack

from ansible_collections.holdfast.kvm.plugins.plugin_utils._plan_file import read_plan
from holdfast.faults import controller
from holdfast.lab import hosts, scene
from holdfast.lab.guests.definitions import GUESTS, define_script
from holdfast.lab.hosts import Host, Lab
from holdfast.lab.up import Wish, up, write_inventory

pytestmark = pytest.mark.faults

TICK = next(guest for guest in GUESTS if guest.name == "tick1")
# The other hypervisor's own: the hosts share a network, and a plan refuses a VM that runs twice.
TOCK = LATER["tick2"]
AT_WORK = {"hv1": TICK, "hv2": TOCK}
# One host after the other, for two hosts leave no reserve.
WAVES = json.dumps({"plan_waves": [1], "plan_stage_s": 5})
HOST_LIMIT_S = 1200.0
POLL_S = 0.5


@dataclass(frozen=True)
class Fleet:
    """Two prepared hypervisors with a running guest each. ``boots``: which boot each of them is in."""

    rack: Rack
    hosts: tuple[Host, Host]
    folder: Path

    @property
    def plan(self) -> dict[str, Any]:
        return read_plan(self.folder)

    @property
    def order(self) -> list[Host]:
        names = [name for batch in self.plan["batches"] for name in batch["hosts"]]
        return [next(host for host in self.hosts if host.name == name) for name in names]

    def upgrade(self) -> tuple[str, ...]:
        return ("upgrade", "--plan", str(self.folder))


def boot(host: Host) -> str:
    return hosts.on_host(host, "cat /proc/sys/kernel/random/boot_id").strip()


def journal(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(hosts.on_host(host, "holdfast-agent status --json"))
    return found


@pytest.fixture(scope="module")
def fleet(prepared: Rack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The rack's hypervisor and a second one, prepared; the second one and its guest are gone afterwards."""
    lab = up(prepared.folder, Wish(hosts=2))
    first, second = lab.host("hv1"), lab.host("hv2")
    hosts.on_host(second, define_script([TOCK]))
    done = prepared.playbook("prepare", "--limit", "hv2", "-e", "prepare_reboot_ok=true")
    assert done.status == 0
    targets = prepared.inventory.parent / "host_vars"
    for host in (first, second):
        guest = AT_WORK[host.name].name
        hosts.on_host(host, f"virsh -q domstate {guest} | grep -q running || virsh -q start {guest}")
        write_target(targets, host)
    scene.wait_for_guest(first, TICK)
    yield Fleet(prepared, (first, second), Path(tmp_path_factory.mktemp("plan")))
    hosts.stop(second)
    write_inventory(Lab.load(prepared.folder).without(second.name))
    shutil.rmtree(targets)


def write_target(targets: Path, host: Host) -> None:
    """Into the inventory: where this host goes, without a look at packages."""
    targets.mkdir(exist_ok=True)
    path = targets / f"{host.name}.json"
    path.write_text(json.dumps({"stage_packages": [], "stage_kernel": controller.other_release(host)}))


def test_it_is_planned_one_host_after_the_other(fleet: Fleet) -> None:
    inventory = str(fleet.rack.inventory)
    done = fleet.rack.run("holdfast", "plan", "-i", inventory, "--dir", str(fleet.folder), "-e", WAVES)
    assert done.status == 0
    assert [len(batch["hosts"]) for batch in fleet.plan["batches"]] == [1, 1]


def test_it_goes_on_where_its_controller_was_killed(fleet: Fleet) -> None:
    first, second = fleet.order
    before = {host.name: boot(host) for host in fleet.hosts}
    with scene.watched(fleet.hosts[0], [TICK]) as watching:
        killed = controller.start(fleet.hosts[0], fleet.upgrade())
        wait_for_word(killed, first)
        controller.kill(killed)
        assert boot(first) != before[first.name]
        assert boot(second) == before[second.name]
        assert "campaign.json" in hosts.on_host(second, "ls /var/lib/holdfast")
        arrived = boot(first)
        said = controller.to_the_end(fleet.hosts[0], fleet.upgrade())
        assert said.status == 0
        assert boot(first) == arrived, "a host that is done is left alone"
        assert boot(second) != before[second.name]
        assert watching.finish() == []
    for host in fleet.hosts:
        assert journal(host)["state"] == "restored"
        assert {vm["state"] for vm in journal(host)["vms"]} == {"resumed"}
        assert hosts.on_host(host, f"virsh domstate {AT_WORK[host.name].name}").strip() == "running"
        assert "campaign.json" not in hosts.on_host(host, "ls /var/lib/holdfast")


def test_a_plan_for_a_fleet_that_has_changed_is_refused(fleet: Fleet) -> None:
    hosts.on_host(fleet.hosts[1], f"virsh -q destroy {TOCK.name}")
    done = fleet.rack.run("holdfast", "upgrade", "-i", str(fleet.rack.inventory), "--plan", str(fleet.folder))
    assert done.status == 3
    assert f"VM {TOCK.name} does not run on hv2 any more" in done.text


def wait_for_word(working: controller.Controller, host: Host) -> None:
    """Until the controller says that the host is upgraded."""
    deadline = time.monotonic() + HOST_LIMIT_S
    while working.works and time.monotonic() < deadline:
        lines = (working.folder / "log").read_text().splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        if any(one.get("host") == host.name and one.get("text") == "upgraded" for one in told):
            return
        time.sleep(POLL_S)
    raise AssertionError(f"{host.name} was not upgraded: {(working.folder / 'log').read_text()}")
