# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The observer finds every harm an upgrade could do to a guest, and finds none when there is none."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError
from holdfast.lab.guests.observer import (
    Held,
    HeldConnection,
    HoldListener,
    Reply,
    Snapshot,
    compare,
    data_set,
    digest_of,
    judge,
)

BEFORE = Snapshot(
    name="db1",
    boot_id="a",
    uptime_s=10.0,
    ticks=100,
    memory_sha256="m",
    memory_sha256_at_start="m",
    disk_records=40,
    data_digest="d",
)
AFTER = replace(BEFORE, uptime_s=90.0, ticks=110, disk_records=44)
GOOD = Held("redis", True, 100, True, 12.0, 1000.0)


def test_a_guest_that_carried_on_has_nothing_to_tell() -> None:
    assert compare(BEFORE, replace(AFTER, held=(GOOD,))) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"boot_id": "b"}, "booted anew"),
        ({"uptime_s": 2.0}, "uptime went back"),
        ({"ticks": 99}, "does not tick on"),
        ({"ticks": 100}, "does not tick on"),
        ({"memory_sha256": "x"}, "memory changed"),
        ({"memory_sha256_at_start": "x"}, "not what the guest wrote"),
        ({"filled_damaged_mib": 3}, "3 MiB of filled memory"),
        ({"disk_records": 40}, "does not write on"),
        ({"disk_errors": ("EXT4-fs error",)}, "disk: EXT4-fs error"),
        ({"data_digest": "e"}, "other data"),
        ({"held": (replace(GOOD, same_connection=False, error="reset"),)}, "connection redis was lost: reset"),
        ({"held": (replace(GOOD, sequence_intact=False),)}, "lost or repeated replies"),
    ],
)
def test_every_harm_is_told_and_names_the_guest(change: dict, told: str) -> None:
    found = compare(BEFORE, replace(AFTER, **change))
    assert any(told in each and each.startswith("db1: ") for each in found)


def test_a_guest_that_is_slow_with_its_first_word_stood_still_for_less_than_the_gap() -> None:
    held = judge("x", [Reply(4, 1.0, 70.0), Reply(5, 1.2, 70.2), Reply(6, 41.2, 75.2)], epoch_offset_s=0.0)
    assert held.longest_gap_s == pytest.approx(40.0)
    assert held.stood_still_s == pytest.approx(35.0)


def test_words_that_were_long_on_their_way_do_not_count_as_standing_still() -> None:
    early, late = [Reply(4, 1.0, 70.0), Reply(5, 1.5, 70.5)], [Reply(6, 51.0, 70.7), Reply(7, 51.1, 75.5)]
    assert judge("x", [*early, *late], epoch_offset_s=0.0).stood_still_s == pytest.approx(44.6)
    assert judge("x", [*early, *late, Reply(8, 60.0, 89.0)], epoch_offset_s=0.0).stood_still_s == pytest.approx(40.0)


def test_the_longest_gap_is_measured_and_dated() -> None:
    replies = [Reply(4, 1.0), Reply(5, 1.1), Reply(6, 31.1), Reply(7, 31.2)]
    held = judge("x", replies, epoch_offset_s=1000.0)
    assert held.longest_gap_s == pytest.approx(30.0)
    assert held.gap_began_at == pytest.approx(1001.1)
    assert held.sequence_intact
    assert held.same_connection


def test_every_silence_is_dated_and_knows_which_moments_lie_in_it() -> None:
    replies = [Reply(1, 1.0), Reply(2, 1.5), Reply(3, 21.5), Reply(4, 22.0), Reply(5, 25.0)]
    longest, last = judge("x", replies, epoch_offset_s=1000.0).silences
    assert (longest.began_at, longest.seconds) == pytest.approx((1001.5, 20.0))
    assert (last.began_at, last.seconds) == pytest.approx((1022.0, 3.0))
    assert longest.overlaps(replace(longest, began_at=longest.began_at + 1))
    assert not longest.overlaps(last)
    assert not last.overlaps(longest)


def test_a_missing_or_repeated_reply_is_seen() -> None:
    assert not judge("x", [Reply(1, 0), Reply(3, 1)], 0).sequence_intact
    assert not judge("x", [Reply(1, 0), Reply(1, 1)], 0).sequence_intact


def test_a_connection_without_a_reply_proves_nothing() -> None:
    held = judge("x", [], 0)
    assert not held.same_connection
    assert not held.sequence_intact


def test_the_data_set_is_the_same_for_the_same_seed() -> None:
    assert digest_of(data_set("s", 20)) == digest_of(data_set("s", 20))
    assert digest_of(data_set("s", 20)) != digest_of(data_set("t", 20))
    assert digest_of(data_set("s", 20)) != digest_of(data_set("s", 19))


class FakeRedis:
    """Speaks as much of the protocol as a held connection needs; ``pause_at`` is the count it is slow to give."""

    def __init__(self, hang_up_at: int = 0, pause_at: int = 0) -> None:
        self.hang_up_at, self.pause_at = hang_up_at, pause_at
        self.connections = self.count = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(link, self.connections), daemon=True).start()

    def _serve(self, link: socket.socket, number: int) -> None:
        with link, link.makefile("rb") as lines:
            while header := lines.readline():
                words = [lines.read(int(lines.readline()[1:]) + 2)[:-2] for _ in range(int(header[1:]))]
                reply = self._reply(words, number)
                if reply is None:
                    return
                link.sendall(reply)

    def _reply(self, words: list[bytes], number: int) -> bytes | None:
        if words[0] == b"INCR":
            self.count += 1
            time.sleep(0.5 if self.count == self.pause_at else 0)
            return None if self.count == self.hang_up_at else b":%d\r\n" % self.count
        if words[:2] == [b"CLIENT", b"ID"]:
            return b":%d\r\n" % number
        return b"-ERR unknown command\r\n" if words[0] == b"HELLO" else b"+OK\r\n"


@pytest.fixture
def fake() -> Iterator[Callable[..., FakeRedis]]:
    made: list[FakeRedis] = []

    def make(**options: int) -> FakeRedis:
        made.append(FakeRedis(**options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_held_connection_survives_a_pause_and_measures_it(fake: Callable[..., FakeRedis]) -> None:
    server = fake(pause_at=2)
    held = HeldConnection("127.0.0.1", server.port)
    held.start()
    wait_for(lambda: held.so_far().replies >= 3)
    result = held.stop()
    assert result.same_connection
    assert result.sequence_intact
    assert 0.5 <= result.longest_gap_s < 5
    assert server.connections == 1


def test_a_held_connection_that_breaks_is_told(fake: Callable[..., FakeRedis]) -> None:
    server = fake(hang_up_at=3)
    held = HeldConnection("127.0.0.1", server.port)
    held.start()
    wait_for(lambda: bool(held.so_far().error))
    result = held.stop()
    assert not result.same_connection
    assert result.replies == 2


def test_a_listener_that_is_hung_up_on_tells(fake: Callable[..., FakeRedis]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = HoldListener("127.0.0.1", server.getsockname()[1])
        held.start()
        link, _ = server.accept()
        link.sendall(b'{"n": 0}\n{"n": 1}\n')
        link.recv(100)
        link.close()
        wait_for(lambda: bool(held.so_far().error))
        result = held.stop()
    assert result.replies == 2
    assert not result.same_connection


def test_nobody_waits_for_a_listener_whose_guest_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = HoldListener("127.0.0.1", server.getsockname()[1])
        held.start()
        link, _ = server.accept()
        begin = time.monotonic()
        result = held.stop(limit_s=0.1)
        assert time.monotonic() - begin < 10
        link.close()
    assert "no answer" in result.error


def test_a_held_connection_that_cannot_be_made_is_an_error() -> None:
    with pytest.raises(HoldfastError, match="no connection"):
        HeldConnection("127.0.0.1", 1).start()
