# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``holdfast faults``: break things during live updates of a lab host, and see where every VM is afterwards."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ansible_collections.holdfast.kvm.plugins.module_utils._core.config import DEVDAX, FSDAX
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput

FAILED = 2


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add ``faults`` to the command line."""
    faults = subparsers.add_parser("faults", help="run the fault matrix on a lab host of its own")
    faults.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: build/faults, or build/faults-KIND for another kind of pool",
    )
    faults.add_argument("--only", action="append", default=[], metavar="TEXT", help="faults whose name contains TEXT")
    faults.add_argument("--kills", type=int, default=0, metavar="N", help="kill the agent N times at random moments")
    faults.add_argument("--seed", type=int, default=1, metavar="N", help="of the random moments (default 1)")
    faults.add_argument(
        "--pool-kind", choices=(FSDAX, DEVDAX), default=FSDAX, help="of the host's pool (default fsdax)"
    )
    faults.add_argument("--minutes", type=float, default=math.inf, metavar="N", help="begin no fault after N minutes")
    faults.add_argument(
        "--again", action="store_true", help="also those that an earlier run in DIR has found to be as they have to be"
    )
    faults.add_argument("--list", action="store_true", help="name the faults and end")
    faults.set_defaults(func=_faults)


def output_of(pool_kind: str) -> Path:
    """Where the rows of hosts with such a pool are kept, apart from those of other hosts. Pure."""
    return Path("build/faults" if pool_kind == FSDAX else f"build/faults-{pool_kind}")


def _faults(options: argparse.Namespace) -> int:
    try:
        from . import matrix, table
        from .catalogue import FAULTS
        from .record import Record
    except ModuleNotFoundError as exc:
        raise BadInput(f"the fault matrix needs {exc.name}", "pip install 'holdfast[lab]'") from exc
    chosen = [fault for fault in FAULTS if not options.only or any(text in fault.name for text in options.only)]
    planned = matrix.plan(chosen, options.kills, options.seed)
    if not planned:
        raise BadInput(f"no fault's name contains {' or '.join(options.only)}", "see holdfast faults --list")
    if options.list:
        print("\n".join(one.fault.name for one in planned))
        return 0
    output = options.output or output_of(options.pool_kind)
    folder = output.absolute()
    record = Record.load(folder / "faults.json")
    wanted = [one for one in planned if options.again or not record.is_done(one.fault.name)]
    seed = f", random moments of seed {options.seed}" if options.kills else ""
    print(f"{len(wanted)} faults, {len(planned) - len(wanted)} are done already{seed}", flush=True)
    left = matrix.run_matrix(folder, wanted, record, options.minutes * 60, options.pool_kind)
    (folder / "faults.md").write_text(f"{table.text(record.rows)}\n\n{table.notes(record.rows)}\n")
    rows = [row for row in record.rows if row.name in {one.fault.name for one in planned}]
    print(f"{table.text(rows)}\n{output}/faults.json{seed}")
    for why, names in (("the emulator broke down", left.given_up), ("the time is over", left.not_begun)):
        if names:
            print(f"not judged, {why}: {'; '.join(names)}")
    return FAILED if left.given_up or not all(row.is_right for row in rows) else 0
