# SPDX-License-Identifier: Apache-2.0
"""Attestations of the size that the bars of the verifier name, made without a TPM.

One commit of 1,024 outputs of 1 KB at the end of a tree of 2^20 leaves, so that each path has 20 hashes; ten PCRs
that are not zero beside the chain and the workload PCR; a nonce and a request key in each; one epoch of seven events,
of which the model's and the engine's are in full, and its separator; one AK certificate as our own CA issues it. The
AK is a key in memory (tests/support/forge.py): what verifying costs does not depend on who signed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from forge import NOW, Forge, sign_tpm, tree

from quotary_attest.enrol.issuance import Issuer, TpmModel, make_ak_certificate, make_root
from quotary_verifier import Policy, Question, load_policy
from quotary_verifier.logs.cel import content_digest
from quotary_verifier.logs.workload import WorkloadEvent, reveal, separator
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, HardwareLine, encode_hardware_line
from quotary_verifier.tlog.merkle import leaf_hash, root_from_inclusion
from quotary_verifier.tlog.note import Note, sign_ed25519
from quotary_verifier.wire.attestation import Attestation, TpmSupport
from quotary_verifier.wire.bindings import commit_digest, request_commitment
from quotary_verifier.wire.records import ModelClaim, Output, entry_of
from quotary_verifier.wire.tpm import pack_evidence
from quotary_verifier.wire.tpm_public import parse_public

LEAVES = 1 << 20
OUTPUTS = 1 << 10
OUTPUT_BYTES = 1024
PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 14)
REQUEST = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 200 + b'"}]}'
ENGINE_EVENT, MODEL_EVENT = 1, 4


@dataclass(frozen=True)
class Sample:
    """Outputs and their attestations, all of one commit, and a policy that accepts them.

    `root` is the root certificate above the AK's, which `attestations` carry; all else is in them.
    """

    outputs: tuple[bytes, ...]
    attestations: tuple[bytes, ...]
    nonces: tuple[bytes, ...]
    policy_bytes: bytes
    root: x509.Certificate

    @property
    def policy(self) -> Policy:
        """The policy, parsed anew."""
        return load_policy(self.policy_bytes)

    def question(self, number: int) -> Question:
        """Everything that can be asked about an output: its bytes, its request, its nonce."""
        return Question(self.outputs[number], at=NOW, request=REQUEST, nonce=self.nonces[number])


class Host(Forge):
    """A forged host whose epoch has seven events."""

    def events(self) -> list[bytes]:
        """The agent, the engine, its arguments and environment, three models, and the separator."""
        contents = [
            WorkloadEvent("agent", "quotary-attest", _digest("agent"), {"version": "0.1.0"}).encode(),
            WorkloadEvent("engine", "vllm", _digest("engine"), {"version": "0.11.0"}).encode(),
            WorkloadEvent("configuration", "vllm arguments", _digest("arguments"), {}).encode(),
            WorkloadEvent("configuration", "vllm environment", _digest("environment"), {}).encode(),
            *(
                WorkloadEvent(
                    "model", name, self.weights, {"bytes": 269060552 + number, "files": 4 + number}
                ).encode()
                for number, name in enumerate((self.model, "Qwen2.5-7B-Instruct", "bge-m3"))
            ),
        ]
        return [*contents, separator(0, [content_digest(content) for content in contents])]

    def output(self, number: int, body: bytes, nonce: bytes) -> Output:
        """The record of one output, as the proxy makes it."""
        event = content_digest(self.events()[MODEL_EVENT])
        return replace(
            self.record(),
            salt=os.urandom(16),
            output_id=number.to_bytes(24),
            digests={"body": hashlib.sha256(body).digest(), "text/0": hashlib.sha256(body[:900]).digest()},
            request=request_commitment(_key(number), REQUEST),
            nonce=nonce,
            model=ModelClaim(self.model, self.weights, MODEL_EVENT, event, self.link),
            context={"engine": "vllm", "endpoint": "/v1/chat/completions"},
        )


def make_sample(outputs: int = OUTPUTS) -> Sample:
    """Make the commit and keep the attestations of its first `outputs` leaves."""
    host = Host(pcrs={pcr: _digest(f"pcr {pcr}") for pcr in PCRS}, model="Llama-3.1-8B-Instruct")
    now = dt.datetime.fromtimestamp(NOW, dt.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    root = make_root("Example AK CA", key, now=now - dt.timedelta(days=30), days=3650)
    tpm = TpmModel("id:49465800", "SLB9672", "id:0010")
    certificate = make_ak_certificate(
        Issuer(root, key),
        host.ak.public_key(),
        origin=host.origin,
        tpm=tpm,
        now=now - dt.timedelta(days=1),
        days=365,
    ).public_bytes(Encoding.DER)
    bodies = [os.urandom(OUTPUT_BYTES // 2).hex().encode() for _ in range(OUTPUTS)]
    nonces = [os.urandom(32) for _ in range(OUTPUTS)]
    records = [host.output(number, bodies[number], nonces[number]).encode() for number in range(OUTPUTS)]
    first = LEAVES - OUTPUTS
    _, paths = tree([leaf_hash(entry_of(record)) for record in records])
    left = b"".join(_digest(f"left {level}") for level in range(10))
    checkpoint_root = root_from_inclusion(leaf_hash(entry_of(records[0])), first, LEAVES, paths[0] + left)
    text = Checkpoint(host.origin, LEAVES, checkpoint_root).text
    note, before = _note(host, text, first), host.before
    support = TpmSupport(
        IDENTIFIER_TPM2_QUOTE,
        dict(host.pcrs),
        before,
        (certificate,),
        reveal(host.events(), frozenset({ENGINE_EVENT, MODEL_EVENT})),
    )
    attestations = [
        Attestation(
            record=records[number],
            genesis=host.genesis_record,
            index=first + number,
            path=paths[number] + left,
            note=note,
            supports=(support,),
            request_key=_key(number),
        ).encode()
        for number in range(outputs)
    ]
    return Sample(tuple(bodies), tuple(attestations), tuple(nonces), _policy(host, root), root)


def _note(host: Host, text: bytes, first: int) -> bytes:
    """The signed note, with a quote by the host's AK."""
    attest = host.quote(commit_digest(host.origin, first, text), host.events()).encode()
    line = HardwareLine(IDENTIFIER_TPM2_QUOTE, first, pack_evidence(attest, sign_tpm(host.ak, attest)))
    spki = parse_public(host.public).to_spki_der()
    lines = (
        sign_ed25519(text, host.origin, host.note_key),
        encode_hardware_line(host.origin, spki, line),
    )
    return Note(text, lines).encode()


def _policy(host: Host, root: x509.Certificate) -> bytes:
    """One authority, three PCRs, and the model that answered."""
    pem = root.public_bytes(Encoding.PEM).decode()
    pcrs = "\n".join(f'{pcr} = ["{host.pcrs[pcr].hex()}"]' for pcr in (0, 4, 7))
    return (
        'schema = "quotary-policy/v1"\n\n[[authority]]\nname = "Example AK CA"\n'
        f'certificates = """\n{pem}"""\n\n[platform.pcrs]\n{pcrs}\n\n'
        f'[[model]]\nname = "{host.model}"\nweights = "{host.weights.hex()}"\n'
    ).encode()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _key(number: int) -> bytes:
    return hashlib.sha256(b"key %d" % number).digest()
