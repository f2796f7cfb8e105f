# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For actions whose host may go away while they run, and come back as another kernel."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

LONGEST_PAUSE_BETWEEN_TRIES_S = 8


def pauses_between_tries() -> Iterator[float]:
    """Seconds to wait after each try that found no host: 1, 2, 4, 8, 8..., with jitter so that hosts spread out."""
    pause = 1.0
    while True:
        yield pause + secrets.randbelow(500) / 1000
        pause = min(pause * 2, LONGEST_PAUSE_BETWEEN_TRIES_S)


class Patient(ActionBase):
    """An action that notices within seconds that its host is gone, and has its connection back as it was."""

    TRANSFERS_FILES = False
    _host = "host"

    def _expect_absence(self, connect_timeout_s: int) -> dict[str, Any]:
        """Make a dead connection show within seconds. Returns the options as they were before."""
        wanted: dict[str, Any] = {"timeout": connect_timeout_s, "reconnection_retries": 0}
        before = {name: self._connection_option(name) for name in [*wanted, "ssh_extra_args"]}
        if before["ssh_extra_args"] is not None or self._connection.transport == "ssh":
            # The host vanishes without closing its connections: without these, a command sent just then never ends.
            keepalive = "-o ServerAliveInterval=3 -o ServerAliveCountMax=3"
            wanted["ssh_extra_args"] = f"{before['ssh_extra_args'] or ''} {keepalive}".strip()
        self._set_connection_options(wanted)
        return before

    def _connection_option(self, name: str) -> Any:
        try:
            return self._connection.get_option(name)
        except (AnsibleError, KeyError, AttributeError):
            return None

    def _set_connection_options(self, options: dict[str, Any]) -> None:
        """Set those options that this connection plugin has; drop the connection, which runs with the old ones."""
        for name, value in options.items():
            try:
                self._connection.set_option(name, value)
            except (AnsibleError, KeyError, AttributeError):
                display.vvv(f"{self._host}: this connection plugin has no option {name}")
        self._reset_connection()

    def _reset_connection(self) -> None:
        try:
            self._connection.reset()
        except (AnsibleError, AttributeError) as error:
            display.vvv(f"{self._host}: connection was not reset: {error}")

    def _seconds(self, name: str, default: int) -> float:
        return float(self._task.args.get(name) or default)
