#!/usr/bin/python
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thin: the lock is in campaign; who asks for it, and who is dead, is for the action plugin to say."""

from __future__ import annotations

DOCUMENTATION = r"""
module: campaign_lock
short_description: Hold a host for one campaign, against every other
version_added: 0.1.0
description:
  - The lock is a file on the host, so it holds across controllers, and through the jump into another kernel.
  - A campaign is one run of ansible-playbook. The lock of a run that was killed on this controller is taken over; that
    of another controller is not, since nobody here can tell whether it lives. The playbook C(recover.yml) breaks it.
  - On a host that was never prepared nothing is written, for nothing can be upgraded there.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  state:
    description:
      - V(taken) holds the host, and fails while another campaign does, or when somebody wants ours to stop. V(released)
        ends our own hold, and V(broken) anybody's but that of a campaign that lives on this controller. V(stopping)
        asks whoever holds the host to begin no further one.
    type: str
    choices: [taken, released, broken, stopping]
    default: taken
  holder:
    description: Who asks, with C(id), C(controller) and C(user). The action plugin fills it in.
    type: dict
    default: {}
  over:
    description: Ids of holders that are known to be dead. The action plugin fills it in.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Holds nothing, and is stopped by nobody's hold.
    support: full
  diff_mode:
    description: A lock has no content to compare.
    support: none
  idempotent:
    description: A host that is held already, or not at all, stays as it is.
    support: full
  action:
    description: An action plugin of the same name runs on the controller.
    support: full
seealso:
  - module: holdfast.kvm.live_update
"""

EXAMPLES = r"""
- name: Keep other campaigns away
  holdfast.kvm.campaign_lock:

- name: Let other campaigns begin
  holdfast.kvm.campaign_lock:
    state: released
"""

RETURN = r"""
holder:
  description: Who holds the host, or did until now; empty for nobody. With C(id), C(controller), C(user), C(since), and
    C(stop), who wants that campaign to stop.
  type: dict
  returned: always
  sample: {}
spared:
  description: Whether a hold was not broken, because its campaign lives on this controller.
  type: bool
  returned: when V(broken) leaves it
  sample: true
stop_asked:
  description: Whether somebody wants our campaign to stop; the host is held all the same, until it is released.
  type: bool
  returned: failure
  sample: true
lock_held:
  description: Whether another campaign holds the host; nothing was touched then.
  type: bool
  returned: failure
  sample: true
"""

import time
from dataclasses import asdict
from typing import Any, Dict, Mapping, Optional, Sequence

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils._core import campaign, config
from ansible_collections.holdfast.kvm.plugins.module_utils._core.campaign import Holder
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, Refused
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

ARGUMENTS: Dict[str, Any] = {
    "state": {"type": "str", "choices": ["taken", "released", "broken", "stopping"], "default": "taken"},
    "holder": {"type": "dict", "default": {}},
    "over": {"type": "list", "elements": "str", "default": []},
}


def act(module: AnsibleModule) -> Dict[str, Any]:
    """Take or end the hold. Fails with ``lock_held`` when another campaign has the host. Raises HoldfastError.

    Refused, when the state directory cannot be written: nothing has begun.
    """
    known, asked = config.load(), module.params["holder"]
    before = campaign.holder(known.state_dir)
    if module.check_mode or known.pool is None:
        return {"holder": described(before)}
    if module.params["state"] == "stopping":
        asks = f"{asked.get('user') or 'somebody'} on {asked.get('controller') or 'an unknown controller'}"
        told = campaign.ask_to_stop(known.state_dir, asks)
        return {"changed": told != before, "holder": described(told)}
    if module.params["state"] == "broken" and may_live_beside(before, asked, module.params["over"]):
        return {"spared": True, "holder": described(before)}
    if module.params["state"] != "taken":
        ours = "" if module.params["state"] == "broken" else str(asked.get("id") or "nobody")
        ended = campaign.release(known.state_dir, ours)
        return {"changed": ended is not None, "holder": described(ended)}
    words = {key: str(asked.get(key) or "") for key in ("id", "controller", "user")}
    try:
        other = campaign.take(known.state_dir, Holder(**words, since=time.time()), module.params["over"])
    except HoldfastError as exc:
        raise Refused(exc.message, exc.hint) from exc
    if other:
        module.fail_json(msg=refusal(other), lock_held=True, refused=False, holder=described(other))
    now = campaign.holder(known.state_dir)
    if now and now.stop:
        module.fail_json(
            msg=f"{now.stop} asked this campaign to stop, so no further host is begun. Run it again to go on: hosts "
            "that are done are skipped",
            stop_asked=True,
            holder=described(now),
        )
    return {"changed": now != before, "holder": described(now)}


def may_live_beside(found: Optional[Holder], asking: Mapping[str, Any], dead: Sequence[str]) -> bool:
    """Whether a campaign runs where ``asking`` does, as far as nobody there has said yet that it is dead."""
    here = Holder(str(asking.get("id") or "")).place
    return bool(found and found.place and found.place == here and found.id not in dead)


def refusal(other: Holder) -> str:
    """Who holds the host, and what to do."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(other.since)) if other.since else "an unknown time"
    by = f"{other.user} on {other.controller}" if other.user else other.controller
    return (
        f"another campaign holds this host, begun by {by} at {since}. Let it end. If its controller died, run "
        "'holdfast recover' (playbooks/recover.yml), which ends its hold, then upgrade again"
    )


def described(holder: Optional[Holder]) -> Dict[str, Any]:
    return asdict(holder) if holder else {}


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
