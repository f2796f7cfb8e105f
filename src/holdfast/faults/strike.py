# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One fault on a lab host: arm it, ask for a live update, wait until the host is done, act as the operator would."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError

from ..lab.guests.definitions import GUESTS
from ..lab.hosts import Host, emulator_failed, on_host, wait_until_usable
from .catalogue import CABLE_MENDED, JOURNAL, KILL_AGENT, MAY_RESTART, Ending, Fault, Moment

PROGRAMS = "/usr/local/lib/holdfast-faults"
PLAN = "/var/lib/holdfast-faults/plan.json"
UNITS = "holdfast-live-update.service holdfast-pool.service holdfast-restore.service"
# A live update: 3 minutes on a quiet machine, 11 on a slow one with a lab beside it.
LIMIT_S = 1800.0
LOOK_S = 1.0
LOOK_LIMIT_S = 100.0
WORD_S = 0.1
# What a host says of itself; the journal last, because it is the longest. While one of the units works (it has a cgroup
# then) the host waits before it says so: a connection costs an emulated CPU two seconds, for which its VMs would wait.
WORKS = " || ".join(f"test -e /sys/fs/cgroup/system.slice/{unit}" for unit in UNITS.split())
LOOK = f"""\
for second in $(seq 60); do {{ {WORKS}; }} && test -e {JOURNAL} || break; sleep 1; done
systemctl show --property=ActiveState --value {UNITS} | xargs
test -e /var/lib/holdfast/request.json && echo asked || echo idle
holdfast-agent status --json 2>/dev/null || echo '{{"state": "unreadable"}}'
"""


@dataclass(frozen=True)
class Standing:
    """``in_flight``: whether a journal is open; ``qemus``: how many each guest has."""

    in_flight: bool
    qemus: tuple[int, ...]


def standing(host: Host) -> Standing:
    """How the host stands, when nothing works on it."""
    counts = "".join(f"pgrep -c -f 'guest={guest.name},' || true\n" for guest in GUESTS)
    journal, *qemus = ask(host, f"test -e {JOURNAL} && echo open || echo none\n{counts}").split()
    return Standing(journal == "open", tuple(map(int, qemus)))


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


def arm(host: Host, fault: Fault, moment: Moment | None = None, word: str = "") -> None:
    """Do the deed now, or have it done at its event, or at the ``moment``.

    ``word`` is said on the serial console at that moment, for ``wait_for_word``.
    """
    if not fault.event and moment is None:
        ask(host, fault.deed)
        return
    when = {"event": fault.event} if moment is None else asdict(moment)
    # Who is to be killed at an event must not get away from it.
    hold = bool(fault.event) and fault.deed == KILL_AGENT
    text = shlex.quote(json.dumps({**when, "deed": fault.deed, "word": word, "hold": hold}))
    # Not by echo, which takes backslashes for its own.
    ask(host, f"rm -f {PLAN}.done\nprintf '%s\\n' {text} >{PLAN}\nsystemctl restart holdfast-saboteur\n")


def done(host: Host) -> dict[str, Any]:
    """What the saboteur has put on record of its deed; empty when it has done nothing."""
    found: dict[str, Any] = json.loads(ask(host, f"cat {PLAN}.done 2>/dev/null || echo '{{}}'"))
    return found


def unproven(fault: Fault, found: Mapping[str, Any]) -> list[str]:
    """Why a fault of an event did not happen, or not as it was meant; ``found``: what ``done`` returned. Pure."""
    if not fault.event:
        return []
    if not found:
        return [f"it never happened: there was no event '{fault.event}'"]
    if fault.deed == KILL_AGENT and not found["agents"]:
        return ["it never happened: there was no agent to kill"]
    # A deed that ends the kernel has none, nor one that goes on still.
    status = found.get("status", 0)
    return [f"the deed itself failed, with {status}"] if status else []


def killed(found: Mapping[str, Any]) -> bool:
    """Whether an agent was there and is known to have been killed; ``found``: what ``done`` returned. Pure.

    Between the look and the blow it may have come to its end, or the kernel to its own.
    """
    return bool(found.get("agents")) and found.get("status") == 0


def disarm(host: Host) -> str:
    """Forget a plan that was never carried out, or is being carried out still. Returns the kernel's command line."""
    return ask(host, f"systemctl stop holdfast-saboteur; rm -f {PLAN} {PLAN}.done; {CABLE_MENDED}; cat /proc/cmdline")


def wait_for_word(host: Host, word: str, worth_it: Callable[[], bool]) -> None:
    """Wait until the saboteur says that it strikes; the console tells it while SSH cannot. Raises HoldfastError.

    ``worth_it``: whether the moment may still come.
    """
    deadline = time.monotonic() + LIMIT_S
    while word not in host.console.read_text(errors="replace"):
        if emulator_failed(host) or not host.alive:
            raise HoldfastError(f"{host.name} broke down")
        if time.monotonic() > deadline or not worth_it():
            raise HoldfastError(f"the moment to strike did not come on {host.name}", "see the logs of the controllers")
        time.sleep(WORD_S)


def begin(host: Host, fault: Fault | None = None, kernel: str = "") -> str:
    """Ask for a live update as the module would, the way a fault wants it; returns its generation.

    ``kernel``: the release to jump to, else the one that runs.
    """
    wish = {
        "kernel": kernel,
        "priority": {guest.name: guest.priority for guest in GUESTS},
        "may_restart": list(MAY_RESTART),
        "unknown": list(fault.unknown if fault else ()),
        "cold": list(fault.cold if fault else ()),
        "limits": dict(fault.limits if fault else {}),
    }
    text = shlex.quote(json.dumps(wish))
    return ask(host, f"printf '%s\\n' {text} | {PROGRAMS}/begin-live-update").strip()


def newest_generation(host: Host) -> str:
    """Of the newest journal on a host that answers; empty when there is none."""
    return str(json.loads(ask(host, "holdfast-agent status --json")).get("generation", ""))


def wait_for_generation(host: Host, before: str, worth_it: Callable[[], bool]) -> str:
    """Wait until another live update than ``before`` has begun; returns its generation. Raises HoldfastError."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and not emulator_failed(host):
        last_look = not worth_it()
        with contextlib.suppress(CommandFailed, ValueError):
            found = json.loads(on_host(host, "holdfast-agent status --json", timeout_s=30)).get("generation", "")
            if found not in ("", before):
                return str(found)
            if last_look:
                break
        time.sleep(LOOK_S)
    raise HoldfastError(f"no live update of {host.name} began", "see the logs of the controllers")


def wait(host: Host, generation: str) -> dict[str, Any]:
    """Wait until nothing on the host works on this live update any more; returns the journal. Raises HoldfastError."""
    deadline = time.monotonic() + LIMIT_S
    quiet = 0
    while time.monotonic() < deadline:
        if emulator_failed(host) or not host.alive:
            raise HoldfastError(f"{host.name} broke down")
        with contextlib.suppress(CommandFailed, ValueError):
            units, asked, text = on_host(host, LOOK, timeout_s=LOOK_LIMIT_S).split("\n", 2)
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
        and "failed" not in (update, pool)
    )


def leave_crash_kernel(host: Host, cmdline: str) -> list[str]:
    """By an ordinary live update, where the host runs in its crash kernel. Returns what went wrong."""
    if "elfcorehdr=" not in cmdline:
        return []
    generation = begin(host)
    found = ending(wait(host, generation), generation)
    if found is not Ending.UPGRADED or "elfcorehdr=" in ask(host, "cat /proc/cmdline"):
        return [f"the way out of the crash kernel ended as {found.value}"]
    return []


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
