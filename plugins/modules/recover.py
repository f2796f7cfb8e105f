#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thin: recovering is the agent's. This starts it, waits, and says how the host stands then."""

from __future__ import annotations

DOCUMENTATION = r"""
module: recover
short_description: Finish, take back or report the live update that is in flight on a host
version_added: 0.1.0
description:
  - Lets C(holdfast-agent) on the host bring back every VM of the live update in flight. Before the jump they go on
    under the old kernel; after it they are restored, or the host goes back to its old kernel while that is possible;
    when their RAM is gone, those are started afresh whose policy says so.
  - Safe at any time and any number of times. On a host with nothing in flight it does nothing. While a live update is
    under way it waits for its turn.
  - Runs as the host's own unit C(holdfast-restore.service), so it goes on when the connection is cut.
  - Recovering may make the host jump back to its old kernel. The connection is lost then; the controller's part waits
    until the host answers and looks again.
  - Fails while a VM is left that waits for somebody, with its name and what to do.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  give_up:
    description:
      - Names of VMs to let go of. One that still waits after everything else was tried loses its kept RAM and state for
        good, and may then be started from its disk. Nothing starts it.
      - A VM that does not wait on this host is left alone.
    type: list
    elements: str
    default: []
  timeout_s:
    description: Seconds after which the controller stops waiting. The host goes on by itself.
    type: int
    default: 1800
  connect_timeout_s:
    description: Seconds that one attempt to connect may take while the host is away.
    type: int
    default: 10
attributes:
  check_mode:
    description: Says what is in flight, what would be done about it and which VMs wait, and touches nothing.
    support: full
  diff_mode:
    description: The journal says what was done.
    support: none
  idempotent:
    description: Does nothing on a host with nothing in flight. One whose VMs wait is tried again.
    support: full
  action:
    description: An action plugin of the same name runs on the controller.
    support: full
seealso:
  - module: holdfast.kvm.live_update
  - module: holdfast.kvm.host_info
"""

EXAMPLES = r"""
- name: Finish or take back what is in flight
  holdfast.kvm.recover:

- name: Let db1 start from its disk, without the RAM that was kept for it
  holdfast.kvm.recover:
    give_up: [db1]
"""

RETURN = r"""
standing:
  description: How the host stands, a sentence. In check mode also what would be done.
  type: str
  returned: when the journal can be read
  sample: live update g-20261121T020000-ab12cd fell back to kernel 6.12.107+deb13-amd64
state:
  description: The journal's state. C(none) when nothing was ever in flight.
  type: str
  returned: when the journal can be read
  sample: restored
waiting:
  description: VMs that are not back, with C(name), C(state), C(error) and what to do about each in C(remedy).
  type: list
  elements: dict
  returned: when the journal can be read
  sample: [{name: db1, state: failed, error: "VM db1: QEMU refuses its state", remedy: "mend the cause ..."}]
given_up:
  description: Names in O(give_up) whose RAM was let go of, now or before. In check mode, those that would be.
  type: list
  elements: str
  returned: when the journal can be read
  sample: []
journal:
  description: The journal afterwards, as C(holdfast-agent status --json) prints it.
  type: dict
  returned: when the journal can be read
  sample: {}
"""

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Mapping, Sequence

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    attach,
    command,
    config,
    journal,
    last_words,
    packing,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.attach import Boot
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.journal import (
    HELD,
    OWED,
    STORED,
    TERMINAL,
    UNFINISHED,
    WAITING,
    Journal,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

UNIT = "holdfast-restore.service"
UPDATE_UNIT = "holdfast-live-update.service"
ARGUMENTS: Dict[str, Any] = {
    "give_up": {"type": "list", "elements": "str", "default": []},
    "timeout_s": {"type": "int", "default": 1800},
    "connect_timeout_s": {"type": "int", "default": 10},
}
GIVE_UP_LIMIT_S = 600.0
NOTHING = "no live update is in flight"
KEPT = (
    "its RAM and state are kept: mend the cause and recover again; or give it up (give_up, --give-up), which deletes "
    "them, so that it may start from its disk"
)
LOST = "its RAM is gone: give it up (give_up, --give-up), so that it may start from its disk"
OFF = (
    "it was shut down for the upgrade: recover again, which starts it; or give it up (give_up, --give-up), and start it"
)
STORED_AWAY = (
    "it is saved on disk with its RAM: recover again, which brings it back; or give it up (give_up, --give-up), which "
    "deletes that, so that it may start from its disk"
)
ADRIFT = (
    "recover again; the host's own log says more: journalctl -u holdfast-restore.service; one that has no QEMU "
    "can be given up (give_up, --give-up), so that it may start from its disk"
)
WORDS = {
    "restored": "is done",
    "aborted": "was taken back, its VMs go on under the old kernel",
    "failed": "failed",
}
RESTORING = "its VMs would be restored, or the host goes back to its old kernel while that is possible"
OUTLOOK = {
    Boot.ORDINARY: "its journal would be put to the others",
    Boot.SAME: "its VMs would go on under the kernel that runs",
    Boot.JUMPED: RESTORING,
    Boot.AGAIN: RESTORING,
    Boot.STRANGE: "the host booted without the jump, so RAM is gone: VMs whose policy says so would be started afresh",
}


@dataclass(frozen=True)
class Waiting:
    """One VM that is not back."""

    name: str
    state: str
    error: str
    remedy: str


def waiting_in(current: Journal) -> List[Waiting]:
    """The VMs of the generation in flight that wait for something."""
    return [
        Waiting(vm["name"], vm["state"], vm["error"], remedy(vm["state"]))
        for vm in current.vms
        if vm["state"] in WAITING
    ]


def remedy(state: str) -> str:
    """What a person does about a VM in this state of the journal."""
    if state == "lost":
        return LOST
    if state in STORED:
        return STORED_AWAY
    if state in OWED:
        return OFF
    return KEPT if state in HELD else ADRIFT


def standing(view: Mapping[str, Any]) -> str:
    """One sentence about the newest generation of this host, in flight or not."""
    if view["state"] == "none":
        return NOTHING
    how = WORDS.get(view["state"], f"is {view['state']}")
    if view["state"] == "restored" and view.get("fell_back"):
        how = f"fell back to kernel {view['kernel']['from']}"
    told = f"live update {view['generation']} {how}"
    told += f": {view['reason']}" if view.get("reason") else ""
    for state, words in (("restarted", "started afresh"), ("given_up", "given up")):
        names = [vm["name"] for vm in view["vms"] if vm["state"] == state]
        told += f"; {words}: {', '.join(names)}" if names else ""
    return told


def would_act(boot: Boot, current: Journal) -> bool:
    """Whether recovering would do anything here. What was lost for good waits for a person only."""
    if boot is Boot.ORDINARY:
        return current.is_settled
    if boot is not Boot.STRANGE or current.state not in TERMINAL:
        return True
    return any(vm["state"] in UNFINISHED or (vm["state"] == "lost" and vm.get("may_restart")) for vm in current.vms)


def given_up(names: Sequence[str], vms: Sequence[Mapping[str, Any]], states: Sequence[str]) -> List[str]:
    """Which of ``names`` are in one of ``states``."""
    found = {vm["name"] for vm in vms if vm["state"] in states}
    return [name for name in names if name in found]


def recover_by_unit(timeout_s: float) -> str:
    """Let the host's own unit recover, and wait for it. Returns the agent's words when it failed, else nothing.

    systemd runs it, so a cut connection does not end it; when it runs already, as after a boot, we wait for its end.
    Raises HoldfastError when that does not come in time.
    """
    try:
        command.run(["systemctl", "start", UNIT], timeout_s=timeout_s)
    except CommandFailed as error:
        if under_way():
            found = f"the recovery of this host is still under way after {timeout_s:.0f} s"
            raise HoldfastError(found, "it goes on by itself; recover again to see its end") from error
        return what_it_said() or error.message
    return ""


def under_way() -> bool:
    """Whether the host's own units work on a live update just now."""
    states = command.run(["systemctl", "show", "--value", "--property=ActiveState", UPDATE_UNIT, UNIT])
    # A unit that runs its ExecStopPost is deactivating.
    return bool({"activating", "deactivating"}.intersection(states.split()))


def what_it_said() -> str:
    """The error that the agent printed in the unit's last run; empty when nothing is on record."""
    try:
        run_id = command.run(["systemctl", "show", "--value", "--property=InvocationID", UNIT]).strip()
        command.run(["journalctl", "--sync"])
        told = command.run(["journalctl", "--quiet", "--output=cat", f"_SYSTEMD_INVOCATION_ID={run_id}"])
    except CommandFailed:
        return ""
    return last_words.of(told) if run_id else ""


def let_go(names: Sequence[str]) -> None:
    """Give VMs up. In a session of its own: once begun, it ends also when the connection is cut."""
    command.run(["setsid", "--wait", str(packing.PATH), "give-up", "--", *names], timeout_s=GIVE_UP_LIMIT_S)


def report(view: Mapping[str, Any], waiting: Sequence[Waiting], names: Sequence[str]) -> Dict[str, Any]:
    """What the module returns in every case."""
    return {
        "state": view["state"],
        "standing": standing(view),
        "waiting": [asdict(vm) for vm in waiting],
        "given_up": list(names),
        "journal": dict(view),
    }


def foretell(current: Journal, wanted: Sequence[str]) -> Dict[str, Any]:
    """Check mode: what is in flight, and what would be done about it."""
    boot, names = attach.present_boot(current), given_up(wanted, current.vms, WAITING)
    found = report(current.view, waiting_in(current), names)
    outlook = f"; {OUTLOOK[boot]}" if would_act(boot, current) else ""
    outlook = "; the host is at work on it, that would be waited for" if under_way() else outlook
    outlook += f"; given up unless they come back: {', '.join(names)}" if names else ""
    return {**found, "changed": bool(outlook), "standing": found["standing"] + outlook}


def act(module: AnsibleModule) -> Dict[str, Any]:
    """Recover, then let go of what may be let go of. Raises HoldfastError when the journal cannot be read."""
    known, wanted = config.load(), module.params["give_up"]
    state_dir = known.state_dir
    before = journal.latest(state_dir).view
    current = journal.open_journal(state_dir)
    if current.state == "none":
        if known.pool:
            attach.check_on_record(known, current)
        found = report(before, [], given_up(wanted, before.get("vms", []), ["given_up"]))
        last = "" if before["state"] == "none" else f"; the last {found['standing']}"
        return {**found, "standing": NOTHING + last}
    if module.check_mode:
        return foretell(current, wanted)
    trouble = recover_by_unit(module.params["timeout_s"])
    names = given_up(wanted, journal.open_journal(state_dir).vms, WAITING)
    if names:
        let_go(names)
    return concluded(module, before, trouble)


def concluded(module: AnsibleModule, before: Mapping[str, Any], trouble: str) -> Dict[str, Any]:
    """Look once more. Fails when the agent did, unless giving up settled it, and while a VM waits for somebody."""
    state_dir = config.load().state_dir
    after, current = journal.latest(state_dir).view, journal.open_journal(state_dir)
    waiting = waiting_in(current)
    names = given_up(module.params["give_up"], after["vms"], ["given_up"])
    found = {"changed": after != before, **report(after, waiting, names)}
    unfinished = current.state not in ("none", *TERMINAL)
    if waiting or unfinished or (trouble and not names):
        hint = ". ".join(advice(waiting)) or ADRIFT
        module.fail_json(msg=f"{trouble or found['standing']}. {hint}", hint=hint, **found)
    return found


def advice(waiting: Sequence[Waiting]) -> List[str]:
    """What to do, one sentence for all VMs that need the same."""
    return [
        f"{', '.join(f'VM {vm.name} ({vm.state})' for vm in waiting if vm.remedy == text)}: {text}"
        for text in dict.fromkeys(vm.remedy for vm in waiting)
    ]


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
