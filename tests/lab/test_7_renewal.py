# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A new QEMU under every guest, on the kernel that runs: short pauses, no jump. Run by ``make faults``."""

from __future__ import annotations

from pathlib import Path

import pytest
from rack import Rack, names, report_host

from holdfast.lab import scene
from holdfast.lab.guests.definitions import GUESTS
from holdfast.lab.guests.observer import compare

pytestmark = pytest.mark.faults


def test_every_guest_gets_the_new_qemu_and_the_host_keeps_its_kernel(
    watch: scene.Watch, prepared: Rack, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = Path(tmp_path_factory.mktemp("report"))
    boot_id = prepared.on_host("cat /proc/sys/kernel/random/boot_id")
    kernels = prepared.on_host("ls /boot/vmlinuz-*")
    words = ("holdfast", "upgrade", "--only", "qemu", "-i", str(prepared.inventory), "--report-dir", str(out))
    done = prepared.run(*words, "-e", '{"live_update_force": true}')
    assert done.status == 0
    host = report_host(out)
    assert host["result"] == "upgraded"
    assert host["qemu"]["to"].startswith("11.")
    assert names(host["vms"]) == {guest.name for guest in GUESTS}
    assert all(vm["ram_verified"] for vm in host["vms"])
    assert prepared.on_host("cat /proc/sys/kernel/random/boot_id") == boot_id
    assert prepared.on_host("ls /boot/vmlinuz-*") == kernels
    assert [finding for guest in GUESTS for finding in compare(watch.before[guest.name], watch.look(guest))] == []
    for vm in sorted(host["vms"], key=lambda vm: vm["paused_at"]):
        seen = next(held for held in watch.so_far(vm["name"]) if held.name == f"{vm['name']}.witness").stood_still_s
        print(f"{vm['name']}: pause {vm['pause_s']:.1f} s by the journal, {seen:.1f} s from outside")
    first, *others = sorted(host["vms"], key=lambda vm: vm["paused_at"])
    assert first["name"] == "tick1"
    assert all(vm["paused_at"] >= first["resumed_at"] for vm in others)
    assert watch.finish() == []
