# SPDX-License-Identifier: Apache-2.0
"""Every file of the corpus folder `tee/snp`, with the outcome that its index states."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from corpus import check_certificate, corpus_bytes, corpus_root, entries, entry, judge, needs_corpus
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from quotary_verifier.errors import EvidenceError, MalformedError, QuotaryError
from quotary_verifier.evidence.tee.amd_certs import (
    AmdRoots,
    Generation,
    SigningKey,
    amd_roots,
    read_amd_certificate,
    verify_link,
)
from quotary_verifier.evidence.tee.shape import Severity, enforce
from quotary_verifier.evidence.tee.snp import SnpClaims, SnpEndorsements, verify_snp
from quotary_verifier.evidence.tee.snp_report import SIGNED_BYTES, Policy, parse_snp_report
from quotary_verifier.evidence.tee.snp_rules import SnpRules, appraise_snp
from quotary_verifier.pki.revocation import Revocation

pytestmark = needs_corpus

Entry = dict[str, Any]
ENTRIES = entries("tee/snp/")
REPORTS = [one for one in ENTRIES if one["kind"] == "snp-report"]
ANY = SnpRules(frozenset(Generation))


def file_id(item: Entry) -> str:
    return str(item["file"]).removeprefix("tee/")


def der(file: str) -> bytes:
    data = corpus_bytes(file)
    return b64decode(b"".join(data.split(b"-----")[2].split())) if file.endswith(".pem") else data


def endorsements_of(item: Entry) -> SnpEndorsements:
    vcek, ask, _ = item["needs"]
    return SnpEndorsements(der(vcek), der(ask))


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def verified(item: Entry, report: bytes | None = None) -> SnpClaims:
    return verify_snp(
        corpus_bytes(item["file"]) if report is None else report,
        endorsements_of(item),
        instant(item["expected"]["valid_at"]),
        report_data=bytes.fromhex(item["expected"]["report_data"]),
    )


@pytest.mark.filterwarnings("error")
def check_report(item: Entry) -> None:
    expected = item["expected"]
    claims = verified(item)
    report = claims.report
    assert report.version == expected["version"]
    assert bool(report.policy & Policy.DEBUG) is expected["debug"]
    assert report.policy | 1 << 17 | report.abi[0] << 8 | report.abi[1] == int(expected["policy"], 16)
    assert report.vmpl == expected["vmpl"]
    assert report.signing_key.value == expected["signing_key"]
    assert report.platform_info == int(expected["platform_info"], 16)
    assert claims.measurements["launch"].hex() == expected["measurement"]
    assert report.host_data.hex() == expected["host_data"]
    assert claims.device == bytes.fromhex(expected["chip_id"])
    for name in ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"):
        assert getattr(report, name).hex() == expected[name]
    assert list(report.cpuid or ()) == expected.get("cpuid_fam_mod_step", [])
    assert claims.not_shown == ("revocation",)
    assert claims.signer.revocation is Revocation.UNKNOWN
    leaf = read_amd_certificate(endorsements_of(item).leaf)
    check_certificate(leaf.certificate, expected["vcek"])
    assert (claims.signer.not_before, claims.signer.not_after) == (leaf.not_before, leaf.not_after)
    if "report_data_ascii" in expected:
        assert report.report_data.rstrip(b"\0") == expected["report_data_ascii"].encode()
    findings = appraise_snp(claims, ANY)
    if item["expect"] == "ok":
        warned = [finding.rule for finding in enforce(findings)]
        assert warned == (["sev-snp.generation"] if claims.generation is Generation.MILAN else [])
        return
    assert item["expect"] == "reject-by-default"
    refused = {finding.rule for finding in findings if finding.severity is Severity.FAIL}
    assert refused == {"sev-snp.version", "sev-snp.provisional"}
    assert expected["reason"] == "version 2 has no CPUID fields; also committed != current TCB"
    enforce(appraise_snp(claims, SnpRules(ANY.generations, versions=frozenset({2}), provisional=True)))


def check_ca(item: Entry) -> None:
    file = item["file"]
    assert item["expect"] == "reference"
    certificate = read_amd_certificate(corpus_bytes(file))
    check_certificate(certificate.certificate, item["expected"])
    ark = amd_roots().arks[generation_of(file)]
    verify_link(certificate, ark)
    if "/ark-" in file:
        assert ark == certificate
    others = [one for generation, one in amd_roots().arks.items() if generation is not generation_of(file)]
    for other in others:
        with pytest.raises(EvidenceError, match="names another issuer"):
            verify_link(certificate, other)


def generation_of(file: str) -> Generation:
    (found,) = [generation for generation in Generation if generation.value.lower() in file]
    return found


def check_vcek(item: Entry) -> None:
    file = item["file"]
    certificate = read_amd_certificate(der(file))
    check_certificate(certificate.certificate, item["expected"])
    generation = generation_of(file)
    ask = read_amd_certificate(corpus_bytes(f"tee/snp/ask-{generation.value.lower()}.der"))
    asvk = read_amd_certificate(corpus_bytes(f"tee/snp/asvk-{generation.value.lower()}.der"))
    with pytest.raises(EvidenceError, match="names another issuer"):
        verify_link(certificate, asvk)
    if item["expect"] == "ok":
        verify_link(certificate, ask)
        return
    assert item["expect"] == "reject"
    assert item["expected"]["reason"].startswith("does not chain to the AMD roots and did not sign")
    with pytest.raises(EvidenceError, match="SEV-Milan did not sign SEV-VCEK"):
        verify_link(certificate, ask)
    report = entry("tee/snp/milan-v2-report.bin")
    parsed, key = parse_snp_report(corpus_bytes(report["file"])), certificate.key
    assert isinstance(key, ec.EllipticCurvePublicKey)
    with pytest.raises(InvalidSignature):
        key.verify(encode_dss_signature(parsed.r, parsed.s), parsed.signed, ec.ECDSA(hashes.SHA384()))
    endorsements = SnpEndorsements(der(file), endorsements_of(report).issuer)
    with pytest.raises(EvidenceError, match="did not sign"):
        verify_snp(
            corpus_bytes(report["file"]),
            endorsements,
            instant(report["expected"]["valid_at"]),
            report_data=bytes.fromhex(report["expected"]["report_data"]),
        )


CHECKS = {"snp-report": check_report, "ca-certificate": check_ca, "vcek": check_vcek}


@pytest.mark.parametrize("item", ENTRIES, ids=file_id)
def test_a_file_of_the_corpus_has_its_stated_outcome(item: Entry) -> None:
    judge(item, CHECKS)


def test_every_file_of_this_folder_is_in_the_index() -> None:
    root = corpus_root()
    assert root is not None
    assert {one["file"] for one in ENTRIES} == {
        f"tee/snp/{path.name}" for path in (root / "tee" / "snp").iterdir()
    }


def test_the_pinned_roots_are_the_files_of_the_corpus_byte_for_byte() -> None:
    files = {generation: f"tee/snp/ark-{generation.value.lower()}.der" for generation in Generation}
    read = AmdRoots.from_der({generation: corpus_bytes(file) for generation, file in files.items()})
    assert read == amd_roots()


def altered(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[:at] + bytes((data[at] ^ (1 << at % 8),)) + data[at + 1 :]


@pytest.mark.parametrize("item", REPORTS, ids=file_id)
def test_a_report_with_any_byte_altered_is_rejected_signed_or_not(item: Entry) -> None:
    report = corpus_bytes(item["file"])
    for at, data in enumerate(altered(report)):
        with pytest.raises(QuotaryError) as refusal:
            verified(item, data)
        if at >= SIGNED_BYTES:
            assert isinstance(refusal.value, EvidenceError | MalformedError)


@pytest.mark.parametrize("item", REPORTS, ids=file_id)
def test_a_report_of_another_length_is_malformed(item: Entry) -> None:
    report = corpus_bytes(item["file"])
    for data in (b"", report[:-1], report + b"\0", report[:SIGNED_BYTES]):
        with pytest.raises(MalformedError, match="1184 bytes"):
            parse_snp_report(data)


@pytest.mark.parametrize("item", REPORTS, ids=file_id)
def test_a_vcek_with_any_byte_altered_vouches_for_nothing(item: Entry) -> None:
    leaf, issuer = (der(file) for file in item["needs"][:2])
    at = instant(item["expected"]["valid_at"])
    report = corpus_bytes(item["file"])
    expected = bytes.fromhex(item["expected"]["report_data"])
    for data in altered(leaf):
        with pytest.raises(QuotaryError):
            verify_snp(report, SnpEndorsements(data, issuer), at, report_data=expected)


def test_a_report_verifies_from_the_first_to_the_last_second_of_its_certificate_and_no_longer() -> None:
    item = entry("tee/snp/genoa-v5-report.bin")
    report, expected = corpus_bytes(item["file"]), bytes.fromhex(item["expected"]["report_data"])
    first, last = (instant(item["expected"]["vcek"][name]) for name in ("not_before", "not_after"))
    for time in (first, last):
        claims = verify_snp(report, endorsements_of(item), time, report_data=expected)
        assert (claims.signer.not_before, claims.signer.not_after) == (first, last)
    for time in (datetime(2026, 2, 17, 23, 1, 35, tzinfo=UTC), datetime(2033, 2, 17, 23, 1, 37, tzinfo=UTC)):
        with pytest.raises(EvidenceError, match="SEV-VCEK is not valid at"):
            verify_snp(report, endorsements_of(item), time, report_data=expected)


def test_a_milan_report_is_refused_where_only_genoa_is_accepted() -> None:
    claims = verified(entry("tee/snp/milan-v3-report.bin"))
    assert claims.report.signing_key is SigningKey.VCEK
    with pytest.raises(EvidenceError, match="Milan is not accepted"):
        enforce(appraise_snp(claims, SnpRules(frozenset({Generation.GENOA}))))
