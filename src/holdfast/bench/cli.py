# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``holdfast bench``: measure the pause against the alternatives."""

from __future__ import annotations

import argparse
from pathlib import Path

from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import FSDAX
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput

from .pools import KINDS, STOCK

TARGET_MISSED = 2


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add ``bench`` to the command line."""
    bench = subparsers.add_parser(
        "bench",
        help="measure the pause against suspend to disk, on a lab host of its own",
        epilog="exit codes: 0 when it ran to its end, 2 when it did not, or with --strict when a target was missed",
    )
    bench.add_argument("--output", type=Path, default=Path("build/bench"), metavar="DIR", help="default: build/bench")
    bench.add_argument("--sizes", type=read_sizes, default=None, metavar="MIB,…", help="RAM that the guest touches")
    bench.add_argument("--rounds", type=int, default=1, metavar="N", help="measure everything N times (default 1)")
    bench.add_argument("--pool-kind", choices=KINDS, default=FSDAX, help=f"how VM RAM is kept (default {FSDAX})")
    bench.add_argument(
        "--host-ram",
        type=read_sizes,
        default=(),
        metavar="GIB,…",
        help="instead of pauses, measure how long kernels of hosts with so much RAM take, with each kind of pool",
    )
    bench.add_argument(
        "--vms", type=read_sizes, default=(), metavar="N,…", help="instead of one large guest, so many small ones"
    )
    bench.add_argument("--pools", type=read_words, metavar="KIND,…", help="of these kinds only: none, devdax-1G, …")
    bench.add_argument(
        "--strict", action="store_const", const=TARGET_MISSED, default=0, help="a missed target is a failure"
    )
    bench.set_defaults(func=_bench)


def read_sizes(text: str) -> tuple[int, ...]:
    """``512,1024`` as numbers. Raises BadInput."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as exc:
        raise BadInput(f"{text!r} is not a list of sizes", "write numbers with commas between, like 512,4096") from exc


def read_words(text: str) -> tuple[str, ...]:
    """``none,devdax`` as words. Raises BadInput."""
    known, words = (STOCK, *KINDS), tuple(text.split(","))
    if not set(words) <= set(known):
        raise BadInput(f"{text!r} names no kinds of pool", f"they are {', '.join(known)}")
    return words


def _bench(options: argparse.Namespace) -> int:
    try:
        from rich.console import Console

        from . import many, ram, rounds, summary
        from .figures import targets
    except ModuleNotFoundError as exc:
        raise BadInput(f"the bench needs {exc.name}", "pip install 'holdfast[lab,bench]'") from exc
    if options.host_ram:
        found = ram.measure(options.output, options.host_ram, options.pools or ram.KINDS, options.rounds)
        ram.show(found, Console())
        print(f"{options.output}/ram.json")
        return 0
    if options.vms:
        many.show(many.measure(options.output, options.vms, options.rounds, options.pool_kind), Console())
        print(f"{options.output}/many.json")
        return 0
    plan = rounds.Plan(options.output, options.sizes or rounds.SIZES_MIB, options.rounds, options.pool_kind)
    record = rounds.bench(plan)
    summary.show(record.measured, record.setting, Console())
    print(f"{plan.folder}/bench.json, bench.png, bench.svg")
    missed = any(target.reached is False for target in targets(record.measured))
    return int(options.strict) if missed else 0
