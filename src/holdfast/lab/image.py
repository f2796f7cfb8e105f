# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk image of a lab hypervisor: Debian 13 from packages, booted by its own GRUB from a BIOS or from UEFI.

Kept in the cache under a digest of everything that goes into it, and built again when any of that changes.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from ..command import run, step
from . import debian
from .guests.image import GuestImage
from .places import locked

PACKAGES = (
    "systemd-sysv udev dbus openssh-server python3 python3-apt linux-image-amd64 initramfs-tools lz4 e2fsprogs kmod"
    " iproute2 procps apparmor grub-pc-bin grub2-common apt-utils libvirt-daemon-system libvirt-clients"
    " python3-libvirt qemu-system-x86 qemu-utils ovmf-ia32 kexec-tools ovmf shim-signed grub-efi-amd64-signed"
).split()
# What the host needs to reach its root disk; the rest of the drivers come from the root file system.
INITRD_MODULES = "virtio_pci virtio_blk virtio_net ext4 crc32c".split()
# lz4's usual level here is the ninth, which takes an emulated host many seconds.
INITRD_SETTINGS = "MODULES=list\\nCOMPRESS=lz4\\nCOMPRESSLEVEL=1\\n"
# QEMU 10.0.13 of the last point release gives every virtio queue 1024 entries, whatever was asked for, and later
# releases refuse to load such a VM ("vring.num 1024 exceeds allocated max 256"): whoever starts a VM with it can
# upgrade its kernel, but not its QEMU. The security archive's 10.0 does as it is told.
PREFERENCES = "Package: src:qemu\\nPin: release l=Debian-Security\\nPin-Priority: 1001\\n"
DISK_BYTES = 24 << 30
SECTOR = 512
FIRST_SECTOR = 2048
ESP_SECTORS = (16 << 20) // SECTOR
ESP_START = DISK_BYTES // SECTOR - ESP_SECTORS
# What UEFI starts, under the names that it and Debian's signed programs look for: shim, GRUB, and GRUB's first words.
ESP_FILES = {
    "EFI/BOOT/BOOTX64.EFI": "usr/lib/shim/shimx64.efi.signed",
    "EFI/BOOT/grubx64.efi": "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
    "EFI/debian/grub.cfg": "boot/grub/esp.cfg",
}
# The firmware that a UEFI host is started with: its code, which checks signatures, and the keys that it trusts.
UEFI_FILES = {"uefi-code.fd": "OVMF_CODE_4M.ms.fd", "uefi-variables.fd": "OVMF_VARS_4M.ms.fd"}


@dataclass(frozen=True)
class HostImage:
    """``disk``: qcow2, read-only base of every host's overlay. ``key``: private SSH key. ``host_key``: public.

    ``uefi_code`` and ``uefi_variables`` are for hosts that start by UEFI; each of them needs variables of its own.
    """

    disk: Path
    key: Path
    host_key: Path
    uefi_code: Path
    uefi_variables: Path


def build(cache: Path, guests: GuestImage) -> HostImage:
    """Return the image of today's inputs, building it if the cache does not have it. Needs root, a few minutes."""
    folder = cache / f"host-{_digest(guests)}"
    code, variables = (folder / name for name in UEFI_FILES)
    keys = folder / "id_ed25519", folder / "ssh_host_ed25519_key.pub"
    image = HostImage(folder / "disk.qcow2", *keys, code, variables)
    with locked(cache / "host.lock"):
        if not folder.exists():
            with TemporaryDirectory(dir=cache, prefix="building-") as scratch:
                _build_in(Path(scratch), guests)
                Path(scratch, "result").rename(folder)
    return image


def _digest(guests: GuestImage) -> str:
    ours = hashlib.sha256(Path(__file__).read_bytes())
    ours.update(_customize().encode())
    ours.update(str(guests.disk.parent.name).encode())
    return ours.hexdigest()[:16]


def _customize() -> str:
    return (resources.files(__package__) / "files" / "customize.sh").read_text()


def _build_in(scratch: Path, guests: GuestImage) -> None:
    result = scratch / "result"
    result.mkdir(mode=0o700)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", result / "id_ed25519"])
    with step("lab host image: packages"):
        _bootstrap(scratch, guests)
    with step("lab host image: disk"):
        _disk(scratch / "root", scratch / "disk.raw")
        _add_esp(scratch / "root", scratch / "disk.raw")
        run(["qemu-img", "convert", "-O", "qcow2", scratch / "disk.raw", result / "disk.qcow2"])
    shutil.copy(scratch / "root/etc/ssh/ssh_host_ed25519_key.pub", result)
    for name, packaged in UEFI_FILES.items():
        shutil.copy(scratch / "root/usr/share/OVMF" / packaged, result / name)


def _bootstrap(scratch: Path, guests: GuestImage) -> None:
    root = scratch / "root"
    script = scratch / "customize.sh"
    script.write_text(_customize())
    modules = "\\n".join(INITRD_MODULES)
    hooks = [
        f"--setup-hook=mkdir -p $1/etc/apt/preferences.d && printf '{PREFERENCES}' > $1/etc/apt/preferences.d/lab",
        f"--essential-hook=mkdir -p $1/etc/initramfs-tools/conf.d && printf '{INITRD_SETTINGS}'"
        f" > $1/etc/initramfs-tools/conf.d/lab && printf '{modules}\\n' > $1/etc/initramfs-tools/modules",
        "--customize-hook=mkdir -p $1/root/.ssh $1/var/lib/libvirt/images/lab",
        f"--customize-hook=copy-in {scratch}/result/id_ed25519 {scratch}/result/id_ed25519.pub /root/.ssh",
        "--customize-hook=mv $1/root/.ssh/id_ed25519.pub $1/root/.ssh/authorized_keys",
        *[
            f"--customize-hook=copy-in {path} /var/lib/libvirt/images/lab"
            for path in (guests.disk, guests.kernel, guests.initrd)
        ],
        f"--customize-hook=copy-in {script} /tmp",
        "--customize-hook=chroot $1 sh /tmp/customize.sh && rm $1/tmp/customize.sh",
    ]
    run(
        [
            "mmdebstrap",
            "--mode=root",
            "--variant=apt",
            f"--include={','.join(PACKAGES)}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            "--dpkgopt=force-unsafe-io",
            *[f"--dpkgopt=path-exclude=/usr/share/{junk}/*" for junk in ("man", "doc", "locale", "info")],
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            *hooks,
            debian.SUITE,
            root,
            *debian.sources(),
        ],
        log=scratch.parent / "mmdebstrap-host.log",
        timeout_s=3600,
        env={"TMPDIR": str(scratch)},
    )


def _disk(root: Path, disk: Path) -> None:
    """Lay out a raw disk: GRUB's first sector and core in the gap before the root, UEFI's partition after it."""
    boot = (root / "usr/lib/grub/i386-pc/boot.img").read_bytes()
    core = (root / "boot/grub/i386-pc/core.img").read_bytes()
    with disk.open("wb") as out:
        out.truncate(DISK_BYTES)
        out.write(boot[:440] + b"HFST\0\0" + _partition_table() + b"\x55\xaa")
        out.write(core)
    # GRUB 2.12 does not read file systems with a checksum seed or an orphan file.
    features = "^metadata_csum_seed,^orphan_file"
    offset = f"offset={FIRST_SECTOR * SECTOR}"
    run(
        [
            *("mkfs.ext4", "-q", "-F", "-L", "lab-root", "-O", features, "-E", offset),
            *("-d", str(root), str(disk), f"{(ESP_START - FIRST_SECTOR) * SECTOR // 1024}k"),
        ],
        timeout_s=1800,
    )


def _add_esp(root: Path, disk: Path) -> None:
    """Put the file system that UEFI reads into its partition."""
    at = f"{disk}@@{ESP_START * SECTOR}"
    run(["mformat", "-i", at, "-T", str(ESP_SECTORS), "-h", "64", "-s", "32", "-v", "ESP", "::"])
    folders = sorted({str(parent) for name in ESP_FILES for parent in Path(name).parents if parent.name})
    run(["mmd", "-i", at, *[f"::{folder}" for folder in folders]])
    for name, source in ESP_FILES.items():
        run(["mcopy", "-i", at, root / source, f"::{name}"])


def _partition_table() -> bytes:
    """Root, marked as the one to boot from a BIOS, and UEFI's; cylinders say no more than that they are not used."""
    unused = b"\xfe\xff\xff"
    entries = ((0x80, 0x83, FIRST_SECTOR, ESP_START - FIRST_SECTOR), (0, 0xEF, ESP_START, ESP_SECTORS))
    packed = (struct.pack("<B3sB3sII", flag, unused, kind, unused, *extent) for flag, kind, *extent in entries)
    return b"".join(packed).ljust(64, b"\0")
