# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three hypervisors in two waves by one plan, a critical VM moved away and home, a group that always has a member up.

A hypervisor of the second wave loses its network before that begins, and the controller is killed in the middle of it:
the roll stops, and goes on. Each host goes to its other kernel. These tests tell one story and run in this order:
``make faults``. Three emulated hosts share one machine: the times say nothing about hardware.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rack import KEPT, LATER, QUICK_CIPHERS, SMALL, SMALL_MIB, TLS, Rack, Run

from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import LEAVING
from ansible_collections.holdfast.kvm.plugins.plugin_utils._plan_file import read_plan
from holdfast.faults import controller
from holdfast.lab import hosts, scene
from holdfast.lab.guests.definitions import BASE, GUESTS, define_script
from holdfast.lab.guests.observer import Silence, compare
from holdfast.lab.hosts import Host, Lab
from holdfast.lab.up import Wish, up, write_inventory

pytestmark = pytest.mark.faults

KNOWN = {guest.name: guest for guest in GUESTS} | LATER
# db1 is never paused; tick1 and tick2 are one service; box3 has its RAM where no jump keeps it.
AT_HOME = {"hv1": ("db1", "tick1"), "hv2": ("tick2",), "hv3": ("box3",)}
WATCHED = tuple(KNOWN[name] for name in ("db1", "tick1", "tick2"))
SERVICE = ("tick1", "tick2")
# Of a host's journal; empty while the host does not answer.
IN_THE_MIDDLE = (*LEAVING, "arrived", "attached", "restoring")
UNDER_WAY = ("", "staged", *IN_THE_MIDDLE)
# Under emulation, with three hosts on one machine; QEMU's own estimate of the pause is far too low there.
LONGEST_PAUSE_S = 60
POLICY: dict[str, Any] = {
    "holdfast_policy": [
        {"match": {"name": "db*"}, "critical": True, "treatments": ["live"], "return_home": True}
        | {"priority": 80, "max_pause_s": LONGEST_PAUSE_S},
        {"match": {"name": "tick*"}, "group": "tick", "priority": 50},
        {"match": {"name": "box*"}, "treatments": ["restart"], "priority": 10},
    ],
    "holdfast_groups": {"tick": {"min_available": 1}},
    "plan_copy_storage": True,
    "evacuate_base_paths": [str(Path(BASE).parent)],
}
# While the campaign is under way somebody changes the policy: the plan does not hold any more.
CHANGED = {
    **POLICY,
    "holdfast_policy": [{**rule, "priority": rule["priority"] + 1} for rule in POLICY["holdfast_policy"]],
}
WAVES = {"plan_waves": [1, 2], "plan_canaries": ["hv1"], "plan_reserve_hosts": 0, "plan_stage_s": 5}
# A guest that says nothing for longer is not there; emulated ones are slow to speak while their hosts share two CPUs.
SPEAKS_WITHIN_S = 20.0
WAVE_LIMIT_S = 3600.0
POLL_S = 1.0


@dataclass(frozen=True)
class Fleet:
    """Three prepared hypervisors with their guests at work."""

    rack: Rack
    hosts: dict[str, Host]
    folder: Path
    watch: scene.Watch

    @property
    def plan(self) -> dict[str, Any]:
        return read_plan(self.folder)

    def words(self, policy: dict[str, Any], *more: str) -> tuple[str, ...]:
        return ("upgrade", "--plan", str(self.folder), "-e", json.dumps(policy), *more)

    def upgrade(self, policy: dict[str, Any], *more: str) -> Run:
        report = ("--report-dir", str(self.folder / "report"))
        words = ("holdfast", *self.words(policy, *more), "-i", str(self.rack.inventory), *report)
        return self.rack.run(*words, timeout_s=WAVE_LIMIT_S)

    def reported(self) -> dict[str, dict[str, Any]]:
        """What the last report says of each host."""
        found = json.loads((self.folder / "report/report.json").read_text())["hosts"]
        return {host["host"]: host for host in found}

    def boots(self) -> dict[str, str]:
        return {name: ask(host, "cat /proc/sys/kernel/random/boot_id") for name, host in self.hosts.items()}


def ask(host: Host, script: str) -> str:
    return hosts.on_host(host, script).strip()


def journal(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(host, "holdfast-agent status --json"))
    return found


@pytest.fixture(scope="module")
def fleet(prepared: Rack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The rack's hypervisor and two smaller ones, prepared; those two are gone afterwards."""
    lab = up(prepared.folder, Wish(hosts=3, ram_mib=SMALL_MIB))
    found = {name: lab.host(name) for name in AT_HOME}
    hosts.on_host(found["hv2"], define_script([KNOWN["tick2"]]))
    for host in found.values():
        hosts.on_host(host, QUICK_CIPHERS)
    assert prepared.playbook("prepare", "--limit", "hv2,hv3", *SMALL, *TLS).status == 0
    assert prepared.playbook("prepare", "--limit", "hv1", *TLS).status == 0
    # Defined when prepare is over, its RAM is wherever libvirt puts it.
    hosts.on_host(found["hv3"], define_script([KNOWN["box3"]]))
    targets = prepared.inventory.parent / "host_vars"
    targets.mkdir(exist_ok=True)

    def set_to_work(name: str) -> None:
        scene.start_guests(prepared.folder, name, [KNOWN[guest] for guest in AT_HOME[name]])
        write_target(targets, found[name])

    # Nearly all of it is each emulated host's own time.
    with ThreadPoolExecutor() as pool:
        list(pool.map(set_to_work, found))
    with scene.watched(found["hv1"], WATCHED) as watching:
        yield Fleet(prepared, found, Path(tmp_path_factory.mktemp("plan")), watching)
    shutil.rmtree(targets)
    if not KEPT:
        for name in ("hv2", "hv3"):
            hosts.stop(found[name])
            write_inventory(Lab.load(prepared.folder).without(name))


def write_target(targets: Path, host: Host) -> None:
    """Into the inventory: where this host goes, with the packages it has, or has yet to get."""
    wanted = {"stage_packages": [], "stage_kernel": controller.other_release(host)}
    (targets / f"{host.name}.json").write_text(json.dumps(wanted))


def test_it_is_planned_in_two_waves(fleet: Fleet) -> None:
    words = ("--dir", str(fleet.folder), "-e", json.dumps(POLICY), "-e", json.dumps(WAVES))
    done = fleet.rack.run("holdfast", "plan", "-i", str(fleet.rack.inventory), *words)
    assert done.status == 0
    assert [sorted(batch["hosts"]) for batch in fleet.plan["batches"]] == [["hv1"], ["hv2", "hv3"]]
    treatments = {vm["name"]: vm["treatment"] for vm in fleet.plan["vms"]}
    assert treatments == {"db1": "live", "tick1": "in_place", "tick2": "in_place", "box3": "restart"}


def test_the_first_wave_ends_well_and_a_host_that_is_lost_stops_the_roll(fleet: Fleet) -> None:
    before = fleet.boots()
    (move,) = fleet.plan["batches"][0]["evacuations"]
    lost = fleet.hosts["hv3" if move["destination"] == "hv2" else "hv2"]
    ended: list[Run] = []
    upgrading = threading.Thread(target=lambda: ended.append(fleet.upgrade(POLICY)))
    upgrading.start()
    wait_until(lambda: journal_state(fleet.hosts["hv1"]) == "restored", upgrading)
    # Who is cut off may be one of the service, of which somebody has to be there.
    assert scene.wait_for_guest(fleet.hosts["hv1"], KNOWN["tick1"])
    with hosts.unplugged(lost):
        upgrading.join(WAVE_LIMIT_S)
    assert ended[0].status == 2
    assert fleet.reported()["hv1"]["result"] == "upgraded"
    results = {vm["name"]: (vm["treatment"], vm["result"]) for vm in fleet.reported()["hv1"]["vms"]}
    assert results == {"db1": ("live", "returned"), "tick1": ("in_place", "resumed")}
    hosts.wait_until_usable(lost)
    now = fleet.boots()
    assert now["hv1"] != before["hv1"]
    assert (now["hv2"], now["hv3"]) == (before["hv2"], before["hv3"])
    assert unharmed(fleet.watch) == []


def test_the_critical_vm_stood_still_for_less_than_its_limit(fleet: Fleet) -> None:
    silences = silences_of(fleet.watch, "db1")
    longest = max((each.seconds for each in silences), default=0.0)
    (db1,) = (vm for vm in fleet.reported()["hv1"]["vms"] if vm["name"] == "db1")
    print(f"db1: longest silence {longest:.1f} s from outside, {db1['pause_s']} s by QEMU; limit {LONGEST_PAUSE_S} s")
    assert longest < LONGEST_PAUSE_S
    assert ask(fleet.hosts["hv1"], "virsh domstate db1") == "running"


def test_the_second_wave_is_planned_anew_survives_its_controller_and_is_finished(fleet: Fleet) -> None:
    before = fleet.boots()
    refused = fleet.upgrade(CHANGED)
    assert (refused.status, "its policy says priority" in refused.text) == (3, True)
    assert fleet.boots() == before
    killed = controller.start(fleet.hosts["hv1"], fleet.words(CHANGED, "--replan"))
    try:
        wait_until(lambda: journal_state(fleet.hosts["hv2"]) in IN_THE_MIDDLE, None)
    finally:
        controller.kill(killed)
    for name in ("hv2", "hv3"):
        wait_until(lambda name=name: journal_state(fleet.hosts[name]) not in UNDER_WAY, None)  # type: ignore[misc]
    assert fleet.rack.run("holdfast", "recover", "-i", str(fleet.rack.inventory)).status == 0
    assert fleet.upgrade(CHANGED, "--replan").status == 0
    now = fleet.boots()
    assert now["hv1"] == before["hv1"], "a host that is done is left alone"
    assert all(now[name] != before[name] for name in ("hv2", "hv3"))
    assert {name: vms_of(host) for name, host in fleet.hosts.items()} == AT_HOME


def test_the_vm_that_cannot_be_kept_was_shut_down_and_started(fleet: Fleet) -> None:
    record = next(vm for vm in journal(fleet.hosts["hv3"])["vms"] if vm["name"] == "box3")
    assert (record["treatment"], record["state"]) == ("restart", "started")
    print(f"box3: off for {record['started_at'] - record['shut_down_at']:.1f} s")
    assert scene.wait_for_guest(fleet.hosts["hv3"], KNOWN["box3"])


def test_their_connections_were_held_and_one_of_the_service_was_always_there(fleet: Fleet) -> None:
    """Second by second: no moment lies in a silence of both."""
    assert fleet.watch.finish() == []
    gaps = {
        name: [each for each in silences_of(fleet.watch, name) if each.seconds > SPEAKS_WITHIN_S] for name in SERVICE
    }
    print({name: [(round(each.began_at), round(each.seconds, 1)) for each in found] for name, found in gaps.items()})
    assert all(gaps.values()), "each of them was paused once"
    assert [(one, other) for one in gaps["tick1"] for other in gaps["tick2"] if one.overlaps(other)] == []


def journal_state(host: Host) -> str:
    """The journal's state; empty while the host does not answer."""
    try:
        return str(journal(host)["state"])
    except Exception:  # a host in its jump fails in every way there is
        return ""


def wait_until(reached: Any, working: threading.Thread | None) -> None:
    """Wait for it, for as long as the thread works that is to bring it about."""
    deadline = time.monotonic() + WAVE_LIMIT_S
    while not reached():
        assert time.monotonic() < deadline
        assert working is None or working.is_alive()
        time.sleep(POLL_S)


def vms_of(host: Host) -> tuple[str, ...]:
    return tuple(sorted(ask(host, "virsh -q list --name").split()))


def silences_of(watch: scene.Watch, name: str) -> tuple[Silence, ...]:
    held = watch.held(name) if name in watch.after else watch.so_far(name)
    return next(one for one in held if one.name == f"{name}.witness").silences


def unharmed(watch: scene.Watch) -> list[str]:
    return [text for guest in watch.guests for text in compare(watch.before[guest.name], watch.look(guest))]
