# SPDX-License-Identifier: Apache-2.0
"""Every file of the corpus folder `tee/azure-snp`, with the outcome that its index states."""

from __future__ import annotations

import json
from base64 import b64decode, urlsafe_b64decode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from corpus import corpus_bytes, entries, entry, judge, needs_corpus
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from forge import Forge

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.amd_certs import Generation, amd_roots, read_amd_certificate, verify_link
from quotary_verifier.evidence.tee.azure import AzureClaims, AzureRules, appraise_azure, verify_azure
from quotary_verifier.evidence.tee.azure_hcl import SNP, parse_hcl_report
from quotary_verifier.evidence.tee.azure_support import azure_endorsements
from quotary_verifier.evidence.tee.lines import Bound
from quotary_verifier.evidence.tee.shape import Severity, enforce
from quotary_verifier.evidence.tee.snp import SnpClaims, SnpEndorsements
from quotary_verifier.evidence.tee.snp_report import Policy
from quotary_verifier.evidence.tee.snp_rules import SnpRules
from quotary_verifier.evidence.tpm_keys import attestation_key
from quotary_verifier.evidence.tpm_quote import check_pcr_digest, check_qualified_signer, verify_signature
from quotary_verifier.policy.tee import TeeRules
from quotary_verifier.recipe.platform import read_host
from quotary_verifier.recipe.tee import EndorsedAk, judge_line
from quotary_verifier.wire import tpm
from quotary_verifier.wire.records import Genesis, TpmIdentity
from quotary_verifier.wire.tpm_names import HIERARCHIES, RH_ENDORSEMENT
from quotary_verifier.wire.tpm_reader import sized, u16

pytestmark = needs_corpus

Entry = dict[str, Any]
ENTRIES = entries("tee/azure-snp/")
EVIDENCE = "tee/azure-snp/evidence-v1.json"
HCL = "tee/azure-snp/hcl-report.bin"
AT = datetime(2026, 1, 1, tzinfo=UTC)


class Collected(NamedTuple):
    """What one machine gave: HCL report, VCEK, and a quote of its vTPM."""

    hcl: bytes
    vcek: bytes
    message: bytes
    signature: bytes
    pcrs: list[bytes]


def collected(hcl: bytes, vcek: bytes, quote: dict[str, Any]) -> Collected:
    message, signature = bytes.fromhex(quote["message"]), bytes.fromhex(quote["signature"])
    return Collected(hcl, vcek, message, signature, [bytes.fromhex(value) for value in quote["pcrs"]])


def in_one_file() -> Collected:
    found = json.loads(corpus_bytes(EVIDENCE))
    return collected(
        urlsafe_b64decode(found["hcl_report"]), urlsafe_b64decode(found["vcek"]), found["tpm_quote"]
    )


def in_files() -> Collected:
    """The files of the folder are of another machine than the one file. What the index states of the one file is, but
    for its PCR 0, true of the machine of these files."""
    quote = json.loads(corpus_bytes("tee/azure-snp/tpm-quote-v1.json"))
    return collected(corpus_bytes(HCL), certificates()[0], quote)


def certificates() -> list[bytes]:
    blocks = corpus_bytes("tee/azure-snp/vcek-chain.pem").split(b"-----BEGIN CERTIFICATE-----")[1:]
    return [b64decode(b"".join(block.partition(b"-----END")[0].split())) for block in blocks]


def verified(given: Collected, hcl: bytes | None = None) -> AzureClaims:
    endorsements = SnpEndorsements(given.vcek, corpus_bytes("tee/snp/ask-milan.der"))
    return verify_azure(hcl or given.hcl, endorsements, AT)


def hardware(claims: AzureClaims) -> SnpClaims:
    assert isinstance(claims.hardware, SnpClaims)
    return claims.hardware


def ak_of(claims: AzureClaims) -> tpm.Public:
    key = load_der_public_key(claims.report.ak)
    assert isinstance(key, rsa.RSAPublicKey)
    modulus = key.public_numbers().n.to_bytes(key.key_size // 8, "big")
    area = tpm.encode_public(
        attributes=0x50472,
        key=tpm.RsaKey(key.key_size, 65537, modulus),
        scheme=tpm.ALG_RSASSA,
        scheme_hash=11,
    )
    return tpm.parse_public(area)


def rsassa(raw: bytes) -> tpm.Signature:
    return tpm.parse_signature(u16(tpm.ALG_RSASSA) + u16(11) + sized(raw))


def check_hcl(item: Entry) -> None:
    expected, report = item["expected"], parse_hcl_report(in_files().hcl)
    assert item["expect"] == "ok"
    assert report.hardware_type == SNP
    assert int.from_bytes(in_files().hcl[1228:1232], "little") == expected["hash_type"]
    assert report.version == expected["hcl_version"]
    assert (report.hardware_type == SNP) is (expected["report_type"] == "SNP")
    assert report.expected_report_data[:32].hex() == expected["var_data_sha256"]
    assert report.report_data == report.expected_report_data
    assert report.user_data.hex() == expected["user_data"]
    assert [key["kid"] for key in json.loads(report.text)["keys"]] == expected["keys"]


def check_evidence(item: Entry) -> None:
    expected = item["expected"]
    check_hcl(item)
    check_quote(in_one_file(), expected)
    assert in_one_file().pcrs[0].hex().startswith(expected["pcr0_prefix"])
    check_quote(in_files(), expected)
    claims = verified(in_files())
    report = hardware(claims).report
    assert (report.version, report.vmpl) == (expected["version"], expected["vmpl"])
    assert bool(report.policy & Policy.DEBUG) is expected["debug"]
    assert report.signing_key.value == expected["signing_key"]
    assert report.report_data.hex() == expected["report_data"]
    assert claims.measurements["launch"].hex() == expected["measurement"]
    assert claims.device == bytes.fromhex(expected["chip_id"])
    for name in ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"):
        assert getattr(report, name).hex() == expected[name]
    assert report.policy | 1 << 17 | report.abi[0] << 8 | report.abi[1] == int(expected["policy"], 16)
    assert report.platform_info == int(expected["platform_info"], 16)
    assert report.host_data.hex() == expected["host_data"]
    assert datetime.fromisoformat(expected["valid_at"]) == AT
    assert {one.rule for one in appraise_azure(claims, rules_for(claims)) if one.severity is Severity.FAIL} == {
        "azure.sev-snp.version", "azure.sev-snp.provisional",
    }  # fmt: skip
    newer = verified(in_one_file())
    opted = rules_for(claims, versions=frozenset({2}), provisional=True)
    for accepted, rules in ((claims, opted), (newer, rules_for(newer))):
        (warned,) = enforce(appraise_azure(accepted, rules))
        assert warned.rule == "azure.sev-snp.generation"
        unnamed = AzureRules(snp=SnpRules(frozenset({Generation.MILAN})))
        assert "azure.paravisor" in {finding.rule for finding in appraise_azure(accepted, unnamed)}


def rules_for(claims: AzureClaims, **options: Any) -> AzureRules:
    """Rules that name the paravisor as it was measured."""
    measured = frozenset({claims.measurements["launch"]})
    return AzureRules(snp=SnpRules(frozenset({Generation.MILAN}), measurements=measured, **options))


def check_quote(given: Collected, expected: Entry) -> None:
    claims = verified(given)
    public = ak_of(claims)
    claims.require_ak(public)
    verify_signature(public, given.message, rsassa(given.signature))
    attest = tpm.parse_attest(given.message)
    assert attest.extra_data == expected["nonce_ascii"].encode()
    check_pcr_digest(attest.require_quote(), dict(enumerate(given.pcrs)), tpm.ALG_SHA256)
    altered = given.message[:-1] + bytes((given.message[-1] ^ 1,))
    with pytest.raises(EvidenceError, match="does not verify"):
        verify_signature(public, altered, rsassa(given.signature))


def check_quote_json(item: Entry) -> None:
    assert item["expect"] == "reference"
    given = in_files()
    check_quote(given, {"nonce_ascii": "challenge"})
    with pytest.raises(EvidenceError, match="not the one"):
        verified(in_one_file()).require_ak(ak_of(verified(given)))


def check_attest(item: Entry) -> None:
    """A quote of a third vTPM, whose key the corpus does not have: well formed, and signed by neither endorsed key."""
    expected, message = item["expected"], corpus_bytes(item["file"])
    assert item["expect"] == "ok"
    attest = tpm.parse_attest(message)
    assert (attest.magic, attest.type) == (int(expected["magic"], 16), int(expected["type"], 16))
    assert attest.extra_data.hex() == expected["extra_data"]
    assert attest.qualified_signer.hex() == expected["qualified_signer"]
    clock = attest.clock
    stated = [expected[name] for name in ("clock", "reset_count", "restart_count", "safe")]
    assert [clock.clock, clock.reset_count, clock.restart_count, clock.safe] == stated
    (selection,) = attest.require_quote().selections
    assert [["sha256", list(selection.pcrs)]] == expected["selection"]
    assert selection.hash_alg == tpm.ALG_SHA256
    assert attest.require_quote().pcr_digest.hex() == expected["pcr_digest"]
    signature = rsassa(corpus_bytes("tee/azure-snp/tpm-quote.sig"))
    for given in (in_one_file(), in_files()):
        with pytest.raises(EvidenceError, match="does not verify"):
            verify_signature(ak_of(verified(given)), message, signature)


def check_signature(item: Entry) -> None:
    assert item["expect"] == "reference"
    assert len(corpus_bytes(item["file"])) == 256
    check_attest(entry("tee/azure-snp/tpm-quote.msg"))


def check_chain(item: Entry) -> None:
    assert item["expect"] == "reference"
    vcek, ask, ark = map(read_amd_certificate, certificates())
    assert ark == amd_roots().arks[Generation.MILAN]
    verify_link(ask, ark)
    verify_link(vcek, ask)


CHECKS: dict[str, Callable[[Entry], None]] = {
    "azure-hcl-report": check_hcl,
    "azure-snp-evidence": check_evidence,
    "cert-chain": check_chain,
    "quote-attest": check_attest,
    "quote-json": check_quote_json,
    "signature-raw": check_signature,
}


@pytest.mark.parametrize("item", ENTRIES, ids=[one["file"].rpartition("/")[2] for one in ENTRIES])
def test_a_file_of_the_corpus_has_its_stated_outcome(item: Entry) -> None:
    judge(item, CHECKS)


@pytest.mark.parametrize("given", [in_one_file, in_files])
def test_no_byte_of_a_real_report_or_of_what_it_binds_can_be_altered(given: Callable[[], Collected]) -> None:
    machine = given()
    data = machine.hcl
    signed, text = 0x2A0, parse_hcl_report(data).text
    bound = [*range(32, 32 + signed), *range(1236, 1236 + len(text))]
    for position in bound[::31]:
        altered = data[:position] + bytes((data[position] ^ 0x02,)) + data[position + 1 :]
        with pytest.raises((EvidenceError, MalformedError, UnsupportedError)):
            verified(machine, altered)


def test_a_report_and_the_processor_of_another_machine_do_not_fit() -> None:
    with pytest.raises(EvidenceError, match="not signed by this VCEK"):
        verified(in_files()._replace(vcek=in_one_file().vcek))


@pytest.mark.parametrize("given", [in_one_file, in_files])
def test_a_real_quote_is_of_a_primary_of_the_endorsement_hierarchy_whose_genesis_record_can_be_written(
    given: Callable[[], Collected],
) -> None:
    """The name that the quote carries fits one public area and one hierarchy: RSASSA with SHA-256, attributes 0x50472,
    no policy. So item 6 of a genesis record is 4000000b, and the recipe's own functions take report and quote."""
    machine = given()
    claims = verified(machine)
    attest = tpm.parse_attest(machine.message)
    parent = RH_ENDORSEMENT.to_bytes(4)
    key = attestation_key(ak_of(claims), parent)
    assert not key.profile.own
    check_qualified_signer(attest, key.qualified_name)
    for other in HIERARCHIES.keys() - {RH_ENDORSEMENT}:
        with pytest.raises(EvidenceError):
            check_qualified_signer(attest, attestation_key(key.public, other.to_bytes(4)).qualified_name)
    nv = Forge().counter
    record = Genesis(
        b"s" * 16, 0, "vm.example.net", bytes(32), TpmIdentity(key.public.raw, parent, 15, 13, nv)
    )
    host = read_host(record.encode())
    endorsements = SnpEndorsements(machine.vcek, corpus_bytes("tee/snp/ask-milan.der"))
    one = EndorsedAk(host.public, azure_endorsements(machine.hcl, endorsements))
    rules = TeeRules(
        required=frozenset({"azure"}), azure=rules_for(claims, versions=frozenset({2, 3}), provisional=True)
    )
    judged = judge_line(one, Bound(bytes(32), bytes(32)), int(AT.timestamp()), rules)
    assert (judged.name, judged.appraised) == ("azure", True)
    another = in_files if given is in_one_file else in_one_file
    stranger = EndorsedAk(ak_of(verified(another())), one.endorsements)
    with pytest.raises(EvidenceError, match="not the one that the confidential vm"):
        judge_line(stranger, Bound(bytes(32), bytes(32)), int(AT.timestamp()), rules)
