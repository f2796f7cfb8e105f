# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rounds of the doctor: this machine first, then every host of the inventory."""

from __future__ import annotations

import os

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput

from ..upgrade import Wish, ansible_environment, by_name, chosen_hosts, with_files
from . import controller, host
from .findings import Examination
from .route import inventory_variables


def examined(wish: Wish) -> list[Examination]:
    """All examinations, the controller's first. Raises BadInput for an inventory that cannot be used."""
    if not wish.inventory.exists():
        raise BadInput(f"inventory {wish.inventory} does not exist", "name an inventory file or directory with -i")
    environment = ansible_environment(os.environ)
    with with_files(wish) as wish:
        names = by_name(chosen_hosts(wish, environment))
        variables = inventory_variables(wish, environment)
    return [controller.examine(environment), *host.examine_all({name: variables.get(name, {}) for name in names})]
