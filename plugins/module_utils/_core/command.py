# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The core's one door to other programs."""

from __future__ import annotations

import subprocess
from typing import Optional, Sequence

from .errors import CommandFailed


def run(argv: Sequence[str], *, timeout_s: float = 60, stdin: Optional[str] = None) -> str:
    """Run a program without a shell and return its standard output.

    Raises CommandFailed with what it printed when it fails, is absent, or takes longer than ``timeout_s``.
    """
    try:
        done = subprocess.run(
            list(argv), input=stdin, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except FileNotFoundError as exc:
        raise CommandFailed(f"{argv[0]} is not installed on this host", f"install the package with {argv[0]}") from exc
    except subprocess.TimeoutExpired as exc:
        raise CommandFailed(f"{argv[0]} did not end within {timeout_s:.0f} s") from exc
    if done.returncode:
        printed = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise CommandFailed(f"{' '.join(argv)} ended with {done.returncode}: {printed}")
    return done.stdout
