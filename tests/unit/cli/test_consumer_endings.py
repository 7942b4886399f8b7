# SPDX-License-Identifier: Apache-2.0
"""A relay invents a stream and ends it as it likes: no client takes it for a whole one before there is a verdict."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from forge import NOW, Forge
from hypothesis import given
from hypothesis import strategies as st

from quotary import AttestationRejected, Checks, exchange
from quotary.endings import Endings
from quotary.openai import OpenAI

ID = {"Quotary-Output": "out_" + bytes(range(24)).hex()}
CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
HOST = Forge(body=CHUNK + b"data: [DONE]\n\n")
REST = b": never read\n\n"
ENDS = {
    "as ever": b"data: [DONE]\n\n",
    "without the space": b"data:[DONE]\n\n",
    "with more behind it": b"data: [DONE] x\n\n",
    "after a comment": b": x\ndata: [DONE]\n\n",
    "with a name": b"event: x\ndata: [DONE]\n\n",
    "with an id": b"id: 1\r\ndata: [DONE]\n\n",
    "in lines of CR": b": x\rdata: [DONE]\r\r: x\n\n",
    "with a blank line of another kind": b": x\r\n\rdata: [DONE]\n\n",
    "after bytes that are no event": b"x\n\xef\xbb\xbfdata: [DONE]\ndata: [DONE]\r\rdata:[DONE]\n\n",
}


@pytest.mark.parametrize("kind", ["text/event-stream", "text/plain", "application/octet-stream"])
@pytest.mark.parametrize("end", ENDS)
def test_whatever_the_official_client_takes_for_the_end_waits_for_the_verdict(end: str, kind: str) -> None:
    fetched = HOST.attestation().encode()

    def relay(request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            return httpx2.Response(200, content=iter([fetched]))
        body = CHUNK.replace(b'"m"', b'"evil"') + ENDS[end] + REST
        return httpx2.Response(200, headers={"Content-Type": kind} | ID, content=iter([body]))

    checks = Checks(HOST.policy(), clock=lambda: NOW, request=False)
    below = httpx2.Client(transport=httpx2.MockTransport(relay))
    client = OpenAI(
        base_url="https://h.example/v1", api_key="k", policy=checks, http_client=below, max_retries=0
    )
    with client.chat.completions.create(model="m", messages=[], stream=True) as stream:
        with pytest.raises(AttestationRejected):
            list(stream)
        assert exchange(stream).done


NAMES: dict[str, bytes] = {
    "an event's name": b"event: response.completed\ndata: {}\n\n",
    "only the type": b'data: {"type":"message_stop"}\n\n',
    "spelled with escapes": b'data: {"type":"response.\\u0066ailed"}\n\n',
    "over two lines": b'data: {"type":\ndata: "response.incompl\\u0065te"}\n\n',
}


@pytest.mark.parametrize("last", [*ENDS.values(), *NAMES.values()])
def test_nothing_of_the_last_event_goes_out_however_it_is_cut(last: bytes) -> None:
    @given(st.sets(st.integers(1, 400)))
    def pieces(cuts: set[int]) -> None:
        body, out, watch = CHUNK * 3 + last + REST, b"", Endings()
        ends = sorted({cut for cut in cuts if cut < len(body)} | {len(body)})
        for start, end in zip([0, *ends], ends, strict=False):
            piece = body[start:end]
            out += piece[: watch.allowed(piece)]
        assert body.startswith(out)
        assert not any(word in out for word in (b"[DONE]", b"message_stop", b"completed", b"ailed", b'te"}'))

    pieces()


@given(
    st.lists(st.sampled_from([CHUNK, b"data: [DON", b"response.", b"message", b"\n", b"\\u0066"]), max_size=9)
)
def test_all_else_goes_out_at_once(pieces: list[bytes]) -> None:
    watch: Any = Endings()
    assert [watch.allowed(piece) for piece in pieces] == [len(piece) for piece in pieces]
