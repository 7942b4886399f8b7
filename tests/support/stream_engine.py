# SPDX-License-Identifier: Apache-2.0
"""A model server in a process of its own that streams without end, to be killed.

    python stream_engine.py

prints the port that it listens on.
"""

from __future__ import annotations

import asyncio

from scripted_engine import Call, delta_event, scripted_engine


async def stream(call: Call) -> None:
    """Write a word every few milliseconds."""
    await call.begin_stream()
    while True:
        await call.chunk(delta_event("word "))
        await asyncio.sleep(0.002)


async def main() -> None:
    """Serve until killed."""
    async with scripted_engine(stream) as engine:
        print(engine.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
