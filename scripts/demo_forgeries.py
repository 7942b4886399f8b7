# SPDX-License-Identifier: Apache-2.0
"""The demo's forger: what somebody could try who holds real evidence and no TPM of that host."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from quotary_verifier import Step
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.records import Output

_FIRST_LEAF = 8
"""A hardware line's payload begins with the index of its commit's first leaf, in eight bytes."""


@dataclass(frozen=True)
class Evidence:
    """What the forger holds: an answer with its attestation, another one's, another host's, policy and nonce."""

    body: bytes
    attestation: bytes
    other_attestation: bytes
    other_host: bytes
    policy: str
    nonce: bytes


@dataclass(frozen=True)
class Forgery:
    """One forgery, and the code of the step that has to find it."""

    name: str
    story: str
    expected: Step
    body: bytes
    attestation: bytes
    policy: str


def forgeries(held: Evidence) -> Iterator[Forgery]:
    """Yield the six forgeries."""
    genuine = Attestation.decode(held.attestation)
    altered = _altered(held.body)
    yield Forgery(
        "altered-answer",
        "somebody changed the answer on its way",
        Step.OUTPUT,
        altered,
        held.attestation,
        held.policy,
    )
    record = Output.decode(genuine.record)
    digests = {"body": hashlib.sha256(altered).digest()}
    lie = replace(genuine, record=replace(record, digests=digests).encode())
    yield Forgery(
        "altered-record",
        "… and changed the record so that it fits",
        Step.INCLUSION,
        altered,
        lie.encode(),
        held.policy,
    )
    yield Forgery(
        "swapped-quote",
        "a genuine quote of the same host, of another commit",
        Step.QUOTE_CHAIN,
        held.body,
        _with_quote_of(genuine, Attestation.decode(held.other_attestation)).encode(),
        held.policy,
    )
    asked = bytes(byte ^ 0xFF for byte in held.nonce).hex()
    yield Forgery(
        "wrong-nonce",
        "an older answer, replayed to somebody who sent another nonce",
        Step.NONCE,
        held.body,
        held.attestation,
        f'{held.policy}\n[freshness]\nexpected_nonce = "{asked}"\n',
    )
    foreign = Attestation.decode(held.other_host)
    support = replace(foreign.supports[0], certificates=genuine.supports[0].certificates)
    policy = held.policy.split("[[model]]")[0]
    yield Forgery(
        "another-hosts-key",
        "another host's TPM signed; this host's certificate is put in its place",
        Step.AK_ENDORSEMENT,
        held.body,
        replace(foreign, supports=(support,)).encode(),
        policy,
    )
    yield Forgery(
        "platform-not-allowed",
        "the policy wants a host that booted something else",
        Step.PLATFORM,
        held.body,
        held.attestation,
        f'{held.policy}\n[platform.pcrs]\n7 = ["{"11" * 32}"]\n',
    )


def _altered(body: bytes) -> bytes:
    """The answer with one word changed, still well-formed."""
    for old, new in ((b"Paris", b"Lyon!"), (b"capital", b"village"), (b"choices", b"chances")):
        if old in body:
            return body.replace(old, new)
    return body + b" "


def _with_quote_of(genuine: Attestation, other: Attestation) -> Attestation:
    """The note of one commit with the quote of another; the line's first leaf stays: the quote alone is false."""
    note = parse_note(genuine.note)
    line = note.lines[1]
    evidence = parse_note(other.note).lines[1].payload[_FIRST_LEAF:]
    swapped = replace(line, payload=line.payload[:_FIRST_LEAF] + evidence)
    return replace(genuine, note=replace(note, lines=(note.lines[0], swapped)).encode())
