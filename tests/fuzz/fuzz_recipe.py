# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets for what stands above the formats: policies, certificates, a whole verification."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TypeVar

from forge import NOW
from fuzz_base import VECTORS, Target, corpus_files, fixed_forge, stored_attestations, tried, vector_files

from quotary_verifier import (
    NotChecked,
    PolicyError,
    Question,
    Rejected,
    load_policy,
    verify,
    verify_fresh,
    verify_statement,
)
from quotary_verifier.pki.anchors import TrustAnchors, load_bundle, read_ca_certificate
from quotary_verifier.pki.chain import LeafProfile, verify_ak_chain, verify_ek_chain
from quotary_verifier.pki.lenient import mend
from quotary_verifier.pki.revocation import read_crl

T = TypeVar("T")
AT = datetime.fromtimestamp(NOW, UTC)
FORGE = fixed_forge()
ATTESTATION = FORGE.attestation().encode()
POLICY = load_policy(FORGE.policy().encode())
QUESTION = Question(FORGE.body, at=NOW, request=FORGE.request, nonce=FORGE.nonce)
ANCHORS = TrustAnchors.from_pem(FORGE.authority.pem)


def policy(data: bytes) -> None:
    """A policy; a usable one is used."""
    try:
        loaded = load_policy(data)
    except PolicyError:
        return
    try:
        verify(ATTESTATION, QUESTION, loaded)
    except (Rejected, NotChecked):
        return


def policy_seeds() -> Iterator[bytes]:
    """The policies of the vectors."""
    yield FORGE.policy().encode()
    yield from vector_files("attestations/*/policy.toml", "vm/**/*.toml", most=16_384)
    texts = {json.loads(file.read_text())["policy"] for file in (VECTORS / "attestation").glob("*.json")}
    kept: dict[int, str] = {}
    for text in sorted(texts):
        kept.setdefault(len(text) // 64, text)  # most differ by a digest only
    yield from (text.encode() for text in kept.values())


def certificates(data: bytes) -> None:
    """Certificates, bundles and CRLs, and paths that begin with what was given."""
    tried(load_bundle, data)
    tried(read_crl, data)
    mended = tried(mend, data)
    assert mended is None or len(mended.der) <= len(data) + 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library warns of names that are longer than X.520 allows
        tried(read_ca_certificate, data)
        for profile in (LeafProfile.AK, LeafProfile.AK_CLOUD):
            tried(verify_ak_chain, [data], ANCHORS, AT, profile=profile)
        tried(verify_ak_chain, [CERTIFICATE, data], ANCHORS, AT)
        tried(verify_ek_chain, data, [data], ANCHORS, AT)


assert FORGE.certificate is not None
CERTIFICATE = FORGE.certificate


def certificate_seeds() -> Iterator[bytes]:
    """Certificates of ours and of vendors, a bundle, a CRL."""
    yield CERTIFICATE
    yield FORGE.authority.pem.encode()
    crl = FORGE.authority.crl(CERTIFICATE)
    yield base64.b64decode("".join(crl.splitlines()[1:-1]))
    for data in corpus_files("tpm/cert", most=8192):
        yield data
        if data.startswith(b"-----BEGIN CERTIFICATE"):
            yield base64.b64decode("".join(data.decode().partition("-----END")[0].splitlines()[1:]))


def whole(data: bytes) -> None:
    """A whole verification, of an output, a statement and a fresh quote: a verdict, or an error with a report."""
    verdict = judged(lambda: verify(data, QUESTION, POLICY))
    if verdict is not None:
        # what verifies says what the forged attestation says: nobody else has its keys
        model = verdict.claim("model")
        assert model is not None
        assert model.value == FORGE.model
    judged(lambda: verify_statement(data, NOW, POLICY))
    judged(lambda: verify_fresh(data, b"n" * 32, NOW, POLICY))


def judged(check: Callable[[], T]) -> T | None:
    """What a verification ends in; None where it does so with one of its two errors, whose report is whole."""
    report = None
    try:
        return check()
    except (Rejected, NotChecked) as error:
        report = error.report
    assert report.checks
    return None


def whole_seeds() -> Iterator[bytes]:
    """Attestations of the forge and of the vectors; those have other keys, and fail later or earlier."""
    yield ATTESTATION
    yield FORGE.attestation(safe=0).encode()
    yield from stored_attestations()


TARGETS = {
    "verify": Target(whole, whole_seeds, most=16_384),
    "policy": Target(policy, policy_seeds, most=8192),
    "certificates": Target(certificates, certificate_seeds),
}
CBOR_TARGETS = ("verify",)
"""Targets whose inputs are changed inside their encoding."""
