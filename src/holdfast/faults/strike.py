# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One fault on a lab host: arm it, ask for a live update, wait until the host is done, act as the operator would."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from importlib import resources
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError

from ..lab.guests.definitions import GUESTS
from ..lab.hosts import Host, emulator_failed, on_host, wait_until_usable
from .catalogue import MAY_RESTART, Ending, Fault

PROGRAMS = "/usr/local/lib/holdfast-faults"
PLAN = "/var/lib/holdfast-faults/plan.json"
UNITS = "holdfast-live-update.service holdfast-pool.service holdfast-restore.service"
LIMIT_S = 900.0
LOOK_S = 1.0
# What a host says of itself; the journal last, because it is the longest.
LOOK = f"""\
systemctl show --property=ActiveState --value {UNITS} | xargs
test -e /var/lib/holdfast/request.json && echo asked || echo idle
holdfast-agent status --json 2>/dev/null || echo '{{"state": "unreadable"}}'
"""


def ask(host: Host, script: str, timeout_s: float = LIMIT_S) -> str:
    """Run a script on a host that may be on its way down or up just now."""
    wait_until_usable(host, LIMIT_S)
    return on_host(host, script, timeout_s=timeout_s)


def install(host: Host) -> None:
    """Put the saboteur on a prepared host."""
    files = resources.files(__package__) / "files"
    script = f"mkdir -p {PROGRAMS} /var/lib/holdfast-faults\n"
    for name in ("saboteur", "begin-live-update"):
        script += f"cat >{PROGRAMS}/{name} <<'END_OF_FILE'\n{(files / name).read_text()}END_OF_FILE\n"
    unit = "/etc/systemd/system/holdfast-saboteur.service"
    script += f"cat >{unit} <<'END_OF_FILE'\n{(files / 'holdfast-saboteur.service').read_text()}END_OF_FILE\n"
    ask(host, f"{script}chmod 755 {PROGRAMS}/*\nsystemctl daemon-reload\nsystemctl enable -q holdfast-saboteur\n")


def arm(host: Host, fault: Fault, at: float | None = None) -> None:
    """Do the deed now, or have it done at its event (or ``at`` seconds from now)."""
    if not fault.event and at is None:
        ask(host, fault.deed)
        return
    moment = {"event": fault.event} if at is None else {"in": at}
    text = shlex.quote(json.dumps({**moment, "deed": fault.deed}))
    ask(host, f"echo {text} >{PLAN}\nsystemctl restart holdfast-saboteur\n")


def disarm(host: Host) -> None:
    """Forget a plan that was never carried out."""
    ask(host, f"systemctl stop holdfast-saboteur; rm -f {PLAN} {PLAN}.done")


def begin(host: Host, fault: Fault) -> str:
    """Ask for a live update as the module would; returns its generation."""
    wish = {
        "priority": {guest.name: guest.priority for guest in GUESTS},
        "may_restart": list(MAY_RESTART),
        "unknown": list(fault.unknown),
        "limits": dict(fault.limits),
    }
    return ask(host, f"echo {shlex.quote(json.dumps(wish))} | {PROGRAMS}/begin-live-update").strip()


def wait(host: Host, generation: str) -> dict[str, Any]:
    """Wait until nothing on the host works on this live update any more; returns the journal. Raises HoldfastError."""
    deadline = time.monotonic() + LIMIT_S
    quiet = 0
    while time.monotonic() < deadline:
        if emulator_failed(host) or not host.alive:
            raise HoldfastError(f"{host.name} broke down")
        with contextlib.suppress(CommandFailed, ValueError):
            units, asked, text = on_host(host, LOOK, timeout_s=30).split("\n", 2)
            journal: dict[str, Any] = json.loads(text)
            # Twice: between two units there may be a moment in which none is at work.
            quiet = 0 if _works(units.split(), asked, journal, generation) else quiet + 1
            if quiet >= 2:
                return journal
        time.sleep(LOOK_S)
    raise HoldfastError(f"{host.name} did not come to an end within {LIMIT_S:.0f} s")


def _works(units: list[str], asked: str, journal: dict[str, Any], generation: str) -> bool:
    update, pool, restore = units
    if update not in ("inactive", "failed") or restore in ("activating", "deactivating") or pool == "activating":
        return True
    between = ("staged", "suspending", "suspended", "jumping", "falling_back", "arrived", "attached", "restoring")
    if journal["state"] in between:
        return restore != "failed" and pool != "failed"
    # The host has not begun yet, or it is back up and its restore has not been started yet.
    return (
        journal.get("generation") != generation
        and journal["state"] != "unreadable"
        and asked == "asked"
        and (update != "failed")
    )


def operate(host: Host, fault: Fault) -> None:
    """What an operator does who has read the report: mend the cause, recover, give up what cannot be saved."""
    if fault.mend:
        ask(host, f"{fault.mend}\nholdfast-agent recover\n")
    for name in fault.given_up:
        ask(host, f"holdfast-agent give-up {name}\nvirsh -q start {name}\n")


def ending(journal: dict[str, Any], generation: str) -> Ending:
    """How the live update ended, by its journal."""
    if journal.get("generation") != generation:
        return Ending.REFUSED
    if journal["state"] == "restored":
        return Ending.FELL_BACK if journal.get("fell_back") else Ending.UPGRADED
    return Ending.ABORTED if journal["state"] == "aborted" else Ending.FAILED
