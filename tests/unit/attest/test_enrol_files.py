# SPDX-License-Identifier: Apache-2.0
"""The files of an enrolment: what is written is read back, and nothing else is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycddl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotary_attest.enrol.files import (
    Activation,
    Challenge,
    Grant,
    Identity,
    Request,
    activation_proof,
    file_digest,
)
from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.wire import cbor
from quotary_verifier.wire.limits import MAX_ENROLMENT

CDDL = pycddl.Schema((Path(__file__).parents[3] / "docs" / "spec" / "enrolment.cddl").read_text("utf-8"))
ORIGIN = "gpu-1.example.com/" + "a2" * 16


def octets(low: int, high: int | None = None) -> st.SearchStrategy[bytes]:
    """Byte strings of `low` bytes, or of `low` to `high`."""
    return st.binary(min_size=low, max_size=low if high is None else high)


origins = st.from_regex(r"[a-z]([a-z0-9]{0,20})(\.[a-z][a-z0-9]{0,9}){0,3}/[a-z2-7]{32}", fullmatch=True)
names = octets(32).map(lambda digest: b"\x00\x0b" + digest) | octets(48).map(
    lambda digest: b"\x00\x0c" + digest
)
identities = st.builds(Identity, origin=origins, ak_name=names, ek_digest=octets(32))
certificates = octets(1, 600)
requests = st.builds(
    Request,
    salt=octets(16),
    genesis=octets(1, 900),
    ek_public=octets(1, 600),
    ek_certificate=certificates,
    intermediates=st.lists(certificates, max_size=7).map(tuple),
    not_understood=st.just(()),
)
challenges = st.builds(
    Challenge,
    challenge_id=octets(16),
    request=octets(32),
    identity=identities,
    expires=st.integers(0, (1 << 53) - 1),
    id_object=octets(1, 200),
    encrypted_secret=octets(1, 512),
    not_understood=st.just(()),
)
activations = st.builds(
    Activation,
    challenge_id=octets(16),
    challenge=octets(32),
    identity=identities,
    proof=octets(32),
    not_understood=st.just(()),
)
grants = st.builds(
    Grant,
    challenge_id=octets(16),
    identity=identities,
    certificates=st.lists(certificates, min_size=2, max_size=9).map(tuple),
    not_understood=st.just(()),
)

IDENTITY = Identity(ORIGIN, b"\x00\x0b" + bytes(32), bytes(32))
EXAMPLES: dict[str, Request | Challenge | Activation | Grant] = {
    "request": Request(bytes(16), b"genesis", b"ek", b"leaf", (b"middle",)),
    "challenge": Challenge(bytes(16), bytes(32), IDENTITY, 1_700_000_000_000, b"object", b"seed"),
    "activation": Activation(bytes(16), bytes(32), IDENTITY, bytes(32)),
    "grant": Grant(bytes(16), IDENTITY, (b"leaf", b"root")),
}
every_file = pytest.mark.parametrize("kind", sorted(EXAMPLES))
FIELDS = [
    (kind, key)
    for kind, file in sorted(EXAMPLES.items())
    for key in cbor.decode(file.encode(), max_bytes=9999)
]


def changed(kind: str, change: Callable[[dict[int, Any]], object]) -> bytes:
    """An example's bytes after a change of its map."""
    value = cbor.decode(EXAMPLES[kind].encode(), max_bytes=MAX_ENROLMENT)
    change(value)
    return cbor.encode(value)


@given(file=requests | challenges | activations | grants)
def test_what_is_written_is_read_back(file: Request | Challenge | Activation | Grant) -> None:
    assert type(file).decode(file.encode()) == file


@given(file=requests | challenges | activations | grants)
def test_what_is_written_fits_the_cddl(file: Request | Challenge | Activation | Grant) -> None:
    CDDL.validate_cbor(file.encode())


@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_cleanly(data: bytes) -> None:
    for file in EXAMPLES.values():
        with pytest.raises((MalformedError, UnsupportedError)):
            type(file).decode(data)


@every_file
def test_no_file_is_read_as_another_kind(kind: str) -> None:
    for other, file in EXAMPLES.items():
        if other != kind:
            with pytest.raises(MalformedError, match="expected kind"):
                type(file).decode(EXAMPLES[kind].encode())


@every_file
def test_an_unknown_version_is_not_called_false(kind: str) -> None:
    with pytest.raises(UnsupportedError, match="version 2"):
        type(EXAMPLES[kind]).decode(changed(kind, lambda value: value.update({1: 2})))


@pytest.mark.parametrize(("kind", "key"), FIELDS)
def test_every_field_must_be_there(kind: str, key: int) -> None:
    with pytest.raises(MalformedError):
        type(EXAMPLES[kind]).decode(changed(kind, lambda value: value.pop(key)))


@pytest.mark.parametrize(("kind", "key"), FIELDS)
def test_every_field_has_one_type(kind: str, key: int) -> None:
    with pytest.raises(MalformedError):
        type(EXAMPLES[kind]).decode(changed(kind, lambda value: value.update({key: None})))


@every_file
def test_an_unknown_positive_key_is_refused(kind: str) -> None:
    with pytest.raises(MalformedError, match="field 20 is unknown"):
        type(EXAMPLES[kind]).decode(changed(kind, lambda value: value.update({20: b""})))


@every_file
def test_an_unknown_negative_key_is_listed(kind: str) -> None:
    file = type(EXAMPLES[kind]).decode(changed(kind, lambda value: value.update({-3: b""})))
    assert file.not_understood == (-3,)


@every_file
def test_bytes_after_the_end_are_refused(kind: str) -> None:
    with pytest.raises(MalformedError):
        type(EXAMPLES[kind]).decode(EXAMPLES[kind].encode() + b"\0")


@every_file
def test_a_file_cut_anywhere_is_refused(kind: str) -> None:
    data = EXAMPLES[kind].encode()
    for end in range(len(data)):
        with pytest.raises(MalformedError):
            type(EXAMPLES[kind]).decode(data[:end])


@every_file
def test_a_file_over_the_limit_is_refused_before_it_is_parsed(kind: str) -> None:
    with pytest.raises(MalformedError, match="are allowed"):
        type(EXAMPLES[kind]).decode(bytes(MAX_ENROLMENT + 1))


def test_a_request_that_would_be_too_long_is_not_written() -> None:
    request = Request(bytes(16), b"g", b"e", bytes(16_000), (bytes(16_000),) * 4)
    with pytest.raises(MalformedError, match="would have"):
        request.encode()


@pytest.mark.parametrize("kind", ["challenge", "activation", "grant"])
@pytest.mark.parametrize(
    "origin", ["gpu-1.example.com", "GPU.example.com/" + "a2" * 16, "x/" + "a" * 31, "x/" + "1" * 32]
)
def test_an_origin_that_is_none_is_refused(kind: str, origin: str) -> None:
    key = 3 if kind == "grant" else 4
    with pytest.raises(MalformedError):
        type(EXAMPLES[kind]).decode(changed(kind, lambda value: value.update({key: origin})))


@pytest.mark.parametrize(
    "name", [b"", b"\x00\x0b" + bytes(31), b"\x00\x0b" + bytes(33), b"\xff\xff" + bytes(32)]
)
def test_a_name_that_is_none_is_refused(name: bytes) -> None:
    with pytest.raises(MalformedError):
        Activation.decode(changed("activation", lambda value: value.update({5: name})))


@pytest.mark.parametrize("paths", [[], [b"leaf"], [b"leaf", b""], [b"leaf", 1], [b"leaf"] * 10])
def test_a_grant_holds_a_leaf_and_a_root_at_least(paths: list[Any]) -> None:
    with pytest.raises(MalformedError):
        Grant.decode(changed("grant", lambda value: value.update({6: paths})))


def test_the_host_is_what_stands_before_the_slash_of_the_origin() -> None:
    assert IDENTITY.host == "gpu-1.example.com"


def test_the_proof_covers_every_byte_of_the_challenge_and_the_whole_secret() -> None:
    challenge = EXAMPLES["challenge"].encode()
    proof = activation_proof(b"s" * 32, challenge)
    assert len(proof) == 32
    for place in range(len(challenge)):
        altered = bytearray(challenge)
        altered[place] ^= 1
        assert activation_proof(b"s" * 32, bytes(altered)) != proof
    assert activation_proof(b"s" * 31 + b"t", challenge) != proof


def test_the_proof_reveals_neither_secret_nor_digest() -> None:
    challenge = EXAMPLES["challenge"].encode()
    assert activation_proof(b"s" * 32, challenge) not in {
        b"s" * 32,
        file_digest(b"s" * 32),
        file_digest(challenge),
    }
