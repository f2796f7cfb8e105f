# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The core's one door to QMP: QEMU's monitor, through libvirt; and to the agent in a guest, by the same way."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from .errors import VmError
from .hypervisor import Domain

try:
    import libvirt
    import libvirt_qemu
except ImportError:
    libvirt = libvirt_qemu = None

QUEUE_SIZE_PROPERTIES = {"virtio-blk": "queue-size", "virtio-net": "rx_queue_size", "virtio-scsi": "virtqueue_size"}
GUEST_AGENT = "org.qemu.guest_agent.0"
# Each look wakes libvirt's daemon and the QEMU that is busy with the state.
LOOK_S = 0.1
STATE_FDSET = 7429  # any number that libvirt, counting from 0, will not reach


def execute(domain: Domain, command: str, **arguments: Any) -> Any:
    """Run one QMP command and return what it returns. Raises VmError with QEMU's own words."""
    text = json.dumps({"execute": command, "arguments": arguments})
    try:
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain.raw, text, 0))
    except libvirt.libvirtError as exc:
        raise VmError(f"VM {domain.name}: QEMU does not take {command}: {exc}") from exc
    return _returned(domain, command, answer)


def qemu_version(domain: Domain) -> str:
    """Version of the QEMU that runs this VM, for example ``10.0.13``."""
    version = execute(domain, "query-version")["qemu"]
    return f"{version['major']}.{version['minor']}.{version['micro']}"


def qemu_versions(domains: Sequence[Domain]) -> List[str]:
    """The QEMU that each of these VMs was started with."""
    return [qemu_version(domain) for domain in domains]


def guest_agent_answers(domain: Domain, limit_s: int) -> bool:
    """Whether the VM has an agent in its guest, and it answers within ``limit_s`` seconds. Raises VmError."""
    if GUEST_AGENT not in domain.xml():  # libvirt would log an error for each VM without one
        return False
    try:
        libvirt_qemu.qemuAgentCommand(domain.raw, json.dumps({"execute": "guest-ping"}), limit_s, 0)
    except libvirt.libvirtError:
        return False
    return True


def oversized_queues(domain: Domain) -> Tuple[str, ...]:
    """Virtio devices whose first queue is larger than their own property says, as ``virtio-blk (1024, not 256)``.

    QEMU 10.0.13 makes every queue 1024 entries long, whatever it is told. Raises VmError on QEMU before 7.2.
    """
    found = []
    for device in execute(domain, "x-query-virtio"):
        name = QUEUE_SIZE_PROPERTIES.get(device["name"])
        if name:
            wanted = int(execute(domain, "qom-get", path=device["path"], property=name))
            made = int(execute(domain, "x-query-virtio-queue-status", path=device["path"], queue=0)["vring-num"])
            if made > wanted:
                found.append(f"{device['name']} ({made}, not {wanted})")
    return tuple(found)


def keep_ram_in_place(domain: Domain) -> None:
    """Leave shared file-backed RAM out of the next migration stream."""
    _ignore_shared(domain, True)


def copy_ram_again(domain: Domain) -> None:
    """Back to normal: a later save or live migration copies RAM."""
    _ignore_shared(domain, False)


def ram_stays_in_place(domain: Domain) -> bool:
    """Whether the next migration stream would leave shared RAM out."""
    return any(
        entry["capability"] == "x-ignore-shared" and entry["state"]
        for entry in execute(domain, "query-migrate-capabilities")
    )


def load_state(domain: Domain, image: Path, offset: int, deadline_s: float) -> None:
    """Feed QEMU its device state and wait until it is paused with it.

    The file is opened here and passed in, because a confined QEMU may not open it by path.
    Raises VmError when QEMU refuses the state or ``deadline_s`` seconds pass.
    """
    _pass_file(domain, image)
    execute(domain, "migrate-incoming", uri=f"file:/dev/fdset/{STATE_FDSET},offset={offset}")
    deadline = time.monotonic() + deadline_s
    while not _has_taken_its_state(domain):
        if time.monotonic() > deadline:
            raise VmError(f"VM {domain.name}: QEMU did not take its state within {deadline_s:.0f} s")
        time.sleep(LOOK_S)
    execute(domain, "remove-fd", **{"fdset-id": STATE_FDSET})


def waits_for_state(domain: Domain) -> bool:
    """Whether it has not got all of the state that it was started for; its guest has not run then. Raises VmError.

    QEMU's own word for it (RunState, run-state.json); libvirt shows it as paused, as any VM that stands still.
    """
    return bool(execute(domain, "query-status")["status"] == "inmigrate")


def _has_taken_its_state(domain: Domain) -> bool:
    progress: Dict[str, Any] = execute(domain, "query-migrate")
    if progress.get("status") == "failed":
        raise VmError(f"VM {domain.name}: QEMU refuses its state: {progress.get('error-desc', 'no reason given')}")
    return progress.get("status") == "completed" and not waits_for_state(domain)


def _pass_file(domain: Domain, path: Path) -> None:
    command = json.dumps({"execute": "add-fd", "arguments": {"fdset-id": STATE_FDSET}})
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        answer = libvirt_qemu.qemuMonitorCommandWithFiles(domain.raw, command, [handle], 0)
    except libvirt.libvirtError as exc:
        raise VmError(f"VM {domain.name}: its state file cannot be passed to QEMU: {exc}") from exc
    finally:
        os.close(handle)
    text = answer[0] if isinstance(answer, tuple) else answer
    _returned(domain, "add-fd", json.loads(text))


def _ignore_shared(domain: Domain, state: bool) -> None:
    execute(domain, "migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": state}])


def _returned(domain: Domain, command: str, answer: Dict[str, Any]) -> Any:
    if "error" in answer:
        raise VmError(f"VM {domain.name}: QEMU answers {command} with: {answer['error'].get('desc', answer['error'])}")
    return answer.get("return")
