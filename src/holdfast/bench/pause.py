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
from ..lab.hosts import Host

# Words of the guest before the pause begins, and after it seems to be over.
WORDS_AROUND = 10
LOOK_S = 0.2
LIMIT_S = PATIENCE_S


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
        return Witness("127.0.0.1", self.port)


def observe(listener: HoldListener, act: Callable[[], object], over: Callable[[Held], bool]) -> Held:
    """Listen while ``act`` makes the guest pause, until ``over`` holds and the guest has gone on speaking.

    Raises HoldfastError when the connection breaks or nothing of that comes within LIMIT_S seconds.
    """
    deadline = time.monotonic() + LIMIT_S
    listener.start()
    try:
        _wait(listener, lambda held: held.replies >= WORDS_AROUND, deadline, "does not speak before the pause")
        act()
        _wait(listener, over, deadline, "did not come back")
        heard = listener.so_far().replies
        _wait(listener, lambda held: held.replies >= heard + WORDS_AROUND, deadline, "fell silent after the pause")
    finally:
        held = listener.stop()
    return held


def _wait(listener: HoldListener, wanted: Callable[[Held], bool], deadline: float, trouble: str) -> None:
    while not wanted(held := listener.so_far()):
        if held.error:
            raise HoldfastError(f"{held.name}: the connection broke: {held.error}", "see the guest's console log")
        if time.monotonic() > deadline:
            raise HoldfastError(f"{held.name} {trouble} within {LIMIT_S:.0f} s", "see the consoles of host and guest")
        time.sleep(LOOK_S)
