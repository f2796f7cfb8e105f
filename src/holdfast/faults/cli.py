# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``holdfast faults``: break things during live updates of a lab host, and see where every VM is afterwards."""

from __future__ import annotations

import argparse
from pathlib import Path

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput

FAILED = 2


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add ``faults`` to the command line."""
    faults = subparsers.add_parser("faults", help="run the fault matrix on a lab host of its own")
    faults.add_argument(
        "--output", type=Path, default=Path("build/faults"), metavar="DIR", help="default: build/faults"
    )
    faults.add_argument("--only", action="append", default=[], metavar="TEXT", help="faults whose name contains TEXT")
    faults.add_argument("--kills", type=int, default=0, metavar="N", help="kill the agent N times at random moments")
    faults.add_argument("--seed", type=int, default=1, metavar="N", help="of the random moments (default 1)")
    faults.add_argument("--list", action="store_true", help="name the faults and end")
    faults.set_defaults(func=_faults)


def _faults(options: argparse.Namespace) -> int:
    try:
        from . import table
        from .catalogue import FAULTS
        from .matrix import run_matrix
    except ModuleNotFoundError as exc:
        raise BadInput(f"the fault matrix needs {exc.name}", "pip install 'holdfast[lab]'") from exc
    chosen = [fault for fault in FAULTS if not options.only or any(text in fault.name for text in options.only)]
    if options.list:
        print("\n".join(fault.name for fault in chosen))
        return 0
    if not chosen and not options.kills:
        raise BadInput(f"no fault's name contains {' or '.join(options.only)}", "see holdfast faults --list")
    rows = run_matrix(options.output.absolute(), chosen, options.kills, options.seed)
    print(table.text(rows))
    print(f"{options.output}/faults.json, seed {options.seed}")
    return FAILED if any(row.trouble for row in rows) else 0
