# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The block device of reserved RAM: each region's own, found by where it lies; several regions joined to one.

The kernel (nd_e820) makes one device of each region, and names them in the order in which it meets them. Device
mapper's linear target joins them: it passes DAX through, and the same table gives the same device in every kernel.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Optional, Sequence, Tuple

from .command import run
from .errors import HoldfastError
from .regions import GIB, range_text
from .resources import Region

# In this order: devices that come when their driver is there are attached at the same time, those that were there
# before it one after the other (driver_attach).
DRIVERS = ("nd_pmem", "nd_e820")
JOINING_DRIVER = "dm_mod"
JOINED = "holdfast"
# For what there is anyway, and for the pages that the kernel describes: a crash kernel has one CPU for all of them.
DEVICE_TIMEOUT_S = 30.0
DEVICE_TIMEOUT_S_PER_GIB = 0.25
SECTOR = 512


def device_of(regions: Sequence[Region], root: Path = Path("/")) -> str:
    """The device whose bytes are the regions', one after another in their order. It may exist already.

    Raises HoldfastError when a region has no device, or the joined device is made of other ones.
    """
    several = len(regions) > 1
    run(["modprobe", "-a", *DRIVERS, *([JOINING_DRIVER] if several else [])])
    limit_s = DEVICE_TIMEOUT_S + DEVICE_TIMEOUT_S_PER_GIB * sum(region.size for region in regions) / GIB
    deadline = time.monotonic() + limit_s
    parts = tuple(_awaited(region, root, deadline) for region in regions)
    if not several:
        return f"/dev/{parts[0]}"
    if not _joined(root):
        _join(parts, regions)
    return _checked_joint(parts, root)


def _awaited(region: Region, root: Path, deadline: float) -> str:
    # Probing goes on after modprobe returned, and udev may not be up yet: the node in devtmpfs is the event.
    while True:
        found = _device_at(region, root)
        if found:
            return found
        if time.monotonic() > deadline:
            raise HoldfastError(
                f"the kernel has made no device at {range_text(region)}, though this range is reserved",
                "see the kernel log for nd_pmem, and /proc/iomem for the range",
            )
        time.sleep(0.01)


def _device_at(region: Region, root: Path) -> Optional[str]:
    """The memory device that lies exactly on this range; any other is somebody else's memory."""
    for entry in sorted((root / "sys/class/block").glob("pmem*")):
        # Above the block device is its namespace, above that its region (drivers/nvdimm/region_devs.c).
        above = (entry / "device").resolve().parent
        try:
            start, size = int((above / "resource").read_text(), 16), int((above / "size").read_text())
        except (OSError, ValueError):
            continue
        if (start, size) == (region.start, region.size) and (root / "dev" / entry.name).exists():
            return entry.name
    return None


def _joined(root: Path) -> Optional[Path]:
    """The joined device in sysfs, by its name in the device mapper."""
    for entry in (root / "sys/class/block").glob("dm-*"):
        try:
            if (entry / "dm/name").read_text().strip() == JOINED:
                return entry
        except OSError:
            continue
    return None


def _join(parts: Sequence[str], regions: Sequence[Region]) -> None:
    lines, start = [], 0
    for part, region in zip(parts, regions):
        sectors = region.size // SECTOR
        lines.append(f"{start} {sectors} linear /dev/{part} 0")
        start += sectors
    # udev may not run yet, and is not waited for: the kernel makes the node.
    run(["dmsetup", "create", "--noudevsync", JOINED], stdin="\n".join(lines) + "\n")


def _checked_joint(parts: Tuple[str, ...], root: Path) -> str:
    entry = _joined(root)
    found = {path.name for path in (entry / "slaves").iterdir()} if entry else set()
    if entry is None or found != set(parts):
        made_of = ", ".join(sorted(found)) or "nothing"
        raise HoldfastError(
            f"the device mapper's {JOINED} is made of {made_of}, but the pool of {', '.join(parts)}",
            f"see dmsetup table {JOINED}; remove it if nothing uses it: dmsetup remove {JOINED}",
        )
    return f"/dev/{entry.name}"
