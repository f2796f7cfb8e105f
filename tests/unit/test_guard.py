# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot after the jump: what takes over when it fails, and from when on nothing does."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    attach,
    cmdline,
    collect,
    crash_area,
    guard,
    kdump,
    kexec,
    live_update,
    restore,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.attach import Boot
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import Config, PoolConfig
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import (
    BadInput,
    CommandFailed,
    HoldfastError,
    Refused,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import Journal, open_journal
from ansible_collections.holdfast.kvm.plugins.module_utils._core.request import Request
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import RAM_KIND, SOFT_KIND, Region

GENERATION = "g-20261121T020000-ab12cd"
POOL = "memmap=0x60000000!0x100000000"
LINE = f"root=/dev/vda1 ro {POOL} nokaslr crashkernel=640M holdfast.generation={GENERATION}"
KDUMP_MASK = "systemd.mask=kdump-tools.service"
MIB, GIB = 1 << 20, 1 << 30
KINDS = (RAM_KIND, SOFT_KIND)


class TestCommandLine:
    def test_same_pool_same_generation_no_crash_area_of_its_own(self) -> None:
        line = cmdline.crash_command_line(LINE)
        assert line.split() == [
            *("root=/dev/vda1", "ro", POOL, "nokaslr", f"holdfast.generation={GENERATION}"),
            *("reset_devices", "irqpoll", "transparent_hugepage=never", "panic=10", KDUMP_MASK),
            "holdfast.crashkernel=640M",
            f"holdfast.added=reset_devices,irqpoll,transparent_hugepage,panic,{KDUMP_MASK}",
        ]
        assert not cmdline.is_crash_kernel(line), "kexec_file_load adds elfcorehdr= itself"

    def test_the_operators_own_choice_stays_and_inits_words_stay_last(self) -> None:
        line = cmdline.crash_command_line(f"panic=60 {POOL} -- single")
        added = f"reset_devices irqpoll transparent_hugepage=never {KDUMP_MASK}"
        told = f"holdfast.added=reset_devices,irqpoll,transparent_hugepage,{KDUMP_MASK}"
        assert line == f"panic=60 {POOL} {added} {told} -- single"
        way_out = cmdline.next_command_line(f"elfcorehdr=0x1 {line}", generation=GENERATION)
        assert way_out == f"panic=60 {POOL} holdfast.generation={GENERATION} -- single"

    def test_what_the_operator_masks_stays_masked(self) -> None:
        own = f"{POOL} systemd.mask=apt-daily.service {KDUMP_MASK}"
        crash = cmdline.crash_command_line(own)
        assert crash.count(KDUMP_MASK) == 1
        assert cmdline.next_command_line(f"elfcorehdr=0x1 {crash}", generation=GENERATION).startswith(own)
        other = f"{POOL} systemd.mask=apt-daily.service"
        crash = f"elfcorehdr=0x1 {cmdline.crash_command_line(other)}"
        way_out = cmdline.next_command_line(crash, generation=GENERATION)
        assert way_out == f"{other} holdfast.generation={GENERATION}"

    def test_the_way_out_has_all_of_the_host_and_a_crash_area_again(self) -> None:
        """What kexec hands on from a crash kernel is the crash area; the rest is on the command line."""
        ram = (Region(0x100000, 2 * GIB - 0x100000), Region(4 * GIB, 3 * GIB))
        crash = f"elfcorehdr=0x7c000000 {cmdline.crash_command_line(LINE, ram)}"
        other = GENERATION.replace("ab", "cd")
        line = cmdline.next_command_line(crash, generation=other)
        assert line.split() == [
            *("root=/dev/vda1", "ro", POOL, "nokaslr", "memmap=0x7ff00000@0x100000,0xc0000000@0x100000000"),
            *("crashkernel=640M", f"holdfast.generation={other}"),
        ]
        cmdline.check_next(crash, line, [Region(4 * GIB, 1536 * MIB)], other)
        with pytest.raises(Refused, match="VM RAM as its own"):
            cmdline.check_next(crash, line.replace("@0x100000,", "@0x200000,"), [Region(4 * GIB, 1536 * MIB)], other)
        assert [(one.start, one.size) for one in cmdline.declared_ram(line)] == [(one.start, one.size) for one in ram]
        again = cmdline.next_command_line(line, generation=GENERATION)
        cmdline.check_next(line, again, [Region(4 * GIB, 1536 * MIB)], GENERATION)
        assert cmdline.memmap_arguments(again) == cmdline.memmap_arguments(line)

    def test_room_is_left_for_what_kexec_puts_before_it(self) -> None:
        with pytest.raises(BadInput, match="the kernel reads 2016"):
            cmdline.crash_command_line("x" * 2000)

    def test_a_crash_kernel_is_known_by_its_core_header(self) -> None:
        assert cmdline.is_crash_kernel(f"elfcorehdr=0x7c000000 {LINE}")
        assert not cmdline.is_crash_kernel(LINE)


class TestSize:
    def test_it_grows_with_pool_cpus_initrd_and_vms(self) -> None:
        pool, large = (Region(4 * GIB, 1536 * MIB),), Region(4 * GIB, 512 * GIB)
        assert crash_area.size_for(pool, 2, 13 * MIB) == 640 * MIB
        assert crash_area.size_for(pool, 128, 13 * MIB) == 896 * MIB
        assert crash_area.size_for(pool, 2, 100 * MIB) == 896 * MIB
        assert crash_area.size_for(pool, 2, 13 * MIB, 16 * crash_area.QEMU_BYTES) == 1664 * MIB
        # Page structures of a large fsdax pool alone are 1/64 of it, those of a devdax pool 1/256; only files are
        # mapped by small pages.
        files, devices = (crash_area.size_for((replace(large, kind=kind),), 64, 60 * MIB) for kind in KINDS)
        assert files - devices == 512 * GIB // 64
        soft = replace(large, kind=SOFT_KIND)
        assert crash_area.size_for((soft,), 64, 60 * MIB, page_bytes=GIB) == 896 * MIB

    @pytest.mark.parametrize(
        ("line", "size"), [("ro crashkernel=512M x", 512 * MIB), ("crashkernel=1G-:512M", 0), ("", 0)]
    )
    def test_it_is_read_from_the_command_line(self, line: str, size: int) -> None:
        assert cmdline.crash_area_bytes(line) == size


class Host:
    """A host with its kernel's files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state_dir = folder, folder / "state"
        self.state_dir.mkdir()
        self.commands: list[str] = []
        self.refused = ""
        self.systemd_version = "257 (257.9-1)"
        self.kdump_is = "enabled"
        self.hashes_quickly = False
        self.timer_node = folder / "watchdog1"
        (folder / "panic_on_oops").write_text("0\n")
        (folder / "crash_loaded").write_text("0\n")
        (folder / "crash_size").write_text(f"{640 * MIB}\n")
        for name, identity in (("watchdog0", "iTCO_wdt"), ("watchdog1", "Software Watchdog")):
            (folder / "class" / name).mkdir(parents=True)
            (folder / "class" / name / "identity").write_text(f"{identity}\n")

    @property
    def config(self) -> Config:
        region = Region(4 * GIB, 1536 * MIB)
        return Config(PoolConfig("fsdax", self.folder / "pool", (region,)), self.state_dir)

    @property
    def crash_loaded(self) -> Path:
        return self.folder / "crash_loaded"

    @property
    def oopses_are_fatal(self) -> bool:
        return (self.folder / "panic_on_oops").read_text().strip() == "1"

    def run(self, argv: list[str], **_more: object) -> str:
        words = " ".join(argv)
        if self.refused and words.startswith(self.refused):
            raise CommandFailed(f"{words} ended with 1: refused")
        if words == "systemctl --version":
            return f"systemd {self.systemd_version}\n+PAM +AUDIT\n"
        if words == f"modprobe -q {guard.HASHING_DRIVER}":
            self.hashes_quickly = True
            return ""
        self.commands.append(words)
        if words.startswith("systemctl is-enabled"):
            return f"{self.kdump_is}\n"
        if words.startswith("kexec"):
            (self.folder / "crash_loaded").write_text("0\n" if "-u" in argv else "1\n")
        if words.startswith("modprobe softdog"):
            (self.folder / "softdog").mkdir()
            self.timer_node.write_text("")
        if words == "modprobe -r softdog":
            (self.folder / "softdog").rmdir()
            if self.timer_node.name == "watchdog0":
                self.timer_node.unlink()
        return ""

    def stage(self, line: str = LINE) -> str:
        return guard.stage(self.config, GENERATION, "6.12", line, 600.0)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host(tmp_path)
    monkeypatch.setattr(guard, "RUN_DIR", tmp_path / "run")
    monkeypatch.setattr(kdump, "INSTALLED", tmp_path / "kdump-tools.service")
    monkeypatch.setattr(kdump, "MASKS", tmp_path / "masks")
    monkeypatch.setattr(kdump, "SYSTEMD", tmp_path / "systemd")
    monkeypatch.setattr(kdump, "run", found.run)
    monkeypatch.setattr(guard, "PANIC_ON_OOPS", tmp_path / "panic_on_oops")
    monkeypatch.setattr(guard, "WATCHDOGS", tmp_path / "class")
    monkeypatch.setattr(guard, "SOFTDOG", tmp_path / "softdog")
    monkeypatch.setattr(guard, "DEVICES", tmp_path)
    monkeypatch.setattr(guard, "run", found.run)
    monkeypatch.setattr(collect, "firmware_map", lambda: (Region(4 * GIB, 3 * GIB),))
    monkeypatch.setattr(kexec, "last_words", lambda: "Software Watchdog Timer expired")
    monkeypatch.setattr(guard.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(kexec, "run", found.run)
    monkeypatch.setattr(kexec, "CRASH_LOADED", tmp_path / "crash_loaded")
    monkeypatch.setattr(kexec, "CRASH_SIZE", tmp_path / "crash_size")
    monkeypatch.setattr(kexec, "initrd_bytes", lambda _release: 13 * MIB)
    monkeypatch.setattr(kexec, "image_of", lambda release: (Path(f"/boot/vmlinuz-{release}"), Path("/boot/initrd")))
    boots_with(monkeypatch, LINE)
    return found


def boots_with(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(kexec, "running_cmdline", lambda: line)


class TestStage:
    def test_the_running_kernel_is_staged_with_the_pool_and_the_generation(self, host: Host) -> None:
        assert host.stage() == ""
        staged = guard.read(host.state_dir)
        assert staged is not None
        assert (staged.generation, staged.image) == (GENERATION, "/boot/vmlinuz-6.12")
        assert POOL in staged.command_line

    def test_a_host_without_crashkernel_has_no_guard_and_no_complaint(self, host: Host) -> None:
        assert guard.stage(host.config, GENERATION, "6.12", LINE.replace("crashkernel=640M ", ""), 600.0) == ""
        assert guard.read(host.state_dir) is None

    def test_a_crash_area_that_is_too_small_is_not_used(self, host: Host) -> None:
        (host.folder / "crash_size").write_text(f"{256 * MIB}\n")
        assert host.stage() == "256 MiB are kept for a crash kernel, and it needs 640 MiB"
        assert guard.read(host.state_dir) is None

    def test_a_watchdog_in_hardware_that_came_after_ours_is_found_as_the_first(self, host: Host) -> None:
        """systemd looks for /dev/watchdog0, and nobody else tells it another name."""
        for name, identity in (("watchdog0", "Software Watchdog"), ("watchdog1", "iTCO_wdt")):
            (host.folder / "class" / name / "identity").write_text(f"{identity}\n")
        host.timer_node = host.folder / "watchdog0"
        host.stage()
        guard.begin(host.state_dir)
        (host.folder / "watchdog1").write_text("")
        guard.end()
        assert [os.readlink(host.folder / name) for name in ("watchdog0", "watchdog")] == ["watchdog1"] * 2

    def test_a_systemd_that_is_started_without_its_watchdog_leaves_ours_alone(self, host: Host) -> None:
        assert host.stage(f"{cmdline.WATCHDOG_OFF} {LINE}") == ""
        staged = guard.read(host.state_dir)
        assert staged
        assert staged.deadline_s == 600
        assert cmdline.WATCHDOG_OFF in staged.command_line, "nor shall the crash kernel's start it"

    def test_no_second_watchdog_is_started_beside_that_of_an_old_systemd(self, host: Host) -> None:
        host.systemd_version = "247 (247.3-7)"
        assert "cannot be started without its watchdog" in host.stage(f"{cmdline.WATCHDOG_OFF} {LINE}")
        guard.begin(host.state_dir)
        assert [command.split()[0] for command in host.commands] == ["kexec"]


class TestGuard:
    def test_first_the_crash_kernel_then_the_timer_once(self, host: Host) -> None:
        host.stage()
        assert "takes over" in guard.begin(host.state_dir)
        guard.begin(host.state_dir)
        first, second = host.commands
        assert first.startswith("kexec --no-sync -s -p ")
        assert host.hashes_quickly
        assert second.startswith("modprobe softdog soft_margin=600")
        assert host.oopses_are_fatal

    @pytest.mark.parametrize("line", [f"elfcorehdr=0x1 {LINE}", LINE.replace("ab12cd", "000000"), "root=/dev/vda1"])
    def test_another_boot_is_not_guarded(self, host: Host, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
        host.stage()
        boots_with(monkeypatch, line)
        guard.begin(host.state_dir)
        assert host.commands == []

    def test_no_panic_is_forced_where_nothing_would_take_over(self, host: Host) -> None:
        host.stage()
        host.refused = "kexec"
        with pytest.raises(HoldfastError, match="refused"):
            guard.begin(host.state_dir)
        assert host.commands == []
        assert not host.oopses_are_fatal

    def test_without_a_timer_a_panic_is_still_survived(self, host: Host) -> None:
        host.stage()
        host.refused = "modprobe"
        with pytest.raises(HoldfastError, match="hang for ever"):
            guard.begin(host.state_dir)
        assert (host.folder / "crash_loaded").read_text() == "1\n"
        assert not host.oopses_are_fatal

    def test_its_end_stops_the_timer_and_leaves_no_trace(self, host: Host) -> None:
        host.stage()
        guard.begin(host.state_dir)
        guard.end()
        guard.end()
        assert host.timer_node.read_text() == "V"
        assert host.commands[-1] == "modprobe -r softdog"
        assert not host.oopses_are_fatal
        assert (host.folder / "crash_loaded").read_text() == "1\n", "VMs that still wait would need it"

    def test_a_closed_generation_has_no_crash_kernel(self, host: Host) -> None:
        host.stage()
        guard.begin(host.state_dir)
        guard.forget(host.state_dir)
        assert (host.folder / "crash_loaded").read_text() == "0\n"
        assert list((host.folder / "run").iterdir()) == []
        assert guard.read(host.state_dir) is None

    def test_a_crash_kernel_of_somebody_else_stays_loaded(self, host: Host) -> None:
        (host.folder / "crash_loaded").write_text("1\n")
        guard.forget(host.state_dir)
        assert (host.folder / "crash_loaded").read_text() == "1\n"

    def test_a_damaged_record_is_named(self, host: Host) -> None:
        (host.state_dir / guard.NAME).write_text(json.dumps({"image": "/boot/vmlinuz"}))
        with pytest.raises(HoldfastError, match="cannot be understood"):
            guard.begin(host.state_dir)


class TestEarly:
    """At this kernel's very beginning the old one was loaded, and the timer was started."""

    @pytest.fixture
    def early(self, host: Host) -> Host:
        host.stage()
        (host.folder / guard.EARLY_MARK).write_text("")
        host.crash_loaded.write_text("1\n")
        (host.folder / "softdog").mkdir()
        host.timer_node.write_text("")
        return host

    def test_it_is_taken_over_and_nothing_is_loaded_again(self, early: Host) -> None:
        assert "takes over" in guard.begin(early.state_dir)
        assert "takes over" in guard.begin(early.state_dir)
        assert early.commands == []
        assert early.oopses_are_fatal

    def test_it_ends_as_the_later_one_does(self, early: Host) -> None:
        guard.begin(early.state_dir)
        guard.end()
        assert early.timer_node.read_text() == "V"
        assert not early.oopses_are_fatal
        assert early.crash_loaded.read_text() == "1\n"
        guard.forget(early.state_dir)
        assert early.crash_loaded.read_text() == "0\n"

    def test_no_guest_runs_with_its_timer_though_nobody_took_it_over(self, early: Host) -> None:
        guard.end()
        assert early.timer_node.read_text() == "V"

    @pytest.mark.parametrize("staged_for", [None, GENERATION.replace("ab", "cd")])
    def test_a_boot_that_nobody_needs_guarded_is_let_go(self, early: Host, staged_for: str | None) -> None:
        """Somebody has jumped with what was loaded for a generation that is over."""
        path = early.state_dir / guard.NAME
        if staged_for is None:
            path.unlink()
        else:
            path.write_text(path.read_text().replace(GENERATION, staged_for))
        guard.forget_early(early.state_dir)
        assert early.timer_node.read_text() == "V"
        assert early.crash_loaded.read_text() == "0\n"
        assert not early.oopses_are_fatal

    def test_a_crash_kernel_that_a_vm_waits_with_is_not_let_go(self, early: Host) -> None:
        guard.begin(early.state_dir)
        guard.forget_early(early.state_dir)
        assert early.crash_loaded.read_text() == "1\n"

    def test_a_timer_that_cannot_be_opened_keeps_no_pool_from_being_attached(self, early: Host) -> None:
        early.timer_node.unlink()
        early.timer_node.mkdir()
        assert "takes over" in guard.begin(early.state_dir)
        with pytest.raises(HoldfastError, match="cannot be stopped"):
            guard.end()

    def test_what_it_could_not_do_is_done_then(self, early: Host) -> None:
        early.crash_loaded.write_text("0\n")
        (early.folder / "softdog").rmdir()
        (early.folder / guard.EARLY_MARK).unlink()
        guard.begin(early.state_dir)
        assert [command.split()[0] for command in early.commands] == ["kexec", "modprobe"]
        assert early.oopses_are_fatal

    def test_a_later_generation_of_the_same_boot_touches_nothing_of_others(self, early: Host) -> None:
        """Crash dumps that are switched on, for example, have their own kernel loaded again by then."""
        guard.begin(early.state_dir)
        guard.forget(early.state_dir)
        early.crash_loaded.write_text("1\n")
        (early.folder / "softdog").mkdir()
        early.timer_node.write_text("")
        guard.forget(early.state_dir)
        guard.end()
        assert early.crash_loaded.read_text() == "1\n"
        assert early.timer_node.read_text() == ""

    def test_crash_dumps_end_before_the_look_at_what_is_loaded(self, early: Host) -> None:
        (early.folder / "kdump-tools.service").write_text("")
        (early.folder / "systemd").write_text("")
        run = early.run

        def ends(argv: list[str], **more: object) -> str:
            if "mask" in argv:
                early.crash_loaded.write_text("0\n")
            return run(argv, **more)

        kdump.run = ends  # type: ignore[assignment]
        guard.begin(early.state_dir)
        assert early.commands[0].startswith("systemctl mask")
        assert any(words.startswith("kexec") for words in early.commands)
        assert early.crash_loaded.read_text() == "1\n"


class TestKdump:
    """Debian's crash dumps would load their kernel in the place of ours, before any VM is restored."""

    @pytest.fixture
    def dumping(self, host: Host) -> Host:
        """A host with kdump-tools, in its initramfs."""
        (host.folder / "kdump-tools.service").write_text("")
        host.stage()
        return host

    def test_it_is_masked_before_systemd_starts_and_goes_on_at_the_end(self, dumping: Host) -> None:
        guard.begin(dumping.state_dir)
        mask = dumping.folder / "masks" / "kdump-tools.service"
        assert mask.readlink() == Path("/dev/null")
        (dumping.folder / "systemd").write_text("")
        dumping.commands.clear()
        guard.forget(dumping.state_dir)
        assert dumping.commands[-3:] == [
            "systemctl unmask --runtime kdump-tools.service",
            "systemctl is-enabled kdump-tools.service",
            "systemctl start --no-block kdump-tools.service",
        ]
        assert next(word for word in dumping.commands if word.startswith("kexec")) in dumping.commands[:-3]

    def test_what_was_not_switched_on_is_not_started(self, dumping: Host) -> None:
        guard.begin(dumping.state_dir)
        (dumping.folder / "systemd").write_text("")
        dumping.kdump_is = "disabled"
        guard.forget(dumping.state_dir)
        assert dumping.commands[-1] == "systemctl is-enabled kdump-tools.service"

    def test_where_it_may_have_begun_it_ends_before_ours_is_loaded(self, dumping: Host) -> None:
        """Its end unloads the crash kernel, whoever has loaded it."""
        (dumping.folder / "systemd").write_text("")
        guard.begin(dumping.state_dir)
        assert dumping.commands[0] == "systemctl mask --runtime --now kdump-tools.service"
        assert dumping.commands[1].startswith("kexec ")

    def test_where_ours_cannot_be_loaded_it_may_have_its_own(self, dumping: Host) -> None:
        dumping.refused = "kexec"
        with pytest.raises(HoldfastError, match="refused"):
            guard.begin(dumping.state_dir)
        assert list((dumping.folder / "masks").iterdir()) == []

    def test_where_it_is_not_installed_nothing_is_masked(self, host: Host) -> None:
        host.stage()
        guard.begin(host.state_dir)
        assert not (host.folder / "masks").exists()
        assert not any(words.startswith("systemctl") for words in host.commands)


class Domain:
    """A QEMU that has taken its state."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.ended = False

    def goes_on(self) -> bool:
        return False

    def resume(self) -> None:
        assert not self.host.oopses_are_fatal
        assert self.host.timer_node.read_text() == "V"

    def destroy(self) -> None:
        self.ended = True


def waiting(state_dir: Path) -> Journal:
    """A journal after the jump, with one VM suspended."""
    journal = open_journal(state_dir)
    vms = [{"name": name, "uuid": name, "priority": 1} for name in ("db", "web")]
    kernel = {"from": "6.12", "to": "7.2"}
    journal.record("begin", generation=GENERATION, host="hv1", kernel=kernel, qemu="10", boot_id="old", vms=vms)
    journal.record("suspending")
    for name in ("db", "web"):
        journal.record("vm_paused", uuid=name)
        journal.record("vm_saved", uuid=name)
    journal.record("suspended")
    journal.record("jumping")
    return journal


@pytest.fixture
def domain(host: Host, monkeypatch: pytest.MonkeyPatch) -> Domain:
    """Everything of a restore but its order."""
    one = Domain(host)
    monkeypatch.setattr(restore, "verify", lambda _pool, _record: None)
    monkeypatch.setattr(restore, "_start", lambda *_: one)
    monkeypatch.setattr(restore, "state_path", lambda _pool, uuid: host.folder / uuid)
    monkeypatch.setattr(restore.saveimage, "read", lambda _path: restore.saveimage.SaveImage("", 1))
    for name in ("keep_ram_in_place", "load_state", "copy_ram_again"):
        monkeypatch.setattr(restore.monitor, name, lambda *_: None)
    monkeypatch.setattr(restore.monitor, "qemu_version", lambda _domain: "11")
    (host.folder / "db").write_text("state")
    return one


class NoPool:
    def attach(self, _content: Any) -> None: ...

    def release(self, _uuid: str) -> None: ...


def test_the_timer_is_stopped_before_a_guest_runs(host: Host, domain: Domain) -> None:
    host.stage()
    guard.begin(host.state_dir)
    journal = waiting(host.state_dir)
    restore.restore(None, NoPool(), journal, "db", 1.0)  # type: ignore[arg-type]
    assert journal.vm("db")["state"] == "resumed"


def test_a_guest_does_not_run_while_the_timer_does(host: Host, domain: Domain) -> None:
    host.stage()
    guard.begin(host.state_dir)
    journal = waiting(host.state_dir)
    host.timer_node.unlink()
    with pytest.raises(HoldfastError, match="cannot be stopped"):
        restore.restore(None, NoPool(), journal, "db", 1.0)  # type: ignore[arg-type]
    assert domain.ended
    assert journal.vm("db")["state"] == "suspended"


def test_a_panic_before_the_first_resume_brings_the_old_kernel_and_a_later_one_no_old_state(
    host: Host, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """db ran in the new kernel when it died: what was saved of it does not match its RAM any more."""
    host.stage()
    guard.begin(host.state_dir)
    restore.restore(None, NoPool(), waiting(host.state_dir), "db", 1.0)  # type: ignore[arg-type]
    boots_with(monkeypatch, f"elfcorehdr=0x1 {LINE}")
    monkeypatch.setattr(kexec, "boot_id", lambda: "crash")
    monkeypatch.setattr(kexec, "running_release", lambda: "6.12")
    monkeypatch.setattr(attach, "open_pool", lambda _config: NoPool())
    monkeypatch.setattr(attach, "check_owner", lambda _pool, _journal: None)
    assert attach.attach(host.config) is Boot.JUMPED
    journal = open_journal(host.state_dir)
    assert {vm["name"]: vm["state"] for vm in journal.vms} == {"db": "lost", "web": "suspended"}
    assert journal.view["fell_back"]
    assert journal.view["reason"].startswith("kernel 7.2 died")
    assert journal.view["reason"].endswith("Software Watchdog Timer expired")
    assert "reboot it" in journal.view["warnings"][0]
    with pytest.raises(HoldfastError, match="at most once"):
        journal.record("vm_resuming", uuid="db")
    assert not (host.folder / "db").exists(), "its saved state was used up"


def test_the_timer_leaves_time_for_network_and_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does not get at them goes back by itself, with its VMs in order, before the timer ends it."""
    given: list[float] = []
    monkeypatch.setattr(guard, "stage", lambda *words: given.append(words[-1]) or "")
    journal = SimpleNamespace(view={"kernel": {"from": "6.12"}})
    wanted = Request(GENERATION, "7.2", deadline_s=100.0, network_s=300.0, storage_s=50.0)
    live_update._stage_guard(Config(), journal, wanted, LINE)  # type: ignore[arg-type]
    assert given == [450.0]
