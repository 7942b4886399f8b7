# SPDX-License-Identifier: Apache-2.0
"""A ticket is used once, and its submission outlives whoever asked for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from memory_attester import GONE, MemoryAttester

from quotary_attest.log.errors import StorageFailed
from quotary_attest.serving.errors import refusal_of
from quotary_attest.serving.formats.openai import Chat
from quotary_attest.serving.ticket import Account, Recorder, Ticket
from quotary_verifier.wire.records import State

DIGESTS = {"body": bytes(32)}
ENDED = Account(State.COMPLETE, DIGESTS, 200)


async def test_an_output_is_submitted_once_and_not_abandoned_after() -> None:
    attester = MemoryAttester()
    ticket = Ticket(Recorder(attester), model=None, context={})
    with pytest.raises(RuntimeError, match="before"):
        ticket.record(ENDED)
    await ticket.announce(b"{}", None)
    assert await ticket.attest(ENDED) == attester.attestations[ticket.output_id]
    with pytest.raises(RuntimeError, match="before"):
        ticket.record(ENDED)
    ticket.abandon()
    assert attester.abandoned == set()


@pytest.mark.parametrize("count", [-1, 1.5, True, "7", 1 << 53, None])
async def test_token_counts_that_are_none_are_left_out_of_the_context(count: object) -> None:
    attester = MemoryAttester()
    ticket = Ticket(Recorder(attester), model=None, context={"endpoint": "/x"})
    await ticket.announce(b"{}", None)
    meaning = Chat(ticket.key)
    meaning.whole({"usage": {"prompt_tokens": count, "completion_tokens": 3}})
    await ticket.attest(replace(ENDED, facts=meaning.facts()))
    assert attester.outputs[ticket.output_id].context == {
        "endpoint": "/x",
        "completion_tokens": 3,
        "status": 200,
    }


async def test_a_submission_outlives_its_caller_and_closing_waits_for_it() -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    recorder = Recorder(attester)
    ticket = Ticket(recorder, model=None, context={})
    await ticket.announce(b"{}", None)
    caller = asyncio.create_task(ticket.attest(ENDED))
    await attester.until_submitted(1)
    caller.cancel()
    closing = asyncio.create_task(recorder.close())
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not closing.done()
    attester.gate.set()
    await closing
    assert ticket.output_id in attester.outputs


async def test_nothing_is_handed_in_while_the_agent_says_that_it_cannot_attest() -> None:
    """An agent behind a link refuses late; what it said before counts at once."""
    attester = MemoryAttester()
    attester.gate.clear()
    ticket = Ticket(Recorder(attester), model=None, context={})
    await ticket.announce(b"{}", None)
    attester.failure = GONE
    with pytest.raises(type(GONE)):
        await ticket.hand_in(ENDED)
    assert attester.submitted == 0
    ticket.abandon()
    assert attester.abandoned == {ticket.output_id}


async def test_a_submission_that_fails_or_is_cancelled_unheard_is_noted_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    attester = MemoryAttester()
    recorder = Recorder(attester)
    for failure in (GONE, None):
        ticket = Ticket(recorder, model=None, context={})
        await ticket.announce(b"{}", None)
        attester.failure = failure
        task = ticket.record(Account(State.CLIENT_GONE, DIGESTS, 200))
        if failure is None:
            task.cancel()
        await recorder.close()
        attester.failure = None
    assert "not attested: Unavailable" in caplog.text


def test_a_log_that_cannot_be_read_is_unavailable() -> None:
    assert refusal_of(StorageFailed("disk")).status == 503
