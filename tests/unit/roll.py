# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real upgrade playbook over hosts on this machine, with roles and agents that only leave a mark."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
STEPS = ("preflight", "stage", "evacuate", "live_update", "verify", "return_home")
HOSTS = ("h1", "h2", "h3", "h4")
UNREACHABLE = "ansible_host=127.0.0.1 ansible_port=1 ansible_connection=ssh"


# Stands in for the module that holds a host: a file for each host that is held, and who begins and ends it on record.
LOCK = """
from pathlib import Path
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        state = self._task.args.get("state", "taken")
        try:
            self._low_level_execute_command("true")
        except AnsibleConnectionFailure:
            if state == "taken":
                raise
            return super().run(tmp, task_vars)
        host = self._task.delegate_to or task_vars["inventory_hostname"]
        held = Path(task_vars["marks"]) / (host + ".held")
        with (held.parent / "locks").open("a") as log:
            log.write(f"{host} {state}\\n")
        if state != "taken":
            held.unlink(missing_ok=True)
        elif (held.parent / (host + ".other")).exists():
            return {**super().run(tmp, task_vars), "failed": True, "lock_held": True, "msg": "another one holds it"}
        elif (held.parent / (host + ".stop")).exists():
            told = {"stop_asked": True, "msg": "bob asked this campaign to stop"}
            return {**super().run(tmp, task_vars), "failed": True, **told}
        else:
            held.touch()
        return super().run(tmp, task_vars)
"""

# Leaves a mark, without a look at the host.
MARK = """
from pathlib import Path
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    _requires_connection = False

    def run(self, tmp=None, task_vars=None):
        (Path(task_vars["marks"]) / f"{task_vars['inventory_hostname']}.{self._task.args['step']}").touch()
        return super().run(tmp, task_vars)
"""

# Stands in for the module that lists VMs: what the file of that host says.
VMS = """
import json
from pathlib import Path
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        self._low_level_execute_command("true")
        path = Path(task_vars["marks"]) / ((self._task.delegate_to or task_vars["inventory_hostname"]) + ".vms")
        return {**super().run(tmp, task_vars), "vms": json.loads(path.read_text())}
"""


class Fleet:
    """Four hosts h1..h4 on this machine, and a collection of stub roles around the real playbooks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.marks = directory / "marks"
        self.marks.mkdir()
        self.variables: dict[str, str] = dict.fromkeys(HOSTS, "ansible_connection=local")
        collection = directory / "ansible_collections" / "holdfast" / "kvm"
        for part in ("playbooks", "plugins", "meta"):
            shutil.copytree(
                REPOSITORY / part, collection / part, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True
            )
        shutil.copy(REPOSITORY / "galaxy.yml", collection)
        for role in (*STEPS, "report"):
            write_role(collection / "roles" / role, role)
        write_agent(collection / "plugins" / "action" / "mark.py", MARK)
        write_agent(collection / "plugins" / "action" / "campaign_lock.py", LOCK)
        write_agent(collection / "plugins" / "action" / "vm_info.py", VMS)

    @property
    def inventory(self) -> Path:
        return self.directory / "inventory.ini"

    @property
    def variables_of_all(self) -> dict[str, str]:
        """What every run needs. All hosts are this machine, whose Python is ours."""
        return {
            "marks": str(self.marks),
            "ansible_become": "false",
            "holdfast_reach_timeout_s": "2",
            "ansible_python_interpreter": sys.executable,
        }

    def write_inventory(self) -> None:
        hosts = "\n".join(f"{host} {variables}" for host, variables in self.variables.items())
        self.inventory.write_text(f"[hypervisors]\n{hosts}\n")

    def upgrade(self, *options: str, playbook: str = "upgrade") -> subprocess.CompletedProcess[str]:
        self.write_inventory()
        path = self.directory / f"ansible_collections/holdfast/kvm/playbooks/{playbook}.yml"
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.inventory), str(path)]
        command += [word for name, value in self.variables_of_all.items() for word in ("-e", f"{name}={value}")]
        return subprocess.run(
            [*command, *options],
            env=self.environment(),
            cwd=self.directory,
            text=True,
            capture_output=True,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        quiet = {
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_HOME": str(self.directory / "home"),
        }
        return {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(self.directory), **quiet}

    def order(self, step: str) -> list[str]:
        """The same, as they got there."""
        found = sorted(self.marks.glob(f"*.{step}"), key=lambda path: path.stat().st_mtime_ns)
        return [path.name.split(".")[0] for path in found]

    def marked(self, step: str) -> list[str]:
        """Hosts that got as far as this step."""
        return sorted(path.name.split(".")[0] for path in self.marks.glob(f"*.{step}"))


def write_role(directory: Path, name: str) -> None:
    """A role that leaves a mark on the controller, and fails on the host named by ``fail_at_<role>``."""
    mark = {"name": f"Mark {name}", "holdfast.kvm.mark": {"step": name}}
    fail = {
        "name": f"Fail {name}",
        "ansible.builtin.fail": {"msg": f"{name} failed on request"},
        "when": f"inventory_hostname == fail_at_{name} | default('')",
    }
    (directory / "tasks").mkdir(parents=True)
    (directory / "tasks" / "main.yml").write_text(yaml.safe_dump([mark, fail], sort_keys=False))


def write_agent(path: Path, code: str) -> None:
    """An action plugin in place of a module that would look at a host, or act on it."""
    path.write_text(code)
