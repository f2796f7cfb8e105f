# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The outside view of the lab's guests: what a client on the network sees before, during and after an upgrade."""

from __future__ import annotations

import abc
import contextlib
import hashlib
import json
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError

KEYS = 5000
VALUE_BYTES = 200
BATCH = 500
PREFIX = "holdfast:data:"
COUNTER = "holdfast:held"
PERIOD_S = 0.5
# Longer than any pause that is not a failure: a held connection must outlast its guest's. With three emulated hosts on
# two CPUs one of 15 minutes was seen.
PATIENCE_S = 1800.0
# Three emulated hosts on two CPUs have kept a guest from answering within two seconds for minutes.
LONGEST_KNOCK_S = 30.0
# A guest speaks twice as often.
SHORTEST_SILENCE_S = 1.0
# Two minutes of what a guest says: enough for some of it to come at once.
WORDS = 240


class Witness:
    """Client of a guest's witness; every request is a connection of its own."""

    def __init__(self, host: str, port: int, timeout_s: float = PATIENCE_S) -> None:
        self.host, self.port, self.timeout_s = host, port, timeout_s

    def ask(self, request: str) -> dict[str, Any]:
        """Send one request line and return the answer. Raises HoldfastError when the guest does not give one."""
        where = f"the witness at {self.host}:{self.port}"
        try:
            with socket.create_connection((self.host, self.port), self.timeout_s) as link:
                link.sendall(request.encode() + b"\n")
                line = link.makefile("rb").readline()
        except OSError as exc:
            raise HoldfastError(f"{where} cannot be asked for {request}: {exc}", "see the guest's console log") from exc
        if not line.endswith(b"\n"):
            raise HoldfastError(f"{where} hung up when asked for {request}", "see the guest's console log")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise HoldfastError(f"{where} refused {request}: {answer['error']}")
        return answer

    def state(self) -> dict[str, Any]:
        """See ``state`` in the witness."""
        return self.ask("state")

    def verify(self) -> dict[str, Any]:
        """``records`` read back from the guest's disk, and the ``errors`` found."""
        return self.ask("verify")

    def fill(self, size_mib: int) -> None:
        """Make the guest take and write that much more memory."""
        self.ask(f"fill {size_mib}")

    def speed(self) -> float:
        """How fast the guest reads the memory that it has filled, MiB/s."""
        return float(self.ask("speed")["mib_per_s"])

    def wait(self, limit_s: float) -> dict[str, Any]:
        """Wait for a guest that is booting, and return its state. Raises HoldfastError after ``limit_s``."""
        deadline = time.monotonic() + limit_s
        # The lab's port forward takes a connection before the guest does and then knocks at ever longer intervals:
        # a fresh attempt gets through sooner than a patient one, unless the guest itself is slow.
        patience_s = 2.0
        while True:
            try:
                Witness(self.host, self.port, patience_s).ask("hello")
                return self.state()
            except HoldfastError:
                if time.monotonic() > deadline:
                    raise
            patience_s = min(2 * patience_s, LONGEST_KNOCK_S)
            time.sleep(0.2)


def data_set(seed: str, keys: int = KEYS) -> Iterator[tuple[str, bytes]]:
    """Names and values, the same for the same seed, in the order of the names."""
    source = random.Random(seed)
    for number in range(keys):
        yield f"{PREFIX}{number:08d}", source.randbytes(VALUE_BYTES)


def digest_of(entries: Iterator[tuple[str, bytes]]) -> str:
    """SHA-256 over names and values in the order given."""
    total = hashlib.sha256()
    for name, value in entries:
        total.update(f"{name} {len(value)} ".encode() + value)
    return total.hexdigest()


class RedisProbe:
    """A known data set in a guest's database."""

    def __init__(self, host: str, port: int, seed: str = "holdfast", keys: int = KEYS) -> None:
        self.seed, self.keys = seed, keys
        self._client = redis.Redis(host=host, port=port, socket_timeout=PATIENCE_S)

    def load(self) -> str:
        """Write the data set, check it, and return its digest. Raises HoldfastError when it reads back otherwise."""
        entries = list(data_set(self.seed, self.keys))
        for start in range(0, len(entries), BATCH):
            self._client.mset(dict(entries[start : start + BATCH]))
        found = self.digest()
        if found != digest_of(iter(entries)):
            raise HoldfastError("the database does not return the data set that was just written to it")
        return found

    def digest(self) -> str:
        """Digest of what the database holds now: every name that begins like ours, and its value."""
        names = sorted(name.decode() for name in self._client.scan_iter(match=f"{PREFIX}*", count=BATCH))
        return digest_of(self._entries(names))

    def _entries(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        for start in range(0, len(names), BATCH):
            batch = list(names[start : start + BATCH])
            for name, value in zip(batch, self._client.mget(batch), strict=True):
                yield name, cast(bytes, value or b"")


@dataclass(frozen=True)
class Reply:
    """``number`` as the guest counted; ``at_s`` on the observer's monotonic clock, ``guest_s`` on the guest's."""

    number: int
    at_s: float
    guest_s: float = 0.0


@dataclass(frozen=True)
class Silence:
    """A gap between two words. ``began_at``: epoch seconds of the last word before it."""

    began_at: float
    seconds: float

    def overlaps(self, other: Silence) -> bool:
        """Whether there is a moment that lies in both."""
        return self.began_at < other.began_at + other.seconds and other.began_at < self.began_at + self.seconds


@dataclass(frozen=True)
class Held:
    """How one connection fared. ``gap_began_at``: epoch seconds of the last reply before the longest gap.

    ``stood_still_s``: seconds of that gap in which the guest's clock did not run, where the guest tells its clock.
    ``silences``: all gaps of SHORTEST_SILENCE_S and more, in their order.
    ``same_connection``: no error, and (where the guest can tell) the guest calls it the same connection to the end.
    """

    name: str
    same_connection: bool
    replies: int
    sequence_intact: bool
    longest_gap_s: float
    gap_began_at: float
    error: str = ""
    stood_still_s: float = 0.0
    silences: tuple[Silence, ...] = ()


def judge(name: str, replies: Sequence[Reply], epoch_offset_s: float, error: str = "") -> Held:
    """Fold the replies of one connection into a verdict. ``epoch_offset_s``: epoch minus monotonic clock."""
    pairs = list(pairwise(replies))
    gaps = [later.at_s - earlier.at_s for earlier, later in pairs]
    widest = max(range(len(gaps)), key=gaps.__getitem__, default=None)
    return Held(
        name=name,
        same_connection=not error and bool(replies),
        replies=len(replies),
        sequence_intact=bool(replies) and all(later.number == earlier.number + 1 for earlier, later in pairs),
        longest_gap_s=0.0 if widest is None else gaps[widest],
        gap_began_at=0.0 if widest is None else replies[widest].at_s + epoch_offset_s,
        error=error,
        stood_still_s=0.0 if widest is None else _stood_still_s(replies, widest),
        silences=tuple(
            Silence(earlier.at_s + epoch_offset_s, seconds)
            for (earlier, _), seconds in zip(pairs, gaps, strict=True)
            if seconds >= SHORTEST_SILENCE_S
        ),
    )


def _stood_still_s(replies: Sequence[Reply], last: int) -> float:
    """By how much the guest's clock fell behind the observer's in the gap after ``replies[last]``.

    A word shows by how much the guest's clock is behind, and how long the word was on its way, which is never less
    than nothing. So the smallest of many counts: a guest that has just been restored is slow with its first words,
    since each page of its RAM has to be mapped anew.
    """
    before = replies[max(0, last + 1 - WORDS) : last + 1]
    after = replies[last + 1 : last + 1 + WORDS]
    behind, earlier = (min(reply.at_s - reply.guest_s for reply in side) for side in (after, before))
    return behind - earlier


class _Holder(abc.ABC):
    """One connection, opened once and never again, kept busy by a thread until ``stop``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._replies: list[Reply] = []
        self._guest_s = 0.0
        self._error = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; the connection exists when this returns. Raises HoldfastError when it cannot be made."""
        try:
            self._open()
        except (OSError, redis.RedisError) as exc:
            raise HoldfastError(f"{self.name}: no connection: {exc}", "see the guest's console log") from exc
        self._thread.start()

    def stop(self, limit_s: float = 120.0) -> Held:
        """Wait for the reply that is under way, end, and say how the connection fared."""
        self._stopping.set()
        self._thread.join(limit_s)
        if self._thread.is_alive():
            self._error = f"no answer within {limit_s:.0f} s"
        self._close()
        return self.so_far()

    def so_far(self) -> Held:
        """The verdict on what has been seen up to now."""
        return judge(self.name, tuple(self._replies), time.time() - time.monotonic(), self._error)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._replies.append(Reply(self._next(), time.monotonic(), self._guest_s))
            self._check_same()
        except (OSError, redis.RedisError, ValueError) as exc:
            self._error = self._error or f"{type(exc).__name__}: {exc}"

    @abc.abstractmethod
    def _open(self) -> None: ...

    @abc.abstractmethod
    def _next(self) -> int: ...

    @abc.abstractmethod
    def _check_same(self) -> None: ...

    @abc.abstractmethod
    def _close(self) -> None: ...


class HeldConnection(_Holder):
    """A database client that counts up every 500 ms on one connection, one request at a time.

    Its gap is longer than the guest's pause: the request under way when the guest stops is sent again after ever
    longer intervals. What a pause is worth is measured by ``HoldListener``.
    """

    def __init__(self, host: str, port: int, name: str = "redis") -> None:
        super().__init__(name)
        self._counter = f"{COUNTER}:{time.time_ns():x}"
        self._link = redis.Connection(
            host=host,
            port=port,
            socket_timeout=PATIENCE_S,
            socket_connect_timeout=30,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._id = 0

    def _open(self) -> None:
        self._link.connect()
        self._id = int(self._ask("CLIENT", "ID"))

    def _ask(self, *words: str) -> Any:
        self._link.send_command(*words, check_health=False)
        return self._link.read_response()

    def _next(self) -> int:
        number = int(self._ask("INCR", self._counter))
        self._stopping.wait(PERIOD_S)
        return number

    def _check_same(self) -> None:
        # The client library connects again by itself when it finds the connection gone; the server's number for us
        # cannot stay the same then.
        now = int(self._ask("CLIENT", "ID"))
        if now != self._id:
            raise OSError(f"the server knew this client as {self._id}, now as {now}")

    def _close(self) -> None:
        self._link.disconnect()


class HoldListener(_Holder):
    """Listens to a guest that speaks every so often: the longest silence is the pause, as an outsider sees it."""

    def __init__(self, host: str, port: int, name: str = "witness", period_ms: int = 500) -> None:
        super().__init__(name)
        self._address, self._period_ms = (host, port), period_ms
        self._link: socket.socket | None = None
        self._lines: Any = None

    def _open(self) -> None:
        self._link = socket.create_connection(self._address, 30)
        self._link.settimeout(PATIENCE_S)
        self._link.sendall(f"hold {self._period_ms}\n".encode())
        self._lines = self._link.makefile("rb")

    def _next(self) -> int:
        line = self._lines.readline()
        if not line:
            raise OSError("the guest hung up")
        said = json.loads(line)
        self._guest_s = float(said.get("monotonic_s", 0.0))
        return int(said["n"])

    def _check_same(self) -> None:
        """Nothing to ask: a plain socket cannot turn into another one."""

    def _close(self) -> None:
        if self._link:
            # Wakes a thread that still listens: it holds the lock that closing the lines needs.
            with contextlib.suppress(OSError):
                self._link.shutdown(socket.SHUT_RDWR)
            self._lines.close()
            self._link.close()


@dataclass(frozen=True)
class Snapshot:
    """What an outsider knows of one guest at one moment. ``data_digest`` is empty for guests without a database."""

    name: str
    boot_id: str
    uptime_s: float
    ticks: int
    memory_sha256: str
    memory_sha256_at_start: str
    filled_damaged_mib: int = 0
    disk_records: int = 0
    disk_errors: tuple[str, ...] = ()
    data_digest: str = ""
    held: tuple[Held, ...] = field(default=())


def take(witness: Witness, database: RedisProbe | None = None, held: Sequence[Held] = ()) -> Snapshot:
    """Ask a guest everything: memory, log on disk, database. Takes seconds under emulation."""
    state, disk = witness.state(), witness.verify()
    return Snapshot(
        name=state["name"],
        boot_id=state["boot_id"],
        uptime_s=state["uptime_s"],
        ticks=state["ticks"],
        memory_sha256=state["memory_sha256"],
        memory_sha256_at_start=state["memory_sha256_at_start"],
        filled_damaged_mib=state["filled_damaged_mib"],
        disk_records=disk["records"],
        disk_errors=tuple(disk["errors"]),
        data_digest=database.digest() if database else "",
        held=tuple(held),
    )


def compare(before: Snapshot, after: Snapshot) -> list[str]:
    """Everything that did not carry on, one sentence each; empty when the guest came through unharmed."""
    findings = [
        (after.boot_id != before.boot_id, f"booted anew: boot id was {before.boot_id}, is {after.boot_id}"),
        (after.uptime_s < before.uptime_s, f"uptime went back from {before.uptime_s:.0f} to {after.uptime_s:.0f} s"),
        (after.ticks <= before.ticks, f"does not tick on: {before.ticks} before, {after.ticks} after"),
        (after.memory_sha256 != before.memory_sha256, "memory changed between before and after"),
        (after.memory_sha256 != after.memory_sha256_at_start, "memory is not what the guest wrote at its start"),
        (after.filled_damaged_mib > 0, f"{after.filled_damaged_mib} MiB of filled memory are damaged"),
        (
            after.disk_records <= before.disk_records,
            f"does not write on: {before.disk_records} records before, {after.disk_records} after",
        ),
        (after.data_digest != before.data_digest, "the database holds other data than before"),
    ]
    told = [sentence for found, sentence in findings if found]
    told += [f"disk: {error}" for error in after.disk_errors]
    told += [f"connection {held.name} was lost: {held.error}" for held in after.held if not held.same_connection]
    told += [f"connection {held.name} lost or repeated replies" for held in after.held if not held.sequence_intact]
    return [f"{after.name}: {sentence}" for sentence in told]
