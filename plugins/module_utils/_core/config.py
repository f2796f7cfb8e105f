# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's configuration on a host, written once by ``prepare``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from .errors import HoldfastError
from .resources import RAM_KIND, SOFT_KIND, Region

FSDAX, DEVDAX = "fsdax", "devdax"
# Pages that a pool of kind devdax is made of, and mapped by.
SMALL_PAGE_BYTES, LARGE_PAGE_BYTES = 2 << 20, 1 << 30
CONFIG = Path("/etc/holdfast/agent.json")
RUN_DIR = Path("/run/holdfast")
# Where Debian's prometheus-node-exporter looks for text files.
METRICS_DIR = Path("/var/lib/prometheus/node-exporter")


@dataclass(frozen=True)
class PoolConfig:
    """Where VM RAM lives: kind of pool, its mount point, its physical ranges in the order in which they are joined.

    In a pool of kind ``devdax`` soft-reserved ranges hold RAM, in pages of ``page_bytes``, and the others, as in one of
    kind ``fsdax``, the vault.
    """

    kind: str
    mount_point: Path
    regions: Tuple[Region, ...]
    page_bytes: int = SMALL_PAGE_BYTES

    @property
    def vault(self) -> Path:
        """Directory in the pool that belongs to the agent: suspended VMs, and whose they are."""
        return self.mount_point / "holdfast"

    @property
    def backing_dir(self) -> Path:
        """Where libvirt has the RAM files of its VMs, in directories of its own (memory_backing_dir)."""
        return self.mount_point / "dax" if self.kind == DEVDAX else self.mount_point


@dataclass(frozen=True)
class Config:
    """``state_dir`` holds the journal; it is on a disk, the pool is not. ``pool`` is None before ``prepare``.

    ``metrics_dir`` gets the metrics, if it is there; None for no metrics at all.
    """

    pool: Optional[PoolConfig] = None
    state_dir: Path = Path("/var/lib/holdfast")
    metrics_dir: Optional[Path] = METRICS_DIR

    @property
    def required_pool(self) -> PoolConfig:
        """The pool's configuration. Raises HoldfastError on a host that was never prepared."""
        if self.pool is None:
            raise HoldfastError("this host has no pool: no RAM is reserved for VMs", "run the prepare playbook on it")
        return self.pool


def load(path: Path = CONFIG) -> Config:
    """Read the configuration; one without a pool on a host that was never prepared.

    Raises HoldfastError when the file is damaged.
    """
    try:
        raw = json.loads(path.read_text())
        pool = raw["pool"]
        regions = tuple(_region(one) for one in pool["regions"])
        return Config(
            PoolConfig(pool["kind"], Path(pool["mount_point"]), regions, int(pool.get("page_bytes", SMALL_PAGE_BYTES))),
            Path(raw.get("state_dir", "/var/lib/holdfast")),
            directory_or_none(raw.get("metrics_dir", str(METRICS_DIR))),
        )
    except FileNotFoundError:
        return Config()
    except (KeyError, TypeError, ValueError) as exc:
        raise HoldfastError(f"{path} cannot be understood: {exc!r}", "run the prepare playbook again") from exc


def directory_or_none(text: str) -> Optional[Path]:
    """A directory as a person names it; empty for none."""
    return Path(text) if text else None


def text_of(config: Config) -> str:
    """What ``load`` reads: the same bytes for the same configuration."""
    pool = config.pool
    raw = {
        "version": 1,
        "state_dir": str(config.state_dir),
        "metrics_dir": str(config.metrics_dir or ""),
        "pool": pool
        and {
            "kind": pool.kind,
            "mount_point": str(pool.mount_point),
            **({"page_bytes": pool.page_bytes} if pool.kind == DEVDAX else {}),
            "regions": [_plain(one) for one in pool.regions],
        },
    }
    return json.dumps(raw, indent=2) + "\n"


def _region(raw: Dict[str, Any]) -> Region:
    kind = SOFT_KIND if raw.get("soft") else RAM_KIND
    return Region(int(raw["start"]), int(raw["size"]), kind, int(raw.get("node", 0)))


def _plain(region: Region) -> Dict[str, Any]:
    soft = {"soft": True} if region.kind == SOFT_KIND else {}
    return {"start": region.start, "size": region.size, "node": region.node, **soft}
