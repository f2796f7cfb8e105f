# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The core's one door to DAX devices: pieces of soft-reserved RAM, each with a node in /dev that is mapped like RAM.

The kernel (dax_hmem) makes a region of each soft-reserved range on every boot, with nothing in it. A device is made in
it by name of its physical ranges, and is gone with the kernel that made it; what is in the RAM stays. Its page
structures are written when it is made, so that RAM of which nobody makes a device costs nothing.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, Sequence, Tuple

from .command import run
from .errors import HoldfastError
from .regions import range_text
from .resources import Region

REGION_LIMIT_S = 30.0
MODULES = ("dax_hmem", "device_dax")
_BUS = "sys/bus/dax"

Ranges = Tuple[Tuple[int, int], ...]


@dataclass(frozen=True)
class Device:
    """``ranges`` are physical: start and size of each, bytes, in the order in which they are mapped."""

    name: str
    ranges: Ranges
    number: int

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.ranges)


@dataclass(frozen=True)
class DaxBus:
    """What the kernel shows below ``root``."""

    root: Path = Path("/")

    def ready(self, regions: Sequence[Region]) -> None:
        """Load the drivers, and wait for the region of each range.

        Raises HoldfastError when there is none, or the kernel has made something of its RAM by itself.
        """
        run(["modprobe", "-a", *MODULES])
        deadline = time.monotonic() + REGION_LIMIT_S
        for region in regions:
            while region.start not in self._regions():
                if time.monotonic() > deadline:
                    raise HoldfastError(
                        f"the kernel has made no DAX region at {range_text(region)}, though this range is reserved",
                        "see the kernel log for dax_hmem, and /proc/iomem for the range",
                    )
                time.sleep(0.01)
        for name, device in self._all():
            if device and self._driver(name) == "kmem":
                raise HoldfastError(
                    f"the kernel has taken {name}, of the pool, for its own memory (driver kmem)",
                    "run the prepare playbook, which keeps that driver away, and reboot",
                )

    def devices(self) -> Tuple[Device, ...]:
        """Those that have RAM, by name."""
        return tuple(device for _, device in self._all() if device)

    def make(self, region: Region, ranges: Ranges, page_bytes: int) -> Device:
        """A device of just these ranges of a region, open to root alone. One at a time. Raises HoldfastError.

        It is mapped by pages of just this size.
        """
        where = self._regions().get(region.start)
        if where is None:
            raise HoldfastError(f"there is no DAX region at {range_text(region)}", "see the kernel log for dax_hmem")
        before = {name for name, _ in self._all()}
        _write(where / "dax_region/create", "1")
        name = next(name for name, _ in self._all() if name not in before)
        try:
            entry = self.root / _BUS / "devices" / name
            _write(entry / "align", str(page_bytes))
            for start, size in ranges:
                _write(entry / "mapping", f"{start:x}-{start + size - 1:x}")
            # By itself the kernel would have it for kmem.
            _write(self.root / _BUS / "drivers/device_dax/new_id", name)
            made = self._device(name)
            if made is None or made.ranges != ranges or self._driver(name) != "device_dax":
                raise HoldfastError(f"the kernel has not made {name} as it was asked for", "see the kernel log")
        except HoldfastError:
            self.remove(name)
            raise
        return made

    def remove(self, name: str) -> None:
        """Take a device away. Whoever has it mapped is killed by the kernel: see that there is nobody."""
        entry = self.root / _BUS / "devices" / name
        where = entry.resolve().parent
        if self._driver(name):
            _write(self.root / _BUS / "drivers" / self._driver(name) / "unbind", name)
        _write(entry / "size", "0")
        _write(where / "dax_region/delete", name)

    def node(self, name: str) -> Path:
        """Where the device is opened by root."""
        return self.root / "dev" / name

    def _regions(self) -> Dict[int, Path]:
        """The directory of each region by its physical start: a device without RAM, as every region has, shows it."""
        found = {}
        for entry in sorted((self.root / _BUS / "devices").glob("dax*.0")):
            try:
                found[int((entry / "resource").read_text(), 16)] = entry.resolve().parent
            except (OSError, ValueError):
                continue
        return found

    def _all(self) -> Iterator[Tuple[str, Device | None]]:
        for entry in sorted((self.root / _BUS / "devices").glob("dax*")):
            yield entry.name, self._device(entry.name)

    def _device(self, name: str) -> Device | None:
        """None for one without RAM, or one that has gone meanwhile."""
        entry = self.root / _BUS / "devices" / name
        pieces = sorted(entry.glob("mapping[0-9]*"), key=lambda path: int(path.name[len("mapping") :]))
        try:
            major, minor = (entry / "dev").read_text().split(":")
            ranges = tuple(_range(path) for path in pieces)
        except (OSError, ValueError):
            return None
        return Device(name, ranges, os.makedev(int(major), int(minor))) if ranges else None

    def _driver(self, name: str) -> str:
        try:
            return os.path.basename(os.readlink(self.root / _BUS / "devices" / name / "driver"))
        except OSError:
            return ""


def _range(mapping: Path) -> Tuple[int, int]:
    start, last = (int((mapping / name).read_text(), 16) for name in ("start", "end"))
    return start, last - start + 1


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as exc:
        raise HoldfastError(f"{path}: {text} is refused: {exc.strerror}", "see the kernel log") from exc
