# SPDX-License-Identifier: Apache-2.0
"""HCL reports of confidential VMs that the tests mint: what they endorse, every refusal, and appraisal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from amd_pki import NOW, AmdForge
from azure_forge import VM, AzureForge, ak_jwk, base64url, modulus, vtpm_key, vtpm_public
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256
from forge import Quote
from intel_sgx import TdxForge, forged_root

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.amd_certs import Generation
from quotary_verifier.evidence.tee.azure import (
    AzureClaims,
    AzureRules,
    AzureTdxEndorsements,
    appraise_azure,
    verify_azure,
)
from quotary_verifier.evidence.tee.azure_hcl import TDX, parse_hcl_report
from quotary_verifier.evidence.tee.shape import Severity, enforce
from quotary_verifier.evidence.tee.snp_rules import SnpRules
from quotary_verifier.evidence.tee.tdx_rules import TdxRules
from quotary_verifier.evidence.tpm_quote import verify_signature
from quotary_verifier.wire.tpm import parse_attest, parse_signature
from quotary_verifier.wire.tpm_reader import sized, u16

FORGE = AzureForge()
REPORT = FORGE.report()
ENDORSEMENTS = FORGE.amd.endorsements()
ROOTS = FORGE.amd.roots()
PARAVISOR = frozenset({b"\x4d" * 48})
SNP = SnpRules(frozenset({Generation.GENOA}), measurements=PARAVISOR)


def verified(report: bytes = REPORT, endorsements: Any = ENDORSEMENTS) -> AzureClaims:
    return verify_azure(report, endorsements, NOW, amd=ROOTS)


def test_the_report_endorses_the_key_of_the_vtpm_which_then_quotes_as_any_tpm() -> None:
    claims = verified()
    public = vtpm_public()
    claims.require_ak(public)
    assert claims.kind == "azure-vtpm"
    assert claims.report.ak == public.to_spki_der()
    assert claims.device == FORGE.amd.chip
    assert claims.measurements == {"launch": b"\x4d" * 48}
    assert claims.signed_time is None
    assert claims.signer == claims.hardware.signer
    assert claims.shown == ("ak-binding", *claims.hardware.shown)
    assert claims.not_shown == ("revocation",)
    attest = Quote(extra_data=b"d" * 32).encode()
    signature = vtpm_key("ak").sign(attest, padding.PKCS1v15(), SHA256())
    assert parse_attest(attest).require_quote()
    verify_signature(public, attest, parse_signature(u16(0x14) + u16(0x0B) + sized(signature)))
    assert enforce(appraise_azure(claims, AzureRules(snp=SNP))) == ()


def test_another_key_of_another_vtpm_is_not_the_one_endorsed() -> None:
    with pytest.raises(EvidenceError, match="not the one that the confidential vm's report endorses"):
        verified().require_ak(vtpm_public("another vm's"))


def test_a_text_that_the_hardware_does_not_bind_is_refused_whatever_was_changed_in_it() -> None:
    text = FORGE.body()
    slot = FORGE.slot()
    for position in range(0, len(text), 5):
        altered = text[:position] + bytes((text[position] ^ 1,)) + text[position + 1 :]
        with pytest.raises((EvidenceError, MalformedError, UnsupportedError)):
            verified(AzureForge(amd=FORGE.amd, text=altered).report(slot=slot))
    fields = json.loads(text)
    reordered = json.dumps(dict(reversed(fields.items())), separators=(",", ":")).encode()
    for same in (reordered, text + b" ", json.dumps(fields).encode()):
        with pytest.raises(EvidenceError, match="not what its hardware's report binds"):
            verified(AzureForge(amd=FORGE.amd, text=same).report(slot=slot))


def test_the_other_half_of_the_report_data_has_to_be_zero() -> None:
    slot = FORGE.amd.report({0x50: FORGE.report_data()[:63] + b"\1"})
    with pytest.raises(EvidenceError, match="not what its hardware's report binds"):
        verified(FORGE.report(slot=slot))


def test_no_byte_that_the_hardware_signs_can_be_altered() -> None:
    slot = FORGE.slot()
    for position in range(0, 0x2A0, 29):
        altered = slot[:position] + bytes((slot[position] ^ 0x80,)) + slot[position + 1 :]
        with pytest.raises((EvidenceError, MalformedError, UnsupportedError)):
            verified(FORGE.report(slot=altered))


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"header": b"HCLB"}, MalformedError, "no hcl report"),
        ({"version": 3}, UnsupportedError, "version 3"),
        ({"request": 1}, MalformedError, "header"),
        ({"status": 5}, MalformedError, "header"),
        ({"data_version": 2}, UnsupportedError, "data 2"),
        ({"kind": 3}, UnsupportedError, "type 3"),
        ({"hash_type": 2}, UnsupportedError, "hash 2"),
        ({"tail": b"\0\1"}, MalformedError, "where zeros are"),
        ({"tail": bytes(8192)}, MalformedError, "too large"),
        ({"user_data": "00"}, MalformedError, "user data"),
        ({"user_data": "zz" * 64}, MalformedError, "user data"),
        ({"user_data": None}, MalformedError, "user data"),
        ({"settings": None}, MalformedError, "configuration"),
        ({"settings": {"a": [1]}}, MalformedError, "neither text"),
        ({"keys": []}, MalformedError, "0 attestation keys"),
        ({"keys": [ak_jwk(), ak_jwk()]}, MalformedError, "2 attestation keys"),
        ({"keys": [ak_jwk(kid="HCLEkPub")]}, MalformedError, "0 attestation keys"),
        ({"keys": 5}, MalformedError, "lists no keys"),
        ({"keys": [5]}, MalformedError, "lists no keys"),
        ({"keys": [ak_jwk(kty="EC")]}, UnsupportedError, "rsa key that signs"),
        ({"keys": [ak_jwk(key_ops=["encrypt"])]}, UnsupportedError, "rsa key that signs"),
        ({"keys": [ak_jwk(e="Aw")]}, UnsupportedError, "exponent or size"),
        ({"keys": [ak_jwk(n=base64url(modulus()[1:]))]}, UnsupportedError, "exponent or size"),
        ({"keys": [ak_jwk(n=base64url(b"\0" + modulus()))]}, UnsupportedError, "exponent or size"),
        ({"keys": [ak_jwk(n=base64url(b"\x7f" + modulus()[1:]))]}, UnsupportedError, "exponent or size"),
        ({"keys": [ak_jwk(n=base64url(modulus()[:-1] + b"\x02"))]}, UnsupportedError, "exponent or size"),
        ({"keys": [ak_jwk(n=None)]}, MalformedError, "base64url"),
        ({"keys": [ak_jwk(n=base64url(modulus()) + "==")]}, MalformedError, "base64url"),
        ({"keys": [ak_jwk(e="AQAC+")]}, MalformedError, "base64url"),
        ({"text": b"[]"}, MalformedError, "not an object"),
        ({"text": b"\xff"}, MalformedError, "not json"),
        ({"text": b'{"keys":[],"keys":[]}'}, MalformedError, "twice"),
        ({"text": b'{"keys":NaN}'}, MalformedError, "not whole"),
        ({"text": b'{"keys":1.5}'}, MalformedError, "not whole"),
        ({"text": b'{"keys":' + b"9" * 5000 + b"}"}, MalformedError, "too long"),
        ({"text": b"[" * 5000}, MalformedError, "not json"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_report_of_another_form_is_refused(
    changes: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        verified(AzureForge(amd=FORGE.amd, **changes).report())


def test_sizes_have_to_fit_each_other_and_nothing_may_be_cut_off() -> None:
    for sizes in ({"size": 1}, {"data_size": -1}):
        with pytest.raises(MalformedError, match="do not fit"):
            verified(FORGE.report(**sizes))
    whole = len(REPORT) - len(FORGE.tail)
    for length in range(0, whole, 41):
        with pytest.raises(MalformedError):
            verified(REPORT[:length])
    assert verified(REPORT[:whole])


def test_hardware_that_does_not_hold_endorses_nothing() -> None:
    another = AmdForge(tcb={"bootloader": 1, "tee": 1, "snp": 1, "microcode": 1})
    with pytest.raises(EvidenceError):
        verified(endorsements=another.endorsements())
    with pytest.raises(EvidenceError):
        verify_azure(REPORT, ENDORSEMENTS, NOW)  # amd's own roots


def test_endorsements_of_the_other_kind_of_hardware_are_refused() -> None:
    with pytest.raises(EvidenceError, match="another kind of hardware"):
        verified(endorsements=AzureTdxEndorsements(b"quote"))
    tdx = AzureForge(kind=TDX).report()
    assert parse_hcl_report(tdx).report_data == AzureForge().report_data()
    with pytest.raises(EvidenceError, match="another kind of hardware"):
        verified(tdx)
    with pytest.raises((MalformedError, UnsupportedError, EvidenceError)):
        verified(tdx, AzureTdxEndorsements(b"quote"))


def test_a_tdreport_alone_has_no_signature_and_bytes_behind_it_are_refused() -> None:
    slot = AzureForge(kind=TDX).slot()
    with pytest.raises(MalformedError, match="where zeros are"):
        parse_hcl_report(AzureForge(kind=TDX).report(slot=slot[:-1] + b"\1"))


def test_every_rule_of_the_vm_that_is_broken_is_named_beside_those_of_the_hardware() -> None:
    forge = AzureForge(settings={"console-enabled": True, "vmUniqueId": "other", "secure-boot": "yes"})
    claims = verify_azure(forge.report(), forge.amd.endorsements(), NOW, amd=forge.amd.roots())
    snp = SnpRules(frozenset({Generation.MILAN}), measurements=PARAVISOR)
    rules = AzureRules(snp=snp, console=False, vms=frozenset({VM.lower()}))
    assert [finding.rule for finding in appraise_azure(claims, rules)] == [
        "azure.sev-snp.generation", "azure.tpm", "azure.secure-boot", "azure.console", "azure.vm",
    ]  # fmt: skip
    lenient = AzureRules(snp=SNP, secure_boot=False)
    assert [finding.rule for finding in appraise_azure(claims, lenient)] == ["azure.tpm"]


def test_a_report_that_any_guest_could_have_made_is_not_accepted_as_the_paravisors() -> None:
    anyone = SnpRules(frozenset({Generation.GENOA}))
    (finding,) = appraise_azure(verified(), AzureRules(snp=anyone))
    assert (finding.rule, finding.severity) == ("azure.paravisor", Severity.FAIL)
    assert appraise_azure(verified(), AzureRules(snp=anyone, any_paravisor=True)) == ()
    other = SnpRules(anyone.generations, measurements=frozenset({b"\1" * 48}))
    assert [one.rule for one in appraise_azure(verified(), AzureRules(snp=other))] == [
        "azure.sev-snp.measurement"
    ]
    signed = FORGE.amd.report({0x50: FORGE.report_data(), 0xE0: b"\2" * 48})
    by_key = SnpRules(anyone.generations, id_keys=frozenset({b"\2" * 48}))
    assert appraise_azure(verified(FORGE.report(slot=signed)), AzureRules(snp=by_key)) == ()


def test_the_quote_that_the_host_made_of_a_tdreport_endorses_the_key_as_well() -> None:
    forge = AzureForge(kind=TDX)
    quote = TdxForge(body={0x208: forge.report_data()}).quote()
    claims = verify_azure(forge.report(), AzureTdxEndorsements(quote), NOW, intel=forged_root())
    claims.require_ak(vtpm_public())
    assert claims.measurements["mrtd"] == b"\x11" * 48
    assert "tcb" in claims.not_shown
    pinned = AzureRules(tdx=TdxRules(mr_tds=frozenset({b"\x11" * 48})))
    assert [finding.rule for finding in appraise_azure(claims, pinned)] == ["azure.tdx.tcb"]
    found = [finding.rule for finding in appraise_azure(claims, AzureRules(tdx=TdxRules()))]
    assert found == ["azure.paravisor", "azure.tdx.tcb"]
    with pytest.raises(EvidenceError, match="tdx quote has to bind"):
        verify_azure(forge.report(), AzureTdxEndorsements(TdxForge().quote()), NOW, intel=forged_root())


def test_hardware_without_rules_is_not_accepted() -> None:
    (finding,) = appraise_azure(verified(), AzureRules())
    assert finding.rule == "azure.hardware"
    with pytest.raises(EvidenceError, match="sev-snp is not accepted"):
        enforce([finding])
