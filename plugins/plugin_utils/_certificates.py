# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates for live migration, as the controller makes them.

With the ``cryptography`` that ansible-core itself needs, so that hosts need neither a program nor a library. The
authorities stay on the controller; a host's key is made here, sent over the connection that Ansible has to the host
anyway, and not kept.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import HoldfastError

# RSA, since libvirt before 10.5 and QEMU before 9.1 ask for a key that can encipher other keys.
KEY_BITS = 3072
AUTHORITY_DAYS = 20 * 365
# Clocks of hosts differ.
BEFORE_NOW = timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Who signs the certificates of one party."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    @property
    def pem(self) -> str:
        return _pem(self.certificate)


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, as PEM texts."""

    certificate: str
    key: str


def is_made(folder: Path, party: str) -> bool:
    """Whether this controller has the authority for ``libvirt`` or ``qemu``."""
    return (folder / f"{party}-ca.key").exists()


def authority(folder: Path, party: str, now: datetime) -> Authority:
    """The authority for ``libvirt`` or ``qemu``, made when there is none yet. Raises HoldfastError.

    Ansible asks for many hosts at the same time, from a process for each: the first one makes it, the others wait.
    """
    certificate, key = folder / f"{party}-ca.pem", folder / f"{party}-ca.key"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _one_at_a_time(folder):
            if not is_made(folder, party):
                _make_authority(party, certificate, key, now)
            return _read(certificate, key)
    except (OSError, ValueError) as error:
        hint = "its certificates cannot be renewed without it; for a new one, remove both files and prepare all hosts"
        raise HoldfastError(f"the authority in {certificate} and {key} cannot be used: {error}", hint) from error


def is_signed_by(pem: str, signer: Authority) -> bool:
    """Whether a certificate is of this authority; what is no certificate is not."""
    try:
        x509.load_pem_x509_certificate(pem.encode()).verify_directly_issued_by(signer.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def why_due(pem: str, signer: Authority, names: Sequence[str], now: datetime, renew_days: int) -> str:
    """Why a host needs a new certificate of the one it has from this authority; empty when it does not."""
    if not pem:
        return "there is none"
    certificate = x509.load_pem_x509_certificate(pem.encode())
    found = set(_names(certificate))
    if not set(names) <= found:
        return f"it is not for {', '.join(sorted(set(names) - found))}"
    left = certificate.not_valid_after_utc - now
    return f"it ends in {max(left.days, 0)} days" if left < timedelta(days=renew_days) else ""


def issue(signer: Authority, names: Sequence[str], now: datetime, days: int) -> Issued:
    """A new key, and a certificate for it that is good for both ends of a connection; ``names[0]`` is its subject."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    ends = min(now + timedelta(days=days), signer.certificate.not_valid_after_utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_subject(names[0]))
        .issuer_name(signer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE_NOW)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .sign(signer.key, hashes.SHA256())
    )
    return Issued(_pem(certificate), _key_pem(key))


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _make_authority(party: str, certificate: Path, key: Path, now: datetime) -> None:
    secret = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    name = _subject(f"holdfast {party} authority")
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE_NOW)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(secret, hashes.SHA256())
    )
    # The key last: as long as it is absent, the authority does not count as made.
    _write(certificate, _pem(made))
    _write(key, _key_pem(secret))


def _read(certificate: Path, key: Path) -> Authority:
    secret = serialization.load_pem_private_key(key.read_bytes(), password=None)
    signer = x509.load_pem_x509_certificate(certificate.read_bytes())
    if not isinstance(secret, rsa.RSAPrivateKey) or secret.public_key() != signer.public_key():
        raise ValueError("the key is not the certificate's")
    return Authority(signer, secret)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_encipherment=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    # A common name has 64 characters at most (RFC 5280); who is meant is said by the alternative names anyway.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names(certificate: x509.Certificate) -> list[str]:
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(entry.value) for entry in alternatives]


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: rsa.RSAPrivateKey) -> str:
    # PKCS 8 is read by GnuTLS of any age.
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain).decode()


def _write(path: Path, text: str) -> None:
    """For the owner alone, from its first byte on."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(handle)
