# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates for live migration over TLS, and libvirt listening for it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tls
short_description: Certificates for live migration over TLS
version_added: 0.1.0
description:
  - Gives a host what live migration over TLS needs. One certificate is for libvirt, one for its QEMUs, each from an
    authority of its own that is kept on the controller. libvirt's daemon is made to listen for TLS.
  - A certificate is made anew when it ends soon, when it is not of the controller's authority, or when the host has got
    another name.
  - Certificates that somebody else has put there are never touched; the host is refused instead.
  - The controller's part makes the certificates. This one writes them.
author:
  - holdfast contributors (@holdfast-kvm)
options:
  state:
    description: C(absent) removes what was written, and makes libvirt's daemon deaf again.
    type: str
    choices: [present, absent]
    default: present
  authority_dir:
    description: Directory on the controller for the two authorities. Made when it is not there. Keep it safe.
    type: path
    default: ~/.local/state/holdfast/pki
  names:
    description: What the other hosts call this one, names or addresses. The first one is the certificate's subject.
    type: list
    elements: str
    default: []
  days:
    description: How long a new certificate is valid.
    type: int
    default: 730
  renew_days:
    description: A certificate that ends within so many days is made anew.
    type: int
    default: 90
  qemu_group:
    description: The group that QEMU runs with, which may read QEMU's key.
    type: str
    default: libvirt-qemu
  socket:
    description: The unit by which libvirt's daemon listens for TLS.
    type: str
    default: libvirtd-tls.socket
  service:
    description: The unit of this daemon, C(virtproxyd.service) where the modular daemons run.
    type: str
    default: libvirtd.service
  daemon_conf:
    description: The configuration of this daemon.
    type: path
    default: /etc/libvirt/libvirtd.conf
  bundles:
    description: What the controller's part made. Not for playbooks.
    type: dict
attributes:
  check_mode:
    description: Says which certificates would be made, and makes none.
    support: full
  diff_mode:
    description: Nothing of it is for eyes.
    support: none
  idempotent:
    description: Does nothing as long as the certificates are good.
    support: full
  action:
    description: An action plugin of the same name runs on the controller.
    support: full
"""

EXAMPLES = r"""
- name: Certificates for live migration
  holdfast.kvm.tls:
    authority_dir: /srv/holdfast/pki
    names: ["{{ inventory_hostname }}"]
"""

RETURN = r"""
made:
  description: Why each party's certificate was made anew.
  type: dict
  returned: success
  sample: {libvirt: there is none}
removed:
  description: Files that were removed.
  type: list
  elements: str
  returned: with state absent
  sample: [/etc/pki/qemu/server-key.pem]
present:
  description: Each party's C(authority) and C(certificate) as they are, or empty.
  type: dict
  returned: success
  sample: {}
"""

from pathlib import Path
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.holdfast.kvm.plugins.module_utils._core import certificates, durable
from ansible_collections.holdfast.kvm.plugins.module_utils._core.certificates import Bundle
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.module_utils._module import run

ARGUMENTS: Dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "authority_dir": {"type": "path", "default": "~/.local/state/holdfast/pki"},
    "names": {"type": "list", "elements": "str", "default": []},
    "days": {"type": "int", "default": 730},
    "renew_days": {"type": "int", "default": 90},
    "qemu_group": {"type": "str", "default": "libvirt-qemu"},
    "socket": {"type": "str", "default": "libvirtd-tls.socket"},
    "service": {"type": "str", "default": "libvirtd.service"},
    "daemon_conf": {"type": "path", "default": "/etc/libvirt/libvirtd.conf"},
    "bundles": {"type": "dict", "no_log": True},
}


def act(module: AnsibleModule) -> Dict[str, Any]:
    """Without ``bundles``, look only. Raises HoldfastError."""
    if module.params["state"] == "absent":
        return absent(module)
    found = certificates.present()
    if module.params["bundles"] is None:
        return {"present": found, "listens": certificates.listens(module.params["socket"])}
    if module.check_mode:
        return {"present": found}
    write(module.params)
    return {"changed": True, "present": found}


def write(params: Dict[str, Any]) -> None:
    """Write certificates, if there are new ones, and let the daemon use them."""
    try:
        bundles = {party: Bundle(**parts) for party, parts in params["bundles"].items()}
    except TypeError as error:
        raise BadInput("bundles is not for playbooks", "leave it out") from error
    certificates.install(bundles, params["qemu_group"])
    conf = Path(params["daemon_conf"])
    text = conf.read_text() if conf.exists() else ""
    durable.write_text(conf, certificates.with_setting(text), certificates.READABLE)
    certificates.listen(params["socket"], params["service"])


def absent(module: AnsibleModule) -> Dict[str, Any]:
    """Take everything back. The daemon is deaf first, so that it never listens without certificates."""
    params = module.params
    conf = Path(params["daemon_conf"])
    before = conf.read_text() if conf.exists() else ""
    ours = before != certificates.without_setting(before)
    if module.check_mode:
        return {"changed": ours}
    if not ours:
        return {"removed": []}
    durable.write_text(conf, certificates.without_setting(before), certificates.READABLE)
    certificates.deafen(params["socket"], params["service"])
    return {"changed": True, "removed": [f"/{path}" for path in certificates.remove()]}


def main() -> None:
    run(ARGUMENTS, act)


if __name__ == "__main__":
    main()
