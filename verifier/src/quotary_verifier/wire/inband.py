# SPDX-License-Identifier: Apache-2.0
"""The attestation inside the body it attests (docs/spec/inband.md, design section 3 "Output digests").

A body that carries its attestation is the attested body with one contiguous span put in: an event of its own
in an event stream, a last member in a JSON object. `strip` takes the span out again and `insert` puts it in;
what one does the other undoes, byte for byte. Nothing here authenticates anything.
"""

from __future__ import annotations

import base64
import binascii
import re

from quotary_verifier.errors import MalformedError
from quotary_verifier.wire.jsonscan import members
from quotary_verifier.wire.limits import MAX_ATTESTATION

DONE = b"data: [DONE]"
"""The line that ends most event streams of this kind; the span stands immediately before it."""

CHUNK_START = b"data: {"
"""What a line begins with that can be a chunk."""

_NAME = "attestation"
_COPIED = ("id", "object", "created", "model")
_JSON_MEMBER = b',"attestation":"'
_SPAN_END = b'"}\n\n'
_SPAN_ATTESTATION = b',"choices":[],"attestation":"'
_JSON_SPACE = b" \t\n\r"
_OPENS_OBJECT = re.compile(rb"[ \t\n\r]*+\{")
_BLANK_LINE = (b"\n\n", b"\n\r\n")
_LINE_END = re.compile(rb"\r\n|\n|\r")
# A name can be written with escapes; where neither it nor an escaped letter of it stands, nothing names it.
_MAY_NAME = re.compile(rb"attestation|\\u00(?:6[159eEfF]|7[34])")


def strip(body: bytes) -> tuple[bytes, bytes | None]:
    """Take the in-band attestation out of a body.

    Returns:
        The body without its span and the attestation's bytes; the body itself and None where it has no span.

    Raises:
        MalformedError: at the place of the span stands something else that names `attestation`.
    """
    return _strip_object(body) if opens_object(body) else _strip_stream(body)


def insert(body: bytes, attestation: bytes) -> bytes | None:
    """Put an attestation into a body, or return None where the body has no place for it.

    Raises:
        ValueError: the attestation is empty or longer than any attestation may be.
    """
    if not 0 < len(attestation) <= MAX_ATTESTATION:
        raise ValueError(f"an attestation has 1 to {MAX_ATTESTATION} bytes, this one {len(attestation)}")
    if opens_object(body):
        end = object_place(body)
        return None if end is None else body[:end] + object_span(attestation) + body[end:]
    place = stream_place(body)
    head = None if place is None else last_head(body, place)
    if place is None or head is None:
        return None
    return body[:place] + stream_span(head, attestation) + body[place:]


def opens_object(body: bytes) -> bool:
    """Tell whether the body's first byte that is not JSON space is `{`: then it is no event stream to us."""
    return _OPENS_OBJECT.match(body) is not None


def object_place(body: bytes) -> int | None:
    """Return the offset of the last `}` of a JSON object with a member at least, None for any other body."""
    end = len(body.rstrip(_JSON_SPACE)) - 1
    return end if end > 0 and _last_name(body) is not None else None


def object_span(attestation: bytes) -> bytes:
    """Return the span for a JSON object."""
    return _JSON_MEMBER + base64.b64encode(attestation) + b'"'


def span_head(line: bytes) -> bytes | None:
    """Return the span up to its base64 text if `line` (without its LF) is a chunk to copy from, else None.

    Such a chunk is `data: ` and one JSON object, in which `id`, `object`, `created` and `model` each stand
    exactly once and are neither objects nor arrays. A carriage return may only be its last byte.
    """
    if not line.startswith(CHUNK_START) or b"\r" in line[:-1]:
        return None
    values: dict[str, str] = {}
    try:
        text = line[6:].decode()
        for name, start, end in members(text):
            if name in _COPIED:
                if name in values or text[start] in "{[":
                    return None
                values[name] = text[start:end]
    except (UnicodeDecodeError, MalformedError):
        return None
    if len(values) != len(_COPIED):
        return None
    head = ",".join(f'"{name}":{values[name]}' for name in _COPIED)
    return b"data: {" + head.encode() + _SPAN_ATTESTATION


def stream_span(head: bytes, attestation: bytes) -> bytes:
    """Return the span for an event stream; `head` is the `span_head` of the last chunk that has one."""
    return head + base64.b64encode(attestation) + _SPAN_END


def opens_event(body: bytes | bytearray, position: int) -> bool:
    """Tell whether `position` is the start of the body or comes right after a blank line (of LF or CRLF)."""
    if position <= 2:
        return body[:position] in (b"", b"\n", b"\r\n", b"\n\n")
    return body.endswith(_BLANK_LINE, 0, position)


def stream_place(body: bytes) -> int | None:
    """Return where the span of an event stream stands, None where there is no place.

    It stands before the first `data: [DONE]` that opens an event, else at the end if no event is open.
    """
    at = body.find(DONE)
    while at >= 0:
        end = at + len(DONE)
        if opens_event(body, at) and (end == len(body) or body.startswith((b"\n", b"\r\n"), end)):
            return at
        at = body.find(DONE, end)
    return len(body) if opens_event(body, len(body)) else None


def _strip_object(body: bytes) -> tuple[bytes, bytes | None]:
    if not may_name(body):
        return body, None
    end = len(body.rstrip(_JSON_SPACE)) - 1
    start = body.rfind(_JSON_MEMBER, 0, end)
    if start >= 0 and body[end - 1 : end + 1] == b'"}':
        attestation = _canonical(body[start + len(_JSON_MEMBER) : end - 1])
        rest = body[:start] + body[end:]
        if attestation is not None and _last_name(rest) is not None:
            return rest, attestation
    if _last_name(body) == _NAME:
        raise MalformedError("the JSON object's last member names attestation but is no in-band attestation")
    return body, None


def _last_name(body: bytes) -> str | None:
    """Return the name of the last member of the object that `body` is, None if it is no object or empty."""
    last = None
    try:
        for name, _, _ in members(body.decode()):
            last = name
    except (UnicodeDecodeError, MalformedError):
        return None
    return last


def _strip_stream(body: bytes) -> tuple[bytes, bytes | None]:
    place = stream_place(body)
    return (body, None) if place is None else strip_at(body, place)


def strip_at(body: bytes, place: int, earlier: bytes | None = None) -> tuple[bytes, bytes | None]:
    """Take the span before `place` out of the end of an event stream; `earlier` is the head of what stood before it.

    Returns:
        As `strip`.

    Raises:
        MalformedError: as `strip`.
    """
    event = last_event(body, place)
    if not may_name(event):
        return body, None
    start = place - len(event)
    mark = event.find(_SPAN_ATTESTATION)
    if mark >= 0 and event.endswith(_SPAN_END):
        head = event[: mark + len(_SPAN_ATTESTATION)]
        attestation = _canonical(event[len(head) : -len(_SPAN_END)])
        if attestation is not None and head == (last_head(body, start) or earlier):
            return body[:start] + body[place:], attestation
    if _names_attestation(_event_data(event)):
        raise MalformedError(
            "the last event of the stream names attestation but is not an in-band attestation"
        )
    return body, None


def may_name(data: bytes) -> bool:
    """Tell whether `data` can name `attestation`; where this is false, no spelling of the name stands in it."""
    return _MAY_NAME.search(data) is not None


def last_event(body: bytes, place: int) -> bytes:
    """Return the last event before `place` that is not empty, with everything up to `place`."""
    content_end = len(body[:place].rstrip(b"\r\n"))
    # The two kinds of blank line can overlap, so each is looked for from the start.
    found = [(body.rfind(blank, 0, content_end), len(blank)) for blank in _BLANK_LINE]
    start = max((at + length for at, length in found if at >= 0), default=0)
    return body[start:place]


def _event_data(event: bytes) -> bytes:
    """Return an event's data as the event stream format defines it: its `data` lines joined by LF."""
    lines = (line for line in _LINE_END.split(event) if line.startswith(b"data:"))
    return b"\n".join(line[6:] if line.startswith(b" ", 5) else line[5:] for line in lines)


def _names_attestation(data: bytes) -> bool:
    """Tell whether the object that `data` begins has a member of that name, even if its end is malformed."""
    try:
        return any(name == _NAME for name, _, _ in members(data.decode()))
    except (UnicodeDecodeError, MalformedError):
        return False


def last_head(body: bytes, end: int) -> bytes | None:
    """Return the `span_head` of the last line of `body[:end]` that has one; `body` begins at the start of a line."""
    stop = end
    while True:
        at = body.rfind(b"\n" + CHUNK_START, 0, stop)
        line_end = body.find(b"\n", at + 1, end)
        head = span_head(body[at + 1 : line_end]) if line_end >= 0 else None
        if head is not None or at < 0:
            return head
        stop = at


def _canonical(encoded: bytes) -> bytes | None:
    """Decode canonical, padded base64 of an attestation that is not empty; None if it is anything else."""
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    if not 0 < len(decoded) <= MAX_ATTESTATION or base64.b64encode(decoded) != encoded:
        return None
    return decoded
