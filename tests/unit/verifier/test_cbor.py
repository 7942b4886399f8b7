# SPDX-License-Identifier: Apache-2.0
"""CBOR is read strictly: one value has one encoding, and nothing else gets in."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.wire import cbor

SCALARS = (
    st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=40)
    | st.text(max_size=20)
    | st.booleans()
    | st.none()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers(-24, 23), inner, max_size=4)
        | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(VALUES)
def test_what_is_encoded_decodes_to_itself(value: object) -> None:
    data = cbor.encode(value)
    if depth(value) > cbor.MAX_DEPTH:
        with pytest.raises(MalformedError):
            cbor.decode(data, max_bytes=1 << 20)
    else:
        assert cbor.decode(data, max_bytes=1 << 20) == value


@given(st.binary(max_size=60))
def test_what_decodes_encodes_to_the_same_bytes(data: bytes) -> None:
    try:
        value = cbor.decode(data, max_bytes=100)
    except MalformedError:
        return
    assert cbor.encode(value) == data


REFUSED = {
    "an integer that is not in its shortest form": "1817",
    "a length that is not in its shortest form": "580161",
    "a duplicate key": "a200000000",
    "keys out of order": "a201000000",
    "text keys out of order": "a2626161006162 00",
    "keys of both kinds": "a200006161 00",
    "an integer key above 23": "a1181800",
    "an integer key below -24": "a1381800",
    "a byte string as a key": "a14100 00",
    "an array as a key": "a18000",
    "a float": "f93c00",
    "a double": "fb3ff0000000000000",
    "undefined": "f7",
    "a simple value": "f820",
    "a bignum": "c249010000000000000000",
    "a date": "c11a514b67b0",
    "a regular expression": "d8236161",
    "a shared reference": "d81c80",
    "a self-description": "d9d9f700",
    "a tag nobody knows": "da000f000000",
    "a set": "d9010280",
    "an array without a length": "9fff",
    "a byte string without a length": "5fff",
    "a map without a length": "bfff",
    "bytes after the item": "0000",
    "nothing": "",
    "a break": "ff",
    "a string that ends early": "43 6161",
    "a huge string": "5b7fffffffffffffff",
    "a huge array": "9bffffffffffffffff",
    "a huge map": "bbffffffffffffffff",
    "text that is not UTF-8": "61ff",
    "nesting without end": "81" * 400,
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses(name: str) -> None:
    with pytest.raises(MalformedError):
        cbor.decode(bytes.fromhex(REFUSED[name].replace(" ", "")), max_bytes=1000)


def test_length_is_limited_before_anything_is_parsed() -> None:
    with pytest.raises(MalformedError, match="11 bytes, 10 are allowed"):
        cbor.decode(cbor2.dumps(bytes(10)), max_bytes=10)


def test_an_ordered_value_encodes_alike_both_ways() -> None:
    value = {0: 1, 1: 1, 2: {"a": b"", "bb": b""}, -1: [1, 2]}
    assert cbor.encode(value) == cbor.encode_ordered(value)


def test_an_artefact_is_of_the_kind_that_was_asked_for() -> None:
    with pytest.raises(MalformedError, match="expected kind 1, found 2"):
        cbor.Fields.artefact({0: 2, 1: 1}, "thing", 1)
    with pytest.raises(MalformedError, match="expected kind 1, found True"):
        cbor.Fields.artefact({0: True, 1: 1}, "thing", 1)


def test_an_unknown_version_could_not_be_checked() -> None:
    with pytest.raises(UnsupportedError, match="version 2"):
        cbor.Fields.artefact({0: 1, 1: 2}, "thing", 1)


def test_unknown_positive_keys_are_refused_and_negative_ones_listed() -> None:
    fields = cbor.Fields.artefact({0: 1, 1: 1, -1: 0, -7: 0}, "thing", 1)
    assert fields.finish() == (-1, -7)
    fields = cbor.Fields.artefact({0: 1, 1: 1, 9: 0}, "thing", 1)
    with pytest.raises(MalformedError, match="field 9 is unknown"):
        fields.finish()


def test_a_boolean_is_no_integer() -> None:
    with pytest.raises(MalformedError):
        cbor.Fields({2: True}, "thing").uint(2)


def test_a_sequence_is_split_at_its_items() -> None:
    data = cbor.encode({0: 1}) + cbor.encode([b"x" * 300]) + cbor.encode(5)
    ends = []
    position = 0
    while position < len(data):
        position = cbor.item_end(data, position, max_bytes=1000)
        ends.append(position)
    assert ends == [3, 3 + 304, 3 + 304 + 1]
    with pytest.raises(MalformedError):
        cbor.item_end(data, 3, max_bytes=100)
