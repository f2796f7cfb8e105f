# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``holdfast status`` says how every host stands, also one that cannot be asked, and its exit code says the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import VmFacts, plain
from ansible_collections.holdfast.kvm.plugins.modules.vm_info import decided
from holdfast.cli import main
from holdfast.progress import ExitCode
from holdfast.status import HostStanding, Reach, VmStanding, as_document, asked, exit_code, next_step
from holdfast.status_table import standing_tables
from holdfast.upgrade import Place

GIB = 1 << 30
POOL = {"regions": [{"start": 4 * GIB, "size": 2 * GIB}], "mounted": True, "size_bytes": 2 * GIB, "free_bytes": GIB}
HOST = {"kernel": "7.2.12", "qemu": {"version": [11, 1, 3]}, "agent_installed": True, "pool": POOL}
DB1 = {"name": "db1", "uuid": "u1", "state": "running", "ram_bytes": GIB, "ram_files_present": ["pc.ram"]}
IN_PLACE = {"treatment": "in_place", "reason": "by rule 1 (name db-*)"}


def ok(name: str, module: str, /, **result: Any) -> Mapping[str, Any]:
    action = f"holdfast.kvm.{module}"
    return {"event": "runner_on_ok", "event_data": {"host": name, "resolved_action": action, "res": result}}


def lost(host: str, event: str, message: str) -> Mapping[str, Any]:
    return {"event": event, "event_data": {"host": host, "task": "Look at the host", "res": {"msg": message}}}


def standing(*events: Mapping[str, Any], return_code: int = 0, names: tuple[str, ...] = ("hv1",)) -> list[HostStanding]:
    def start(on_event: Callable[[Mapping[str, Any]], bool], _cancelled: object) -> int:
        for event in events:
            assert on_event(event)
        return return_code

    return list(asked(names, Place(Path("/nowhere")), start))


def well(**changes: Any) -> HostStanding:
    """A host on which all is well, but for these facts or journal."""
    journal = changes.pop("journal", {"state": "restored", "generation": "g-1", "vms": []})
    vms = changes.pop("vms", [{**DB1, "decision": IN_PLACE}])
    policy_error = changes.pop("policy_error", "")
    return standing(
        ok("hv1", "host_info", host={**HOST, **changes}, journal=journal),
        ok("hv1", "vm_info", vms=vms, policy_error=policy_error),
    )[0]


def test_a_host_on_which_all_is_well() -> None:
    host = well()
    assert (host.kernel, host.qemu, host.journal_state) == ("7.2.12", "11.1.3", "restored")
    assert host.vms == (VmStanding("db1", "u1", "running", GIB, True, "in_place", "by rule 1 (name db-*)"),)
    assert exit_code([host]) is ExitCode.DONE
    assert next_step(host).startswith("nothing is in flight")


def test_a_vm_that_is_away_is_to_come_home() -> None:
    gone = {"name": "app1", "uuid": "u9", "to": "hv2", "at": "2026-11-21T02:00:00Z", "images": []}
    host = standing(
        ok("hv1", "host_info", host=HOST, journal={"state": "none"}, away=[gone]),
        ok("hv1", "vm_info", vms=[], policy_error=""),
    )[0]
    assert host.away == (("app1", "hv2"),)
    assert next_step(host) == "the return_home playbook brings home app1 from hv2"
    assert exit_code([host]) is ExitCode.DONE


def test_a_vm_that_waits_is_named_by_the_journals_word() -> None:
    journal = {"state": "failed", "vms": [{"name": "db1", "uuid": "u1", "state": "failed", "error": "no RAM file"}]}
    host = well(journal=journal, vms=[{**DB1, "state": "shutoff", "decision": IN_PLACE}])
    assert [(vm.state, vm.waiting, vm.ram_bytes) for vm in host.vms] == [("failed", True, GIB)]
    assert exit_code([host]) is ExitCode.HOST_FAILED
    assert "db1" in next_step(host)
    assert "recover" in next_step(host)


def test_a_vm_that_waits_and_that_libvirt_does_not_know_is_not_forgotten() -> None:
    journal = {"state": "failed", "vms": [{"name": "gone", "uuid": "u9", "state": "lost"}]}
    host = well(journal=journal)
    assert [(vm.name, vm.waiting) for vm in host.vms] == [("db1", False), ("gone", True)]


def test_vms_that_were_settled_wait_no_more() -> None:
    journal = {"state": "failed", "vms": [{"name": "db1", "uuid": "u1", "state": "given_up"}]}
    assert exit_code([well(journal=journal)]) is ExitCode.DONE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"journal": {"state": "damaged", "reason": "line 3"}}, "look at its journal"),
        ({"journal": {"state": "suspending", "vms": []}}, "its live update is suspending"),
        ({"agent_installed": False}, "prepare"),
        ({"pool": {**POOL, "mounted": False}}, "not mounted"),
        ({"policy_error": "policy rule 1 is not a mapping"}, "correct the policy: policy rule 1"),
        ({"vms": [{**DB1, "ram_files_present": []}]}, "shut down and start once"),
    ],
)
def test_the_most_pressing_comes_next(changes: dict[str, Any], words: str) -> None:
    assert words in next_step(well(**changes))


def test_a_damaged_journal_is_trouble_and_an_unprepared_host_is_not() -> None:
    assert exit_code([well(journal={"state": "damaged"})]) is ExitCode.HOST_FAILED
    assert exit_code([well(agent_installed=False)]) is ExitCode.DONE


def test_hosts_that_fail_are_lines_beside_the_others() -> None:
    hosts = standing(
        ok("hv1", "host_info", host=HOST, journal={"state": "none"}),
        ok("hv1", "vm_info", vms=[]),
        lost("hv2", "runner_on_unreachable", "ssh: no route"),
        lost("hv3", "runner_on_failed", "no libvirt"),
        return_code=4,
        names=("hv1", "hv2", "hv3", "hv4"),
    )
    assert [host.reach for host in hosts] == [Reach.ANSWERED, Reach.UNREACHABLE, Reach.FAILED, Reach.SILENT]
    assert exit_code(hosts) is ExitCode.HOST_FAILED
    assert exit_code(hosts[:1]) is ExitCode.DONE
    text = rendered(hosts)
    for word in ("ssh: no route", "no libvirt", "unreachable", "doctor", "was not asked"):
        assert word in text


def test_ansible_that_tells_of_no_host_is_one_clear_error() -> None:
    with pytest.raises(CommandFailed, match="ended with 4"):
        standing(return_code=4)


def rendered(hosts: list[HostStanding]) -> str:
    console = Console(width=160, force_terminal=False)
    with console.capture() as capture:
        console.print(standing_tables(hosts))
    return capture.get()


def test_tables_show_pool_vms_and_what_comes_next() -> None:
    text = rendered([well()])
    for word in ("1 GiB of 2 GiB", "11.1.3", "restored", "1 of 1 run", "in place", "nothing is in flight"):
        assert word in text


def test_names_are_shown_and_not_obeyed() -> None:
    hostile = "[red]x[/nope]\x1b[31m\u202e"
    journal = {"state": "failed", "reason": hostile, "vms": [{"name": hostile, "state": "lost", "error": hostile}]}
    text = rendered([well(journal=journal, kernel=hostile, vms=[{**DB1, "name": hostile, "state": hostile}])])
    assert "[red]" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_document_has_sizes_in_bytes_and_the_exit_code() -> None:
    document = json.loads(json.dumps(as_document([well()])))
    assert document["exit_code"] == 0
    assert document["hosts"][0]["pool"] == {
        "mounted": True, "size_bytes": 2 * GIB, "used_bytes": GIB, "free_bytes": GIB
    }  # fmt: skip
    assert document["hosts"][0]["vms"][0]["treatment"] == "in_place"


def test_the_policy_is_applied_and_a_wrong_one_is_said() -> None:
    vms = (VmFacts("db1", "u1"), VmFacts("web", "u2"))
    found = {"vms": [plain(vms[0])]}
    right = decided(found, [{"match": {"name": "db*"}, "priority": 90}], vms)
    assert right["policy_error"] == ""
    assert right["vms"][0]["decision"]["priority"] == 90
    wrong = decided(found, [{"match": {"name": "nobody"}}], vms)
    assert "nobody" in wrong["policy_error"]
    assert wrong["vms"][0]["decision"] == {}


def test_a_host_that_cannot_be_reached_ends_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real playbook by the real ansible-runner; nothing listens on port 1."""
    inventory = tmp_path / "hosts.ini"
    inventory.write_text("[hypervisors]\nhv1 ansible_host=127.0.0.1 ansible_port=1\n")
    assert main(["status", "-i", str(inventory), "--json"]) == ExitCode.HOST_FAILED
    document = json.loads(capsys.readouterr().out)
    assert [(host["host"], host["reach"]) for host in document["hosts"]] == [("hv1", "unreachable")]
