# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``holdfast-agent``: the core as one program on the host, called by systemd, by libvirt's hook and by the modules."""

from __future__ import annotations

import argparse
import json
import sys
from typing import List, Optional

from . import config as configuration
from .errors import CommandFailed, HoldfastError
from .printable import one_line

# Each sub-command imports what it needs: the hook runs at every start of a VM, attach before anything else at boot.


def main(argv: Optional[List[str]] = None) -> int:
    """Run one sub-command; 0 when done, 1 with one line on standard error when not."""
    options = _parser().parse_args(argv)
    try:
        return int(options.act(options) or 0)
    except HoldfastError as exc:
        print(f"holdfast: {one_line(exc)}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="holdfast-agent", description="Keeps VMs through a host's live update.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("attach", help="attach the pool, early at boot").set_defaults(act=_attach)
    guard = commands.add_parser("guard", help="after the jump: let the old kernel take over if this one dies")
    guard.set_defaults(act=_guard)
    recover = commands.add_parser("recover", help="finish or take back what is in flight; safe at any time")
    recover.set_defaults(act=_recover)
    give_up = commands.add_parser("give-up", help="delete the kept RAM of VMs, so that they may start from their disks")
    give_up.add_argument("names", nargs="+", metavar="VM")
    give_up.set_defaults(act=_give_up)
    commands.add_parser("live-update", help="carry out the request on this host").set_defaults(act=_live_update)
    rehearse = commands.add_parser("rehearse", help="try an installed kernel out in a throw-away VM; touches no other")
    rehearse.add_argument("release", metavar="RELEASE", help="as uname -r will print it")
    rehearse.set_defaults(act=_rehearse)
    status = commands.add_parser("status", help="print the journal")
    status.add_argument("--json", action="store_true", help="the whole of it, for programs")
    status.set_defaults(act=_status)
    hooked = commands.add_parser("hook", help="called by libvirt when a VM starts")
    for name in ("operation", "sub_operation"):
        hooked.add_argument(name)
    hooked.set_defaults(act=_hook)
    return parser


def _attach(_options: argparse.Namespace) -> None:
    from . import attach, fallback, kvm, metrics

    config = configuration.load()
    try:
        boot = attach.attach(config)
    except (HoldfastError, OSError) as exc:
        fallback.after_failed_attach(config, one_line(exc))
        raise
    print(f"pool attached: {boot.value}", flush=True)
    try:
        kvm.make_ready()
    except CommandFailed as exc:  # the pool is what this command is for; libvirt will say that KVM is absent
        print(f"holdfast: KVM is not ready: {one_line(exc)}", file=sys.stderr)
    # With a generation in flight VMs wait to be restored, and recover publishes after that.
    if boot is attach.Boot.ORDINARY:
        metrics.publish(config)


def _guard(_options: argparse.Namespace) -> None:
    from . import guard

    print(f"holdfast: {guard.begin(configuration.load().state_dir)}", flush=True)


def _recover(_options: argparse.Namespace) -> None:
    from . import daemon, metrics, packages, recover, turn

    config = configuration.load()
    with turn.taken(), packages.held_if_free(), metrics.published_after(config), daemon.ended_if_it_hangs():
        print(recover.recover(config))


def _give_up(options: argparse.Namespace) -> None:
    from . import metrics, recover, turn

    config = configuration.load()
    with turn.taken(), metrics.published_after(config):
        print(recover.give_up(config, options.names))


def _live_update(_options: argparse.Namespace) -> None:
    from . import live_update, turn

    with turn.taken():
        live_update.live_update(configuration.load())


def _rehearse(options: argparse.Namespace) -> None:
    import secrets
    import time

    from . import cmdline, kexec, rehearsal

    generation = cmdline.new_generation(time.time(), secrets.token_hex(3))
    line = cmdline.next_command_line(kexec.running_cmdline(), generation=generation)
    seconds = rehearsal.rehearse(configuration.load(), options.release, line)
    print(f"kernel {options.release} reached its self-test, and passed, after {seconds:.0f} s")


def _hook(options: argparse.Namespace) -> None:
    from . import hook

    xml = hook.read_definition(sys.stdin.buffer)
    hook.run(configuration.load(), options.operation, options.sub_operation, xml)


def _status(options: argparse.Namespace) -> None:
    from . import journal

    view = journal.latest(configuration.load().state_dir).view
    if options.json:
        print(json.dumps(view, sort_keys=True))
        return
    print(one_line(f"generation {view.get('generation', '(none)')}: {view['state']} {view.get('reason', '')}"))
    for vm in view.get("vms", []):
        told = f"{vm['name']}: {vm['state']} {vm['error']}"
        print(f"  {one_line(told)}")


if __name__ == "__main__":
    sys.exit(main())
