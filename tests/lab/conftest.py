# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One real hypervisor for the whole run: started once, prepared once, its guests watched throughout."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from rack import FOLDER, KEPT, LATER, Rack, slowness

from holdfast.lab import hosts, scene
from holdfast.lab.hosts import Host, Lab
from holdfast.lab.up import Wish, down, up, write_inventory

# When the run has to be over, Unix seconds, and how long a chapter that is marked so takes on a machine that nothing
# holds up. Whoever has all night sets no limit.
END = float(os.environ.get("HOLDFAST_TEST_END", "inf"))
CHAPTER_S = 300.0
# EX_TEMPFAIL: try again.
EMULATOR_BROKE_DOWN = 75
# Whoever waits for the machine may have it from here on, see the Makefile.
BOOTED = FOLDER.parent / "booted"
_broke_down: list[str] = []
_slowness: list[float] = []


@pytest.fixture(scope="session")
def rack() -> Iterator[Rack]:
    """A hypervisor as it stands in a rack: old kernel, old QEMU, guests defined, never seen by us."""
    if not KEPT:
        down(FOLDER)
    before = slowness()
    lab = up(FOLDER, Wish(later=tuple(LATER.values())))
    rack = Rack(FOLDER, lab.host("hv1").usable_after_s, max(before, slowness()))
    _slowness.append(rack.slowness)
    BOOTED.touch()
    yield rack
    if not KEPT:
        down(FOLDER)


@pytest.fixture(scope="session")
def prepared(rack: Rack) -> Rack:
    """The hypervisor after ``prepare``."""
    done = rack.playbook("prepare", "--limit", "hv1", "-e", "prepare_reboot_ok=true")
    assert done.status == 0
    return rack


@pytest.fixture(scope="session")
def watch(prepared: Rack) -> Iterator[scene.Watch]:
    """All guests at work, databases loaded, connections held from here until somebody calls ``finish``."""
    host = scene.start_guests(prepared.folder)
    with scene.watched(host) as watching:
        yield watching


@pytest.fixture
def neighbour(prepared: Rack) -> Iterator[Host]:
    """A second hypervisor, with the newer QEMU and plain libvirt; never prepared, and gone when the test is over."""
    host = up(prepared.folder, Wish(hosts=2, ram_mib=2048)).host("hv2")
    packages = "qemu-system-x86 qemu-utils"
    hosts.on_host(host, f"apt-get update -q && apt-get install -q -y -t trixie-backports {packages}", timeout_s=600)
    yield host
    hosts.stop(host)
    write_inventory(Lab.load(prepared.folder).without(host.name))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Rather end in time without a chapter than be cut off in it."""
    late_s = time.time() - (END - CHAPTER_S * max(_slowness, default=1.0))
    if item.get_closest_marker("in_time") and late_s > 0:
        pytest.skip(f"{late_s:.0f} s too late, on a slow machine; `make faults` has time for this")


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Attach to whatever fails the serial consoles, and what the guests are doing."""
    if call.excinfo is not None and (FOLDER / "lab.json").exists():
        for host in Lab.load(FOLDER).hosts:
            if hosts.emulator_failed(host) or hosts.guest_was_mixed_up(host):
                _broke_down.append(host.name)
            item.add_report_section(call.when, f"console of {host.name} ({host.console})", hosts.console_tail(host, 60))
            item.add_report_section(call.when, f"guests of {host.name}", scene.portraits(host))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell a breakdown of the emulator from a failure of ours: only the first is worth another try."""
    if session.testsfailed and _broke_down:
        session.exitstatus = EMULATOR_BROKE_DOWN
