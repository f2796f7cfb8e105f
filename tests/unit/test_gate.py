# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roll over a fleet stops where it must. Runs the real upgrade playbook over roles that only leave a mark."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
STEPS = ("preflight", "stage", "evacuate", "live_update", "verify", "return_home")
HOSTS = ("h1", "h2", "h3", "h4")
UNREACHABLE = "ansible_host=127.0.0.1 ansible_port=1 ansible_connection=ssh"


class Fleet:
    """Four hosts h1..h4 on this machine, and a collection of stub roles around the real playbooks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.marks = directory / "marks"
        self.marks.mkdir()
        self.variables: dict[str, str] = dict.fromkeys(HOSTS, "ansible_connection=local")
        collection = directory / "ansible_collections" / "holdfast" / "kvm"
        shutil.copytree(REPOSITORY / "playbooks", collection / "playbooks")
        shutil.copy(REPOSITORY / "galaxy.yml", collection)
        for role in (*STEPS, "report"):
            write_role(collection / "roles" / role, role)

    def upgrade(self, *options: str) -> subprocess.CompletedProcess[str]:
        hosts = "\n".join(f"{host} {variables}" for host, variables in self.variables.items())
        inventory = self.directory / "inventory.ini"
        inventory.write_text(f"[hypervisors]\n{hosts}\n")
        playbook = self.directory / "ansible_collections/holdfast/kvm/playbooks/upgrade.yml"
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), str(playbook)]
        extra = [f"marks={self.marks}", "ansible_become=false", "holdfast_reach_timeout_s=2"]
        extra += [f"ansible_python_interpreter={sys.executable}"]
        command += [part for pair in extra for part in ("-e", pair)]
        return subprocess.run(
            [*command, *options],
            env=self._environment(),
            cwd=self.directory,
            text=True,
            capture_output=True,
            check=False,
        )

    def _environment(self) -> dict[str, str]:
        quiet = {
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_HOME": str(self.directory / "home"),
        }
        return {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(self.directory), **quiet}

    def marked(self, step: str) -> list[str]:
        """Hosts that got as far as this step."""
        return sorted(path.name.split(".")[0] for path in self.marks.glob(f"*.{step}"))


def write_role(directory: Path, name: str) -> None:
    """A role that leaves a mark on the controller, and fails on the host named by ``fail_at_<role>``."""
    mark = {
        "name": f"Mark {name}",
        "ansible.builtin.copy": {"content": "", "dest": f"{{{{ marks }}}}/{{{{ inventory_hostname }}}}.{name}"},
        "delegate_to": "localhost",
    }
    fail = {
        "name": f"Fail {name}",
        "ansible.builtin.fail": {"msg": f"{name} failed on request"},
        "when": f"inventory_hostname == fail_at_{name} | default('')",
    }
    (directory / "tasks").mkdir(parents=True)
    (directory / "tasks" / "main.yml").write_text(yaml.safe_dump([mark, fail], sort_keys=False))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.mark.parametrize("serial", [1, 2])
def test_an_unreachable_host_stops_the_roll(fleet: Fleet, serial: int) -> None:
    fleet.variables["h2"] = UNREACHABLE
    run = fleet.upgrade("-e", f"holdfast_serial={serial}")
    assert run.returncode != 0
    assert fleet.marked("preflight") == ["h1"], run.stdout
    assert fleet.marked("verify") == ["h1"]
    assert fleet.marked("report") == ["h1", "h2"]


def test_a_host_lost_half_way_stops_the_roll(fleet: Fleet) -> None:
    """Lost after it was reached: Ansible calls it unreachable, and would go on with the next batch by itself."""
    fleet.variables["h2"] = (
        "ansible_connection=\"{{ 'local' if not lookup('fileglob', marks ~ '/h2.preflight') else 'ssh' }}\""
    )
    fleet.variables["h2"] += " ansible_host=127.0.0.1 ansible_port=1"
    stage = fleet.directory / "ansible_collections/holdfast/kvm/roles/stage/tasks/main.yml"
    ping = {"name": "Touch the host", "ansible.builtin.ping": {}}
    stage.write_text(yaml.safe_dump([ping, *yaml.safe_load(stage.read_text())], sort_keys=False))
    run = fleet.upgrade("-e", "holdfast_serial=2")
    assert "unreachable=1" in run.stdout
    assert fleet.marked("preflight") == ["h1", "h2"], run.stdout
    assert fleet.marked("stage") == ["h1"]


def test_a_failed_host_stops_the_roll(fleet: Fleet) -> None:
    run = fleet.upgrade("-e", "holdfast_serial=2", "-e", "fail_at_live_update=h2")
    assert run.returncode == 2
    assert fleet.marked("preflight") == ["h1", "h2"], run.stdout
    assert fleet.marked("verify") == ["h1"]
    assert fleet.marked("report") == ["h1", "h2"]


def test_what_a_host_failed_of_is_on_record_for_the_report(fleet: Fleet) -> None:
    report = fleet.directory / "ansible_collections/holdfast/kvm/roles/report/tasks/main.yml"
    record = {"content": "{{ holdfast_live_update_result | to_json }}", "dest": "{{ marks }}/record.json"}
    report.write_text(yaml.safe_dump([{"name": "Keep the record", "ansible.builtin.copy": record}]))
    run = fleet.upgrade("-e", "fail_at_stage=h1")
    assert run.returncode == 2
    assert json.loads((fleet.marks / "record.json").read_text()) == {
        "result": "failed",
        "error": "stage failed on request",
    }


def test_all_hosts_are_upgraded_when_all_is_well(fleet: Fleet) -> None:
    run = fleet.upgrade("-e", "holdfast_serial=2")
    assert run.returncode == 0, run.stdout
    for step in (*STEPS, "report"):
        assert fleet.marked(step) == list(HOSTS)


def test_a_stop_file_stops_before_the_next_batch(fleet: Fleet) -> None:
    stop_file = fleet.marks / "h2.verify"
    run = fleet.upgrade("-e", f"holdfast_stop_file={stop_file}")
    assert run.returncode == 2
    assert f"Stopped on request before h3: {stop_file} exists" in " ".join(run.stdout.split())
    assert fleet.marked("verify") == ["h1", "h2"]


def test_the_next_run_goes_on_where_a_failure_stopped_the_roll(fleet: Fleet) -> None:
    assert fleet.upgrade("-e", "fail_at_live_update=h2").returncode == 2
    assert fleet.marked("verify") == ["h1"]
    run = fleet.upgrade()
    assert run.returncode == 0, run.stdout
    assert fleet.marked("verify") == list(HOSTS)


def test_an_inventory_without_hosts_is_refused(fleet: Fleet) -> None:
    run = fleet.upgrade("-e", "holdfast_hosts=nobody")
    assert run.returncode == 2
    assert "no host that matches 'nobody'" in run.stdout
    assert fleet.marked("preflight") == []


HOSTILE = "{{ lookup('ansible.builtin.pipe', 'touch MARK') }}"
FAILS = """
from ansible.module_utils.basic import AnsibleModule

AnsibleModule(SPEC).fail_json(msg=TEXT, journal={"vms": [{"name": TEXT}]})
"""


def test_a_name_of_a_vm_is_no_template(fleet: Fleet) -> None:
    """Names and titles come back from hosts, go through facts and into the report: as text, all the way."""
    text = HOSTILE.replace("MARK", str(fleet.marks / "obeyed"))
    collection = fleet.directory / "ansible_collections/holdfast/kvm"
    role = collection / "roles/live_update"
    shutil.rmtree(role)
    shutil.copytree(REPOSITORY / "roles/live_update", role)
    options = yaml.safe_load((role / "tasks/main.yml").read_text())[0]["block"][0]["holdfast.kvm.live_update"]
    module = collection / "plugins/modules/live_update.py"
    module.parent.mkdir(parents=True)
    spec = {name: {"type": "raw"} for name in options}
    module.write_text(f"SPEC, TEXT = {spec!r}, {text!r}{FAILS}")
    report = collection / "roles/report/tasks/main.yml"
    record = {"content": "{{ holdfast_live_update_result | to_json }}", "dest": "{{ marks }}/record.json"}
    report.write_text(yaml.safe_dump([{"name": "Keep the record", "ansible.builtin.copy": record}]))
    assert fleet.upgrade("--limit", "h1,localhost").returncode == 2
    kept = json.loads((fleet.marks / "record.json").read_text())
    assert text in kept["error"]
    assert kept["journal"]["vms"] == [{"name": text}]
    assert not (fleet.marks / "obeyed").exists()
