# SPDX-License-Identifier: Apache-2.0
"""What is read of an attestation beside the parts its commit shares is what the strict decoder reads, or nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from forge import Forge
from hypothesis import given, settings
from hypothesis import strategies as st

from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.wire.attestation import Attestation, LaterCheckpoint
from quotary_verifier.wire.shared import SharedParts
from quotary_verifier.wire.tee_support import TeeSupport

FIRST = Forge(leaves=300, index=257, first=256).attestation()
SHARED = SharedParts(FIRST)
DATA = FIRST.encode()
LOGGED = replace(FIRST, boot_logs={"ima": bytes(32), "tcg": b"a log in full" * 10})
TEED = replace(FIRST, tees=(TeeSupport("quotary/sev-snp/v1", {"leaf": (b"vcek",), "issuer": (b"ask",)}),))
PARTS = [(one, SharedParts(one)) for one in (FIRST, LOGGED, TEED)]


def strictly(data: bytes) -> Attestation | None:
    try:
        return Attestation.decode(data)
    except (MalformedError, UnsupportedError):
        return None


@given(
    record=st.integers(1, 70_000).map(lambda size: b"r" * size),
    index=st.one_of(st.integers(0, 300), st.integers(0, (1 << 63) - 1)),
    path=st.integers(0, 64).map(lambda count: b"p" * (32 * count)),
    key=st.none() | st.just(b"k" * 32),
    parts=st.sampled_from(PARTS),
)
@settings(deadline=None, max_examples=300)
def test_any_leaf_of_the_commit_is_read_as_the_strict_decoder_reads_it(
    record: bytes, index: int, path: bytes, key: bytes | None, parts: tuple[Attestation, SharedParts]
) -> None:
    first, shared = parts
    data = replace(first, record=record, index=index, path=path, request_key=key).encode()
    found, expected = shared.read(data), strictly(data)
    assert found == expected or (found is None and index >= 1 << 32)
    assert found is not None or expected is None or index >= 1 << 32


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("flip", [0x01, 0x02, 0x20, 0x80, 0xFF])
def test_an_altered_byte_is_read_as_the_strict_decoder_reads_it_or_not_at_all(
    flip: int, parts: tuple[Attestation, SharedParts]
) -> None:
    first, shared = parts
    data, read = first.encode(), 0
    for position in range(len(data)):
        altered = data[:position] + bytes((data[position] ^ flip,)) + data[position + 1 :]
        found = shared.read(altered)
        if found is not None:
            read += 1
            assert found == strictly(altered), position
    assert read >= len(FIRST.record) + len(FIRST.path)


@pytest.mark.parametrize("length", range(0, len(DATA), 7))
def test_nothing_is_read_of_a_truncated_one(length: int) -> None:
    assert SHARED.read(DATA[:length]) is None


def test_nothing_is_read_of_a_longer_one() -> None:
    for tail in (b"\0", b"\xf6", b"\x08\x58\x20" + bytes(32)):
        assert SHARED.read(DATA + tail) is None


HEAD = DATA[:6]
RECORD_ITEM = (
    DATA[6 : 6 + 3 + len(FIRST.record)] if len(FIRST.record) > 255 else DATA[6 : 6 + 2 + len(FIRST.record)]
)
AFTER = DATA[6 + len(RECORD_ITEM) :]


@pytest.mark.parametrize(
    "longer",
    [
        b"\x5a" + len(FIRST.record).to_bytes(4) + FIRST.record,
        b"\x5b" + len(FIRST.record).to_bytes(8) + FIRST.record,
        b"\x5f" + RECORD_ITEM + b"\xff",
    ],
)
def test_a_length_that_is_not_the_shortest_is_left_to_the_strict_decoder_which_refuses_it(
    longer: bytes,
) -> None:
    assert SHARED.read(HEAD + RECORD_ITEM + AFTER) == FIRST
    assert SHARED.read(HEAD + longer + AFTER) is None
    assert strictly(HEAD + longer + AFTER) is None


@pytest.mark.parametrize(
    "index", [b"\x18\x05", b"\x19\x00\x05", b"\x1a\x00\x00\x00\x05", b"\x1a\x00\x00\xff\xff"]
)
def test_an_index_that_is_not_the_shortest_is_left_to_the_strict_decoder_which_refuses_it(
    index: bytes,
) -> None:
    short = replace(FIRST, index=5).encode()
    place = short.index(b"\x04\x05\x05", len(FIRST.record))
    data = short[: place + 1] + index + short[place + 2 :]
    assert SHARED.read(short) == replace(FIRST, index=5)
    assert SHARED.read(data) is None
    assert strictly(data) is None


def test_nothing_is_read_of_an_attestation_with_other_parts() -> None:
    support = FIRST.supports[0]
    others = (
        replace(FIRST, genesis=FIRST.genesis[:-1] + b"\0"),
        replace(FIRST, note=FIRST.note + b"\n"),
        replace(FIRST, supports=(replace(support, chain_before=bytes(32)),)),
        replace(FIRST, supports=()),
        TEED,
        replace(FIRST, boot_logs={"tcg": bytes(32)}),
        replace(FIRST, later=(LaterCheckpoint(FIRST.note, b""),)),
    )
    for other in others:
        assert SHARED.read(other.encode()) is None


def test_nothing_is_read_of_an_attestation_with_other_boot_logs_or_none() -> None:
    _, shared = PARTS[1]
    assert shared.read(LOGGED.encode()) == LOGGED
    others: tuple[dict[str, bytes], ...] = (
        {},
        {"ima": bytes(32)},
        {"ima": b"\1" * 32, "tcg": LOGGED.boot_logs["tcg"]},
        {**LOGGED.boot_logs, "more": bytes(32)},
    )
    for logs in others:
        assert shared.read(replace(LOGGED, boot_logs=logs).encode()) is None
    later = replace(LOGGED, later=(LaterCheckpoint(FIRST.note, b""),))
    assert shared.read(later.encode()) is None
