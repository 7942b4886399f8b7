# SPDX-License-Identifier: Apache-2.0
"""Certificate paths of AKs and EKs: what holds, and each way in which one does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import Store
from small_pki import (
    EKU_AK,
    EKU_EK,
    NOW,
    YEAR,
    Ca,
    name,
    p256,
    root,
    rsa_private,
    tpm_directory_name,
    usage,
)

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.pki.chain import (
    AkEndorsement,
    EkEndorsement,
    LeafProfile,
    TrustAnchors,
    verify_ak_chain,
    verify_ek_chain,
)
from quotary_verifier.pki.der import subject_public_key_info

ROOT = root()
ANCHORS = TrustAnchors.from_der([ROOT.der])
SUB = ROOT.sub_ca("Issuing CA", path_length=0)
SERVER_AUTH = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.1")
AK_USAGE = (x509.ExtendedKeyUsage([EKU_AK]), False)
UNKNOWN_EXTENSION = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")


def ak(*certificates: bytes, anchors: TrustAnchors = ANCHORS, at: datetime = NOW) -> AkEndorsement:
    return verify_ak_chain(certificates, anchors, at)


def ek(leaf: bytes, *others: bytes, anchors: TrustAnchors = ANCHORS, at: datetime = NOW) -> EkEndorsement:
    return verify_ek_chain(leaf, others, anchors, at)


def refused(what: str, *certificates: bytes, anchors: TrustAnchors = ANCHORS, at: datetime = NOW) -> None:
    with pytest.raises(EvidenceError, match=what):
        ak(*certificates, anchors=anchors, at=at)


def test_an_ak_certificate_tells_key_names_tpm_and_authority() -> None:
    key = p256()
    names = [
        x509.DNSName("host.example"),
        x509.DNSName("other.example"),
        x509.UniformResourceIdentifier("quotary://host.example/abc"),
        tpm_directory_name(),
    ]
    endorsed = ak(ROOT.ak(key, names=names))
    assert endorsed.spki_der == key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert endorsed.dns_names == ("host.example", "other.example")
    assert endorsed.uris == ("quotary://host.example/abc",)
    described = (endorsed.tpm_manufacturer, endorsed.tpm_model, endorsed.tpm_version)
    assert described == ("id:53544D20", "modelX", "id:00010101")
    assert endorsed.authority == "CN=Root"
    assert endorsed.authority_sha256 == ROOT.certificate.fingerprint(hashes.SHA256())
    assert (endorsed.not_before, endorsed.not_after) == (NOW - timedelta(30), NOW + timedelta(335))
    assert endorsed.profile is LeafProfile.AK
    assert endorsed.chain[-1] == ROOT.certificate


@pytest.mark.parametrize(
    "key",
    [p256(), ec.generate_private_key(ec.SECP384R1()), rsa_private(2048), rsa_private(3072)],
    ids=["p256", "p384", "rsa2048", "rsa3072"],
)
def test_the_key_of_a_certificate_is_the_one_in_its_place(key: ec.EllipticCurvePrivateKey) -> None:
    spki, decoy = (
        one.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for one in (key, p256())
    )
    unique_id = x509.NameAttribute(NameOID.X500_UNIQUE_IDENTIFIER, b"\x00" + decoy, _ASN1Type.BitString)
    leaf = ROOT.issue(x509.Name([unique_id]), key, [(usage("digital_signature"), True), AK_USAGE])
    data = leaf.public_bytes(Encoding.DER)
    assert data.index(decoy) < data.index(spki)
    assert subject_public_key_info(data) == spki
    assert ak(data).spki_der == spki


def test_a_certificate_without_names_endorses_the_key_alone() -> None:
    endorsed = ak(ROOT.ak(names=()))
    assert (endorsed.dns_names, endorsed.uris, endorsed.tpm_model) == ((), (), None)


def test_a_path_over_an_intermediate_holds_and_needs_it() -> None:
    leaf = SUB.ak()
    assert [one.subject.rfc4514_string() for one in ak(leaf, SUB.der).chain] == [
        "",
        "CN=Issuing CA",
        "CN=Root",
    ]
    refused("does not hold", leaf)


def test_an_intermediate_among_the_anchors_helps_and_is_no_anchor() -> None:
    leaf = SUB.ak()
    assert ak(leaf, anchors=TrustAnchors.from_der([SUB.der, ROOT.der])).authority == "CN=Root"
    with pytest.raises(MalformedError, match="no root certificate"):
        TrustAnchors.from_der([SUB.der])
    with_other_root = TrustAnchors.from_der([SUB.der, root("Other").der])
    refused("does not hold", leaf, anchors=with_other_root)


def test_a_root_that_comes_with_the_evidence_is_no_anchor() -> None:
    other = root("Root")
    refused("does not hold", other.ak(), other.der)


def test_a_sent_root_changes_nothing() -> None:
    assert len(ak(ROOT.ak(), ROOT.der).chain) == 2


def test_another_root_of_the_same_name_does_not_vouch() -> None:
    refused("does not hold", ROOT.ak(), anchors=TrustAnchors.from_der([root("Root").der]))


@pytest.mark.parametrize("at", [NOW - timedelta(31), NOW + timedelta(336)])
def test_the_leaf_is_valid_only_in_its_time(at: datetime) -> None:
    refused("does not hold", ROOT.ak(), at=at)


def test_an_expired_intermediate_breaks_the_path_and_holds_at_its_time() -> None:
    old = ROOT.sub_ca("Old CA", days=(-400, -10))
    leaf = old.ak(days=(-100, 100))
    refused("does not hold", leaf, old.der)
    ak(leaf, old.der, at=NOW - timedelta(20))


def test_an_expired_root_vouches_no_more() -> None:
    old = root("Old root", days=(-3000, -10))
    anchors = TrustAnchors.from_der([old.der])
    leaf = old.ak(days=(-100, 100))
    refused("does not hold", leaf, anchors=anchors)
    ak(leaf, anchors=anchors, at=NOW - timedelta(20))


def test_the_time_is_an_instant_in_any_zone_and_never_a_naive_one() -> None:
    leaf = ROOT.ak(days=(0, 1))
    ak(leaf, at=NOW + timedelta(hours=23))
    refused("does not hold", leaf, at=NOW + timedelta(hours=25))
    east = timezone(timedelta(hours=9))
    ak(leaf, at=(NOW + timedelta(hours=23)).astimezone(east))
    refused("does not hold", leaf, at=(NOW - timedelta(hours=1)).astimezone(east))
    with pytest.raises(ValueError, match="time zone"):
        ak(leaf, at=NOW.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("issuer", "what"),
    [
        (ROOT.sub_ca("A", flags=("crl_sign",)), "may not sign"),
        (ROOT.sub_ca("B", ca=False), "not a ca|does not hold"),
        (ROOT.sub_ca("C", extra=[(UNKNOWN_EXTENSION, True)]), "does not hold"),
    ],
    ids=["without keyCertSign", "without the ca flag", "with an unknown critical extension"],
)
def test_an_issuer_that_may_not_issue_breaks_the_path(issuer: Ca, what: str) -> None:
    refused(what, issuer.ak(), issuer.der)


def test_a_leaf_does_not_issue() -> None:
    key = p256()
    leaf = ROOT.ak(key)
    as_ca = Ca(x509.load_der_x509_certificate(leaf), key)
    refused("does not hold", as_ca.ak(), leaf)


def test_path_lengths_are_kept() -> None:
    below = SUB.sub_ca("Too deep")
    refused("does not hold", below.ak(), below.der, SUB.der)
    short = root("Short", path_length=0)
    middle = short.sub_ca("Middle")
    refused("does not hold", middle.ak(), middle.der, anchors=TrustAnchors.from_der([short.der]))


def test_name_constraints_of_a_ca_are_kept() -> None:
    constraints = x509.NameConstraints([x509.DNSName("example")], None)
    ca = ROOT.sub_ca("Constrained", extra=[(constraints, True)])
    ak(ca.ak(), ca.der)
    refused("does not hold", ca.ak(names=[x509.DNSName("host.invalid")]), ca.der)


def test_weak_algorithms_break_the_path() -> None:
    weak = ROOT.sub_ca("Weak key", key=rsa_private(1024))
    refused("does not hold", weak.ak(), weak.der)
    refused("1024 bits is too weak", ROOT.ak(rsa_private(1024)))
    ak(ROOT.ak(rsa_private(2048)))


def test_a_certificate_signed_with_sha_1_breaks_the_path() -> None:
    rsa_root = root("Rsa", key=rsa_private(2048))
    leaf = rsa_root.ak()
    sha256, sha1 = bytes.fromhex("06092a864886f70d01010b"), bytes.fromhex("06092a864886f70d010105")
    assert leaf.count(sha256) == 2
    refused(
        "(?i)signature algorithm", leaf.replace(sha256, sha1), anchors=TrustAnchors.from_der([rsa_root.der])
    )


@pytest.mark.parametrize(
    "key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())]
)
def test_a_leaf_key_of_a_kind_that_no_tpm_of_ours_has_cannot_be_checked(key: object) -> None:
    with pytest.raises((UnsupportedError, EvidenceError)):
        ak(ROOT.ak(key))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "leaf",
    [
        ROOT.ak(usages=()),
        ROOT.ak(usages=(EKU_EK,)),
        ROOT.ak(usages=(SERVER_AUTH,)),
        ROOT.ak(flags=()),
        ROOT.ak(flags=("content_commitment",)),
        ROOT.ak(flags=("digital_signature", "key_encipherment")),
        ROOT.ak(flags=("digital_signature", "key_agreement")),
        ROOT.ak(flags=("digital_signature", "key_cert_sign")),
        ROOT.ak(ca=True),
        ROOT.ak(extra=[(UNKNOWN_EXTENSION, True)]),
    ],
    ids=[
        "no usage", "usage of an EK", "usage of a server", "no key usage", "not for signatures",
        "deciphers", "agrees on keys", "signs certificates", "a CA", "unknown critical extension",
    ],
)  # fmt: skip
def test_a_leaf_that_is_no_ak_certificate_is_refused(leaf: bytes) -> None:
    refused("does not hold", leaf)


def test_what_a_leaf_may_say_beside_is_no_fault() -> None:
    ak(ROOT.ak(usages=(EKU_AK, SERVER_AUTH)))
    ak(ROOT.ak(ca=None))
    ak(ROOT.ak(extra=[(UNKNOWN_EXTENSION, False)]))
    policy = x509.PolicyInformation(x509.ObjectIdentifier("2.23.133.11.1.1"), None)
    ak(ROOT.ak(extra=[(x509.CertificatePolicies([policy]), True)]))


def test_a_critical_alternative_name_is_read_and_other_critical_extensions_still_fail() -> None:
    leaf = ROOT.ak(names=[tpm_directory_name(model="swtpm")])
    san = x509.load_der_x509_certificate(leaf).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.critical
    assert ak(leaf).tpm_model == "swtpm"
    refused("does not hold", ROOT.ak(names=[tpm_directory_name()], extra=[(UNKNOWN_EXTENSION, True)]))


def test_a_tpm_that_is_described_twice_is_refused() -> None:
    refused("ambiguously", ROOT.ak(names=[tpm_directory_name(), tpm_directory_name(model="other")]))


def test_other_attributes_of_a_directory_name_are_left_alone() -> None:
    both = [tpm_directory_name(), x509.DirectoryName(name("somebody"))]
    assert ak(ROOT.ak(names=both)).tpm_model == "modelX"


def test_an_ek_certificate_is_no_ak_certificate_and_the_reverse() -> None:
    ek_leaf, ak_leaf = ROOT.ek(), ROOT.ak()
    assert ek(ek_leaf).profile is LeafProfile.EK
    refused("does not hold", ek_leaf)
    with pytest.raises(EvidenceError, match="does not hold"):
        ek(ak_leaf)
    for profile, leaf in ((LeafProfile.AK_CLOUD, ek_leaf), (LeafProfile.AK, ek_leaf)):
        with pytest.raises(EvidenceError, match="does not hold"):
            verify_ak_chain([leaf], ANCHORS, NOW, profile=profile)
    with pytest.raises(EvidenceError, match="does not hold"):
        verify_ek_chain(ak_leaf, [], ANCHORS, NOW, profile=LeafProfile.EK_CLOUD)


def test_with_one_usage_for_both_the_role_follows_from_the_key_usage() -> None:
    cloud_ak = ROOT.ak(usages=(EKU_EK,))
    cloud_ek = ROOT.ek(usages=(EKU_EK,))
    verify_ak_chain([cloud_ak], ANCHORS, NOW, profile=LeafProfile.AK_CLOUD)
    verify_ek_chain(cloud_ek, [], ANCHORS, NOW, profile=LeafProfile.EK_CLOUD)
    with pytest.raises(EvidenceError, match="attestation key"):
        verify_ak_chain([cloud_ek], ANCHORS, NOW, profile=LeafProfile.AK_CLOUD)
    with pytest.raises(EvidenceError, match="endorsement key"):
        ek(cloud_ak)


@pytest.mark.parametrize("usages", [(), (EKU_EK,), (EKU_AK,)])
def test_only_the_cloud_profile_takes_aks_without_their_usage(
    usages: tuple[x509.ObjectIdentifier, ...],
) -> None:
    leaf = ROOT.ak(usages=usages)
    endorsed = verify_ak_chain([leaf], ANCHORS, NOW, profile=LeafProfile.AK_CLOUD)
    assert endorsed.profile is LeafProfile.AK_CLOUD
    with pytest.raises(EvidenceError, match="extended key usage"):
        verify_ak_chain([ROOT.ak(usages=(SERVER_AUTH,))], ANCHORS, NOW, profile=LeafProfile.AK_CLOUD)


def test_a_profile_of_the_other_kind_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="attestation keys"):
        verify_ak_chain([ROOT.ak()], ANCHORS, NOW, profile=LeafProfile.EK)
    with pytest.raises(ValueError, match="endorsement keys"):
        verify_ek_chain(ROOT.ek(), [], ANCHORS, NOW, profile=LeafProfile.AK_CLOUD)


@pytest.mark.parametrize(
    ("key", "flags", "good"),
    [
        (p256(), ("key_agreement",), True),
        (rsa_private(2048), ("key_encipherment",), True),
        (p256(), ("digital_signature",), False),
        (p256(), ("key_agreement", "digital_signature"), False),
        (p256(), ("key_agreement", "key_cert_sign"), False),
        (p256(), ("content_commitment",), False),
        (p256(), (), False),
    ],
)
def test_an_ek_deciphers_or_agrees_on_keys_and_nothing_else(
    key: ec.EllipticCurvePrivateKey, flags: tuple[str, ...], good: bool
) -> None:
    leaf = ROOT.ek(key, flags=flags)
    if good:
        assert ek(leaf).tpm_manufacturer == "id:53544D20"
        return
    with pytest.raises(EvidenceError, match="does not hold"):
        ek(leaf)


def test_a_ca_with_the_usage_of_an_ek_is_no_ek() -> None:
    ca = ROOT.sub_ca("EK CA", extra=[(x509.ExtendedKeyUsage([EKU_EK]), False)])
    ek(ca.ek(), ca.der)
    with pytest.raises(EvidenceError, match="does not hold"):
        ek(ca.der)
    with pytest.raises(EvidenceError, match="does not hold"):
        ek(ROOT.ek(ca=True))
    with pytest.raises(EvidenceError, match="does not hold"):
        ek(ROOT.ek(usages=()))


def test_a_leaf_among_the_anchors_is_refused_when_they_are_read() -> None:
    key = p256()
    extensions = [(usage("digital_signature"), True), (x509.ExtendedKeyUsage([EKU_AK]), False)]
    own = Ca(root().certificate, key).issue(name("self"), key, extensions)
    with pytest.raises(MalformedError, match="not a ca certificate"):
        TrustAnchors.from_der([own.public_bytes(Encoding.DER)])
    refused("does not hold", own.public_bytes(Encoding.DER))


def test_a_path_of_one_certificate_is_refused_even_if_the_library_took_it() -> None:
    leaf = ROOT.ak()
    anchors = TrustAnchors.from_der([ROOT.der])
    anchors.store = Store([x509.load_der_x509_certificate(leaf)])
    refused("does not end in a trusted root", leaf, anchors=anchors)


@pytest.mark.parametrize("value", ["30038201ff", "3002a300"])
def test_an_alternative_name_that_cannot_be_read_is_refused(value: str) -> None:
    broken = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, bytes.fromhex(value))
    with pytest.raises((EvidenceError, MalformedError)):
        ak(ROOT.ak(names=(), extra=[(broken, True)]))


def test_a_root_as_leaf_is_refused() -> None:
    refused("does not hold", ROOT.der)
    both = root("Odd", flags=("key_cert_sign", "digital_signature"))
    refused("does not hold", both.der, anchors=TrustAnchors.from_der([both.der]))


def test_no_certificate_and_too_many_are_refused() -> None:
    refused("no certificate")
    with pytest.raises(MalformedError, match="9 certificates"):
        ak(*[SUB.der] * 9)
    with pytest.raises(MalformedError, match="too large"):
        ak(bytes(20_000))


def test_a_certificate_that_cannot_be_read_is_malformed() -> None:
    leaf = ROOT.ak()
    for end in range(0, len(leaf), 7):
        with pytest.raises(MalformedError):
            ak(leaf[:end])
    with pytest.raises(MalformedError):
        ak(leaf + b"\x00")


def test_a_signature_that_claims_unused_bits_is_malformed() -> None:
    leaves = (ROOT.ak() for _ in range(100))
    leaf = next(one for one in leaves if one[-1] % 2 == 0)
    ak(leaf)
    at = len(leaf) - len(x509.load_der_x509_certificate(leaf).signature) - 1
    with pytest.raises(MalformedError, match="whole number of bytes"):
        ak(leaf[:at] + b"\x01" + leaf[at + 1 :])


def test_every_flipped_bit_of_a_leaf_is_refused() -> None:
    leaf = ROOT.ak()
    for at in range(0, len(leaf), 3):
        changed = bytearray(leaf)
        changed[at] ^= 0x01
        with pytest.raises((EvidenceError, MalformedError, UnsupportedError)):
            ak(bytes(changed))


def test_a_later_certificate_for_the_same_key_is_checked_at_its_own_time() -> None:
    leaf = ROOT.ak(days=(10, 300))
    refused("does not hold", leaf)
    assert ak(leaf, at=NOW + YEAR / 2).not_before == NOW + timedelta(10)
    assert NOW.tzinfo is UTC
