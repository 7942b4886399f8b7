# SPDX-License-Identifier: Apache-2.0
"""Figures of the verifier: a verification against its bare signatures and hashes, and against a verified commit."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from itertools import cycle

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from nacl.signing import VerifyKey

from figures import Measured, by_turns
from quotary_verifier import verify, verify_in
from quotary_verifier.logs.cel import CONTENT_WORKLOAD
from quotary_verifier.logs.workload import separator
from quotary_verifier.tlog.checkpoint import parse_checkpoint
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.records import Genesis
from quotary_verifier.wire.tpm import parse_signature, unpack_evidence
from quotary_verifier.wire.tpm_public import parse_public
from sample import REQUEST, Sample

FLOOR_CALLS = 500
WARM_OUTPUTS = 256
WARM_PASSES = 16
"""How often a round verifies each of these outputs."""


@dataclass(frozen=True)
class Bare:
    """What one verification cannot do without: three signatures and their keys, and the input of every hash."""

    note_key: bytes
    note_text: bytes
    note_signature: bytes
    ak_point: bytes
    quote: bytes
    quote_signature: bytes
    root_spki: bytes
    certificate: bytes
    certificate_signature: bytes
    request_key: bytes
    hashed: tuple[bytes, ...]

    def run(self) -> None:
        """Verify the signatures and compute the hashes."""
        VerifyKey(self.note_key).verify(self.note_text, self.note_signature)
        chosen = ec.ECDSA(hashes.SHA256())
        ak = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), self.ak_point)
        ak.verify(self.quote_signature, self.quote, chosen)
        root = load_der_public_key(self.root_spki)
        assert isinstance(root, ec.EllipticCurvePublicKey)
        root.verify(self.certificate_signature, self.certificate, chosen)
        hmac.digest(self.request_key, REQUEST, "sha256")
        sha256 = hashlib.sha256
        for data in self.hashed:
            sha256(data).digest()


def bare_of(sample: Sample, number: int) -> Bare:
    """Take an attestation apart into its bare calls."""
    attestation = Attestation.decode(sample.attestations[number])
    genesis = Genesis.decode(attestation.genesis)
    assert genesis.tpm is not None
    public = parse_public(genesis.tpm.ak)
    note = parse_note(attestation.note)
    signed, quoted = note.lines
    attest, signature = unpack_evidence(quoted.payload[8:])
    parsed = parse_signature(signature)
    assert parsed.r is not None
    assert parsed.s is not None
    leaf = x509.load_der_x509_certificate(attestation.supports[0].certificates[0])
    return Bare(
        note_key=genesis.note_key,
        note_text=note.text,
        note_signature=signed.payload,
        ak_point=public.to_spki_der()[-65:],
        quote=attest,
        quote_signature=encode_dss_signature(parsed.r, parsed.s),
        root_spki=sample.root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        certificate=leaf.tbs_certificate_bytes,
        certificate_signature=leaf.signature,
        request_key=attestation.request_key or b"",
        hashed=_hashed(sample.outputs[number], attestation, genesis),
    )


def _hashed(output: bytes, attestation: Attestation, genesis: Genesis) -> tuple[bytes, ...]:
    """Return what is hashed with SHA-256; only the lengths matter to what it costs."""
    note = parse_note(attestation.note)
    origin = parse_checkpoint(note.text).origin.encode()
    support = attestation.supports[0]
    assert genesis.tpm is not None
    spki = parse_public(genesis.tpm.ak).to_spki_der()
    key_ids = (
        origin + b"\n\x01" + genesis.note_key,
        origin + b"\n\xff" + b"quotary/tpm2-quote/v1" + spki,
    )
    commit = b"quotary/commit/v1\n\0" + bytes(9) + origin + note.text
    qualified = (genesis.tpm.ak, bytes(4) + genesis.tpm.ak_parent, bytes(68))
    tree = (attestation.record, bytes(33), *(bytes(65) for _ in range(len(attestation.path) // 32)))
    tlv = 5 + len(separator(0, ()))
    return (
        *(output, *tree, attestation.genesis, *key_ids, commit, bytes(64), *qualified),
        *_workload(support.workload_log, tlv),
        bytes(16 * 32),
    )


def _workload(log: tuple[bytes, ...], separator_bytes: int) -> list[bytes]:
    """The extends of the workload PCR, the events in full, and what a separator would be after each event that
    is given as a digest: only so can one be recognised (logs/workload.py)."""
    hashed: list[bytes] = []
    for number, item in enumerate(log):
        hashed.append(bytes(64))
        if len(item) > 32:
            hashed.append(bytes((CONTENT_WORKLOAD,)) + bytes(4) + item)
        elif number:
            hashed += (bytes(32 * number), bytes(separator_bytes))
    return hashed


def floor(sample: Sample, rounds: int) -> Measured:
    """A whole verification over its bare calls."""
    policy = sample.policy
    numbers = range(min(64, len(sample.attestations)))
    questions = [sample.question(number) for number in numbers]
    bare = [bare_of(sample, number) for number in numbers]
    whole, calls = cycle(numbers), cycle(numbers)

    def verify_next() -> None:
        number = next(whole)
        verify(sample.attestations[number], questions[number], policy)

    def bare_next() -> None:
        bare[next(calls)].run()

    # Call by call: either side meets the caches as the other left them.
    spent = by_turns(verify_next, bare_next, rounds=rounds, slices=FLOOR_CALLS)
    mine, theirs = (1e6 * min(part) / FLOOR_CALLS for part in zip(*spent, strict=True))
    return Measured(
        [one / other for one, other in spent],
        f"in one process by turns, {FLOOR_CALLS} of each a round: verify() with output, request and nonce given, over"
        f" Ed25519 and two P-256 verifications from raw key, point and SPKI, one HMAC and {len(bare[0].hashed)}"
        f" SHA-256 of the same lengths; best rounds {mine:.0f} and {theirs:.0f} µs",
    )


def warm(sample: Sample, rounds: int) -> Measured:
    """Verifications a second against a verified commit."""
    policy = sample.policy
    _, commit = verify_in(sample.attestations[0], sample.question(0), policy)
    attestations = sample.attestations[:WARM_OUTPUTS]
    questions = [replace(sample.question(number), request=None) for number in range(len(attestations))]

    def run() -> None:
        for attestation, question in zip(attestations, questions, strict=True):
            commit.verify(attestation, question)

    spent = by_turns(run, _nothing, rounds=rounds, slices=WARM_PASSES)
    calls = WARM_PASSES * len(questions)
    path = len(Attestation.decode(sample.attestations[0]).path) // 32
    return Measured(
        [calls / seconds for seconds, _ in spent],
        f"one thread; VerifiedCommit.verify from each attestation's bytes, 1 KB output and nonce, path of {path};"
        f" {len(questions)} different outputs, {calls} calls a round",
    )


def _nothing() -> None:
    """The other turn of a figure that is no ratio."""
