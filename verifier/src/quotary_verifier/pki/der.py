# SPDX-License-Identifier: Apache-2.0
"""As much of DER (X.690) as it takes to walk through a certificate: tags of one byte, definite lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from quotary_verifier.errors import MalformedError

_VERSION: Final = 0xA0
_SHORT: Final = 0x7F
_LONG: Final = 0x80


def header(data: bytes, at: int) -> tuple[int, int, int]:
    """Tag, length of the content and its position, of the element at `at`. MalformedError if it has none.

    Whether the content lies within the bytes is for the caller to check.
    """
    if at + 2 > len(data) or data[at] & 0x1F == 0x1F:
        raise MalformedError("a certificate is truncated or has a tag of several bytes")
    first = data[at + 1]
    if first < 0x80:
        return data[at], first, at + 2
    end = at + 2 + (first & 0x7F)
    if not 1 <= first & 0x7F <= 3 or end > len(data):
        raise MalformedError("a certificate has a length that cannot be read")
    return data[at], int.from_bytes(data[at + 2 : end], "big"), end


def elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element; MalformedError unless they fill the bytes."""
    at, end = 0, len(data)
    while at < end:
        tag, size, content = data[at], data[at + 1] if at + 1 < end else _LONG, at + 2
        if size > _SHORT or tag & 0x1F == 0x1F:  # else this is what `header` says, and most of what there is
            tag, size, content = header(data, at)
        at = content + size
        if at > end:
            raise MalformedError("a certificate is truncated")
        yield tag, data[content:at]


def encode(tag: int, content: bytes) -> bytes:
    """One element."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def subject_public_key_info(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo, as it stands there, of a certificate that a strict reader has accepted.

    It is found by its place in the body (RFC 5280, section 4.1) and by nothing else. MalformedError.
    """
    at = header(certificate, header(certificate, 0)[2])[2]
    tag, size, content = header(certificate, at)
    before = 5  # serial number, signature algorithm, issuer, validity, subject
    for _ in range(before + (tag == _VERSION)):
        at = content + size
        _, size, content = header(certificate, at)
    return certificate[at : content + size]
