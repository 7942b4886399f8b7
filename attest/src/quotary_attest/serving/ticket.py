# SPDX-License-Identifier: Apache-2.0
"""One output's way to its attestation: announced before the engine answers, then submitted once or abandoned."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from quotary_attest.engine.outputs import Delivered, NewOutput
from quotary_attest.enginelink import Tie
from quotary_attest.serving.aliases import alias_of
from quotary_attest.serving.attester import Attester
from quotary_attest.serving.refusals import logger
from quotary_verifier.wire.attestation import REQUEST_KEY_BYTES
from quotary_verifier.wire.bindings import request_commitment
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.records import ContextValue, Source, State

_LONG_BODY = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Account:
    """What a record says of an answer: how it ended, its digests, its HTTP status, and what the engine stated.

    `upstream_id` is the engine's own id of the answer, under which it can be found, too.
    """

    state: State
    digests: Mapping[str, bytes]
    status: int
    facts: Mapping[str, ContextValue] = field(default_factory=dict)
    upstream_id: str | None = None


class Recorder:
    """Hands outputs to the agent in tasks of its own, which a client that goes away does not cancel."""

    def __init__(self, attester: Attester, source: Source = Source.RELAYED) -> None:
        """`source` is how the outputs were got: relayed by the proxy, or reported by middleware."""
        self.attester = attester
        self.source = source
        self.cut: Exception | None = None
        """Set where the agent stops and waits no longer: why running answers are broken off."""
        self._tasks: set[asyncio.Task[Delivered]] = set()

    @property
    def outage(self) -> Exception | None:
        """Why nothing can be attested now; None while something can."""
        return self.cut or self.attester.outage

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

    __slots__ = (
        "_alias", "_commitment", "_context", "_credential", "_ended", "_model", "_nonce", "_recorder", "_used",
        "key", "output_id", "tie",
    )  # fmt: skip

    def __init__(
        self,
        recorder: Recorder,
        *,
        model: str | None,
        context: Mapping[str, ContextValue],
        credential: str = "",
    ) -> None:
        """Make the output's id and the request key.

        `context` is what the host states of it, to which the engine's own statements are added at its end;
        `credential` is what the client identified itself by (`aliases.credential_of`).
        """
        self._recorder = recorder
        self._model = model
        self._nonce: bytes | None = None
        self._context = context
        self._credential = credential
        self._commitment: bytes | None = None
        self._alias: bytes | None = None
        self._used = True
        self._ended = False
        self.key = secrets.token_bytes(REQUEST_KEY_BYTES)
        """The request key, 32 bytes: what is derived from the request is committed to under it."""
        self.output_id = recorder.attester.new_output_id()
        self.tie: Tie | None = None
        """What was checked of the engine that answers; None while nothing was."""

    @property
    def text(self) -> str:
        """The output id as it stands in the header."""
        return format_output_id(self.output_id)

    async def announce(self, request_body: bytes, nonce: bytes | None) -> None:
        """Commit to the request and let `fetch` wait for the output. Raises Unavailable."""
        if (outage := self._recorder.outage) is not None:
            raise outage
        if len(request_body) > _LONG_BODY:
            commitment = await asyncio.to_thread(request_commitment, self.key, request_body)
        else:
            commitment = request_commitment(self.key, request_body)
        self.announce_committed(commitment, nonce)

    def announce_committed(self, commitment: bytes, nonce: bytes | None) -> None:
        """Do the same for a request that was committed to under `key` as it passed. Raises Unavailable, Busy."""
        if (outage := self._recorder.outage) is not None:
            raise outage
        self._nonce, self._commitment = nonce, commitment
        self._recorder.attester.reserve(self.output_id)
        self._used = False

    @property
    def open(self) -> bool:
        """True between the announcement and the submission or abandonment."""
        return not self._used

    @property
    def outage(self) -> Exception | None:
        """Why nothing can be attested now, whatever the output becomes; None while something can."""
        return self._recorder.outage

    @property
    def cut(self) -> bool:
        """True where the agent itself breaks answers off: one that ends now has not lost its client."""
        return self._recorder.cut is not None

    def known_as(self, upstream_id: str) -> None:
        """Let whoever has the client's credential find the output by the engine's own id, from now on."""
        attester = self._recorder.attester
        self._alias = alias_of(attester.alias_secret, self._credential, upstream_id)
        if self.open:
            attester.announce_alias(self._alias, self.output_id)

    async def attest(self, account: Account) -> bytes:
        """Submit the output and return its attestation. A cancelled caller leaves the submission running.

        Raises the agent's errors.
        """
        delivered = await asyncio.shield(self.record(account))
        return delivered.encoded

    async def hand_in(self, account: Account) -> None:
        """Submit the output and return as soon as the agent has not refused it.

        Raises the agent's errors where they are known at once.
        """
        if (outage := self.outage) is not None:
            raise outage
        task = self.record(account)
        await asyncio.sleep(0)  # the task's first step, which puts the output into the agent's queue
        if task.done():
            task.result()

    def record(self, account: Account) -> asyncio.Task[Delivered]:
        """Submit the output without waiting for its commit."""
        if self._used:
            raise RuntimeError("this output was submitted or abandoned before")
        self._used = self._ended = True
        if account.upstream_id is not None and self._alias is None:
            self.known_as(account.upstream_id)
        output = NewOutput(
            self.output_id,
            account.digests,
            account.state,
            self._commitment,
            self.key,
            self._nonce,
            self._model,
            {**self._context, **account.facts, "status": account.status},
            self._recorder.source,
            self._alias,
            None if self.tie is None else self.tie.link,
        )
        ended = account.state.name.lower().replace("_", "-")
        logger.info("output %s ends in state %s, status %d", self.text, ended, account.status)
        return self._recorder.start(self._recorder.attester.submit(output))

    def abandon(self) -> None:
        """Say that there will be no such output, unless it was submitted: announced or not, its id is used up."""
        if not self._ended:
            self._used = self._ended = True
            self._recorder.attester.abandon(self.output_id)
