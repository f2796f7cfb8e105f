# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guests' image: one read-only base disk for all of them, and a kernel with an initrd of our own for direct boot.

Packages are unpacked, not installed: nothing in a guest needs a package database, and the whole image takes seconds.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError

from ...command import run, step
from .. import debian
from ..places import locked

PACKAGES = ("busybox-static", "linux-image-cloud-amd64", "python3", "qemu-guest-agent", "redis-server")
DISK_MIB = 512
# In the order in which they have to be loaded. Debian's cloud kernel has ext4, virtio_pci and virtio_console built in.
MODULES = ("failover", "net_failover", "virtio_net", "virtio_blk", "virtio-rng", "virtio_balloon", "button", "evdev")
UNUSED = (
    "boot",
    "usr/lib/modules",
    "usr/lib/systemd",
    "usr/lib/udev",
    "usr/lib/initramfs-tools",
    "usr/lib/python3.*/test",
    "usr/lib/python3.*/idlelib",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl*",
    "usr/share/[!p]*",
    "usr/share/p[!y]*",
    "var/cache/*",
    "var/lib/apt",
    "var/lib/dpkg",
    "var/lib/mmdebstrap",
)
HERE = Path(__file__).parent


@dataclass(frozen=True)
class GuestImage:
    """``disk``: qcow2, read-only base of every guest's overlay; its folder's name tells the inputs apart."""

    disk: Path
    kernel: Path
    initrd: Path


def build_guest_image(cache_dir: Path) -> GuestImage:
    """Return the image of today's inputs, building it if the cache does not have it: half a minute, as root.

    Raises HoldfastError when a tool is missing, when not root, or when packages cannot be fetched.
    """
    folder = cache_dir / f"guest-{_digest()}"
    with locked(cache_dir / "guest.lock"):
        if not folder.exists():
            _require_root()
            with TemporaryDirectory(dir=cache_dir, prefix="building-") as scratch, step("lab guest image"):
                _build_in(Path(scratch))
                Path(scratch, "result").rename(folder)
    return GuestImage(folder / "guest.qcow2", folder / "vmlinuz", folder / "initrd")


def _digest() -> str:
    ours = hashlib.sha256(debian.SUITE.encode())
    for source in sorted([HERE / "image.py", HERE / "witness.py", *(HERE / "files").iterdir()]):
        ours.update(source.name.encode() + b"\0" + source.read_bytes())
    return ours.hexdigest()[:16]


def _require_root() -> None:
    if os.geteuid() != 0:
        raise HoldfastError("the guest image is made of root's files and can only be built by root", "run it as root")


def _build_in(scratch: Path) -> None:
    root, result = scratch / "root", scratch / "result"
    result.mkdir()
    _unpack(scratch, root)
    shutil.copy(only(root.glob("boot/vmlinuz-*"), "kernel"), result / "vmlinuz")
    _initrd(root, scratch / "initrd", result / "initrd")
    _furnish(root)
    _disk(root, scratch / "disk.raw", result / "guest.qcow2")


def _unpack(scratch: Path, root: Path) -> None:
    run(
        [
            "mmdebstrap",
            "--mode=root",
            "--variant=extract",
            f"--include={','.join(PACKAGES)}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            debian.SUITE,
            root,
            *debian.sources(),
        ],
        log=scratch.parent / "mmdebstrap-guest.log",
        timeout_s=1800,
        env={"TMPDIR": str(scratch)},
        hint="apt-get install mmdebstrap, and see that apt-get update works",
    )


def only(found: Iterable[Path], what: str) -> Path:
    """The one path found. Raises HoldfastError when there is none or more than one."""
    paths = list(found)
    if len(paths) != 1:
        raise HoldfastError(f"the guest's packages hold {len(paths)} files for {what}, one is needed")
    return paths[0]


def _initrd(root: Path, stage: Path, result: Path) -> None:
    """An uncompressed initrd (2 MB: unpacking costs more than reading) of busybox and a few drivers."""
    for folder in ("bin", "modules", "proc", "sys", "dev", "root"):
        (stage / folder).mkdir(parents=True)
    shutil.copy(root / "usr/bin/busybox", stage / "bin/busybox")
    shutil.copy(HERE / "files/initrd-init", stage / "init")
    (stage / "init").chmod(0o755)
    for name in MODULES:
        packed = only(root.glob(f"usr/lib/modules/*/kernel/**/{name}.ko.xz"), f"driver {name}")
        (stage / f"modules/{name}.ko").write_bytes(lzma.decompress(packed.read_bytes()))
    (stage / "modules/order").write_text("\n".join(MODULES) + "\n")
    names = "\n".join(str(path.relative_to(stage)) for path in sorted(stage.rglob("*")))
    archive = f'cd "{stage}" && "{stage}/bin/busybox" cpio -o -H newc > "{result}"'
    run(["sh", "-c", archive], stdin=names + "\n")


def _furnish(root: Path) -> None:
    """Make a root file system of unpacked packages: drop what no guest uses, add our own programs."""
    for pattern in UNUSED:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in ("bin", "sbin", "lib", "lib64"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "sys", "run", "tmp", "var/tmp", "etc/holdfast-acpi", "usr/lib/holdfast-guest"):
        (root / name).mkdir(parents=True, exist_ok=True)
    _install(HERE / "files/guest-init", root / "usr/sbin/holdfast-guest-init")
    _install(HERE / "files/power-off", root / "etc/holdfast-acpi/PWRF/00000080")
    _install(HERE / "witness.py", root / "usr/lib/holdfast-guest/witness.py")
    # Compile what the witness imports: doing that at every boot costs seconds under emulation.
    imports = "import sys; sys.path.insert(0, '/usr/lib/holdfast-guest'); import witness"
    run(["chroot", root, "python3", "-I", "-S", "-c", imports])


def _install(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    target.chmod(0o755)


def _disk(root: Path, raw: Path, result: Path) -> None:
    with raw.open("wb") as out:
        out.truncate(DISK_MIB << 20)
    # Initialise everything now, or each guest's kernel does it at its first boot, on an emulated disk.
    eager = "lazy_itable_init=0,lazy_journal_init=0"
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", "guest", "-m", "0", "-J", "size=8", "-E", eager, "-d", root, raw])
    run(["qemu-img", "convert", "-O", "qcow2", raw, result])
