# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is broken, when, and where every VM has to be afterwards. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ..lab.guests.definitions import GUESTS

UUID = {guest.name: guest.uuid for guest in GUESTS}
DB, UEFI, TICK = "db1", "uefi1", "tick1"
VAULT = "/var/lib/holdfast/pool/holdfast"
STORED = "/var/lib/holdfast/stored"
KILL_AGENT = "kill -KILL $AGENT"
# And once more, as soon as somebody is at work on bringing the VMs back.
KILL_RECOVER = "pkill -KILL -f '^/usr/bin/python3 .*holdfast-agent recover'"
KILL_AGENT_AGAIN = f"{KILL_AGENT}; until {KILL_RECOVER}; do sleep 0.05; done"
HANG_LIBVIRTD = "kill -STOP $(pidof libvirtd)"
KILL_LIBVIRTD = "kill -KILL $(pidof libvirtd)"
JOURNAL = "/var/lib/holdfast/journal.jsonl"
RESET = "echo b > /proc/sysrq-trigger"
PANIC = "echo c > /proc/sysrq-trigger"
# What a controller ends with whose process was killed, and what `holdfast` ends with (see `holdfast --help`).
KILLED, DONE, HOST_FAILED, REFUSED, LOCKED = -9, 0, 2, 3, 5


class Ending(StrEnum):
    """How a live update ended, by its journal."""

    UPGRADED = "upgraded"
    FELL_BACK = "fell_back"
    ABORTED = "aborted"
    FAILED = "failed"
    REFUSED = "refused"


class Fate(StrEnum):
    """What became of one VM, as seen from outside."""

    CARRIED_ON = "carried on"
    STARTED_AFRESH = "started afresh"
    GONE = "gone"


# Phases in which the host has not been asked for the live update.
EARLY = ("preflight", "stage")


@dataclass(frozen=True)
class Controllers:
    """Real controllers (``holdfast upgrade``) that ask for the live update, all at the same time.

    ``killed``: the only one is killed at the fault's event. ``exits``: what they may end with, each possibility in
    ascending order. When the host is at rest, ``holdfast recover`` and the same upgrade again have to find all done.
    In an ``EARLY`` phase there is no journal yet, so the fault happens when the only one says that it begins that
    phase; another one then goes on, to the end.
    """

    count: int = 1
    killed: bool = False
    exits: tuple[tuple[int, ...], ...] = ((DONE,),)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    ``event``: the event of the journal at which the ``deed`` (a shell script on the host) is done; empty: before the
    live update is asked for. ``setup`` and ``teardown``: what the host has while this goes on. ``mend``: what the
    operator does afterwards, before ``recover``. ``given_up``: VMs that the operator gives up then. ``fates``: VMs that
    do not carry on. ``limits``: fields of the request, which is put to the agent directly unless there are
    ``controllers``. ``cold``: VMs that are to wait on disk. ``other_kernel``: the jump is not to the kernel that runs.
    ``ram_survives``: that of every VM, and what else belongs to it; ``why`` not.
    """

    name: str
    phase: str
    event: str
    deed: str
    ends: tuple[Ending, ...]
    setup: str = ""
    teardown: str = ""
    mend: str = ""
    given_up: tuple[str, ...] = ()
    fates: Mapping[str, Fate] = field(default_factory=dict)
    limits: Mapping[str, object] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    cold: tuple[str, ...] = ()
    ram_survives: bool = True
    controllers: Controllers | None = None
    other_kernel: bool = False
    why: str = ""

    @property
    def needs_operator(self) -> bool:
        """Whether somebody has to act before every VM is back."""
        return bool(self.mend or self.given_up)

    def fate(self, name: str) -> Fate:
        return self.fates.get(name, Fate.CARRIED_ON)


@dataclass(frozen=True)
class Moment:
    """``delay`` seconds after the journal has so many events, whichever they are."""

    after: int
    delay: float


def _kill(name: str, phase: str, event: str, end: Ending) -> Fault:
    return Fault(f"agent killed {name}", phase, event, KILL_AGENT, (end,))


def _harm(name: str, deed: str) -> Fault:
    """Something that belongs to one VM is damaged after the jump: it is kept, and in the end given up."""
    fates = {TICK: Fate.STARTED_AFRESH}
    why = "what was saved of this VM is damaged, which is found before it runs; only its disk is left"
    return Fault(
        name,
        "restore",
        "attached",
        deed,
        (Ending.FAILED,),
        given_up=(TICK,),
        fates=fates,
        ram_survives=False,
        why=why,
    )


def _gone(name: str, phase: str, event: str) -> Fault:
    """The host starts anew by its firmware: all RAM is gone, and a VM whose policy does not say more waits."""
    return Fault(
        name,
        phase,
        event,
        RESET,
        (Ending.FAILED,),
        given_up=tuple(guest.name for guest in GUESTS if guest.name not in MAY_RESTART),
        fates={guest.name: Fate.STARTED_AFRESH for guest in GUESTS},
        ram_survives=False,
        why="a reset through the firmware loses what is in RAM",
    )


def _crash(name: str, phase: str, event: str, deed: str) -> Fault:
    """The new kernel ends before a VM was resumed: the old one takes over as crash kernel."""
    return Fault(name, phase, event, deed, (Ending.FELL_BACK,), limits={"deadline_s": CRASH_DEADLINE_S})


def _crash_beside_kdump(name: str, phase: str, event: str) -> Fault:
    return replace(_crash(name, phase, event, PANIC), setup=KDUMP_INSTALLED, teardown=KDUMP_REMOVED)


def _crash_beside_watchdog(name: str, phase: str, event: str) -> Fault:
    return replace(_crash(name, phase, event, PANIC), setup=WATCHDOG, teardown=WATCHDOG_GONE)


def _cold(name: str, phase: str, event: str, deed: str, end: Ending) -> Fault:
    """The one that waits on disk carries on like the others."""
    limits = {"deadline_s": CRASH_DEADLINE_S} if end is Ending.FELL_BACK else {}
    return Fault(name, phase, event, deed, (end,), limits=limits, cold=(TICK,))


def _controller_killed(phase: str, event: str = "") -> Fault:
    asked = Controllers(killed=True, exits=((KILLED,),))
    return Fault(f"controller killed, phase {phase}", phase, event, "", (Ending.UPGRADED,), controllers=asked)


def _ssh_cut(phase: str, event: str = "", exits: tuple[tuple[int, ...], ...] = ((DONE,),)) -> Fault:
    asked = Controllers(exits=exits)
    return Fault(f"SSH cut, phase {phase}", phase, event, CUT, (Ending.UPGRADED,), controllers=asked)


# After a loss this VM may be started afresh by itself; the others wait for a person.
MAY_RESTART = (TICK,)
FLIP = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(%d); b = f.read(1)[0]; f.seek(%d); f.write(bytes([b ^ 1]))"
BREAK_KEXEC = "printf '#!/bin/sh\\nexit 1\\n' > /root/no-kexec && chmod 755 /root/no-kexec && "
BREAK_KEXEC += "mount --bind /root/no-kexec /usr/sbin/kexec"
# As somebody does who means to reboot by kexec: without the pool's generation on its command line.
LOAD_ANOTHER = "kexec -s -l /boot/vmlinuz-$(uname -r) --initrd=/boot/initrd.img-$(uname -r) --reuse-cmdline"
QEMU = "/usr/bin/qemu-system-x86_64"
FLIP_JOURNAL = f'python3 -c "{FLIP % (100, 100)}" {JOURNAL}'
# The agent at work cannot make the journal longer, as if its disk were full. Guests have their disks there, too.
FILL_JOURNAL = f"for pid in $AGENT; do prlimit --pid $pid --fsize=$(stat -c %s {JOURNAL}); done"
# Asked for all at once, what is free is a little more than a file can have.
FREE_BYTES = "$(df --output=avail -B1 /var/lib/holdfast/pool | tail -1)"
FULL_POOL = f"cat /dev/zero >/var/lib/holdfast/pool/full 2>/dev/null || true; [ {FREE_BYTES} -lt 262144 ]"
FORGET_POOL = "sed 's/memmap=[^ ]*//' /proc/cmdline > /root/cmdline && mount --bind /root/cmdline /proc/cmdline"
# A kernel that is installed and does not run, for faults that must not concern the one that does.
OTHER = "$(ls /boot/vmlinuz-* | sed 's/.*vmlinuz-//' | grep -vx \"$(uname -r)\" | tail -1)"
# The kernel skips zeros in front of an archive, finds none, and so no driver for its disk.
EMPTY_INITRD = f"truncate -s 1M /root/initrd && mount --bind /root/initrd /boot/initrd.img-{OTHER}"
# All is well with it, but for the one driver. It waits for its disk, and then for a person.
NO_DISK_FILE = "/etc/modprobe.d/no-disk.conf"
WHOLE_INITRD = f"update-initramfs -u -k {OTHER} >/dev/null"
NO_DISK = f"echo blacklist virtio_blk >{NO_DISK_FILE} && {WHOLE_INITRD}; rm {NO_DISK_FILE}"
# The guard is complete when an oops would be a panic: then the crash kernel is loaded, and the timer runs.
GUARDED = "until [ $(cat /proc/sys/kernel/panic_on_oops) = 1 ]; do sleep 0.1; done"
# As its administrator has it, but for the crashkernel= that it would add at the next boot by the boot loader.
KDUMP_INSTALLED = """set -e
export DEBIAN_FRONTEND=noninteractive
echo 'kdump-tools kdump-tools/use_kdump boolean true' | debconf-set-selections
apt-get update -q >/dev/null
apt-get install -q -y kdump-tools >/dev/null
rm -f /etc/default/grub.d/kdump-tools.cfg
systemctl is-enabled -q kdump-tools && systemctl is-active -q kdump-tools
grep -q 1 /sys/kernel/kexec_crash_loaded
"""
KDUMP_REMOVED = "DEBIAN_FRONTEND=noninteractive apt-get purge -q -y kdump-tools >/dev/null"
# Of the whole start of the new kernel, which takes 30 to 120 s under emulation.
CRASH_DEADLINE_S = 150
ONE_MORE = """virsh -q create /dev/stdin <<'END'
<domain type='kvm'><name>extra1</name><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os></domain>
END
"""
AWAY = "/var/lib/libvirt/images/away.save"
CABLE_MENDED = "while ip rule del priority 1 2>/dev/null; do :; done"
# As a broken cable: nobody is told, old connections and new ones just get no answer. Guests are behind the same cable,
# but on the bridge, so theirs hold. Again and again, because the host's network may only be coming up.
OUTSIDE = "10.0.2.2"
# A rule, not a route, which would keep the default route from being set.
CUT = f"""for second in $(seq 30); do
ip rule add to {OUTSIDE} priority 1 blackhole 2>/dev/null; sleep 1
done
{CABLE_MENDED}
"""

# A package whose installation takes its time, as one that asks somebody a question.
SLOW_PACKAGE = """set -e
mkdir -p /root/slow/DEBIAN
cd /root/slow/DEBIAN
printf 'Package: slow\\nVersion: 1\\nArchitecture: all\\nMaintainer: lab\\nDescription: slow\\n' >control
printf '#!/bin/sh\\n[ "$1" != configure ] || sleep 600\\n' >postinst
chmod 755 postinst
dpkg-deb --build /root/slow /root/slow.deb >/dev/null
systemd-run -q --unit=slow-package dpkg -i /root/slow.deb
until [ "$(dpkg-query -W -f '${db:Status-Abbrev}' slow 2>/dev/null)" = 'iF ' ]; do sleep 0.2; done
"""
SLOW_PACKAGE_GONE = "systemctl stop slow-package; dpkg --purge slow >/dev/null; rm -r /root/slow /root/slow.deb"

DISK = "/var/lib/libvirt/images/tick1.qcow2"
LATE_DISK = f"mv {DISK} {DISK}.away; sleep 60; mv {DISK}.away {DISK}"
# In the next boot, when the file system that it is on can be written, and before anybody attaches the pool.
FORGETFUL = "/etc/systemd/system/forgetful.service"
KEPT_JOURNAL = "/root/journal.kept"
LOSE_JOURNAL = f"""
cat >{FORGETFUL} <<'END'
[Unit]
DefaultDependencies=no
RequiresMountsFor={JOURNAL}
After=systemd-remount-fs.service
Before=holdfast-pool.service
[Service]
Type=oneshot
ExecStart=/bin/mv {JOURNAL} {KEPT_JOURNAL}
END
mkdir -p /etc/systemd/system/holdfast-pool.service.wants
ln -s {FORGETFUL} /etc/systemd/system/holdfast-pool.service.wants/
sync
"""
JOURNAL_FOUND = f"""
rm {FORGETFUL} /etc/systemd/system/holdfast-pool.service.wants/forgetful.service
systemctl daemon-reload
mv {KEPT_JOURNAL} {JOURNAL}
systemctl start holdfast-pool.service
"""
# As an administrator has systemd feed it. The crash kernel of an emulated host takes a minute to its systemd.
WATCHDOG_FILE = "/etc/systemd/system.conf.d/watchdog.conf"
WATCHDOG_FED = "grep -qx active /sys/class/watchdog/*/state"
WATCHDOG = f"""set -e
mkdir -p $(dirname {WATCHDOG_FILE})
printf '[Manager]\\nRuntimeWatchdogSec=40\\n' >{WATCHDOG_FILE}
systemctl daemon-reexec
{WATCHDOG_FED}
"""
# It was given back to systemd, whichever kernel that is of.
WATCHDOG_GONE = f"""{WATCHDOG_FED}
fed=$?
rm {WATCHDOG_FILE}
manager='org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager'
busctl set-property $manager RuntimeWatchdogUSec t {(1 << 64) - 1}
systemctl daemon-reexec
exit $fed
"""

# A disk that takes no more writes, and says nothing: what its file system has not written can wait for ever.
HUNG_DISK = """
truncate -s 64M /root/hung.img
dmsetup create hung --table "0 131072 linear $(losetup --find --show /root/hung.img) 0"
mkfs.ext4 -q /dev/mapper/hung
mkdir -p /mnt/hung
mount /dev/mapper/hung /mnt/hung
echo unwritten >/mnt/hung/file
dmsetup suspend --nolockfs --noflush hung
"""
HUNG_DISK_MENDED = (
    "dmsetup resume hung; umount /mnt/hung; dmsetup remove hung; losetup --detach-all; rm -r /root/hung.img /mnt/hung"
)

# From the next kernel on no guest has virtualisation of its own, which these guests have, and do not use.
LESS_CPU_FILE = "/etc/modprobe.d/less-cpu.conf"
LESS_CPU = f"printf 'options %s nested=0\\n' kvm_amd kvm_intel > {LESS_CPU_FILE}"

# For this boot only. Whoever brings the card up does so once, and not again.
NO_LINK = "for second in $(seq 600); do ip link set eth0 down; sleep 1; done 2>/dev/null"

BEFORE_THE_JUMP = (
    _kill("while the new kernel is loaded", "load", "phase_begin load", Ending.ABORTED),
    _kill("while VMs are paused", "suspend", f"vm_paused {UUID[TICK]}", Ending.ABORTED),
    _kill("while VMs are saved", "suspend", f"vm_paused {UUID[DB]}", Ending.ABORTED),
    Fault(
        "agent killed again while it takes VMs back",
        "suspend",
        f"vm_paused {UUID[DB]}",
        KILL_AGENT_AGAIN,
        (Ending.ABORTED,),
    ),
    _kill("after one VM was saved", "suspend", f"vm_saved {UUID[TICK]}", Ending.ABORTED),
    _kill("when all VMs are suspended", "jump", "suspended", Ending.ABORTED),
    Fault(
        "libvirtd hangs during a save",
        "suspend",
        f"vm_paused {UUID[DB]}",
        HANG_LIBVIRTD,
        (Ending.ABORTED,),
        limits={"deadline_s": 30},
    ),
    Fault("libvirtd killed during a save", "suspend", f"vm_paused {UUID[DB]}", KILL_LIBVIRTD, (Ending.ABORTED,)),
    Fault(
        "QEMU of one VM killed during its save",
        "suspend",
        f"vm_paused {UUID[TICK]}",
        f"kill -KILL $(pgrep -f '[g]uest={TICK},')",
        (Ending.ABORTED,),
        fates={TICK: Fate.STARTED_AFRESH},
        ram_survives=False,
        why="a VM whose QEMU is killed ends, as it does at any other time",
    ),
    Fault(
        "no room for state files",
        "suspend",
        "",
        FULL_POOL,
        (Ending.ABORTED,),
        mend="rm /var/lib/holdfast/pool/full",
    ),
    Fault("no more room for the journal", "suspend", f"vm_paused {UUID[TICK]}", FILL_JOURNAL, (Ending.ABORTED,)),
    Fault("kexec refuses the kernel", "load", "", BREAK_KEXEC, (Ending.ABORTED,), mend="umount /usr/sbin/kexec"),
    Fault("the loaded kernel is unloaded", "jump", "suspending", "kexec -s -u", (Ending.ABORTED,)),
    Fault("another kernel is loaded in its place", "jump", "suspending", LOAD_ANOTHER, (Ending.ABORTED,)),
    Fault("a disk of the host does not answer", "load", "", HUNG_DISK, (Ending.ABORTED,), mend=HUNG_DISK_MENDED),
    Fault("suspending takes too long", "suspend", "", "true", (Ending.ABORTED,), limits={"deadline_s": 0.5}),
    Fault(
        "a package is being installed",
        "preflight",
        "",
        "true",
        (Ending.REFUSED,),
        setup=SLOW_PACKAGE,
        teardown=SLOW_PACKAGE_GONE,
    ),
    Fault("a VM that the plan does not know", "preflight", "", "true", (Ending.REFUSED,), unknown=(TICK,)),
    Fault(
        "a VM is started after preflight",
        "load",
        "phase_begin load",
        ONE_MORE,
        (Ending.ABORTED,),
        mend="virsh -q destroy extra1 || true",
    ),
    Fault(
        "a VM is destroyed after preflight",
        "load",
        "phase_begin load",
        f"virsh -q destroy {TICK}",
        (Ending.ABORTED,),
        given_up=(TICK,),
        fates={TICK: Fate.STARTED_AFRESH},
        ram_survives=False,
        why="somebody ended this VM, so it is started again only when somebody says so",
    ),
    Fault(
        # To libvirt this is what a live migration is: a job, and then the VM is somewhere else.
        "a VM is saved away after preflight",
        "load",
        "phase_begin load",
        f"virsh -q save {TICK} {AWAY}",
        (Ending.ABORTED,),
        mend=f"holdfast-agent give-up {TICK}; virsh -q restore {AWAY}; rm {AWAY}",
    ),
    Fault(
        "the pool is missing from the command line",
        "load",
        "",
        FORGET_POOL,
        (Ending.ABORTED,),
        mend="umount /proc/cmdline",
    ),
    Fault(
        "the journal damaged before the jump",
        "suspend",
        f"vm_paused {UUID[TICK]}",
        FLIP_JOURNAL,
        (Ending.UPGRADED,),
    ),
)
AFTER_THE_JUMP = (
    _kill("while the pool is attached", "attach", "arrived", Ending.UPGRADED),
    _kill("before the first restore", "restore", "restoring", Ending.UPGRADED),
    _kill("while a VM loads its state", "restore", f"vm_verified {UUID[DB]}", Ending.UPGRADED),
    _kill("while a VM is resumed", "restore", f"vm_resuming {UUID[DB]}", Ending.UPGRADED),
    Fault("libvirtd killed during a restore", "restore", f"vm_verified {UUID[DB]}", KILL_LIBVIRTD, (Ending.UPGRADED,)),
    Fault("the clock jumps a day", "jump", f"vm_saved {UUID[TICK]}", "date -s '+1 day'", (Ending.UPGRADED,)),
    _harm("a bit of a state file flipped", f'python3 -c "{FLIP % (9999, 9999)}" {VAULT}/{UUID[TICK]}/state'),
    _harm("a state file truncated", f"truncate -s 4096 {VAULT}/{UUID[TICK]}/state"),
    _harm("a page of RAM changed", f'python3 -c "{FLIP % (0, 0)}" {VAULT}/{UUID[TICK]}/ram/*'),
    # The second page: the sample has the first and the last, and 254 others of some fifty thousand.
    replace(
        _harm(
            "a page of RAM changed, all of it compared",
            f'python3 -c "{FLIP % (4096, 4096)}" {VAULT}/{UUID[TICK]}/ram/*',
        ),
        limits={"verify_ram": "full", "deadline_s": 300},
    ),
    _harm("a RAM file missing", f"rm {VAULT}/{UUID[TICK]}/ram/*"),
    # As behind a target that is just being failed over.
    Fault("a disk of a VM comes late", "restore", "attached", LATE_DISK, (Ending.UPGRADED,)),
    Fault(
        "the journal damaged",
        "restore",
        "attached",
        FLIP_JOURNAL,
        (Ending.UPGRADED,),
    ),
    Fault(
        "the journal is missing",
        "attach",
        f"vm_paused {UUID[TICK]}",
        LOSE_JOURNAL,
        (Ending.UPGRADED,),
        mend=JOURNAL_FOUND,
    ),
    Fault(
        "the new kernel is found unfit",
        "restore",
        "",
        "true",
        (Ending.FELL_BACK,),
        limits={"health_command": "echo a driver is missing; exit 1"},
    ),
    Fault(
        "the new kernel offers VMs less of the CPU",
        "restore",
        "",
        LESS_CPU,
        (Ending.FELL_BACK,),
        teardown=f"rm {LESS_CPU_FILE}",
    ),
    Fault("the new kernel does not get at the network", "restore", "arrived", NO_LINK, (Ending.FELL_BACK,)),
    Fault(
        "the new QEMU cannot start",
        "restore",
        "arrived",
        f"chmod 0 {QEMU}",
        (Ending.FELL_BACK,),
        mend=f"chmod 755 {QEMU}; systemctl restart libvirtd",
    ),
    _crash("the new kernel panics early", "attach", "arrived", f"{GUARDED}; {PANIC}"),
    _crash("the new kernel panics late", "restore", "restoring", PANIC),
    _crash_beside_kdump("the new kernel panics on a host with kdump-tools", "restore", "restoring"),
    _crash_beside_watchdog("the new kernel panics on a host with a watchdog", "restore", "restoring"),
    _crash("the new kernel hangs", "attach", "arrived", f"{GUARDED}; kill -STOP $AGENT"),
    _gone("power lost while VMs are paused", "suspend", f"vm_paused {UUID[TICK]}"),
    _gone("power lost while all VMs are suspended", "jump", "suspended"),
    _gone("power lost after the jump, before any restore", "attach", "attached"),
    _gone("power lost when one VM was resumed", "restore", f"vm_resumed {UUID[DB]}"),
)
# They need a second kernel, which is installed for them.
INTO_ANOTHER = (
    replace(_crash("the new kernel has a wrong initrd", "jump", "", EMPTY_INITRD), other_kernel=True),
    replace(
        _crash("the new kernel does not find its disk", "jump", "", NO_DISK), other_kernel=True, teardown=WHOLE_INITRD
    ),
)
# In each phase. A connection that is cut before or while the request is handed over, or when all is done, fails the
# controller, not the host.
EITHER = ((DONE,), (HOST_FAILED,))
CONTROLLERS = (
    _controller_killed("preflight"),
    _controller_killed("stage"),
    _controller_killed("load", "phase_begin load"),
    _controller_killed("suspend", f"vm_paused {UUID[TICK]}"),
    _controller_killed("jump", "jumping"),
    _controller_killed("attach", "arrived"),
    _controller_killed("restore", f"vm_verified {UUID[DB]}"),
    _controller_killed("verify", "restored"),
    _ssh_cut("preflight", exits=EITHER),
    _ssh_cut("stage", exits=EITHER),
    _ssh_cut("load", "phase_begin load", EITHER),
    _ssh_cut("suspend", f"vm_paused {UUID[TICK]}"),
    _ssh_cut("jump", "jumping"),
    _ssh_cut("attach", "arrived"),
    _ssh_cut("restore", f"vm_verified {UUID[DB]}"),
    _ssh_cut("verify", "restored", EITHER),
    Fault(
        "two controllers at once",
        "any",
        "",
        "true",
        (Ending.UPGRADED,),
        controllers=Controllers(count=2, exits=((DONE, HOST_FAILED), (DONE, REFUSED), (DONE, LOCKED))),
    ),
)
# One VM waits on disk, the others in the pool.
COLD = (
    _cold("agent killed while a VM is saved to disk", "store", f"vm_storing {UUID[TICK]}", KILL_AGENT, Ending.ABORTED),
    _cold("agent killed when a VM is on disk", "store", f"vm_stored {UUID[TICK]}", KILL_AGENT, Ending.ABORTED),
    _cold("agent killed when all wait, one on disk", "jump", "suspended", KILL_AGENT, Ending.ABORTED),
    _cold("agent killed while a VM loads from disk", "start", f"vm_loading {UUID[TICK]}", KILL_AGENT, Ending.UPGRADED),
    _cold("the new kernel panics while a VM is on disk", "restore", "restoring", PANIC, Ending.FELL_BACK),
    replace(
        _harm("a bit of a saved VM on disk flipped", f'python3 -c "{FLIP % (1000, 1000)}" {STORED}/{UUID[TICK]}'),
        cold=(TICK,),
    ),
    replace(
        _gone("power lost while one VM is on disk", "jump", "suspended"),
        cold=(TICK,),
        fates=dict.fromkeys((DB, UEFI), Fate.STARTED_AFRESH),
    ),
)
# Those that install a second kernel come last: the others are meant for a host that has one.
FAULTS = (*BEFORE_THE_JUMP, *AFTER_THE_JUMP, *COLD, *INTO_ANOTHER, *CONTROLLERS)
