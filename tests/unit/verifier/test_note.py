# SPDX-License-Identifier: Apache-2.0
"""Signed notes, their lines and keys (verifier rules 59 to 61)."""

from __future__ import annotations

import base64
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from quotary_verifier.errors import EvidenceError, MalformedError, QuotaryError, UnsupportedError
from quotary_verifier.tlog import note as notes
from quotary_verifier.tlog.note import Note, SignatureLine, VerifierKey

NAME = "log.example/abc"
KEY = SigningKey(bytes(range(32)))
PUBLIC = bytes(KEY.verify_key)
TEXT = b"first line\n\nthird line\n"
LOG = VerifierKey(NAME, notes.TYPE_ED25519, PUBLIC)
UNKNOWN = SignatureLine(NAME, b"\x01\x02\x03\x04", b"hardware evidence")
LINE = notes.sign_ed25519(TEXT, NAME, KEY)

text_characters = st.characters(codec="utf-8", exclude_categories=["Cc"]) | st.just("\n")
texts = st.text(text_characters, max_size=60).map(lambda text: f"{text}\n".encode())
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Z"]), min_size=1, max_size=20).filter(
    lambda name: "+" not in name and not any(map(str.isspace, name))
)
lines = st.builds(
    SignatureLine, names, st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=100)
)


def encoded(line: bytes, text: bytes = TEXT) -> bytes:
    """A note whose one signature line is, after dash and space, `line`."""
    return text + b"\n\xe2\x80\x94 " + line + b"\n"


@given(texts, st.lists(lines, min_size=1, max_size=5))
def test_a_note_is_parsed_back_as_it_was_encoded(text: bytes, some: list[SignatureLine]) -> None:
    note = Note(text, tuple(some))
    assert notes.parse_note(note.encode()) == note


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_no_bytes_make_the_parser_fail_otherwise_than_by_its_own_error(data: bytes) -> None:
    for candidate in (data, TEXT + b"\n" + data, encoded(b"name " + base64.b64encode(data)), encoded(data)):
        try:
            note = notes.parse_note(candidate)
        except MalformedError:
            continue
        assert note.encode() == candidate


def test_the_text_ends_at_the_last_blank_line() -> None:
    note = notes.parse_note(Note(TEXT, (LINE,)).encode())
    assert note.text == TEXT
    assert notes.parse_note(Note(b"text\n\n\n", (LINE,)).encode()).text == b"text\n\n\n"
    assert notes.parse_note(Note(b"\n", (LINE,)).encode()).text == b"\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\n\n",
        TEXT,
        b"text\n" + LINE.encode(),
        b"text\n\n",
        b"text" + b"\n\n",
        LINE.encode(),
        b"\n" + LINE.encode(),
        b"text\n\n" + LINE.encode()[:-1],
        b"text\n\n" + LINE.encode() + b"\n",
        b"text\n\n" + LINE.encode() + b"\n" + LINE.encode()[:-1],
        b"text\n\n" + LINE.encode() + b"text\n",
        b"text\r\n\r\n" + LINE.encode(),
        b"text\n\n" + LINE.encode().replace(b"\n", b"\r\n"),
        b"text\n\n" + LINE.encode()[:-1] + b"x",
        b"te\txt\n\n" + LINE.encode(),
        b"te\rxt\n\n" + LINE.encode(),
        b"te\x00xt\n\n" + LINE.encode(),
        b"te\x1fxt\n\n" + LINE.encode(),
        b"te\xffxt\n\n" + LINE.encode(),
        b"te\xed\xa0\x80xt\n\n" + LINE.encode(),
        b"te\xc0\xafxt\n\n" + LINE.encode(),
    ],
)
def test_anything_but_text_blank_line_and_lines_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        notes.parse_note(data)


def test_delete_and_other_characters_above_the_controls_may_stand_in_a_text() -> None:
    text = "\x7f\x85\u00a0\u2028 \u2014 ✓\n".encode()
    assert notes.parse_note(Note(text, (LINE,)).encode()).text == text


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"name",
        b"name ",
        b" " + base64.b64encode(bytes(68)),
        b"name  " + base64.b64encode(bytes(68)),
        b"na me " + base64.b64encode(bytes(68)),
        b"name " + base64.b64encode(bytes(68)) + b" ",
        b"na+me " + base64.b64encode(bytes(68)),
        "na\u2009me ".encode() + base64.b64encode(bytes(68)),
        "na\u0085me ".encode() + base64.b64encode(bytes(68)),
        "\u3000 ".encode() + base64.b64encode(bytes(68)),
        b"name " + base64.b64encode(bytes(4)),
        b"name " + base64.b64encode(bytes(3)),
    ],
)
def test_a_line_without_a_proper_name_or_payload_is_malformed(line: bytes) -> None:
    with pytest.raises(MalformedError):
        notes.parse_note(encoded(line))


@pytest.mark.parametrize("dash", [b"- ", b"-- ", b"\xe2\x80\x93 ", b"\xe2\x80\x94", b" \xe2\x80\x94 ", b""])
def test_a_line_begins_with_an_em_dash_and_a_space(dash: bytes) -> None:
    with pytest.raises(MalformedError, match="em dash"):
        notes.parse_note(TEXT + b"\n" + dash + b"name " + base64.b64encode(bytes(68)) + b"\n")


@pytest.mark.parametrize(
    "text",
    [
        "AAAAAAE",
        "AAAAAAE==",
        "AAAAAAE=\n",
        "AAAA AAE=",
        "AAAAAAF=",
        "AAAAAAE=AAAA",
        "=AAAAAAE",
        "AAAA-_8=",
        "AAAAAA=",
        "AAAAAB==",
        "\u00e9AAA",
        "A",
        "=",
    ],
)
def test_base64_has_one_form(text: str) -> None:
    assert notes.decode_base64("AAAAAAE=") == b"\0\0\0\0\1"
    with pytest.raises(MalformedError, match="the base64 is"):
        notes.decode_base64(text)
    with pytest.raises(MalformedError):
        notes.parse_note(encoded(b"name " + text.encode()))


def test_a_note_has_at_most_64_kib() -> None:
    padding = notes.MAX_NOTE_BYTES - len(Note(b"\n", (LINE,)).encode())
    notes.parse_note(Note(b"a" * padding + b"\n", (LINE,)).encode())
    with pytest.raises(MalformedError, match="bytes, more than 65536"):
        notes.parse_note(Note(b"a" * padding + b"a\n", (LINE,)).encode())


def test_a_note_has_at_most_100_lines() -> None:
    full = Note(TEXT, (UNKNOWN,) * 100)
    assert notes.parse_note(full.encode()) == full
    with pytest.raises(MalformedError, match="101 signature lines"):
        notes.parse_note(full.encode() + UNKNOWN.encode())
    with pytest.raises(MalformedError, match="1 to 100"):
        full.with_lines([UNKNOWN]).encode()


@pytest.mark.parametrize(
    "note",
    [
        Note(b"no newline", (LINE,)),
        Note(b"", (LINE,)),
        Note(b"text\n", ()),
        Note(b"tab\t\n", (LINE,)),
        Note(b"\xff\n", (LINE,)),
        Note(b"text\n", (SignatureLine("", b"1234", b"payload"),)),
        Note(b"text\n", (SignatureLine("na me", b"1234", b"payload"),)),
        Note(b"text\n", (SignatureLine("na\nme", b"1234", b"payload"),)),
        Note(b"text\n", (SignatureLine("na\x01me", b"1234", b"payload"),)),
        Note(b"text\n", (SignatureLine("na\ud800me", b"1234", b"payload"),)),
        Note(b"text\n", (SignatureLine("name", b"123", b"payload"),)),
        Note(b"text\n", (SignatureLine("name", b"1234", b""),)),
    ],
)
def test_nothing_is_encoded_that_would_not_be_parsed(note: Note) -> None:
    with pytest.raises(MalformedError):
        note.encode()


def test_the_key_id_hashes_name_type_and_key() -> None:
    expected = sha256(NAME.encode() + b"\n\x01" + PUBLIC).digest()[:4]
    assert notes.key_id(NAME, notes.TYPE_ED25519, PUBLIC) == LOG.key_id == LINE.key_id == expected
    assert (
        notes.key_id(NAME, notes.TYPE_COSIGNATURE, PUBLIC)
        == sha256(NAME.encode() + b"\n\x04" + PUBLIC).digest()[:4]
    )
    assert (
        notes.key_id(NAME, notes.TYPE_CUSTOM, b"key", identifier="example/type/v1")
        == sha256(NAME.encode() + b"\n\xffexample/type/v1key").digest()[:4]
    )


def test_an_identifier_stands_after_type_ff_and_no_other() -> None:
    with pytest.raises(MalformedError, match="identifier"):
        notes.key_id(NAME, notes.TYPE_CUSTOM, PUBLIC)
    with pytest.raises(MalformedError, match="identifier"):
        notes.key_id(NAME, notes.TYPE_ED25519, PUBLIC, identifier="example/type/v1")


def test_no_key_id_is_computed_for_ecdsa_keys() -> None:
    with pytest.raises(UnsupportedError, match="another formula"):
        notes.key_id(NAME, notes.TYPE_ECDSA, PUBLIC)


def test_a_verifier_key_is_parsed_back_as_it_was_encoded() -> None:
    for signature_type in (notes.TYPE_ED25519, notes.TYPE_COSIGNATURE):
        key = VerifierKey(NAME, signature_type, PUBLIC)
        assert notes.parse_vkey(key.encode()) == key


def vkey(name: str = NAME, key_id: str | None = None, material: bytes = b"\x01" + PUBLIC) -> str:
    """A vkey text with parts of one's choice."""
    stated = sha256(name.encode() + b"\n" + material).hexdigest()[:8] if key_id is None else key_id
    return f"{name}+{stated}+{base64.b64encode(material).decode()}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        NAME,
        f"{NAME}+00000000",
        vkey().upper(),
        vkey(name=""),
        vkey(name="na me"),
        vkey(name="na\x01me"),
        vkey(key_id="00000000"),
        vkey(key_id=LOG.key_id.hex().upper()),
        vkey(key_id="0" + LOG.key_id.hex()),
        vkey(material=b"\x01" + PUBLIC[:-1]),
        vkey(material=b"\x01" + PUBLIC + b"\0"),
        vkey(material=b"\x01"),
        vkey()[:-1],
        vkey() + "\n",
        vkey() + "=",
        "na\ud800me" + vkey()[len(NAME) :],
        "other" + vkey()[len(NAME) :],
    ],
)
def test_a_verifier_key_of_any_other_form_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        notes.parse_vkey(text)


@pytest.mark.parametrize("signature_type", [0x00, 0x02, 0x05, 0x06, 0xFF])
def test_a_verifier_key_of_another_type_is_not_supported(signature_type: int) -> None:
    with pytest.raises(UnsupportedError, match="has signature type"):
        notes.parse_vkey(vkey(material=bytes([signature_type]) + PUBLIC))


def test_a_note_signed_by_a_known_key_opens_and_lists_the_unknown_lines() -> None:
    opened = notes.open_note(Note(TEXT, (UNKNOWN, LINE)), [LOG, LOG])
    assert (opened.text, opened.signed_by, opened.others) == (TEXT, (LOG,), (UNKNOWN,))


def test_lines_that_share_only_name_or_key_id_with_a_known_key_are_ignored() -> None:
    same_name = SignatureLine(NAME, b"\0\0\0\0", LINE.payload)
    same_id = SignatureLine("other.example", LINE.key_id, LINE.payload)
    opened = notes.open_note(Note(TEXT, (same_name, LINE, same_id)), [LOG])
    assert opened.others == (same_name, same_id)
    with pytest.raises(EvidenceError, match="no line of a known key"):
        notes.open_note(Note(TEXT, (same_name, same_id)), [LOG])


def test_a_note_without_a_line_of_a_known_key_does_not_open() -> None:
    with pytest.raises(EvidenceError, match="no line of a known key"):
        notes.open_note(Note(TEXT, (UNKNOWN,)), [LOG])
    with pytest.raises(EvidenceError, match="no line of a known key"):
        notes.open_note(Note(TEXT, (LINE,)), [])


def test_a_false_line_of_a_known_key_rejects_the_note_beside_a_good_one() -> None:
    other = SigningKey(bytes(32))
    other_key = VerifierKey("other.example", notes.TYPE_ED25519, bytes(other.verify_key))
    good = notes.sign_ed25519(TEXT, "other.example", other)
    false = notes.sign_ed25519(b"another text\n", NAME, KEY)
    with pytest.raises(EvidenceError, match="does not verify"):
        notes.open_note(Note(TEXT, (good, false)), [other_key, LOG])
    assert notes.open_note(Note(TEXT, (good, false)), [other_key]).others == (false,)


def test_a_line_of_a_known_key_with_another_length_is_malformed() -> None:
    for payload in (LINE.payload[:-1], LINE.payload + b"\0"):
        with pytest.raises(MalformedError, match="a signature 64"):
            notes.open_note(Note(TEXT, (SignatureLine(NAME, LOG.key_id, payload),)), [LOG])


def test_a_known_key_has_one_line() -> None:
    with pytest.raises(EvidenceError, match="2 lines of one key"):
        notes.open_note(Note(TEXT, (LINE, LINE)), [LOG])


def test_a_wrong_key_under_the_right_name_and_id_is_false() -> None:
    impostor = SigningKey(bytes(32))
    line = SignatureLine(NAME, LOG.key_id, impostor.sign(TEXT).signature)
    with pytest.raises(EvidenceError, match="does not verify"):
        notes.open_note(Note(TEXT, (line,)), [LOG])


def test_a_cosigner_key_does_not_open_a_note() -> None:
    with pytest.raises(UnsupportedError, match="does not sign note texts"):
        notes.open_note(Note(TEXT, (LINE,)), [VerifierKey(NAME, notes.TYPE_COSIGNATURE, PUBLIC)])


@given(st.integers(0, len(TEXT) * 8 - 1), st.integers(0, 64 * 8 - 1))
def test_no_bit_of_text_or_signature_can_change(text_bit: int, signature_bit: int) -> None:
    def flip(data: bytes, bit: int) -> bytes:
        return (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(len(data), "big")

    with pytest.raises(EvidenceError):
        notes.verify_ed25519(flip(TEXT, text_bit), LINE.payload, PUBLIC)
    with pytest.raises(EvidenceError):
        notes.verify_ed25519(TEXT, flip(LINE.payload, signature_bit), PUBLIC)


@pytest.mark.parametrize("key", [b"\x01" + bytes(31), bytes(32), b"\xff" * 32])
def test_a_key_of_small_order_or_off_the_curve_verifies_nothing(key: bytes) -> None:
    signature = key + bytes(32)
    with pytest.raises(QuotaryError):
        notes.verify_ed25519(TEXT, signature, key)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_an_ed25519_key_has_32_bytes(length: int) -> None:
    with pytest.raises(MalformedError, match="an ed25519 key has 32 bytes"):
        notes.verify_ed25519(TEXT, LINE.payload, bytes(length))
