# SPDX-License-Identifier: Apache-2.0
"""What agents do that kill themselves at a named crash point."""

from __future__ import annotations

import asyncio
import os
import signal
from hashlib import sha256

from quotary_attest.agent import Agent, NewOutput
from quotary_verifier.wire.declaration import Declaration, Service

TOLD = Declaration.of([Service(("/v1/chat/completions",))])


class Crash:
    """Counts one crash point and ends the process at it."""

    def __init__(self, point: str, skip: int) -> None:
        self._point = point
        self._starting = skip < 0
        self._left = -1 - skip if self._starting else skip
        self.started = False

    def __call__(self, name: str) -> None:
        if name != self._point or not (self._starting or self.started):
            return
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


async def attest_all(agent: Agent, bodies: int) -> None:
    """Attest that many outputs one after another, or none and a statement; then close."""
    if not bodies:
        await agent.declare(TOLD)
    for number in range(bodies):
        body = sha256(b"output %d" % number).digest()
        delivered = await agent.submit(NewOutput(agent.new_output_id(), {"body": body}, alias=body))
        print(delivered.encoded.hex(), flush=True)
    while agent.store.unsynced or agent.store.applied < agent.store.size:  # noqa: ASYNC110
        await asyncio.sleep(0.005)  # an idle agent syncs by itself
    await agent.close()
