# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real plan playbook and ``holdfast plan``, over hosts whose facts come from files: what an operator sees."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
GIB = 1 << 30
UNREACHABLE = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_connection": "ssh"}

# Stands in for the modules that look at a host: returns what the file of that host says.
ANSWER = """
import json
from pathlib import Path
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        path = Path(task_vars["answers"]) / (task_vars["inventory_hostname"] + ".json")
        self._low_level_execute_command("true")
        return {**super().run(tmp, task_vars), **json.loads(path.read_text())}
"""


def vm(name: str, number: int, **fields: Any) -> dict[str, Any]:
    """A VM of 4 GiB on shared storage."""
    return {
        "name": name,
        "uuid": f"00000000-0000-4000-8000-{number:012d}",
        "state": "running",
        "ram_bytes": 4 * GIB,
        "ram_backing": "file-shared",
        "vcpus": 2,
        "cpu_mode": "host-model",
        "disks": [{"target": "vda", "source": f"/srv/vms/{name}.qcow2", "kind": "file"}],
        **fields,
    }


def answer(*vms: dict[str, Any], blockers: tuple[dict[str, str], ...] = ()) -> dict[str, Any]:
    """What the modules return for a prepared host of 64 GiB."""
    cpu = {"vendor": "AuthenticAMD", "name": "EPYC", "flags": ["svm"], "models": [], "count": 16}
    pool = {"mounted": True, "free_bytes": 64 * GIB - sum(entry["ram_bytes"] for entry in vms)}
    mounts = [{"path": "/srv/vms", "source": "nas:/vms"}]
    return {
        "host": {"hostname": "x", "cpu": cpu, "pool": pool, "shared_mounts": mounts},
        "journal": {"state": "none"},
        "switchovers_s": [],
        "vms": list(vms),
        "blockers": list(blockers),
    }


class Site:
    """An inventory of hosts on this machine, and the collection with stand-ins for the modules that look at hosts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answers = directory / "answers"
        self.inventory = directory / "inventory"
        collection = directory / "ansible_collections" / "holdfast" / "kvm"
        for part in ("playbooks", "plugins", "meta"):
            shutil.copytree(
                REPOSITORY / part, collection / part, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True
            )
        shutil.copy(REPOSITORY / "galaxy.yml", collection)
        for module in ("host_info", "vm_info", "preflight"):
            (collection / "plugins" / "action" / f"{module}.py").write_text(ANSWER)
        for path in (self.answers, self.inventory / "group_vars"):
            path.mkdir(parents=True)

    def has(self, **hosts: dict[str, Any]) -> None:
        """These hosts, with what is found on them."""
        self.write("hosts.yml", {"hypervisors": {"hosts": {name: {"ansible_connection": "local"} for name in hosts}}})
        for name, found in hosts.items():
            (self.answers / f"{name}.json").write_text(json.dumps(found))

    def write(self, path: str, content: Any) -> Path:
        file = self.inventory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return file

    def says(self, **variables: Any) -> None:
        """Variables of all hypervisors."""
        self.write("group_vars/hypervisors.yml", variables)

    def plan(self, *options: str) -> subprocess.CompletedProcess[str]:
        extra = [f"answers={self.answers}", "ansible_become=false", f"plan_dest={self.directory}/plan"]
        extra += [f"ansible_python_interpreter={sys.executable}"]
        words = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.inventory)]
        words += [word for pair in extra for word in ("-e", pair)]
        playbook = self.directory / "ansible_collections/holdfast/kvm/playbooks/plan.yml"
        return self._run([*words, *options, str(playbook)])

    def command(self, *options: str) -> subprocess.CompletedProcess[str]:
        """``holdfast plan``."""
        extra = {"answers": str(self.answers), "ansible_become": False, "ansible_python_interpreter": sys.executable}
        words = [sys.executable, "-m", "holdfast.cli", "plan", "-i", str(self.inventory)]
        return self._run([*words, "-e", json.dumps(extra), *options])

    def _run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        quiet = {
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.directory),
            "XDG_STATE_HOME": str(self.directory / "state"),
            "COLUMNS": "160",
        }
        environment = {**os.environ, **quiet}
        return subprocess.run(
            words, env=environment, cwd=self.directory, text=True, capture_output=True, check=False, timeout=120
        )

    def written(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads((self.directory / "plan" / "plan.json").read_text())
        return plan


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def told(run: subprocess.CompletedProcess[str]) -> str:
    """All that was printed, on one line."""
    return " ".join((run.stdout + run.stderr).split())


def test_a_plan_is_made_from_what_the_hosts_have(site: Site) -> None:
    site.has(
        hv1=answer(vm("db-1", 1), vm("web-1", 2)), hv2=answer(vm("db-2", 3)), hv3=answer(vm("core", 4), vm("off", 5))
    )
    site.says(
        holdfast_policy=[
            {"match": {"name": "db-*"}, "group": "db"},
            {"match": {"name": "co*"}, "critical": True, "return_home": True},
        ],
        holdfast_groups={"db": {"min_available": 1}},
        plan_waves=[1, 2],
        plan_reserve_hosts=0,
    )
    run = site.plan()
    assert run.returncode == 0, run.stdout
    plan = site.written()
    assert plan["complete"]
    assert [len(batch["hosts"]) for batch in plan["batches"]] == [1, 2]
    assert {entry["name"]: entry["treatment"] for entry in plan["vms"]}["core"] == "live"
    for batch in plan["batches"]:
        assert not {"hv1", "hv2"} <= set(batch["hosts"]), "both members of the group would be paused"
    assert "3 hosts in 2 batches" in run.stdout
    assert (site.directory / "plan" / "plan.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("  - {match: {name: 'db-*'}, group: dbx}", "there is no group dbx"),
        ("  - {match: {name: 'db-*'}, priority: -1}", "priority -1 is not a whole number from 0"),
        ("  - {match: {name: 'db-*'}, critical: true, treatment: in_place}", "contradicts itself"),
        ("  - {match: {name: db-9}}", "no VM with this name"),
    ],
)
def test_a_bad_rule_is_one_error_that_names_file_and_line(site: Site, line: str, words: str) -> None:
    site.has(hv1=answer(vm("db-1", 1)), hv2=answer(vm("web-1", 2)))
    file = site.write("group_vars/hypervisors.yml", f"---\nholdfast_policy:\n  - match: {{name: 'web-*'}}\n\n{line}\n")
    run = site.plan()
    assert run.returncode == 2
    assert re.search(rf"policy rule 2( \(name db-9\))? at {file}:5", told(run))
    assert words in told(run)
    assert not (site.directory / "plan").exists()


def test_a_bad_group_is_one_error_that_names_file_and_line(site: Site) -> None:
    site.has(hv1=answer(vm("db-1", 1)))
    file = site.write("group_vars/hypervisors.yml", "---\nholdfast_groups:\n  db:\n    min_available: -2\n")
    run = site.plan()
    assert run.returncode == 2
    assert f"group db at {file}:3: min_available -2 is not a whole number from 0" in told(run)


def test_a_negative_limit_is_one_error_that_names_file_and_line(site: Site) -> None:
    site.has(hv1=answer(vm("db-1", 1)))
    file = site.write("group_vars/hypervisors.yml", "---\n# At least one.\nplan_reserve_hosts: -1\n")
    run = site.plan()
    assert run.returncode == 2
    assert f"reserve_hosts at {file}:3: -1 is negative" in told(run)


def test_a_host_that_does_not_answer_is_not_planned_around(site: Site) -> None:
    site.has(hv1=answer(vm("db-1", 1)), hv2=answer(vm("db-2", 2)))
    site.write("host_vars/hv2.yml", UNREACHABLE)
    run = site.plan()
    assert run.returncode != 0
    assert "hv2 did not say which VMs it has" in told(run)
    assert not (site.directory / "plan").exists()


def test_a_plan_that_leaves_hosts_out_says_what_would_help_and_fails(site: Site) -> None:
    blocker = {"code": "passthrough", "message": "it drives the GPU", "remedy": "detach it", "vm": "gpu"}
    site.has(hv1=answer(vm("gpu", 1), blockers=(blocker,)), hv2=answer(vm("web", 2)))
    run = site.plan()
    assert run.returncode == 2
    assert "in_place: it drives the GPU" in told(run)
    assert "possible, but not allowed: restart, defer" in told(run)
    assert "To take it as it is: -e plan_partial=true" in told(run)
    assert not site.written()["complete"]
    assert site.plan("-e", "plan_partial=true").returncode == 0


def test_check_mode_plans_and_writes_nothing(site: Site) -> None:
    site.has(hv1=answer(vm("db-1", 1)))
    run = site.plan("--check")
    assert run.returncode == 0, run.stdout
    assert "1 host in 1 batch" in run.stdout
    assert not (site.directory / "plan").exists()


def test_the_command_shows_the_plan_and_where_it_is(site: Site) -> None:
    site.has(hv1=answer(vm("db-1", 1), vm("core", 4)), hv2=answer(vm("web", 2)))
    site.says(holdfast_policy=[{"match": {"name": "co*"}, "critical": True}])
    run = site.command("--dir", str(site.directory / "plan"))
    assert run.returncode == 0, run.stderr
    assert "2 hosts in 2 batches, 2 VMs in place, 1 VM live" in run.stdout
    assert "hv1 → hv2" in run.stdout
    assert "by rule 1 (name co*)" in run.stdout
    assert str(site.directory / "plan" / "plan.json") in run.stdout
    again = site.command("--json")
    assert json.loads(again.stdout)["fleet_sha256"] == site.written()["fleet_sha256"]


def test_the_command_gives_a_bad_policy_one_clear_error(site: Site) -> None:
    site.has(hv1=answer(vm("db-1", 1)))
    file = site.write("group_vars/hypervisors.yml", "holdfast_policy:\n  - {match: {name: db-1}, group: dbx}\n")
    run = site.command()
    assert run.returncode == 2
    assert f"holdfast: policy rule 1 at {file}:2: there is no group dbx" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_command_says_which_host_could_not_be_looked_at(site: Site) -> None:
    site.has(hv1=answer(vm("db-1", 1)), hv2=answer(vm("db-2", 2)))
    site.write("host_vars/hv2.yml", UNREACHABLE)
    run = site.command()
    assert run.returncode == 2
    assert "* hv2: " in run.stderr


def test_the_command_ends_with_3_when_hosts_are_left_out(site: Site) -> None:
    blocker = {"code": "passthrough", "message": "it drives the GPU", "remedy": "detach it", "vm": "gpu"}
    site.has(hv1=answer(vm("gpu", 1), blockers=(blocker,)), hv2=answer(vm("web", 2)))
    run = site.command()
    assert run.returncode == 3, run.stderr
    assert "hv1 cannot be planned: one of its VMs stands against it" in run.stdout


def test_a_plan_that_was_approved_is_compared_with_the_one_of_now(site: Site) -> None:
    site.has(hv1=answer(vm("a", 1)), hv2=answer(vm("b", 2)))
    assert site.plan().returncode == 0
    approved = site.written()["decisions_sha256"]
    assert site.plan("-e", f"holdfast_plan_sha256={approved}").returncode == 0
    site.has(hv1=answer(vm("a", 1)), hv2=answer(vm("b", 2), vm("c", 3)))
    run = site.plan("-e", f"holdfast_plan_sha256={approved}")
    assert run.returncode == 2
    assert "The plan above is not the one that was approved" in told(run)
