# SPDX-License-Identifier: Apache-2.0
"""Revocation: good, revoked and unknown, which is never good."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from cryptography import x509
from small_pki import NOW, Ca, name, root

from quotary_verifier.errors import MalformedError
from quotary_verifier.pki.chain import TrustAnchors, verify_ak_chain
from quotary_verifier.pki.revocation import Revocation, check_revocation, read_crl

DAY = timedelta(days=1)
ROOT = root()
SUB = ROOT.sub_ca("Issuing CA")
LEAF = SUB.ak(serial=4711)
CHAIN = verify_ak_chain([LEAF, SUB.der], TrustAnchors.from_der([ROOT.der]), NOW).chain
SUB_SERIAL = SUB.certificate.serial_number
GOOD, REVOKED, UNKNOWN = Revocation.GOOD, Revocation.REVOKED, Revocation.UNKNOWN


def states(*crls: bytes, at: datetime = NOW) -> tuple[Revocation, tuple[Revocation, ...]]:
    report = check_revocation(CHAIN, [read_crl(crl) for crl in crls], at)
    return report.state, report.certificates


def test_a_path_is_good_only_if_crls_cover_all_of_it() -> None:
    assert states(SUB.crl({}), ROOT.crl({})) == (GOOD, (GOOD, GOOD))
    assert states(SUB.crl({})) == (UNKNOWN, (GOOD, UNKNOWN))
    assert states() == (UNKNOWN, (UNKNOWN, UNKNOWN))


def test_a_path_is_revoked_if_one_of_its_certificates_is() -> None:
    assert states(SUB.crl({4711: NOW - DAY}), ROOT.crl({})) == (REVOKED, (REVOKED, GOOD))
    assert states(SUB.crl({}), ROOT.crl({SUB_SERIAL: NOW - DAY})) == (REVOKED, (GOOD, REVOKED))
    assert states(SUB.crl({4711: NOW - DAY})) == (REVOKED, (REVOKED, UNKNOWN))


def test_other_serial_numbers_do_not_matter() -> None:
    assert states(SUB.crl({4712: NOW - DAY}), ROOT.crl({4711: NOW - DAY}))[0] is GOOD


def test_a_certificate_counts_as_revoked_from_the_date_on() -> None:
    crls = SUB.crl({4711: NOW}), ROOT.crl({})
    assert states(*crls)[0] is REVOKED
    assert states(*crls, at=NOW - timedelta(hours=1))[0] is GOOD


def test_an_expired_crl_does_not_make_good_but_still_revokes() -> None:
    past = (NOW - 30 * DAY, NOW - 20 * DAY)
    assert states(SUB.crl({}, updates=past), ROOT.crl({}))[1] == (UNKNOWN, GOOD)
    assert states(SUB.crl({4711: NOW - 25 * DAY}, updates=past), ROOT.crl({}))[0] is REVOKED


def test_a_later_crl_covers_an_earlier_time_while_the_certificate_was_valid() -> None:
    assert states(SUB.crl({}, updates=(NOW + 90 * DAY, NOW + 97 * DAY)), ROOT.crl({}))[0] is GOOD
    assert states(SUB.crl({}, updates=(NOW + 400 * DAY, NOW + 407 * DAY)), ROOT.crl({}))[1] == (UNKNOWN, GOOD)


def test_a_stale_crl_beside_a_newer_one_does_not_hide_it() -> None:
    old = SUB.crl({}, updates=(NOW - 5 * DAY, NOW + 5 * DAY))
    assert states(old, SUB.crl({4711: NOW - DAY}), ROOT.crl({}))[0] is REVOKED
    assert states(SUB.crl({4711: NOW - DAY}), old, ROOT.crl({}))[0] is REVOKED


def test_a_crl_of_another_key_or_name_covers_nothing() -> None:
    other = Ca(SUB.certificate, root().key)
    assert states(other.crl({4711: NOW - DAY}), ROOT.crl({}))[1] == (UNKNOWN, GOOD)
    assert states(SUB.crl({}, issuer=name("Other")), ROOT.crl({}))[1] == (UNKNOWN, GOOD)


def test_a_crl_for_some_certificates_only_or_a_delta_covers_nothing() -> None:
    partial = x509.IssuingDistributionPoint(None, None, False, True, None, False, False)
    for extension in (partial, x509.DeltaCRLIndicator(1)):
        assert states(SUB.crl({}, extra=[(extension, True)]), ROOT.crl({}))[1] == (UNKNOWN, GOOD)
    assert states(SUB.crl({}, extra=[(x509.CRLNumber(7), False)]), ROOT.crl({}))[0] is GOOD


def test_a_crl_with_an_extension_that_cannot_be_read_covers_nothing() -> None:
    broken = x509.UnrecognizedExtension(x509.CRLNumber.oid, b"\x02\x00")
    assert states(SUB.crl({}, extra=[(broken, False)]), ROOT.crl({}))[1] == (UNKNOWN, GOOD)


def test_a_ca_that_may_not_sign_crls_covers_nothing() -> None:
    silent = ROOT.sub_ca("Silent CA", flags=("key_cert_sign",))
    leaf = silent.ak()
    chain = verify_ak_chain([leaf, silent.der], TrustAnchors.from_der([ROOT.der]), NOW).chain
    crls = [read_crl(silent.crl({})), read_crl(ROOT.crl({}))]
    assert check_revocation(chain, crls, NOW).certificates == (UNKNOWN, GOOD)


def test_a_path_of_one_certificate_is_unknown() -> None:
    assert check_revocation(CHAIN[-1:], [read_crl(ROOT.crl({}))], NOW).state is UNKNOWN


def test_a_crl_that_cannot_be_read_is_malformed() -> None:
    whole = SUB.crl({})
    for data in (b"", whole[:-1], whole + b"\x00", LEAF):
        with pytest.raises(MalformedError, match="cannot be read"):
            read_crl(data)
    with pytest.raises(MalformedError, match="too large"):
        read_crl(bytes((1 << 24) + 1))
