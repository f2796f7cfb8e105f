# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Into a host with paramiko, step by step, so that each that fails can say why: reach, host key, login, commands."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import paramiko

from .findings import Finding, NoFurther, good, problem, warning
from .route import KnownKey, Route, Target, proxy_command

# Its thread tells of every failure with a traceback, on stderr where nobody listens; ours say it in one sentence.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

CONNECT_LIMIT_S = 10.0
COMMAND_LIMIT_S = 60.0
# A server lets nobody try more than six keys (MaxAuthTries).
KEYS_TO_TRY = 5
# A key of a kind signs in several ways; a server is asked for those.
SIGNATURES = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


@dataclass(frozen=True)
class Answer:
    """What a command on a host printed, and its exit status (-1: none came)."""

    status: int
    out: str
    err: str


@contextmanager
def reached(route: Route, known: Sequence[KnownKey]) -> Iterator[paramiko.Transport]:
    """An encrypted connection to whoever answers there. Raises NoFurther."""
    with _transport(route, _socket(route)) as transport:
        options = transport.get_security_options()
        options.key_types = _known_first(options.key_types, [key.kind for key in known])
        try:
            transport.start_client(timeout=CONNECT_LIMIT_S)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise NoFurther(
                problem(
                    "reach",
                    f"what answers at {_place(route)} does not speak SSH with us: {error or 'it hung up'}",
                    f"is it sshd? 'ssh -v -p {route.port} {route.address}' tells more",
                )
            ) from error
        yield transport


@contextmanager
def _transport(route: Route, link: socket.socket | paramiko.ProxyCommand) -> Iterator[paramiko.Transport]:
    transport = paramiko.Transport(link)
    transport.banner_timeout = CONNECT_LIMIT_S
    transport.auth_timeout = CONNECT_LIMIT_S
    try:
        yield transport
    finally:
        with suppress(Exception):
            transport.close()


def _socket(route: Route) -> socket.socket | paramiko.ProxyCommand:
    if route.proxy:
        return paramiko.ProxyCommand(proxy_command(route))
    try:
        return socket.create_connection((route.address, route.port), timeout=CONNECT_LIMIT_S)
    except socket.gaierror as error:
        found, remedy = f"the name {route.address} is not known: {error.strerror}", "correct ansible_host, or the DNS"
    except ConnectionRefusedError:
        found, remedy = f"nothing listens at {_place(route)}", "start sshd there, or correct ansible_port"
    except TimeoutError:
        found = f"no answer from {_place(route)} within {CONNECT_LIMIT_S:.0f} s"
        remedy = "is the host up, and does a firewall let us through? Or correct ansible_host"
    except OSError as error:
        found, remedy = f"{_place(route)} cannot be reached: {error.strerror}", "see to the route and the address"
    raise NoFurther(problem("reach", found, remedy))


def _place(route: Route) -> str:
    return f"{route.address} port {route.port}" + (" by a proxy" if route.proxy else "")


def _known_first(offered: Sequence[str], kinds: Sequence[str]) -> tuple[str, ...]:
    """As ssh does: ask for the kinds of key that are on record, so that they can be compared."""
    wanted = [name for kind in kinds for name in SIGNATURES.get(kind, (kind,)) if name in offered]
    return tuple(dict.fromkeys([*wanted, *offered]))


def host_key(route: Route, known: Sequence[KnownKey], transport: paramiko.Transport) -> Finding:
    """Whether the host is who it was. Raises NoFurther when Ansible would not go on either."""
    key = transport.get_remote_server_key()
    return judged_key(route, known, key.get_name(), key.get_base64(), str(key.fingerprint))


def judged_key(route: Route, known: Sequence[KnownKey], kind: str, text: str, fingerprint: str) -> Finding:
    """What the known_hosts files make of a key, ``text`` in base64. Raises NoFurther."""
    same = [key for key in known if (key.kind, key.text) == (kind, text)]
    if any(key.marker == "@revoked" for key in same):
        raise NoFurther(
            problem(
                "host key", f"the host's key {fingerprint} is revoked", "give the host a new key; trust nothing on it"
            )
        )
    if any(not key.marker for key in same):
        return good("host key", f"{fingerprint} is on record as {route.known_as}")
    if any(key.kind == kind and not key.marker for key in known):
        raise NoFurther(_another_key(route, fingerprint))
    return _unknown_key(route, known, fingerprint)


def _another_key(route: Route, fingerprint: str) -> Finding:
    files = ", ".join(map(str, route.known_hosts))
    return problem(
        "host key",
        f"the host shows {fingerprint}, and another key is on record as {route.known_as}: it was installed anew, or "
        "this is another machine",
        "compare it on the host's console (ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub); if it is right, remove the "
        f"old one: ssh-keygen -R '{route.known_as}', from {files}",
    )


def _unknown_key(route: Route, known: Sequence[KnownKey], fingerprint: str) -> Finding:
    authority = any(key.marker == "@cert-authority" for key in known)
    found = f"the host's key {fingerprint} is not on record as {route.known_as}"
    if authority:
        found += "; an authority is, whose signature is not checked here"
    if not route.asks_for_unknown_keys:
        return warning("host key", found + ", and ssh is told to take any", "put it on record, and let ssh check keys")
    raise NoFurther(
        problem(
            "host key",
            found,
            "compare it on the host's console, then: "
            f"ssh-keyscan -p {route.port} {route.address} >> ~/.ssh/known_hosts",
        )
    )


def log_in(target: Target, route: Route, transport: paramiko.Transport) -> Finding:
    """Log in as Ansible would. Raises NoFurther."""
    tried: list[str] = []
    for name, key in _keys(route, tried):
        with suppress(paramiko.SSHException, EOFError):
            if not transport.auth_publickey(route.user, key):
                return good("login", f"as {route.user} with {name}")
        tried.append(name)
        if not transport.is_active() or len(tried) >= KEYS_TO_TRY:
            break
    if target.password and transport.is_active():
        with suppress(paramiko.SSHException, EOFError):
            if not transport.auth_password(route.user, target.password):
                return good("login", f"as {route.user} with the inventory's password")
        tried.append("the inventory's password")
    raise NoFurther(_refused(route, tried))


def _refused(route: Route, tried: Sequence[str]) -> Finding:
    by = ", ".join(tried) if tried else "no key was there to try"
    return problem(
        "login",
        f"{route.user} is not let in: {by}",
        f"let the host know your key: ssh-copy-id -p {route.port} {route.user}@{route.address}; or correct "
        "ansible_user or ansible_ssh_private_key_file",
    )


def _keys(route: Route, tried: list[str]) -> Iterator[tuple[str, paramiko.PKey]]:
    """The agent's keys first, as ssh does, unless it is told otherwise; then files. Unusable files are noted."""
    if not route.only_identities:
        with suppress(paramiko.SSHException):
            yield from ((f"the agent's key {key.fingerprint}", key) for key in paramiko.Agent().get_keys())
    for path in route.identities:
        try:
            yield str(path), paramiko.PKey.from_path(path)
        except (paramiko.PasswordRequiredException, TypeError):  # TypeError: what the library below says of it
            yield from _held_by_agent(route, path, tried)
        except Exception as error:  # a kind of key that paramiko has no hands for raises what it likes
            tried.append(f"{path} cannot be used here ({error})")


def _held_by_agent(route: Route, path: Path, tried: list[str]) -> Iterator[tuple[str, paramiko.PKey]]:
    """A key with a passphrase is of use when the agent has it. Without IdentitiesOnly it was tried already."""
    public = path.with_name(path.name + ".pub")
    words = public.read_text().split() if public.is_file() else []
    held = [key for key in paramiko.Agent().get_keys() if key.get_base64() in words[1:2]]
    if held and route.only_identities:
        yield str(path), held[0]
    elif not held:
        tried.append(f"{path} has a passphrase and is not in the agent (ssh-add {path})")


def ask(transport: paramiko.Transport, command: str, stdin: str = "") -> Answer:
    """Run a command to its end. Raises NoFurther when the connection breaks."""
    try:
        channel = transport.open_session(timeout=CONNECT_LIMIT_S)
        channel.settimeout(COMMAND_LIMIT_S)
        channel.exec_command(command)
        channel.sendall(stdin.encode())
        channel.shutdown_write()
        out = channel.makefile("rb").read().decode(errors="replace")
        err = channel.makefile_stderr("rb").read().decode(errors="replace")
        channel.status_event.wait(COMMAND_LIMIT_S)
        return Answer(channel.exit_status, out, err)
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise NoFurther(
            problem(
                "commands",
                f"the connection broke while a command ran: {error or 'no answer in time'}",
                "look at sshd's log on the host: journalctl -u ssh",
            )
        ) from error
