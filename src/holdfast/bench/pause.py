# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pause as an outsider sees it: the longest silence of a guest that speaks every 100 ms on one connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError

from ..lab.guests.definitions import GuestSpec
from ..lab.guests.observer import PATIENCE_S, Held, HoldListener, Witness
from ..lab.hosts import Host, emulator_failed

# How often the guest speaks: the least that can be told of a pause.
WORD_MS = 100
# Words of the guest before the pause begins, and after it seems to be over.
WORDS_AROUND = 10
LOOK_S = 0.2
# For all of it; the silence in the middle is bounded by the listener's own patience.
LIMIT_S = 2 * PATIENCE_S
# The longest that a guest may take over one request, which is to touch a few GiB of RAM.
ANSWER_LIMIT_S = 300.0


@dataclass(frozen=True)
class Rig:
    """What is measured: one guest on one host."""

    host: Host
    guest: GuestSpec

    @property
    def port(self) -> int:
        """Loopback port of this machine that leads to the guest's witness."""
        return self.host.port(f"{self.guest.name}.witness")

    @property
    def witness(self) -> Witness:
        return Witness("127.0.0.1", self.port, ANSWER_LIMIT_S)

    def listener(self, name: str) -> HoldListener:
        """Somebody who listens to the guest."""
        return HoldListener("127.0.0.1", self.port, name, WORD_MS)

    def lost(self) -> bool:
        """Whether there is no use in waiting for the guest any longer."""
        return not self.host.alive or emulator_failed(self.host)


def observe(
    listener: HoldListener, act: Callable[[], object], over: Callable[[Held], bool], lost: Callable[[], bool]
) -> Held:
    """Listen while ``act`` makes the guest pause, until ``over`` holds and the guest has gone on speaking.

    Raises HoldfastError when the connection breaks, ``lost`` holds, or nothing of that comes within LIMIT_S seconds.
    """
    deadline = time.monotonic() + LIMIT_S

    def wait(wanted: Callable[[Held], bool], trouble: str) -> None:
        while not wanted(held := listener.so_far()):
            if held.error or lost():
                why = held.error or "its host broke down"
                raise HoldfastError(f"{held.name} {trouble}: {why}", "see the consoles of host and guest")
            if time.monotonic() > deadline:
                raise HoldfastError(f"{held.name} {trouble} within {LIMIT_S:.0f} s", "see the consoles of both")
            time.sleep(LOOK_S)

    listener.start()
    try:
        wait(lambda held: held.replies >= WORDS_AROUND, "does not speak before the pause")
        act()
        wait(over, "did not come back")
        heard = listener.so_far().replies
        wait(lambda held: held.replies >= heard + WORDS_AROUND, "fell silent after the pause")
    except BaseException:
        # A guest that is lost says nothing more; its listener ends with this process.
        listener.stop(limit_s=1.0)
        raise
    return listener.stop()
