# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What awx/configure.yml posts, by the modules of awx.awx against a stand-in; and that what it names is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

if TYPE_CHECKING:
    from conftest import Awx, Configure

ROOT = Path(__file__).parents[2]
WORKFLOW = "holdfast: plan, approve, upgrade"
NAMES = {f"holdfast: {name}" for name in ("status", "prepare", "plan", "upgrade", "stop", "recover")}
# Variables of the playbooks themselves: each is explained where the playbook begins.
PLAYBOOK_VARIABLES = {
    "plan_max_unavailable": {"type": "str"},
    "holdfast_max_failures": {"type": "int"},
    "holdfast_give_up": {"type": "list", "elements": "str"},
}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


CONTENT = load(ROOT / "awx" / "templates.yml")


def test_it_makes_all_of_it_then_nothing_new_then_what_has_changed(awx: Awx, configure: Configure) -> None:
    configure.succeed()
    assert awx.one("execution_environments", "holdfast")["image"] == "registry.example.net/holdfast:1"
    assert {item["name"] for item in awx.find("job_templates", {})} == NAMES
    check_project(awx)
    check_templates(awx)
    check_surveys(awx)
    check_workflow(awx)
    assert awx.refused == []
    awx.written.clear()
    again = configure.succeed()
    # The project is asked to fetch again. The module sends an approval node each time, and calls that a change.
    left = {(one.method, re.sub(r"/\d+/", "/N/", one.path)) for one in awx.written}
    assert left == {("POST", "/api/v2/projects/N/update/"), ("PATCH", "/api/v2/workflow_approval_templates/N/")}
    assert re.search(r"changed=1\b", again), again
    configure.succeed("-e", "awx_project_branch=next", "-e", "awx_approval_timeout_s=60")
    assert awx.one("projects", "holdfast")["scm_branch"] == "next"
    assert awx.one("workflow_approval_templates", "Upgrade these hosts as planned?")["timeout"] == 60
    assert {item["name"] for item in awx.find("job_templates", {})} == NAMES


def check_project(awx: Awx) -> None:
    project = awx.one("projects", "holdfast")
    assert (project["scm_type"], project["scm_branch"]) == ("git", "main")
    assert project["scm_update_on_launch"] is False
    assert project["default_environment"] == awx.one("execution_environments", "holdfast")["id"]


def check_templates(awx: Awx) -> None:
    inventory, credential = awx.one("inventories", "hypervisors"), awx.one("credentials", "hypervisors")
    for template in awx.find("job_templates", {}):
        assert template["inventory"] == inventory["id"]
        assert template["project"] == awx.one("projects", "holdfast")["id"]
        assert awx.associated(template, "credentials") == [credential]
        # A roll over the fleet must stay one roll, and see its variables from the survey only.
        assert (template["job_slice_count"], template["allow_simultaneous"]) == (1, False)
        assert (template["ask_limit_on_launch"], template["ask_variables_on_launch"]) == (True, False)
    plan, upgrade = awx.one("job_templates", "holdfast: plan"), awx.one("job_templates", "holdfast: upgrade")
    assert (plan["job_type"], upgrade["job_type"]) == ("run", "run")
    assert (plan["playbook"], upgrade["playbook"]) == ("playbooks/plan.yml", "playbooks/campaign.yml")


def check_surveys(awx: Awx) -> None:
    def asked(kind: str, name: str) -> list[str]:
        spec = awx.surveys.get(f"{awx.one(kind, name)['url']}survey_spec/", {"spec": []})
        return [question["variable"] for question in spec["spec"]]

    upgrade = [
        "stage_kernel",
        "stage_default_release",
        "plan_max_unavailable",
        "holdfast_max_failures",
        "live_update_force",
    ]
    assert asked("job_templates", "holdfast: plan") == upgrade
    assert asked("job_templates", "holdfast: upgrade") == upgrade
    # What the workflow asks for reaches a step only if the step asks for it too.
    assert asked("workflow_job_templates", WORKFLOW) == upgrade
    assert asked("job_templates", "holdfast: recover") == ["holdfast_give_up"]
    assert asked("job_templates", "holdfast: status") == []
    assert awx.one("job_templates", "holdfast: status")["survey_enabled"] is False
    assert awx.one("job_templates", "holdfast: upgrade")["survey_enabled"] is True


def check_workflow(awx: Awx) -> None:
    """Nothing is upgraded that nobody approved: the only way to it leads through the approval."""
    workflow = awx.one("workflow_job_templates", WORKFLOW)
    nodes = {node["identifier"]: node for node in awx.find("workflow_job_template_nodes", {})}
    assert {node["workflow_job_template"] for node in nodes.values()} == {workflow["id"]}
    ways = {
        (name, way, after["identifier"])
        for name, node in nodes.items()
        for way in ("success_nodes", "failure_nodes", "always_nodes")
        for after in awx.associated(node, way)
    }
    assert ways == {
        ("plan", "success_nodes", "approve"),
        ("approve", "success_nodes", "upgrade"),
        ("upgrade", "failure_nodes", "aftermath"),
    }
    steps = {name: runs(awx, node) for name, node in nodes.items()}
    assert steps == {
        "plan": "holdfast: plan",
        "approve": "Upgrade these hosts as planned?",
        "upgrade": "holdfast: upgrade",
        "aftermath": "holdfast: status",
    }
    approval = awx.one("workflow_approval_templates", "Upgrade these hosts as planned?")
    assert approval["timeout"] == 86400


def runs(awx: Awx, node: dict[str, Any]) -> str:
    """The name of what a node runs."""
    (found,) = awx.find("unified_job_templates", {"id": node["unified_job_template"]})
    return str(found["name"])


def test_without_an_image_nothing_is_written(awx: Awx, configure: Configure) -> None:
    done = configure.run(image="")
    assert done.returncode == 2
    assert "No image for the execution environment is named" in done.stdout
    assert awx.written == []


def test_a_missing_inventory_is_named(awx: Awx, configure: Configure) -> None:
    done = configure.run("-e", "awx_inventory=nobody")
    assert done.returncode == 2
    assert "/api/v2/inventories/?name=nobody returned 0 items" in done.stdout


# What is named is there


@pytest.mark.parametrize("template", CONTENT["awx_job_templates"], ids=lambda template: template["name"])
def test_a_template_runs_a_playbook_that_awx_offers(template: dict[str, Any]) -> None:
    """AWX offers files with a line that begins a play, or names a playbook."""
    text = (ROOT / template["playbook"]).read_text()
    assert re.search(r"^\s*-?\s*(hosts|(ansible\.builtin\.)?import_playbook):", text, re.MULTILINE)


def surveys() -> dict[str, dict[str, Any]]:
    """Every question that is asked anywhere, by its variable."""
    specs = [CONTENT["awx_upgrade_survey"]]
    specs += [one["survey"] for one in CONTENT["awx_job_templates"] if isinstance(one.get("survey"), dict)]
    return {question["variable"]: question for spec in specs for question in spec["spec"]}


def options() -> dict[str, dict[str, Any]]:
    """Variables of all roles, and of the playbooks, as their documentation has them."""
    found = dict(PLAYBOOK_VARIABLES)
    for path in ROOT.glob("roles/*/meta/argument_specs.yml"):
        found |= load(path)["argument_specs"]["main"].get("options", {})
    return found


@pytest.mark.parametrize("variable", sorted(surveys()))
def test_what_a_survey_asks_for_is_a_variable_that_takes_every_answer(variable: str) -> None:
    question, option = surveys()[variable], options()[variable]
    answers = [question.get("default"), *question.get("choices", [])]
    spec = {variable: {key: option[key] for key in ("type", "elements", "choices") if key in option}}
    for answer in answers:
        assert not ArgumentSpecValidator(spec).validate({variable: answer}).error_messages


@pytest.mark.parametrize("variable", sorted(PLAYBOOK_VARIABLES))
def test_a_variable_of_a_playbook_is_explained_there(variable: str) -> None:
    heads = [path.read_text().split("---")[0] for path in ROOT.glob("playbooks/*.yml")]
    assert any(variable in head for head in heads)


def test_the_execution_environment_takes_the_whole_collection() -> None:
    definition = load(ROOT / "awx" / "execution-environment.yml")
    files = {(ROOT / "awx" / one["src"]).resolve(): one["dest"] for one in definition["additional_build_files"]}
    assert all(path.exists() for path in files)
    parts = {path.name for path in files}
    assert {"galaxy.yml", "meta", "playbooks", "plugins", "roles", "README.md", "LICENSE"} == parts
    # What is copied is a directory's content, so each must be told its own name.
    assert all(dest == f"holdfast/{path.name}" for path, dest in files.items() if path.is_dir())
    assert definition["dependencies"]["galaxy"]["collections"] == [{"name": "/build/holdfast", "type": "dir"}]
