# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reserve the pool on a host, or withdraw it: what has to be in which file, and putting it there.

Three files say everything: the agent's configuration, the boot loader's arguments, and libvirt's qemu.conf.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple

from . import cmdline, crash_area, devdax, durable, grub, kexec, qemu_conf, regions
from . import config as configuration
from .config import Config, PoolConfig
from .crash_area import CrashArea, CrashWish
from .errors import BadInput, HoldfastError, JournalError, Refused
from .journal import LEFT_OVER, WAITING, open_journal
from .pool import open_pool
from .printable import argument
from .regions import PoolWish
from .resources import SOFT_KIND, Region

AUTO = "auto"
# From here on describing all of an fsdax pool takes the host more than 1 GiB.
DEVDAX_FROM_BYTES = 64 * regions.GIB


@dataclass(frozen=True)
class Files:
    """Contents of the three files; empty for one that is absent."""

    agent: str
    boot: str
    libvirt: str


@dataclass(frozen=True)
class Wish:
    """What the operator asks for: RAM per NUMA node, and how much of it the host must keep for itself (bytes).

    ``kind`` of the pool, or ``auto``; ``page_bytes`` for one of devices. ``vms``: how many the host may have; None when
    nobody says.
    """

    regions: Tuple[PoolWish, ...]
    kind: str = configuration.FSDAX
    host_reserve_bytes: Optional[int] = None
    crash_kernel: str = crash_area.AUTO
    metrics_dir: Optional[Path] = configuration.METRICS_DIR
    vms: Optional[int] = None
    page_bytes: int = configuration.SMALL_PAGE_BYTES


def read_files() -> Files:
    """What is on this host. Raises HoldfastError when it has no libvirt with QEMU."""
    try:
        libvirt = qemu_conf.PATH.read_text(encoding="utf-8")
    except OSError as error:
        raise HoldfastError(
            f"{qemu_conf.PATH} cannot be read: {error.strerror}; this host is no hypervisor",
            "install libvirt's QEMU driver (libvirt-daemon-system)",
        ) from error
    agent = configuration.CONFIG
    return Files(agent.read_text(encoding="utf-8") if agent.exists() else "", grub.installed_text(), libvirt)


def chosen_kind(wish: Wish, current: Config, *, confined: bool) -> str:
    """The kind that the operator names; else that of the pool that is there; else the one for a pool of this size."""
    if wish.kind != AUTO:
        return wish.kind
    if current.pool:
        return current.pool.kind
    large = sum(one.size_bytes for one in wish.regions) >= DEVDAX_FROM_BYTES
    return configuration.DEVDAX if large and confined else configuration.FSDAX


def wanted_config(current: Config, firmware: Sequence[Region], wish: Wish) -> Config:
    """The configuration that grants the wish. A pool that grants it already stays where it is. Raises BadInput.

    Unless there is no RAM any more, after a change of hardware or firmware: a kernel reserves what it is told.
    """
    present = current.pool.regions if current.pool and current.pool.kind == wish.kind else ()
    if present and _grants(present, wish) and not regions.known_problems(firmware, present):
        chosen = present
    else:
        chosen = regions.choose(
            firmware,
            wish.regions,
            host_reserve_bytes=wish.host_reserve_bytes,
            soft=wish.kind == configuration.DEVDAX,
            page_bytes=wish.page_bytes,
            vms=wish.vms,
        )
    pool = PoolConfig(wish.kind, current.state_dir / "pool", chosen, wish.page_bytes)
    return replace(current, pool=pool, metrics_dir=wish.metrics_dir)


def wanted_crash_area(files: Files, config: Config, firmware: Sequence[Region], wish: Wish) -> CrashArea:
    """What is kept for a crash kernel beside the pool. Raises BadInput."""
    if wish.crash_kernel != crash_area.NONE and grub.is_set_elsewhere("crashkernel"):
        return CrashArea(0, "the boot loader's configuration has a crashkernel= of somebody else")
    asked = CrashWish(
        wish.crash_kernel,
        cpus=os.cpu_count() or 1,
        initrd_bytes=kexec.initrd_bytes(kexec.running_release()),
        present_bytes=cmdline.crash_area_bytes(" ".join(grub.arguments_of(files.boot))),
        host_reserve_bytes=wish.host_reserve_bytes,
        vms=wish.vms,
    )
    return crash_area.choose(asked, firmware, config.required_pool)


def with_pool(files: Files, config: Config, crash: CrashArea) -> Files:
    """The three files for a configuration with a pool. Raises HoldfastError for a pool that cannot be made."""
    pool, where = open_pool(config), config.required_pool.backing_dir
    return Files(
        agent=configuration.text_of(config),
        boot=grub.config_text((*pool.reserve(), *crash.arguments)),
        libvirt=qemu_conf.with_memory_backing_dir(files.libvirt, str(where), pool.devices()),
    )


def without_pool(files: Files) -> Files:
    """The three files of a host without a pool."""
    return Files(agent="", boot="", libvirt=qemu_conf.with_memory_backing_dir(files.libvirt, None))


def check_kernel(running: str) -> None:
    """Raise Refused in a crash kernel: it sees its own area only, and would choose another pool."""
    if cmdline.is_crash_kernel(running):
        raise Refused("this host runs in its crash kernel and does not see its own RAM", "reboot it first")


def is_confined(files: Files, root: Path = Path("/")) -> bool:
    """Whether this host's libvirt confines QEMU by AppArmor."""
    enabled = root / "sys/module/apparmor/parameters/enabled"
    return enabled.exists() and enabled.read_text().strip() == "Y" and qemu_conf.may_use_apparmor(files.libvirt)


def check_confined(wanted: Config, *, confined: bool) -> None:
    """Raise Refused for a pool of devices on a host whose libvirt does not confine QEMU by AppArmor (see devdax)."""
    if wanted.required_pool.kind == configuration.DEVDAX and not confined:
        raise Refused(
            "a pool of kind devdax needs AppArmor, which keeps each QEMU from the RAM of other VMs, and this host's "
            "libvirt does not confine QEMU by it",
            "switch AppArmor on and reboot, take security_driver out of qemu.conf, or use kind fsdax",
        )


def check_pages(wanted: Config, root: Path = Path("/")) -> None:
    """Raise BadInput for pages that this kind of pool has not, and Refused for those that this host has not."""
    pool = wanted.required_pool
    if pool.page_bytes == configuration.SMALL_PAGE_BYTES:
        return
    size = regions.size_text(pool.page_bytes)
    if pool.kind != configuration.DEVDAX:
        raise BadInput(f"a pool of kind {pool.kind} has no pages of {size}", "make it one of kind devdax")
    if not devdax.has_pages(pool.page_bytes, root):
        raise Refused(f"the processor of this host has no pages of {size} (pdpe1gb)", "use pages of 2M")


def check(before: Files, after: Files, config: Config, wanted: Config, *, reboot: bool) -> None:
    """Raise Refused when this change, from ``config`` to ``wanted``, would take the pool or the journal from a VM.

    ``reboot``: whether one is due, which the caller may go on to. A removal deletes the journal, whatever it changes.
    """
    if before != after or reboot or not after.agent:
        check_in_flight(config.state_dir)
    if config.pool and wanted.pool and _described(config.pool) != _described(wanted.pool) and vms_in_pool(config):
        raise Refused(
            f"VMs run with their RAM in the pool of {_described(config.pool)}: {', '.join(vms_in_pool(config))}",
            f"shut them down, or move them away; then make it one of {_described(wanted.pool)}, and reboot",
        )
    users = vms_in_pool(config) if not after.agent else ()
    if users:
        raise Refused(
            f"VMs run with their RAM in the pool: {', '.join(users)}",
            "convert them back (domain_ram), shut them down, and try again",
        )


def _described(pool: PoolConfig) -> str:
    pages = "" if pool.kind != configuration.DEVDAX else f" with pages of {regions.size_text(pool.page_bytes)}"
    return f"kind {pool.kind}{pages}"


def check_in_flight(state_dir: Path) -> None:
    """Raise Refused while a generation is in flight or a VM of it waits; a damaged journal may speak of one."""
    try:
        journal = open_journal(state_dir)
    except JournalError as exc:
        raise Refused(exc.message, exc.hint) from exc
    if journal.state == "none" or journal.is_settled:
        return
    waiting = [vm for vm in journal.vms if vm["state"] in WAITING]
    named = ", ".join(f"{vm['name']} ({vm['state']})" for vm in waiting)
    left = " ".join(argument(vm["name"]) for vm in waiting if vm["state"] in LEFT_OVER)
    give_up = f"; or give up what is kept: holdfast-agent give-up -- {left}" if left else ""
    raise Refused(
        f"generation {journal.generation} is {journal.state} on this host{f', with {named}' if named else ''}: "
        "until it is over, the agent, the pool, the boot loader and the journal stay as they are, and nothing reboots "
        "the host",
        f"finish it, or take it back: holdfast recover{give_up}",
    )


def put(before: Files, after: Files, state_dir: Path) -> None:
    """Write what differs, or nothing: the boot loader comes last, and its own check may still fail.

    Raises HoldfastError.
    """
    if after.agent:
        # QEMU's unprivileged user passes through here to the pool; the journal itself is closed.
        state_dir.mkdir(parents=True, exist_ok=True)
        state_dir.chmod(0o711)
    try:
        if after.agent:
            _put_agent(before, after)
        _put_libvirt(before, after)
        if after.boot != before.boot:
            grub.install(after.boot)
    except BaseException:
        # Regions that the next boot does not keep would be a pool that is never attached.
        _put_agent(after, before)
        _put_libvirt(after, before)
        raise
    if not after.agent:
        _put_agent(before, after)


def _put_agent(present: Files, wanted: Files) -> None:
    if not wanted.agent:
        configuration.CONFIG.unlink(missing_ok=True)
    elif wanted.agent != present.agent:
        configuration.CONFIG.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(configuration.CONFIG, wanted.agent, mode=0o644)


def _put_libvirt(present: Files, wanted: Files) -> None:
    if wanted.libvirt != present.libvirt:
        durable.write_text(qemu_conf.PATH, wanted.libvirt, mode=qemu_conf.PATH.stat().st_mode & 0o777)


def reboot_required(config: Config, boot: str, running: str) -> bool:
    """Whether the running kernel's command line keeps other RAM than the configuration and its boot file ask for.

    Or the pool is attached with pages of another size.
    """
    if config.pool and devdax.pages_differ(config.pool):
        return True
    if not set(grub.arguments_of(boot)) <= set(cmdline.split(running)):
        return True
    asked = {(region.start, region.size) for region in config.pool.regions} if config.pool else set()
    return {(region.start, region.size) for region in cmdline.memmap_regions(running)} != asked


def vms_in_pool(config: Config) -> Tuple[str, ...]:
    """Directories of VMs that have RAM in the pool now, as libvirt names them: ``<id>-<name>``."""
    if config.pool is None:
        return ()
    return tuple(sorted(path.name for path in (config.pool.backing_dir / "libvirt/qemu").glob("*")))


def _grants(present: Sequence[Region], wish: Wish) -> bool:
    """Whether there is as much on each node, in however many pieces, and something begins wherever it has to.

    And, where the operator says for how many VMs, a vault for them: what is beside soft-reserved RAM.
    """
    wishes = wish.regions
    sizes: Dict[int, int] = {}
    for region in present:
        sizes[region.node] = sizes.get(region.node, 0) + region.size
    for one in wishes:
        sizes[one.node] = sizes.get(one.node, 0) - one.size_bytes
    starts = {None, *(region.start for region in present)}
    vault = sum(region.size for region in present if region.kind != SOFT_KIND)
    return (
        not any(sizes.values())
        and all(one.start in starts for one in wishes)
        and vault >= (regions.vault_bytes(0, wish.vms) if wish.vms else 0)
    )
