# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host: from the network to the versions of what runs there, as far as one can get."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from typing import Any

import paramiko

from ansible_collections.holdfast.kvm.plugins.module_utils import _core as core
from ansible_collections.holdfast.kvm.plugins.module_utils._core import packing
from ansible_collections.holdfast.kvm.plugins.module_utils._core.preflight import OLDEST_LIBVIRT, OLDEST_QEMU

from .findings import Examination, Finding, NoFurther, good, problem, warning
from .login import Answer, ask, host_key, log_in, reached
from .route import Target, known_keys, route_of, target_of

# What the core is written for.
OLDEST_PYTHON = (3, 9)
# More than this confuses whoever compares logs; less than this a look over SSH cannot tell apart from a slow network.
CLOCK_TOLERANCE_S = 2.0
HOSTS_AT_ONCE = 16
ROOT = "0"
PREPARE = "run the prepare playbook on it"


@dataclass(frozen=True)
class Seen:
    """What the probe printed on a host, and between which moments of our clock (seconds since the epoch)."""

    facts: Mapping[str, Any]
    asked_at: float
    answered_at: float


def examine_all(hosts: Mapping[str, Mapping[str, Any]]) -> list[Examination]:
    """Every host by its inventory variables, several at the same time."""
    with ThreadPoolExecutor(max_workers=HOSTS_AT_ONCE) as pool:
        return list(pool.map(examine, hosts, hosts.values()))


def examine(name: str, variables: Mapping[str, Any]) -> Examination:
    """One host. What cannot be looked at ends the look, with the reason as the last finding."""
    findings: list[Finding] = []
    try:
        for finding in _into(target_of(name, variables)):
            findings.append(finding)  # one by one: what was found before the end stays
    except NoFurther as end:
        findings.append(end.finding)
    return Examination(name, tuple(findings))


def _into(target: Target) -> Iterator[Finding]:
    """Step by step: the next one is only tried when the one before let us through."""
    route = route_of(target)
    known = known_keys(route)
    with reached(route, known) as transport:
        yield good("reach", f"{route.address} port {route.port} answers")
        yield host_key(route, known, transport)
        yield log_in(target, route, transport)
        prefix, secret = as_root(target, transport)
        yield good("root", "by login" if not prefix else f"by {target.become_method}")
        yield from judged(_probed(target, transport, prefix, secret))


def as_root(target: Target, transport: paramiko.Transport) -> tuple[str, str]:
    """What comes before a command so that root runs it, and what that reads first. Raises NoFurther."""
    if ask(transport, "id -u").out.strip() == ROOT:
        return "", ""
    if not target.may_become or target.become_method != "sudo":
        way = f"by {target.become_method}, which is not looked at here" if target.may_become else "at all"
        remedy = "use sudo" if target.may_become else "set ansible_become to true"
        raise NoFurther(problem("root", f"this login is not root, and does not become root {way}", remedy))
    prefix, secret = "sudo -n ", ""
    if target.become_password:
        prefix, secret = "sudo -S -p '' ", f"{target.become_password}\n"
    answer = ask(transport, f"{prefix}id -u", secret)
    if answer.out.strip() != ROOT:
        raise NoFurther(
            problem(
                "root",
                f"sudo does not make this login root: {_last_line(answer)}",
                "allow it in /etc/sudoers.d (USER ALL=(ALL) NOPASSWD: ALL), or give ansible_become_password",
            )
        )
    return prefix, secret


def _last_line(answer: Answer) -> str:
    lines = [line.strip() for line in f"{answer.out}\n{answer.err}".splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with {answer.status} and said nothing"


def _probed(target: Target, transport: paramiko.Transport, prefix: str, secret: str) -> Seen:
    program = resources.files(__package__).joinpath("files/probe").read_text(encoding="utf-8")
    asked_at = time.time()
    # Isolated, as the agent runs: neither the environment nor a user's own packages count.
    answer = ask(transport, f"{prefix}{shlex.quote(target.python)} -I -", secret + program)
    answered_at = time.time()
    try:
        return Seen(json.loads(answer.out.strip().splitlines()[-1]), asked_at, answered_at)
    except (ValueError, IndexError) as error:
        raise NoFurther(
            problem(
                "Python",
                f"{target.python} does not run: {_last_line(answer)}",
                "install python3 on the host, or correct ansible_python_interpreter",
            )
        ) from error


def judged(seen: Seen) -> Iterator[Finding]:
    """What the facts of a host mean. Pure, apart from the core's own sources, whose version is compared."""
    facts = seen.facts
    yield _python(tuple(facts["python"]))
    yield good("kernel", str(facts["kernel"]))
    yield from _libvirt(facts["libvirt"])
    yield _qemu(str(facts["qemu"]))
    yield _agent(str(facts["agent"]), expected_agent(bytes.fromhex(facts["magic"])))
    yield _clock(seen)


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _python(version: tuple[int, ...]) -> Finding:
    if version >= OLDEST_PYTHON:
        return good("Python", _text(version))
    remedy = f"install {_text(OLDEST_PYTHON)} or newer, or name it with ansible_python_interpreter"
    return problem("Python", f"{_text(version)} is too old", remedy)


def _libvirt(facts: Mapping[str, Any]) -> Iterator[Finding]:
    if not facts["binding"]:
        remedy = f"install the distribution's python3-libvirt, or {PREPARE}, which does"
        yield warning("libvirt", f"this Python has no libvirt binding: {facts['error']}", remedy)
        return
    yield good("python3-libvirt", "is there")
    if "version" not in facts:
        remedy = "start libvirt's daemon; a host without libvirt is no hypervisor"
        yield problem("libvirt", f"it does not answer: {facts['error']}", remedy)
    elif tuple(facts["version"]) < OLDEST_LIBVIRT:
        yield problem("libvirt", f"{_text(facts['version'])} is too old", f"install {_text(OLDEST_LIBVIRT)} or newer")
    else:
        yield good("libvirt", _text(facts["version"]))


def _qemu(banner: str) -> Finding:
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", banner)
    if not found:
        return problem("QEMU", "no QEMU that could run the VMs", "install qemu-system-x86")
    version = (int(found[1]), int(found[2]), int(found[3]))
    if version < OLDEST_QEMU:
        return problem("QEMU", f"{_text(version)} is too old", f"install {_text(OLDEST_QEMU)} or newer")
    return good("QEMU", _text(version))


def expected_agent(magic: bytes) -> str:
    """The version of the agent that this collection would install for a Python with this byte code."""
    return packing.version_of(packing.core_sources(core), magic)


def _agent(found: str, expected: str) -> Finding:
    if found == expected:
        return good("agent", f"{found}, as this collection has it")
    if not found:
        return warning("agent", "the host was not prepared yet", PREPARE)
    return warning("agent", f"it is {found}, and this collection has {expected}", PREPARE)


def _clock(seen: Seen) -> Finding:
    """The host read its clock somewhere between question and answer: the difference beyond doubt is what counts."""
    behind = seen.asked_at - float(seen.facts["time"])
    ahead = float(seen.facts["time"]) - seen.answered_at
    if max(behind, ahead) <= CLOCK_TOLERANCE_S:
        return good("clock", f"agrees with ours, as far as {seen.answered_at - seen.asked_at:.1f} s of asking can tell")
    way = f"{behind:.0f} s behind" if behind > ahead else f"{ahead:.0f} s ahead of"
    return warning("clock", f"it is {way} ours", "let both follow a time server (systemd-timesyncd, chrony)")
