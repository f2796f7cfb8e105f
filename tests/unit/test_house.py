# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the house, kept by a test instead of by memory. They hold for whatever modules and roles there are."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import Treatment
from ansible_collections.holdfast.kvm.plugins.module_utils._core.policy import parse_rules
from ansible_collections.holdfast.kvm.plugins.module_utils._plan.groups import parse_groups

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "plugins"
CORE = PLUGINS / "module_utils" / "_core"

# Directories that set-up and tools make.
MADE = {".git", ".venv", "build", "dist", ".ansible", ".cache", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
HEADER = (
    "# Copyright (c) 2026 holdfast contributors\n"
    "# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)\n"
    "# SPDX-License-Identifier: GPL-3.0-or-later\n"
)


def tree() -> Iterator[Path]:
    """Every file of the project, made ones left out."""
    for directory, subdirectories, names in os.walk(ROOT):
        subdirectories[:] = [name for name in subdirectories if name not in MADE and name != "__pycache__"]
        yield from (Path(directory, name) for name in names)


FILES = sorted(tree())
MODULES = sorted(path for path in PLUGINS.glob("modules/*.py"))
ACTIONS = {path.stem for path in PLUGINS.glob("action/*.py")}
ROLES = sorted(path for path in ROOT.glob("roles/*") if (path / "tasks").is_dir())
# Variables in a template, without its filters.
VARIABLE = re.compile(r"\b[a-z]+(?:_[a-z]+)+\b")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    """The file as text; a picture reads as nothing."""
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in it; relative ones begin with a dot."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


# Licence


def is_source(path: Path) -> bool:
    """Code, and YAML that acts. Documents, data and the changelog carry no header."""
    if path.is_symlink() or path.is_relative_to(ROOT / "changelogs"):
        return False
    if path.suffix in {".py", ".sh", ".service", ".j2"} or path.name == "Makefile" or text_of(path).startswith("#!"):
        return True
    return path.suffix in {".yml", ".yaml"} and path.relative_to(ROOT).parts[0] in {"roles", "playbooks", "meta"}


@pytest.mark.parametrize("path", [path for path in FILES if is_source(path)], ids=named)
def test_a_source_file_says_its_licence(path: Path) -> None:
    first_lines = "".join(path.read_text().splitlines(keepends=True)[:6])
    assert HEADER in first_lines or not path.read_text(), f"{named(path)} does not begin with the licence header"


# Arrows point inwards

PURE = ("_report", "_plan")
INWARDS = sorted(
    [*CORE.rglob("*.py"), *(path for name in PURE for path in (PLUGINS / "module_utils" / name).rglob("*.py"))]
)
LIBVIRT_DOORS = {"hypervisor.py", "monitor.py"}
SOLVER_DOOR = "solver.py"


@pytest.mark.parametrize("path", INWARDS, ids=named)
def test_the_core_needs_nothing_but_the_standard_library(path: Path) -> None:
    allowed = sys.stdlib_module_names | ({"libvirt", "libvirt_qemu"} if path.name in LIBVIRT_DOORS else set())
    allowed |= {"ortools"} if path.name == SOLVER_DOOR else set()
    foreign = {name for name in imports(path) if not name.startswith(".") and name.split(".")[0] not in allowed}
    assert not foreign, f"{named(path)} imports {sorted(foreign)}; the core runs where there is only Python"


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=named)
def test_one_door_to_other_programs(path: Path) -> None:
    if path.name != "command.py":
        assert "subprocess" not in {name.split(".")[0] for name in imports(path)}, "call command.py instead"


@pytest.mark.parametrize("path", sorted(path for path in FILES if path.suffix == ".py"), ids=named)
def test_a_file_is_named_for_its_concept(path: Path) -> None:
    assert path.stem.strip("_") not in {"utils", "util", "helpers", "helper", "manager", "handler", "common", "misc"}


# Roles


def in_words(option: dict[str, Any], default: object) -> bool:
    """Whether a default that is a template, and no text, is told in the description: there it would be no value."""
    untyped = isinstance(default, str) and default.startswith("{{") and option.get("type", "str") != "str"
    return untyped and all(f"C({name})" in option["description"] for name in VARIABLE.findall(str(default)))


@pytest.mark.parametrize("role", ROLES, ids=named)
def test_defaults_and_argument_specs_agree(role: Path) -> None:
    defaults = load(role / "defaults" / "main.yml") or {}
    options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"].get("options", {})
    documented = {name: option["default"] for name, option in options.items() if "default" in option}
    told = {
        name: value for name, value in defaults.items() if name not in documented and in_words(options[name], value)
    }
    assert documented | told == defaults, (
        "what argument_specs.yml documents as default is not what defaults/main.yml has"
    )
    needless = {name for name, option in options.items() if option.get("required") and "default" in option}
    assert not needless, "an option is either required or has a default"


@pytest.mark.parametrize("role", ROLES, ids=named)
def test_variables_of_a_role_carry_its_name(role: Path) -> None:
    spec = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]
    variables = {*(load(role / "defaults" / "main.yml") or {}), *spec.get("options", {})}
    stray = {name for name in variables if not name.startswith((f"{role.name}_", "holdfast_"))}
    assert not stray, f"prefix them with {role.name}_ or, when roles share them, holdfast_"


# Modules


def documentation_of(path: Path) -> dict[str, Any]:
    """DOCUMENTATION, EXAMPLES and RETURN of a module, parsed; without importing it."""
    texts = {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return {name: yaml.safe_load(texts[name]) for name in ("DOCUMENTATION", "EXAMPLES", "RETURN")}


def test_every_module_is_in_the_action_group() -> None:
    assert load(ROOT / "meta" / "runtime.yml")["action_groups"]["all"] == [path.stem for path in MODULES]


def test_every_action_plugin_has_a_module_that_documents_it() -> None:
    undocumented = ACTIONS - {path.stem for path in MODULES}
    assert not undocumented


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_is_documented(path: Path) -> None:
    documented = documentation_of(path)
    documentation = documented["DOCUMENTATION"]
    assert documentation["module"] == path.stem
    assert {"short_description", "description", "author", "version_added", "attributes"} <= set(documentation)
    assert {"check_mode", "diff_mode", "idempotent"} <= set(documentation["attributes"])
    assert documented["EXAMPLES"], "show how it is used"
    assert documented["RETURN"], "say what it returns"
    tasks = [task for task in documented["EXAMPLES"] if "holdfast.kvm." in str(list(task))]
    assert tasks, f"no example calls holdfast.kvm.{path.stem} by its full name"


ASK_FOR_SPEC = """
import importlib, json, sys
import ansible.module_utils.basic as basic

def tell(self, argument_spec, supports_check_mode=False, **rules):
    print(json.dumps({"options": argument_spec, "supports_check_mode": supports_check_mode}, default=repr))
    raise SystemExit(0)

basic.AnsibleModule.__init__ = tell
importlib.import_module(sys.argv[1]).main()
"""


def argument_spec_of(path: Path) -> dict[str, Any]:
    """What a module hands to AnsibleModule; asked in a process of its own, since that runs the module's main."""
    name = f"ansible_collections.holdfast.kvm.plugins.modules.{path.stem}"
    command = [sys.executable, "-c", ASK_FOR_SPEC, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return yaml.safe_load(done.stdout)


def comparable(options: dict[str, Any]) -> dict[str, Any]:
    """What documentation and argument spec both say of each option, sub-options included."""
    return {
        name: {
            "type": option.get("type", "str"),
            "elements": option.get("elements"),
            "required": bool(option.get("required")),
            "default": option.get("default"),
            "choices": sorted(map(str, option.get("choices") or [])),
            "options": comparable(option.get("suboptions") or option.get("options") or {}),
        }
        for name, option in options.items()
    }


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem not in ACTIONS], ids=named)
def test_documentation_and_argument_spec_agree(path: Path) -> None:
    documentation = documentation_of(path)["DOCUMENTATION"]
    spec = argument_spec_of(path)
    assert comparable(documentation.get("options", {})) == comparable(spec["options"])
    support = documentation["attributes"]["check_mode"]["support"]
    assert spec["supports_check_mode"] == (support in {"full", "partial"})


# What operators read


def test_every_finding_of_preflight_is_explained_with_its_remedy() -> None:
    calls = (node for node in ast.walk(ast.parse((CORE / "preflight.py").read_text())) if isinstance(node, ast.Call))
    findings = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Blocker"]
    codes = {call.args[0].value for call in findings if isinstance(call.args[0], ast.Constant)}
    assert len(codes) > 30
    explained = (ROOT / "docs/production-host.md").read_text()
    assert sorted(code for code in codes if f"`{code}`" not in explained) == []


# The sample fleet


def test_the_policies_of_the_sample_fleet_are_understood() -> None:
    command = [Path(sys.executable).with_name("ansible-inventory"), "-i", ROOT / "inventory", "--list"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    policies = {host: variables["holdfast_policy"] for host, variables in listed["_meta"]["hostvars"].items()}
    assert set(policies) == set(listed["hypervisors"]["hosts"])
    for policy in policies.values():
        assert parse_rules(policy)


def test_the_policy_that_is_explained_is_understood() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/policy.md").read_text(), re.DOTALL)
    variables = yaml.safe_load(example)
    groups = {group.name for group in parse_groups(variables["holdfast_groups"], {})}
    rules = parse_rules(variables["holdfast_policy"], available=tuple(Treatment))
    assert {rule.group for rule in rules if rule.group} == groups


# One version


def test_the_version_lives_in_galaxy_yml() -> None:
    version = re.compile(r"""^_*version_*\s*[:=]\s*["']?\d+\.\d+\.\d+""", re.IGNORECASE | re.MULTILINE)
    holders = {
        named(path) for path in FILES if path.suffix in {".py", ".toml", ".yml"} and version.search(text_of(path))
    }
    assert holders == {"galaxy.yml"}


# Nothing of the machine on which it was written

SHARED_BY_ALL = {"/", "/tmp", "/root", "/home", "/opt", "/srv", "/usr/src", "/var/tmp"}
MIRROR = re.compile(
    r"\b(?:deb|ftp|security|archive|snapshot|mirrors?)\.[a-z0-9.-]+\.(?:org|net|com|edu|io)\b", re.IGNORECASE
)
PERSONAL = re.compile(r"(?<![\w.$}])/(?:home|Users)/(?!\$|<|\{)[\w.-]+/")


def machine_words() -> list[str]:
    """This checkout's path, its parent unless that is everybody's, and the hosts of this machine's package sources."""
    places = [str(ROOT)] + ([] if str(ROOT.parent) in SHARED_BY_ALL else [f"{ROOT.parent}/"])
    sources = [*Path("/etc/apt").glob("sources.list"), *Path("/etc/apt").glob("sources.list.d/*")]
    hosts = {host for path in sources for host in re.findall(r"https?://(?:[^/\s@]*@)?([\w.-]+)", text_of(path))}
    return [*places, *sorted(hosts)]


MACHINE_WORDS = machine_words()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_file_knows_no_machine_and_no_mirror(path: Path) -> None:
    text = text_of(path)
    found = [word for word in MACHINE_WORDS if re.search(rf"(?<![\w.-]){re.escape(word)}", text)]
    found += PERSONAL.findall(text) + MIRROR.findall(text)
    assert not found, f"{named(path)} names {found}"
