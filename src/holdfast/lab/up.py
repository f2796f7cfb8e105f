# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a lab up, as far as an operator would have it before holdfast comes: hypervisors with VMs defined on them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput

from ..command import step
from . import debian, emulator, switch
from .emulator import Firmware
from .guests.definitions import GUESTS, GuestSpec, define_script, forwards
from .guests.image import build_guest_image
from .hosts import Host, Lab, on_host, start, stop, wait_until_usable
from .image import HostImage, build
from .places import cache_dir

PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "mformat": "mtools",
    "qemu-img": "qemu-utils",
    "ssh": "openssh-client",
}
MOST_NODES = 4
# What an operator would write into group_vars: how much RAM of each NUMA node VMs get, and where the newer packages
# come from. A lab of one host has nobody to migrate to; who wants certificates says so, and they stay in the folder.
VARIABLES = {
    "prepare_pool_size": "768M",
    "prepare_tls": "none",
    "stage_default_release": f"{debian.SUITE}-backports",
    "holdfast_policy": [
        {"match": {"name": f"{kind}*"}, "priority": priority}
        for kind, priority in (("db", 80), ("uefi", 50), ("tick", 20))
    ],
}


@dataclass(frozen=True)
class Wish:
    """What a lab shall be, ``ram_mib`` and NUMA ``nodes`` of each host.

    ``guests`` are defined on the first host. ``later``: others, that somebody will define, and that can be reached.
    """

    hosts: int = 1
    ram_mib: int = 5120
    nodes: int = 2
    firmware: Firmware = Firmware.UEFI
    guests: tuple[GuestSpec, ...] = GUESTS
    later: tuple[GuestSpec, ...] = ()


def prepare_images() -> HostImage:
    """Everything a lab needs before its first host starts: programs, emulator, images. Cached."""
    debian.install(PROGRAMS)
    emulator.ensure()
    guest_image = build_guest_image(cache_dir())
    return build(cache_dir(), guest_image)


def up(folder: Path, wish: Wish) -> Lab:
    """Start the hosts that do not run yet, define the guests, write the inventory. Can be run again at any time."""
    if not 1 <= wish.hosts <= switch.MOST_HOSTS:
        raise BadInput(f"a lab of {wish.hosts} hosts is not possible", f"ask for 1 to {switch.MOST_HOSTS}")
    if not 1 <= wish.nodes <= MOST_NODES:
        raise BadInput(f"a lab host of {wish.nodes} NUMA nodes is not possible", f"ask for 1 to {MOST_NODES}")
    image = prepare_images()
    lab = _with_switch(Lab.load(folder), wish)
    for number in range(1, wish.hosts + 1):
        lab = _up_one(lab, f"hv{number}", image, wish)
    write_inventory(lab)
    return lab


def _with_switch(lab: Lab, wish: Wish) -> Lab:
    """One that knows the wished guests; the one that is there, while hosts have their cables in it."""
    if lab.switch and lab.switch.alive:
        if any(host.alive for host in lab.hosts):
            return lab
        switch.stop(lab.switch)
    return lab.with_switch(switch.start(lab.folder, forwards((*wish.guests, *wish.later))))


def _up_one(lab: Lab, name: str, image: HostImage, wish: Wish) -> Lab:
    known = {host.name: host for host in lab.hosts}
    if name in known and known[name].alive:
        return lab
    ours = wish.guests if name == "hv1" else ()
    engine = emulator.accelerator()
    lab = start(
        lab,
        name,
        image,
        ram_mib=wish.ram_mib,
        cpus=emulator.cpus(engine.name),
        nodes=wish.nodes,
        accel=engine.name,
        firmware=wish.firmware,
    )
    with step(f"{name} boots ({engine.name}: {engine.why})"):
        usable_after_s = wait_until_usable(lab.host(name))
    lab = lab.with_host(replace(lab.host(name), usable_after_s=usable_after_s))
    if ours:
        with step(f"{name}: {', '.join(guest.name for guest in ours)} defined"):
            on_host(lab.host(name), define_script(ours))
    return lab


def down(folder: Path) -> None:
    """Stop every host on record, and the switch. Console logs stay."""
    lab = Lab.load(folder)
    for host in lab.hosts:
        stop(host)
        lab = lab.without(host.name)
    if lab.switch:
        switch.stop(lab.switch)
        lab.with_switch(None)


def write_inventory(lab: Lab) -> Path:
    """An ordinary Ansible inventory of the lab (JSON is YAML)."""
    path = lab.folder / "inventory" / "hosts.yml"
    path.parent.mkdir(exist_ok=True)
    entries = {host.name: _connection(lab, host) for host in lab.hosts}
    variables = {**VARIABLES, "prepare_tls_dir": str(lab.folder / "pki")}
    path.write_text(json.dumps({"hypervisors": {"hosts": entries, "vars": variables}}, indent=2) + "\n")
    return path


def _connection(lab: Lab, host: Host) -> dict[str, object]:
    return {
        "ansible_host": "127.0.0.1",
        "ansible_port": host.port("ssh"),
        "ansible_user": "root",
        "ansible_ssh_private_key_file": host.key,
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_pipelining": True,
        "ansible_ssh_common_args": (
            f"-o HostKeyAlias={host.name} -o UserKnownHostsFile={lab.folder}/known_hosts"
            " -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
        ),
    }
