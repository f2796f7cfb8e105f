# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One family of exceptions: what was found, and what to do about it."""

from __future__ import annotations


class HoldfastError(Exception):
    """A failure that a person has to act on.

    ``message`` says what was found and where; ``hint`` says what to do.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} -- {self.hint}" if self.hint else self.message


class BadInput(HoldfastError):
    """An option, policy or inventory value cannot be used."""


class Refused(HoldfastError):
    """Preflight found blockers; nothing was touched."""


class CommandFailed(HoldfastError):
    """A program on the host ended with an error."""


class JournalError(HoldfastError):
    """The journal cannot be read, or forbids what was asked."""


class VmError(HoldfastError):
    """One VM could not be suspended, checked or restored."""
