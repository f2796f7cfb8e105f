# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The witness notices damage to memory and disk, and says who it is; here it runs on loopback, for real."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError
from holdfast.lab.guests import observer, witness


@pytest.fixture
def guest(tmp_path: Path) -> witness.Witness:
    return witness.Witness.begin(
        witness.Settings(name="t", role="tick", memory_mib=2, boot_id="boot-1", log=tmp_path / "log")
    )


@pytest.fixture
def port(guest: witness.Witness) -> Iterator[int]:
    with witness.Server(("127.0.0.1", 0), guest) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()


def client(port: int) -> observer.Witness:
    return observer.Witness("127.0.0.1", port, timeout_s=10)


def test_state_tells_identity_memory_and_disk(port: int) -> None:
    state = client(port).state()
    assert (state["name"], state["role"], state["boot_id"], state["memory_mib"]) == ("t", "tick", "boot-1", 2)
    assert state["memory_sha256"] == state["memory_sha256_at_start"]
    assert state["disk"]["last"] == state["disk"]["records"] - 1


def test_waiting_ends_when_the_guest_answers(port: int) -> None:
    assert client(port).wait(limit_s=5)["boot_id"] == "boot-1"


def test_waiting_for_a_guest_that_never_comes_ends_too() -> None:
    with pytest.raises(HoldfastError, match="cannot be asked for hello"):
        client(1).wait(limit_s=0.1)


def test_changed_memory_is_seen(guest: witness.Witness, port: int) -> None:
    guest.memory._memory[1234567] ^= 1
    state = client(port).state()
    assert state["memory_sha256"] != state["memory_sha256_at_start"]


def test_another_boot_has_other_memory() -> None:
    assert witness.MemoryBlock("boot-1", 1).sha256() == witness.MemoryBlock("boot-1", 1).sha256()
    assert witness.MemoryBlock("boot-1", 1).sha256() != witness.MemoryBlock("boot-2", 1).sha256()


def test_fill_takes_memory_and_notices_damage(guest: witness.Witness, port: int) -> None:
    client(port).fill(3)
    assert client(port).state()["filled_mib"] == 3
    guest.filling._blocks[0][2 * witness.MIB] ^= 1
    assert client(port).state()["filled_damaged_mib"] == 1


def test_filled_memory_is_read_on_request(port: int) -> None:
    client(port).fill(3)
    assert client(port).speed() > 0


@pytest.mark.parametrize(("request_line", "period_s"), [("hold", 0.5), ("hold 20", 0.02)])
def test_a_guest_speaks_as_often_as_it_is_asked_to(port: int, request_line: str, period_s: float) -> None:
    with socket.create_connection(("127.0.0.1", port), 5) as link:
        link.sendall(f"{request_line}\n".encode())
        lines = link.makefile("rb")
        first, second, third = (json.loads(lines.readline())["monotonic_s"] for _ in range(3))
    assert third - second > 0.9 * period_s
    assert third - first < 2 * period_s + 1


def test_fill_refuses_what_the_guest_does_not_have() -> None:
    with pytest.raises(ValueError, match="100 MiB available"):
        witness.Filling().add(100, available_mib=100)


@pytest.mark.parametrize(
    "request_line", ["", "nonsense", "fill", "fill many", "fill -1", "state now", "hold often", "hold 0", "speed"]
)
def test_a_wrong_request_gets_an_answer(port: int, request_line: str) -> None:
    with pytest.raises(HoldfastError, match="refused"):
        client(port).ask(request_line)


def test_a_witness_that_is_not_there_is_named() -> None:
    with pytest.raises(HoldfastError, match=r"127\.0\.0\.1:1 "):
        client(1).state()


def written(path: Path, records: int) -> witness.DiskLog:
    log = witness.DiskLog(path)
    for number in range(records):
        log.append(f"text {number}")
    return log


def test_the_log_reads_back_what_was_written(tmp_path: Path) -> None:
    assert written(tmp_path / "log", 5).verify() == (5, [])


def test_the_log_goes_on_after_a_boot_and_forgets_a_torn_record(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written(path, 3)
    path.write_text(path.read_text() + "3 half a rec")
    assert written(path, 2).verify() == (5, [])


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda lines: [lines[0].replace("text", "tezt"), *lines[1:]], "record 0 is damaged"),
        (lambda lines: [lines[0], *lines[2:]], "record 1 is missing"),
        (lambda lines: lines[:-1], "3 records were written, 2 are there"),
    ],
)
def test_damage_to_the_log_is_told(tmp_path: Path, damage, found: str) -> None:  # type: ignore[no-untyped-def]
    log = written(tmp_path / "log", 3)
    lines = (tmp_path / "log").read_text().splitlines(keepends=True)
    (tmp_path / "log").write_text("".join(damage(lines)))
    _, wrong = log.verify()
    assert any(found in each for each in wrong)


def test_a_disk_that_refuses_writing_is_told(tmp_path: Path) -> None:
    log = written(tmp_path / "log", 1)
    (tmp_path / "log").unlink()
    (tmp_path / "log").mkdir()
    log.append("more")
    assert "writing record 1" in log.errors[0]


def test_errors_that_ext4_counted_are_told(tmp_path: Path) -> None:
    for device, count in (("vda", "2\n"), ("vdb", "0\n")):
        (tmp_path / device).mkdir()
        (tmp_path / device / "errors_count").write_text(count)
    assert witness.file_system_errors(tmp_path) == ["ext4 counts 2 errors on vda"]


def test_what_the_command_line_does_not_say_keeps_its_default() -> None:
    settings = witness.settings_from("console=ttyS0 quiet guest.role=db", "b")
    assert (settings.name, settings.role, settings.memory_mib) == ("guest", "db", 64)


def test_only_the_kernel_lines_about_the_disk_are_told(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text("3,200,10,-;EXT4-fs error (device vda): bad block\n")
    trouble = "EXT4-fs error (device vda): bad block"
    assert witness.disk_trouble(["virtio_net virtio0 eth0: up", *witness.kernel_log(str(log))]) == [trouble]
    assert list(witness.kernel_log(str(tmp_path / "absent"))) == []
