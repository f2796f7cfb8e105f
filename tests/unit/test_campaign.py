# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan is carried out as it was approved, and not when the fleet is another: the real playbook, over stub roles."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from roll import HOSTS, UNREACHABLE, Fleet, write_agent

from ansible_collections.holdfast.kvm.plugins.module_utils._plan.document import decisions_digest
from holdfast.progress import ExitCode

GIB = 1 << 30
BATCHES = [["h3"], ["h1", "h4"], ["h2"]]


def vm(host: str, **fields: Any) -> dict[str, Any]:
    """The one VM of a host, as vm_info has it."""
    number = host[1:]
    return {
        "name": f"vm{number}",
        "uuid": f"00000000-0000-4000-8000-{int(number):012d}",
        "state": "running",
        "ram_bytes": 4 * GIB,
        "ram_backing": "file-shared",
        **fields,
    }


def planned(host: str, **fields: Any) -> dict[str, Any]:
    """What a plan keeps of it."""
    known = {key: value for key, value in vm(host).items() if key != "state"}
    policy = {"treatments": ["in_place"], "priority": 50, "max_pause_s": None, "critical": False, "group": ""}
    return {**known, "host": host, **policy, "return_home": False, "may_restart": False, **fields}


def move(host: str, destination: str) -> dict[str, Any]:
    known = vm(host)
    return {"vm": known["name"], "uuid": known["uuid"], "source": host, "destination": destination}


class Campaign:
    """A fleet of four hosts with a VM each, and a plan for it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.path = fleet.directory / "plan.json"
        self.plan: dict[str, Any] = {
            "schema_version": 1,
            "fleet": {
                "hosts": [{"name": host, "domain": "", "done": False} for host in HOSTS],
                "groups": [],
                "vms": [planned(host) for host in HOSTS],
            },
            "batches": [
                {"number": number, "hosts": hosts, "evacuations": []} for number, hosts in enumerate(BATCHES, start=1)
            ],
            "vms": [{**vm(host), "host": host, "treatment": "in_place", "options": []} for host in HOSTS],
            "limits": {},
        }
        for host in HOSTS:
            self.has(host, vm(host))

    def has(self, host: str, *vms: dict[str, Any]) -> None:
        """These VMs run there."""
        (self.fleet.marks / f"{host}.vms").write_text(json.dumps(vms))

    def upgrade(self, *options: str) -> tuple[int, str]:
        """Exit code, and all that was printed, on one line."""
        self.write_plan()
        run = self.fleet.upgrade("-e", f"holdfast_plan={self.path}", *options)
        return run.returncode, " ".join((run.stdout + run.stderr).split())

    def write_plan(self) -> None:
        """As whoever made it."""
        self.plan["decisions_sha256"] = decisions_digest(self.plan)
        self.path.write_text(json.dumps(self.plan))

    def held(self) -> list[str]:
        return self.fleet.marked("held")


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return Campaign(Fleet(tmp_path))


def keep_orders(fleet: Fleet) -> None:
    """Let the live update of each host write down what it was given, and the order in which they came."""
    tasks = fleet.directory / "ansible_collections/holdfast/kvm/roles/live_update/tasks/main.yml"
    given = "{'batch': ansible_play_batch, 'leaving': evacuate_destinations, 'policy': holdfast_planned_policy}"
    keep = {
        "name": "Keep the orders",
        "ansible.builtin.copy": {
            "content": f"{{{{ {given} | to_json }}}}",
            "dest": "{{ marks }}/{{ inventory_hostname }}.orders",
        },
    }
    tasks.write_text(yaml.safe_dump([keep, *yaml.safe_load(tasks.read_text())], sort_keys=False))


def orders(fleet: Fleet, host: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((fleet.marks / f"{host}.orders").read_text())
    return found


def test_hosts_are_upgraded_in_the_batches_of_the_plan(campaign: Campaign) -> None:
    keep_orders(campaign.fleet)
    campaign.plan["batches"][2]["hosts"] = []
    status, text = campaign.upgrade("-e", "holdfast_serial=4")
    assert status == 0, text
    assert campaign.fleet.marked("verify") == ["h1", "h3", "h4"]
    assert [orders(campaign.fleet, host)["batch"] for host in ("h3", "h1", "h4")] == [
        ["h3"],
        ["h1", "h4"],
        ["h1", "h4"],
    ]
    assert campaign.held() == []


def test_a_limit_takes_hosts_out_of_their_batches_and_joins_none(campaign: Campaign) -> None:
    keep_orders(campaign.fleet)
    status, text = campaign.upgrade("--limit", "h2:h3:h4")
    assert status == 0, text
    assert [orders(campaign.fleet, host)["batch"] for host in ("h3", "h4", "h2")] == [["h3"], ["h4"], ["h2"]]


def test_a_host_gets_the_plans_treatments_and_destinations(campaign: Campaign) -> None:
    keep_orders(campaign.fleet)
    campaign.plan["fleet"]["vms"][0] = planned("h1", treatments=["in_place", "live"], max_pause_s=2.0)
    campaign.plan["vms"][0]["treatment"] = "live"
    campaign.plan["batches"][1]["evacuations"] = [move("h1", "h3")]
    (campaign.fleet.directory / "group_vars").mkdir()
    rules = [{"match": {"name": "vm1"}, "treatments": ["in_place", "live"], "max_pause_s": 2}]
    (campaign.fleet.directory / "group_vars" / "all.yml").write_text(yaml.safe_dump({"holdfast_policy": rules}))
    status, text = campaign.upgrade("--limit", "h1:h3:h4")
    assert status == 0, text
    assert orders(campaign.fleet, "h1")["leaving"] == {"vm1": "h3"}
    (rule,) = orders(campaign.fleet, "h1")["policy"]
    assert (rule["match"], rule["treatments"]) == ({"name": "vm1"}, ["live"])
    assert rule["max_pause_s"] == 2
    assert orders(campaign.fleet, "h4")["leaving"] == {}
    assert orders(campaign.fleet, "h4")["policy"][0]["treatments"] == ["in_place"]


def test_nothing_is_begun_when_the_fleet_has_changed(campaign: Campaign) -> None:
    campaign.has("h1")
    hostile = "{{ lookup('ansible.builtin.pipe', 'touch obeyed') }}\x1b[31m"
    campaign.has("h2", vm("h2"), vm("h1"), vm("h9"), vm("h8", name=hostile))
    status, text = campaign.upgrade()
    assert status == 2
    assert "{{ lookup" in text
    assert "\x1b" not in text
    assert not (campaign.fleet.directory / "obeyed").exists()
    for change in ("VM vm1 is on h2, in the plan on h1", "VM vm9 runs on h2, and is not in the plan", "plan again"):
        assert change in text
    assert campaign.fleet.marked("preflight") == []
    assert campaign.held() == []


def test_a_change_between_batches_stops_the_roll(campaign: Campaign) -> None:
    """A VM comes to h2 while h3 is being upgraded."""
    tasks = campaign.fleet.directory / "ansible_collections/holdfast/kvm/roles/verify/tasks/main.yml"
    content = json.dumps([vm("h2"), vm("h7")])
    come = {"name": "Come", "ansible.builtin.copy": {"content": content, "dest": "{{ marks }}/h2.vms"}}
    tasks.write_text(yaml.safe_dump([come, *yaml.safe_load(tasks.read_text())]))
    status, text = campaign.upgrade("-e", "holdfast_max_failures=2")
    assert status == 2
    assert "VM vm7 runs on h2, and is not in the plan" in text
    assert campaign.fleet.marked("verify") == ["h1", "h3", "h4"]
    assert campaign.fleet.marked("preflight") == ["h1", "h3", "h4"]
    assert campaign.held() == []


def serve_one_service(campaign: Campaign, least: int) -> None:
    """Of vm1, vm2 and vm3 so many always have to run."""
    group = {"name": "db", "min_available": least, "anti_affinity": False}
    campaign.plan["fleet"]["groups"] = [group]
    campaign.plan["fleet"]["vms"] = [planned(host, group="db" if host != "h4" else "") for host in HOSTS]
    (campaign.fleet.directory / "group_vars").mkdir()
    variables = {
        "holdfast_policy": [{"match": {"name": f"vm{number}"}, "group": "db"} for number in (1, 2, 3)],
        "holdfast_groups": {"db": {"min_available": least}},
    }
    (campaign.fleet.directory / "group_vars" / "hypervisors.yml").write_text(yaml.safe_dump(variables))


def test_no_batch_is_begun_when_a_member_of_its_group_does_not_run_elsewhere(campaign: Campaign) -> None:
    """vm3 had its turn, and was then shut down, or went down with its host."""
    serve_one_service(campaign, 2)
    tasks = campaign.fleet.directory / "ansible_collections/holdfast/kvm/roles/verify/tasks/main.yml"
    gone = {"name": "Go", "ansible.builtin.copy": {"content": "[]", "dest": "{{ marks }}/h3.vms"}}
    tasks.write_text(yaml.safe_dump([gone, *yaml.safe_load(tasks.read_text())]))
    status, text = campaign.upgrade()
    assert status == 2
    assert "group db: 2 of its members have to run, and of the others only vm2 would" in text
    assert campaign.fleet.marked("preflight") == ["h3"]
    assert campaign.held() == []


def test_a_batch_is_begun_when_enough_of_a_group_run_elsewhere(campaign: Campaign) -> None:
    serve_one_service(campaign, 2)
    status, text = campaign.upgrade()
    assert status == 0, text
    assert campaign.fleet.marked("verify") == sorted(HOSTS)


# Lost while h3 is upgraded.
LOST_LATER = (
    "ansible_connection=\"{{ 'local' if not lookup('fileglob', marks ~ '/h3.verify') else 'ssh' }}\""
    " ansible_host=127.0.0.1 ansible_port=1"
)


@pytest.mark.parametrize(("least", "begun"), [(1, ["h1", "h3", "h4"]), (2, ["h3"])])
def test_a_host_that_does_not_answer_has_no_member_that_runs(campaign: Campaign, least: int, begun: list[str]) -> None:
    serve_one_service(campaign, least)
    campaign.fleet.variables["h2"] = LOST_LATER
    status, text = campaign.upgrade()
    assert status != 0
    assert campaign.fleet.marked("verify") == begun, text
    assert ("(h2 did not say what runs there)" in text) == (least == 2)


def test_groups_that_have_to_be_kept_need_a_plan(campaign: Campaign) -> None:
    serve_one_service(campaign, 2)
    run = campaign.fleet.upgrade()
    assert run.returncode != 0
    assert "only a plan sees to that" in " ".join((run.stdout + run.stderr).split())
    assert campaign.fleet.marked("preflight") == []
    assert campaign.fleet.upgrade("-e", json.dumps({"holdfast_groups": {}})).returncode == 0


def test_no_host_is_begun_while_one_of_the_plan_cannot_be_reached(campaign: Campaign) -> None:
    campaign.fleet.variables["h2"] = UNREACHABLE
    status, text = campaign.upgrade()
    assert status in (2, 4)
    assert "h2 did not say which VMs it has" in text
    assert campaign.fleet.marked("preflight") == []


def test_another_campaign_that_holds_a_host_keeps_all_of_them_untouched(campaign: Campaign) -> None:
    (campaign.fleet.marks / "h4.other").touch()
    status, text = campaign.upgrade()
    assert status == 2
    assert "another one holds it" in text
    assert campaign.fleet.marked("preflight") == []
    assert campaign.held() == []


def test_a_campaign_that_lost_its_hold_ends_whatever_its_budget(campaign: Campaign) -> None:
    """Somebody broke it, and began another campaign."""
    tasks = campaign.fleet.directory / "ansible_collections/holdfast/kvm/roles/verify/tasks/main.yml"
    broken = {"name": "Break", "ansible.builtin.copy": {"content": "", "dest": "{{ marks }}/h1.other"}}
    tasks.write_text(yaml.safe_dump([broken, *yaml.safe_load(tasks.read_text())]))
    status, _ = campaign.upgrade("-e", "holdfast_max_failures=2")
    assert status == 2
    assert campaign.fleet.marked("preflight") == ["h3", "h4"]
    assert campaign.fleet.marked("verify") == ["h3", "h4"]


def test_a_failed_host_ends_the_roll_and_lets_others_begin(campaign: Campaign) -> None:
    status, _ = campaign.upgrade("-e", "fail_at_live_update=h4")
    assert status == 2
    assert campaign.fleet.marked("verify") == ["h1", "h3"]
    assert campaign.fleet.marked("preflight") == ["h1", "h3", "h4"]
    assert campaign.held() == []


def test_the_budget_lets_the_roll_go_on_and_the_end_is_still_an_error(campaign: Campaign) -> None:
    status, text = campaign.upgrade("-e", "fail_at_live_update=h3", "-e", "holdfast_max_failures=1")
    assert status == 2
    assert "h3 failed at 'Fail live_update'. The roll goes on: 1 hosts may fail" in text
    assert campaign.fleet.marked("verify") == ["h1", "h2", "h4"]
    assert "h3 was not upgraded, see the error of 'Fail live_update' above" in text


def test_a_budget_that_is_spent_ends_the_roll(campaign: Campaign) -> None:
    for role in ("stage",):
        tasks = campaign.fleet.directory / f"ansible_collections/holdfast/kvm/roles/{role}/tasks/main.yml"
        fail = {"name": "Fail", "ansible.builtin.fail": {"msg": "no"}, "when": "inventory_hostname in ['h3', 'h1']"}
        tasks.write_text(yaml.safe_dump([fail]))
    status, _ = campaign.upgrade("-e", "holdfast_max_failures=1")
    assert status == 2
    assert campaign.fleet.marked("verify") == ["h4"]


VERIFY = """
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        msg = "Not everything carried on: VM vm3 does not run"
        return {**super().run(tmp, task_vars), "failed": True, "msg": msg, "vms_not_running": ["vm3"]}
"""


@pytest.mark.parametrize(
    ("journal", "others"),
    [
        ({"state": "aborted", "vms": [{"name": "vm3", "state": "resumed"}]}, ["h1"]),
        ({"state": "failed", "vms": [{"name": "vm3", "state": "resumed"}]}, []),
        ({"state": "restored", "vms": [{"name": "vm3", "state": "lost"}]}, []),
        ({}, []),
    ],
)
def test_the_budget_is_for_hosts_whose_vms_are_known_to_run(
    campaign: Campaign, journal: dict[str, Any], others: list[str]
) -> None:
    """Other members of their groups may stand still only as long as they run."""
    tasks = campaign.fleet.directory / "ansible_collections/holdfast/kvm/roles/live_update/tasks/main.yml"
    ended = {"result": "failed", "error": "it broke", "generation": "g-1", "journal": journal}
    told = {"name": "Tell", "ansible.builtin.set_fact": {"holdfast_live_update_result": ended}}
    tasks.write_text(
        yaml.safe_dump([{**told, "when": "inventory_hostname == 'h3'"}, *yaml.safe_load(tasks.read_text())])
    )
    campaign.upgrade("--limit", "h1:h3", "-e", "fail_at_live_update=h3", "-e", "holdfast_max_failures=9")
    assert campaign.fleet.marked("verify") == others


def test_the_budget_is_not_for_a_vm_that_ended_after_it_had_come_back(campaign: Campaign) -> None:
    """verify finds it: by the journal it was resumed."""
    verify = campaign.fleet.directory / "ansible_collections/holdfast/kvm/roles/verify/tasks/main.yml"
    write_agent(verify.parents[3] / "plugins/action/verify.py", VERIFY)
    verify.write_text(yaml.safe_dump([{"name": "Prove that every VM carried on", "holdfast.kvm.verify": {}}]))
    status, _ = campaign.upgrade("--limit", "h1:h3", "-e", "holdfast_max_failures=9")
    assert status == 2
    assert campaign.fleet.marked("live_update") == ["h3"]


def test_a_host_that_cannot_be_reached_is_in_no_budget(campaign: Campaign) -> None:
    campaign.fleet.variables["h1"] = LOST_LATER
    status, text = campaign.upgrade("-e", "holdfast_max_failures=3")
    assert status != 0
    assert "Not begun, and not touched: h1 of its batch cannot be reached" in text
    assert campaign.fleet.marked("verify") == ["h3"]
    assert campaign.fleet.marked("preflight") == ["h3"]


def test_a_stop_on_request_lets_others_begin(campaign: Campaign) -> None:
    status, text = campaign.upgrade("-e", f"holdfast_stop_file={campaign.fleet.marks / 'h3.verify'}")
    assert status == 2
    assert "Stopped on request before h1, h4" in text
    assert campaign.fleet.marked("verify") == ["h3"]
    assert campaign.held() == []


def test_a_plan_for_hosts_of_another_inventory_is_refused(campaign: Campaign) -> None:
    campaign.plan["batches"][0]["hosts"] = ["h9"]
    status, text = campaign.upgrade()
    assert status != 0
    assert "the plan upgrades h9, which the inventory does not have" in text


def test_a_plan_that_was_edited_by_hand_is_refused(campaign: Campaign) -> None:
    campaign.write_plan()
    campaign.plan["vms"][0]["treatment"] = "restart"
    campaign.path.write_text(json.dumps(campaign.plan))
    run = campaign.fleet.upgrade("-e", f"holdfast_plan={campaign.path}")
    assert run.returncode != 0
    assert "is not as it was made" in " ".join((run.stdout + run.stderr).split())
    assert campaign.fleet.marked("preflight") == []


def test_without_a_plan_a_host_is_held_for_its_own_turn(campaign: Campaign) -> None:
    run = campaign.fleet.upgrade("--limit", "h1,h2,localhost")
    assert run.returncode == 0, run.stdout
    log = (campaign.fleet.marks / "locks").read_text().splitlines()
    assert log == ["h1 taken", "h1 released", "h2 taken", "h2 released"]


PLAN = """
import json
from pathlib import Path
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        path = Path(self._task.args["dest"], "plan.json").absolute()
        path.parent.mkdir(exist_ok=True)
        path.write_text((Path(task_vars["marks"]) / "plan").read_text())
        made = {"summary": [], "complete": True, "plan_html": "", "decisions_sha256": "aa"}
        return {**super().run(tmp, task_vars), **made}
"""
LOOK = """
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        return {**super().run(tmp, task_vars), "host": {"a": 1}, "journal": {}, "switchovers_s": [], "blockers": []}
"""


@pytest.mark.parametrize(("approved", "upgraded"), [("aa", ["h1", "h2", "h3", "h4"]), ("bb", [])])
def test_without_files_it_is_planned_again_and_upgraded_only_as_approved(
    campaign: Campaign, approved: str, upgraded: list[str]
) -> None:
    actions = campaign.fleet.directory / "ansible_collections/holdfast/kvm/plugins/action"
    (actions / "plan.py").write_text(PLAN)
    for name in ("host_info", "preflight"):
        (actions / f"{name}.py").write_text(LOOK)
    campaign.write_plan()
    (campaign.fleet.marks / "plan").write_text(campaign.path.read_text())
    run = campaign.fleet.upgrade("-e", f"holdfast_plan_sha256={approved}", playbook="campaign")
    assert (run.returncode == 0) == bool(upgraded), run.stdout
    assert campaign.fleet.marked("verify") == upgraded


# holdfast upgrade --plan


def command(campaign: Campaign, *options: str) -> subprocess.CompletedProcess[str]:
    """The command over the same fleet; it takes the collection from the directory that it is started in."""
    campaign.write_plan()
    campaign.fleet.write_inventory()
    variables = {**campaign.fleet.variables_of_all, "report_hosts": []}
    words = [sys.executable, "-m", "holdfast.cli", "upgrade", "-i", str(campaign.fleet.inventory)]
    return subprocess.run(
        [*words, "--plan", str(campaign.path), "-e", json.dumps(variables), *options],
        env={**campaign.fleet.environment(), "XDG_STATE_HOME": str(campaign.fleet.directory / "state")},
        cwd=campaign.fleet.directory,
        text=True,
        capture_output=True,
        check=False,
    )


def test_the_command_goes_through_the_batches_and_says_so(campaign: Campaign) -> None:
    for batch in campaign.plan["batches"]:
        batch["seconds"] = 60.0
    run = command(campaign)
    assert run.returncode == ExitCode.DONE, run.stdout + run.stderr
    told = [line.split(" ", 1)[1] for line in run.stdout.splitlines() if " batch " in line]
    assert [line.split(";")[0] for line in told] == ["batch 1 of 3: h3", "batch 2 of 3: h1, h4", "batch 3 of 3: h2"]
    assert told[0].endswith("about 3 min 00 s left")


def test_a_campaign_that_is_asked_to_stop_from_elsewhere_ends_with_the_batch_in_hand(campaign: Campaign) -> None:
    for batch in campaign.plan["batches"]:
        batch["seconds"] = 60.0
    meanwhile(campaign, "h3", {f"{host}.stop": "" for host in HOSTS})
    run = command(campaign)
    assert run.returncode == ExitCode.STOPPED, run.stdout + run.stderr
    assert "bob asked this campaign to stop" in run.stdout
    assert campaign.fleet.marked("preflight") == ["h3"]
    assert campaign.held() == []


def changed(campaign: Campaign) -> None:
    campaign.has("h1")


def held(campaign: Campaign) -> None:
    (campaign.fleet.marks / "h4.other").touch()


def lost(campaign: Campaign) -> None:
    campaign.fleet.variables["h2"] = UNREACHABLE


@pytest.mark.parametrize(
    ("happens", "code", "words"),
    [
        (changed, ExitCode.REFUSED, "VM vm1 does not run on h1 any more"),
        (held, ExitCode.LOCKED, "another one holds it"),
        (lost, ExitCode.HOST_FAILED, "h2 cannot be reached"),
    ],
)
def test_the_command_says_why_a_campaign_does_not_begin(
    campaign: Campaign, happens: Callable[[Campaign], None], code: ExitCode, words: str
) -> None:
    for batch in campaign.plan["batches"]:
        batch["seconds"] = 60.0
    happens(campaign)
    run = command(campaign)
    assert (run.returncode, campaign.fleet.marked("preflight")) == (code, []), run.stdout + run.stderr
    assert words in " ".join(run.stdout.split())


HOST = """
from pathlib import Path
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        upgraded = (Path(task_vars["marks"]) / (task_vars["inventory_hostname"] + ".verify")).exists()
        journal = {"state": "restored", "begun_at": 4e9} if upgraded else {"state": "none"}
        cpu = {"vendor": "AuthenticAMD", "name": "EPYC", "flags": ["svm"], "models": [], "count": 16}
        host = {"hostname": "x", "cpu": cpu, "pool": {"mounted": True, "free_bytes": 60 << 30}}
        return {**super().run(tmp, task_vars), "host": host, "journal": journal, "switchovers_s": []}
"""
POLICY = """
holdfast_policy:
  - match: {name: vm1}
    group: db
    max_pause_s: 90
    priority: 70
  - match: {name: "vm*"}
    group: db
holdfast_groups:
  db: {min_available: 2, anti_affinity: true}
plan_waves: [1, 4]
plan_reserve_hosts: 0
"""


def let_it_be_planned(fleet: Fleet) -> None:
    """Stand-ins for what looks at a host, and a policy."""
    actions = fleet.directory / "ansible_collections/holdfast/kvm/plugins/action"
    (actions / "host_info.py").write_text(HOST)
    (actions / "preflight.py").write_text(LOOK)
    (fleet.directory / "group_vars").mkdir()
    (fleet.directory / "group_vars" / "hypervisors.yml").write_text(POLICY)


def test_a_plan_as_it_is_made_is_carried_out(campaign: Campaign) -> None:
    """The real planner's word reaches every host, and its plan is still that of the fleet when the upgrade compares."""
    keep_orders(campaign.fleet)
    let_it_be_planned(campaign.fleet)
    run = campaign.fleet.upgrade(playbook="campaign")
    assert run.returncode == 0, run.stdout
    plan = json.loads((campaign.fleet.directory / "holdfast-plan" / "plan.json").read_text())
    # Of four members two always run, so two pause at a time; the first wave is a single host.
    assert sorted(len(batch["hosts"]) for batch in plan["batches"]) == [1, 1, 2]
    for batch in plan["batches"]:
        assert all(sorted(orders(campaign.fleet, host)["batch"]) == sorted(batch["hosts"]) for host in batch["hosts"])
    (rule,) = orders(campaign.fleet, "h1")["policy"]
    assert (rule["treatments"], rule["priority"], rule["max_pause_s"]) == (["in_place"], 70, 90)


def planned_for_real(campaign: Campaign) -> str:
    """Have the real planner make the plan; returns the host of its first batch."""
    keep_orders(campaign.fleet)
    let_it_be_planned(campaign.fleet)
    assert campaign.fleet.upgrade(playbook="plan").returncode == 0
    campaign.plan = json.loads((campaign.fleet.directory / "holdfast-plan" / "plan.json").read_text())
    return str(campaign.plan["batches"][0]["hosts"][0])


def meanwhile(campaign: Campaign, host: str, files: dict[str, str]) -> None:
    """What changes in the fleet while this host is verified."""
    tasks = campaign.fleet.directory / "ansible_collections/holdfast/kvm/roles/verify/tasks/main.yml"
    changes = [
        {
            "name": "Change",
            "ansible.builtin.copy": {"content": content, "dest": f"{{{{ marks }}}}/{name}"},
            "when": f"inventory_hostname == '{host}'",
        }
        for name, content in files.items()
    ]
    tasks.write_text(yaml.safe_dump([*changes, *yaml.safe_load(tasks.read_text())]))


def test_a_campaign_goes_on_by_a_new_plan_when_a_vm_came(campaign: Campaign) -> None:
    """The real planner, twice: hosts that are done are not upgraded again, and the VM that came is in the new plan."""
    first = planned_for_real(campaign)
    later = campaign.plan["batches"][-1]["hosts"][0]
    meanwhile(campaign, first, {f"{later}.vms": json.dumps([vm(later), vm("h7")])})
    run = command(campaign, "--replan")
    assert run.returncode == ExitCode.DONE, run.stdout + run.stderr
    assert "the rest is planned anew" in run.stderr
    assert campaign.fleet.order("verify")[0] == first, "it was upgraded once, before the others"
    assert campaign.fleet.marked("verify") == sorted(HOSTS)
    assert {rule["match"]["name"] for rule in orders(campaign.fleet, later)["policy"]} == {vm(later)["name"], "vm7"}


def test_another_campaign_that_comes_between_two_plans_ends_it(campaign: Campaign) -> None:
    first = planned_for_real(campaign)
    later = campaign.plan["batches"][-1]["hosts"][0]
    meanwhile(campaign, first, {f"{later}.vms": json.dumps([vm(later), vm("h7")]), f"{later}.other": ""})
    run = command(campaign, "--replan")
    assert run.returncode == ExitCode.LOCKED, run.stdout + run.stderr
    assert campaign.fleet.marked("verify") == sorted({*HOSTS} - {later})


def test_a_new_plan_that_nobody_approved_is_not_carried_out(campaign: Campaign) -> None:
    planned_for_real(campaign)
    rules = campaign.fleet.directory / "group_vars" / "hypervisors.yml"
    rules.write_text(POLICY.replace("max_pause_s: 90", "treatments: [restart]"))
    run = command(campaign, "--replan")
    assert run.returncode == ExitCode.REFUSED, run.stdout + run.stderr
    assert "VM vm1 on h1: restart" in run.stderr
    assert "approved was in_place" in run.stderr
    assert campaign.fleet.marked("preflight") == []
