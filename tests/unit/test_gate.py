# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roll over a fleet stops where it must. Runs the real upgrade playbook over roles that only leave a mark."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from roll import HOSTS, REPOSITORY, STEPS, UNREACHABLE, Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.mark.parametrize(("serial", "upgraded"), [(1, ["h1"]), (2, [])])
def test_an_unreachable_host_stops_the_roll(fleet: Fleet, serial: int, upgraded: list[str]) -> None:
    """Its own batch as well: nobody knows whether its VMs run, and others of the batch may be of the same service."""
    fleet.variables["h2"] = UNREACHABLE
    run = fleet.upgrade("-e", f"holdfast_serial={serial}")
    assert run.returncode != 0
    assert fleet.marked("preflight") == upgraded, run.stdout
    assert fleet.marked("verify") == upgraded
    assert fleet.marked("report") == ["h1", "h2"]
    assert ("h2 of its batch cannot be reached" in " ".join(run.stdout.split())) == (serial == 2)


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


def test_a_kernel_that_fails_its_rehearsal_is_found_before_any_vm_is_moved(fleet: Fleet) -> None:
    tasks = fleet.directory / "ansible_collections/holdfast/kvm/roles/live_update/tasks"
    (tasks / "rehearse.yml").write_text((tasks / "main.yml").read_text().replace("live_update", "rehearse"))
    run = fleet.upgrade("-e", "live_update_rehearse=true", "-e", "fail_at_rehearse=h1")
    assert run.returncode == 2
    assert fleet.marked("stage") == ["h1"], run.stdout
    assert fleet.marked("rehearse") == ["h1"]
    assert fleet.marked("evacuate") == []
    assert fleet.upgrade("-e", "fail_at_rehearse=h1").returncode == 0, "nobody asked for it"


def test_what_the_new_packages_do_not_bear_is_found_before_any_vm_is_moved(fleet: Fleet) -> None:
    refuses_then = "{{ 'h1' if query('ansible.builtin.fileglob', marks ~ '/h1.stage') else '' }}"
    run = fleet.upgrade("-e", json.dumps({"fail_at_preflight": refuses_then}))
    assert run.returncode == 2
    assert fleet.marked("stage") == ["h1"], run.stdout
    assert fleet.marked("evacuate") == []


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
    (collection / "plugins/action/live_update.py").unlink()
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
