# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How Ansible would reach each host: what the inventory says, and what SSH's own configuration makes of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, CommandFailed

from ..command import run
from ..upgrade import Wish, installed_tool
from .findings import NoFurther, problem

SSH_CONNECTIONS = ("ssh", "ansible.builtin.ssh", "smart", "ansible.legacy.ssh")
# Where the agent and libvirt's hook find theirs.
PYTHON = "/usr/bin/python3"
TEMPLATES = ("{{", "{%")
USED = (
    "ansible_connection",
    "ansible_host",
    "ansible_port",
    "ansible_user",
    "ansible_password",
    "ansible_ssh_private_key_file",
    "ansible_ssh_common_args",
    "ansible_ssh_extra_args",
    "ansible_python_interpreter",
    "ansible_become",
    "ansible_become_method",
    "ansible_become_password",
)
# Older and longer names of the same.
ALIASES = {
    "ansible_ssh_host": "ansible_host",
    "ansible_ssh_port": "ansible_port",
    "ansible_ssh_user": "ansible_user",
    "ansible_ssh_pass": "ansible_password",
    "ansible_ssh_password": "ansible_password",
    "ansible_private_key_file": "ansible_ssh_private_key_file",
    "ansible_become_pass": "ansible_become_password",
}


@dataclass(frozen=True)
class Target:
    """One host as the inventory has it. Empty texts are what the inventory leaves to others."""

    name: str
    address: str
    port: str = ""
    user: str = ""
    password: str = ""
    key_file: str = ""
    ssh_arguments: tuple[str, ...] = ()
    python: str = PYTHON
    may_become: bool = True
    become_method: str = "sudo"
    become_password: str = ""


@dataclass(frozen=True)
class Route:
    """Where SSH goes in the end, by ``ssh -G``. ``known_as`` is the name under which the host's key is on record."""

    address: str
    port: int
    user: str
    known_as: str
    known_hosts: tuple[Path, ...]
    identities: tuple[Path, ...]
    only_identities: bool
    asks_for_unknown_keys: bool
    proxy: str = ""


def inventory_variables(wish: Wish, environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Variables of every host. Raises BadInput when Ansible cannot use the inventory."""
    extra = [word for value in wish.extra_vars for word in ("--extra-vars", value)]
    words = [str(installed_tool("ansible-inventory")), "-i", str(wish.inventory.absolute()), "--list", *extra]
    try:
        listed = json.loads(run(words, env=environment, timeout_s=120))
    except (CommandFailed, ValueError) as error:
        raise BadInput(
            f"Ansible cannot read inventory {wish.inventory}: {error}", "correct what its message names"
        ) from error
    return dict(listed["_meta"]["hostvars"])


def target_of(name: str, variables: Mapping[str, Any]) -> Target:
    """A host's way in. Raises NoFurther for one that is not reached by SSH, or cannot be known beforehand."""
    known = _known(variables)
    _check_connection(str(known.get("ansible_connection", "ssh")))
    python = str(known.get("ansible_python_interpreter") or "auto")
    arguments = [str(known.get(key) or "") for key in ("ansible_ssh_common_args", "ansible_ssh_extra_args")]
    return Target(
        name=name,
        address=str(known.get("ansible_host") or name),
        port=str(known.get("ansible_port") or ""),
        user=str(known.get("ansible_user") or ""),
        password=str(known.get("ansible_password") or ""),
        key_file=str(known.get("ansible_ssh_private_key_file") or ""),
        ssh_arguments=_split(" ".join(arguments)),
        python=PYTHON if python.startswith("auto") else python,
        may_become=str(known.get("ansible_become", True)).lower() not in ("false", "no", "0"),
        become_method=str(known.get("ansible_become_method") or "sudo").removeprefix("ansible.builtin."),
        become_password=str(known.get("ansible_become_password") or ""),
    )


def _split(arguments: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(arguments))
    except ValueError as error:
        found = f"the arguments for ssh cannot be understood: {error}"
        raise NoFurther(problem("inventory", found, "correct ansible_ssh_common_args")) from error


def _known(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables that are used here, by one name each. Raises NoFurther for a template."""
    by_name = {ALIASES.get(key, key): _plain(value) for key, value in variables.items()}
    known = {key: by_name[key] for key in USED if by_name.get(key) is not None}
    templates = [key for key, value in known.items() if any(mark in str(value) for mark in TEMPLATES)]
    if templates:
        raise NoFurther(
            problem(
                "inventory",
                f"{', '.join(templates)} of this host is a template, which only a playbook resolves",
                "name the value itself for this look: -e 'NAME=VALUE' with --limit, or ask 'ansible -m ping'",
            )
        )
    return known


def _plain(value: Any) -> Any:
    """Texts from plugins come wrapped; what is in a vault stays there."""
    if isinstance(value, Mapping):
        return value.get("__ansible_unsafe")
    return value


def _check_connection(connection: str) -> None:
    if connection in SSH_CONNECTIONS:
        return
    if connection in ("local", "ansible.builtin.local"):
        raise NoFurther(
            problem(
                "connection",
                "ansible_connection is local: the host would jump away under the controller that upgrades it",
                "run holdfast on another machine, and reach this host by ssh",
            )
        )
    raise NoFurther(
        problem(
            "connection",
            f"ansible_connection is {connection}: only ssh is looked at here",
            "reach it by ssh (leave ansible_connection out)",
        )
    )


def route_of(target: Target) -> Route:
    """What ssh makes of it, with the person's and the system's configuration. Raises NoFurther."""
    options = [("-p", target.port), ("-l", target.user), ("-i", target.key_file)]
    given = [word for option, value in options if value for word in (option, value)]
    words = ["ssh", "-G", *target.ssh_arguments, *given, "--", target.address]
    try:
        printed = run(words, timeout_s=30, hint="install openssh-client")
    except CommandFailed as error:
        message = " ".join(error.message.split())
        raise NoFurther(
            problem("ssh", message, "correct ansible_ssh_common_args, or the configuration of ssh")
        ) from error
    return parsed_route(printed, chosen_key=target.key_file)


def parsed_route(printed: str, chosen_key: str = "") -> Route:
    """From the lines of ``ssh -G``: a word, then its value."""
    found: dict[str, list[str]] = {}
    for line in printed.splitlines():
        word, _, value = line.partition(" ")
        found.setdefault(word, []).append(value)

    def one(word: str) -> str:
        value = found.get(word, [""])[0]
        return "" if value == "none" else value

    address, port = one("hostname"), int(one("port") or 22)
    identities = [chosen_key] if chosen_key else found.get("identityfile", [])
    files = " ".join([one("userknownhostsfile"), one("globalknownhostsfile")]).split()
    return Route(
        address=address,
        port=port,
        user=one("user"),
        known_as=one("hostkeyalias") or (address if port == 22 else f"[{address}]:{port}"),
        known_hosts=tuple(path for path in map(_expanded, files) if path.is_file()),
        identities=tuple(path for path in map(_expanded, identities) if path.is_file()),
        only_identities=one("identitiesonly") == "yes",
        asks_for_unknown_keys=one("stricthostkeychecking") not in ("false", "no", "off", "accept-new"),
        proxy=_proxy(one("proxycommand"), one("proxyjump")),
    )


def _expanded(name: str) -> Path:
    return Path(name).expanduser()


def _proxy(command: str, jump: str) -> str:
    """The command that stands for the network, %h and %p resolved by ssh -G in neither of them."""
    if jump:
        *before, last = jump.split(",")
        host, _, port = last.rpartition(":") if ":" in last else (last, "", "")
        words = ["ssh", "-W", "%h:%p", *(["-J", ",".join(before)] if before else []), *(["-p", port] if port else [])]
        return shlex.join([*words, host])
    return command


def proxy_command(route: Route) -> str:
    return route.proxy.replace("%h", route.address).replace("%p", str(route.port)).replace("%r", route.user)


@dataclass(frozen=True)
class KnownKey:
    """One key on record. ``marker`` is ``@revoked``, ``@cert-authority`` or empty; ``text`` is base64."""

    kind: str
    text: str
    marker: str = ""


def known_keys(route: Route) -> tuple[KnownKey, ...]:
    """What the known_hosts files say of the host. ssh-keygen reads hashed names and patterns as ssh does."""
    found: list[KnownKey] = []
    for path in route.known_hosts:
        try:
            found += parsed_known(run(["ssh-keygen", "-F", route.known_as, "-f", path], timeout_s=30))
        except CommandFailed:  # its way of saying that there is none
            continue
    return tuple(found)


def parsed_known(printed: str) -> Sequence[KnownKey]:
    """Lines of a known_hosts file, as ssh-keygen prints them."""
    keys = []
    for line in printed.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        if len(words) >= 3:
            keys.append(KnownKey(words[1], words[2], marker))
    return keys
