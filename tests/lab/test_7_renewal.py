# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A new QEMU under every guest, on the kernel that runs: short pauses, no jump. Run by ``make faults``.

One guest has its RAM outside the pool. It is saved to disk and loaded, which brings it in; and once more in a jump.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rack import LATER, Rack, names, report_host

from holdfast.faults import controller
from holdfast.lab import scene
from holdfast.lab.guests.definitions import GUESTS, define_script
from holdfast.lab.guests.observer import compare
from holdfast.lab.up import VARIABLES

pytestmark = pytest.mark.faults

OUTSIDER = LATER["box3"]
COLD = {"holdfast_policy": [{"match": {"name": OUTSIDER.name}, "treatment": "cold"}, *VARIABLES["holdfast_policy"]]}


@pytest.fixture(scope="module")
def outsider(watch: scene.Watch, prepared: Rack) -> Iterator[scene.Watch]:
    """A guest that was started before its definition was converted, as every one is on the first day."""
    prepared.on_host(define_script([OUTSIDER]))
    host = scene.start_guests(prepared.folder, "hv1", [OUTSIDER])
    done = prepared.playbook("prepare", "--limit", "hv1")
    assert (done.status, OUTSIDER.name in done.text) == (0, True)
    with scene.watched(host, [OUTSIDER]) as watching:
        yield watching


def upgraded(prepared: Rack, folder: Path, *words: str, **variables: Any) -> dict[str, Any]:
    """The report of an upgrade that went well."""
    extra = ("-e", json.dumps({**COLD, **variables}), "-i", str(prepared.inventory), "--report-dir", str(folder))
    assert prepared.run("holdfast", "upgrade", *words, *extra).status == 0
    host = report_host(folder)
    assert host["result"] == "upgraded"
    assert names(host["vms"]) == {guest.name for guest in (*GUESTS, OUTSIDER)}
    assert all(vm["ram_verified"] for vm in host["vms"])
    return host


def unharmed(*watches: scene.Watch) -> list[str]:
    return [
        text for one in watches for guest in one.guests for text in compare(one.before[guest.name], one.look(guest))
    ]


def in_pool(prepared: Rack, name: str) -> bool:
    return bool(prepared.on_host(f"ls /var/lib/holdfast/pool/libvirt/qemu/*-{name}/pc.ram || true").strip())


def test_every_guest_gets_the_new_qemu_and_the_host_keeps_its_kernel(
    watch: scene.Watch, outsider: scene.Watch, prepared: Rack, tmp_path: Path
) -> None:
    assert not in_pool(prepared, OUTSIDER.name)
    boot_id = prepared.on_host("cat /proc/sys/kernel/random/boot_id")
    kernels = prepared.on_host("ls /boot/vmlinuz-*")
    host = upgraded(prepared, tmp_path, "--only", "qemu", live_update_force=True)
    assert host["qemu"]["to"].startswith("11.")
    assert prepared.on_host("cat /proc/sys/kernel/random/boot_id") == boot_id
    assert prepared.on_host("ls /boot/vmlinuz-*") == kernels
    assert unharmed(watch, outsider) == []
    for vm in sorted(host["vms"], key=lambda vm: vm["paused_at"]):
        seen_by = outsider if vm["name"] == OUTSIDER.name else watch
        seen = next(held for held in seen_by.so_far(vm["name"]) if held.name == f"{vm['name']}.witness").stood_still_s
        print(f"{vm['name']}: pause {vm['pause_s']:.1f} s by the journal, {seen:.1f} s from outside")
    first, *others = sorted(host["vms"], key=lambda vm: vm["paused_at"])
    assert first["name"] == "tick1"
    assert all(vm["paused_at"] >= first["resumed_at"] for vm in others)
    assert in_pool(prepared, OUTSIDER.name)


def test_one_that_is_saved_to_disk_goes_through_a_jump_as_well(
    watch: scene.Watch, outsider: scene.Watch, prepared: Rack, tmp_path: Path
) -> None:
    kernel = controller.other_release(prepared.host)
    host = upgraded(prepared, tmp_path, stage_packages=[], stage_kernel=kernel)
    assert host["kernel"]["to"] == kernel
    treatments = {vm["name"]: vm["treatment"] for vm in host["vms"]}
    assert treatments == {**dict.fromkeys((guest.name for guest in GUESTS), "in_place"), OUTSIDER.name: "cold"}
    assert prepared.on_host("ls /var/lib/holdfast/stored").strip() == ""
    for vm in sorted(host["vms"], key=lambda vm: vm["paused_at"]):
        print(f"{vm['name']}: {vm['treatment']}, pause {vm['pause_s']:.1f} s by the journal")
    assert watch.finish() + outsider.finish() == []
