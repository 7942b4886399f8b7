# SPDX-License-Identifier: Apache-2.0
"""Reports and keys that the tests mint themselves: what verifies, and every way in which a report does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from amd_pki import BOUND, LONG, NOW, OID, SHORT, AmdForge, ca_extensions, integer, rsa_key
from cryptography.hazmat.primitives.asymmetric import ec

from quotary_verifier.errors import (
    EvidenceError,
    MalformedError,
    OutOfTimeError,
    QuotaryError,
    UnsupportedError,
)
from quotary_verifier.evidence.tee.amd_certs import AmdRoots, Generation, SigningKey, amd_roots
from quotary_verifier.evidence.tee.shape import report_data
from quotary_verifier.evidence.tee.snp import SnpClaims, SnpEndorsements, verify_snp
from quotary_verifier.evidence.tee.snp_report import Tcb
from quotary_verifier.pki.der import encode
from quotary_verifier.pki.revocation import Revocation


def verified(
    forge: AmdForge,
    report: bytes | None = None,
    endorsements: SnpEndorsements | None = None,
    *,
    at: datetime = NOW,
    roots: AmdRoots | None = None,
) -> SnpClaims:
    return verify_snp(
        forge.report() if report is None else report,
        endorsements or forge.endorsements(),
        at,
        report_data=BOUND,
        roots=roots or forge.roots(),
    )


@pytest.mark.parametrize("signing_key", SigningKey)
@pytest.mark.parametrize("generation", Generation)
def test_a_report_of_each_generation_verifies_by_either_kind_of_key(
    generation: Generation, signing_key: SigningKey
) -> None:
    forge = AmdForge(generation, signing_key)
    claims = verified(forge, endorsements=forge.endorsements(forge.crl()))
    assert (claims.generation, claims.report.signing_key, claims.kind) == (generation, signing_key, "sev-snp")
    fmc = 3 if generation is Generation.TURIN else None
    assert claims.reported == claims.committed == claims.current == claims.launch == Tcb(10, 1, 27, 200, fmc)
    assert claims.device == forge.chip
    assert claims.measurements == {"launch": b"\x4d" * 48}
    assert claims.signed_time is None
    assert claims.csp == ("cloud.example" if signing_key is SigningKey.VLEK else None)
    assert claims.signer.revocation is Revocation.GOOD
    by_vlek = ("chip-id",) if signing_key is SigningKey.VLEK else ()
    assert claims.not_shown == by_vlek
    assert set(claims.shown) == {
        "report-data", "signature", "chain", "tcb-certificate", "chip-id", "revocation"
    } - set(by_vlek)  # fmt: skip


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_every_version_of_the_report_that_is_known_verifies(version: int) -> None:
    claims = verified(AmdForge(version=version))
    assert claims.report.version == version
    assert (claims.report.cpuid is None) is (version == 2)
    assert (claims.report.mitigations is None) is (version < 5)


def test_a_commit_is_bound_by_its_digest_and_that_of_its_genesis_record() -> None:
    assert report_data(b"\1" * 32, b"\2" * 32) == b"\1" * 32 + b"\2" * 32
    for wrong in ((b"\1" * 31, b"\2" * 32), (b"\1" * 32, b"\2" * 33)):
        with pytest.raises(ValueError, match="two digests"):
            report_data(*wrong)


@pytest.mark.parametrize("at", range(64))
def test_report_data_that_differ_in_any_byte_are_refused(at: int) -> None:
    forge = AmdForge()
    with pytest.raises(EvidenceError, match="report data"):
        verified(forge, forge.report({0x50 + at: bytes((BOUND[at] ^ 1,))}))


def test_what_is_asked_for_has_to_be_64_bytes_at_a_time_with_a_zone() -> None:
    forge = AmdForge()
    for short in (b"", BOUND[:32]):
        with pytest.raises(ValueError, match="report data"):
            verify_snp(forge.report(), forge.endorsements(), NOW, report_data=short)
    with pytest.raises(ValueError, match="time zone"):
        verify_snp(forge.report(), forge.endorsements(), NOW.replace(tzinfo=None), report_data=BOUND)


FORMS: dict[str, tuple[int, bytes, type[QuotaryError], str]] = {
    "version 1": (0x00, b"\1", UnsupportedError, "version 1"),
    "version 6": (0x00, b"\6", UnsupportedError, "version 6"),
    "another signature algorithm": (0x34, b"\2", UnsupportedError, "signature algorithm 2"),
    "policy without bit 17": (0x08, b"\0\0\1", MalformedError, "bit 17"),
    "policy with bit 26": (0x08, b"\0\0\3\4", UnsupportedError, "not known"),
    "a vmpl that is none": (0x30, b"\4", MalformedError, "vmpl 4"),
    "requested by the host": (0x30, b"\xff" * 4, EvidenceError, "by the host"),
    "no signing key": (0x48, b"\x1c", EvidenceError, "not signed"),
    "a reserved signing key": (0x48, b"\x08", MalformedError, "reserved"),
    "an unknown flag": (0x48, b"\x20", MalformedError, "flags"),
    "an unknown processor": (0x188, b"\x1a\x50", UnsupportedError, "family 0x1a, model 0x50"),
    "a reserved byte of the reported tcb": (0x182, b"\1", MalformedError, "reserved byte"),
    "a reserved byte of the committed tcb": (0x1E3, b"\1", MalformedError, "reserved byte"),
    **{
        f"reserved byte 0x{at:x}": (at, b"\1", MalformedError, "not zero")
        for at in (0x4C, 0x4F, 0x18B, 0x19F, 0x1EB, 0x1EF, 0x208, 0x29F, 0x330, 0x49F)
    },
    "a long r": (0x2D0, b"\1", MalformedError, "more than 48"),
    "a long s": (0x2E8 + 71, b"\1", MalformedError, "more than 48"),
}


@pytest.mark.parametrize("case", FORMS.values(), ids=FORMS)
def test_a_signed_report_of_a_form_that_cannot_be_is_refused(
    case: tuple[int, bytes, type[QuotaryError], str],
) -> None:
    at, value, error, message = case
    forge = AmdForge()
    with pytest.raises(error, match=message):
        verified(forge, forge.report({at: value}))


@pytest.mark.parametrize(("version", "at"), [(2, 0x188), (2, 0x1F8), (3, 0x1F8), (4, 0x207)])
def test_what_an_older_version_reserves_has_to_be_zero(version: int, at: int) -> None:
    forge = AmdForge(version=version)
    with pytest.raises(MalformedError, match="not zero"):
        verified(forge, forge.report({at: b"\1"}))


def test_a_report_signed_by_another_key_is_refused() -> None:
    forge = AmdForge()
    with pytest.raises(EvidenceError, match="not signed by this VCEK"):
        verified(forge, forge.report(key=ec.generate_private_key(ec.SECP384R1())))


@pytest.mark.parametrize("signing_key", SigningKey)
def test_a_report_under_the_certificate_of_the_other_kind_of_key_is_refused(signing_key: SigningKey) -> None:
    forge = AmdForge(signing_key=signing_key)
    (other_kind,) = set(SigningKey) - {signing_key}
    other = AmdForge(signing_key=other_kind)
    with pytest.raises(EvidenceError, match=f"signed by a {signing_key.value}, and the certificate is of"):
        verified(forge, endorsements=other.endorsements())
    with pytest.raises(EvidenceError, match="is expected, not that of"):
        verified(forge, endorsements=SnpEndorsements(forge.leaf(), other.issuer()))


def test_a_leaf_that_another_kind_of_issuer_signed_is_refused() -> None:
    forge, vlek = AmdForge(), AmdForge(signing_key=SigningKey.VLEK)
    leaf = vlek.leaf(names=("SEV-VCEK",), extensions=forge.extensions())
    with pytest.raises(EvidenceError, match="names another issuer than SEV-Genoa"):
        verified(forge, endorsements=SnpEndorsements(leaf, forge.issuer()))


def test_a_swapped_or_repeated_chain_is_refused() -> None:
    forge = AmdForge()
    for leaf, issuer in (
        (forge.issuer(), forge.leaf()),
        (forge.leaf(), forge.leaf()),
        (forge.leaf(), forge.ark()),
    ):
        with pytest.raises(EvidenceError):
            verified(forge, endorsements=SnpEndorsements(leaf, issuer))


def test_an_issuer_under_a_root_of_the_same_name_that_is_not_pinned_is_refused() -> None:
    forge = AmdForge()
    endorsements = SnpEndorsements(forge.leaf(), forge.issuer(ark="other"))
    with pytest.raises(EvidenceError, match="ARK-Genoa did not sign SEV-Genoa"):
        verified(forge, endorsements=endorsements)
    with pytest.raises(EvidenceError):
        verified(forge, roots=amd_roots())


def test_a_generation_whose_root_is_not_trusted_is_refused() -> None:
    with pytest.raises(EvidenceError, match="no root is trusted for Genoa"):
        verified(AmdForge(), roots=AmdForge(Generation.TURIN).roots())


@pytest.mark.parametrize(
    ("version", "message"), [(5, "certificate of SEV-Genoa is expected"), (2, "not an issuer")]
)
def test_an_issuer_of_another_name_is_refused(version: int, message: str) -> None:
    forge = AmdForge(version=version)
    endorsements = SnpEndorsements(forge.leaf(), forge.issuer(name="SEV-Naples"))
    with pytest.raises(EvidenceError, match=message):
        verified(forge, endorsements=endorsements)


@pytest.mark.parametrize(
    "extensions",
    [ca_extensions(ca=False), ca_extensions(signs=False), []],
    ids=["no ca", "signs none", "none"],
)
def test_an_issuer_that_may_not_sign_certificates_is_refused(extensions: list[object]) -> None:
    forge = AmdForge()
    with pytest.raises(EvidenceError, match="SEV-Genoa may not sign"):
        verified(forge, endorsements=SnpEndorsements(forge.leaf(), forge.issuer(extensions=extensions)))


@pytest.mark.parametrize("days", [(-30, -1), (1, 30)], ids=["expired", "not yet valid"])
@pytest.mark.parametrize("part", ["leaf", "issuer"])
def test_a_certificate_outside_its_time_is_refused(part: str, days: tuple[int, int]) -> None:
    forge = AmdForge()
    parts = {"leaf": forge.leaf(), "issuer": forge.issuer(), part: getattr(forge, part)(days=days)}
    with pytest.raises(OutOfTimeError, match="is not valid at 2026-06-01"):
        verified(forge, endorsements=SnpEndorsements(**parts))


def test_a_path_that_was_valid_at_the_time_of_the_evidence_verifies_years_later() -> None:
    forge = AmdForge()
    parts = SnpEndorsements(forge.leaf(days=(-400, -30)), forge.issuer())
    with pytest.raises(EvidenceError, match="not valid"):
        verified(forge, endorsements=parts)
    early = SnpEndorsements(forge.leaf(days=(-400, -20)), forge.issuer(days=(-900, 900)))
    claims = verify_snp(forge.report(), early, NOW - timedelta(25), report_data=BOUND, roots=forge.roots())
    assert claims.signer.not_after == NOW - timedelta(20)


@pytest.mark.parametrize("algorithm", [SHORT, LONG], ids=["trailer left out", "trailer spelled out"])
def test_both_encodings_of_amds_signatures_are_read(algorithm: bytes) -> None:
    forge = AmdForge()
    leaf = forge.leaf(algorithms=(algorithm, algorithm))
    verified(forge, endorsements=SnpEndorsements(leaf, forge.issuer()))


SHA256 = SHORT.replace(bytes.fromhex("608648016503040202"), bytes.fromhex("608648016503040201"))
SALT = SHORT[:-1] + b"\x20"


@pytest.mark.parametrize(
    "algorithms",
    [(SHA256, SHA256), (SALT, SALT), (SHORT, LONG), (LONG, SHORT)],
    ids=["sha-256", "a shorter salt", "inside and outside differ", "outside and inside differ"],
)
def test_a_signature_with_other_parameters_is_malformed(algorithms: tuple[bytes, bytes]) -> None:
    forge = AmdForge()
    leaf = forge.leaf(algorithms=algorithms)
    with pytest.raises(MalformedError, match="not signed with rsa-pss and sha-384"):
        verified(forge, endorsements=SnpEndorsements(leaf, forge.issuer()))


def test_a_leaf_key_on_another_curve_or_of_another_kind_is_refused() -> None:
    forge = AmdForge()
    for key in (ec.generate_private_key(ec.SECP256R1()), rsa_key("ask")):
        with pytest.raises(EvidenceError, match="not on p-384"):
            verified(forge, endorsements=SnpEndorsements(forge.leaf(key=key), forge.issuer()))


@pytest.mark.parametrize("names", [(), ("SEV-VCEK", "SEV-VCEK")], ids=["none", "two"])
def test_a_certificate_without_exactly_one_common_name_is_malformed(names: tuple[str, ...]) -> None:
    forge = AmdForge()
    with pytest.raises(MalformedError, match="one common name"):
        verified(forge, endorsements=SnpEndorsements(forge.leaf(names=names), forge.issuer()))


def test_a_critical_extension_that_is_not_known_is_malformed() -> None:
    forge = AmdForge()
    with pytest.raises(MalformedError, match="critical"):
        verified(forge, endorsements=SnpEndorsements(forge.leaf(critical=OID + "2"), forge.issuer()))


def test_bytes_that_are_no_certificate_are_malformed() -> None:
    forge = AmdForge()
    for junk in (b"", b"\x30", bytes(100), forge.leaf()[:-1], forge.leaf() + b"\0", bytes(20000)):
        with pytest.raises(MalformedError):
            verified(forge, endorsements=SnpEndorsements(junk, forge.issuer()))


def with_extension(forge: AmdForge, number: str, value: bytes | None) -> SnpEndorsements:
    extensions = {**forge.extensions(), OID + number: value or b""}
    if value is None:
        del extensions[OID + number]
    return SnpEndorsements(forge.leaf(extensions=extensions), forge.issuer())


EXTENSIONS: dict[str, tuple[str, bytes | None, type[QuotaryError], str]] = {
    "another product": (
        "2",
        encode(0x16, b"Milan-B0"),
        EvidenceError,
        "of a 'Milan-B0', and the report of a Genoa",
    ),
    "a product that only begins alike": ("2", encode(0x16, b"Genoa2"), EvidenceError, "of a 'Genoa2'"),
    "no product": ("2", None, EvidenceError, "no extension"),
    "a product that is no text": ("2", encode(0x04, b"Genoa"), MalformedError, "not a text"),
    "a product that is not ascii": ("2", encode(0x0C, "Genöa".encode()), MalformedError, "not a text"),
    "no microcode": ("3.8", None, EvidenceError, "no extension"),
    "a negative number": ("3.8", b"\x02\x01\xc8", MalformedError, "not an integer"),
    "a number with a zero before it": ("3.2", b"\x02\x02\x00\x01", MalformedError, "not an integer"),
    "a number of two bytes": ("3.2", b"\x02\x02\x01\x00", MalformedError, "not an integer"),
    "a number that is none": ("3.2", encode(0x04, b"\1"), MalformedError, "not an integer"),
    "an empty number": ("3.2", b"\x02\x00", MalformedError, "not an integer"),
    "a reserved component": ("3.4", integer(1), EvidenceError, "reserved tcb component"),
    "an fmc version": ("3.9", integer(0), EvidenceError, "fmc version, which Genoa has not"),
    "no chip": ("4", None, EvidenceError, "no extension"),
    "another chip": ("4", encode(0x04, b"\7" * 64), EvidenceError, "another chip"),
    "a chip of Turin": ("4", encode(0x04, b"\7" * 8), MalformedError, "not 64 bytes"),
}


@pytest.mark.parametrize("case", EXTENSIONS.values(), ids=EXTENSIONS)
def test_a_leaf_whose_extensions_do_not_fit_the_report_is_refused(
    case: tuple[str, bytes | None, type[QuotaryError], str],
) -> None:
    number, value, error, message = case
    forge = AmdForge()
    with pytest.raises(error, match=message):
        verified(forge, endorsements=with_extension(forge, number, value))


@pytest.mark.parametrize("generation", Generation)
@pytest.mark.parametrize("difference", [-1, 1])
def test_a_certificate_of_a_tcb_that_differs_in_any_one_component_is_refused(
    generation: Generation, difference: int
) -> None:
    for name, value in AmdForge(generation).tcb.items():
        forge = AmdForge(generation, certified={name: value + difference})
        with pytest.raises(EvidenceError, match=f"another tcb than reported: {name}$"):
            verified(forge)


def test_one_component_higher_does_not_make_up_for_another_that_is_lower() -> None:
    least = Tcb(10, 1, 27, 200)
    assert Tcb(255, 255, 255, 199).below(least) == ("microcode",)
    assert Tcb(9, 1, 27, 255).below(least) == ("bootloader",)
    assert Tcb(10, 1, 27, 200).below(least) == ()
    assert Tcb(10, 1, 27, 200).below(Tcb(0, 0, 0, 0, 1)) == ("fmc",)


def test_an_issuer_whose_key_is_not_rsa_is_refused() -> None:
    forge = AmdForge()
    issuer = forge.issuer(key=ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(EvidenceError, match="SEV-Genoa has no rsa key"):
        verified(forge, endorsements=SnpEndorsements(forge.leaf(), issuer))


def test_a_certificate_whose_signature_is_not_whole_bytes_or_that_is_too_large_is_malformed() -> None:
    forge = AmdForge()
    leaf = bytearray(forge.leaf())
    leaf[-257] = 1
    with pytest.raises(MalformedError, match="body, algorithm and signature"):
        verified(forge, endorsements=SnpEndorsements(bytes(leaf), forge.issuer()))
    large = {OID + "99": bytes(20000)} | forge.extensions()
    with pytest.raises(MalformedError, match="too large"):
        verified(forge, endorsements=SnpEndorsements(forge.leaf(extensions=large), forge.issuer()))


def test_a_chips_id_is_read_bare_and_as_octets() -> None:
    for generation in Generation:
        forge = AmdForge(generation)
        for value in (forge.chip, encode(0x04, forge.chip)):
            assert verified(forge, endorsements=with_extension(forge, "4", value)).device == forge.chip


def test_a_turin_chip_has_nothing_behind_its_eight_bytes() -> None:
    forge = AmdForge(Generation.TURIN)
    with pytest.raises(EvidenceError, match="another chip"):
        verified(forge, forge.report({0x1A8: b"\1"}))


def test_a_report_without_a_chips_id_says_that_the_chip_was_not_shown() -> None:
    forge = AmdForge()
    claims = verified(forge, forge.report({0x1A0: bytes(64)}))
    assert claims.device is None
    assert "chip-id" in claims.not_shown


def test_a_vlek_that_names_a_chip_or_no_provider_is_refused() -> None:
    forge = AmdForge(signing_key=SigningKey.VLEK)
    with pytest.raises(EvidenceError, match="names a chip"):
        verified(forge, endorsements=with_extension(forge, "4", encode(0x04, forge.chip)))
    with pytest.raises(EvidenceError, match="no extension"):
        verified(forge, endorsements=with_extension(forge, "5", None))


def test_a_revoked_issuer_is_refused_from_the_day_of_its_revocation() -> None:
    forge = AmdForge()
    revoked = forge.crl({5: NOW})
    with pytest.raises(EvidenceError, match="SEV-Genoa was revoked"):
        verified(forge, endorsements=forge.endorsements(revoked))
    before = verified(forge, endorsements=forge.endorsements(revoked), at=NOW - timedelta(seconds=1))
    assert before.signer.revocation is Revocation.GOOD
    with pytest.raises(EvidenceError, match="was revoked"):
        verified(forge, endorsements=forge.endorsements(forge.crl(), forge.crl({5: NOW}, end=0)))


def test_a_crl_that_says_nothing_leaves_the_question_open() -> None:
    forge = AmdForge()
    past = forge.crl(end=-0, start=-9)
    claims = verified(forge, endorsements=forge.endorsements(past), at=NOW + timedelta(seconds=1))
    assert claims.signer.revocation is Revocation.UNKNOWN
    assert "revocation" in claims.not_shown


def test_a_crl_by_anybody_but_the_root_of_the_generation_is_refused() -> None:
    forge = AmdForge()
    for crl in (forge.crl(signer="other"), AmdForge(Generation.TURIN).crl()):
        for crls in ((crl,), (forge.crl(), crl)):
            with pytest.raises(EvidenceError, match="was not made by ARK-Genoa"):
                verified(forge, endorsements=forge.endorsements(*crls))


def test_crls_that_are_none_or_too_many_are_malformed() -> None:
    forge = AmdForge()
    for crls in ((b"\x30\x00",), (forge.crl(),) * 9):
        with pytest.raises(MalformedError):
            verified(forge, endorsements=forge.endorsements(*crls))


def test_a_root_has_to_sign_itself_as_a_ca() -> None:
    forge = AmdForge()
    for root in (forge.ark(signer="other"), forge.issuer(), forge.leaf()):
        with pytest.raises(MalformedError, match="is no root"):
            AmdRoots.from_der({Generation.GENOA: root})


def test_amds_own_roots_are_valid_today_and_for_years() -> None:
    for ark in amd_roots().arks.values():
        assert (
            ark.not_before
            < datetime(2024, 1, 1, tzinfo=UTC)
            < datetime(2045, 1, 1, tzinfo=UTC)
            < ark.not_after
        )
