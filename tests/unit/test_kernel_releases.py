# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An upgrade goes to the newest kernel of the right flavour, or to the one asked for, or says what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import releases
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput

OLD, NEW = "6.12.107+deb13-amd64", "7.2.12+deb13-amd64"


@pytest.mark.parametrize(
    ("available", "newest"),
    [
        ([NEW, OLD], NEW),
        (["6.12.9+deb13-amd64", "6.12.107+deb13-amd64"], "6.12.107+deb13-amd64"),
        (["6.1.0-9-amd64", "6.1.0-28-amd64"], "6.1.0-28-amd64"),
        (["6.13~rc7-amd64", "6.13-amd64"], "6.13-amd64"),
        (["7.2.12+deb13-cloud-amd64", OLD], OLD),
        (["7.2.12+deb13-cloud-amd64"], "7.2.12+deb13-cloud-amd64"),
    ],
)
def test_the_newest_of_the_running_flavour_is_chosen(available: list[str], newest: str) -> None:
    assert releases.choose("", available, OLD) == newest


def test_a_certain_release_may_be_older_than_the_running_one() -> None:
    assert releases.choose(OLD, [OLD, NEW], NEW) == OLD


def test_a_release_that_is_not_installed_is_refused_naming_those_that_are() -> None:
    with pytest.raises(BadInput, match=r"kernel 8\.0-amd64 is not installed .* installed: 6\.12\.107\S+, 7\.2\.12"):
        releases.choose("8.0-amd64", [NEW, OLD], OLD)


def test_no_kernel_at_all_is_refused() -> None:
    with pytest.raises(BadInput, match="no kernel"):
        releases.choose("", [], OLD)


def test_a_kernel_without_initrd_does_not_count_as_installed(tmp_path: Path) -> None:
    for name in (f"vmlinuz-{NEW}", f"vmlinuz-{OLD}", f"initrd.img-{OLD}", "vmlinuz.old"):
        (tmp_path / name).touch()
    assert releases.installed(tmp_path) == (OLD,)


def test_a_simulated_installation_announces_its_kernels() -> None:
    simulation = (
        "NOTE: This is only a simulation!\n"
        "Inst linux-image-7.2.12+deb13-amd64 (7.2.12-1~bpo13+1 Debian Backports:stable-backports [amd64])\n"
        "Inst linux-image-amd64 [6.12.107-1] (7.2.12-1~bpo13+1 Debian Backports:stable-backports [amd64])\n"
        "Inst qemu-utils [1:10.0.13] (1:11.1.3 Debian Backports [amd64])\n"
        "Conf linux-image-7.2.12+deb13-amd64 (7.2.12-1~bpo13+1 Debian Backports [amd64])\n"
    )
    assert releases.announced(simulation) == (NEW,)
