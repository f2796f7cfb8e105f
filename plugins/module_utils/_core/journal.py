# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal: the durable record of how far a generation got, one checked line per event.

An event is on the medium before what it announces is done. A last line that was cut off was never acted upon and
is dropped. A line has its event twice, each with a checksum, so that a bit that flips on the medium costs nobody the
way back to VMs whose RAM is in the pool. With both damaged the journal is unreadable, and nothing is guessed from it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

from . import durable
from .errors import HoldfastError, JournalError
from .request import EVERYTHING

NAME = "journal.jsonl"
# Between the copies of an event; JSON has none of these.
BETWEEN = "\t"
END = b"\n"
CHECKSUM_BYTES = 16
TERMINAL = ("restored", "aborted", "failed")
# From which states an event may be recorded, and to which state it leads (None: it stays).
TRANSITIONS: Mapping[str, tuple[tuple[str, ...], Optional[str]]] = {
    "begin": (("none",), "staged"),
    "suspending": (("staged",), "suspending"),
    "suspended": (("suspending",), "suspended"),
    "jumping": (("suspended",), "jumping"),
    "arrived": (
        ("suspending", "suspended", "jumping", "falling_back", "arrived", "attached", "restoring", "failed"),
        "arrived",
    ),
    "attached": (("arrived",), "attached"),
    "restoring": (
        ("staged", "attached", "suspending", "suspended", "jumping", "falling_back", "restoring", "failed"),
        "restoring",
    ),
    "falling_back": (("jumping", "falling_back", "arrived", "attached", "restoring", "failed"), "falling_back"),
    "restored": (("attached", "falling_back", "restoring", "failed"), "restored"),
    "aborted": (("staged", "suspending", "suspended", "jumping", "restoring", "failed"), "aborted"),
    "failed": (
        ("staged", "suspending", "suspended", "jumping", "falling_back", "arrived", "attached", "restoring", "failed"),
        "failed",
    ),
}
# In these, until the jump, nothing may begin to run on the host: by a person, by autostart or by a live migration.
LEAVING = ("suspending", "suspended", "jumping", "falling_back")
# What an event does to the one VM it names (None: it stays as it is).
VM_STATES: Mapping[str, Optional[str]] = {
    "vm_paused": "paused",
    "vm_saved": "suspended",
    "vm_verified": "suspended",
    "vm_resuming": "resuming",
    "vm_resumed": "resumed",
    "vm_failed": "failed",
    "vm_lost": "lost",
    "vm_restarted": "restarted",
    "vm_given_up": "given_up",
    "vm_shutting_down": "shutting_down",
    "vm_shut_down": "shut_down",
    # It may not even have been seen to be off.
    "vm_not_started": None,
    "vm_started": "started",
    "vm_left_alone": "pending",
    "vm_storing": "storing",
    "vm_stored": "stored",
    "vm_loading": "stored",
    # Its image may be used by then, or never have been whole.
    "vm_not_loaded": None,
}
# RAM of a VM in one of these states exists only in the pool.
HELD = ("suspended", "failed")
# A VM in one of these states may have a QEMU, which has all that there is of it then.
ADRIFT = ("paused", "resuming")
# A VM in one of these states is not where it belongs yet.
OPEN = (*ADRIFT, *HELD)
# RAM of a VM in one of these states is on disk, or on its way there.
STORED = ("storing", "stored")
# Off for the upgrade, or about to be: owed a start.
OWED = ("shutting_down", "shut_down", *STORED)
# Somebody has yet to bring a VM in one of these states back.
UNFINISHED = (*OPEN, *OWED)
# Unless a live update is at work, a VM in one of these states waits for somebody.
WAITING = (*UNFINISHED, "lost")
# What a person may give up; one that is adrift only when it has no QEMU.
LEFT_OVER = (*HELD, *OWED, "lost")


class Journal:
    """One generation's record. ``view`` is the dictionary that ``status`` prints; see ``begin`` for its shape."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.view: Dict[str, Any] = {"state": "none"}
        self._lock = threading.Lock()
        self._whole_bytes: Optional[int] = None

    @classmethod
    def load(cls, path: Path) -> Journal:
        """Read a journal file; an empty journal when there is none. Raises JournalError when it is damaged."""
        journal = cls(path)
        *lines, tail = _lines(_read(path))
        if tail:
            journal._whole_bytes = sum(map(len, lines))
        damaged = [number for number, line in enumerate(lines, 1) if journal._read_line(number, line)]
        if damaged:
            listed = ", ".join(map(str, damaged))
            journal.view["warnings"].append(f"{path} is damaged, and was read all the same: line {listed}")
        return journal

    @property
    def state(self) -> str:
        return str(self.view["state"])

    @property
    def generation(self) -> str:
        return str(self.view.get("generation", ""))

    @property
    def vms(self) -> List[Dict[str, Any]]:
        return list(self.view.get("vms", []))

    @property
    def holds_suspended(self) -> bool:
        """Whether the only copy of some VM's RAM is in the pool: then nothing may touch the pool."""
        return any(vm["state"] in HELD for vm in self.vms)

    @property
    def is_settled(self) -> bool:
        """Whether nothing of this generation waits for anybody: it ended, and no VM is held, adrift or lost."""
        return self.state in TERMINAL and not any(vm["state"] in WAITING for vm in self.vms)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Put the beginning and the end of a phase on record."""
        self.record("phase_begin", name=name)
        try:
            yield
        finally:
            self.record("phase_end", name=name)

    def vm(self, uuid: str) -> Dict[str, Any]:
        """One VM's record. Raises JournalError for a VM that is not in this generation."""
        for vm in self.view.get("vms", []):
            if vm["uuid"] == uuid:
                return vm
        raise JournalError(f"VM {uuid} is not in generation {self.generation}")

    def record(self, event: str, **fields: Any) -> None:
        """Append one event durably, then take it into the view. Raises JournalError if it does not fit the state."""
        with self._lock:
            entry = {"event": event, "at": time.time(), **fields}
            self._check(entry)
            text = json.dumps(entry, sort_keys=True)
            self._append(BETWEEN.join([f"{_sum(text)} {text}"] * 2))
            self._fold(entry)

    def warn(self, text: str) -> None:
        """On record, or in the unit's log when there is no room, or no generation: a full disk keeps no VM paused."""
        with suppress(HoldfastError):
            if self.state != "none":
                self.record("warning", text=text)
                return
        print(f"holdfast: {text}", file=sys.stderr, flush=True)

    def archive(self) -> None:
        """Move a finished journal to the history, so that the next generation may begin."""
        if self.state not in TERMINAL:
            raise JournalError(f"generation {self.generation} is {self.state}, not finished")
        durable.move(self.path, _finished(self.path.parent, self.generation))

    def _append(self, line: str) -> None:
        """Add a line; what a full disk let through of it is dropped, before the next one at the latest."""
        self._drop_cut_off_line()
        whole_bytes = self.path.stat().st_size if self.path.exists() else 0
        try:
            durable.append_line(self.path, line)
        except HoldfastError:
            self._whole_bytes = whole_bytes if self.path.exists() else None
            # It may be whole, and just not synced: nobody shall read what was not acted upon.
            with suppress(HoldfastError):
                self._drop_cut_off_line()
            raise

    def _drop_cut_off_line(self) -> None:
        if self._whole_bytes is not None:
            durable.truncate(self.path, self._whole_bytes)
            self._whole_bytes = None

    def _read_line(self, number: int, line: bytes) -> bool:
        """Take a line's event into the view; whether a copy or the end of it is damaged. Raises JournalError."""
        events = _events(line)
        if not events:
            raise _damaged(self.path, number)
        self._fold(events[0])
        return len(events) < 2 or not line.endswith(END)

    def _check(self, entry: Mapping[str, Any]) -> None:
        event = entry["event"]
        if event in TRANSITIONS and self.state not in TRANSITIONS[event][0]:
            raise JournalError(f"{event} does not follow {self.state} in generation {self.generation or '(none)'}")
        if event in VM_STATES:
            vm = self.vm(entry["uuid"])
            if event == "vm_resuming" and vm["state"] not in (*HELD, "stored"):
                raise JournalError(f"VM {vm['name']} is {vm['state']}: its saved state is used at most once")

    def _fold(self, entry: Dict[str, Any]) -> None:
        self._check(entry)
        event = entry["event"]
        if event == "begin":
            self.view = _begun(entry)
        elif event in VM_STATES:
            _fold_vm(self.vm(entry["uuid"]), entry)
        elif event == "phase_begin":
            self.view["phases"].append({"name": entry["name"], "start": entry["at"], "seconds": None})
        elif event == "phase_end":
            _end_phase(self.view["phases"], entry)
        elif event == "warning":
            self.view["warnings"].append(entry["text"])
        elif event in TRANSITIONS:
            _fold_host(self.view, entry)
            self.view["state"] = TRANSITIONS[event][1]
            if self.state in TERMINAL:
                self.view["ended_at"] = entry["at"]
        self.view["updated_at"] = entry["at"]


def open_journal(state_dir: Path) -> Journal:
    """The journal of the generation in flight on this host; its state is ``none`` when there is none."""
    return Journal.load(state_dir / NAME)


def latest(state_dir: Path) -> Journal:
    """The journal in flight, else the newest finished one, else an empty one."""
    current = open_journal(state_dir)
    if current.state != "none":
        return current
    return next(finished(state_dir), current)


def finished(state_dir: Path) -> Iterator[Journal]:
    """Journals in the history, the newest first."""
    for path in _history(state_dir):
        yield Journal.load(path)


def last_finished(state_dir: Path) -> str:
    """The newest generation in the history, empty when there is none; its journal is not read."""
    return next((path.stem for path in _history(state_dir)), "")


def _history(state_dir: Path) -> List[Path]:
    return sorted((state_dir / "history").glob("g-*.jsonl"), reverse=True)


def is_finished(state_dir: Path, generation: str) -> bool:
    """Whether this generation came to its end on this host."""
    return _finished(state_dir, generation).exists()


def _finished(state_dir: Path, generation: str) -> Path:
    return state_dir / "history" / f"{generation}.jsonl"


def pause_s(vm: Mapping[str, Any]) -> Optional[float]:
    """How long a VM of a journal's view stood still, in seconds by the host's clock; None when that is not known."""
    paused, resumed = vm.get("paused_at"), vm.get("resumed_at")
    return resumed - paused if paused and resumed and resumed >= paused else None


def holds_suspended(state_dir: Path) -> bool:
    """Whether a journal in flight holds a VM whose only RAM is in the pool. A damaged journal may: so True."""
    try:
        return open_journal(state_dir).holds_suspended
    except JournalError:
        return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as exc:
        raise JournalError(f"{path} cannot be read: {exc.strerror}", "nothing was changed; see to the disk") from exc


def _damaged(path: Path, number: int) -> JournalError:
    return JournalError(
        f"line {number} of {path} is damaged", "nothing was changed; look at the file and at the pool before acting"
    )


def _lines(data: bytes) -> Iterator[bytes]:
    """Each line with its end, as it was written though a bit flipped; last what was cut off, or nothing. Pure."""
    start = 0
    while end := _line_bytes(data, start):
        yield data[start : start + end]
        start += end
    yield data[start:]


def _line_bytes(data: bytes, start: int) -> int:
    """How long the line is that starts there, with its end; 0 when it was cut off. Pure."""
    first = data.find(END, start) + 1 - start
    if first > 0 and _events(data[start : start + first]):
        return first
    # A line may have got another end in its midst, or have lost its own.
    second = data.find(END, start + first) + 1 - start if first > 0 else 0
    if second > 0 and len(_events(data[start : start + second])) == 1:
        return second
    by_copy = _line_bytes_by_copy(data, start)
    whole = data[start : start + by_copy]
    return by_copy if len(whole) == by_copy and len(_events(whole)) == 2 else max(first, 0)


def _line_bytes_by_copy(data: bytes, start: int) -> int:
    """How long a line is by its first copy; 0 when that cannot be understood. Pure."""
    # A bit that flips makes one byte another one at most: what is read as text is as long as what was written.
    text = data[start:].decode("latin-1")
    try:
        _, copy = json.JSONDecoder().raw_decode(text, CHECKSUM_BYTES + 1)
    except ValueError:
        return 0
    return 2 * copy + len(BETWEEN) + len(END)


def _events(line: bytes) -> List[Dict[str, Any]]:
    """The event of a line by each copy that is as it was written. By length: what is between them may be damaged."""
    middle = (len(line) - len(END)) // 2
    line = line[: -len(END)]
    copies = (copy.decode(errors="replace").partition(" ") for copy in (line[:middle], line[middle + 1 :]))
    return [dict(json.loads(text)) for checksum, _, text in copies if checksum == _sum(text)]


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:CHECKSUM_BYTES]


def _begun(entry: Mapping[str, Any]) -> Dict[str, Any]:
    vms = [{"state": "pending", "error": "", "ram_verified": False, **vm} for vm in entry["vms"]]
    return {
        "generation": entry["generation"],
        "state": "staged",
        "host": entry["host"],
        "kernel": dict(entry["kernel"]),
        "qemu": {"from": entry["qemu"], "to": ""},
        "boot_id": {"from": entry["boot_id"], "to": ""},
        "reason": "",
        "taint": entry.get("taint", 0),
        "before": entry.get("before", {}),
        "cpu": entry.get("cpu", {}),
        "watchdog_usec": entry.get("watchdog_usec", 0),
        "only": entry.get("only", EVERYTHING),
        "fell_back": False,
        "phases": [],
        "vms": vms,
        "warnings": [],
        "begun_at": entry["at"],
    }


def _fold_vm(vm: Dict[str, Any], entry: Mapping[str, Any]) -> None:
    vm["state"] = VM_STATES[entry["event"]] or vm["state"]
    stamp = {"vm_paused": "paused_at", "vm_saved": "saved_at", "vm_verified": "restore_started_at"}
    stamp.update({"vm_resumed": "resumed_at", "vm_shut_down": "shut_down_at", "vm_started": "started_at"})
    stamp.update({"vm_storing": "paused_at", "vm_stored": "saved_at", "vm_loading": "restore_started_at"})
    if entry["event"] in stamp:
        vm[stamp[entry["event"]]] = entry.get("moment", entry["at"])
    details = {key: value for key, value in entry.items() if key not in ("event", "at", "moment", "uuid")}
    vm.update(details)
    if entry["event"] in ("vm_resumed", "vm_started"):
        vm["error"] = ""


def _fold_host(view: Dict[str, Any], entry: Mapping[str, Any]) -> None:
    if entry["event"] == "arrived":
        # Whoever arrives in yet another boot has come back; an attach that is tried again arrives in the same one.
        another = view["boot_id"]["to"] not in ("", entry["boot_id"])
        back = another or view["state"] == "falling_back" or entry.get("crashed")
        view["fell_back"] = view["fell_back"] or bool(back)
        view["boot_id"]["to"] = entry["boot_id"]
        view["kernel"]["arrived"] = entry["kernel"]
    if entry["event"] == "restored":
        view["qemu"]["to"] = entry["qemu"]
    view["reason"] = entry.get("reason", view["reason"])


def _end_phase(phases: list[dict[str, Any]], entry: Mapping[str, Any]) -> None:
    for phase in reversed(phases):
        if phase["name"] == entry["name"] and phase["seconds"] is None:
            phase["seconds"] = round(entry["at"] - phase["start"], 3)
            return
