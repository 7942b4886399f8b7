# SPDX-License-Identifier: Apache-2.0
"""Steps `output`, `request` and `nonce`: does this record speak of these bytes?"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.wire.bindings import request_commitment
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.limits import MAX_NONCE, MIN_NONCE
from quotary_verifier.wire.records import Output

BODY = "body"


@frozen
class HashedBody:
    """A body that was too long to keep: the SHA-256 of what `strip`, or `Stripper`, left of it.

    `without_span` says whether a span was taken out. Who makes one must have hashed the bytes that were used.
    """

    digest: bytes
    without_span: bool = False


@frozen
class Match:
    """Which digest of the record the output has, and what was tolerated to get there."""

    key: str
    tolerance: str | None = None
    without_span: bool = False


_BODY_MATCH = Match(BODY)


def match_output(digests: Mapping[str, bytes], output: bytes | HashedBody, exact: bool) -> Match:
    """Find the digest that `output` has: `body`, the body without its in-band span, `text/N`, and last `text/N`
    without one final newline, which is a tolerance (design section 7) and not tried if `exact`. A body of which only
    the digest was kept can be nothing but `body`.

    Raises:
        EvidenceError: none fits.
    """
    if isinstance(output, HashedBody):
        if digests.get(BODY) != output.digest:
            raise EvidenceError("the body that was hashed is not the one that the record states")
        return Match(BODY, without_span=output.without_span)
    digest = hashlib.sha256(output).digest()
    if digests.get(BODY) == digest:
        return _BODY_MATCH
    span_error = ""
    try:
        stripped, attestation = strip(output)
        if attestation is not None and digests.get(BODY) == hashlib.sha256(stripped).digest():
            return Match(BODY, without_span=True)
    except MalformedError as error:
        span_error = f"; in-band attestation: {error}"
    key = _text_key(digests, digest)
    if key is not None:
        return Match(key)
    if not exact and output.endswith(b"\n"):
        key = _text_key(digests, hashlib.sha256(output[:-1]).digest())
        if key is not None:
            return Match(key, tolerance=f"{key}: one final newline of the file was left out of account")
    known = ", ".join(digests)
    raise EvidenceError(f"the output has none of the digests that the record states ({known}){span_error}")


def _text_key(digests: Mapping[str, bytes], digest: bytes) -> str | None:
    return next((key for key, value in digests.items() if value == digest and key.startswith("text/")), None)


def check_request(record: Output, request_key: bytes | None, request: bytes) -> None:
    """Check the record's commitment to a request body.

    Raises:
        EvidenceError: the record commits to no request, or to another one.
        UnsupportedError: the request key was dropped from the attestation.
    """
    if record.request is None:
        raise EvidenceError("the record commits to no request")
    if request_key is None:
        raise UnsupportedError("the request key was dropped from the attestation")
    if not hmac.compare_digest(request_commitment(request_key, request), record.request):
        raise EvidenceError("the record commits to another request")


def check_nonce(record: Output, nonce: bytes) -> None:
    """Check that the record carries exactly the caller's nonce.

    Raises:
        EvidenceError: it carries none, or another.
        MalformedError: what the caller gave cannot be a nonce.
    """
    if not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise MalformedError(f"a nonce has {MIN_NONCE} to {MAX_NONCE} bytes")
    if record.nonce is None:
        raise EvidenceError("the record carries no nonce")
    if not hmac.compare_digest(nonce, record.nonce):
        raise EvidenceError("the record carries another nonce")
