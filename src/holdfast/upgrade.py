# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``holdfast upgrade`` and ``recover``: the same playbooks as with plain ansible-playbook, by ansible-runner, watched.

ansible-runner kills ansible-playbook when it is interrupted, so signals are ours: the first asks the playbook to stop
between two hosts, the second tells what the third does: kill it, which a host in the middle of its live update
survives.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import re
import secrets
import shlex
import shutil
import signal
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from ansible_collections.holdfast.kvm.plugins.module_utils import _report
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, CommandFailed
from ansible_collections.holdfast.kvm.plugins.plugin_utils._plan_file import read_plan

from .command import run
from .progress import (
    AnsibleEvent,
    CancelAsked,
    Event,
    ExitCode,
    PlannedBatch,
    Progress,
    ProgressLine,
    RunBegan,
    RunEnded,
    StopAsked,
    StopAskedAgain,
    exit_code,
    reduce,
)
from .view import View

UPGRADE = "holdfast.kvm.upgrade"
RECOVER = "holdfast.kvm.recover"
PLAN = "holdfast.kvm.plan"
PROGRESS_FILE_VARIABLE = "HOLDFAST_PROGRESS_FILE"
DEFAULT_COLLECTIONS = ("~/.ansible/collections", "/usr/share/ansible/collections")
REDRAW_S = 0.2


@dataclass(frozen=True)
class Wish:
    """What the person asked for. ``check`` holds ansible-playbook's own words for a dry run, or none."""

    inventory: Path
    limit: str = ""
    check: tuple[str, ...] = ()
    extra_vars: tuple[str, ...] = ()
    campaign: str = "upgrade"
    report_dir: Path | None = None
    plan_dir: Path | None = None
    playbook: str = UPGRADE
    plan: Path | None = None


@dataclass(frozen=True)
class Place:
    """The directory of one run, for its owner only: it holds extra vars and the whole output of Ansible."""

    root: Path

    @property
    def stop_file(self) -> Path:
        return self.root / "stop"

    @property
    def progress_file(self) -> Path:
        return self.root / "progress.jsonl"

    @property
    def log(self) -> Path:
        return self.root / "artifacts" / "ansible" / "stdout"

    @property
    def variables(self) -> Path:
        return self.root / "variables"

    def forget_secrets(self) -> None:
        """Extra vars, and the environment that ansible-runner writes down, are not kept longer than the run."""
        for folder in (self.variables, self.root / "env"):
            shutil.rmtree(folder, ignore_errors=True)
        (self.log.parent / "command").unlink(missing_ok=True)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While this lasts, the run is known to live; it ends with the process, however that ends."""
        with self.progress_file.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def is_at_work(self) -> bool:
        try:
            with self.progress_file.open() as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # it was cut off before it had begun
            return False
        return False


def carry_out(wish: Wish, view_for: Callable[[], View]) -> ExitCode:
    """Run the playbook to its end. Raises BadInput before anything starts when the wish cannot be carried out."""
    return exit_code(play(wish, view_for))


def play(wish: Wish, view_for: Callable[[], View]) -> Progress:
    """As ``carry_out``, and tell how far it came."""
    if not wish.inventory.exists():
        raise BadInput(f"inventory {wish.inventory} does not exist", "name an inventory file or directory with -i")
    batches = planned_batches(wish.plan)
    environment = ansible_environment(os.environ)
    place = new_place(state_dir(os.environ))
    environment[PROGRESS_FILE_VARIABLE] = str(place.progress_file)
    with place.at_work():
        forget_secrets_of_the_dead(place.root.parent)
        try:
            wish = replace(wish, extra_vars=as_files((*wish.extra_vars, *plan_variables(wish.plan)), place.variables))
            hosts = chosen_hosts(wish, environment)
            began = RunBegan(time.time(), *in_order(hosts, batches))
            return watched(Progress(wish.campaign), began, place, view_for(), runner(wish, place, environment))
        finally:
            place.forget_secrets()


def forget_secrets_of_the_dead(runs: Path) -> None:
    """Of runs that were killed, and could not do so themselves."""
    for place in (Place(path) for path in runs.iterdir() if path.is_dir()):
        if not place.is_at_work():
            place.forget_secrets()


def planned_batches(plan: Path | None) -> tuple[PlannedBatch, ...]:
    """The batches of a plan. Raises BadInput when it cannot be read."""
    found = read_plan(plan)["batches"] if plan else []
    return tuple(PlannedBatch(tuple(batch["hosts"]), float(batch["seconds"])) for batch in found)


def plan_variables(plan: Path | None) -> tuple[str, ...]:
    """The playbook's word for a plan."""
    return (json.dumps({"holdfast_plan": str(plan.absolute())}),) if plan else ()


def in_order(hosts: Sequence[str], batches: Sequence[PlannedBatch]) -> tuple[tuple[str, ...], tuple[PlannedBatch, ...]]:
    """The hosts in the order in which they come, and the batches with none but these hosts."""
    if not batches:
        return tuple(by_name(hosts)), ()
    chosen = [replace(batch, hosts=tuple(name for name in batch.hosts if name in hosts)) for batch in batches]
    there = tuple(batch for batch in chosen if batch.hosts)
    return tuple(name for batch in there for name in batch.hosts), there


def state_dir(environment: Mapping[str, str]) -> Path:
    """``$XDG_STATE_HOME/holdfast``, else ``~/.local/state/holdfast``."""
    base = environment.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "holdfast"


def new_place(state: Path) -> Place:
    """A fresh directory: ansible-runner would take the variables of an earlier run from a used one."""
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"
    root = state / "runs" / name
    try:
        for path in (state, state / "runs", root):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        (root / "progress.jsonl").touch(mode=0o600)
    except OSError as error:
        raise BadInput(
            f"{root} cannot be made on this machine: {error.strerror}",
            "free some room there, or set XDG_STATE_HOME to a directory that can be written",
        ) from error
    return Place(root)


def ansible_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What Ansible must see: our tools and collection, host keys checked, the person's own ansible.cfg."""
    tools = sysconfig.get_path("scripts")
    theirs = environment.get("ANSIBLE_COLLECTIONS_PATH") or os.pathsep.join(DEFAULT_COLLECTIONS)
    wanted = {
        "PATH": os.pathsep.join([tools, environment.get("PATH", os.defpath)]),
        # A copy installed by hand below ~/.ansible would win over ours, and be another version.
        "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join([str(collections_root()), theirs]),
        # ansible-runner turns this off unless told otherwise.
        "ANSIBLE_HOST_KEY_CHECKING": environment.get("ANSIBLE_HOST_KEY_CHECKING", "True"),
    }
    # ansible-runner works in its own directory, where Ansible would not find it.
    config = Path("ansible.cfg").absolute()
    if "ANSIBLE_CONFIG" not in environment and config.is_file():
        wanted["ANSIBLE_CONFIG"] = str(config)
    return wanted


def collections_root() -> Path:
    """The directory that holds our own ``ansible_collections``."""
    return Path(str(_report.__file__)).absolute().parents[6]


def ansible_arguments(wish: Wish) -> list[str]:
    """Arguments of every ansible-playbook call of this run. Later extra vars win, so the person's come last."""
    limit = ["--limit", wish.limit] if wish.limit else []
    extra = [word for value in wish.extra_vars for word in ("--extra-vars", _absolute(value))]
    return [*limit, *wish.check, *extra]


def as_files(extra_vars: Sequence[str], folder: Path) -> tuple[str, ...]:
    """The same variables in files for their owner only: everybody on this machine can read a command line."""
    folder.mkdir(mode=0o700)
    return tuple(_as_file(text, folder / str(number)) for number, text in enumerate(extra_vars))


@contextlib.contextmanager
def with_files(wish: Wish) -> Iterator[Wish]:
    """The wish with its variables in files that are gone afterwards, for what leaves no directory of a run behind."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        yield replace(wish, extra_vars=as_files(wish.extra_vars, Path(folder) / "variables"))


def _as_file(text: str, path: Path) -> str:
    if text[:1] in ("", "@", "/", "."):  # a file already, or Ansible's to complain about
        return text
    # Here, since only this needs it.
    from ansible.parsing.splitter import parse_kv

    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle:
        handle.write(text if text[0] in "[{" else json.dumps(parse_kv(text)))
    return f"@{path}"


def _absolute(extra_vars: str) -> str:
    return f"@{Path(extra_vars[1:]).expanduser().absolute()}" if extra_vars.startswith("@") else extra_vars


def chosen_hosts(wish: Wish, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The hosts that the playbook would take, in order. Raises BadInput when there is none."""
    hint = f"look at 'ansible-inventory -i {wish.inventory} --graph'" + (" and at --limit" if wish.limit else "")
    words = [
        "ansible-playbook",
        "-i",
        str(wish.inventory.absolute()),
        *ansible_arguments(wish),
        "--list-hosts",
        wish.playbook,
    ]
    try:
        listed = run([str(installed_tool(words[0])), *words[1:]], env=environment, timeout_s=120)
    except CommandFailed as error:
        # Ansible prefixes its last word with [ERROR] or ERROR!; what stands before are warnings.
        lines = [line.strip() for line in error.message.splitlines() if "ERROR" in line] or error.message.splitlines()[
            -1:
        ]
        raise BadInput(f"Ansible cannot use inventory {wish.inventory}: {' '.join(lines)}", hint) from error
    hosts = hosts_listed(listed)
    if not hosts:
        raise BadInput(
            f"inventory {wish.inventory} has no host for {wish.playbook}"
            + (f" within --limit {wish.limit}" if wish.limit else ""),
            hint,
        )
    return hosts


def installed_tool(name: str) -> Path:
    """A program of this installation, also when its virtual environment is not active."""
    own = Path(sysconfig.get_path("scripts")) / name
    return own if own.exists() else Path(name)


def hosts_listed(text: str) -> tuple[str, ...]:
    """Host names of ``ansible-playbook --list-hosts``, each once; the controller itself is no host to upgrade."""
    found: dict[str, None] = {}
    listing = False
    for line in text.splitlines():
        if not line.startswith("      "):
            listing = line.strip().startswith("hosts (")
        elif listing:
            found[line.strip()] = None
    return tuple(name for name in found if name != "localhost")


def by_name(hosts: Sequence[str]) -> list[str]:
    """As a person lists them, hv2 before hv10. Ansible lists hosts in no order."""
    return sorted(
        hosts, key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    )


Start = Callable[[Callable[[Mapping[str, Any]], bool], Callable[[], bool]], int]


def runner(wish: Wish, place: Place, environment: Mapping[str, str]) -> Start:
    """What runs the playbook to its end when called, and returns ansible-playbook's own code."""

    def start(on_event: Callable[[Mapping[str, Any]], bool], cancelled: Callable[[], bool]) -> int:
        # Here, since it is slow to import and only this needs it.
        import ansible_runner

        ours = {
            "holdfast_stop_file": str(place.stop_file),
            "report_campaign": wish.campaign,
            "report_dest": str(wish.report_dir.absolute() if wish.report_dir else place.root),
            "plan_dest": str(wish.plan_dir.absolute() if wish.plan_dir else place.root),
        }
        arguments = ["--extra-vars", json.dumps(ours), *ansible_arguments(wish)]
        done = ansible_runner.run(
            private_data_dir=str(place.root),
            ident="ansible",
            playbook=wish.playbook,
            # A list is passed on as it is; a string would be copied.
            inventory=[str(wish.inventory.absolute())],
            cmdline=shlex.join(arguments),
            envvars=dict(environment),
            quiet=True,
            # A host may be silent for as long as its firmware likes; pexpect's time is how late a cancel may come.
            settings={"idle_timeout": 0, "job_timeout": 0, "pexpect_timeout": 1},
            event_handler=on_event,
            cancel_callback=cancelled,
        )
        return int(done.rc if done.rc is not None else 1)

    return start


def watched(progress: Progress, began: RunBegan, place: Place, view: View, start: Start) -> Progress:
    """Run ``start`` in a thread, and keep ``view`` up to date until it has ended."""
    events: queue.Queue[Event] = queue.Queue()
    cancel = threading.Event()
    events.put(began)
    thread = threading.Thread(target=_run_to_end, args=(start, events, cancel), name="ansible", daemon=True)
    lines = progress_lines(place.progress_file)
    try:
        with _interrupts() as interrupts:
            thread.start()
            while progress.ended_at is None:
                _heed(interrupts, progress, place, events, cancel)
                for event in [*_drained(events), *next(lines)]:
                    progress = reduce(progress, event)
                view.show(progress)
        for event in next(lines):
            progress = reduce(progress, event)
    finally:
        # A terminal is given back as it was, whatever happened.
        view.close(progress)
    _point_to_log(progress, place)
    return progress


def _point_to_log(progress: Progress, place: Place) -> None:
    """Nothing known explains the failure: say where Ansible explains it."""
    unexplained = exit_code(progress) is ExitCode.HOST_FAILED and not any(host.error for host in progress.hosts)
    if unexplained:
        tail = last_words(place.log)
        raise CommandFailed(
            f"ansible-playbook ended with {progress.return_code}: {tail}", f"all it said is in {place.log}"
        )


def last_words(log: Path) -> str:
    """The first error in Ansible's output, else its last line."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return next((line for line in lines if "ERROR" in line), lines[-1] if lines else "it said nothing")
    return "it said nothing"


def _run_to_end(start: Start, events: queue.Queue[Event], cancel: threading.Event) -> None:
    def on_event(data: Mapping[str, Any]) -> bool:
        events.put(AnsibleEvent(data))
        return True

    return_code = 1
    try:
        return_code = start(on_event, cancel.is_set)
    finally:
        events.put(RunEnded(time.time(), return_code))


def _drained(events: queue.Queue[Event]) -> Iterator[Event]:
    """What has come, after waiting a moment for the first."""
    with contextlib.suppress(queue.Empty):
        yield events.get(timeout=REDRAW_S)
        while True:
            yield events.get_nowait()


def progress_lines(path: Path) -> Iterator[list[Event]]:
    """At each step the whole lines that were added since the last; a line still being written waits."""
    rest = b""
    with path.open("rb") as handle:
        while True:
            *whole, rest = (rest + handle.read()).split(b"\n")
            yield [ProgressLine(data) for data in map(_parsed, whole) if data]


def _parsed(line: bytes) -> Mapping[str, Any]:
    with contextlib.suppress(ValueError):
        data = json.loads(line)
        return data if isinstance(data, dict) else {}
    return {}


@contextlib.contextmanager
def _interrupts() -> Iterator[list[float]]:
    """The moments at which the person, or the system, asked to stop."""
    moments: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        moments.append(time.time())

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield moments
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heed(
    interrupts: list[float], progress: Progress, place: Place, events: queue.Queue[Event], cancel: threading.Event
) -> None:
    """First interrupt: no further host begins. Second: what comes next is told. Third: ansible-playbook is killed."""
    if interrupts and not progress.stop_asked:
        place.stop_file.touch()
        events.put(StopAsked(interrupts[0]))
    if len(interrupts) > 1 and not progress.warned:
        events.put(StopAskedAgain(interrupts[1]))
    if len(interrupts) > 2 and not cancel.is_set():
        cancel.set()
        events.put(CancelAsked(interrupts[2]))
