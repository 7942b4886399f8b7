# SPDX-License-Identifier: Apache-2.0
"""The workload log replays, its epochs are found, and nothing passes for a separator that is none."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.logs.cel import content_digest, encode_record, parse_log
from quotary_verifier.logs.workload import (
    WorkloadEvent,
    opaque,
    read_log,
    reveal,
    secret_commitment,
    separator,
)
from quotary_verifier.wire.bindings import ZERO


def event(name: str, kind: str = "model") -> bytes:
    return WorkloadEvent(kind, name, hashlib.sha256(name.encode()).digest(), {}).encode()


def epoch(number: int, *names: str) -> list[bytes]:
    contents = [event(name) for name in names]
    return [*contents, separator(number, [content_digest(content) for content in contents])]


LOG = [*epoch(0, "a", "b"), *epoch(1, "b", "c", "d")]


def test_the_log_replays_by_extending_each_digest() -> None:
    value = ZERO
    for content in LOG:
        tlv = b"\xc8" + len(content).to_bytes(4) + content
        value = hashlib.sha256(value + hashlib.sha256(tlv).digest()).digest()
    assert read_log(LOG).value == value


@given(st.frozensets(st.integers(0, len(LOG) - 1)))
def test_it_reads_the_same_whatever_is_opaque(keep: frozenset[int]) -> None:
    items = reveal(LOG, keep)
    log = read_log(items)
    assert (log.value, log.epoch) == (read_log(LOG).value, 1)
    assert [logged.number for logged in log.current] == [3, 4, 5]
    assert set(opaque(items)) == set(range(len(LOG))) - keep


def test_only_the_last_closed_epoch_is_in_force() -> None:
    log = read_log(LOG)
    assert log.find(0) is None
    found = log.find(4)
    assert found is not None
    assert found.event is not None
    assert found.event.name == "c"


def test_an_empty_log_has_no_epoch() -> None:
    log = read_log([])
    assert (log.value, log.epoch, log.current) == (ZERO, -1, ())


@pytest.mark.parametrize("hidden", [True, False])
def test_events_after_the_last_separator_are_refused(hidden: bool) -> None:
    late = event("late")
    with pytest.raises(EvidenceError, match="after the last separator"):
        read_log([*LOG, content_digest(late) if hidden else late])


def test_a_separator_must_fit_its_epoch() -> None:
    wrong = separator(0, [content_digest(event("x"))])
    with pytest.raises(EvidenceError, match="does not fit"):
        read_log([event("a"), wrong])


def test_a_separator_closes_at_least_one_event() -> None:
    with pytest.raises(EvidenceError):
        read_log([separator(0, [])])


def test_a_long_log_is_read_in_linear_time_and_bounded() -> None:
    digests = [hashlib.sha256(b"%d" % number).digest() for number in range(4000)]
    log = read_log([*digests, content_digest(separator(0, digests))])
    assert (log.epoch, len(log.current)) == (0, 4000)


def test_secrets_stand_as_salted_commitments() -> None:
    assert secret_commitment(b"s" * 16, b"--key=x") == hashlib.sha256(b"s" * 16 + b"--key=x").digest()


# --- the file ------------------------------------------------------------------------------------------------

FILE = b"".join(encode_record(number, 13, content) for number, content in enumerate(LOG))


def test_the_file_reads_back() -> None:
    records = list(parse_log(FILE, pcr=13))
    assert [record.content for record in records] == LOG
    assert [record.number for record in records] == list(range(len(LOG)))


def test_every_truncation_of_the_file_is_refused_or_ends_at_a_record() -> None:
    ends = {0}
    for number, content in enumerate(LOG):
        ends.add(max(ends) + len(encode_record(number, 13, content)))
    for length in range(len(FILE)):
        if length in ends:
            assert len(list(parse_log(FILE[:length], pcr=13))) < len(LOG)
        else:
            with pytest.raises(MalformedError):
                list(parse_log(FILE[:length], pcr=13))


def test_every_altered_byte_of_the_file_is_refused() -> None:
    for position in range(len(FILE)):
        altered = FILE[:position] + bytes((FILE[position] ^ 1,)) + FILE[position + 1 :]
        with pytest.raises((MalformedError, EvidenceError)):
            list(parse_log(altered, pcr=13))


def test_record_numbers_are_consecutive() -> None:
    first, second = encode_record(0, 13, LOG[0]), encode_record(1, 13, LOG[1])
    for data in (second, first + first, second + first):
        with pytest.raises(EvidenceError, match="has number"):
            list(parse_log(data, pcr=13))


def test_a_log_for_another_pcr_is_refused() -> None:
    with pytest.raises(MalformedError, match="PCR 13"):
        list(parse_log(FILE, pcr=9))


def test_a_foreign_content_type_is_refused() -> None:
    data = FILE.replace(b"\xc8" + len(LOG[0]).to_bytes(4), b"\x50" + len(LOG[0]).to_bytes(4), 1)
    with pytest.raises(MalformedError):
        list(parse_log(data, pcr=13))
