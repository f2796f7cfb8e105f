# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates for live migration, as a host keeps them: libvirt's, and those of its QEMUs.

They come from two authorities. libvirt lets in whoever shows a certificate of its authority, as root; a QEMU has to be
able to read its own key, and one that was taken over must not get into the libvirt of other hosts with it.

What was written is on record with its checksum, so that only our own files are ever replaced or removed.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Sequence, Tuple

from . import command, durable
from .errors import BadInput, CommandFailed, HoldfastError

ROOT = Path("/")
RECORD = "etc/holdfast/certificates.json"
BEGIN, END = "# BEGIN holdfast", "# END holdfast"
# An expired certificate must make migrations fail, and not libvirt's daemon at its start, after a jump for example.
DAEMON_SETTING = f"{BEGIN}\ntls_no_sanity_certificate = 1\n{END}\n"
TRIES = 5
READABLE, GROUP_ONLY, ROOT_ONLY = 0o644, 0o640, 0o600


@dataclass(frozen=True)
class Bundle:
    """What one party of a host has, as PEM texts: its authority's certificate, its own, and the key to that."""

    authority: str
    certificate: str
    key: str


@dataclass(frozen=True)
class Place:
    """Where each part is read by the one it is for. Server and client are the same host, so they have the same."""

    authority: str
    certificates: Tuple[str, ...]
    keys: Tuple[str, ...]
    key_mode: int

    @property
    def paths(self) -> Tuple[str, ...]:
        return (self.authority, *self.certificates, *self.keys)


# Where libvirt looks (libvirt.org, "TLS x509"), and where QEMU's AppArmor profile lets it look.
PLACES: Dict[str, Place] = {
    "libvirt": Place(
        "etc/pki/CA/cacert.pem",
        ("etc/pki/libvirt/servercert.pem", "etc/pki/libvirt/clientcert.pem"),
        ("etc/pki/libvirt/private/serverkey.pem", "etc/pki/libvirt/private/clientkey.pem"),
        ROOT_ONLY,
    ),
    "qemu": Place(
        "etc/pki/qemu/ca-cert.pem",
        ("etc/pki/qemu/server-cert.pem", "etc/pki/qemu/client-cert.pem"),
        ("etc/pki/qemu/server-key.pem", "etc/pki/qemu/client-key.pem"),
        GROUP_ONLY,
    ),
}


def present(root: Path = ROOT) -> Dict[str, Dict[str, str]]:
    """Per party its ``authority`` and ``certificate`` as they are; both empty unless all its files are as written.

    Raises HoldfastError for files that somebody else wrote.
    """
    known = _record(root)
    _refuse_foreign(root, known)
    return {
        party: {"authority": _text(root / place.authority), "certificate": _text(root / place.certificates[0])}
        if all(_as_written(root, known, path) for path in place.paths)
        else {"authority": "", "certificate": ""}
        for party, place in PLACES.items()
    }


def install(bundles: Mapping[str, Bundle], qemu_group: str, root: Path = ROOT) -> None:
    """Write certificates and keys. Raises HoldfastError, BadInput for a group that the host does not have."""
    known = _record(root)
    _refuse_foreign(root, known)
    for party, bundle in bundles.items():
        for path, text, mode in _files(PLACES[party], bundle):
            # On record first: a file that is half written is then still known as ours.
            known[path] = _sum(text)
            durable.write_text(root / RECORD, json.dumps(known, indent=1))
            _write(root / path, text, mode, qemu_group)


def remove(root: Path = ROOT) -> List[str]:
    """Delete what we wrote, and nothing that somebody changed since; returns the paths that were deleted."""
    known = _record(root)
    ours = [path for path in known if _as_written(root, known, path)]
    for path in ours:
        (root / path).unlink()
    (root / RECORD).unlink(missing_ok=True)
    return ours


def listen(socket: str, service: str) -> None:
    """Let libvirt's daemon listen for TLS, from now on and after each boot, with the certificates that are there.

    The daemon is started anew, which stops no VM. Raises CommandFailed.
    """
    command.run(["systemctl", "enable", "-q", socket])
    # systemd opens no socket for a daemon that runs already. Somebody's call may start it again in between.
    for _ in range(TRIES):
        command.run(["systemctl", "stop", service], timeout_s=120)
        with suppress(CommandFailed):
            command.run(["systemctl", "start", socket], timeout_s=120)
            break
    command.run(["systemctl", "start", socket, service], timeout_s=120)


def deafen(socket: str, service: str) -> None:
    """The daemon listens for TLS no more. Raises CommandFailed."""
    command.run(["systemctl", "disable", "-q", "--now", socket], timeout_s=120)
    command.run(["systemctl", "restart", service], timeout_s=120)


def listens(socket: str) -> bool:
    """Whether libvirt's daemon listens for TLS, now and after each boot."""
    shown = command.run(["systemctl", "show", "--property=ActiveState,UnitFileState", socket])
    return "ActiveState=active" in shown and "UnitFileState=enabled" in shown


def with_setting(text: str) -> str:
    """The daemon's configuration with our lines at its end."""
    rest = without_setting(text)
    return f"{rest}{'' if not rest or rest.endswith(chr(10)) else chr(10)}{DAEMON_SETTING}"


def without_setting(text: str) -> str:
    """The daemon's configuration as it was."""
    return text.replace(DAEMON_SETTING, "")


def _files(place: Place, bundle: Bundle) -> Iterator[Tuple[str, str, int]]:
    """Keys first: a certificate without its key is noticed, the other way round both would look well."""
    yield from ((path, bundle.key, place.key_mode) for path in place.keys)
    yield from ((path, bundle.certificate, READABLE) for path in place.certificates)
    yield place.authority, bundle.authority, READABLE


def _write(path: Path, text: str, mode: int, qemu_group: str) -> None:
    for directory in reversed(_missing(path.parent)):
        directory.mkdir(mode=0o700 if directory.name == "private" else 0o755)
    durable.write_text(path, text, ROOT_ONLY if mode == GROUP_ONLY else mode)
    if mode == GROUP_ONLY:
        os.chown(path, 0, _group(qemu_group))
        path.chmod(mode)


def _missing(directory: Path) -> Sequence[Path]:
    return [place for place in (directory, *directory.parents) if not place.exists()]


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as exc:
        raise BadInput(f"this host has no group {name}", "name the group that QEMU runs with") from exc


def _refuse_foreign(root: Path, known: Mapping[str, str]) -> None:
    paths = [path for place in PLACES.values() for path in place.paths]
    foreign = [f"/{path}" for path in paths if path not in known and (root / path).exists()]
    if foreign:
        raise HoldfastError(
            f"somebody else's certificates are in place: {', '.join(foreign)}",
            "to use them for migrations: prepare_tls=existing; to have them made: move them away",
        )


def _as_written(root: Path, known: Mapping[str, str], path: str) -> bool:
    return (root / path).exists() and known.get(path) == _sum(_text(root / path))


def _record(root: Path) -> Dict[str, str]:
    try:
        return dict(json.loads((root / RECORD).read_text()))
    except FileNotFoundError:
        return {}
    except (TypeError, ValueError) as exc:
        raise HoldfastError(f"/{RECORD} cannot be understood: {exc!r}", "remove it, and the files in /etc/pki") from exc


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
