# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot loader's file: all kernels get the arguments, and a failure leaves everything as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import grub
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError

ARGUMENTS = ("memmap=0x60000000!0x100000000", "nokaslr")
MENU = """
menuentry 'Debian' {
\tlinux\t/boot/vmlinuz-7.2 root=/dev/vda1 ro memmap=0x60000000!0x100000000 nokaslr
}
menuentry 'Debian, recovery' {
\tlinux\t/boot/vmlinuz-7.2 root=/dev/vda1 ro single memmap=0x60000000!0x100000000 nokaslr
}
"""


class Host:
    """Two files, and an update-grub that writes the menu it is told to."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "grub.d/holdfast.cfg"
        self.generated = folder / "grub.cfg"
        self.menu = MENU
        self.fails = False
        self.runs = 0

    def run(self, argv: list[str], **_more: object) -> str:
        assert argv == ["update-grub"]
        self.runs += 1
        if self.fails:
            raise CommandFailed("update-grub ended with 1")
        self.generated.write_text(self.menu)
        return ""

    def install(self, text: str) -> None:
        grub.install(text, self.path, self.generated)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host(tmp_path)
    monkeypatch.setattr(grub.command, "run", found.run)
    return found


def test_arguments_are_appended_to_those_of_the_operator() -> None:
    text = grub.config_text(ARGUMENTS)
    assert 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX memmap=0x60000000!0x100000000 nokaslr"\n' in text
    assert grub.arguments_of(text) == ARGUMENTS


def test_install_and_remove(host: Host) -> None:
    host.install(grub.config_text(ARGUMENTS))
    assert grub.installed_text(host.path) == grub.config_text(ARGUMENTS)
    host.install("")
    assert not host.path.exists()
    assert host.runs == 2


def test_a_failing_update_brings_the_earlier_file_back(host: Host) -> None:
    host.install(grub.config_text(ARGUMENTS))
    host.fails = True
    with pytest.raises(CommandFailed):
        host.install(grub.config_text(("memmap=0x40000000!0x100000000", "nokaslr")))
    assert grub.installed_text(host.path) == grub.config_text(ARGUMENTS)


# As memtest86+ and os-prober add them.
OTHERS = """
### BEGIN /etc/grub.d/20_memtest86+ ###
menuentry "Memory test (memtest86+x64.bin)" {
\tlinux\t/boot/memtest86+x64.bin
}
### END /etc/grub.d/20_memtest86+ ###
### BEGIN /etc/grub.d/30_os-prober ###
menuentry 'Debian GNU/Linux 12 (on /dev/sdb1)' {
\tlinux /boot/vmlinuz-6.1 root=/dev/sdb1
}
### END /etc/grub.d/30_os-prober ###
"""
CUSTOM = """
### BEGIN /etc/grub.d/40_custom ###
menuentry 'Ours' {
\tlinux /boot/vmlinuz-7.2 root=/dev/vda1
}
"""


def test_a_memory_test_and_other_systems_need_no_arguments(host: Host) -> None:
    host.menu = MENU + OTHERS
    host.install(grub.config_text(ARGUMENTS))
    assert grub.installed_text(host.path) == grub.config_text(ARGUMENTS)


@pytest.mark.parametrize("menu", ["", OTHERS, MENU + OTHERS + CUSTOM, MENU.replace(" nokaslr\n}\n", "\n}\n", 1)])
def test_a_menu_with_a_kernel_that_lacks_the_arguments_is_refused(host: Host, menu: str) -> None:
    host.menu = menu
    with pytest.raises(HoldfastError, match="without"):
        host.install(grub.config_text(ARGUMENTS))
    assert not host.path.exists()


def test_the_menu_that_was_refused_is_not_what_the_host_boots_with(host: Host) -> None:
    host.install(grub.config_text(ARGUMENTS))
    host.generated.chmod(0o444)
    host.menu = "\tlinux\t/boot/vmlinuz-7.2 root=/dev/vda1 ro\n"
    with pytest.raises(HoldfastError, match="without"):
        host.install(grub.config_text(("memmap=0x40000000!0x100000000", "nokaslr")))
    assert host.generated.read_text() == MENU
    assert host.generated.stat().st_mode & 0o777 == 0o444


def test_a_host_without_a_menu_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grub.command, "run", lambda *_argv, **_more: "")
    with pytest.raises(HoldfastError, match="without"):
        host.install(grub.config_text(ARGUMENTS))
    assert not host.path.exists()
