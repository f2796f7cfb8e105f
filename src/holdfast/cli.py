# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``holdfast``: reads arguments, calls one function, turns its outcome into an exit code."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, HoldfastError, Refused
from ansible_collections.holdfast.kvm.plugins.module_utils._report.html import page
from ansible_collections.holdfast.kvm.plugins.module_utils._report.schema import SCHEMA_VERSION, violations

from .progress import ExitCode

# Each brings its own sub-command through register(subparsers).
GUESTS = ("holdfast.lab.cli", "holdfast.bench.cli", "holdfast.faults.cli")
EXIT_CODES = (
    "exit codes: 0 done, 2 a host failed, 3 refused by preflight, 4 stopped on request, 5 another run holds the lock"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    arguments = parser().parse_args(argv)
    arguments.words = sys.argv[1:] if argv is None else list(argv)
    try:
        return int(arguments.func(arguments))
    except Refused as error:
        return _complain(error, ExitCode.REFUSED)
    except HoldfastError as error:
        return _complain(error, ExitCode.HOST_FAILED)
    except KeyboardInterrupt:
        return ExitCode.STOPPED
    except BrokenPipeError:
        # The reader of our output has gone, as in `holdfast report ... | head`.
        sys.stderr.close()
        return ExitCode.DONE


def _complain(error: HoldfastError, code: ExitCode) -> int:
    print(f"holdfast: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"          {error.hint}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """All sub-commands, with those of the lab and the bench where they are installed."""
    top = argparse.ArgumentParser(
        prog="holdfast",
        epilog=EXIT_CODES,
        description="Upgrade KVM hypervisors under the feet of their virtual machines.",
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _register_plan(commands)
    _register_upgrade(commands)
    _register_recover(commands)
    _register_status(commands)
    _register_doctor(commands)
    _register_report(commands)
    for name in GUESTS:
        _register_guest(name, commands)
    return top


def _register_guest(name: str, commands: Any) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only its own absence is fine; a dependency that it misses is not.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return
    module.register(commands)


def _register_plan(commands: Any) -> None:
    command = commands.add_parser(
        "plan",
        help="say what would happen to each VM, which hosts go together, and how long it takes; touches nothing",
        epilog="exit codes: 0 a plan for every host, 2 no plan, 3 a plan that leaves hosts out",
    )
    _add_hosts(command)
    command.add_argument("--json", action="store_true", help="print the plan as JSON")
    command.add_argument("--vms", action="store_true", help="name every VM, not only those that do not stay in place")
    command.add_argument("--dir", type=Path, metavar="DIR", help="where plan.json and plan.html go")
    command.set_defaults(func=_plan)


def _register_upgrade(commands: Any) -> None:
    command = commands.add_parser(
        "upgrade", help="upgrade the hosts of an inventory, one after the other or as planned", epilog=EXIT_CODES
    )
    _add_fleet(command)
    command.add_argument(
        "--plan",
        type=Path,
        metavar="PATH",
        help="a plan.json, or the directory it is in: upgrade its hosts, in its batches and with its treatments",
    )
    command.add_argument(
        "--replan",
        action="store_true",
        help="when the fleet is not as planned any more: plan the rest anew by the same limits, and go on if that does "
        "nothing that the plan did not",
    )
    command.add_argument("--campaign", default="upgrade", help="name at the top of the report (default: upgrade)")
    command.add_argument("--report-dir", type=Path, metavar="DIR", help="where report.json and report.html go")
    command.add_argument(
        "--only",
        choices=("qemu",),
        help="give each VM the new QEMU by itself, under the kernel that runs: a short pause for each, and no jump",
    )
    command.add_argument(
        "--rehearse",
        action="store_true",
        help="boot the new kernel in a throw-away VM on each host first; a host whose new kernel fails is refused",
    )
    command.add_argument(
        "--verify-ram",
        choices=("sampled", "full"),
        help="how much RAM of each VM is compared before it is restored: 256 pages (the default), or all of it, which "
        "is read twice within the pause",
    )
    command.set_defaults(func=_upgrade)


def _register_recover(commands: Any) -> None:
    command = commands.add_parser(
        "recover",
        help="finish or take back what an upgrade left behind on the hosts of an inventory; safe at any time",
        epilog=EXIT_CODES,
    )
    _add_fleet(command)
    command.add_argument(
        "--give-up",
        action="append",
        default=[],
        metavar="VM",
        help="if this VM cannot be brought back, delete the RAM that was kept for it, so that it may start from its "
        "disk; again for each further one",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="when no VM waits any more: go on with the upgrade of this inventory whose controller died on this "
        "machine, by the same command",
    )
    command.set_defaults(func=_recover)


def _register_status(commands: Any) -> None:
    command = commands.add_parser(
        "status",
        help="how the hosts of an inventory stand, and what happens next; touches nothing",
        epilog="exit codes: 0 all is well, 2 a host failed or cannot be reached, or a VM waits",
    )
    _add_hosts(command)
    command.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    command.set_defaults(func=_status)


def _register_doctor(commands: Any) -> None:
    command = commands.add_parser(
        "doctor",
        help="look for what an upgrade would miss on this machine and on the hosts; changes nothing",
        epilog="exit codes: 0 nothing stands in the way, 2 there is a problem",
    )
    _add_hosts(command)
    command.add_argument("--json", action="store_true", help="print one JSON document instead of a picture")
    command.set_defaults(func=_doctor)


def _add_fleet(command: argparse.ArgumentParser) -> None:
    """Which hosts, whether to act on them, and how it is shown."""
    _add_hosts(command)
    command.add_argument(
        "-C",
        "--check",
        action="store_const",
        const=("--check",),
        default=(),
        help="say what would happen, and change nothing",
    )
    command.add_argument("--json", action="store_true", help="print JSON lines instead of a picture")


def _add_hosts(command: argparse.ArgumentParser) -> None:
    command.add_argument("-i", "--inventory", type=Path, required=True, help="inventory file or directory")
    command.add_argument("-l", "--limit", default="", help="only these hosts (an Ansible pattern)")
    command.add_argument(
        "-e",
        "--extra-vars",
        action="append",
        default=[],
        metavar="VARS",
        help="as for ansible-playbook: key=value, JSON or @file",
    )


def _register_report(commands: Any) -> None:
    command = commands.add_parser("report", help="show a report.json in the terminal, or turn it into a page")
    command.add_argument("path", type=Path, metavar="PATH", help="report.json, or the directory it is in")
    command.add_argument("--html", type=Path, metavar="OUT", help="write the page to this file instead")
    command.set_defaults(func=_report)


def _plan(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from .plan import make
    from .plan_view import drawing, exceptions
    from .upgrade import PLAN, Wish

    wish = Wish(
        inventory=arguments.inventory,
        limit=arguments.limit,
        extra_vars=tuple(arguments.extra_vars),
        campaign="plan",
        plan_dir=arguments.dir,
        playbook=PLAN,
    )
    plan = make(wish)
    path = plan.pop("plan_json")
    if arguments.json:
        print(json.dumps(plan))
    else:
        console = Console()
        console.print(drawing(plan, plan["vms"] if arguments.vms else exceptions(plan)))
        console.print(f"plan: {path}", soft_wrap=True, markup=False)
        words = ("holdfast", "upgrade", "-i", str(arguments.inventory), "--plan", path)
        console.print(f"to carry it out: {shlex.join(words)}", soft_wrap=True, markup=False)
    return ExitCode.DONE if plan["complete"] else ExitCode.REFUSED


def _upgrade(arguments: argparse.Namespace) -> int:
    from . import replan, unfinished, upgrade

    wish = upgrade.Wish(
        inventory=arguments.inventory,
        limit=arguments.limit,
        check=arguments.check,
        extra_vars=(*arguments.extra_vars, *_chosen(arguments)),
        campaign=arguments.campaign,
        report_dir=arguments.report_dir,
        plan=arguments.plan,
    )
    carry_out = replan.carry_out if arguments.replan else upgrade.carry_out
    if arguments.check or not arguments.inventory.exists():
        return carry_out(wish, lambda: _view(arguments))
    asked = unfinished.asked(arguments.words, arguments.inventory)
    with unfinished.on_record(upgrade.state_dir(os.environ), asked):
        return carry_out(wish, lambda: _view(arguments))


def _chosen(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Options that are variables of a role. What was not asked for is left to the inventory."""
    wanted = {
        "holdfast_only": arguments.only,
        "live_update_rehearse": arguments.rehearse,
        "live_update_verify_ram": arguments.verify_ram,
    }
    asked = {name: value for name, value in wanted.items() if value}
    return (json.dumps(asked),) if asked else ()


def _recover(arguments: argparse.Namespace) -> int:
    from .upgrade import RECOVER, Wish, carry_out

    letting_go = (json.dumps({"holdfast_give_up": arguments.give_up}),) if arguments.give_up else ()
    wish = Wish(
        inventory=arguments.inventory,
        limit=arguments.limit,
        check=arguments.check,
        extra_vars=(*arguments.extra_vars, *letting_go),
        campaign="recover",
        playbook=RECOVER,
    )
    code = carry_out(wish, lambda: _view(arguments))
    return _go_on(arguments) if code == ExitCode.DONE and not arguments.check else code


def _go_on(arguments: argparse.Namespace) -> int:
    """After a recovery that left nothing waiting: say which upgrade died here, and resume it if that is wanted."""
    from . import unfinished, upgrade

    left = unfinished.died(upgrade.state_dir(os.environ), str(arguments.inventory.resolve()))
    if not left:
        if arguments.resume:
            print("holdfast: no upgrade of this inventory died on this machine; nothing to go on with", file=sys.stderr)
        return ExitCode.DONE
    last = left[-1][1]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(last.since))
    if not arguments.resume:
        print(f"holdfast: an upgrade of {when} died with its controller: {last.told}", file=sys.stderr)
        print("          recover with --resume, and it goes on", file=sys.stderr)
        return ExitCode.DONE
    print(f"holdfast: going on with the upgrade of {when}: {last.told}", file=sys.stderr, flush=True)
    try:
        os.chdir(last.folder)
    except OSError as error:
        raise BadInput(
            f"the upgrade was begun in {last.folder}, which cannot be entered: {error.strerror}",
            "begin it anew by its own command",
        ) from error
    return main(last.words)


def _status(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from . import status
    from .status_table import standing_tables
    from .upgrade import Wish

    wish = Wish(arguments.inventory, arguments.limit, extra_vars=tuple(arguments.extra_vars), playbook=status.STATUS)
    with Console(stderr=True).status("asking the hosts"):
        hosts = status.look(wish)
    if arguments.json:
        _say(json.dumps(status.as_document(hosts), indent=2))
    else:
        Console().print(standing_tables(hosts))
    return status.exit_code(hosts)


def _doctor(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from .doctor import findings
    from .doctor.rounds import examined
    from .doctor.sheet import sheet
    from .status import STATUS
    from .upgrade import Wish

    wish = Wish(arguments.inventory, arguments.limit, extra_vars=tuple(arguments.extra_vars), playbook=STATUS)
    with Console(stderr=True).status("looking at this machine and at the hosts"):
        examinations = examined(wish)
    if arguments.json:
        _say(json.dumps(findings.as_document(examinations), indent=2))
    else:
        Console().print(sheet(examinations))
    return findings.exit_code(examinations)


def _view(arguments: argparse.Namespace) -> Any:
    from rich.console import Console

    from .view import JsonView, LiveView, PlainView

    if arguments.json:
        return JsonView(_say)
    console = Console()
    return LiveView(console) if console.is_terminal else PlainView(_say)


def _say(line: str) -> None:
    print(line, flush=True)


def _report(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from .chart import chart

    report = read_report(arguments.path)
    if arguments.html:
        _write_page(arguments.html, report)
        return ExitCode.DONE
    console = Console()
    console.print(chart(report, console.width))
    return ExitCode.DONE


def _write_page(path: Path, report: dict[str, Any]) -> None:
    try:
        path.write_text(page(report), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"the page cannot be written to {path}: {error.strerror}", "name another file") from error
    print(path)


def read_report(path: Path) -> dict[str, Any]:
    """A report that keeps to the schema. Raises BadInput naming what is wrong with it."""
    file = path / "report.json" if path.is_dir() else path
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            f"{file} cannot be read: {error.strerror}", "name a report.json that an upgrade wrote"
        ) from error
    except ValueError as error:
        raise BadInput(f"{file} is not JSON: {error}", "name a report.json that an upgrade wrote") from error
    wrong = violations(report)
    if wrong:
        raise BadInput(
            f"{file} is no report of schema version {SCHEMA_VERSION}: {wrong[0]}",
            "name a report.json that this version of holdfast wrote",
        )
    return report


if __name__ == "__main__":
    sys.exit(main())
