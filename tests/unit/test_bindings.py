# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM that is bound to CPUs or nodes which a crash kernel lacks is restored all the same, free of just that."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import bindings
from ansible_collections.holdfast.kvm.plugins.module_utils._core.bindings import Present
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput

VM = """<domain type='kvm'>
  <name>db1</name>
  <vcpu placement='static' cpuset='0-3' current='2'>4</vcpu>
  <cputune>
    <shares>2048</shares>
    <vcpupin vcpu='0' cpuset='1'/>
    <vcpupin vcpu='1' cpuset='3'/>
    <emulatorpin cpuset='0,3'/>
  </cputune>
  <numatune>
    <memory mode='strict' nodeset='0'/>
    <memnode cellid='1' mode='strict' nodeset='1'/>
  </numatune>
  <metadata><numatune xmlns='urn:other'><memory nodeset='7'/></numatune></metadata>
</domain>
"""
ALL = Present(frozenset(range(4)), frozenset((0, 1)))


def test_what_is_there_binds_as_ever() -> None:
    assert bindings.loosened(VM, ALL) == (VM, ())


def test_a_node_without_ram_binds_nobody() -> None:
    xml, free = bindings.loosened(VM, Present(ALL.cpus, frozenset((0,))))
    gone = VM[VM.index("\n  <numatune>") : VM.index("\n  <metadata>")]
    assert xml == VM.replace(gone, "")
    assert free == ("numatune",)


def test_only_pins_to_the_cpu_that_is_gone_are_taken_off() -> None:
    xml, free = bindings.loosened(VM, Present(frozenset((0, 1, 2)), ALL.nodes))
    assert free == ("vcpu", "vcpupin", "emulatorpin")
    assert "<vcpu placement='static' current='2'>4</vcpu>" in xml
    assert "<vcpupin vcpu='0' cpuset='1'/>" in xml
    assert "vcpu='1'" not in xml
    assert "emulatorpin" not in xml
    assert "<shares>2048</shares>" in xml
    assert "<numatune>" in xml


def test_a_vm_that_is_bound_to_nothing_stays_as_it_is() -> None:
    plain = "<domain><name>db1</name><vcpu>1</vcpu></domain>"
    assert bindings.loosened(plain, Present(frozenset((0,)), frozenset((0,)))) == (plain, ())


def test_what_the_kernel_has_is_read_from_sysfs(tmp_path: Path) -> None:
    system = tmp_path / "sys/devices/system"
    (system / "cpu").mkdir(parents=True)
    (system / "cpu/online").write_text("0-2,5\n")
    assert bindings.present(tmp_path) == Present(frozenset((0, 1, 2, 5)), frozenset((0,)))
    (system / "node").mkdir()
    (system / "node/has_memory").write_text("1\n")
    assert bindings.present(tmp_path).nodes == {1}


@pytest.mark.parametrize("text", ["one", "1-", "0-99999", "^", "1;2"])
def test_a_set_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is not a set"):
        bindings.numbers(text)
