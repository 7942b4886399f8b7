# SPDX-License-Identifier: Apache-2.0
"""The official OpenAI client, whose every answer is verified.

::

    client = OpenAI(base_url="https://gpu-07.example.net/v1", policy="policy.toml")

Everything else is as in `openai`: these are its classes, with verification below them. An answer that is not attested
as the policy demands raises `quotary.AttestationError`, which is not retried; attempts that the client repeats for
other reasons have a nonce each. A stream is handed through as it comes and raises at its end, before its last event.
WebSockets (`realtime`) do not pass here and are not verified.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypedDict, Unpack

try:
    import httpx2
    import openai
except ImportError as error:
    raise ImportError("quotary.openai needs the official client: pip install 'quotary[openai]'") from error

from quotary.answers import attach
from quotary.checks import Checks, PolicySource
from quotary.httpx2 import AsyncVerifyingTransport, VerifyingTransport
from quotary.judge import Judge

__all__ = ["AsyncOpenAI", "OpenAI"]

if not issubclass(openai.DefaultHttpxClient, httpx2.Client):
    raise ImportError(
        f"openai {openai.__version__} does not stand on httpx2: take a later one, or quotary.httpx below it"
    )


class Options(TypedDict, total=False):
    """What `openai.OpenAI` takes besides; its documentation says what each is."""

    api_key: Any
    admin_api_key: str | None
    workload_identity: Any
    organization: str | None
    project: str | None
    webhook_secret: str | None
    provider: Any
    base_url: Any
    data_residency: Any
    websocket_base_url: str | httpx2.URL | None
    timeout: float | httpx2.Timeout | openai.NotGiven | None
    max_retries: int
    default_headers: Mapping[str, str] | None
    default_query: Mapping[str, object] | None
    _strict_response_validation: bool
    _enforce_credentials: bool


class _Client(httpx2.Client):
    """A client that verifies, and by whose type the wrapper knows that it does."""

    def __init__(self, judge: Judge, below: httpx2.Client | None) -> None:
        self._owned = below is None
        below = openai.DefaultHttpxClient() if below is None else below
        super().__init__(
            transport=VerifyingTransport(judge, below),
            timeout=below.timeout,
            follow_redirects=True,
            headers=below.headers,
            cookies=below.cookies,
            params=below.params,
        )

    def __del__(self) -> None:
        if self._owned and not self.is_closed:  # a client of the caller's is the caller's to close
            self.close()


class _AsyncClient(httpx2.AsyncClient):
    """As `_Client`."""

    def __del__(self) -> None:
        if self._owned and not self.is_closed:  # a client of the caller's is the caller's to close
            with suppress(RuntimeError):  # no loop runs any more, and nothing can be closed
                self._closing = asyncio.get_running_loop().create_task(self.aclose())

    def __init__(self, judge: Judge, below: httpx2.AsyncClient | None) -> None:
        self._owned = below is None
        below = openai.DefaultAsyncHttpxClient() if below is None else below
        super().__init__(
            transport=AsyncVerifyingTransport(judge, below),
            timeout=below.timeout,
            follow_redirects=True,
            headers=below.headers,
            cookies=below.cookies,
            params=below.params,
        )


class OpenAI(openai.OpenAI):
    """`openai.OpenAI` with a policy: a path, a text, a loaded policy, or `quotary.Checks`.

    `http_client` keeps its proxies, certificates and limits. Copies (`with_options`) verify as well.

    Raises:
        PolicyError: on construction, if the policy cannot be used.
    """

    def __init__(
        self,
        *,
        policy: Checks | PolicySource | None = None,
        http_client: httpx2.Client | None = None,
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(http_client, _Client):
            http_client = _Client(_judge(policy), http_client)
        super().__init__(http_client=http_client, **options)

    # Only so that `verdict` knows what was made of which response; the verification is the transport's.
    def _process_response(self, **given: Any) -> Any:
        answer = super()._process_response(**given)
        attach(answer, given["response"])
        return answer


class AsyncOpenAI(openai.AsyncOpenAI):
    """As `OpenAI`, asynchronous.

    Raises:
        PolicyError: on construction, if the policy cannot be used.
    """

    def __init__(
        self,
        *,
        policy: Checks | PolicySource | None = None,
        http_client: httpx2.AsyncClient | None = None,
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(http_client, _AsyncClient):
            http_client = _AsyncClient(_judge(policy), http_client)
        super().__init__(http_client=http_client, **options)

    async def _process_response(self, **given: Any) -> Any:
        answer = await super()._process_response(**given)
        attach(answer, given["response"])
        return answer


def _judge(policy: Checks | PolicySource | None) -> Judge:
    if policy is None:
        raise TypeError("a policy must be given: without one there is nothing to verify against")
    return Judge(policy)
