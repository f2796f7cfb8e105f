# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's one door to other programs, and its way of saying what it is doing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float | None = 600,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    hint: str = "",
    stdin: str | None = None,
) -> str:
    """Run a program to its end and return its standard output.

    With ``log``, everything it prints goes to that file instead, which the error then names.
    Raises CommandFailed with the last lines it printed.
    """
    words = [os.fspath(word) for word in argv]
    full_env = None if env is None else {**os.environ, **env}
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(log.open("ab")) if log else None
        try:
            done = subprocess.run(
                words,
                stdout=sink or subprocess.PIPE,
                stderr=subprocess.STDOUT if sink else subprocess.PIPE,
                input=None if stdin is None else stdin.encode(),
                stdin=subprocess.DEVNULL if stdin is None else None,
                timeout=timeout_s,
                env=full_env,
                check=False,
            )
        except FileNotFoundError as exc:
            raise CommandFailed(f"{words[0]} is not installed on this machine", hint or f"install {words[0]}") from exc
        except subprocess.TimeoutExpired as exc:
            raise CommandFailed(f"{words[0]} did not end within {timeout_s:.0f} s", hint) from exc
    if done.returncode:
        printed = log.read_bytes() if log else (done.stderr or done.stdout or b"")
        tail = "\n".join(printed.decode(errors="replace").splitlines()[-12:])
        where = f" (all of it in {log})" if log else ""
        raise CommandFailed(f"{' '.join(words[:4])} … ended with {done.returncode}{where}:\n{tail}", hint)
    return "" if log else done.stdout.decode(errors="replace")


def spawn(argv: Sequence[str | os.PathLike[str]], log: Path) -> int:
    """Start a program that outlives this one, in its own session; return its pid."""
    with log.open("ab") as sink:
        child = subprocess.Popen(
            [os.fspath(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return child.pid


def begin(argv: Sequence[str | os.PathLike[str]], log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in its own session; the caller waits for its end. ``env`` comes on top of ours."""
    with log.open("ab") as sink:
        return subprocess.Popen(
            [os.fspath(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **env},
        )


def interactive(argv: Sequence[str | os.PathLike[str]]) -> int:
    """Hand the terminal to a program and return its exit status."""
    return subprocess.run([os.fspath(word) for word in argv], check=False).returncode


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    begin = time.monotonic()
    print(f"  {title} …", file=sys.stderr, flush=True)
    yield
    print(f"  {title}: {time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)
