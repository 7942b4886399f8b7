# SPDX-License-Identifier: Apache-2.0
"""What official clients sent and got, byte for byte, and its verification with nothing but the public verifier."""

from __future__ import annotations

import secrets
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx2

from quotary_verifier import Policy, Question, Verdict, strip, verify


@dataclass
class Exchange:
    """One request and its answer."""

    nonce: bytes
    request: bytes
    status: int
    headers: dict[str, str]
    """Of the answer; names are lower case."""
    body: bytearray = field(default_factory=bytearray)

    def attestation(self, proxy: str) -> tuple[bytes, bytes]:
        """Return the attested body and its attestation: out of the body, or by id where it is not in it."""
        body, attestation = strip(bytes(self.body))
        if attestation is None:
            url = f"{proxy}/quotary/v1/attestations/{self.headers['quotary-output']}"
            with urllib.request.urlopen(url, timeout=30) as answer:
                attestation = answer.read()
        return body, attestation

    def verify(self, proxy: str, policy: Policy) -> Verdict:
        """Verify the answer against its request and its nonce."""
        assert "quotary-attested" not in self.headers
        body, attestation = self.attestation(proxy)
        question = Question(body, at=int(time.time()), request=self.request, nonce=self.nonce)
        return verify(attestation, question, policy)


class _KeptStream(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream, body: bytearray) -> None:
        self._stream, self._body = stream, body
        self._pieces = iter(stream)

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self._body += piece
            yield piece

    def close(self) -> None:
        # a client stops at [DONE]; what stands after it belongs to the body, too
        for piece in self._pieces:
            self._body += piece
        self._stream.close()


class KeepingTransport(httpx2.HTTPTransport):
    """A transport that adds a nonce to each request and keeps every exchange, the newest last."""

    def __init__(self) -> None:
        super().__init__(trust_env=False)
        self.exchanges: list[Exchange] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request on."""
        nonce = secrets.token_bytes(16)
        request.headers["Quotary-Nonce"] = nonce.hex()
        answer = super().handle_request(request)
        headers = {name.lower(): value for name, value in answer.headers.items()}
        kept = Exchange(nonce, request.read(), answer.status_code, headers)
        self.exchanges.append(kept)
        assert isinstance(answer.stream, httpx2.SyncByteStream)
        answer.stream = _KeptStream(answer.stream, kept.body)
        return answer
