# SPDX-License-Identifier: Apache-2.0
"""Signed notes (C2SP signed-note v1.0.0): text, a blank line, and one line for each signature.

::

    <text, ends in a newline>
    <blank line: the last one of the note>
    — <key name> <base64(4-byte key id ‖ payload)>

A line belongs to a key only if both its name and its key id fit; what the payload means is the business of
the signature type: Ed25519 over the text here, cosignatures in `cosignature`, hardware evidence in
`hardware`. Lines of unknown keys never make a note fail and are never evidence; a line of a known key that
does not verify rejects the whole note.
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_NOTE

TYPE_ED25519: Final = 0x01
"""Ed25519 over the note text (signed-note, "Ed25519 signatures")."""

TYPE_ECDSA: Final = 0x02
"""ECDSA, whose key id has a formula of its own; known so that it is not computed wrongly."""

TYPE_COSIGNATURE: Final = 0x04
"""Timestamped Ed25519 cosignature (tlog-cosignature)."""

TYPE_CUSTOM: Final = 0xFF
"""A type without an assigned byte: a longer identifier follows it (signed-note, "Signature types")."""

MAX_NOTE_BYTES: Final = MAX_NOTE
"""signed-note, "Format", leaves the limit to the verifier but demands that 16 lines are accepted: 64 KiB
holds 16 of 3.3 kB, those of the largest assigned type (ML-DSA-44 cosignatures), and hardware lines beside."""

MAX_SIGNATURE_LINES: Final = 100
"""As many as golang.org/x/mod/sumdb/note accepts, so that a note is never valid here and refused there."""

KEY_ID_SIZE: Final = 4
"""Bytes of a key id: a big-endian uint32."""

ED25519_KEY_SIZE: Final = 32
"""Bytes of an Ed25519 public key (RFC 8032)."""

_LINE_START: Final = "\u2014 ".encode()
_CONTROL: Final = bytes(set(range(0x20)) - {0x0A})
_NAME: Final = re.compile(r"[^\s+\x00-\x1f]+")
_VKEY: Final = re.compile(r"([^+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)")


@frozen
class SignatureLine:
    """One signature line: key name, 4-byte key id, and the payload whose meaning the signature type fixes."""

    name: str
    key_id: bytes
    payload: bytes

    def encode(self) -> bytes:
        """Return the line with its newline. Raises MalformedError for what `parse_note` would refuse."""
        name = encode_name(self.name)
        if len(self.key_id) != KEY_ID_SIZE or not self.payload:
            raise MalformedError("a signature line has a key id of 4 bytes and a payload")
        return _LINE_START + name + b" " + b64encode(self.key_id + self.payload) + b"\n"


@frozen
class Note:
    """A note as parsed: nothing in it is verified. `text` ends in a newline and excludes the blank line."""

    text: bytes
    lines: tuple[SignatureLine, ...]

    def encode(self) -> bytes:
        """Return the note's bytes. Raises MalformedError for what `parse_note` would refuse."""
        data = self.text + b"\n" + b"".join([line.encode() for line in self.lines])
        _check_characters(data)
        if not self.text.endswith(b"\n") or not 0 < len(self.lines) <= MAX_SIGNATURE_LINES:
            raise MalformedError("a note has a text that ends in a newline, and 1 to 100 signature lines")
        return data

    def line(self, name: str, key_id: bytes) -> SignatureLine | None:
        """Return the line of a known key, None where the note has none.

        Raises EvidenceError where it has several: verifying one of them would leave the others unjudged.
        """
        found = [line for line in self.lines if line.key_id == key_id and line.name == name]
        if len(found) > 1:
            raise EvidenceError(f"the note has {len(found)} lines of one key of {name}")
        return found[0] if found else None

    def with_lines(self, lines: Sequence[SignatureLine]) -> Note:
        """Return the note with more lines after its own."""
        return Note(self.text, self.lines + tuple(lines))


@frozen
class VerifierKey:
    """A public key as verifiers are configured with: key name, signature type (0x01 or 0x04), 32-byte key."""

    name: str
    signature_type: int
    key: bytes

    @property
    def key_id(self) -> bytes:
        """The 4-byte key id of this name, type and key."""
        return key_id(self.name, self.signature_type, self.key)

    def encode(self) -> str:
        """Return the vkey text `<name>+<key id in hex>+<base64(type ‖ key)>`."""
        material = b64encode(bytes([self.signature_type]) + self.key).decode()
        return f"{self.name}+{self.key_id.hex()}+{material}"


@frozen
class VerifiedNote:
    """A note whose lines of known keys, at least one, all verified; `others` are lines of unknown keys."""

    text: bytes
    signed_by: tuple[VerifierKey, ...]
    others: tuple[SignatureLine, ...]


def encode_name(name: str) -> bytes:
    """Return a key name as UTF-8. Raises MalformedError where it is empty or has a space, control or plus."""
    try:
        if _NAME.fullmatch(name):
            return name.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can write and UTF-8 cannot
        pass
    raise MalformedError("a key name is not empty and has neither spaces, control characters nor plus signs")


def key_id(name: str, signature_type: int, key: bytes, *, identifier: str = "") -> bytes:
    """Return SHA-256(name ‖ 0x0A ‖ type ‖ identifier ‖ key)[:4], the key id that signed-note recommends.

    The identifier stands only, and must stand, after type 0xff. Raises MalformedError for a bad name or
    identifier, UnsupportedError for type 0x02, whose key id is computed otherwise.
    """
    name_bytes = encode_name(name)
    if signature_type == TYPE_ECDSA:
        raise UnsupportedError("key ids of ecdsa note keys have another formula and are not supported")
    if bool(identifier) != (signature_type == TYPE_CUSTOM):
        raise MalformedError("signature type 0xff, and no other, is followed by an identifier")
    head = name_bytes + b"\n" + bytes([signature_type])
    return sha256(head + identifier.encode() + key).digest()[:KEY_ID_SIZE]


def parse_note(data: bytes) -> Note:
    """Split a note into its text and lines (signed-note, "Format"); nothing is verified.

    Raises MalformedError for anything but the exact form: more than 64 KiB or 100 lines, bytes that are not
    UTF-8, a control character other than newline, no blank line, no line, a bad name, base64 that is not
    canonical, or no payload after the key id.
    """
    if len(data) > MAX_NOTE_BYTES:
        raise MalformedError(f"the note has {len(data)} bytes, more than {MAX_NOTE_BYTES}")
    _check_characters(data)
    blank = data.rfind(b"\n\n")
    if blank < 0 or not data.endswith(b"\n"):
        raise MalformedError("a note is a text, a blank line, and lines that each end in a newline")
    lines = data[blank + 2 : -1].split(b"\n")
    if len(lines) > MAX_SIGNATURE_LINES:
        raise MalformedError(f"the note has {len(lines)} signature lines, more than {MAX_SIGNATURE_LINES}")
    return Note(data[: blank + 1], tuple([_parse_line(line) for line in lines]))


def decode_base64(text: bytes | str) -> bytes:
    """Decode standard base64 with padding, in its one canonical form (RFC 4648 sections 3.5 and 4).

    Raises MalformedError for any other alphabet, line breaks, missing padding or bits that are not zero.
    """
    try:
        data = a2b_base64(text)
    except ValueError as error:
        raise MalformedError("the base64 is malformed") from error
    # The decoder skips what is not of the alphabet and bits that do not count: encoding again shows both.
    if b64encode(data) != (text.encode() if isinstance(text, str) else text):
        raise MalformedError("the base64 is not canonical")
    return data


def parse_vkey(text: str) -> VerifierKey:
    """Parse a vkey, `<name>+<8 hex digits>+<base64(type ‖ key)>`, of type 0x01 or 0x04.

    Raises MalformedError for a bad form or a key id that does not belong to the key, UnsupportedError for a
    type of which this verifier has no algorithm.
    """
    match = _VKEY.fullmatch(text)
    if match is None:
        raise MalformedError("a verifier key has the form <name>+<key id>+<base64>")
    name, stated, material = match.groups()
    encode_name(name)
    decoded = decode_base64(material)
    if decoded[0] not in (TYPE_ED25519, TYPE_COSIGNATURE):
        raise UnsupportedError(f"the verifier key of {name} has signature type {decoded[0]:#04x}")
    key = VerifierKey(name, decoded[0], decoded[1:])
    if len(key.key) != ED25519_KEY_SIZE:
        raise MalformedError(f"the ed25519 key of {name} has {len(key.key)} bytes, not 32")
    if key.key_id.hex() != stated:
        raise MalformedError(f"the verifier key of {name} states a key id that is not its own")
    return key


def sign_ed25519(text: bytes, name: str, key: SigningKey) -> SignatureLine:
    """Return the type 0x01 line of `key` for a note text. Raises MalformedError for a bad key name."""
    public = bytes(key.verify_key)
    return SignatureLine(name, key_id(name, TYPE_ED25519, public), key.sign(text).signature)


def verify_ed25519(message: bytes, signature: bytes, key: bytes) -> None:
    """Check an Ed25519 signature (RFC 8032) under a 32-byte public key.

    Raises MalformedError where key or signature have another length, EvidenceError where it does not verify.
    """
    if len(key) != ED25519_KEY_SIZE or len(signature) != 64:
        raise MalformedError("an ed25519 key has 32 bytes and a signature 64")
    try:
        VerifyKey(key).verify(message, signature)
    except CryptoError as error:
        raise EvidenceError("the ed25519 signature does not verify") from error


def open_note(note: Note, keys: Sequence[VerifierKey]) -> VerifiedNote:
    """Verify every line of the note that one of the type 0x01 `keys` made; at least one must be there.

    Raises EvidenceError where no key has a line, where one has several, or where a line of a key is false;
    MalformedError where such a line has no signature's length; UnsupportedError for keys of other types.
    """
    signed_by, known = [], set()
    for key in dict.fromkeys(keys):
        if key.signature_type != TYPE_ED25519:
            raise UnsupportedError(f"the key of {key.name} does not sign note texts")
        line = note.line(key.name, key.key_id)
        if line is not None:
            verify_ed25519(note.text, line.payload, key.key)
            signed_by.append(key)
            known.add(line)
    if not signed_by:
        raise EvidenceError("the note has no line of a known key")
    return VerifiedNote(
        note.text, tuple(signed_by), tuple([line for line in note.lines if line not in known])
    )


def _parse_line(line: bytes) -> SignatureLine:
    """Parse one signature line, given without its newline and known to be UTF-8."""
    if not line.startswith(_LINE_START):
        raise MalformedError("a signature line begins with an em dash and a space")
    name_bytes, _, encoded = line[len(_LINE_START) :].partition(b" ")
    name = name_bytes.decode()
    encode_name(name)
    payload = decode_base64(encoded)
    if len(payload) <= KEY_ID_SIZE:
        raise MalformedError(f"the signature line of {name} has no payload")
    return SignatureLine(name, payload[:KEY_ID_SIZE], payload[KEY_ID_SIZE:])


def _check_characters(data: bytes) -> None:
    """Raise MalformedError unless `data` is UTF-8 without control characters below 0x20 but newline."""
    if len(data.translate(None, _CONTROL)) != len(data):
        raise MalformedError("a note has no control character but newline")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise MalformedError("a note is utf-8") from error
