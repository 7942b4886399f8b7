# SPDX-License-Identifier: Apache-2.0
"""Verification for every client of httpx: a transport that checks each answer.

::

    client = httpx.Client(transport=VerifyingTransport("policy.toml"))
    answer = client.post("https://gpu-07.example.net/v1/chat/completions", json=...)
    quotary.verdict(answer).claims

`transport` may be a transport or a client of httpx: its proxies, certificates and limits then apply.
"""

from __future__ import annotations

import httpx

from quotary.checks import Checks, PolicySource
from quotary.judge import Judge
from quotary.transports import AsyncCheckedStream, AsyncChecking, CheckedStream, SyncChecking


class _Stream(CheckedStream, httpx.SyncByteStream):
    pass


class _AsyncStream(AsyncCheckedStream, httpx.AsyncByteStream):
    pass


class VerifyingTransport(SyncChecking, httpx.BaseTransport):
    """A transport that verifies answers against `policy` and raises `AttestationError` in place of others.

    Raises:
        PolicyError: on construction, if the policy cannot be used.
    """

    module = httpx
    stream_type = _Stream

    def __init__(
        self,
        policy: Checks | PolicySource | Judge,
        transport: httpx.BaseTransport | httpx.Client | None = None,
    ) -> None:
        super().__init__(policy, httpx.HTTPTransport() if transport is None else transport)


class AsyncVerifyingTransport(AsyncChecking, httpx.AsyncBaseTransport):
    """As `VerifyingTransport`, for asynchronous clients.

    Raises:
        PolicyError: on construction, if the policy cannot be used.
    """

    module = httpx
    stream_type = _AsyncStream

    def __init__(
        self,
        policy: Checks | PolicySource | Judge,
        transport: httpx.AsyncBaseTransport | httpx.AsyncClient | None = None,
    ) -> None:
        super().__init__(policy, httpx.AsyncHTTPTransport() if transport is None else transport)
