# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A new kernel that dies before it has restored the VMs: the old one takes over as crash kernel, with their RAM.

These tests tell one story and run in this order, each a chapter of some minutes: ``make faults``.
"""

from __future__ import annotations

import pytest
from rack import Rack

from holdfast.lab import scene
from holdfast.lab.guests.observer import compare

pytestmark = pytest.mark.faults

# Nothing of ours has run when the first one strikes, but for the script in the initramfs.
EARLY = "DefaultDependencies=no\nAfter=systemd-remount-fs.service\nBefore=holdfast-pool.service"
# The pool is mounted and libvirt answers: the next thing would be to restore.
LATE = "After=holdfast-pool.service libvirtd.service\nBefore=holdfast-restore.service"
PANIC = "/bin/sh -c 'echo c > /proc/sysrq-trigger'"
HANG = "/bin/sleep infinity"
# Long enough for a boot under emulation, of which 30 to 60 s were seen.
DEADLINE_S = 150


def test_a_kernel_that_panics_early_gives_way_to_the_old_one(watch: scene.Watch, prepared: Rack) -> None:
    assert "crashkernel=" in prepared.on_host("cat /proc/cmdline")
    inject(prepared, EARLY, PANIC)
    upgrade_falls_back(watch, prepared, "sysrq triggered crash")


def test_the_crash_kernel_is_left_with_every_guest_suspended_across(watch: scene.Watch, prepared: Rack) -> None:
    """By an ordinary upgrade to the kernel that runs: all of the host's RAM is back, and a crash kernel's too."""
    goes_back_to_normal(watch, prepared)


def test_a_kernel_that_panics_late_gives_way_too(watch: scene.Watch, prepared: Rack) -> None:
    inject(prepared, LATE, PANIC)
    upgrade_falls_back(watch, prepared, "sysrq triggered crash", *to_newest(prepared))
    goes_back_to_normal(watch, prepared)


def test_a_kernel_that_hangs_is_ended_by_its_deadline(watch: scene.Watch, prepared: Rack) -> None:
    inject(prepared, EARLY, HANG)
    deadline = ("-e", f"live_update_deadline_s={DEADLINE_S}")
    upgrade_falls_back(watch, prepared, "Software Watchdog Timer expired", *to_newest(prepared), *deadline)
    goes_back_to_normal(watch, prepared)


def test_a_kernel_without_a_fault_is_guarded_and_then_left_alone(watch: scene.Watch, prepared: Rack) -> None:
    prepared.on_host("systemctl -q disable fault.service && rm /etc/systemd/system/fault.service")
    done = prepared.playbook("upgrade", *to_newest(prepared))
    assert done.status == 0
    assert prepared.journal()["warnings"] == []
    assert "takes over if this kernel dies" in prepared.on_host("dmesg")
    assert prepared.on_host("cat /sys/kernel/kexec_crash_loaded").strip() == "0"
    assert "softdog" not in prepared.on_host("lsmod")
    unharmed(watch)
    assert watch.finish() == []


def inject(rack: Rack, order: str, command: str) -> None:
    """A unit that strikes in kernels from 7 on only."""
    rack.on_host(
        f"""cat > /etc/systemd/system/fault.service <<'END'
[Unit]
ConditionKernelVersion=>=7
{order}
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart={command}
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload && systemctl -q reenable fault.service
"""
    )


def upgrade_falls_back(watch: scene.Watch, rack: Rack, why: str, *extra: str) -> None:
    done = rack.run("holdfast", "upgrade", "-i", str(rack.inventory), *extra)
    assert done.status == 2
    journal = rack.journal()
    assert (journal["state"], journal["fell_back"]) == ("restored", True)
    assert why in journal["reason"]
    assert any("reboot it" in warning for warning in journal["warnings"])
    assert {vm["state"] for vm in journal["vms"]} == {"resumed"}
    assert rack.on_host("uname -r").startswith("6.")
    assert "elfcorehdr=" in rack.on_host("cat /proc/cmdline")
    print(rack.on_host("free -m; nproc"))
    unharmed(watch)


def goes_back_to_normal(watch: scene.Watch, rack: Rack) -> None:
    release = rack.on_host("uname -r").strip()
    wish = f'{{"stage_packages": [], "stage_kernel": "{release}", "live_update_force": true}}'
    done = rack.playbook("upgrade", "-e", wish)
    assert done.status == 0
    assert rack.on_host("uname -r").strip() == release
    assert "elfcorehdr=" not in rack.on_host("cat /proc/cmdline")
    assert int(rack.on_host("cat /sys/kernel/kexec_crash_size")) > 0
    assert int(rack.on_host("awk '/MemTotal/ { print $2 }' /proc/meminfo")) > 2 << 20
    unharmed(watch)


def to_newest(rack: Rack) -> tuple[str, ...]:
    """Extra variables for an upgrade to the newest installed kernel, without a look at packages."""
    newest = rack.on_host("ls /boot/vmlinuz-* | sort -V | sed 's/.*vmlinuz-//' | tail -1").strip()
    return ("-e", f'{{"stage_packages": [], "stage_kernel": "{newest}"}}')


def unharmed(watch: scene.Watch) -> None:
    findings = []
    for guest in watch.guests:
        findings += compare(watch.before[guest.name], watch.look(guest))
    assert findings == []
