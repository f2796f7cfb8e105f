# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates for live migration are made once, renewed in time, kept from strangers, and never somebody else's."""

from __future__ import annotations

import grp
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from ansible_collections.holdfast.kvm.plugins.module_utils._core import certificates
from ansible_collections.holdfast.kvm.plugins.module_utils._core.certificates import PLACES, Bundle
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, HoldfastError
from ansible_collections.holdfast.kvm.plugins.plugin_utils import _certificates

NOW = datetime(2026, 11, 21, tzinfo=UTC)
NAMES = ["hv1", "10.0.0.1"]
GROUP = grp.getgrgid(os.getgid()).gr_name
BUNDLES = {party: Bundle(f"ca of {party}", f"certificate of {party}", f"key of {party}") for party in PLACES}


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> _certificates.Authority:
    return _certificates.authority(tmp_path_factory.mktemp("pki"), "qemu", NOW)


@pytest.fixture(scope="module")
def issued(signer: _certificates.Authority) -> _certificates.Issued:
    return _certificates.issue(signer, NAMES, NOW, days=730)


def due(issued: _certificates.Issued, signer: _certificates.Authority, **other: object) -> str:
    asked = {"names": NAMES, "now": NOW, "renew_days": 90, **other}
    return _certificates.why_due(issued.certificate, signer, **asked)  # type: ignore[arg-type]


# What the controller makes


def test_an_authority_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    first = _certificates.authority(folder, "libvirt", NOW)
    assert _certificates.authority(folder, "libvirt", NOW).pem == first.pem
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def _serial(folder: Path) -> int:
    return _certificates.authority(folder, "libvirt", NOW).certificate.serial_number


def test_hosts_that_are_prepared_at_the_same_time_have_the_same_authority(tmp_path: Path) -> None:
    """Ansible has a process for each; two that both made one left one's key beside the other's certificate."""
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as hosts:
        assert len(set(hosts.map(_serial, [tmp_path / "pki"] * 8))) == 1


def test_libvirt_and_qemu_have_authorities_of_their_own(tmp_path: Path) -> None:
    """Else a QEMU that was taken over could log into libvirt on all hosts, with the key that it has to have."""
    libvirt, qemu = (_certificates.authority(tmp_path, party, NOW) for party in ("libvirt", "qemu"))
    certificate = _certificates.issue(qemu, NAMES, NOW, days=730).certificate
    assert _certificates.is_signed_by(certificate, qemu)
    assert not _certificates.is_signed_by(certificate, libvirt)
    assert not _certificates.is_signed_by("rubbish", libvirt)


def test_half_an_authority_is_not_replaced_in_silence(tmp_path: Path) -> None:
    _certificates.authority(tmp_path, "qemu", NOW)
    (tmp_path / "qemu-ca.pem").unlink()
    with pytest.raises(HoldfastError, match="cannot be used"):
        _certificates.authority(tmp_path, "qemu", NOW)


def test_a_certificate_is_good_for_both_ends_and_for_no_more_certificates(issued: _certificates.Issued) -> None:
    certificate = x509.load_pem_x509_certificate(issued.certificate.encode())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert constraints.ca is False
    assert len(list(purposes)) == 2


def test_a_good_certificate_stays(issued: _certificates.Issued, signer: _certificates.Authority) -> None:
    assert due(issued, signer) == ""
    assert due(issued, signer, names=["hv1"]) == ""


def test_it_is_renewed_before_its_end(issued: _certificates.Issued, signer: _certificates.Authority) -> None:
    assert due(issued, signer, now=NOW + timedelta(days=639)) == ""
    assert due(issued, signer, now=NOW + timedelta(days=641)) == "it ends in 89 days"
    assert due(issued, signer, now=NOW + timedelta(days=999)) == "it ends in 0 days"


def test_it_is_renewed_for_another_name(issued: _certificates.Issued, signer: _certificates.Authority) -> None:
    assert due(issued, signer, names=["hv1", "10.0.0.9"]) == "it is not for 10.0.0.9"


def test_a_host_without_a_certificate_needs_one(signer: _certificates.Authority) -> None:
    assert due(_certificates.Issued("", ""), signer) == "there is none"


def test_no_certificate_outlives_its_authority(signer: _certificates.Authority) -> None:
    late = NOW + timedelta(days=_certificates.AUTHORITY_DAYS - 10)
    certificate = x509.load_pem_x509_certificate(_certificates.issue(signer, NAMES, late, 730).certificate.encode())
    assert certificate.not_valid_after_utc == signer.certificate.not_valid_after_utc


# What the host keeps


def test_what_was_installed_is_found_and_keys_are_for_whom_they_must_be(tmp_path: Path) -> None:
    certificates.install(BUNDLES, GROUP, tmp_path)
    assert certificates.present(tmp_path)["libvirt"] == {
        "authority": "ca of libvirt",
        "certificate": "certificate of libvirt",
    }
    for path in PLACES["libvirt"].keys:
        assert (tmp_path / path).stat().st_mode & 0o777 == 0o600
        assert (tmp_path / path).parent.stat().st_mode & 0o777 == 0o700
    for path in PLACES["qemu"].keys:
        assert (tmp_path / path).stat().st_mode & 0o777 == 0o640
        assert (tmp_path / path).stat().st_gid == os.getgid()


def test_it_can_be_written_again(tmp_path: Path) -> None:
    certificates.install(BUNDLES, GROUP, tmp_path)
    newer = {"qemu": replace(BUNDLES["qemu"], certificate="newer")}
    certificates.install(newer, GROUP, tmp_path)
    assert certificates.present(tmp_path)["qemu"]["certificate"] == "newer"
    assert certificates.present(tmp_path)["libvirt"]["certificate"] == "certificate of libvirt"


@pytest.mark.parametrize("path", [PLACES["libvirt"].authority, PLACES["qemu"].keys[0]])
def test_somebody_elses_files_are_never_touched(tmp_path: Path, path: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text("theirs")
    for act in (lambda: certificates.present(tmp_path), lambda: certificates.install(BUNDLES, GROUP, tmp_path)):
        with pytest.raises(HoldfastError, match="prepare_tls=existing"):
            act()
    assert certificates.remove(tmp_path) == []
    assert (tmp_path / path).read_text() == "theirs"


@pytest.mark.parametrize("party", PLACES)
def test_a_file_that_was_changed_or_lost_is_made_anew(tmp_path: Path, party: str) -> None:
    certificates.install(BUNDLES, GROUP, tmp_path)
    (tmp_path / PLACES[party].keys[1]).write_text("half")
    assert certificates.present(tmp_path)[party]["certificate"] == ""
    (tmp_path / PLACES[party].keys[1]).unlink()
    assert certificates.present(tmp_path)[party]["certificate"] == ""


def test_removal_takes_what_is_ours_and_leaves_what_somebody_changed(tmp_path: Path) -> None:
    certificates.install(BUNDLES, GROUP, tmp_path)
    changed = PLACES["libvirt"].authority
    (tmp_path / changed).write_text("theirs by now")
    assert len(certificates.remove(tmp_path)) == 9
    assert [path.name for path in (tmp_path / "etc/pki").rglob("*") if path.is_file()] == ["cacert.pem"]
    assert certificates.remove(tmp_path) == []


def test_a_group_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no-such-group"):
        certificates.install(BUNDLES, "no-such-group", tmp_path)


def test_an_expired_certificate_does_not_keep_libvirt_from_starting() -> None:
    theirs = "#tls_no_sanity_certificate = 1\nmax_clients = 9"
    ours = certificates.with_setting(theirs)
    assert "\ntls_no_sanity_certificate = 1\n" in ours
    assert certificates.with_setting(ours) == ours
    assert certificates.without_setting(ours) == theirs + "\n"
