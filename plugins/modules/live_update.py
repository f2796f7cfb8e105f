#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's part of a live update: decide, judge once more, hand the request to the agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: live_update
short_description: Move a host to another kernel and QEMU while the RAM of its VMs stays put
version_added: 0.1.0
description:
  - Judges the host and its VMs once more, hands the request to C(holdfast-agent) on the host, and starts it. From then
    on the host acts by itself; it suspends all VMs, jumps into the new kernel with kexec, and restores the VMs.
  - The controller's part follows the host's journal through the lost connection until it ends, and proves the jump by
    boot id, kernel release and generation.
  - Every changed journal is appended as one JSON line to the file on the controller that the environment variable
    E(HOLDFAST_PROGRESS_FILE) names.
  - A host that does not come back in time makes the task fail. It is never reported as unreachable.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  state:
    description: A live update is started, unless the host is up to date.
    type: str
    choices: [started]
    default: started
  kernel:
    description:
      - Release to go to, as C(uname -r) will print it. It must be installed.
      - When empty, the newest installed one of the running kernel's flavour.
    type: str
    default: ""
  policy:
    description:
      - Rules for the VMs, first match wins. A VM that no rule matches stays in place with priority 50.
    type: list
    elements: dict
    default: []
    suboptions:
      match:
        description:
          - Exactly one of C(name), C(uuid), C(title) and C(tag), with a text; all but uuid may be patterns. Without it
            the rule matches every VM. Tags are words in the VM's libvirt metadata, below C(urn:holdfast:tags:1).
        type: dict
      treatment:
        description: What happens to the VM, C(in_place) when left out. Short for one entry in O(policy[].treatments).
        type: str
      treatments:
        description:
          - What may happen to the VM, the preferred treatment first. This module carries out C(in_place); C(cold),
            which saves the VM to disk with its RAM before the others are suspended, and loads it after they go on; and
            C(restart), which shuts the guest down before, and starts it after. A VM that is to be moved away (C(live))
            and still runs here blocks the live update.
        type: list
        elements: str
      priority:
        description: From 0 to 100. Higher is more important; suspended later, restored earlier.
        type: int
        default: 50
      max_pause_s:
        description: Seconds that the VM may be paused. No limit when left out.
        type: float
      critical:
        description: Whether the VM must not be paused. Its treatments are C(live) and C(defer) then. For the plan.
        type: bool
        default: false
      group:
        description: The group of C(holdfast_groups) that the VM is a member of. For the plan.
        type: str
        default: ""
      return_home:
        description: Whether the VM comes back to its host after a live migration. For the plan.
        type: bool
        default: false
      may_restart:
        description:
          - Whether the VM may be started afresh from its disk when its RAM is lost, by a power cut for example.
            Otherwise its start is forbidden until somebody gives its RAM up.
        type: bool
        default: false
  parallel:
    description: VMs that are suspended, and restored, at the same time; never more than the host has CPUs.
    type: int
    default: 2
  deadline_s:
    description: Seconds that all may take on the host from the first pause to the jump, and restoring one VM.
    type: int
    default: 600
  shutdown_s:
    description:
      - Seconds that a guest has to shut down, where its treatment is C(restart). One that does not ends the live update
        before any VM is suspended; it is not forced to.
    type: int
    default: 300
  network_s:
    description:
      - Seconds that VMs wait after the jump until the bridges, switches and cards that carried their frames before do
        so again, counted from the first restore. A new kernel under which they do not is left for the old one.
      - More where links take longer, with spanning tree or link aggregation for example. 0 for not waiting, and for
        not going back.
    type: int
    default: 60
  storage_s:
    description:
      - Seconds that VMs wait after the jump until the files and devices that their disks are on are there, counted from
        the first restore. The others do not wait for them.
    type: int
    default: 120
  fallback_after:
    description:
      - The host goes back to the old kernel when this many VMs could not be restored, or all of them, and none was
        resumed. 0 for never.
    type: int
    default: 3
  health_command:
    description: A shell command on the host that must succeed on the new kernel, or the host goes back to the old one.
    type: str
    default: ""
  verify_ram:
    description:
      - How much RAM of each VM is compared before it is restored. C(sampled) reads 256 pages of each VM. C(full) reads
        all of it, twice and within the pause.
    type: str
    choices: [sampled, full]
    default: sampled
  unmoved:
    description:
      - Names of VMs that could not be moved away. They get the treatment that their policy has after C(live).
    type: list
    elements: str
    default: []
  elsewhere:
    description: Names or uuids of VMs that are on other hosts now, so that a rule for one is no slip of the pen.
    type: list
    elements: str
    default: []
  rehearse:
    description:
      - Whether to boot the new kernel in a throw-away VM on the host first, with its initrd and the command line that
        it would get. The host is refused, and no VM was touched, unless the kernel can do there what the pool needs.
      - Takes a minute or so, in which the VMs run, and about 1 GiB of the host's RAM. Not done in check mode.
    type: bool
    default: false
  rehearse_only:
    description:
      - Judges and rehearses, and starts nothing. VMs that are to be moved away may still be here.
    type: bool
    default: false
  only:
    description:
      - C(everything) goes to another kernel, and with it to the installed QEMU. C(qemu) stays on the running kernel and
        gives each VM the installed QEMU, C(parallel) VMs at a time, the least important first. Each is paused for as
        long as its own device state takes; none after the first that fails.
    type: str
    choices: [everything, qemu]
    default: everything
  force:
    description: Whether to start a live update of a host that is up to date.
    type: bool
    default: false
  timeout_s:
    description: Seconds after which the controller stops watching. The host goes on by itself.
    type: int
    default: 1800
  connect_timeout_s:
    description: Seconds that one attempt to connect may take while the host is away.
    type: int
    default: 10
  poll_s:
    description: Seconds between two looks at a host that answers; more, up to 15, when the host is slow to answer.
    type: int
    default: 2
attributes:
  check_mode:
    description:
      - Returns the plan and touches nothing. A kernel that is named, but not installed yet, is planned with a warning.
    support: full
  diff_mode:
    description: Shows the kernel command line before and after, one option per line.
    support: full
  idempotent:
    description:
      - Does nothing on a host that runs the wanted kernel, and whose VMs all run on the installed QEMU.
    support: full
  action:
    description: An action plugin of the same name runs on the controller.
    support: full
notes:
  - Refuses C(connection=local), since it would jump away with its own controller.
seealso:
  - module: holdfast.kvm.preflight
  - module: holdfast.kvm.verify
"""

EXAMPLES = r"""
- name: Go to the newest installed kernel
  holdfast.kvm.live_update:
    policy:
      - match: {name: "db-*"}
        priority: 90

- name: Go back to the older kernel
  holdfast.kvm.live_update:
    kernel: 6.12.107+deb13-amd64
"""

RETURN = r"""
result:
  description:
    - How it ended. C(upgraded) means that the jump is proven and every VM was restored; C(fell_back) that the host runs
      the old kernel again after the jump; C(aborted) that the VMs never left the old kernel; C(skipped) that there was
      nothing to do, that the host was refused, or that it was only planned.
  type: str
  returned: always
  sample: upgraded
generation:
  description: Id of this live update.
  type: str
  returned: when started or planned
  sample: g-20261121T020000-ab12cd
kernel:
  description: The release before (C(from)), the wanted one (C(to)), and the one that was seen last (C(running)).
  type: dict
  returned: success
  sample: {from: 6.12.107+deb13-amd64, to: 7.2.12+deb13-amd64, running: 7.2.12+deb13-amd64}
qemu_to:
  description: The installed QEMU, which the VMs get.
  type: str
  returned: when started or planned
  sample: 11.1.3
boot_id:
  description: Boot id before and after. In check mode the present one, a string.
  type: raw
  returned: success
  sample: {from: 0f9e..., to: 77aa...}
proof:
  description:
    - Whether C(boot_id_changed), C(kernel_matches) and C(generation_on_command_line); with C(only=qemu) whether
      C(boot_id_kept) and C(every_vm_renewed).
  type: dict
  returned: when started
  sample: {boot_id_changed: true, kernel_matches: true, generation_on_command_line: true}
journal:
  description: The host's journal of this generation, as C(holdfast-agent status --json) prints it.
  type: dict
  returned: when started
  sample: {}
vms:
  description:
    - The VMs that are suspended and restored, saved and loaded, or shut down and started, in restore order, with
      C(name), C(uuid), C(priority), C(treatment) and the C(reason).
  type: list
  elements: dict
  returned: when started or planned
  sample: [{name: db1, uuid: 6d0b..., priority: 90, treatment: in_place, reason: "by rule 1 (name db-*)"}]
suspend_order:
  description: Names of the VMs in the order in which they are suspended.
  type: list
  elements: str
  returned: when started or planned
  sample: [web1, db1]
restore_order:
  description: Names of the VMs in the order in which they are restored.
  type: list
  elements: str
  returned: when started or planned
  sample: [db1, web1]
stored:
  description: Names of the VMs that are saved to disk before, and loaded after.
  type: list
  elements: str
  returned: when started or planned
  sample: [old1]
shut_down:
  description: Names of the VMs that are shut down before, and started after.
  type: list
  elements: str
  returned: when started or planned
  sample: [gpu1]
cmdline:
  description: The kernel command line C(before) and C(after).
  type: dict
  returned: when started or planned
  sample: {}
rehearsal_s:
  description: Seconds that the rehearsal took, null without one.
  type: float
  returned: when started or planned
  sample: 21.4
findings:
  description: What preflight found worth knowing, a sentence each.
  type: list
  elements: str
  returned: success
  sample: []
blockers:
  description: Every reason why the host was refused, with C(code), C(message), C(remedy) and C(vm).
  type: list
  elements: dict
  returned: when refused
  sample: []
refused:
  description: Whether the host was refused; nothing was touched then.
  type: bool
  returned: failure
  sample: true
lock_held:
  description: Whether another live update of this host is under way; nothing was touched then.
  type: bool
  returned: failure
  sample: false
"""

import fcntl
import os
import secrets
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    away,
    cmdline,
    collect,
    command,
    evacuees,
    journal,
    monitor,
    policy,
    preflight,
    rehearsal,
    releases,
    request,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import RUN_DIR, Config, load
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, Refused
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import HostFacts, Verdict, VmFacts
from ansible_collections.holdfast.kvm.plugins.module_utils._core.hypervisor import connect
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

UNIT = "holdfast-live-update.service"
LOCK = RUN_DIR / "request.lock"
LIMITS = (
    *("parallel", "deadline_s", "shutdown_s", "network_s", "storage_s"),
    *("fallback_after", "health_command", "verify_ram", "only"),
)

ARGUMENTS: Dict[str, Any] = {
    "state": {"type": "str", "choices": ["started"], "default": "started"},
    "kernel": {"type": "str", "default": ""},
    "policy": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "match": {"type": "dict"},
            "treatment": {"type": "str"},
            "treatments": {"type": "list", "elements": "str"},
            "priority": {"type": "int", "default": 50},
            "max_pause_s": {"type": "float"},
            "critical": {"type": "bool", "default": False},
            "group": {"type": "str", "default": ""},
            "return_home": {"type": "bool", "default": False},
            "may_restart": {"type": "bool", "default": False},
        },
    },
    "parallel": {"type": "int", "default": 2},
    "deadline_s": {"type": "int", "default": 600},
    "shutdown_s": {"type": "int", "default": 300},
    "network_s": {"type": "int", "default": 60},
    "storage_s": {"type": "int", "default": 120},
    "fallback_after": {"type": "int", "default": 3},
    "health_command": {"type": "str", "default": ""},
    "verify_ram": {"type": "str", "choices": ["sampled", "full"], "default": "sampled"},
    "unmoved": {"type": "list", "elements": "str", "default": []},
    "elsewhere": {"type": "list", "elements": "str", "default": []},
    "rehearse": {"type": "bool", "default": False},
    "rehearse_only": {"type": "bool", "default": False},
    "only": {"type": "str", "choices": [request.EVERYTHING, request.ONLY_QEMU], "default": request.EVERYTHING},
    "force": {"type": "bool", "default": False},
    "timeout_s": {"type": "int", "default": 1800},
    "connect_timeout_s": {"type": "int", "default": 10},
    "poll_s": {"type": "int", "default": 2},
}


class LockHeld(HoldfastError):
    """Another live update of this host is under way."""


@dataclass(frozen=True)
class Wish:
    """What the caller asked for. ``limits``: the options that go into the request as they are.

    ``unmoved`` and ``elsewhere``: names of VMs, as in ``policy.decide``.
    """

    kernel: str
    rules: Tuple[policy.Rule, ...]
    limits: Dict[str, Any]
    unmoved: Tuple[str, ...] = ()
    elsewhere: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What would be done, and what was found on the way. ``decisions`` are those of the VMs that have a QEMU."""

    generation: str
    host: HostFacts
    kernel_to: str
    next_cmdline: str
    decisions: Tuple[policy.Decision, ...]
    verdict: Verdict
    notes: Tuple[str, ...] = ()


def read_wish(params: Dict[str, Any], away_from_here: Sequence[str] = ()) -> Wish:
    """The caller's options. Raises BadInput for a rule that is not understood."""
    rules = [{key: value for key, value in rule.items() if value is not None} for rule in params["policy"]]
    limits = {name: params[name] for name in LIMITS}
    unmoved, elsewhere = (tuple(params[name]) for name in ("unmoved", "elsewhere"))
    return Wish(params["kernel"], policy.parse_rules(rules), limits, unmoved, (*elsewhere, *away_from_here))


def target_of(wish: Wish, host: HostFacts, installed: Sequence[str], may_be_missing: bool) -> str:
    """The release to go to. ``may_be_missing``: in a check nothing was staged, so the named kernel may come later."""
    if wish.limits["only"] == request.ONLY_QEMU:
        return host.kernel
    later = [wish.kernel] if may_be_missing and wish.kernel else []
    return releases.choose(wish.kernel, [*installed, *later], host.kernel)


def make_plan(
    generation: str, wish: Wish, host: HostFacts, vms: Sequence[VmFacts], kernel_to: str, installed: Sequence[str]
) -> Plan:
    """Decide and judge. Raises BadInput for a policy or command line that cannot be; what blocks is in the verdict."""
    if wish.limits["only"] == request.ONLY_QEMU:
        decisions = policy.decide(wish.rules, vms, wish.elsewhere, wish.unmoved)
        verdict = preflight.judge_renewal(host, vms, decisions)
        return Plan(generation, host, host.kernel, host.cmdline, _taking_part(decisions, vms), verdict)
    next_cmdline = cmdline.next_command_line(host.cmdline, generation=generation)
    staged = kernel_to in installed
    # The drivers of a kernel that is not there yet cannot be judged; those of the running one stand in for them.
    target = replace(collect.kernel_facts(kernel_to if staged else host.kernel), cmdline=next_cmdline)
    decisions = policy.decide(wish.rules, vms, wish.elsewhere, wish.unmoved)
    return Plan(
        generation=generation,
        host=host,
        kernel_to=kernel_to,
        next_cmdline=next_cmdline,
        decisions=_taking_part(decisions, vms),
        verdict=preflight.judge(host, vms, target, decisions=decisions),
        notes=() if staged else (f"kernel {kernel_to} is not installed yet, so its drivers were not looked at",),
    )


def _taking_part(decisions: Sequence[policy.Decision], vms: Sequence[VmFacts]) -> Tuple[policy.Decision, ...]:
    """Of those that run. What is to be moved away is no part: if it is here all the same, the host does not jump."""
    running = {vm.uuid for vm in vms if vm.domain_id >= 0}
    return tuple(one for one in decisions if one.uuid in running and one.treatment in policy.STAYING)


def described(plan: Plan) -> Dict[str, Any]:
    """The plan as the module returns it."""
    staying, stored, restarting = (
        [decision for decision in plan.decisions if decision.treatment is treatment] for treatment in policy.STAYING
    )
    return {
        "generation": plan.generation,
        "boot_id": plan.host.boot_id,
        "kernel": {"from": plan.host.kernel, "to": plan.kernel_to},
        "qemu_to": ".".join(map(str, plan.host.qemu.version)),
        "cmdline": {"before": plan.host.cmdline, "after": plan.next_cmdline},
        "vms": [vars(vm) for vm in vm_requests(policy.restore_order(plan.decisions))],
        "suspend_order": [decision.name for decision in policy.suspend_order(staying)],
        "restore_order": [decision.name for decision in policy.restore_order(staying)],
        "stored": [decision.name for decision in stored],
        "shut_down": [decision.name for decision in restarting],
        "findings": [*plan.notes, *(f"{entry.vm or 'host'}: {entry.message}" for entry in plan.verdict.warnings)],
        "diff": {
            "before_header": f"command line of {plan.host.kernel}",
            "before": one_per_line(plan.host.cmdline),
            "after_header": f"command line of {plan.kernel_to}",
            "after": one_per_line(plan.next_cmdline),
        },
    }


def one_per_line(line: str) -> str:
    return "".join(f"{option}\n" for option in cmdline.split(line))


def vm_requests(decisions: Sequence[policy.Decision]) -> List[request.VmRequest]:
    return [
        request.VmRequest(one.name, one.uuid, one.priority, one.treatment.value, one.reason, one.may_restart)
        for one in decisions
    ]


def refuse_second(busy: str, current: journal.Journal) -> None:
    """Raise LockHeld when a live update is under way: its unit is ``busy``, or its journal is open."""
    if not busy and (current.state == "none" or current.state in journal.TERMINAL):
        return
    found = f"generation {current.generation}, {current.state}" if current.generation else f"{UNIT} is {busy}"
    raise LockHeld(
        f"another live update of this host is under way ({found})",
        "wait until 'holdfast-agent status' says that it ended, then run the upgrade again",
    )


def unit_busy() -> str:
    """``activating`` and the like while the agent works or is about to start, else empty."""
    shown = command.run(["systemctl", "show", "--property=ActiveState,Job", UNIT])
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    if values.get("ActiveState") not in ("inactive", "failed"):
        return values.get("ActiveState", "unknown")
    return "queued" if values.get("Job", "0") not in ("", "0") else ""


@contextmanager
def alone() -> Iterator[None]:
    """Hold the host against a second run of this module. Raises LockHeld."""
    LOCK.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise LockHeld("another run is starting a live update of this host", "let that one end first") from error
    finally:
        os.close(handle)


def rehearse(config: Config, plan: Plan) -> float:
    """Boot the new kernel in a throw-away VM, for as long as that takes. Raises Refused; no VM was touched then."""
    with alone():
        refuse_second(unit_busy(), journal.open_journal(config.state_dir))
        return round(rehearsal.rehearse(config, plan.kernel_to, plan.next_cmdline), 1)


def start(config: Config, plan: Plan, wish: Wish) -> None:
    """Hand the request to the agent. From here on the host acts by itself."""
    with alone():
        refuse_second(unit_busy(), journal.open_journal(config.state_dir))
        vms = tuple(vm_requests(plan.decisions))
        wanted = request.Request(plan.generation, plan.kernel_to, vms, **wish.limits)
        request.write(config.state_dir, wanted)
        command.run(["systemctl", "start", "--no-block", UNIT])


def gather(config: Config) -> Tuple[HostFacts, Tuple[VmFacts, ...], List[str]]:
    host = collect.host_facts(config)
    with connect() as hypervisor:
        return host, collect.vm_facts(hypervisor, config), monitor.qemu_versions(hypervisor.running())


def act(module: AnsibleModule) -> Dict[str, Any]:
    """Decide, judge, and start unless it is a check. Raises HoldfastError; nothing was touched then."""
    try:
        return update(module)
    except LockHeld as error:
        module.fail_json(msg=str(error), hint=error.hint, lock_held=True, refused=False)
        raise AssertionError("fail_json does not return") from error


def update(module: AnsibleModule) -> Dict[str, Any]:
    config = load()
    wish = read_wish(module.params, away.known_names(config.state_dir))
    refuse_second(unit_busy(), journal.open_journal(config.state_dir))
    host, vms, qemus = gather(config)
    installed = releases.installed()
    kernel_to = target_of(wish, host, installed, may_be_missing=module.check_mode)
    if releases.is_up_to_date(host, kernel_to, qemus) and not module.params["force"]:
        message = f"already up to date: kernel {host.kernel}, and every VM runs on the installed QEMU"
        return {"result": "skipped", "msg": message, "kernel": {"from": host.kernel, "to": kernel_to}}
    host = replace(host, image_signed=collect.image_signed(collect.ROOT / f"boot/vmlinuz-{kernel_to}"))
    last = journal.last_finished(config.state_dir)
    generation = cmdline.new_generation(time.time(), secrets.token_hex(3), last)
    plan = make_plan(generation, wish, host, vms, kernel_to, installed)
    refuse_blocked(module, plan)
    starts = not module.check_mode and not module.params["rehearse_only"]
    if starts:
        refuse_left_behind(wish, vms)
    rehearsal_s = None
    wanted = module.params["rehearse"] or module.params["rehearse_only"]
    if wanted and wish.limits["only"] != request.ONLY_QEMU and not module.check_mode:
        rehearsal_s = rehearse(config, plan)
    if starts:
        start(config, plan, wish)
    return {"changed": not module.params["rehearse_only"], "rehearsal_s": rehearsal_s, **described(plan)}


def refuse_left_behind(wish: Wish, vms: Sequence[VmFacts]) -> None:
    """Raise Refused when a VM that is to be moved away runs here. In a check nobody has moved it yet."""
    decisions = policy.decide(wish.rules, vms, wish.elsewhere, wish.unmoved)
    left = evacuees.left_behind(decisions, vms, wish.unmoved)
    if left:
        raise Refused(
            f"VMs are to be moved away and still run here: {', '.join(left)}",
            "run the upgrade playbook, which moves them first; nothing was touched",
        )


def refuse_blocked(module: AnsibleModule, plan: Plan) -> None:
    """Fail with every blocker at once, if there is one."""
    try:
        preflight.require_passed(plan.verdict, plan.host.hostname)
    except Refused as error:
        blockers = [asdict(blocker) for blocker in plan.verdict.blockers]
        module.fail_json(msg=str(error), hint=error.hint, refused=True, blockers=blockers)


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
