# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs that were moved away from this host and are to come home, as the host remembers them.

On the host, and not only on the controller: whoever brings them home may be another one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Tuple

from . import durable
from .errors import HoldfastError

NAME = "away.json"


@dataclass(frozen=True)
class Away:
    """One VM. ``to``: the host it went to, as the inventory calls it; ``at``: when (ISO 8601).

    ``images``: its images that stayed behind and are stale, since they were copied.
    """

    uuid: str
    name: str
    to: str
    at: str
    images: Tuple[str, ...] = ()


def read(state_dir: Path) -> Tuple[Away, ...]:
    """Every VM that is away, by name. Raises HoldfastError when the record is damaged."""
    path = state_dir / NAME
    try:
        entries = json.loads(path.read_text())
        found = (Away(**{**entry, "images": tuple(entry.get("images", ()))}) for entry in entries)
        return tuple(sorted(found, key=lambda one: one.name))
    except FileNotFoundError:
        return ()
    except (AttributeError, TypeError, ValueError) as exc:
        hint = "look which VMs of this host run elsewhere, bring them home by hand, and remove the file"
        raise HoldfastError(f"{path} cannot be understood: {exc!r}", hint) from exc


def known_names(state_dir: Path) -> Tuple[str, ...]:
    """Names and uuids of the VMs that are away: a rule of the policy may well name one of them."""
    return tuple(word for one in read(state_dir) for word in (one.name, one.uuid))


def note(state_dir: Path, one: Away) -> None:
    """Remember a VM that is about to leave."""
    _write(state_dir, (*_others(state_dir, one.uuid), one))


def forget(state_dir: Path, uuid: str) -> None:
    """It is here, or does not come home."""
    if any(one.uuid == uuid for one in read(state_dir)):
        _write(state_dir, _others(state_dir, uuid))


def _others(state_dir: Path, uuid: str) -> Tuple[Away, ...]:
    return tuple(one for one in read(state_dir) if one.uuid != uuid)


def _write(state_dir: Path, entries: Tuple[Away, ...]) -> None:
    durable.write_text(state_dir / NAME, json.dumps([asdict(one) for one in entries], indent=1))
