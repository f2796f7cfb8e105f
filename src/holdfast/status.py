# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``holdfast status``: how the hosts of an inventory stand, by one run of ``playbooks/status.yml``. Touches nothing.

What the modules of that playbook tell becomes one ``HostStanding`` per host, without a look at the clock or the screen;
a host that cannot be reached is one of them too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, CommandFailed
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import TERMINAL, WAITING

from .progress import ROLE_PREFIX, ExitCode
from .upgrade import Place, Start, Wish, ansible_environment, by_name, chosen_hosts, last_words, runner, with_files

STATUS = "holdfast.kvm.status"
RUNNING = ("running", "paused")
DAMAGED = "damaged"


class Reach(StrEnum):
    """What came of asking a host."""

    ANSWERED = "answered"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    SILENT = "silent"


@dataclass(frozen=True)
class VmStanding:
    """One VM. ``state`` is libvirt's word, or the journal's while the VM waits for somebody."""

    name: str
    uuid: str = ""
    state: str = ""
    ram_bytes: int = 0
    in_pool: bool = False
    treatment: str = ""
    reason: str = ""
    waiting: bool = False
    error: str = ""

    @property
    def runs(self) -> bool:
        return self.state in RUNNING and not self.waiting


@dataclass(frozen=True)
class HostStanding:
    """One host. Sizes are bytes; times are seconds since the epoch by the host's clock.

    ``away``: VMs that were moved away and are to come home, each with the host that it is on.
    """

    name: str
    reach: Reach = Reach.SILENT
    error: str = ""
    kernel: str = ""
    qemu: str = ""
    prepared: bool = False
    pool_mounted: bool = False
    pool_size_bytes: int = 0
    pool_free_bytes: int = 0
    journal_state: str = ""
    journal_reason: str = ""
    generation: str = ""
    updated_at: float = 0.0
    policy_error: str = ""
    vms: tuple[VmStanding, ...] = ()
    away: tuple[tuple[str, str], ...] = ()

    @property
    def waiting(self) -> tuple[VmStanding, ...]:
        return tuple(vm for vm in self.vms if vm.waiting)

    @property
    def in_flight(self) -> bool:
        """Whether a live update began on the host and has not ended."""
        return self.journal_state not in ("", "none", DAMAGED, *TERMINAL)

    @property
    def in_trouble(self) -> bool:
        """Whether somebody has to act: it could not be asked, or something waits on it."""
        return self.reach is not Reach.ANSWERED or self.journal_state == DAMAGED or bool(self.waiting)


def look(wish: Wish) -> tuple[HostStanding, ...]:
    """Ask every host. Raises BadInput for an inventory that cannot be used, CommandFailed when Ansible itself fails."""
    if not wish.inventory.exists():
        raise BadInput(f"inventory {wish.inventory} does not exist", "name an inventory file or directory with -i")
    environment = ansible_environment(os.environ)
    # Nothing of it is needed afterwards, so it leaves no directory of a run behind.
    with with_files(wish) as wish, tempfile.TemporaryDirectory(prefix="holdfast-status-") as directory:
        hosts = by_name(chosen_hosts(wish, environment))
        place = Place(Path(directory))
        return asked(hosts, place, runner(wish, place, environment))


def asked(hosts: Sequence[str], place: Place, start: Start) -> tuple[HostStanding, ...]:
    """Run ``start`` to its end and fold what it tells. Raises CommandFailed when it tells nothing of any host."""
    standings = {name: HostStanding(name) for name in hosts}

    def on_event(event: Mapping[str, Any]) -> bool:
        name = (event.get("event_data") or {}).get("host")
        if name in standings:
            standings[name] = told(standings[name], event)
        return True

    return_code = start(on_event, lambda: False)
    if return_code and all(host.reach is Reach.SILENT for host in standings.values()):
        raise CommandFailed(
            f"ansible-playbook ended with {return_code}: {last_words(place.log)}",
            f"run it by hand to see all of it: ansible-playbook {STATUS}",
        )
    return tuple(standings.values())


def exit_code(hosts: Sequence[HostStanding]) -> ExitCode:
    """0 when every host answered and nothing waits on any."""
    return ExitCode.HOST_FAILED if any(host.in_trouble for host in hosts) else ExitCode.DONE


def told(host: HostStanding, event: Mapping[str, Any]) -> HostStanding:
    """The host after one event of ansible-runner about it."""
    details: Mapping[str, Any] = event.get("event_data") or {}
    result: Mapping[str, Any] = details.get("res") or {}
    message = str(result.get("msg") or "").strip()
    match event.get("event"):
        case "runner_on_unreachable":
            return replace(host, reach=Reach.UNREACHABLE, error=message or "no answer")
        case "runner_on_failed" if not details.get("ignore_errors"):
            return replace(host, reach=Reach.FAILED, error=message or f"task '{details.get('task')}' failed")
        case "runner_on_ok" if details.get("resolved_action") == f"{ROLE_PREFIX}host_info":
            gone = tuple((str(vm.get("name")), str(vm.get("to"))) for vm in result.get("away") or [])
            return replace(_with_facts(host, result.get("host") or {}, result.get("journal") or {}), away=gone)
        case "runner_on_ok" if details.get("resolved_action") == f"{ROLE_PREFIX}vm_info":
            return _with_vms(host, result)
    return host


def _with_facts(host: HostStanding, facts: Mapping[str, Any], journal: Mapping[str, Any]) -> HostStanding:
    pool: Mapping[str, Any] = facts.get("pool") or {}
    return replace(
        host,
        reach=Reach.ANSWERED,
        kernel=str(facts.get("kernel") or ""),
        qemu=_version((facts.get("qemu") or {}).get("version")),
        prepared=bool(facts.get("agent_installed")) and bool(pool.get("regions")),
        pool_mounted=bool(pool.get("mounted")),
        pool_size_bytes=int(pool.get("size_bytes") or 0),
        pool_free_bytes=int(pool.get("free_bytes") or 0),
        journal_state=str(journal.get("state") or ""),
        journal_reason=str(journal.get("reason") or ""),
        generation=str(journal.get("generation") or ""),
        updated_at=float(journal.get("updated_at") or 0.0),
        vms=tuple(_waiting_vm(entry) for entry in journal.get("vms") or [] if entry.get("state") in WAITING),
    )


def _waiting_vm(entry: Mapping[str, Any]) -> VmStanding:
    return VmStanding(
        name=str(entry.get("name") or ""),
        uuid=str(entry.get("uuid") or ""),
        state=str(entry.get("state") or ""),
        ram_bytes=int(entry.get("ram_bytes") or 0),
        waiting=True,
        error=str(entry.get("error") or ""),
    )


def _with_vms(host: HostStanding, result: Mapping[str, Any]) -> HostStanding:
    """What libvirt knows. Of a VM that waits the journal's word counts: libvirt calls it shut off, or not at all."""
    waiting = {vm.uuid: vm for vm in host.waiting}
    found = [_vm(entry, waiting.pop(entry.get("uuid"), None)) for entry in result.get("vms") or []]
    vms = sorted([*found, *waiting.values()], key=lambda vm: vm.name)
    return replace(host, vms=tuple(vms), policy_error=str(result.get("policy_error") or ""))


def _vm(entry: Mapping[str, Any], waiting: VmStanding | None) -> VmStanding:
    decision: Mapping[str, Any] = entry.get("decision") or {}
    vm = waiting or VmStanding(
        str(entry.get("name") or ""), str(entry.get("uuid") or ""), str(entry.get("state") or "")
    )
    return replace(
        vm,
        ram_bytes=int(entry.get("ram_bytes") or 0) or vm.ram_bytes,
        in_pool=bool(entry.get("ram_files_present")),
        treatment=str(decision.get("treatment") or ""),
        reason=str(decision.get("reason") or ""),
    )


def _version(numbers: object) -> str:
    known = numbers if isinstance(numbers, Sequence) and any(numbers) else ()
    return ".".join(map(str, known))


def next_step(host: HostStanding) -> str:
    """What happens next on this host, or what somebody has to do: the most pressing of it, in one sentence."""
    return (
        _trouble(host)
        or _unready(host)
        or "nothing is in flight; 'holdfast upgrade --check' says what stands in the way"
    )


def _trouble(host: HostStanding) -> str:
    match host.reach:
        case Reach.UNREACHABLE:
            return "see why it cannot be reached: 'holdfast doctor' looks at address, host key, login and become"
        case Reach.FAILED:
            return "put right what the error says; 'holdfast doctor' looks at what the host lacks"
        case Reach.SILENT:
            return "it was not asked: another failure ended the run before"
    if host.journal_state == DAMAGED:
        return "look at its journal before anything else: it may hold suspended VMs"
    if host.in_flight:
        return f"its live update is {host.journal_state}: 'holdfast recover' waits for it, or finishes it"
    if host.waiting:
        names = ", ".join(vm.name for vm in host.waiting)
        return f"'holdfast recover' tries {names} again, or says what to do"
    return ""


def _unready(host: HostStanding) -> str:
    """What an upgrade would find missing, as far as it is known without asking preflight."""
    if not host.prepared:
        return "the prepare playbook gives it a pool and the agent"
    if not host.pool_mounted:
        return "its pool is not mounted: 'systemctl start holdfast-pool.service' there says why, or reboot it once"
    if host.policy_error:
        return f"correct the policy: {host.policy_error}"
    outside = [vm.name for vm in host.vms if vm.runs and not vm.in_pool]
    if outside:
        return f"shut down and start once, so that its RAM is in the pool: {', '.join(outside)}"
    if host.away:
        names = ", ".join(f"{name} from {where}" for name, where in host.away)
        return f"the return_home playbook brings home {names}"
    return ""


def as_document(hosts: Sequence[HostStanding]) -> dict[str, Any]:
    """What ``--json`` prints: sizes in bytes, times in seconds since the epoch."""
    return {"hosts": [_host_entry(host) for host in hosts], "exit_code": int(exit_code(hosts))}


def _host_entry(host: HostStanding) -> dict[str, Any]:
    return {
        "host": host.name,
        "reach": host.reach.value,
        "error": host.error,
        "kernel": host.kernel,
        "qemu": host.qemu,
        "pool": {
            "mounted": host.pool_mounted,
            "size_bytes": host.pool_size_bytes,
            "used_bytes": host.pool_size_bytes - host.pool_free_bytes,
            "free_bytes": host.pool_free_bytes,
        },
        "journal": {
            "state": host.journal_state,
            "generation": host.generation,
            "reason": host.journal_reason,
            "updated_at": host.updated_at,
        },
        "policy_error": host.policy_error,
        "vms": [_vm_entry(vm) for vm in host.vms],
        "away": [{"name": name, "at": where} for name, where in host.away],
        "next": next_step(host),
    }


def _vm_entry(vm: VmStanding) -> dict[str, Any]:
    return {
        "name": vm.name,
        "uuid": vm.uuid,
        "state": vm.state,
        "ram_bytes": vm.ram_bytes,
        "in_pool": vm.in_pool,
        "treatment": vm.treatment,
        "reason": vm.reason,
        "waiting": vm.waiting,
        "error": vm.error,
    }
