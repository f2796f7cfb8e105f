# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts of strangers as a terminal may show them. Names of VMs, and the words of their QEMUs, are such texts."""

from __future__ import annotations

import shlex
import unicodedata

# Separators and controls may break a line, colour a terminal or turn the reading direction: shown, never obeyed.
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def printable(text: object) -> str:
    """``text`` with control and direction characters replaced."""
    return "".join("\ufffd" if unicodedata.category(char) in _UNPRINTABLE else char for char in str(text))


def one_line(text: object) -> str:
    """As ``printable``, with every white space a single blank: nobody can begin a line of his own in a log."""
    return printable(" ".join(str(text).split()))


def lines(text: object) -> str:
    """As ``printable``, line by line: for messages that have several."""
    return "\n".join(printable(line) for line in str(text).split("\n"))


def argument(text: str) -> str:
    """``text`` as one word of a shell's command line that a person may copy."""
    return shlex.quote(text)
