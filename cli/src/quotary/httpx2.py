# SPDX-License-Identifier: Apache-2.0
"""Verification for every client of httpx2: a transport that checks each answer.

::

    client = httpx2.Client(transport=VerifyingTransport("policy.toml"))
    answer = client.post("https://gpu-07.example.net/v1/chat/completions", json=...)
    quotary.verdict(answer).claims

`transport` may be a transport or a client of httpx2: its proxies, certificates and limits then apply.
"""

from __future__ import annotations

import httpx2

from quotary.checks import Checks, PolicySource
from quotary.judge import Judge
from quotary.transports import AsyncCheckedStream, AsyncChecking, CheckedStream, SyncChecking


class _Stream(CheckedStream, httpx2.SyncByteStream):
    pass


class _AsyncStream(AsyncCheckedStream, httpx2.AsyncByteStream):
    pass


class VerifyingTransport(SyncChecking, httpx2.BaseTransport):
    """A transport that verifies answers against `policy` and raises `AttestationError` in place of others.

    Raises:
        PolicyError: on construction, if the policy cannot be used.
    """

    module = httpx2
    stream_type = _Stream

    def __init__(
        self,
        policy: Checks | PolicySource | Judge,
        transport: httpx2.BaseTransport | httpx2.Client | None = None,
    ) -> None:
        super().__init__(policy, httpx2.HTTPTransport() if transport is None else transport)


class AsyncVerifyingTransport(AsyncChecking, httpx2.AsyncBaseTransport):
    """As `VerifyingTransport`, for asynchronous clients.

    Raises:
        PolicyError: on construction, if the policy cannot be used.
    """

    module = httpx2
    stream_type = _AsyncStream

    def __init__(
        self,
        policy: Checks | PolicySource | Judge,
        transport: httpx2.AsyncBaseTransport | httpx2.AsyncClient | None = None,
    ) -> None:
        super().__init__(policy, httpx2.AsyncHTTPTransport() if transport is None else transport)
