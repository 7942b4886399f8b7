# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets for what TEEs alone bind, for the keys that an Azure VM's hardware endorses, and for realms' tokens."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator

import amd_pki
import azure_forge
import cca_tokens
from alone_forge import AloneForge
from azure_forge import AzureForge
from forge import NOW
from fuzz_base import Target, stored_attestations, tried
from nacl.signing import SigningKey
from tee_defects import POLICY

from quotary_verifier import NotChecked, Question, Rejected, load_policy, verify
from quotary_verifier.evidence.tee.amd_certs import Generation
from quotary_verifier.evidence.tee.azure import AzureRules, appraise_azure, verify_azure
from quotary_verifier.evidence.tee.azure_support import azure_endorsements, verify_azure_ak
from quotary_verifier.evidence.tee.cca import CcaRules, appraise_cca, verify_cca
from quotary_verifier.evidence.tee.lines import TeeRoots
from quotary_verifier.evidence.tee.snp_rules import SnpRules
from quotary_verifier.wire import cbor
from quotary_verifier.wire.tee_support import endorsement_fields, read_endorsements

RULES = AzureRules(
    snp=SnpRules(frozenset(Generation)), console=False, vms=frozenset({azure_forge.VM.lower()})
)


@functools.cache
def alone() -> AloneForge:
    """An origin without a TPM, and one processor that binds its commits."""
    return AloneForge(note_key=SigningKey(b"n" * 32))


@functools.cache
def machine() -> AzureForge:
    """A confidential VM."""
    return AzureForge()


def tee_alone(data: bytes) -> None:
    """An attestation of an origin without a TPM: a verdict, or an error with a report."""
    forge = alone()
    question = Question(forge.body, at=NOW)
    report = None
    try:
        verdict = verify(data, question, load_policy(forge.pinned(POLICY).encode()))
    except (Rejected, NotChecked) as error:
        report = error.report
    if report is not None:
        assert report.checks
        return
    model = verdict.claim("model")
    assert model is None or model.value == forge.model  # nobody else has the processor's key


def tee_alone_seeds() -> Iterator[bytes]:
    """What the minted origin gives, whole and signed by another, and the stored vectors."""
    yield alone().attestation().encode()
    yield AloneForge(signed=False).attestation().encode()
    yield from (data for data in stored_attestations() if len(data) <= 16_384)


def hcl_text(data: bytes) -> None:
    """The text of an HCL report that a trusted processor binds, and which endorses a key."""
    forge = machine()
    bound = AzureForge(forge.amd, text=data)
    claims = tried(verify_azure, bound.report(), forge.amd.endorsements(), amd_pki.NOW, amd=forge.amd.roots())
    if claims is not None:
        assert claims.report.text == data
        appraise_azure(claims, RULES)
        tried(claims.require_ak, azure_forge.vtpm_public())


def hcl_text_seeds() -> Iterator[bytes]:
    """Texts as the paravisor writes them."""
    yield machine().body()
    yield AzureForge(keys=[azure_forge.ak_jwk(), {"kid": "HCLEkPub"}], settings={}).body()
    yield json.dumps({"keys": [], "vm-configuration": {}, "user-data": ""}).encode()


def ak_endorsements(data: bytes) -> None:
    """The endorsements of a key, as a TPM support has them."""
    value = tried(cbor.decode, data, max_bytes=1 << 16)
    if type(value) is not dict:
        return
    endorsements = tried(read_endorsements, value, "TPM support")
    if endorsements is None:
        return
    assert endorsement_fields(endorsements) == value
    roots = TeeRoots(amd=machine().amd.roots())
    claims = tried(verify_azure_ak, endorsements, azure_forge.vtpm_public(), amd_pki.NOW, roots)
    if claims is not None:  # no other processor is trusted
        assert claims.device == machine().amd.chip


def ak_endorsement_seeds() -> Iterator[bytes]:
    """Endorsements with a CRL and without."""
    amd = machine().amd
    for crls in ((), (amd.crl(),)):
        given = azure_endorsements(machine().report(), amd.endorsements(*crls))
        yield cbor.encode(endorsement_fields(given))


def cca_key(data: bytes) -> None:
    """The realm's key as a COSE_Key, and the bytes of a platform's components, signed by keys that are trusted."""
    keys = [cca_tokens.platform_key()]
    claims = tried(verify_cca, cca_tokens.newer(data), keys, challenge=cca_tokens.BOUND)
    assert claims is None or claims.token.realm_profile is not None
    value = tried(cbor.decode_unordered, data, max_bytes=4096)
    if value is not None:
        given = cca_tokens.token(platform={2399: value})
        claims = tried(verify_cca, given, keys, challenge=cca_tokens.BOUND)
        if claims is not None:
            appraise_cca(claims, CcaRules())


def cca_key_seeds() -> Iterator[bytes]:
    """Keys in both forms, and the components of a minted platform."""
    yield cca_tokens.cose_key()
    yield cca_tokens.cose_key(alg=-35, kid=b"k")
    yield cca_tokens.point()
    yield cbor.encode(cca_tokens.platform_claims()[2399])


TARGETS = {
    "tee-alone": Target(tee_alone, tee_alone_seeds, most=16_384),
    "hcl-text": Target(hcl_text, hcl_text_seeds),
    "ak-endorsements": Target(ak_endorsements, ak_endorsement_seeds, most=16_384),
    "cca-key": Target(cca_key, cca_key_seeds),
}
CBOR_TARGETS = ("tee-alone", "ak-endorsements", "cca-key")
"""Targets whose inputs are changed inside their encoding."""
