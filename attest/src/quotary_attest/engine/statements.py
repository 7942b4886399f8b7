# SPDX-License-Identifier: Apache-2.0
"""Statements: what the host promises of its answers, as records in its log (docs/spec/records.md, "Statement")."""

from __future__ import annotations

import asyncio

from quotary_attest.engine.errors import StartRefused, UnknownOutput
from quotary_attest.engine.host import Host
from quotary_attest.engine.loop import Engine
from quotary_attest.engine.outputs import Leaves
from quotary_attest.engine.stored import STATEMENT, Stored
from quotary_verifier.wire.declaration import Declaration
from quotary_verifier.wire.limits import MAX_TEXT
from quotary_verifier.wire.records import SALT_BYTES, Statement


async def declare(host: Host, engine: Engine, stored: Stored, declaration: Declaration) -> None:
    """Commit a statement, unless the newest one says the same; it is published when this returns.

    Raises:
        Unavailable: nothing can be attested now.
        Busy: too many wait already.
        StartRefused: the text is too long for a record.
    """
    text = declaration.text
    size = len(text.encode())
    if size > MAX_TEXT:
        raise StartRefused(
            f"the statement of which paths are attested would have {size} bytes, {MAX_TEXT} are allowed",
            hint="name fewer paths: a segment * stands for any one segment",
        )
    try:
        newest, _ = await asyncio.to_thread(stored.statement)
        if newest.text == text:
            return
    except UnknownOutput:
        if not declaration.services:
            return  # nothing was promised, and nothing is
    moment = host.world.now()
    leaves = Leaves()
    leaves.add_public(Statement(host.world.random(SALT_BYTES), moment, text).encode(), moment, STATEMENT)

    async def commit() -> None:
        await engine.committer.make(engine.committer.plan(leaves))

    await engine.between(commit)
