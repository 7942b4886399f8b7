# SPDX-License-Identifier: Apache-2.0
"""What somebody between a host and its client may do to an answer, and how each must end."""

from __future__ import annotations

import base64
import gzip
from dataclasses import replace
from typing import Any

from consumers import Answer, Tamper, honest

from quotary_verifier.wire.inband import strip

PLAIN = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = PLAIN[:-1] + b',"stream":true}'
GOOD = "verified"


def body(change: Any) -> Tamper:
    return lambda answer: replace(answer, body=change(answer.body))


def fields(**changes: str | None) -> Tamper:
    names = {name: name.replace("_", "-") for name in changes}

    def tamper(answer: Answer) -> Answer:
        kept = {key: value for key, value in answer.headers.items() if key not in names.values()}
        added = {names[name]: value for name, value in changes.items() if value is not None}
        return replace(answer, headers=kept | added)

    return tamper


def both(*tampers: Tamper) -> Tamper:
    def tamper(answer: Answer) -> Answer | None:
        for one in tampers:
            altered = one(answer)
            assert altered is not None
            answer = altered
        return answer

    return tamper


def without_span(data: bytes) -> bytes:
    return strip(data)[0]


def with_flipped_bit(data: bytes) -> bytes:
    attestation = strip(data)[1]
    assert attestation is not None
    altered = attestation[:-40] + bytes([attestation[-40] ^ 1]) + attestation[-39:]
    return data.replace(base64.b64encode(attestation), base64.b64encode(altered))


def packed(answer: Answer) -> Answer:
    return replace(
        answer, body=gzip.compress(answer.body), headers=answer.headers | {"Content-Encoding": "gzip"}
    )


PLAIN_TAMPERS: dict[str, tuple[Tamper, str]] = {
    "nothing": (honest, GOOD),
    "a word": (body(lambda data: data.replace(b"Hello", b"Hullo")), "AttestationRejected: output"),
    "white space": (body(lambda data: data + b"\n"), "AttestationRejected: output"),
    "the span taken out, the id left": (body(without_span), GOOD),
    "span and id taken out": (both(body(without_span), fields(Quotary_Output=None)), "AttestationMissing"),
    "only the id taken out": (fields(Quotary_Output=None), GOOD),
    "marked unattested": (fields(Quotary_Attested="no"), "AttestationMissing"),
    "a bit of the attestation": (body(with_flipped_bit), "AttestationRejected"),
    "a span that is none": (
        body(lambda data: without_span(data)[:-1] + b',"attestation":"?"}'),
        "AttestationRejected: the JSON object",
    ),
    "a content coding": (packed, "AttestationNotChecked: the answer came with the content coding gzip"),
    "a media type with another character set": (
        fields(Content_Type="application/json; charset=utf-7"),
        "AttestationNotChecked: the answer",
    ),
    "a status": (lambda answer: replace(answer, status=201), GOOD),
    "to another media type": (fields(Content_Type="application/octet-stream"), "AttestationRejected: output"),
}  # fmt: skip
STREAM_TAMPERS: dict[str, tuple[Tamper, str]] = {
    "nothing": (honest, GOOD),
    "a word": (body(lambda data: data.replace(b"Hel", b"Hal")), "AttestationRejected: output"),
    "an event more": (
        body(lambda data: data.replace(b"data: [", b": x\n\ndata: [")),
        "AttestationRejected: output",
    ),
    "something behind the end": (body(lambda data: data + b": x\n\n"), "AttestationRejected: output"),
    "cut before the end": (body(lambda data: data[: len(data) // 8]), "AttestationRejected: output"),
    "the span taken out, the id left": (body(without_span), GOOD),
    "span and id taken out": (both(body(without_span), fields(Quotary_Output=None)), "AttestationMissing"),
    "a span of another form": (
        body(lambda data: data.replace(b'"choices":[],"attestation"', b'"choices": [],"attestation"')),
        "AttestationRejected: the last event",
    ),
    "marked unattested": (fields(Quotary_Attested="no"), "AttestationMissing"),
}
