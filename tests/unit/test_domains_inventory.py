# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin, by ansible-inventory and libvirt's own test driver: real connections, no hypervisor."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.holdfast.kvm.plugins.inventory.domains import uri_of

ROOT = Path(__file__).parents[2]
DOMAIN = """
<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
  <name>{name}</name><uuid>{uuid}</uuid><title>{title}</title><memory unit='MiB'>512</memory>
  <os><type>hvm</type></os><test:runstate>{state}</test:runstate>
</domain>
"""
RUNNING, SHUT_OFF = 1, 5


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


@dataclass
class Fleet:
    """Hypervisors in a directory of inventory sources, and the plugin's file beside it."""

    folder: Path
    hypervisors: dict[str, dict[str, Any]]
    options: dict[str, Any]
    policy: list[dict[str, Any]]

    def libvirt(self, host: str, *vms: tuple[str, int], title: str = "") -> None:
        """Give a hypervisor a libvirt that knows these VMs."""
        path = self.folder / f"{host}.xml"
        texts = (
            DOMAIN.format(name=name, uuid=uuid(number), state=state, title=title)
            for number, (name, state) in enumerate(vms)
        )
        path.write_text(f"<node>{''.join(texts)}</node>")
        self.hypervisors[host] = {"holdfast_libvirt_uri": f"test://{path}"}

    def listed(self, *more: str) -> tuple[dict[str, Any], str]:
        """What ansible-inventory prints, and what it warns of."""
        inventory = self.folder / "inventory"
        (inventory / "group_vars").mkdir(parents=True, exist_ok=True)
        (inventory / "hosts.yml").write_text(yaml.safe_dump({"hypervisors": {"hosts": self.hypervisors}}))
        (inventory / "group_vars/hypervisors.yml").write_text(yaml.safe_dump({"holdfast_policy": self.policy}))
        plugin = self.folder / "domains.yml"
        plugin.write_text(yaml.safe_dump({"plugin": "holdfast.kvm.domains", **self.options}))
        command = [Path(sys.executable).with_name("ansible-inventory"), "-i", inventory, "-i", plugin, "--list", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        return json.loads(done.stdout), " ".join(done.stderr.split())


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path, {}, {}, [])


def variables(listed: dict[str, Any], name: str) -> dict[str, Any]:
    """Those of a VM, without the prefix; texts from libvirt are marked as not to be templated."""
    found = listed["_meta"]["hostvars"][name]
    return {key.removeprefix("holdfast_vm_"): plain(value) for key, value in found.items()}


def plain(value: Any) -> Any:
    """A value as it was before it was marked."""
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return value.get("__ansible_unsafe") if isinstance(value, dict) else value


def test_vms_are_listed_per_host_with_their_policy(fleet: Fleet) -> None:
    fleet.libvirt("hv1", ("db1", RUNNING), ("web", SHUT_OFF), title="orders")
    fleet.libvirt("hv2.example.net", ("db1", RUNNING))
    fleet.policy = [{"match": {"name": "db*"}, "priority": 90, "max_pause_s": 2.5}]
    listed, warnings = fleet.listed()
    assert listed["holdfast_vms"]["children"] == ["vms_on_hv1", "vms_on_hv2_example_net"]
    assert listed["vms_on_hv1"]["hosts"] == ["db1.hv1", "web.hv1"]
    assert variables(listed, "db1.hv1") == {
        "host": "hv1", "name": "db1", "uuid": uuid(0), "title": "orders", "state": "running", "ram_bytes": 512 << 20,
        "treatment": "in_place", "reason": "by rule 1 (name db*)", "priority": 90, "max_pause_s": 2.5,
        "may_restart": False, "treatments": ["in_place"], "critical": False, "group": "", "return_home": False,
    }  # fmt: skip
    assert variables(listed, "web.hv1")["state"] == "shutoff"
    assert variables(listed, "web.hv1")["priority"] == 50
    assert "VMs of" not in warnings


def test_libvirts_own_test_host_is_listed(fleet: Fleet) -> None:
    fleet.hypervisors["hv1"] = {"holdfast_libvirt_uri": "test:///default"}
    listed, _ = fleet.listed()
    assert listed["vms_on_hv1"]["hosts"] == ["test.hv1"]


def test_vms_are_grouped_as_the_operator_likes(fleet: Fleet) -> None:
    fleet.libvirt("hv1", ("db1", RUNNING))
    fleet.options = {"keyed_groups": [{"prefix": "treatment", "key": "holdfast_vm_treatment"}]}
    listed, _ = fleet.listed()
    assert listed["treatment_in_place"]["hosts"] == ["db1.hv1"]


def test_a_policy_for_a_plan_is_understood(fleet: Fleet) -> None:
    fleet.libvirt("hv1", ("db1", RUNNING))
    fleet.policy = [{"match": {"name": "db1"}, "critical": True, "return_home": True}]
    listed, warnings = fleet.listed()
    assert variables(listed, "db1.hv1")["treatment"] == "live"
    assert "without their treatment" not in warnings


def test_a_title_is_never_a_template(fleet: Fleet) -> None:
    fleet.libvirt("hv1", ("db1", RUNNING), title="{{ lookup('pipe', 'id') }}")
    listed, _ = fleet.listed()
    assert variables(listed, "db1.hv1")["title"] == "{{ lookup('pipe', 'id') }}"


def test_a_hypervisor_that_does_not_answer_is_a_warning(fleet: Fleet) -> None:
    fleet.libvirt("hv1", ("db1", RUNNING))
    fleet.hypervisors["hv2"] = {"holdfast_libvirt_uri": "test:///nowhere.xml"}
    listed, warnings = fleet.listed()
    assert listed["vms_on_hv1"]["hosts"] == ["db1.hv1"]
    assert "VMs of hv2 are not listed: libvirt does not answer" in warnings


def test_a_policy_that_cannot_be_used_leaves_the_vms_without_a_treatment(fleet: Fleet) -> None:
    fleet.libvirt("hv1", ("db1", RUNNING))
    fleet.policy = [{"match": {"name": "db2"}}]
    listed, warnings = fleet.listed()
    assert "treatment" not in variables(listed, "db1.hv1")
    assert "policy rule 1 (name db2): there is no VM with this name" in warnings


def test_a_vm_never_takes_the_place_of_a_host(fleet: Fleet) -> None:
    fleet.libvirt("example.net", ("hv1", RUNNING))
    fleet.libvirt("hv1.example.net", ("db1", RUNNING))
    listed, warnings = fleet.listed()
    assert "holdfast_vm_name" not in listed["_meta"]["hostvars"]["hv1.example.net"]
    assert "the inventory has a host hv1.example.net already" in warnings


def test_without_hypervisors_it_says_what_to_do(fleet: Fleet) -> None:
    fleet.options = {"group": "nobody"}
    _, warnings = fleet.listed()
    assert "no inventory source before this one has a host in the group nobody" in warnings


@pytest.mark.parametrize(
    ("variables", "uri"),
    [
        ({}, "qemu+ssh://hv1/system?no_tty=1"),
        ({"ansible_host": "2001:db8::1"}, "qemu+ssh://[2001:db8::1]/system?no_tty=1"),
        (
            {"ansible_user": "root", "ansible_port": 2222, "ansible_ssh_private_key_file": "/keys/a b"},
            "qemu+ssh://root@hv1:2222/system?no_tty=1&keyfile=/keys/a%20b",
        ),
        ({"holdfast_libvirt_uri": "qemu+tls://hv1/system", "ansible_user": "x"}, "qemu+tls://hv1/system"),
    ],
)
def test_libvirt_is_reached_as_ansible_reaches_the_host(variables: dict[str, Any], uri: str) -> None:
    assert uri_of("hv1", variables) == uri


def test_it_is_documented() -> None:
    command = [Path(sys.executable).with_name("ansible-doc"), "-t", "inventory", "--json", "holdfast.kvm.domains"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    documented = json.loads(done.stdout)["holdfast.kvm.domains"]
    assert {"plugin", "group", "parallel", "use_vars_plugins", "keyed_groups"} <= set(documented["doc"]["options"])
    assert "holdfast.kvm.domains" in documented["examples"]
