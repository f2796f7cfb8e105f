# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast VMs write to their RAM, which is what a live migration has to send again.

QEMU looks at a sample of a VM's pages twice (calc-dirty-rate); the guest does not notice.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Dict

from .errors import VmError
from .hypervisor import Hypervisor

# QEMU's own limit.
LONGEST_S = 60
# For the answer of the slowest, beyond the time that all of them count.
ANSWER_LIMIT_S = 30.0
LOOK_S = 0.1


def measure(hypervisor: Hypervisor, seconds: int) -> Dict[str, int]:
    """Bytes per second by uuid, of all running VMs at the same time; without those whose QEMU does not say.

    Raises HoldfastError when libvirt does not answer.
    """
    asked = set()
    for vm in hypervisor.running():
        with suppress(VmError):  # paused, or with a job in progress
            vm.count_writes(seconds)
            asked.add(vm.uuid)
    deadline = time.monotonic() + seconds + ANSWER_LIMIT_S
    while True:
        said = {uuid: rate for uuid, rate in hypervisor.writes().items() if uuid in asked}
        if None not in said.values() or time.monotonic() > deadline:
            return {uuid: rate for uuid, rate in said.items() if rate is not None}
        time.sleep(LOOK_S)
