# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host is held by one campaign at a time, and the hold outlives everything but its end."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleConnectionFailure

from ansible_collections.holdfast.kvm.plugins.action import campaign_lock, controller_check
from ansible_collections.holdfast.kvm.plugins.module_utils._core import campaign, config
from ansible_collections.holdfast.kvm.plugins.module_utils._core.campaign import Holder
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError, Refused
from ansible_collections.holdfast.kvm.plugins.modules import campaign_lock as module
from ansible_collections.holdfast.kvm.plugins.modules.campaign_lock import refusal

OURS = Holder("boot/1/10/99", "ctl1", "ann", 1000.0)
THEIRS = Holder("boot/1/11/99", "ctl2", "bob", 2000.0)


@pytest.fixture(autouse=True)
def _run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "RUN_DIR", tmp_path / "run")


def test_a_host_is_held_by_one(tmp_path: Path) -> None:
    assert campaign.holder(tmp_path) is None
    assert campaign.take(tmp_path, OURS) is None
    assert campaign.take(tmp_path, OURS) is None
    assert campaign.take(tmp_path, THEIRS) == OURS
    assert campaign.holder(tmp_path) == OURS


def test_the_dead_are_replaced(tmp_path: Path) -> None:
    campaign.take(tmp_path, OURS)
    assert campaign.take(tmp_path, THEIRS, over=["someone"]) == OURS
    assert campaign.take(tmp_path, THEIRS, over=[OURS.id]) is None
    assert campaign.holder(tmp_path) == THEIRS


def test_nobody_ends_anothers_hold_by_mistake(tmp_path: Path) -> None:
    campaign.take(tmp_path, OURS)
    assert campaign.release(tmp_path, THEIRS.id) is None
    assert campaign.holder(tmp_path) == OURS
    assert campaign.release(tmp_path) == OURS
    assert campaign.holder(tmp_path) is None
    assert campaign.release(tmp_path) is None


def test_a_damaged_lock_is_somebodys(tmp_path: Path) -> None:
    (tmp_path / campaign.NAME).write_text("{")
    other = campaign.take(tmp_path, OURS)
    assert other
    assert "unknown controller" in refusal(other)
    assert campaign.release(tmp_path) == other


def test_the_refusal_says_who_and_what_to_do() -> None:
    assert "begun by bob on ctl2 at 1970-01-01 00:33:20 UTC" in refusal(THEIRS)
    assert "holdfast recover" in refusal(THEIRS)


def test_a_campaign_is_asked_to_stop_and_the_next_one_is_not(tmp_path: Path) -> None:
    assert campaign.ask_to_stop(tmp_path, "bob on ctl2") is None
    campaign.take(tmp_path, OURS)
    campaign.ask_to_stop(tmp_path, "bob on ctl2")
    assert campaign.take(tmp_path, OURS) is None
    found = campaign.holder(tmp_path)
    assert found
    assert (found.id, found.stop) == (OURS.id, "bob on ctl2")
    campaign.take(tmp_path, THEIRS, over=[OURS.id])
    assert campaign.holder(tmp_path) == THEIRS


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    got: list[str] = []

    def ask(number: int) -> None:
        if campaign.take(tmp_path, Holder(f"id{number}")) is None:
            got.append(f"id{number}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = campaign.holder(tmp_path)
    assert found
    assert got == [found.id]


# The module


class Failed(Exception):
    """fail_json was called."""


def called(monkeypatch: pytest.MonkeyPatch, known: config.Config, check_mode: bool = False, **params: Any) -> Any:
    monkeypatch.setattr(config, "load", lambda: known)
    fake = MagicMock(params={"state": "taken", "holder": {}, "over": [], **params}, check_mode=check_mode)
    fake.fail_json.side_effect = lambda **found: (_ for _ in ()).throw(Failed(found))
    return module.act(fake)


def prepared(state_dir: Path) -> config.Config:
    return config.Config(config.PoolConfig("fsdax", state_dir / "pool", ()), state_dir)


def holder_of(one: Holder) -> dict[str, Any]:
    return {"id": one.id, "controller": one.controller, "user": one.user}


def test_the_module_takes_and_gives_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = prepared(tmp_path)
    assert called(monkeypatch, known, holder=holder_of(OURS))["changed"] is True
    assert called(monkeypatch, known, holder=holder_of(OURS))["changed"] is False
    with pytest.raises(Failed) as caught:
        called(monkeypatch, known, holder=holder_of(THEIRS))
    assert caught.value.args[0]["lock_held"] is True
    assert "ann on ctl1" in caught.value.args[0]["msg"]
    assert called(monkeypatch, known, state="released", holder=holder_of(THEIRS))["changed"] is False
    assert called(monkeypatch, known, state="broken")["holder"]["id"] == OURS.id
    assert campaign.holder(tmp_path) is None


def test_only_a_campaign_of_ours_that_is_known_to_be_dead_is_broken_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = prepared(tmp_path)
    beside = {"id": "boot/4026531836/7/500", "controller": "ctl1", "user": "ann"}
    asking = {**beside, "id": "boot/4026531836/8/900"}
    called(monkeypatch, known, holder=beside)
    assert called(monkeypatch, known, state="broken", holder=asking)["spared"] is True
    assert campaign.holder(tmp_path).id == beside["id"]
    assert called(monkeypatch, known, state="broken", holder=asking, over=[beside["id"]])["changed"] is True
    called(monkeypatch, known, holder=beside)
    elsewhere = {**asking, "id": "another/4026531836/8/900"}
    assert called(monkeypatch, known, state="broken", holder=elsewhere)["changed"] is True
    assert campaign.holder(tmp_path) is None


def test_a_state_directory_that_cannot_be_written_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has begun, and the message names the place and the remedy."""

    def full(_path: Path, _text: str) -> None:
        raise HoldfastError("cannot write /var/lib/holdfast/campaign.json: No space left on device", "make room")

    monkeypatch.setattr(campaign.durable, "write_text", full)
    with pytest.raises(Refused, match="No space left on device -- make room"):
        called(monkeypatch, prepared(tmp_path), holder=holder_of(OURS))


def test_who_is_asked_to_stop_is_told_at_the_next_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = prepared(tmp_path)
    assert called(monkeypatch, known, state="stopping", holder=holder_of(THEIRS))["holder"] == {}
    called(monkeypatch, known, holder=holder_of(OURS))
    assert called(monkeypatch, known, state="stopping", holder=holder_of(THEIRS))["changed"] is True
    assert called(monkeypatch, known, state="stopping", holder=holder_of(THEIRS))["changed"] is False
    with pytest.raises(Failed, match="bob on ctl2 asked this campaign to stop") as caught:
        called(monkeypatch, known, holder=holder_of(OURS))
    assert caught.value.args[0]["stop_asked"] is True


def test_a_check_and_an_unprepared_host_hold_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called(monkeypatch, prepared(tmp_path), check_mode=True, holder=holder_of(OURS))
    called(monkeypatch, config.Config(state_dir=tmp_path), holder=holder_of(OURS))
    assert list(tmp_path.iterdir()) == []


# The action plugin


def acted(monkeypatch: pytest.MonkeyPatch, answers: list[Any], dead: tuple[str, ...] = (), **args: Any) -> Any:
    monkeypatch.setattr(campaign_lock, "is_dead", lambda id: id in dead)
    task = MagicMock(args=args, check_mode=False, async_val=0)
    action = campaign_lock.ActionModule(task, MagicMock(), MagicMock(), MagicMock(), MagicMock(), MagicMock())
    asked: list[dict[str, Any]] = []

    def execute(**call: Any) -> Any:
        asked.append(call["module_args"])
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    action._execute_module = execute
    return action.run(task_vars={}), asked


HELD = {"failed": True, "lock_held": True, "holder": {"id": "them"}}
LOST = AnsibleConnectionFailure("no route")


def test_a_run_that_was_killed_here_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    result, asked = acted(monkeypatch, [HELD, {"changed": True}], dead=("them",))
    assert result["changed"] is True
    assert [one["over"] for one in asked] == [[], ["them"]]
    assert asked[0]["holder"]["id"] == asked[1]["holder"]["id"]


def test_recovering_breaks_the_hold_of_a_run_that_was_killed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    spared = {"spared": True, "holder": {"id": "them"}}
    result, asked = acted(monkeypatch, [spared, {"changed": True}], dead=("them",), state="broken")
    assert (result["changed"], [one["over"] for one in asked]) == (True, [[], ["them"]])
    result, asked = acted(monkeypatch, [spared], state="broken")
    assert (result["spared"], len(asked)) == (True, 1)


def test_one_that_may_live_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    result, asked = acted(monkeypatch, [HELD])
    assert result["lock_held"] is True
    assert len(asked) == 1


def test_a_lost_host_is_an_error_when_taken_and_none_when_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AnsibleConnectionFailure):
        acted(monkeypatch, [LOST])
    result, _ = acted(monkeypatch, [LOST], state="released")
    assert not result.get("failed")
    assert "its hold may stay" in result["msg"]


# The controller's own VM


@pytest.mark.parametrize(("may_pause", "failed"), [(False, True), (True, False)])
def test_the_controllers_own_vm_is_not_paused_by_mistake(
    monkeypatch: pytest.MonkeyPatch, may_pause: bool, failed: bool
) -> None:
    monkeypatch.setattr(controller_check, "own_identities", lambda: {"a" * 32})
    args = {"vms": [{"name": "ctl", "uuid": "A" * 32}], "may_pause": may_pause}
    task = MagicMock(args=args, check_mode=False, async_val=0, action="holdfast.kvm.controller_check")
    action = controller_check.ActionModule(task, MagicMock(), MagicMock(), MagicMock(), MagicMock(), MagicMock())
    result = action.run(task_vars={"inventory_hostname": "hv1"})
    assert bool(result.get("failed")) is failed
    assert result["vm"] == "ctl"
    assert ("ctl on hv1" in result.get("msg", "")) is failed
