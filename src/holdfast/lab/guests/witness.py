# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs inside a lab guest: it keeps a block of memory, a tick counter and a log on disk, and answers for them.

One request per line on TCP port 7000; every answer is one line of JSON:

``hello``     name and boot id, at once
``state``     boot id, uptime, ticks, checksum of the memory block now and as it was at the start, disk so far
``verify``    reads the whole log back from the disk and checks every record
``fill MIB``  takes that much more memory and writes all of it
``speed``     how fast filled memory is read, MiB/s: all of it once, from its beginning
``hold MS``   a line with a counter every so many milliseconds (500 without a number) until the connection ends

Standard library only, and nothing from the rest of holdfast: the guest has neither.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import socketserver
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PORT = 7000
# Each time a guest wakes up costs an emulated host ten milliseconds: seldom, and what can wake up together does.
TICK_S = 0.5
RECORD_S = 1.0
MIB = 1 << 20
# Left to the kernel and the other programs when a fill is asked for.
RESERVE_MIB = 24
DISK_TROUBLE = ("EXT4-fs error", "I/O error", "Aborting journal", "Remounting filesystem read-only")


@dataclass(frozen=True)
class Settings:
    """Who this guest is, as the kernel command line says (``guest.name=…``)."""

    name: str = "guest"
    role: str = "tick"
    memory_mib: int = 64
    boot_id: str = ""
    log: Path = Path("/var/witness.log")


def settings_from(cmdline: str, boot_id: str) -> Settings:
    """Read the ``guest.*`` words of a kernel command line; what is absent keeps its default."""
    words = dict(word[6:].split("=", 1) for word in cmdline.split() if word.startswith("guest.") and "=" in word)
    default = Settings()
    return Settings(
        name=words.get("name", default.name),
        role=words.get("role", default.role),
        memory_mib=int(words.get("memory_mib", default.memory_mib)),
        boot_id=boot_id,
    )


def pattern(seed: str, size_mib: int) -> Iterator[bytes]:
    """``size_mib`` pieces of 1 MiB of pseudo-random bytes, the same on every machine for the same seed."""
    source = random.Random(seed)
    for _ in range(size_mib):
        yield source.randbytes(MIB)


def sleep_to_next(period_s: float) -> None:
    """Sleep until the monotonic clock shows a multiple of ``period_s`` seconds: all who wait wake up together."""
    time.sleep(period_s - time.monotonic() % period_s)


def period_s(milliseconds: str = "500") -> float:
    """A period as it is asked for. Raises ValueError for one that is none."""
    if int(milliseconds) <= 0:
        raise ValueError(f"{milliseconds} ms is no period")
    return int(milliseconds) / 1000


def private_memory(size_mib: int) -> mmap.mmap:
    """Anonymous memory. Private, because only then does the kernel give huge pages: fewer faults, each one costly."""
    return mmap.mmap(-1, size_mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class MemoryBlock:
    """Memory that is written once and then only read: any change is damage."""

    def __init__(self, seed: str, size_mib: int) -> None:
        self._memory = private_memory(max(size_mib, 1))
        for piece in pattern(seed, size_mib):
            self._memory.write(piece)
        self.sha256_at_start = self.sha256()

    def sha256(self) -> str:
        """Checksum of the block as it is now."""
        with memoryview(self._memory) as view:
            return hashlib.sha256(view).hexdigest()


class Filling:
    """Memory taken on request, every page of it written: a random MiB, repeated, each with its number in front."""

    def __init__(self) -> None:
        self._blocks: list[mmap.mmap] = []

    @property
    def size_mib(self) -> int:
        return sum(len(block) for block in self._blocks) // MIB

    def add(self, size_mib: int, available_mib: int) -> None:
        """Take and write ``size_mib``. Raises ValueError when that would leave the guest without memory."""
        if not 0 < size_mib <= available_mib - RESERVE_MIB:
            raise ValueError(f"cannot fill {size_mib} MiB: {available_mib} MiB available, {RESERVE_MIB} are kept")
        block = private_memory(size_mib)
        tail = os.urandom(MIB - 8)
        for number in range(size_mib):
            block.write(number.to_bytes(8, "little"))
            block.write(tail)
        self._blocks.append(block)

    def read(self) -> float:
        """Read all of it once; MiB per second. Raises ValueError when there is nothing to read."""
        if not self._blocks:
            raise ValueError("no memory is filled: there is nothing to read")
        target, began = bytearray(MIB), time.perf_counter()
        for block in self._blocks:
            with memoryview(block) as view:
                for number in range(len(block) // MIB):
                    target[:] = view[number * MIB : (number + 1) * MIB]
        return self.size_mib / (time.perf_counter() - began)

    def damaged(self) -> int:
        """How many MiB no longer begin with their number."""
        return sum(
            int.from_bytes(block[number * MIB : number * MIB + 8], "little") != number
            for block in self._blocks
            for number in range(len(block) // MIB)
        )


def record_line(number: int, text: str) -> str:
    """One log record: number, text, and a checksum over both."""
    body = f"{number} {text}"
    return f"{body} {zlib.crc32(body.encode()):08x}\n"


def record_error(line: str, expected: int) -> str:
    """What is wrong with a log record; empty when nothing is."""
    body, _, checksum = line.rstrip("\n").rpartition(" ")
    if not line.endswith("\n") or f"{zlib.crc32(body.encode()):08x}" != checksum:
        return f"record {expected} is damaged: {line[:60]!r}"
    number = body.partition(" ")[0]
    return "" if number == str(expected) else f"record {expected} is missing, {number} is in its place"


class DiskLog:
    """Numbered, checksummed records in a file; each is on the disk before the next one begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.errors: list[str] = []
        self.records = self._resume()

    def _resume(self) -> int:
        """Count what earlier boots wrote, without the last record if a power cut tore it."""
        self._path.touch()
        text = self._path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.truncate(self._path, whole)
        return text.count(b"\n")

    def append(self, text: str) -> None:
        """Write and fsync one record; a failure is kept in ``errors`` instead of raised."""
        with self._lock:
            try:
                with self._path.open("a") as out:
                    out.write(record_line(self.records, text))
                    out.flush()
                    os.fsync(out.fileno())
                self.records += 1
            except OSError as exc:
                self.errors = [*self.errors[-20:], f"writing record {self.records}: {exc}"]

    def verify(self) -> tuple[int, list[str]]:
        """Read every record back from the disk: how many there are, and what is wrong with them."""
        with self._lock, self._path.open() as log:
            # Not from the page cache, which travelled with the RAM.
            os.posix_fadvise(log.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            wrong = [error for number, line in enumerate(log) if (error := record_error(line, number))]
            log.seek(0)
            found = sum(1 for _ in log)
        if found != self.records:
            wrong.append(f"{self.records} records were written, {found} are there")
        return found, wrong


def file_system_errors(sys_fs: Path = Path("/sys/fs/ext4")) -> list[str]:
    """What the kernel has counted against the mounted ext4 file systems."""
    counts = {path.parent.name: path.read_text().strip() for path in sys_fs.glob("*/errors_count")}
    return [f"ext4 counts {count} errors on {name}" for name, count in counts.items() if count != "0"]


def kernel_log(device: str = "/dev/kmsg") -> Iterator[str]:
    """The kernel's log so far, without its prefixes; nothing where only root may read it."""
    try:
        log = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    with open(log, "rb", buffering=0) as records:
        while True:
            try:
                record = records.read(8192)  # one record; None when there is no other yet
            except BrokenPipeError:  # records were overwritten while we read: go on with the next
                continue
            if not record:
                return
            yield record.decode(errors="replace").partition(";")[2].strip()


def disk_trouble(lines: Iterable[str]) -> list[str]:
    """Those lines of a kernel log that speak of a damaged disk or file system."""
    return [line for line in lines if any(word in line for word in DISK_TROUBLE)]


def available_mib(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that programs can still take, MiB."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) // 1024


@dataclass
class Witness:
    """Everything that must come through an upgrade unharmed, and the threads that keep it moving."""

    settings: Settings
    memory: MemoryBlock
    log: DiskLog
    filling: Filling = field(default_factory=Filling)
    ticks: int = 0

    @classmethod
    def begin(cls, settings: Settings) -> Witness:
        """Take the memory, open the log, start ticking and writing."""
        seed = settings.boot_id  # another boot has other bytes: RAM left over from one is told apart
        witness = cls(settings, MemoryBlock(seed, settings.memory_mib), DiskLog(settings.log))
        for work in (witness._tick, witness._write):
            threading.Thread(target=work, daemon=True).start()
        return witness

    def _tick(self) -> None:
        while True:
            sleep_to_next(TICK_S)
            self.ticks += 1

    def _write(self) -> None:
        while True:
            self.log.append(f"{self.settings.boot_id} {self.ticks}")
            sleep_to_next(RECORD_S)

    def answer(self, request: str) -> dict[str, Any]:
        """The answer to one request. Raises ValueError for a request that makes no sense."""
        verb, *arguments = request.split() or [""]
        if verb == "hello" and not arguments:
            return {"name": self.settings.name, "boot_id": self.settings.boot_id}
        if verb == "state" and not arguments:
            return self.state()
        if verb == "verify" and not arguments:
            return self.verify()
        if verb == "fill" and len(arguments) == 1:
            self.filling.add(int(arguments[0]), available_mib())
            return {"filled_mib": self.filling.size_mib}
        if verb == "speed" and not arguments:
            return {"mib_per_s": self.filling.read()}
        raise ValueError(f"unknown request {request!r}: hello, state, verify, fill MIB, speed, hold or hold MS")

    def state(self) -> dict[str, Any]:
        """What is true of this guest now; the memory is read anew for every answer."""
        return {
            "name": self.settings.name,
            "role": self.settings.role,
            "boot_id": self.settings.boot_id,
            "uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME),
            "ticks": self.ticks,
            "memory_mib": self.settings.memory_mib,
            "memory_sha256": self.memory.sha256(),
            "memory_sha256_at_start": self.memory.sha256_at_start,
            "filled_mib": self.filling.size_mib,
            "filled_damaged_mib": self.filling.damaged(),
            "disk": {"records": self.log.records, "last": self.log.records - 1, "errors": self.disk_errors()},
        }

    def verify(self) -> dict[str, Any]:
        """All records read back, and all that anybody has noticed about the disk."""
        found, wrong = self.log.verify()
        return {"records": found, "errors": wrong + self.disk_errors()}

    def disk_errors(self) -> list[str]:
        return self.log.errors + file_system_errors() + disk_trouble(kernel_log())


class Conversation(socketserver.StreamRequestHandler):
    """One connection: requests in, one JSON line out for each."""

    server: Server

    def handle(self) -> None:
        try:
            for line in self.rfile:
                self._reply_to(line.decode(errors="replace").strip())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the other side went away, which is its right

    def _reply_to(self, request: str) -> None:
        try:
            verb, *arguments = request.split() or [""]
            if verb == "hold" and len(arguments) < 2:
                self._hold(period_s(*arguments))
                return
            self._send(self.server.witness.answer(request))
        except ValueError as exc:
            self._send({"error": str(exc)})

    def _hold(self, period_s: float) -> None:
        number = 0
        while True:
            self._send({"n": number, "monotonic_s": time.monotonic()})
            number += 1
            sleep_to_next(period_s)

    def _send(self, answer: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(answer).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    """Answers for one witness, every connection in a thread of its own."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], witness: Witness) -> None:
        self.witness = witness
        super().__init__(address, Conversation)


def main() -> None:
    """Run until the guest ends."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    settings = settings_from(Path("/proc/cmdline").read_text(), boot_id)
    witness = Witness.begin(settings)
    with Server(("0.0.0.0", PORT), witness) as server:
        print(f"witness: {settings.name} ({settings.role}) answers on port {PORT}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
