# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Live migration of one VM to another host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_migrate
short_description: Move a running VM to another host
version_added: 0.1.0
description:
  - Moves one VM from the host that the module runs on to another one while it runs, by libvirt's peer-to-peer
    migration, over TLS unless that is switched off by name.
  - Disks that only this host has are copied, if that is allowed, into images that are made at the destination first.
  - The moment to stop the VM for the last part is chosen. While the pause to be expected becomes shorter, the migration
    goes on; when it does not any more, the VM is stopped at the next good moment, if O(longest_pause_s) allows that.
    Otherwise the migration ends, and the VM stays.
  - From one host there is one migration at a time. Who has waited for another one looks at the VM, its disks and both
    hosts again. Nothing is begun unless the VM is here, and the destination says that it has none of it.
  - Afterwards both hosts are asked where the VM is. A migration that fails, is cancelled (C(virsh domjobabort), or a
    signal to the module), or takes longer than O(deadline_s) leaves the VM running here.
  - This host remembers VMs that it sent away, in C(away.json) in its state directory. See M(holdfast.kvm.evacuated).
  - The controller's part watches the migration, says how far it is, and appends that as JSON lines to the file that the
    environment variable E(HOLDFAST_PROGRESS_FILE) names.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  name:
    description: Name of the VM.
    type: str
    required: true
  destination:
    description: The other host, as the inventory calls it.
    type: str
    required: true
  home:
    description: This host, as the inventory calls it; the VM carries it as a mark of where it came from.
    type: str
    default: ""
  address:
    description: The destination as this host reaches it, a name or an address. The destination's name when empty.
    type: str
    default: ""
  uri:
    description: The destination's libvirt. C({address}) in it is replaced.
    type: str
    default: qemu+tls://{address}/system
  journey:
    description:
      - C(away) remembers the VM as one that is to come home, and leaves the images that were copied here.
      - C(for_good) does not, and removes them here once the VM runs at the destination.
      - C(home) brings it back. Its stale images there are replaced, and the copies on this host are removed.
      - But for C(home), an image that the destination has already is not written over.
    type: str
    choices: [away, for_good, home]
    default: away
  encryption:
    description: C(none) sends the VM's memory and disks over the network as they are.
    type: str
    choices: [tls, none]
    default: tls
  copy_storage:
    description: Whether disks that only this host has may be copied.
    type: bool
    default: false
  shared_paths:
    description: Directories that are the same on both hosts. Mounted network file systems are found.
    type: list
    elements: str
    default: []
  base_paths:
    description:
      - Directories whose images are equal on both hosts, such as templates. Of a disk that stands on one of them, only
        its own image is copied.
    type: list
    elements: str
    default: []
  longest_pause_s:
    description: Seconds that the VM may stand still.
    type: float
    default: 2.0
  wanted_pause_s:
    description: Seconds that it should stand still; tried first.
    type: float
    default: 0.3
  stall_s:
    description: Seconds without improvement after which a longer pause is allowed.
    type: float
    default: 20.0
  postcopy:
    description:
      - C(if_hopeless) lets a VM that writes faster than it can be sent run at the destination before all of its memory
        is there. Until that is over, it is lost if either host or the network between them fails for good.
    type: str
    choices: [never, if_hopeless]
    default: never
  bandwidth_mib_s:
    description: MiB/s that the migration may take, 0 without limit.
    type: int
    default: 0
  connections:
    description: Connections at the same time (multifd), where QEMU of both hosts has it. 1 for a single stream.
    type: int
    default: 4
  deadline_s:
    description: Seconds after which the migration ends, and the VM stays. Not while a post-copy migration is under way.
    type: float
    default: 1800.0
  tries:
    description: How often it is tried. What was cancelled, is hopeless or took too long is not tried again.
    type: int
    default: 2
attributes:
  check_mode:
    description: Asks both hosts, says what would be copied, and moves nothing.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: Does nothing when the VM runs at the destination already, or does so after another migration of it.
    support: full
  action:
    description: An action plugin of the same name runs on the controller.
    support: full
seealso:
  - module: holdfast.kvm.evacuated
  - module: holdfast.kvm.tls
"""

EXAMPLES = r"""
- name: Move a database away
  holdfast.kvm.vm_migrate:
    name: db1
    home: "{{ inventory_hostname }}"
    destination: hv2
    longest_pause_s: 1

- name: With its disk, which stands on a template
  holdfast.kvm.vm_migrate:
    name: web1
    destination: hv2
    copy_storage: true
    base_paths: [/var/lib/libvirt/images/templates]
"""

RETURN = r"""
whereabouts:
  description:
    - Where the VM is, by the word of both hosts. C(source), C(destination), or what is wrong (C(both), C(nowhere),
      C(unproven)).
  type: str
  returned: always
  sample: destination
moved:
  description: Whether it was moved just now.
  type: bool
  returned: always
  sample: true
pause_s:
  description: Seconds that it stood still, as QEMU measured; null when nobody knows.
  type: float
  returned: always
  sample: 0.21
seconds:
  description: How long it took.
  type: float
  returned: when it was tried
  sample: 14.2
tries:
  description: How often it was tried.
  type: int
  returned: when it was tried
  sample: 1
ram_bytes:
  description: Size of the VM's memory.
  type: int
  returned: when it was tried
  sample: 402653184
disk_bytes:
  description: Size of the disks that were copied.
  type: int
  returned: when it was tried
  sample: 0
copied:
  description: Images that were copied, or would be.
  type: list
  elements: str
  returned: success
  sample: [/var/lib/libvirt/images/web1.qcow2]
encrypted:
  description: Whether TLS was used.
  type: bool
  returned: when it was tried
  sample: true
postcopy:
  description: Whether it ended as a post-copy migration.
  type: bool
  returned: when it was tried
  sample: false
remarks:
  description: What did not stand in the way, and is worth knowing.
  type: list
  elements: str
  returned: when it was tried
  sample: []
uuid:
  description: The VM's uuid.
  type: str
  returned: success
  sample: 6d0b...
refused:
  description: Whether it was refused before anything was done.
  type: bool
  returned: failure
  sample: true
"""

import signal
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils._core import collect, config, evacuation
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, HoldfastError, Refused
from ansible_collections.holdfast.kvm.plugins.module_utils._core.evacuation import Journey, Move, Outcome, Storage, Way
from ansible_collections.holdfast.kvm.plugins.module_utils._core.hypervisor import Domain, Hypervisor, connect, reach
from ansible_collections.holdfast.kvm.plugins.module_utils._core.migration import (
    Encryption,
    PostCopy,
    Whereabouts,
    Wish,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.switchover import Bounds
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

ARGUMENTS: Dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "destination": {"type": "str", "required": True},
    "home": {"type": "str", "default": ""},
    "address": {"type": "str", "default": ""},
    "uri": {"type": "str", "default": "qemu+tls://{address}/system"},
    "journey": {"type": "str", "choices": [one.value for one in Way], "default": Way.AWAY.value},
    "encryption": {"type": "str", "choices": [one.value for one in Encryption], "default": Encryption.TLS.value},
    "copy_storage": {"type": "bool", "default": False},
    "shared_paths": {"type": "list", "elements": "str", "default": []},
    "base_paths": {"type": "list", "elements": "str", "default": []},
    "longest_pause_s": {"type": "float", "default": 2.0},
    "wanted_pause_s": {"type": "float", "default": 0.3},
    "stall_s": {"type": "float", "default": 20.0},
    "postcopy": {"type": "str", "choices": [one.value for one in PostCopy], "default": PostCopy.NEVER.value},
    "bandwidth_mib_s": {"type": "int", "default": 0},
    "connections": {"type": "int", "default": 4},
    "deadline_s": {"type": "float", "default": 1800.0},
    "tries": {"type": "int", "default": 2},
}


def read_wish(params: Dict[str, Any]) -> Wish:
    """The caller's options. Raises BadInput for a number that cannot be."""
    wrong = [name for name in ("longest_pause_s", "stall_s", "deadline_s", "tries", "connections") if params[name] <= 0]
    if wrong or params["bandwidth_mib_s"] < 0:
        raise BadInput(
            f"{', '.join(wrong) or 'bandwidth_mib_s'} is no number above 0", "see the module's documentation"
        )
    address = params["address"] or params["destination"]
    longest = params["longest_pause_s"]
    return Wish(
        vm=params["name"],
        uri=params["uri"].replace("{address}", address),
        address=address,
        bounds=Bounds(min(params["wanted_pause_s"], longest), longest, params["stall_s"]),
        encryption=Encryption(params["encryption"]),
        postcopy=PostCopy(params["postcopy"]),
        bandwidth_mib_s=params["bandwidth_mib_s"],
        connections=params["connections"],
        deadline_s=params["deadline_s"],
        tries=params["tries"],
    )


def read_storage(params: Dict[str, Any]) -> Storage:
    """What is known about disks: the operator's word, and network file systems that are mounted here."""
    mounted = collect.shared_mounts((collect.ROOT / "proc/self/mountinfo").read_text())
    shared = (*params["shared_paths"], *(mount.path for mount in mounted))
    return Storage(shared, tuple(params["base_paths"]), params["copy_storage"])


def act(module: AnsibleModule) -> Dict[str, Any]:
    """Move the VM, unless it is a check or there already. Raises HoldfastError when it is nowhere."""
    wish = read_wish(module.params)
    with connect() as here:
        vm = evacuation.find(here, wish.vm)
        if vm is None:
            with reach(wish.uri) as there:
                return already_there(there, wish)
        try:
            with reach(wish.uri) as there:
                return moved(module, here, there, vm, wish)
        except HoldfastError as error:
            place = Whereabouts.SOURCE if evacuation.stays(here, vm) else Whereabouts.UNPROVEN
            refused = isinstance(error, (BadInput, Refused))
            module.fail_json(msg=str(error), hint=error.hint, refused=refused, uuid=vm.uuid, **_described(place))
            raise AssertionError("fail_json does not return") from error


def moved(module: AnsibleModule, here: Hypervisor, there: Hypervisor, vm: Domain, wish: Wish) -> Dict[str, Any]:
    """Move a VM that is here. Raises HoldfastError for what was found before it began."""
    params = module.params
    move = Move(here, there, vm, wish, read_storage(params))
    if module.check_mode:
        copied = [image.path for image in move.copy.images]
        return {**_described(Whereabouts.SOURCE), "changed": True, "uuid": vm.uuid, "copied": copied}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: move.cancel.set())
    journey = Journey(params["home"], params["destination"], Way(params["journey"]))
    return concluded(module, vm, evacuation.attempted(move, journey, config.load().state_dir), journey)


def already_there(there: Hypervisor, wish: Wish) -> Dict[str, Any]:
    """It is not here. Raises HoldfastError when it is not there either."""
    arrived = evacuation.find(there, wish.vm)
    if arrived is None:
        raise HoldfastError(
            f"VM {wish.vm} runs neither here nor at {wish.address}",
            "only a VM that runs is moved; look where it is (virsh list --all)",
        )
    return _no_change(arrived, wish.address)


def concluded(module: AnsibleModule, vm: Domain, outcome: Outcome, journey: Journey) -> Dict[str, Any]:
    """The module's result; a failure when the VM is not at the destination."""
    if outcome.whereabouts is Whereabouts.DESTINATION and not outcome.moved:
        # Another migration brought it there, while this one waited for that to end.
        return _no_change(vm, journey.to)
    shown = {**evacuation.told(outcome), **_described(outcome.whereabouts), "uuid": vm.uuid, "moved": outcome.moved}
    shown["pause_s"] = outcome.pause_s
    for remark in outcome.remarks:
        module.warn(f"VM {vm.name}: {remark}")
    if not outcome.moved:
        module.fail_json(msg=sentence(vm.name, outcome, journey), changed=False, refused=False, **shown)
    return {"changed": True, "msg": sentence(vm.name, outcome, journey), **shown}


def sentence(name: str, outcome: Outcome, journey: Journey) -> str:
    """How it ended, for a person."""
    if outcome.moved:
        stood = "" if outcome.pause_s is None else f", where it stood still for {outcome.pause_s:.2f} s"
        return f"VM {name} runs at {journey.to} after {outcome.seconds:.0f} s{stood}"
    if outcome.whereabouts is Whereabouts.SOURCE:
        return f"VM {name} was not moved to {journey.to} and runs on where it was: {outcome.error}"
    return (
        f"VM {name} is {outcome.whereabouts.value} after its migration to {journey.to}: {outcome.error}. Look at it on "
        "both hosts (virsh list --all) before anything else is done to it"
    )


def _no_change(vm: Domain, place: str) -> Dict[str, Any]:
    told = {"changed": False, "uuid": vm.uuid, "copied": [], "msg": f"VM {vm.name} is at {place} already"}
    return {**_described(Whereabouts.DESTINATION), **told}


def _described(place: Whereabouts) -> Dict[str, Any]:
    return {"whereabouts": place.name.lower(), "moved": False, "pause_s": None}


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
