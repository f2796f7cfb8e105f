# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No watchdog resets a host between the jump and the end of its live update; afterwards systemd has its own again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import cmdline, watchdogs
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError, Refused
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import Journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import Watchdog

USEC = 30_000_000
LINE = "root=/dev/vda1 memmap=0x60000000!0x100000000 nokaslr"
GENERATION = "g-20261121T020000-ab12cd"


class Host:
    """/sys and /proc in a folder, and a systemd that holds its watchdog for as long as it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configured, self.override = USEC, watchdogs.AS_CONFIGURED
        self.stops, self.answers = True, True
        for name in ("class", "proc"):
            (folder / name).mkdir()
        self.add("watchdog0", "iTCO_wdt")
        self.add("watchdog1", "Software Watchdog")
        self.opened_by(1, "systemd", "watchdog0")

    def add(self, device: str, identity: str, nowayout: int = 0) -> None:
        place = self.folder / "class" / device
        place.mkdir()
        for name, text in (("identity", identity), ("state", "active"), ("timeout", "30"), ("nowayout", str(nowayout))):
            (place / name).write_text(f"{text}\n")

    def opened_by(self, pid: int, name: str, device: str) -> None:
        handles = self.folder / "proc" / str(pid) / "fd"
        handles.mkdir(parents=True)
        (handles.parent / "comm").write_text(f"{name}\n")
        os.symlink(f"/dev/{device}", handles / "7")

    @property
    def usec(self) -> int:
        return self.configured if self.override == watchdogs.AS_CONFIGURED else self.override

    def run(self, words: list[str]) -> str:
        if not self.answers:
            raise CommandFailed("busctl ended with 1: Connection timed out")
        if words[1] == "get-property":
            return f"t {self.usec}\n"
        self.override = int(words[-1])
        state = "active" if self.usec or not self.stops else "inactive"
        (self.folder / "class/watchdog0/state").write_text(f"{state}\n")
        return ""

    def journal(self, usec: int = USEC) -> Journal:
        journal = Journal(self.folder / "journal.jsonl")
        kernel = {"from": "6.12", "to": "7.2"}
        told: dict[str, Any] = {"host": "hv1", "kernel": kernel, "qemu": "10", "vms": [], "watchdog_usec": usec}
        journal.record("begin", generation=GENERATION, boot_id="old", **told)
        return journal


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host(tmp_path)
    monkeypatch.setattr(watchdogs, "WATCHDOGS", tmp_path / "class")
    monkeypatch.setattr(watchdogs, "PROC", tmp_path / "proc")
    monkeypatch.setattr(watchdogs, "IPMI", tmp_path / "ipmi_watchdog")
    monkeypatch.setattr(watchdogs, "run", found.run)
    monkeypatch.setattr(watchdogs.kexec, "boot_id", lambda: "old")
    monkeypatch.setattr(watchdogs.kexec, "running_cmdline", lambda: LINE)
    return found


def test_those_in_hardware_are_found_with_who_feeds_them(host: Host) -> None:
    assert watchdogs.armed() == (Watchdog("watchdog0", "iTCO_wdt", 30, True, 1, "systemd"),)
    watchdogs.check_others()


def test_one_that_does_not_count_is_none(host: Host) -> None:
    (host.folder / "class/watchdog0/state").write_text("inactive\n")
    assert watchdogs.armed() == ()


def test_one_that_somebody_else_feeds_is_refused_by_name(host: Host) -> None:
    host.add("watchdog2", "hpwdt")
    host.opened_by(812, "watchdogd", "watchdog2")
    with pytest.raises(Refused, match=r"watchdog2 \(hpwdt, 30 s\), fed by watchdogd \(process 812\)"):
        watchdogs.check_others()


def test_one_that_cannot_be_stopped_is_refused(host: Host) -> None:
    (host.folder / "class/watchdog0/nowayout").write_text("1\n")
    with pytest.raises(Refused, match=r"fed by systemd \(process 1\), cannot be stopped"):
        watchdogs.check_others()


@pytest.mark.parametrize("fed", [True, False])
def test_that_of_ipmi_is_known_by_who_has_it_open(host: Host, fed: bool) -> None:
    for entry in (host.folder / "class").iterdir():
        (entry / "state").write_text("inactive\n")
    watchdogs.IPMI.touch()
    if fed:
        host.opened_by(812, "watchdogd", "watchdog")
    found = (Watchdog("watchdog", "IPMI", pid=812, holder="watchdogd"),) if fed else ()
    assert watchdogs.armed() == found


def test_systemds_is_stopped_and_started_again_as_configured(host: Host) -> None:
    journal = host.journal(watchdogs.systemd_usec())
    watchdogs.disarm(journal)
    assert (watchdogs.armed(), host.usec) == ((), 0)
    watchdogs.rearm(journal)
    assert host.override == watchdogs.AS_CONFIGURED, "a change of its configuration counts again"
    watchdogs.check_others()


def test_one_that_counts_on_ends_the_live_update(host: Host) -> None:
    host.stops = False
    with pytest.raises(Refused, match="would reset this host after the jump"):
        watchdogs.disarm(host.journal())


def test_in_the_next_kernel_it_is_off_until_the_generation_is_over(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    line = cmdline.next_command_line(LINE, generation=GENERATION, watchdog_off=True)
    assert cmdline.WATCHDOG_OFF in cmdline.split(line)
    monkeypatch.setattr(watchdogs.kexec, "boot_id", lambda: "new")
    monkeypatch.setattr(watchdogs.kexec, "running_cmdline", lambda: line)
    host.configured = 0
    watchdogs.rearm(host.journal())
    assert host.usec == USEC


def test_the_line_after_that_does_not_speak_of_it(host: Host) -> None:
    line = cmdline.next_command_line(LINE, generation=GENERATION, watchdog_off=True)
    assert cmdline.next_command_line(line, generation=GENERATION) == f"{LINE} holdfast.generation={GENERATION}"
    crash = f"elfcorehdr=0x1 {cmdline.crash_command_line(line)}"
    assert cmdline.is_watchdog_off(crash)
    assert "watchdog" not in cmdline.next_command_line(crash, generation=GENERATION)


def test_in_a_boot_of_somebody_elses_its_configuration_decides(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been switched off since."""
    monkeypatch.setattr(watchdogs.kexec, "boot_id", lambda: "another")
    host.configured = 0
    watchdogs.rearm(host.journal())
    assert host.usec == 0


def test_a_host_without_one_is_asked_nothing(host: Host) -> None:
    host.answers = False
    assert watchdogs.systemd_usec() == 0
    journal = host.journal(usec=0)
    watchdogs.disarm(journal)
    watchdogs.rearm(journal)


def test_one_that_stays_off_is_told(host: Host) -> None:
    journal = host.journal()
    watchdogs.disarm(journal)
    host.answers = False
    with pytest.raises(HoldfastError, match="stays off until the next boot"):
        watchdogs.rearm(journal)
