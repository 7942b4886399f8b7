# SPDX-License-Identifier: Apache-2.0
"""The span that carries an attestation in band: its place, its form, and everything that is not it."""

from __future__ import annotations

import base64
import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quotary_verifier.errors import MalformedError
from quotary_verifier.wire.inband import insert, span_head, strip

A = b"attestation bytes"
B = base64.b64encode(A).decode()
CHUNK = b'data: {"id":"c-1","object":"chat.completion.chunk","created":17,"model":"m","choices":[]}\n\n'
SPAN = (
    b'data: {"id":"c-1","object":"chat.completion.chunk","created":17,"model":"m","choices":[],'
    b'"attestation":"' + B.encode() + b'"}\n\n'
)
DONE = b"data: [DONE]\n\n"


def test_the_span_of_a_stream_stands_byte_for_byte_before_done() -> None:
    assert insert(CHUNK + DONE, A) == CHUNK + SPAN + DONE
    assert strip(CHUNK + SPAN + DONE) == (CHUNK + DONE, A)


def test_a_stream_without_done_carries_the_span_at_its_end() -> None:
    assert insert(CHUNK, A) == CHUNK + SPAN
    assert strip(CHUNK + SPAN) == (CHUNK, A)


def test_the_span_of_a_json_object_stands_before_its_last_brace() -> None:
    assert insert(b'{"id":1}', A) == b'{"id":1,"attestation":"' + B.encode() + b'"}'
    assert (
        insert(b' {"id":{"a":[1]} \n}\r\n', A)
        == b' {"id":{"a":[1]} \n,"attestation":"' + B.encode() + b'"}\r\n'
    )
    assert strip(b' {"id":{"a":[1]} \n,"attestation":"' + B.encode() + b'"}\r\n') == (
        b' {"id":{"a":[1]} \n}\r\n',
        A,
    )


def test_raw_values_are_copied_as_written_from_the_last_chunk_that_has_all_four() -> None:
    old = b'data: {"id":"old","object":"o","created":1,"model":"m"}\n\n'
    raw = (
        b'data: { "model" :"\\u006d\\/x" ,"choices":[{"id":7}],"created": 1.50e1,'
        b'"object":null,"id":"\xc3\xa9"}\n\n'
    )
    usage = b'data: {"id":"no","created":2,"model":"m","choices":[],"usage":{"object":"x"}}\n\n'
    body = old + raw + usage + DONE
    span = (
        b'data: {"id":"\xc3\xa9","object":null,"created":1.50e1,"model":"\\u006d\\/x","choices":[],'
        b'"attestation":"' + B.encode() + b'"}\n\n'
    )
    assert insert(body, A) == old + raw + usage + span + DONE
    assert strip(old + raw + usage + span + DONE) == (body, A)


@pytest.mark.parametrize(
    "line",
    [
        b'data: {"id":1,"object":2,"created":3}',
        b'data: {"id":1,"object":2,"created":3,"model":4,"id":1}',
        b'data: {"id":1,"object":2,"created":3,"model":4,"i\\u0064":1}',
        b'data: {"id":[1],"object":2,"created":3,"model":4}',
        b'data: {"id":1,"object":2,"created":3,"model":{}}',
        b'data: {"id":1,"object":2,"created":3,"model":NaN}',
        b'data: {"id":01,"object":2,"created":3,"model":4}',
        b'data: {"id":1,"object":2,"created":3,"model":4,}',
        b'data: {"id":1,"object":2,"created":3,"model":4} x',
        b'data: {"id":1,"object":2,"created":3,"model":"\x01"}',
        b'data: {"id":1,"object":2,"created":3,"model":"\xff"}',
        b'data: {"id":1,\r"object":2,"created":3,"model":4}',
        b'data:{"id":1,"object":2,"created":3,"model":4}',
        b'data:  {"id":1,"object":2,"created":3,"model":4}',
        b' data: {"id":1,"object":2,"created":3,"model":4}',
        b'data: {"id":1,"object":2,"created":3,"model":4,"deep":' + b"[" * 64 + b"]" * 64 + b"}",
        b'data: {"id":1 "object":2,"created":3,"model":4}',
        b'data: {"id","object":2,"created":3,"model":4}',
        b"data: {id:1}",
    ],
)
def test_a_line_that_is_not_one_object_with_all_four_once_is_no_chunk(line: bytes) -> None:
    assert span_head(line) is None
    assert insert(line + b"\n\n" + DONE, A) is None


def test_a_chunk_of_exactly_the_allowed_depth_with_brackets_in_strings_is_one() -> None:
    deep = (
        b'data: {"id":1,"object":2,"created":3,"model":"[[\\"{{'
        + b"[" * 90
        + b'","deep":'
        + b"[" * 63
        + b"]" * 63
    )
    assert span_head(deep + b"}") is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        DONE,
        b"{}",
        b"{ }\n",
        b"[1]",
        b"plain text",
        CHUNK[:-1],
        CHUNK[:-2],
        CHUNK + b"data: x",
        CHUNK + b": open comment\n",
        b"data: {}\n\n" + DONE,
        b'{"a":1',
        b'{"a":1}}',
        b'{"a":1} {"b":2}',
        b'{"a":"\xff"}',
        b"{ not json }",
        b'{"a":1}\n\n' + CHUNK,
        b"\n{\n\n" + CHUNK + DONE,
    ],
)
def test_where_the_place_does_not_exist_there_is_no_in_band_form(body: bytes) -> None:
    assert insert(body, A) is None
    assert strip(body) == (body, None)


def test_streams_whose_lines_end_in_crlf_have_a_place_and_keep_their_bytes() -> None:
    body = CHUNK.replace(b"\n", b"\r\n") + DONE.replace(b"\n", b"\r\n")
    carried = CHUNK.replace(b"\n", b"\r\n") + SPAN + DONE.replace(b"\n", b"\r\n")
    assert insert(body, A) == carried
    assert strip(carried) == (body, A)


def test_streams_whose_lines_end_in_a_lone_carriage_return_have_no_place() -> None:
    body = (CHUNK + DONE).replace(b"\n", b"\r")
    assert insert(body, A) is None
    assert strip(body) == (body, None)


def test_data_without_a_space_is_neither_a_chunk_nor_the_done_line() -> None:
    assert insert((CHUNK + DONE).replace(b"data: ", b"data:"), A) is None
    mixed = CHUNK + b"data:[DONE]\n\n"
    assert insert(mixed, A) == mixed + SPAN


def test_only_the_first_done_at_the_start_of_an_event_marks_the_place() -> None:
    body = CHUNK + b": data: [DONE]\n" + DONE + CHUNK + b"data: [DONE]x\n\n" + DONE + DONE
    before = CHUNK + b": data: [DONE]\n" + DONE + CHUNK + b"data: [DONE]x\n\n"
    assert insert(body, A) == before + SPAN + DONE + DONE
    assert insert(CHUNK + b"data: [DONE]", A) == CHUNK + SPAN + b"data: [DONE]"
    assert insert(CHUNK + b"data: [DONE]\r", A) is None


@pytest.mark.parametrize(
    "body",
    [
        SPAN,
        SPAN + DONE,
        CHUNK + SPAN.replace(b'"c-1"', b'"c-2"') + DONE,
        CHUNK + SPAN.replace(b"17", b"17.0") + DONE,
        CHUNK + SPAN.replace(b": {", b":{") + DONE,
        CHUNK + SPAN.replace(b"[],", b"[], ") + DONE,
        CHUNK + SPAN.replace(b"attestation", b"\\u0061ttestation") + DONE,
        CHUNK + SPAN.replace(B.encode(), b"") + DONE,
        CHUNK + SPAN.replace(B.encode(), B.encode().rstrip(b"=")) + DONE,
        CHUNK + SPAN.replace(B.encode(), b"QR==") + DONE,
        CHUNK + SPAN.replace(B.encode(), b"Q-_=") + DONE,
        CHUNK + SPAN.replace(B.encode(), b"QU JD") + DONE,
        CHUNK + SPAN[:-3] + b',"x":1}\n\n' + DONE,
        CHUNK + SPAN[:-1] + b"\r\n" + DONE,
        CHUNK + SPAN + b"\n" + DONE,
        CHUNK + b": comment\n" + SPAN + DONE,
        CHUNK + b"event: attestation\n" + SPAN + DONE,
        CHUNK + b'data: {"attestation":"x"}\n\n' + DONE,
        CHUNK + b'data: {"attestation":1\ndata: ,"x":2}\n\n',
        CHUNK + b'data: {"attestation":1} broken\n\n',
        b'data:{"attestation":null}\n\n',
        b'{"id":1,"attestation":"' + B.encode() + b'" }',
        b'{"id":1, "attestation":"' + B.encode() + b'"}',
        b'{"id":1,"attestation": "' + B.encode() + b'"}',
        b'{"id":1,"attestation":null}',
        b'{"id":1,"attestation":""}',
        b'{"id":1,"attestation":"QR=="}',
        b'{"id":1,"attest\\u0061tion":"QUJD"}',
        b'{"attestation":"QUJD"}',
    ],
)
def test_anything_else_at_the_place_that_names_attestation_is_rejected(body: bytes) -> None:
    with pytest.raises(MalformedError, match="names attestation"):
        strip(body)


@pytest.mark.parametrize(
    "body",
    [
        CHUNK + SPAN + CHUNK + DONE,
        CHUNK + SPAN + b": keepalive\n\n" + DONE,
        CHUNK + DONE + SPAN,
        CHUNK + SPAN[:-1],
        CHUNK + b'data: {"choices":[{"delta":{"content":"attestation","attestation":1}}]}\n\n' + DONE,
        CHUNK + b'data: {"content":"\\"attestation\\":1"}\n\n' + DONE,
        CHUNK + b'data: ["attestation"]\n\n' + DONE,
        CHUNK + b"data: {attestation}\n\n" + DONE,
        CHUNK + b'other: {"attestation":1}\n\n' + DONE,
        b'{"attestation":"QUJD","id":1}',
        b'{"id":{"b":1,"attestation":"QUJD"}}',
        b'{"id":"x,\\"attestation\\":\\"QUJD\\""}',
        b'{"id":1,"attestation":"QUJD","b":"c"}',
        b'{"id":{"b":1,"attestation":"QUJD"}',
        b'[{"id":1,"attestation":"QUJD"}]',
    ],
)
def test_the_same_bytes_elsewhere_are_body(body: bytes) -> None:
    assert strip(body) == (body, None)


def test_a_body_that_carries_a_span_already_can_be_carried_again() -> None:
    for inner in (CHUNK + SPAN + DONE, CHUNK + SPAN, b'{"a":1,"attestation":"QUJD"}'):
        carried = insert(inner, b"outer")
        assert carried is not None
        assert strip(carried) == (inner, b"outer")


def test_an_empty_attestation_is_never_put_in() -> None:
    with pytest.raises(ValueError, match="1 to"):
        insert(CHUNK, b"")


fragments = st.sampled_from(
    [
        b"\n",
        b"\r\n",
        b"\r",
        b"\n\n",
        CHUNK,
        CHUNK.replace(b"\n", b"\r\n"),
        SPAN,
        DONE,
        b"data: [DONE]",
        b"data: ",
        b"data:",
        b"event: x\n",
        b"{",
        b"}",
        b'"',
        b'{"a":1}',
        b',"attestation":"QUJD"',
        b'{"id":1,"object":2,"created":3,"model":4}',
        b' {"\\u00e9": [1, {"b": null}]}',
        b"\xff",
        b" ",
        b": ping\n\n",
    ]
)
bodies = st.one_of(st.binary(max_size=60), st.lists(fragments, max_size=12).map(b"".join))
attestations = st.binary(min_size=1, max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


@given(body=bodies, attestation=attestations)
@example(body=CHUNK, attestation=b"\0")
@example(body=b'{"attestation":"QUJD"}', attestation=b"x")
def test_strip_undoes_insert_for_every_body(body: bytes, attestation: bytes) -> None:
    carried = insert(body, attestation)
    if carried is not None:
        assert strip(carried) == (body, attestation)


@given(
    value=st.dictionaries(st.text(max_size=8), json_values, min_size=1, max_size=4), ascii_only=st.booleans()
)
def test_every_json_object_with_a_member_has_a_place_and_stays_json(
    value: dict[str, object], ascii_only: bool
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    carried = insert(body, A)
    if not ascii_only and b"\xed" in body and carried is None:
        return  # an unpaired surrogate is not UTF-8
    assert carried is not None
    assert json.loads(carried) == {**value, "attestation": B}
    assert strip(carried) == (body, A)


@given(body=bodies)
def test_strip_leaves_a_body_alone_unless_it_takes_out_the_span_that_insert_puts_in(body: bytes) -> None:
    try:
        rest, attestation = strip(body)
    except MalformedError:
        assert b"attestation" in body
        return
    if attestation is None:
        assert rest == body
    else:
        assert insert(rest, attestation) == body


@pytest.mark.parametrize(
    "body",
    [
        b"data: {}\n" * 60_000 + b"\n",
        b"data: [DONE]" * 60_000,
        CHUNK + b"\n" * 600_000,
        CHUNK + b"\r\n" * 300_000 + b'data: {"attestation"' + b" " * 300_000 + b"\n\n",
        b'{"attestation":' + b"[" * 600_000,
        b'{"attestation":"' + b'\\"' * 300_000,
        b'{"attestation":' + b"1" * 600_000 + b',"a":' + b"[]," * 10 + b"}",
        b'{"a"' + b' ,"attestation":"' * 40_000 + b'"}',
        b" " * 600_000,
    ],
)
def test_hostile_bodies_are_read_in_linear_time(body: bytes) -> None:
    start = time.process_time()
    assert strip(body) == (body, None)
    insert(body, A)
    assert time.process_time() - start < 3
