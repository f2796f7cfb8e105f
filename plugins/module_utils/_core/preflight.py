# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""May this host be upgraded in place now? Every blocker at once, of the host and of each VM; nothing is touched.

One small function per question. It yields findings; whether they block or merely warn is decided by the table the
function stands in. VMs are judged only when they stay on the host and are not shut off: all of them when they stay in
place, and by another table when they are shut down and started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from . import cmdline, crash_area, qemu_conf, regions
from .errors import Refused
from .facts import (
    ARRIVES,
    MOVING,
    SAVE_FORMAT_ON_REQUEST,
    Blocker,
    HostFacts,
    KernelFacts,
    QemuFacts,
    RamBacking,
    Treatment,
    Verdict,
    VmFacts,
)
from .policy import Decision
from .printable import argument
from .resources import Service

_MIB = 1 << 20

STATE_BYTES_SPARE = 64 * _MIB
# The next kernel and its initrd are held in the host's own RAM until the jump.
MEMORY_FOR_KERNEL_BYTES = 256 * _MIB
# KASLR avoids this many memmap= entries (MAX_MEMMAP_REGIONS, arch/x86/boot/compressed/kaslr.c).
KASLR_AVOIDS = 4
# file: migration streams at an offset, which reads the state out of libvirt's save image.
OLDEST_QEMU = (8, 2, 0)
# virDomainQemuMonitorCommandWithFiles, which hands the state file to a confined QEMU.
OLDEST_LIBVIRT = (8, 2, 0)

# Block drivers that add a migration blocker in QEMU's normal mode.
_DISK_FORMATS_THAT_CANNOT_MOVE = ("parallels", "qcow", "vdi", "vhdx", "vmdk", "vpc", "fat")
_RAM_DISKS = ("/dev/ram", "/dev/zram")
_LATE_DEVICES = ("/dev/loop", "/dev/nbd", "/dev/rbd")
_PREPARE = "run the prepare playbook"


@dataclass(frozen=True)
class _Case:
    """What is judged. ``qemu`` is the one that will restore; ``treated``: the VMs, those that are shut off left out.

    ``jumps``: whether the kernel changes, too; where it does not, VMs have their turn one by one.
    """

    host: HostFacts
    target: KernelFacts
    qemu: QemuFacts
    treated: Mapping[Treatment, tuple[VmFacts, ...]]
    decisions: tuple[Decision, ...] = ()
    jumps: bool = True

    @property
    def vms(self) -> tuple[VmFacts, ...]:
        """Those that are kept in place."""
        return self.treated[Treatment.IN_PLACE]

    def pause_limit_s(self, vm: VmFacts) -> float | None:
        """How long the VM's policy lets it stand still, None when it does not say."""
        return next((one.max_pause_s for one in self.decisions if one.uuid == vm.uuid), None)

    def past_pause_s(self, vm: VmFacts) -> float | None:
        """How long the VM stood still in the last upgrade of this host, None when it took no part."""
        return next((past.seconds for past in self.host.past_pauses if past.uuid == vm.uuid), None)


_HostCheck = Callable[[_Case], Iterator[Blocker]]
_VmCheck = Callable[[_Case, VmFacts], Iterator[Blocker]]
_ByTreatment = Mapping[Treatment, "tuple[_VmCheck, ...]"]
_Check = TypeVar("_Check", _HostCheck, _VmCheck)


def judge(
    host: HostFacts,
    vms: Sequence[VmFacts],
    target: KernelFacts,
    *,
    decisions: Sequence[Decision] = (),
    qemu: QemuFacts | None = None,
) -> Verdict:
    """The verdict on an upgrade of ``host`` to the kernel ``target``.

    ``target.cmdline`` is the command line that the new kernel will get. ``decisions`` are the policy's; a VM without
    one stays in place. ``qemu`` is the emulator that will restore, the installed one unless given. Raises nothing.
    """
    case = _Case(host, target, qemu or host.qemu, _treated(vms, decisions), tuple(decisions))
    return Verdict(
        blockers=tuple(_findings(case, HOST_BLOCKERS, VM_BLOCKERS)),
        warnings=tuple(_findings(case, HOST_WARNINGS, VM_WARNINGS)),
    )


def judge_renewal(host: HostFacts, vms: Sequence[VmFacts], decisions: Sequence[Decision] = ()) -> Verdict:
    """The verdict on giving each VM the installed QEMU while the host's kernel runs on. Raises nothing."""
    case = _Case(host, KernelFacts(host.kernel), host.qemu, _treated(vms, decisions), jumps=False)
    return Verdict(
        blockers=tuple(_findings(case, _without_jump(HOST_BLOCKERS), _each_without_jump(VM_BLOCKERS))),
        warnings=tuple(_findings(case, _without_jump(HOST_WARNINGS), _each_without_jump(VM_WARNINGS))),
    )


def _each_without_jump(checks: _ByTreatment) -> _ByTreatment:
    return {treatment: _without_jump(some) for treatment, some in checks.items()}


def _without_jump(checks: Sequence[_Check]) -> tuple[_Check, ...]:
    return tuple(check for check in checks if check not in OF_THE_JUMP)


def _treated(vms: Sequence[VmFacts], decisions: Sequence[Decision]) -> Mapping[Treatment, tuple[VmFacts, ...]]:
    """VMs by treatment that are not shut off; without a decision they stay in place."""
    treatments = {decision.uuid: decision.treatment for decision in decisions}
    return {
        treatment: tuple(
            vm for vm in vms if treatments.get(vm.uuid, Treatment.IN_PLACE) is treatment and vm.state != "shutoff"
        )
        for treatment in Treatment
    }


def require_passed(verdict: Verdict, hostname: str) -> None:
    """Raise Refused, listing every blocker with its remedy, unless the verdict is good."""
    if verdict.passed:
        return
    lines = [f"{f'VM {entry.vm}: ' if entry.vm else ''}{entry.message} -- {entry.remedy}" for entry in verdict.blockers]
    count = f"{len(lines)} thing{'s' if len(lines) > 1 else ''}"
    raise Refused(
        f"host {hostname} cannot be upgraded in place because of {count}:\n  * " + "\n  * ".join(lines),
        "no VM was touched; remove what is named above and try again",
    )


def _findings(case: _Case, of_host: Sequence[_HostCheck], of_vms: _ByTreatment) -> Iterator[Blocker]:
    for host_check in of_host:
        yield from host_check(case)
    for treatment, checks in of_vms.items():
        for vm in case.treated[treatment]:
            for vm_check in _due(vm, checks):
                yield from vm_check(case, vm)


def _due(vm: VmFacts, checks: tuple[_VmCheck, ...]) -> tuple[_VmCheck, ...]:
    """What a VM is that is on its way, shows when it has arrived."""
    return tuple(check for check in checks if check in (_job, _arrives)) if vm.job in MOVING else checks


# --- the host's software -------------------------------------------------------------------------------------------


def _architecture(case: _Case) -> Iterator[Blocker]:
    if case.host.architecture != "x86_64":
        yield Blocker(
            "architecture",
            f"the host is {case.host.architecture}; memmap= keeps a pool on x86_64 only",
            "upgrade this host by reboot",
        )


def _kvm(case: _Case) -> Iterator[Blocker]:
    if not case.host.has_kvm:
        yield Blocker(
            "no-kvm",
            "there is no usable /dev/kvm: this host is no KVM hypervisor",
            "load kvm_intel or kvm_amd (is virtualisation on in the firmware?), or take the host out of the inventory",
        )


def _libvirt(case: _Case) -> Iterator[Blocker]:
    found = case.host.libvirt_version
    if not case.host.libvirt_active:
        told = case.host.libvirt_error or "libvirt's daemon does not answer"
        yield Blocker("libvirt-down", told, "see to libvirt's daemon (systemctl status libvirtd)")
    elif found < OLDEST_LIBVIRT:
        yield Blocker(
            "libvirt-too-old",
            f"libvirt {_dotted(found)} cannot hand a state file to a confined QEMU",
            f"install libvirt {_dotted(OLDEST_LIBVIRT)} or newer",
        )


def _save_format(case: _Case) -> Iterator[Blocker]:
    """The agent gives QEMU the stream in a save image as it is, so it must not be compressed."""
    found = case.host.libvirt_version
    if (0, 0, 0) < found < SAVE_FORMAT_ON_REQUEST and not _saves_plainly(case.host):
        yield Blocker(
            "save-format",
            f'{qemu_conf.PATH} has save_image_format = "{case.host.save_image_format}", and libvirt {_dotted(found)} '
            "cannot be asked to save a VM in another format",
            "set it to raw and restart libvirt's daemon, or install libvirt 11.2 or newer",
        )


def _saves_plainly(host: HostFacts) -> bool:
    return host.save_image_format in ("", "raw")


def _qemu(case: _Case) -> Iterator[Blocker]:
    if case.qemu.version == (0, 0, 0):
        yield Blocker("qemu-missing", "no QEMU is installed that could restore the VMs", "install qemu-system-x86")
    elif case.qemu.version < OLDEST_QEMU:
        yield Blocker(
            "qemu-too-old",
            f"QEMU {_dotted(case.qemu.version)} cannot read a device state out of libvirt's save image",
            f"install QEMU {_dotted(OLDEST_QEMU)} or newer",
        )


def _plain_restore(case: _Case) -> Iterator[Blocker]:
    # QEMU 11.0 dropped fd: migration from plain files; libvirt reads raw save images through one until 12.1.
    found = case.host.libvirt_version
    if not ((0, 0, 0) < found < (12, 1, 0) and case.qemu.version >= (11, 0, 0) and _saves_plainly(case.host)):
        return
    compress = f"set save_image_format in {qemu_conf.PATH} to a compressed one, or "
    yield Blocker(
        "plain-restore",
        f"libvirt {_dotted(found)} cannot restore its own raw save images with QEMU {_dotted(case.qemu.version)} "
        "(virsh restore, managed save); a live update is not concerned",
        # An older one would save VMs for a live update in that format as well.
        (compress if found >= SAVE_FORMAT_ON_REQUEST else "") + "install libvirt 12.1 or newer",
    )


def _machine_types_known(case: _Case) -> Iterator[Blocker]:
    if not case.qemu.machine_types:
        yield Blocker(
            "machine-types-unknown",
            f"QEMU {_dotted(case.qemu.version)} did not say which machine types it has",
            "compare them with your VMs' yourself: qemu-system-x86_64 -machine help",
        )


def _agent(case: _Case) -> Iterator[Blocker]:
    host = case.host
    if not host.agent_installed:
        yield Blocker("agent-missing", "holdfast-agent is not installed: nobody would restore the VMs", _PREPARE)
    elif host.outdated:
        yield Blocker(
            "agent-outdated",
            f"another version of holdfast prepared this host: {', '.join(host.outdated)}",
            _PREPARE,
        )
    if not host.hook_installed:
        yield Blocker("hook-missing", "the libvirt hook is not installed: VMs would start with empty RAM", _PREPARE)
    if not host.units_enabled:
        yield Blocker(
            "units-disabled",
            "holdfast's systemd units are not enabled: the pool would not be attached at boot",
            _PREPARE,
        )


def _packages(case: _Case) -> Iterator[Blocker]:
    """QEMU, libvirt, the kernel or what they stand on may be among them, and would be missed after the jump."""
    if case.host.halfway:
        yield Blocker(
            "packages-halfway",
            f"the installation of packages was cut off: {', '.join(case.host.halfway)}",
            "dpkg --configure -a, then apt-get -f install",
        )


def _watchdogs(case: _Case) -> Iterator[Blocker]:
    """systemd's is stopped by the agent, and starts again when all is over."""
    others = [one.text for one in case.host.watchdogs if not one.is_systemds]
    if others:
        yield Blocker(
            "watchdog-armed",
            f"a watchdog would reset the host after the jump, and VM RAM would be gone: {'; '.join(others)}",
            "stop whoever feeds it for the upgrade; where it cannot be stopped, load its driver with nowayout=0",
        )


def _cluster(case: _Case) -> Iterator[Blocker]:
    if case.host.cluster:
        yield Blocker(
            "cluster-member",
            f"{', '.join(case.host.cluster)} runs here: a cluster would miss this host in the jump, and reset it, or "
            "start its VMs elsewhere",
            "put the cluster into maintenance and stop its services on this host for the upgrade",
        )


def _locked_disks(case: _Case) -> Iterator[Blocker]:
    if case.host.locked_disks:
        yield Blocker(
            "disk-locked",
            f"the host boots from an encrypted disk that somebody opens ({', '.join(case.host.locked_disks)}): the new "
            "kernel, and the old one after it, would wait for a passphrase, and with it the VMs",
            "have it opened without a person (TPM, key file, clevis), or upgrade this host by reboot",
        )


def _journal(case: _Case) -> Iterator[Blocker]:
    host = case.host
    if host.journal_error:
        yield Blocker(
            "journal-damaged",
            f"the journal in {host.state_dir} cannot be read: {host.journal_error}",
            "look at it before anything else: it may hold suspended VMs (holdfast-agent status)",
        )
    if host.journal_open:
        yield Blocker(
            "journal-open",
            f"the earlier live update {host.journal_generation or '(unknown)'} has not ended",
            "see holdfast-agent status; the recover playbook brings back what it still holds",
        )


def _pool_room(case: _Case) -> Iterator[Blocker]:
    """Device states are kept in the pool, beside the RAM that they belong to."""
    needed, pool = sum(map(_state_bytes, case.vms)), case.host.pool
    if pool.mounted and pool.state_bytes < needed:
        yield Blocker(
            "pool-full",
            f"the pool has {regions.size_text(pool.state_bytes)} free, the device state of {len(case.vms)} VMs may need"
            f" {regions.size_text(needed)}",
            "shut a VM down, or reserve a larger pool; for devdax, say how many VMs it is for (prepare_max_vms)",
        )


def _state_bytes(vm: VmFacts) -> int:
    return regions.STATE_BYTES + vm.video_bytes


def _room_for_stored(case: _Case) -> Iterator[Blocker]:
    coming = (vm for vm in case.treated[Treatment.COLD] if vm.definition_converted and not vm.ram_files_present)
    needed = sum(vm.ram_bytes for vm in coming)
    if case.host.pool.mounted and case.host.pool.free_bytes < needed:
        yield Blocker(
            "pool-small",
            f"the VMs that are saved to disk have {regions.size_text(needed)} of RAM, the pool has "
            f"{regions.size_text(case.host.pool.free_bytes)} free: not all of them will have their RAM there",
            "reserve a larger pool, if it is to be the last time that they are saved",
        )


def _state_dir(case: _Case) -> Iterator[Blocker]:
    host = case.host
    # A VM that is saved to disk takes its RAM's size there.
    sizes = [vm.ram_bytes + _state_bytes(vm) for vm in case.treated[Treatment.COLD]]
    needed = STATE_BYTES_SPARE + (sum(sizes) if case.jumps else max(sizes, default=0))
    if not host.state_dir_writable:
        yield Blocker(
            "state-dir-read-only",
            f"{host.state_dir} cannot be written",
            "mount it read-write and give root write access",
        )
    elif host.state_dir_free_bytes < needed:
        yield Blocker(
            "state-dir-full",
            f"{host.state_dir} has {regions.size_text(host.state_dir_free_bytes)} free, the journal "
            f"{'and what is saved to disk ' if sizes else ''}may need {regions.size_text(needed)}",
            "free some space there" + (", mount a disk there, or give VMs another treatment" if sizes else ""),
        )
    if _volatile(host, host.state_dir):
        yield Blocker(
            "state-dir-volatile",
            f"{host.state_dir} lies in RAM and is gone after the jump",
            "put the state directory on a disk",
        )


def _host_memory(case: _Case) -> Iterator[Blocker]:
    available = case.host.mem_available_bytes
    if 0 < available < MEMORY_FOR_KERNEL_BYTES:
        yield Blocker(
            "host-memory-low",
            f"only {regions.size_text(available)} of host RAM are available, the next kernel and its initrd need "
            f"{regions.size_text(MEMORY_FOR_KERNEL_BYTES)}",
            "stop something on the host, or make the pool smaller",
        )


def _crash_kernel(case: _Case) -> Iterator[Blocker]:
    """The kernel that is jumped to from a crash kernel has the area again."""
    host, found = case.host, case.host.crash_area_bytes
    if cmdline.is_crash_kernel(host.cmdline):
        return
    if not found:
        yield Blocker(
            "crash-kernel-none",
            "no RAM is kept for a crash kernel: a new kernel that panics or hangs before it has restored the VMs takes "
            "their RAM with it",
            "prepare the host with prepare_crash_kernel: auto, and reboot it when it is empty",
        )
        return
    own = [crash_area.QEMU_BYTES if vm.qemu_bytes is None else vm.qemu_bytes for vm in case.vms]
    pool = host.pool
    needed = crash_area.size_for(pool.regions, host.cpu.count, host.initrd_bytes, sum(own), pool.page_bytes)
    if found < needed:
        yield Blocker(
            "crash-kernel-small",
            f"{regions.size_text(found)} are kept for a crash kernel, {len(own)} VMs may need "
            f"{regions.size_text(needed)} there: should the new kernel die, not all of them come back at once",
            f"move some away; prepare the host with prepare_max_vms: {len(own)}, and reboot it when it is empty",
        )


# --- the jump ------------------------------------------------------------------------------------------------------


def _kexec(case: _Case) -> Iterator[Blocker]:
    if not case.host.kexec_tool:
        yield Blocker(
            "kexec-missing", "the kexec program is not installed", "install kexec-tools (the prepare playbook does)"
        )
    if case.host.kexec_load_disabled:
        yield Blocker(
            "kexec-disabled",
            "no kernel can be loaded: the sysctl kernel.kexec_load_disabled is 1, or kexec_load_limit_reboot is 0",
            "remove that from /etc/sysctl.d and reboot; it cannot be taken back while the kernel runs",
        )


def _locked_down(case: _Case) -> Iterator[Blocker]:
    if case.host.lockdown != "none" and case.host.image_signed is False:
        yield Blocker(
            "kernel-unsigned",
            f"the kernel is locked down ({case.host.lockdown}) and {_image(case)} is not signed",
            "install a signed kernel image, or switch Secure Boot off",
        )


def _signature(case: _Case) -> Iterator[Blocker]:
    host, image = case.host, _image(case)
    if host.lockdown != "none" and host.image_signed is None:
        yield Blocker(
            "signature-unknown",
            f"the kernel is locked down ({host.lockdown}) and it is not known whether {image} is signed",
            "check it with sbverify; an unsigned image is refused when it is loaded, before any VM is paused",
        )
    elif host.secure_boot and host.lockdown == "none" and not host.image_signed:
        yield Blocker(
            "secure-boot",
            f"Secure Boot is on and {image} is not known to be signed: the jump works, the next cold boot may not",
            "install a signed kernel image",
        )


def _target_installed(case: _Case) -> Iterator[Blocker]:
    target = case.target
    if not target.image_exists:
        yield Blocker(
            "kernel-missing",
            f"kernel {target.release or '(none named)'} is not installed: {target.image or 'no image'} does not exist",
            "install its package, or name an installed one (ls /boot/vmlinuz-*)",
        )
    elif not target.initrd_exists:
        yield Blocker(
            "initrd-missing",
            f"kernel {target.release} has no initrd: {target.initrd or 'none'} does not exist",
            f"make it: update-initramfs -c -k {target.release}",
        )
    if target.missing_drivers:
        yield Blocker(
            "drivers-missing",
            f"kernel {target.release} lacks {', '.join(target.missing_drivers)}, which the pool, the VMs, or what they "
            "are on need here",
            "install them for it (those made by DKMS: dkms status), or another kernel; then update-initramfs -u",
        )
    if target.initrd_lacks:
        yield Blocker(
            "initrd-drivers",
            f"{target.initrd} lacks {', '.join(target.initrd_lacks)}: kernel {target.release} would not find its root "
            "file system, and nobody would bring the VMs back",
            f"name them in /etc/initramfs-tools/modules, then update-initramfs -u -k {target.release}",
        )


def _initrd_unknown(case: _Case) -> Iterator[Blocker]:
    if case.target.initrd_lacks is None:
        yield Blocker(
            "initrd-unknown",
            f"{case.target.initrd} cannot be listed, so nobody knows whether it has the drivers for the root disk",
            "try the kernel out first (--rehearse), or list it yourself (lsinitramfs, lsinitrd)",
        )


def _target_unchanged(case: _Case) -> Iterator[Blocker]:
    if case.target.release and case.target.release == case.host.kernel:
        yield Blocker(
            "kernel-unchanged",
            f"the host runs {case.host.kernel} already",
            "name another kernel if you meant an upgrade",
        )


# --- the pool ------------------------------------------------------------------------------------------------------


def _pool(case: _Case) -> Iterator[Blocker]:
    pool = case.host.pool
    if not pool.regions:
        yield Blocker(
            "pool-missing",
            "the running kernel keeps no RAM for a pool (no memmap=SIZE!START on its command line)",
            f"{_PREPARE} and reboot once",
        )
        return
    if pool.configured and {(one.start, one.size) for one in pool.configured} != {
        (one.start, one.size) for one in pool.regions
    }:
        yield Blocker(
            "pool-changed",
            "the host was prepared with another pool than the running kernel keeps "
            f"({', '.join(map(regions.range_text, pool.configured))})",
            "reboot the host when its VMs can bear it, then run the prepare playbook again",
        )
    for problem in regions.problems(case.host.firmware_map, pool.regions):
        yield Blocker(
            "pool-misplaced", f"the pool cannot be trusted: {problem}", f"{_PREPARE} with another region and reboot"
        )
    yield from _pool_attached(case)


def _pool_attached(case: _Case) -> Iterator[Blocker]:
    pool, where = case.host.pool, case.host.memory_backing_dir
    if not pool.mounted:
        yield Blocker(
            "pool-not-mounted",
            f"the pool is not mounted on {pool.mount_point or 'its mount point'}",
            "systemctl start holdfast-pool.service, then start the VMs again",
        )
    elif not pool.dax:
        yield Blocker(
            "pool-without-dax",
            f"{pool.mount_point} is mounted without dax=always: VM RAM would be in the page cache and lost",
            "systemctl restart holdfast-pool.service while no VM runs",
        )
    if pool.mounted and not _inside(where, pool.mount_point):
        yield Blocker(
            "backing-dir",
            f"libvirt's memory_backing_dir is {where or 'not set'}, outside the pool at {pool.mount_point}",
            f"{_PREPARE} (it sets memory_backing_dir in /etc/libvirt/qemu.conf), then start the VMs again",
        )


def _pool_kept(case: _Case) -> Iterator[Blocker]:
    running, new = cmdline.next_memmap_arguments(case.host.cmdline), cmdline.memmap_arguments(case.target.cmdline)
    if case.host.pool.regions and running != new:
        yield Blocker(
            "pool-not-kept",
            f"the next kernel's command line has {' '.join(new) or 'no memmap='}, the running one {' '.join(running)}: "
            "the next kernel would use VM RAM as its own",
            "keep memmap= exactly as it is; leave the command line to holdfast",
        )


def _soft_reserved(case: _Case) -> Iterator[Blocker]:
    lacking = cmdline.missing_soft_options(case.target.cmdline)
    if lacking:
        yield Blocker(
            "pool-not-kept",
            f"the next kernel's command line lacks {' '.join(lacking)}: the next kernel may use VM RAM as its own",
            f"{_PREPARE} and reboot",
        )


def _kaslr_overflow(case: _Case) -> Iterator[Blocker]:
    count = len(cmdline.memmap_entries(case.target.cmdline))
    if count > KASLR_AVOIDS and not cmdline.has_option(case.target.cmdline, "nokaslr"):
        yield Blocker(
            "kaslr",
            f"the next command line has {count} memmap= regions, the kernel's address randomisation avoids "
            f"{KASLR_AVOIDS}: it may put the kernel into VM RAM",
            f"add nokaslr to the kernel command line ({_PREPARE}), or use fewer regions",
        )


def _kaslr_on(case: _Case) -> Iterator[Blocker]:
    count = len(cmdline.memmap_entries(case.target.cmdline))
    if 0 < count <= KASLR_AVOIDS and not cmdline.has_option(case.target.cmdline, "nokaslr"):
        yield Blocker(
            "kaslr",
            "address randomisation is on: that the kernel stays out of VM RAM rests on its avoiding memmap= regions",
            f"add nokaslr to the kernel command line ({_PREPARE})",
        )


# --- a VM's RAM ----------------------------------------------------------------------------------------------------


def _ram(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    if vm.ram_backing is not RamBacking.FILE_SHARED:
        yield Blocker(
            "ram-not-in-pool",
            f"its RAM is {_RAM_WORDS[vm.ram_backing]}, not a shared file in the pool",
            "its definition is converted: have it saved to disk and loaded once (treatment cold), or restart it"
            if vm.definition_converted
            else f"{_PREPARE} (it converts the definition), then give the VM the treatment cold once, or restart it",
            vm.name,
        )
    if vm.ram_discard:
        yield Blocker(
            "ram-discarded",
            "QEMU is told to discard its RAM when it stops (<discard/>)",
            "remove <discard/> and discard= from the definition, then shut the VM down and start it once",
            vm.name,
        )
    missing = [file.name for file in vm.ram_files if file.name not in vm.ram_files_present]
    if vm.ram_backing is RamBacking.FILE_SHARED and missing:
        yield Blocker(
            "ram-file-missing",
            f"its RAM file {', '.join(missing)} is not in the pool: the VM was started before the pool was there",
            "shut it down and start it once",
            vm.name,
        )
    if vm.memory_devices:
        yield Blocker(
            "memory-devices",
            f"it has memory modules besides its main RAM ({', '.join(vm.memory_devices)}), which are not in the pool",
            "detach them, or give it another treatment",
            vm.name,
        )


_RAM_WORDS = {
    RamBacking.ANONYMOUS: "anonymous memory",
    RamBacking.FILE_PRIVATE: "a private copy of a file",
    RamBacking.FILE_SHARED: "a shared file",
    RamBacking.MEMFD: "a memfd, which QEMU copies into the state file",
    RamBacking.HUGEPAGES: "in huge pages",
}


# --- a VM's devices, CPU and state ---------------------------------------------------------------------------------


def _devices(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    for device in vm.hostdevs:
        yield Blocker(
            "passthrough",
            f"it drives the host's device {device} itself; its state cannot be saved",
            "detach it for the upgrade, or give the VM another treatment",
            vm.name,
        )
    for device in vm.unsafe_devices:
        yield Blocker(
            "device", f"its device cannot be saved: {device}", "detach it, or give the VM another treatment", vm.name
        )
    for filesystem in vm.filesystems:
        yield Blocker(
            "filesystem",
            f"it shares the file system {filesystem} with the host, whose state is lost with the host's kernel",
            "unmount it in the guest and detach it, or give the VM another treatment",
            vm.name,
        )
    if vm.launch_security:
        yield Blocker(
            "launch-security",
            f"its RAM is encrypted ({vm.launch_security}) with keys that do not outlive its QEMU",
            "give the VM another treatment",
            vm.name,
        )


def _volatile_disks(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    for disk in vm.disks:
        if _volatile(case.host, disk.source) or disk.source.startswith(_RAM_DISKS):
            yield Blocker(
                "disk-volatile",
                f"its disk {disk.target} ({disk.source}) lies in host RAM and is gone after the jump",
                "move it to a disk, or detach it",
                vm.name,
            )


def _disk_formats(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    for disk in vm.disks:
        if disk.driver in _DISK_FORMATS_THAT_CANNOT_MOVE and not (disk.driver == "fat" and disk.readonly):
            yield Blocker(
                "disk-format",
                f"QEMU cannot save a VM whose disk {disk.target} has the format {disk.driver}",
                "convert it with qemu-img to raw or qcow2",
                vm.name,
            )


def _machine(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    if case.qemu.machine_types and vm.machine not in case.qemu.machine_types:
        yield Blocker(
            "machine-type",
            f"QEMU {_dotted(case.qemu.version)} has no machine type {vm.machine or '(none)'}",
            "shut the VM down, give it a machine type that both QEMUs have, start it",
            vm.name,
        )


def _tsc(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    if "invtsc" in vm.features and vm.tsc_frequency is None:
        yield Blocker(
            "tsc",
            "its CPU has an invariant TSC of no fixed frequency, which QEMU cannot save",
            "set <timer name='tsc' frequency='...'/>, or remove invtsc and migratable='off'; then restart the VM",
            vm.name,
        )


def _state(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    if not vm.running:
        yield Blocker(
            "vm-state", f"it is {vm.state}, neither running nor shut off", "wake it up, or shut it down", vm.name
        )
    for reason in vm.migration_blockers:
        yield Blocker(
            "qemu-blocks",
            f"QEMU refuses to save it: {reason}",
            "remove the cause, or give the VM another treatment",
            vm.name,
        )


def _arrives(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    """One that leaves while it is to leave is no obstacle."""
    if vm.job == ARRIVES:
        yield _moving(vm)


def _moving(vm: VmFacts) -> Blocker:
    return Blocker("vm-moving", f"it is being migrated: {vm.job}", "wait until it has arrived", vm.name)


def _job(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    if vm.job in MOVING:
        yield _moving(vm)
    elif vm.job:
        yield Blocker("vm-job", f"it has a job in progress: {vm.job}", "wait for it, or virsh domjobabort", vm.name)


def _shutdown(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    """A VM that is to be shut down and started must be able to do both."""
    if vm.state != "running":
        yield Blocker(
            "restart-not-running",
            f"it is {vm.state}, so its guest cannot shut down",
            "resume it, or shut it down yourself",
            vm.name,
        )
    if not vm.persistent:
        yield Blocker(
            "restart-transient",
            "it has no persistent definition: once it is shut down, nothing of it remains to be started",
            "virsh define its definition, or give it another treatment",
            vm.name,
        )


def _transient(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    if not vm.persistent:
        yield Blocker(
            "cold-transient",
            "it has no persistent definition, and libvirt saves only VMs that have one",
            "virsh define its definition, or give it another treatment",
            vm.name,
        )


def _queues(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    if vm.oversized_queues and vm.qemu_version != _dotted(case.qemu.version):
        yield Blocker(
            "virtio-queues",
            f"QEMU {vm.qemu_version} gave it larger virtio queues than it was told ({', '.join(vm.oversized_queues)}),"
            f" and QEMU {_dotted(case.qemu.version)} refuses to load them",
            "shut the VM down and start it under another QEMU once, or upgrade the kernel only, keeping this QEMU",
            vm.name,
        )


def _autostart(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    """After a jump libvirt has what starts with the host, and nothing else."""
    volumes = {disk.source.partition("/")[0] for disk in vm.disks if disk.kind == "volume"}
    for service in case.host.networks:
        if service.name in vm.networks and not service.autostart:
            yield _no_autostart(vm, "network", f"virsh net-autostart {argument(service.name)}", service)
    for service in case.host.storage_pools:
        if service.name in volumes and not service.autostart:
            yield _no_autostart(vm, "storage pool", f"virsh pool-autostart {argument(service.name)}", service)


def _no_autostart(vm: VmFacts, what: str, remedy: str, service: Service) -> Blocker:
    found = f"it needs libvirt's {what} {service.name}, which does not start with the host"
    why = "after the jump it could not be restored"
    return Blocker(f"{what.replace(' ', '-')}-no-autostart", f"{found}: {why}", remedy, vm.name)


def _longer_than_allowed(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    limit, past = case.pause_limit_s(vm), case.past_pause_s(vm)
    if limit is not None and past is not None and past > limit:
        yield Blocker(
            "pause-limit",
            f"its policy lets it stand still for {limit:g} s, and the last upgrade of this host took {past:g} s of it",
            "let it be moved away (treatments: [live], and a plan of the fleet), or raise its max_pause_s",
            vm.name,
        )


# --- worth knowing about a VM --------------------------------------------------------------------------------------


def _cpu_may_change(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    if vm.cpu_mode in ("host-passthrough", "maximum"):
        yield Blocker(
            "cpu-passthrough",
            f"its CPU is {vm.cpu_mode}: the new kernel and QEMU may show the guest more of the CPU than they did",
            "use host-model or a named CPU model from its next start on",
            vm.name,
        )
    if vm.tsc_frequency is not None:
        yield Blocker(
            "tsc-frequency",
            f"its TSC is fixed at {vm.tsc_frequency} Hz: without TSC scaling the new kernel must measure 250 ppm alike",
            "check tsc_scale in /proc/cpuinfo (vmx flags on Intel)",
            vm.name,
        )


def _paused(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    if vm.state == "paused":
        yield Blocker(
            "vm-paused", "it is paused now", "it will be paused afterwards too; resume it when you like", vm.name
        )


def _pause_unknown(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    limit = case.pause_limit_s(vm)
    if limit is not None and case.past_pause_s(vm) is None:
        yield Blocker(
            "pause-unknown",
            f"its policy lets it stand still for {limit:g} s, and it was never paused for an upgrade of this host",
            "see what a plan predicts (holdfast plan), or upgrade a host first whose VMs can wait",
            vm.name,
        )


def _definition(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    if not vm.persistent:
        yield Blocker(
            "vm-transient",
            "it has no persistent definition: if its RAM is lost, nothing of it remains",
            "virsh define its definition",
            vm.name,
        )
    elif not vm.autostart:
        yield Blocker(
            "vm-no-autostart",
            "it does not start with the host: after a power failure it stays off",
            "virsh autostart, if that is not what you want",
            vm.name,
        )


def _watched(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    for device in vm.watched_devices:
        yield Blocker("device-watch", device, "look at it after the upgrade", vm.name)
    if vm.emulator and case.qemu.binary and vm.emulator != case.qemu.binary:
        yield Blocker(
            "emulator",
            f"it runs with {vm.emulator}, not with {case.qemu.binary}: upgrading packages may not change it",
            "set <emulator> in its definition",
            vm.name,
        )


def _late_disks(case: _Case, vm: VmFacts) -> Iterator[Blocker]:
    for disk in vm.disks:
        if disk.kind == "network" or disk.source.startswith(_LATE_DEVICES):
            yield Blocker(
                "disk-late",
                f"its disk {disk.target} ({disk.source}) may not be there yet when the VMs are restored",
                "order what makes it available before holdfast-restore.service",
                vm.name,
            )


HOST_BLOCKERS: tuple[_HostCheck, ...] = (
    _architecture,
    _kvm,
    _libvirt,
    _save_format,
    _qemu,
    _kexec,
    _locked_down,
    _target_installed,
    _pool,
    _pool_kept,
    _kaslr_overflow,
    _agent,
    _packages,
    _watchdogs,
    _locked_disks,
    _cluster,
    _journal,
    _state_dir,
    _pool_room,
    _host_memory,
)
VM_BLOCKERS: _ByTreatment = {
    Treatment.IN_PLACE: (
        *(_state, _job, _ram, _devices, _volatile_disks, _disk_formats, _machine, _tsc, _queues, _autostart),
        _longer_than_allowed,
    ),
    # Saved to disk and loaded: where its RAM is does not matter.
    Treatment.COLD: (
        *(_state, _transient, _job, _devices, _volatile_disks, _disk_formats, _machine, _tsc, _queues, _autostart),
    ),
    # Shut down and started: neither its RAM nor its devices are kept.
    Treatment.RESTART: (_shutdown, _job, _volatile_disks, _machine, _autostart),
    Treatment.LIVE: (_arrives,),
}
HOST_WARNINGS: tuple[_HostCheck, ...] = (
    *(
        _signature,
        _target_unchanged,
        _initrd_unknown,
        _kaslr_on,
        _plain_restore,
        _machine_types_known,
        _room_for_stored,
        _crash_kernel,
    ),
)
VM_WARNINGS: _ByTreatment = {
    Treatment.IN_PLACE: (_paused, _pause_unknown, _cpu_may_change, _definition, _watched, _late_disks),
    Treatment.COLD: (_paused, _cpu_may_change, _watched),
}
# These matter only to a host that jumps and boots.
OF_THE_JUMP = frozenset(
    (
        *(_watchdogs, _locked_disks, _cluster, _kexec, _locked_down, _target_installed, _pool_kept),
        *(_soft_reserved, _kaslr_overflow, _host_memory, _autostart),
        *(_longer_than_allowed, _pause_unknown, _crash_kernel),
        *(_signature, _target_unchanged, _initrd_unknown, _kaslr_on, _late_disks),
    )
)


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _image(case: _Case) -> str:
    return case.target.image or case.target.release


def _inside(path: str, directory: str) -> bool:
    return bool(directory) and (path == directory or path.startswith(directory.rstrip("/") + "/"))


def _volatile(host: HostFacts, path: str) -> bool:
    return any(_inside(path, volatile) for volatile in host.volatile_paths)
