# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controllers of the fault matrix: real upgrades of a lab host, some of which are killed in the middle."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError

from ..command import begin, step
from ..lab.debian import SUITE
from ..lab.hosts import Host
from . import strike
from .catalogue import DONE, EARLY, Controllers, Ending, Fault

# In the environment of a controller, and so of everything that it starts, in whatever session.
TOKEN_VARIABLE = "HOLDFAST_FAULTS_CONTROLLER"
# A whole upgrade: 5 minutes on a quiet machine, 26 were seen on one that was three times as slow with a lab beside it.
ENDS_WITHIN_S = 3600.0
KILL_LIMIT_S = 10.0
LOOK_S = 0.1
OTHER_RELEASE = "ls /boot/vmlinuz-* | sed 's/.*vmlinuz-//' | grep -vx \"$(uname -r)\" | tail -1 || true"
ANOTHER_KERNEL = f"""\
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
apt-get install -q -y -t {SUITE}-backports linux-image-amd64 >/dev/null
"""


@dataclass(frozen=True)
class Said:
    """How a controller ended: its exit code, and what its report says of the host (empty without one)."""

    status: int
    result: str = ""


@dataclass(frozen=True)
class Controller:
    """A ``holdfast`` at work. ``folder`` holds its log and its report, ``sockets`` those of its SSH connections."""

    process: subprocess.Popen[bytes]
    token: str
    folder: Path
    sockets: Path

    @property
    def works(self) -> bool:
        return self.process.poll() is None


@dataclass(frozen=True)
class Story:
    """What happened to a live update that controllers asked for. ``trouble``: what is wrong with their words on it."""

    generation: str
    journal: dict[str, Any]
    trouble: tuple[str, ...]


def play(host: Host, fault: Fault, asked: Controllers) -> Story:
    """Let controllers upgrade the host, do to them what the fault does, and then have it all done once more.

    Raises HoldfastError.
    """
    before = strike.newest_generation(host)
    words = _upgrade(other_release(host))
    if fault.phase in EARLY:
        return _play_early(host, fault, words, asked, before)
    word = f"strike-{secrets.token_hex(6)}"
    strike.arm(host, fault, word=word)
    controllers = [start(host, words) for _ in range(asked.count)]
    try:
        if fault.event:
            strike.wait_for_word(host, word, lambda: any(one.works for one in controllers))
        if asked.killed:
            kill(controllers[0])
        generation = strike.wait_for_generation(
            host, before, lambda: asked.killed or any(one.works for one in controllers)
        )
        journal = strike.wait(host, generation)
        said = [ended(one) for one in controllers]
    finally:
        # An SSH connection that is kept for the next command outlives its controller.
        for one in controllers:
            kill(one)
    strike.disarm(host)
    found = strike.ending(journal, generation)
    trouble = complaints(asked, found, said, *_once_more(host, words, controllers[0], asked))
    if (newest := strike.newest_generation(host)) != generation:
        trouble.append(f"there was another live update, {newest}")
    return Story(generation, journal, tuple(trouble))


def _play_early(host: Host, fault: Fault, words: Sequence[str], asked: Controllers, before: str) -> Story:
    """Something happens to a controller before it has asked for the live update; another one goes on from there.

    Raises HoldfastError.
    """
    first = start(host, words)
    try:
        wait_for_phase(first, fault.phase)
        if not asked.killed:
            strike.ask(host, f"systemd-run -q --no-block /bin/sh -c {shlex.quote(fault.deed)}")
            ended(first)
    finally:
        kill(first)
    said = Said(first.process.returncode, _result(first.folder / "report.json"))
    newest = strike.newest_generation(host)
    second = to_the_end(host, ["recover", "--resume"] if asked.killed else words)
    generation = strike.wait_for_generation(host, before, lambda: False)
    journal = strike.wait(host, generation)
    found = strike.ending(journal, generation)
    trouble = complaints(asked, found, [said], second, to_the_end(host, words))
    if asked.killed and newest != before:
        trouble.append(f"live update {newest} began before it was asked for")
    return Story(generation, journal, tuple(trouble))


def _once_more(host: Host, words: Sequence[str], first: Controller, asked: Controllers) -> tuple[Said, Said]:
    """Recover, and the same upgrade again: by itself, or as what recover goes on with where the controller died."""
    if not asked.killed:
        return to_the_end(host, ["recover"]), to_the_end(host, words)
    recovered = to_the_end(host, ["recover", "--resume"])
    return recovered, Said(recovered.status, _result(first.folder / "report.json"))


def complaints(asked: Controllers, found: Ending, said: Sequence[Said], second: Said, again: Said) -> list[str]:
    """What is wrong with what the controllers say of a live update that ended as ``found``. Pure.

    ``second``: whoever went on afterwards; ``again``: the same upgrade, when all is done.
    """
    exits = tuple(sorted(one.status for one in said))
    trouble = [] if exits in asked.exits else [f"the controllers ended with {exits}"]
    trouble += [
        f"a controller is content and reports {one.result or 'nothing'}, but it {found.value}"
        for one in said
        if one.status == DONE and one.result != found.value
    ]
    if second.status != DONE:
        trouble.append(f"the controller that went on ended with {second.status}")
    if again != Said(DONE, "skipped"):
        trouble.append(f"the same upgrade again ended with {again.status} and reports {again.result or 'nothing'}")
    return trouble


def other_release(host: Host) -> str:
    """A kernel that is installed on the host and does not run; installs the newer one where there is only one."""
    found = strike.ask(host, OTHER_RELEASE).strip()
    if not found:
        with step(f"{host.name}: a second kernel is installed"):
            strike.ask(host, ANOTHER_KERNEL, timeout_s=1800)
        found = strike.ask(host, OTHER_RELEASE).strip()
    return found


def _upgrade(release: str) -> list[str]:
    return ["upgrade", "-e", json.dumps({"stage_packages": [], "stage_kernel": release})]


def start(host: Host, words: Sequence[str]) -> Controller:
    """Begin ``holdfast WORDS`` for the lab of this host."""
    lab = Path(host.folder).parent
    token = secrets.token_hex(8)
    folder = lab / "controllers" / f"{time.strftime('%H%M%S')}-{words[0]}-{token[:4]}"
    folder.mkdir(parents=True)
    # Short, for a socket's name has a limit; and its own, so that no controller uses another one's connection.
    sockets = Path(tempfile.mkdtemp(prefix="hf-"))
    report = ["--report-dir", str(folder)] if words[0] == "upgrade" else []
    program = [str(Path(sys.executable).parent / "holdfast"), *words, "--json", *report]
    process = begin(
        [*program, "-i", str(lab / "inventory/hosts.yml")],
        folder / "log",
        {
            TOKEN_VARIABLE: token,
            "XDG_STATE_HOME": str(lab / "controllers" / "state"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(sockets),
        },
    )
    return Controller(process, token, folder, sockets)


def kill(controller: Controller) -> None:
    """End it and everything that it started, at once and without a word. Nothing happens when nothing is left."""
    deadline = time.monotonic() + KILL_LIMIT_S
    while pids := started_by(controller.token):
        for pid in pids:
            _kill_one(pid)
        if time.monotonic() > deadline:
            raise HoldfastError(f"processes {pids} of a controller cannot be killed")
        time.sleep(0.05)
    controller.process.wait(KILL_LIMIT_S)
    shutil.rmtree(controller.sockets, ignore_errors=True)


def wait_for_phase(controller: Controller, phase: str) -> None:
    """Wait until the controller says that it begins this phase. Raises HoldfastError when it does not."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while phase not in phases((controller.folder / "log").read_text(errors="replace")):
        if not controller.works or time.monotonic() > deadline:
            raise HoldfastError(f"a controller did not begin {phase}", f"see {controller.folder}")
        time.sleep(LOOK_S)


def phases(log: str) -> list[str]:
    """The phases that have begun by a controller's JSON lines; the last one may be half written. Pure."""
    found = [json.loads(line) for line in log.splitlines() if line.startswith("{") and line.endswith("}")]
    return [str(one["text"]) for one in found if one.get("kind") == "phase"]


def _kill_one(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def started_by(token: str) -> list[int]:
    """Pids of all processes that have the token in their environment. One that ended has none any more."""
    wanted = f"{TOKEN_VARIABLE}={token}".encode()
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if wanted in _environment(path)]


def _environment(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\0")
    except OSError:
        return []


def ended(controller: Controller) -> Said:
    """Wait for its end. Raises CommandFailed when it does not come."""
    try:
        status = controller.process.wait(ENDS_WITHIN_S)
    except subprocess.TimeoutExpired as exc:
        raise CommandFailed(f"a controller works on after {ENDS_WITHIN_S:.0f} s", f"see {controller.folder}") from exc
    return Said(status, _result(controller.folder / "report.json"))


def to_the_end(host: Host, words: Sequence[str]) -> Said:
    """Run ``holdfast WORDS`` to its end."""
    controller = start(host, words)
    try:
        return ended(controller)
    finally:
        kill(controller)


def _result(report: Path) -> str:
    """What a report says of its only host."""
    try:
        return str(json.loads(report.read_text())["hosts"][0]["result"])
    except (OSError, ValueError, LookupError):
        return ""
