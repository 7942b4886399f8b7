# SPDX-License-Identifier: Apache-2.0
"""Whatever bytes come in, the verifier answers with its own errors, soon, and in little memory."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from forge import NOW, Forge

from quotary_verifier import (
    NotChecked,
    PolicyError,
    Question,
    QuotaryError,
    Rejected,
    load_policy,
    strip,
    verify,
)
from quotary_verifier.logs.cel import content_digest
from quotary_verifier.logs.workload import KIND_EVENT, WorkloadEvent, read_log, separator
from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.history import Commit, split

FORGE = Forge()
POLICY = load_policy(FORGE.policy().encode())
GOOD = FORGE.attestation().encode()
HEAD = b'schema = "quotary-policy/v1"\n'
CA = HEAD + b'[[authority]]\nname = "a"\ncertificates = """'
MEBI = 1 << 20


@contextmanager
def bounded(seconds: float, mebibytes: int) -> Iterator[None]:
    """Hold a block to CPU time and to memory for Python's objects."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        took, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert took < seconds, f"{took:.2f} s"
    assert peak < mebibytes * MEBI, f"{peak / MEBI:.0f} MiB"


ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**64 - 1, b"", b"\xff" * 32, "", "\u202e\x1b[31m", [], [[]], {}, {0: 0}, {"a": b"b"},
)  # fmt: skip


def _replaced(value: Any, odd: Any) -> Iterator[Any]:
    """Yield copies of a decoded value, in each of which one part is `odd`."""
    if isinstance(value, dict):
        for key in value:
            yield {**value, key: odd}
            for inner in _replaced(value[key], odd):
                yield {**value, key: inner}
    elif isinstance(value, list):
        for number, item in enumerate(value):
            for inner in (odd, *_replaced(item, odd)):
                yield [*value[:number], inner, *value[number + 1 :]]


def _inside(key: int) -> Callable[[Any], Iterator[Any]]:
    """Replace parts of the CBOR that stands as bytes in a field of the attestation."""

    def parts(odd: Any) -> Iterator[Any]:
        whole = cbor.decode(GOOD, max_bytes=MEBI)
        for inner in _replaced(cbor.decode(whole[key], max_bytes=MEBI), odd):
            yield {**whole, key: cbor.encode(inner)}

    return parts


WHERE: dict[str, Callable[[Any], Iterator[Any]]] = {
    "attestation": lambda odd: _replaced(cbor.decode(GOOD, max_bytes=MEBI), odd),
    "record": _inside(2),
    "genesis record": _inside(3),
}


@pytest.mark.parametrize("where", WHERE)
def test_a_part_of_another_type_or_size_is_a_rejection_and_nothing_else(where: str) -> None:
    question = Question(FORGE.body, at=NOW, request=FORGE.request, nonce=FORGE.nonce)
    for odd in ODD:
        for value in WHERE[where](odd):
            data = cbor.encode(value)
            if data == GOOD:
                continue
            try:
                verify(data, question, POLICY)
            except (Rejected, NotChecked):
                continue


BOMBS = {
    "empty lists": b"\xa1\x09\x9a\x01\x00\x00\x00" + b"\x80" * (1 << 24),
    "empty maps": b"\xa1\x09\x9a\x01\x00\x00\x00" + b"\xa0" * (1 << 24),
    "lists of lists": b"\xa1\x09\x9a\x00\x80\x00\x00" + b"\x81\x80" * (1 << 23),
    "small texts": b"\xa1\x09\x9a\x00\x80\x00\x00" + b"\x61a" * (1 << 23),
    "a length beyond the end": b"\xa1\x09\x5b\x7f" + b"\xff" * 7 + bytes(1 << 20),
    "an indefinite length": b"\xa1\x09\x9f" + b"\x80" * (1 << 20),
    "tags": b"\xa1\x09" + b"\xc0" * (1 << 20),
}


@pytest.mark.parametrize("name", BOMBS)
def test_many_small_items_are_refused_before_they_are_made(name: str) -> None:
    with bounded(1, 40), pytest.raises(QuotaryError):
        Attestation.decode(BOMBS[name])


def test_an_attestation_of_every_event_that_a_log_may_have_is_read() -> None:
    support = replace(FORGE.attestation().supports[0], workload_log=(bytes(32),) * 16_384)
    attestation = replace(FORGE.attestation(), supports=(support,))
    assert len(Attestation.decode(attestation.encode()).supports[0].workload_log) == 16_384


def test_the_details_of_an_event_hold_no_lists_that_take_more_memory_than_bytes() -> None:
    fields = {0: KIND_EVENT, 1: 1, 2: "agent", 3: "a", 4: bytes(32), 5: {"a": [[]] * 1000}}
    with pytest.raises(QuotaryError, match="a detail is neither"):
        WorkloadEvent.decode(cbor.encode(fields))


def test_the_longest_log_replays_soon() -> None:
    events = [
        WorkloadEvent("model", f"m{number}", bytes(32), {"n": number}).encode() for number in range(16_383)
    ]
    log = [*events, separator(0, [content_digest(event) for event in events])]
    with bounded(5, 100):  # tracing costs a multiple of the time
        assert read_log(log).epoch == 0


BODIES = {
    "escaped quotes in a string that does not end": b'{"attestation":"' + b"[]" * 100 + b'\\"' * 100_000,
    "the same in an event": b'data: {"attestation":"' + b"[]" * 100 + b'\\"' * 100_000 + b"\n\n",
    "many lines that end the stream": b"data: [DONE]" * 100_000,
    "many opened objects": b'{"attestation":' * 100_000,
    "many spans": b'{"a":1' + b',"attestation":"AAAA"' * 50_000 + b"}",
    "many blank lines": b"attestation\n\n" * 100_000,
    "many carriage returns": b"data: attestation\r\n\r\n" * 50_000 + b"\r" * 100_000,
    "many numbers": b'{"attestation":' + b"1" * 1_000_000 + b"}",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_stripped_or_refused_in_linear_time(name: str) -> None:
    with bounded(3, 60), suppress(QuotaryError):
        strip(BODIES[name])


POLICIES = {
    "nested lists": HEAD + b"x = " + b"[" * 100_000,
    "nested tables": HEAD + b"x = " + b"{a = " * 100_000,
    "a number of many digits": HEAD + b"x = " + b"9" * 5_000,
    "a PCR of many digits": HEAD + b"[platform.pcrs]\n" + b"1" * 5_000 + b' = ["00"]',
    "a key of many parts": HEAD + b"a" + b".a" * 20_000 + b" = 1",
    "a key of many quoted parts": HEAD + b'"a,"' + b'."a,"' * 20_000 + b" = 1",
    "a key of many parts behind a string of lines": HEAD
    + b'x = { y = """\n""", a'
    + b".a" * 40_000
    + b" = 1 }",
    "a certificate of spaces": CA + b"-----BEGIN CERTIFICATE-----" + b" " * 500_000 + b'"""\n',
    "many certificates that do not end": CA + b"-----BEGIN CERTIFICATE-----\n" * 20_000 + b'"""\n',
    "no text": HEAD + b"\xff",
    "a surrogate": HEAD + b'description = "\\ud800"',
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_that_cannot_be_read_is_one_error_and_soon(name: str) -> None:
    with bounded(3, 60), pytest.raises(PolicyError):
        load_policy(POLICIES[name])


def test_dots_in_strings_are_no_keys() -> None:
    hosts = ", ".join(f'"gpu-{number}.dc.example.net"' for number in range(100))
    assert len(load_policy(FORGE.policy(f"hosts = [{hosts}]\n").encode()).authorities[0].hosts) == 100


def test_dots_in_remarks_are_no_keys() -> None:
    assert load_policy(FORGE.policy("# ignored: /var/lib/" + "a." * 100 + "\n").encode()).authorities


def test_a_history_file_holds_no_more_commits_than_it_may() -> None:
    commit = Commit(1, b"n", ()).encode()
    assert len(list(split(commit * 256))) == 256
    with pytest.raises(QuotaryError, match="more than 256"):
        list(split(commit * 257))
