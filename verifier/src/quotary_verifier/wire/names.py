# SPDX-License-Identifier: Apache-2.0
"""Host names, origins and output ids (docs/spec/log.md, design section 3)."""

from __future__ import annotations

import hashlib
import re

from quotary_verifier.errors import MalformedError
from quotary_verifier.wire.limits import MAX_HOST

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ORIGIN = re.compile(r"([a-z0-9.-]{1,222})/([a-z2-7]{32})")
_BASE32 = [
    high + low for high in "abcdefghijklmnopqrstuvwxyz234567" for low in "abcdefghijklmnopqrstuvwxyz234567"
]
_OUTPUT_ID = re.compile(r"out_[0-9a-f]{48}")

OUTPUT_ID_BYTES = 24
"""A UUIDv7 (RFC 9562 section 5.7) and 64 random bits."""


def check_host(host: str) -> str:
    """Return `host` if it is a DNS name in lower-case A-labels without a final dot, of at most 222 characters.

    Raises:
        MalformedError: it is not (RFC 1123 section 2.1, RFC 5890 section 2.3.2.1).
    """
    if len(host) > MAX_HOST or not _HOST.fullmatch(host):
        raise MalformedError("the host is not a DNS name in lower case without a final dot")
    return host


def origin_of(host: str, genesis_record: bytes) -> str:
    """Return the origin: `<host>/<base32(SHA-256(genesis record)[:20])>`, lower case, unpadded."""
    number = int.from_bytes(hashlib.sha256(genesis_record).digest()[:20])
    return f"{host}/{''.join([_BASE32[number >> shift & 1023] for shift in range(150, -1, -10)])}"


def check_origin(origin: str) -> str:
    """Return `origin` if it has the form of one.

    Raises:
        MalformedError: it has not.
    """
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        raise MalformedError("not an origin of the form <host>/<32 base32 characters>")
    check_host(match[1])
    return origin


def format_output_id(octets: bytes) -> str:
    """Return the text form `out_` and 48 lower-case hexadecimal digits of the 24 bytes of an output id."""
    return f"out_{octets.hex()}"


def parse_output_id(text: str) -> bytes:
    """Return the 24 bytes of an output id.

    Raises:
        MalformedError: the text is not one.
    """
    if not _OUTPUT_ID.fullmatch(text):
        raise MalformedError("not an output id of the form out_ and 48 lower-case hexadecimal digits")
    return bytes.fromhex(text[4:])
