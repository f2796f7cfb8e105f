# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of certificates for live migration: it keeps the authorities and signs."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError
from ansible_collections.holdfast.kvm.plugins.plugin_utils import _certificates

MODULE = "holdfast.kvm.tls"
AUTHORITY_DIR = "~/.local/state/holdfast/pki"
DAYS, RENEW_DAYS = 730, 90
ANOTHER = (
    "name the directory of the controller that prepared it (prepare_tls_dir). For another authority, take the "
    "certificates away from all hosts first: ansible hypervisors -b -m holdfast.kvm.tls -a state=absent"
)


class ActionModule(ActionBase):
    """Looks at the host's certificates with the module of the same name, and has it write those that are due."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        self._supports_check_mode = True
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = {key: value for key, value in self._task.args.items() if key != "bundles"}
        found = self._module(arguments, task_vars)
        if found.get("failed") or arguments.get("state") == "absent":
            return {**result, **found}
        try:
            return {**result, **self._renewed(arguments, found, task_vars)}
        except HoldfastError as error:
            return {**result, "failed": True, "msg": str(error), "hint": error.hint}

    def _renewed(self, arguments: dict[str, Any], found: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        now = datetime.now(timezone.utc)
        folder = Path(arguments.get("authority_dir") or AUTHORITY_DIR).expanduser()
        names = [str(name) for name in arguments.get("names") or [] if name]
        if not names:
            raise HoldfastError("a certificate needs a name", "give names: what other hosts call this one")
        bundles: dict[str, Any] = {}
        made: dict[str, str] = {}
        for party, has in found["present"].items():
            if not _certificates.is_made(folder, party) and self._task.check_mode and not has["certificate"]:
                made[party] = bundles[party] = "there is no authority yet"
                continue
            signer = self._signer(folder, party, has["certificate"], now)
            renew_days = int(arguments.get("renew_days") or RENEW_DAYS)
            due = _certificates.why_due(has["certificate"], signer, names, now, renew_days)
            if due:
                made[party] = due
                issued = _certificates.issue(signer, names, now, int(arguments.get("days") or DAYS))
                bundles[party] = {"authority": signer.pem, "certificate": issued.certificate, "key": issued.key}
        if not bundles and found["listens"]:
            return {**found, "changed": False, "made": {}}
        if self._task.check_mode:
            return {**found, "changed": True, "made": made}
        written = self._module({**arguments, "bundles": bundles}, task_vars)
        return {**written, "made": made}

    @staticmethod
    def _signer(folder: Path, party: str, certificate: str, now: datetime) -> _certificates.Authority:
        """This controller's authority, made when there is none. Raises HoldfastError for a host that has another's.

        A controller whose directory was lost would give a host certificates that no other host believes.
        """
        if certificate and not _certificates.is_made(folder, party):
            raise HoldfastError(
                f"the host's certificate for {party} is of an authority that is not in {folder}", ANOTHER
            )
        signer = _certificates.authority(folder, party, now)
        if certificate and not _certificates.is_signed_by(certificate, signer):
            raise HoldfastError(
                f"the host's certificate for {party} is of another authority than {folder} has", ANOTHER
            )
        return signer

    def _module(self, arguments: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)
        return found
