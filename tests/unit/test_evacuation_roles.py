# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real roles around migrations with stub modules: who falls to what, what never fails, who is waited for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
# Each answers from the script, by the VM it is asked for or by how often it was called, and writes down the question.
STUB = """
import json, os, sys
from pathlib import Path
from ansible.module_utils.basic import AnsibleModule

NAME = {name!r}
folder = Path(os.environ["HOLDFAST_STUB"])

def main():
    options = json.loads({options!r})
    module = AnsibleModule(argument_spec={{key: {{"type": "raw"}} for key in options}}, supports_check_mode=True)
    script = json.loads((folder / "script.json").read_text()).get(NAME, {{}})
    with (folder / "asked.jsonl").open("a") as asked:
        asked.write(json.dumps({{"module": NAME, **module.params}}, default=str) + "\\\\n")
    calls = sum(json.loads(line)["module"] == NAME for line in (folder / "asked.jsonl").read_text().splitlines())
    answer = script[module.params["name"]] if "name" in module.params else script[min(calls, len(script)) - 1]
    (module.fail_json if answer.get("failed") else module.exit_json)(**{{"msg": "", **answer}})

main()
"""
MODULES = ("vm_migrate", "evacuees", "evacuated", "preflight")
PLAY = [
    {
        "hosts": "h1",
        "gather_facts": False,
        "tasks": [
            {"ansible.builtin.import_role": {"name": "holdfast.kvm.{role}"}},
            {
                "ansible.builtin.copy": {
                    "content": "{{ holdfast_evacuation | default({}) | to_json }}",
                    "dest": "{{ lookup('env', 'HOLDFAST_STUB') }}/facts.json",
                }
            },
        ],
    }
]
A, B = ({"name": name, "uuid": f"u{name}", "destination": "h2", "longest_pause_s": 2.0} for name in "ab")
BOTH = [{**vm, "journey": "away", "reason": "by rule 1"} for vm in (A, B)]
MOVED = {"whereabouts": "destination", "msg": "moved", "pause_s": 0.2, "ram_bytes": 7}
STAYED = {"failed": True, "whereabouts": "source", "msg": "no room there"}
LOST = {"failed": True, "whereabouts": "unproven", "msg": "nobody knows"}


class Stage:
    """A collection of the real roles and stub modules, and an inventory of two hosts that are this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.collection = folder / "ansible_collections/holdfast/kvm"
        for role in ("evacuate", "return_home", "preflight"):
            shutil.copytree(REPOSITORY / "roles" / role, self.collection / "roles" / role)
        shutil.copy(REPOSITORY / "galaxy.yml", self.collection)
        (self.collection / "plugins/modules").mkdir(parents=True)
        for name in MODULES:
            text = (REPOSITORY / f"plugins/modules/{name}.py").read_text()
            documentation = yaml.safe_load(text.split('DOCUMENTATION = r"""')[1].split('"""')[0])
            stub = STUB.format(name=name, options=json.dumps(sorted(documentation["options"])))
            (self.collection / f"plugins/modules/{name}.py").write_text(stub.replace("\\\\n", "\\n"))

    def run(self, role: str, script: dict[str, Any], **variables: Any) -> subprocess.CompletedProcess[str]:
        (self.folder / "script.json").write_text(json.dumps(script))
        play = self.folder / "play.yml"
        play.write_text(json.dumps(PLAY).replace("{role}", role))
        inventory = self.folder / "inventory.ini"
        inventory.write_text("[hypervisors]\nh1\nh2 holdfast_migration_address=10.0.0.2\n")
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), str(play)]
        environment = {
            **os.environ,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOME": str(self.folder / "home"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.folder),
            "HOLDFAST_STUB": str(self.folder),
        }
        return subprocess.run(
            [*command, "-e", json.dumps({**local, **variables})],
            env=environment,
            cwd=self.folder,
            text=True,
            capture_output=True,
            check=False,
        )

    def asked(self, module: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / "asked.jsonl").read_text().splitlines()]
        return [line for line in lines if line["module"] == module]

    @property
    def facts(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "facts.json").read_text()))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_one_leaves_and_one_that_cannot_stays_in_place(stage: Stage) -> None:
    script = {
        "evacuees": [{"departures": BOTH, "unmoved": {}}, {"departures": [], "unmoved": {"b": "no room there"}}],
        "vm_migrate": {"a": MOVED, "b": STAYED},
    }
    done = stage.run("evacuate", script)
    assert done.returncode == 0, done.stdout
    facts = stage.facts
    assert (facts["moved"], facts["unmoved"], facts["stuck"]) == ({"a": "h2"}, ["b"], {"b": "no room there"})
    assert [vm["uuid"] for vm in facts["staying"]] == ["ub"]
    assert facts["elsewhere"] == ["a", "ua"]
    assert facts["vms"]["a"] == {"uuid": "ua", "to": "h2", "reason": "by rule 1", "pause_s": 0.2, "ram_bytes": 7}
    first = stage.asked("vm_migrate")[0]
    assert (first["address"], first["home"], first["encryption"]) == ("10.0.0.2", "h1", "tls")
    assert stage.asked("evacuees")[1]["stuck"] == {"b": "no room there"}


def test_when_one_that_cannot_leave_may_not_stay_the_host_is_not_upgraded(stage: Stage) -> None:
    refused = {"failed": True, "refused": True, "msg": "VMs cannot be moved away"}
    script = {"evacuees": [{"departures": BOTH, "unmoved": {}}, refused], "vm_migrate": {"a": MOVED, "b": STAYED}}
    done = stage.run("evacuate", script)
    assert done.returncode != 0
    assert "VMs cannot be moved away" in done.stdout


def test_when_nobody_knows_where_a_vm_is_nobody_else_is_moved(stage: Stage) -> None:
    script = {"evacuees": [{"departures": BOTH, "unmoved": {}}], "vm_migrate": {"a": LOST, "b": MOVED}}
    done = stage.run("evacuate", script)
    assert done.returncode != 0
    assert len(stage.asked("vm_migrate")) == 1


def test_a_host_that_nobody_leaves_is_asked_once(stage: Stage) -> None:
    done = stage.run("evacuate", {"evacuees": [{"departures": [], "unmoved": {}}]})
    assert done.returncode == 0, done.stdout
    assert len(stage.asked("evacuees")) == 1
    assert stage.facts["moved"] == {}


GONE = [
    {"name": name, "uuid": f"u{name}", "to": to, "images": []} for name, to in (("a", "h2"), ("b", "h2"), ("c", "hx"))
]


def test_who_cannot_come_home_stays_where_it_is_and_nobody_fails(stage: Stage) -> None:
    script = {"evacuated": [{"vms": GONE}, {"vms": GONE[1:]}], "vm_migrate": {"a": MOVED, "b": LOST}}
    done = stage.run("return_home", script)
    assert done.returncode == 0, done.stdout
    assert stage.facts["vms"]["a"]["home"] is True
    assert set(stage.facts["vms"]) == {"a"}
    assert "still away, and running where they are: b, c" in done.stdout.replace("\n", " ")
    asked = {question["name"]: question for question in stage.asked("vm_migrate")}
    assert set(asked) == {"a", "b"}, "a host that the inventory does not know is not gone to"
    assert (asked["a"]["journey"], asked["a"]["destination"], asked["a"]["copy_storage"]) == ("home", "h1", False)


def test_a_record_that_cannot_be_read_fails_nobody(stage: Stage) -> None:
    done = stage.run("return_home", {"evacuated": [{"failed": True, "msg": "away.json cannot be understood"}]})
    assert done.returncode == 0, done.stdout
    assert "away.json cannot be understood" in done.stdout


def blocked(*codes: str) -> dict[str, Any]:
    return {"failed": True, "blockers": [{"code": code} for code in codes]}


GOOD: dict[str, Any] = {"blockers": [], "staying": []}


@pytest.mark.parametrize(
    ("answers", "seconds", "asked", "passes"),
    [
        ([blocked("vm-moving"), GOOD], 1, 2, True),
        ([blocked("vm-moving")], 1, 2, False),
        ([blocked("vm-moving"), GOOD], 0, 1, False),
        ([blocked("vm-moving", "no-kvm"), GOOD], 1, 1, False),
    ],
    ids=["it arrives", "it does not arrive", "nobody waits", "something else is in the way"],
)
def test_a_vm_on_its_way_is_waited_for(
    stage: Stage, answers: list[dict[str, Any]], seconds: int, asked: int, *, passes: bool
) -> None:
    done = stage.run("preflight", {"preflight": answers}, preflight_wait_s=seconds)
    assert (done.returncode == 0, len(stage.asked("preflight"))) == (passes, asked), done.stdout
