# SPDX-License-Identifier: Apache-2.0
"""One output's way to its attestation: announced before the engine answers, then submitted once or abandoned."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Mapping
from typing import Any

from quotary_attest.engine.outputs import Delivered, NewOutput
from quotary_attest.serving.attester import Attester
from quotary_attest.serving.refusals import logger
from quotary_verifier.wire.attestation import REQUEST_KEY_BYTES
from quotary_verifier.wire.bindings import request_commitment
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.records import ContextValue, Source, State

_MAX_TOKENS = 1 << 53
_COUNTS = ("prompt_tokens", "completion_tokens")
_LONG_BODY = 1024 * 1024


class Recorder:
    """Hands outputs to the agent in tasks of its own, which a client that goes away does not cancel."""

    def __init__(self, attester: Attester) -> None:
        self.attester = attester
        self._tasks: set[asyncio.Task[Delivered]] = set()

    def start(self, work: Coroutine[Any, Any, Delivered]) -> asyncio.Task[Delivered]:
        """Run `work`; its failure is noted, never raised out of a task that nobody waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Delivered]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            logger.warning("an output was not attested: %s", type(error).__name__)

    async def close(self) -> None:
        """Wait until everything that was handed in has been answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)


class Ticket:
    """What is known of one output before its bytes are."""

    __slots__ = ("_commitment", "_context", "_key", "_model", "_nonce", "_recorder", "_used", "output_id")

    def __init__(self, recorder: Recorder, *, model: str | None, context: dict[str, ContextValue]) -> None:
        """Make the output's id. `context` is what the host states of it; token counts are added at its end."""
        self._recorder = recorder
        self._model = model
        self._nonce: bytes | None = None
        self._context = context
        self._key = secrets.token_bytes(REQUEST_KEY_BYTES)
        self._commitment: bytes | None = None
        self._used = True
        self.output_id = recorder.attester.new_output_id()

    @property
    def text(self) -> str:
        """The output id as it stands in the header."""
        return format_output_id(self.output_id)

    async def announce(self, request_body: bytes, nonce: bytes | None) -> None:
        """Commit to the request and let `fetch` wait for the output. Raises Unavailable."""
        if (outage := self._recorder.attester.outage) is not None:
            raise outage
        self._nonce = nonce
        if len(request_body) > _LONG_BODY:
            self._commitment = await asyncio.to_thread(request_commitment, self._key, request_body)
        else:
            self._commitment = request_commitment(self._key, request_body)
        self._recorder.attester.reserve(self.output_id)
        self._used = False

    @property
    def open(self) -> bool:
        """True between the announcement and the submission or abandonment."""
        return not self._used

    @property
    def outage(self) -> Exception | None:
        """Why nothing can be attested now, whatever the output becomes; None while something can."""
        return self._recorder.attester.outage

    async def attest(
        self, state: State, digests: Mapping[str, bytes], usage: Mapping[str, Any], status: int
    ) -> bytes:
        """Submit the output and return its attestation. A cancelled caller leaves the submission running.

        Raises the agent's errors.
        """
        delivered = await asyncio.shield(self.record(state, digests, usage, status))
        return delivered.encoded

    def record(
        self, state: State, digests: Mapping[str, bytes], usage: Mapping[str, Any], status: int
    ) -> asyncio.Task[Delivered]:
        """Submit the output without waiting for its commit."""
        if self._used:
            raise RuntimeError("this output was submitted or abandoned before")
        self._used = True
        counts = {name: usage[name] for name in _COUNTS if _is_count(usage.get(name))}
        output = NewOutput(
            self.output_id,
            digests,
            state,
            self._commitment,
            self._key,
            self._nonce,
            self._model,
            {**self._context, **counts, "status": status},
            Source.RELAYED,
        )
        logger.info("output %s ends in state %d, status %d", self.text, state, status)
        return self._recorder.start(self._recorder.attester.submit(output))

    def abandon(self) -> None:
        """Take the announcement back if nothing was submitted."""
        if not self._used:
            self._used = True
            self._recorder.attester.abandon(self.output_id)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_TOKENS
