# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lab hypervisors: start one, reach it by SSH, stop it. What runs is on record in ``lab.json``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError

from ..command import run, spawn
from . import emulator
from . import switch as switches
from .emulator import Firmware
from .image import HostImage
from .switch import CARDS, Cables, Forward, Switch

# Measured under emulation: 30 to 60 s to a usable host on a quiet machine, and 174 s on one that others used, too.
BOOT_LIMIT_S = 600.0
# An emulator that has a lot to do answers its monitor late.
MONITOR_LIMIT_S = 60.0


@dataclass(frozen=True)
class Host:
    """One running hypervisor. ``forwards`` always has ``ssh``; the others lead to guests, wherever they run.

    ``cables``: to the lab's switch.
    """

    name: str
    pid: int
    accel: str
    ram_mib: int
    cpus: int
    folder: str
    key: str
    nodes: int = 1
    firmware: Firmware = Firmware.BIOS
    uefi_code: str = ""
    forwards: tuple[Forward, ...] = ()
    peer_address: str = ""
    cables: Cables = ((0, 0), (0, 0))
    started_at: float = field(default_factory=time.time)
    usable_after_s: float = 0.0

    @property
    def console(self) -> Path:
        """Serial console log; earlier runs' logs lie beside it."""
        return Path(self.folder, "console.log")

    def port(self, name: str) -> int:
        """Loopback port of a forward by name, for example ``ssh`` or ``db1.redis``."""
        for forward in self.forwards:
            if forward.name == name:
                return forward.local
        raise HoldfastError(f"lab host {self.name} forwards no {name}", "lab status shows what there is")

    @property
    def alive(self) -> bool:
        """Whether the process on record is still our emulator (a pid may have been reused)."""
        with contextlib.suppress(OSError):
            return self.folder.encode() in Path(f"/proc/{self.pid}/cmdline").read_bytes()
        return False


@dataclass(frozen=True)
class Lab:
    """All hosts of a lab folder."""

    folder: Path
    hosts: tuple[Host, ...] = ()
    switch: Switch | None = None

    @staticmethod
    def load(folder: Path) -> Lab:
        """What is on record; an empty lab when there is nothing."""
        record = folder / "lab.json"
        if not record.exists():
            return Lab(folder)
        found = json.loads(record.read_text())
        return Lab(folder, tuple(_host_from(entry) for entry in found["hosts"]), _switch_from(found.get("switch")))

    def host(self, name: str) -> Host:
        """A host by name. Raises HoldfastError naming those that exist."""
        for host in self.hosts:
            if host.name == name:
                return host
        there = ", ".join(host.name for host in self.hosts) or "none; start one with: holdfast lab up"
        raise HoldfastError(f"the lab has no host {name}", f"it has: {there}")

    def with_host(self, host: Host) -> Lab:
        """The lab with this host added or replaced, saved."""
        others = tuple(other for other in self.hosts if other.name != host.name)
        return replace(self, hosts=tuple(sorted((*others, host), key=lambda each: each.name)))._saved()

    def without(self, name: str) -> Lab:
        """The lab without this host, saved."""
        return replace(self, hosts=tuple(host for host in self.hosts if host.name != name))._saved()

    def with_switch(self, switch: Switch | None) -> Lab:
        """The lab with this switch, or without any, saved."""
        return replace(self, switch=switch)._saved()

    def _saved(self) -> Lab:
        record = self.folder / "lab.json"
        draft = record.with_suffix(".new")
        switch = self.switch and asdict(self.switch)
        draft.write_text(json.dumps({"switch": switch, "hosts": [asdict(host) for host in self.hosts]}, indent=1))
        draft.rename(record)
        return self


def _host_from(entry: dict) -> Host:
    return Host(**{**entry, "forwards": _forwards_from(entry), "cables": _cables_from(entry["cables"])})


def _switch_from(entry: dict | None) -> Switch | None:
    if not entry:
        return None
    cables = tuple(map(_cables_from, entry["cables"]))
    return Switch(**{**entry, "forwards": _forwards_from(entry), "cables": cables})


def _cables_from(entry: list) -> Cables:
    return tuple((here, there) for here, there in entry)


def _forwards_from(entry: dict) -> tuple[Forward, ...]:
    return tuple(Forward(**forward) for forward in entry["forwards"])


def start(
    lab: Lab,
    name: str,
    image: HostImage,
    *,
    ram_mib: int,
    cpus: int,
    nodes: int,
    accel: str,
    firmware: Firmware,
) -> Lab:
    """Start a hypervisor from a fresh overlay of the image and put it on record. Returns at once.

    Raises HoldfastError when the lab has no switch.
    """
    if lab.switch is None:
        raise HoldfastError("the lab has no switch for its hosts", "begin with: holdfast lab up")
    folder = lab.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    disk = folder / "disk.qcow2"
    disk.unlink(missing_ok=True)
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image.disk, disk])
    shutil.copy(image.uefi_variables, folder / "uefi-variables.fd")
    number = _number(name)
    host = Host(
        name=name,
        pid=0,
        accel=accel,
        ram_mib=ram_mib,
        cpus=cpus,
        nodes=nodes,
        folder=str(folder),
        key=str(image.key),
        firmware=firmware,
        uefi_code=str(image.uefi_code),
        forwards=lab.switch.of(name),
        cables=lab.switch.cables[number - 1],
        peer_address=f"192.168.77.{number}",
    )
    _write_identity(host, number)
    _write_ssh_config(lab.folder, host, image)
    return power_on(lab, host)


def power_on(lab: Lab, host: Host) -> Lab:
    """Start the emulator on the host's own disk, as it is, and put it on record. Returns at once."""
    folder = Path(host.folder)
    _keep_earlier_logs(folder)
    pid = spawn(_arguments(host, host.cpus, _number(host.name)), folder / "emulator.log")
    host = replace(host, pid=pid, started_at=time.time())
    for _ in range(50):  # a new process shows its arguments only a moment after it began
        if host.alive:
            break
        time.sleep(0.1)
    return lab.with_host(host)


def _number(name: str) -> int:
    return int("".join(filter(str.isdigit, name)) or 1)


def emulator_failed(host: Host) -> bool:
    """Whether the emulation broke down, and not what runs in it. Never true of a lab on KVM.

    Two faults of QEMU's emulated SVM are known (10.0.2; the first one's code is the same in 11.1.3). It asserts when a
    guest writes CR8 while an interrupt waits for it, which 64-bit UEFI firmware does at each of its timer ticks. And
    with two CPUs it now and then runs the hypervisor's code in place of a guest's, with the guest's segments: one page
    fault in another, until the thread's stack is full.
    """
    if host.accel != "tcg":
        return False
    log = Path(host.folder, "emulator.log")
    asserted = log.exists() and "assertion failed: (bql_locked())" in log.read_text(errors="replace")
    return asserted or "corrupted stack end detected inside scheduler" in console_tail(host, 200)


def guest_was_mixed_up(host: Host) -> bool:
    """Whether emulated SVM ran a guest on the hypervisor's page tables: a third known fault of it.

    KVM stops such a guest (internal error, suberror 3: an event could not be delivered), and its CR3 lies beyond its
    RAM. Never true of a lab on KVM.
    """
    if host.accel != "tcg" or not host.alive:
        return False
    with contextlib.suppress(CommandFailed):
        return bool(on_host(host, "grep -l 'Suberror: 3' /var/log/libvirt/qemu/*.log || true", timeout_s=30).strip())
    return False


def _arguments(host: Host, cpus: int, number: int) -> list[str]:
    folder = host.folder
    identity = [
        word
        for item in _identity(host, number)
        for word in ("-fw_cfg", f"name=opt/holdfast.lab/{item},file={folder}/{item}")
    ]
    by_uefi = emulator.uefi_arguments(Path(host.uefi_code), Path(folder, "uefi-variables.fd"))
    # No ROMs to boot from the network with.
    return [
        *emulator.machine_arguments(host.accel, host.ram_mib, cpus, host.nodes),
        *(by_uefi if host.firmware == Firmware.UEFI else ()),
        *("-name", host.name, "-uuid", str(uuid.uuid5(uuid.NAMESPACE_OID, host.name))),
        *switches.plug_arguments(host.cables, number),
        # Behind a port, as every disk of a server is: its driver is in no kernel's list of modules.
        *("-device", "pcie-root-port,id=slot1,chassis=1"),
        *("-drive", f"id=disk,file={folder}/disk.qcow2,if=none,cache=unsafe,discard=unmap,aio=threads"),
        *("-device", "virtio-blk-pci,drive=disk,bus=slot1"),
        *("-device", "virtio-rng-pci"),
        # As every server has one. It is started by whoever wants it, and then resets the host.
        *("-device", "i6300esb"),
        *("-chardev", f"file,id=console,path={folder}/console.log", "-serial", "chardev:console"),
        *("-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off"),
        *("-display", "none", "-monitor", "none", "-no-user-config"),
        *identity,
    ]


def _write_identity(host: Host, number: int) -> None:
    for name, text in _identity(host, number).items():
        Path(host.folder, name).write_text(text)


def _identity(host: Host, number: int) -> dict[str, str]:
    """What a host is told by the machine it runs on, as files: its names and its network.

    One card is in its bridge, and so on one network with all guests and the outside. The other leads to the other hosts
    alone: migrations have a network of their own.
    """
    peers = "".join(f"192.168.77.{each} hv{each}\n" for each in range(1, switches.MOST_HOSTS + 1))
    uplink, between = (f"[Match]\nType=ether\nMACAddress={switches.mac(card, number)}\n" for card in CARDS)
    own = f"Address={switches.address(number)}/24\nGateway={switches.OUTSIDE}\n"
    quiet = "LinkLocalAddressing=no\nConfigureWithoutCarrier=yes\n"
    return {
        "hostname": f"{host.name}\n",
        "hosts": f"127.0.0.1 localhost\n127.0.1.1 {host.name}.lab\n{peers}",
        # A bridge takes over the address of its card, and must not be taken for it.
        "20-uplink.network": f"{uplink}[Network]\nBridge=br0\n",
        "20-peers.network": f"{between}[Network]\nAddress={host.peer_address}/24\n{quiet}",
        "30-br0.network": f"[Match]\nName=br0\n[Network]\n{own}{quiet}",
    }


def _keep_earlier_logs(folder: Path) -> None:
    for name in ("console", "emulator"):
        log = folder / f"{name}.log"
        if log.exists():
            log.rename(folder / f"{name}-{int(log.stat().st_mtime)}.log")


def _write_ssh_config(folder: Path, host: Host, image: HostImage) -> None:
    """Known hosts and an SSH configuration of the lab's own: host keys are checked, the user's files stay alone."""
    key = " ".join(image.host_key.read_text().split()[:2])
    port = host.port("ssh")
    known = folder / "known_hosts"
    kept = known.read_text().splitlines() if known.exists() else []
    lines = [line for line in kept if not line.startswith(f"{host.name} ")]
    known.write_text("\n".join([*lines, f"{host.name} {key}", ""]))
    (Path(host.folder) / "ssh_config").write_text(
        f"Host {host.name}\n  HostName 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {host.key}\n"
        f"  IdentitiesOnly yes\n  HostKeyAlias {host.name}\n  UserKnownHostsFile {known}\n"
        "  StrictHostKeyChecking yes\n  ServerAliveInterval 5\n  ServerAliveCountMax 3\n  LogLevel ERROR\n"
    )


def ssh_command(host: Host, words: Sequence[str] = ()) -> list[str]:
    """The ssh call that reaches a lab host."""
    return ["ssh", "-F", f"{host.folder}/ssh_config", host.name, *words]


def on_host(host: Host, script: str, *, timeout_s: float = 300) -> str:
    """Run a shell script on a lab host and return what it prints. Raises CommandFailed."""
    return run(ssh_command(host, ["sh", "-se"]), stdin=script, timeout_s=timeout_s)


def wait_until_usable(host: Host, limit_s: float = BOOT_LIMIT_S) -> float:
    """Wait until SSH lets us in and libvirt answers; return seconds since the start of the host.

    Raises HoldfastError with the end of the serial console.
    """
    deadline = time.monotonic() + limit_s
    greeted = False
    while time.monotonic() < deadline:
        if not host.alive:
            break
        # Once is enough: sshd shuts out who connects again and again without logging in (PerSourcePenalties).
        greeted = greeted or _greets(host.port("ssh"))
        if greeted:
            with contextlib.suppress(CommandFailed):
                on_host(host, "virsh -q list >/dev/null", timeout_s=60)
                return time.time() - host.started_at
        time.sleep(0.5)
    state = "did not become usable" if host.alive else "ended"
    raise HoldfastError(f"lab host {host.name} {state} within {limit_s:.0f} s; console:\n{console_tail(host)}")


def _greets(port: int) -> bool:
    """Whether an SSH server says hello on a loopback port (the forward itself always accepts)."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as link:
        return link.recv(4) == b"SSH-"
    return False


def console_tail(host: Host, lines: int = 30) -> str:
    """The last lines of the host's serial console."""
    text = host.console.read_text(errors="replace") if host.console.exists() else "(nothing)"
    return "\n".join(text.splitlines()[-lines:])


@contextlib.contextmanager
def unplugged(host: Host) -> Iterator[None]:
    """Pull the host's network cables, and put them back in the end. What runs on the host goes on."""
    _link(host, up=False)
    try:
        yield
    finally:
        _link(host, up=True)


def _link(host: Host, *, up: bool) -> None:
    words: list[tuple[str, dict[str, Any]]] = [("qmp_capabilities", {})]
    words += [("set_link", {"name": card, "up": up}) for card in CARDS]
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(MONITOR_LIMIT_S)
        monitor.connect(f"{host.folder}/qmp.sock")
        lines = monitor.makefile("rw")
        for command, arguments in words:
            lines.write(json.dumps({"execute": command, "arguments": arguments}))
            lines.flush()
            # A greeting and events come in between.
            while "return" not in (answer := json.loads(lines.readline())):
                if "error" in answer:
                    raise HoldfastError(f"the emulator of {host.name} refuses {command}: {answer['error']['desc']}")


def stop(host: Host) -> None:
    """End the emulator by pid, and only if it is ours."""
    if not host.alive:
        return
    os.kill(host.pid, signal.SIGTERM)
    for _ in range(100):
        if not host.alive:
            return
        time.sleep(0.1)
    os.kill(host.pid, signal.SIGKILL)


@contextlib.contextmanager
def console_on_failure(host: Host) -> Iterator[None]:
    """Attach the end of the serial console to whatever goes wrong inside."""
    try:
        yield
    except HoldfastError as exc:
        exc.message += f"\nconsole of {host.name} ({host.console}):\n{console_tail(host)}"
        raise
