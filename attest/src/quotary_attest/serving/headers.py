# SPDX-License-Identifier: Apache-2.0
"""Which header fields the proxy passes on, and its own (docs/spec/serving.md; RFC 9110 section 7.6.1)."""

from __future__ import annotations

from multidict import CIMultiDict, CIMultiDictProxy

from quotary_attest.serving.delivery import ATTESTATION, DELIVER
from quotary_attest.serving.errors import Refusal
from quotary_attest.serving.fields import ATTESTED, BODY_DIGESTS, NONCE, OUTPUT, all_identity, parse_nonce

__all__ = [
    "ATTESTED",
    "NONCE",
    "OUTPUT",
    "drop_body_digests",
    "is_identity",
    "nonce_of",
    "request_headers",
    "response_headers",
]

_HOP_BY_HOP = frozenset(
    ("connection", "proxy-connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
)
# The client library sets these for the connection it uses; identity is asked of the upstream.
_NOT_FORWARDED = _HOP_BY_HOP | {
    "host",
    "content-length",
    "expect",
    "accept-encoding",
    NONCE.lower(),
    DELIVER.lower(),
}
_NOT_RETURNED = _HOP_BY_HOP | {"content-length", OUTPUT.lower(), ATTESTED.lower(), ATTESTATION.lower()}


def _passed_on(headers: CIMultiDictProxy[str], without: frozenset[str]) -> CIMultiDict[str]:
    connection = headers.getall("Connection", ())
    if connection:
        named = (name.strip().lower() for line in connection for name in line.split(","))
        without = without | frozenset(named)
    passed = CIMultiDict([(name, value) for name, value in headers.items() if name.lower() not in without])
    for value in passed.values():
        if not value.isascii():
            value.encode()  # what was no UTF-8 is a surrogate here, and the writer would leave it out
    return passed


def request_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return the fields of a client's request that go to the upstream, asking it for no content coding.

    Raises:
        Refusal: a field's value is not UTF-8 (400): it could not be passed on as it is.
    """
    try:
        passed = _passed_on(headers, _NOT_FORWARDED)
    except UnicodeEncodeError:
        raise Refusal(400, "bad_header", "a header field of the request is not UTF-8") from None
    passed["Accept-Encoding"] = "identity"
    return passed


def response_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return the fields of an upstream's answer that go to the client; the length is the caller's to set.

    Raises:
        Refusal: a field's value is not UTF-8 (502): it could not be passed on as it is.
    """
    try:
        return _passed_on(headers, _NOT_RETURNED)
    except UnicodeEncodeError:
        raise Refusal(502, "upstream_failed", "a header field of the answer is not UTF-8") from None


def drop_body_digests(headers: CIMultiDict[str]) -> None:
    """Take out the fields that would be wrong for a body with a span in it (RFC 9530)."""
    for name in BODY_DIGESTS:
        headers.popall(name, None)


def is_identity(headers: CIMultiDictProxy[str]) -> bool:
    """Tell whether an answer has no content coding."""
    return all_identity(headers.getall("Content-Encoding", ()))


def nonce_of(headers: CIMultiDictProxy[str]) -> bytes | None:
    """Return the nonce that the client asks to have bound.

    Raises:
        Refusal: it is not 8 to 64 bytes in lower-case hexadecimal, or there are several.
    """
    return parse_nonce(headers.getall(NONCE, ()))
