# SPDX-License-Identifier: Apache-2.0
"""One proxy worker, as a process: `python -m quotary_attest.serving.worker`. Only an agent starts it.

It never outlives its agent: where the serving link is lost it stops listening, and its answers end in errors.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import signal
import socket
import sys
from contextlib import suppress
from typing import Final

from quotary_attest.serving.link.client import RemoteAttester
from quotary_attest.serving.proxy import Proxy
from quotary_attest.serving.workers import READY, WorkerSpec

_LINK_SECONDS: Final = 20.0
_ORPHAN_SECONDS: Final = 1.0
_MAX_SPEC: Final = 16 * 1024 * 1024


async def work(spec: WorkerSpec) -> bool:
    """Serve until SIGTERM, or until the agent is gone; tell whether it came up."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with RemoteAttester(socket.socket(fileno=spec.link)) as attester:
        if not await attester.ready(_LINK_SECONDS):
            return False
        proxy = Proxy(attester, spec.proxy)
        await proxy.__aenter__()
        try:
            await proxy.listen_on(socket.socket(fileno=spec.listener))
            sys.stdout.buffer.write(READY)
            sys.stdout.buffer.flush()
            waiting = [asyncio.create_task(event.wait()) for event in (stop, attester.gone)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(_ORPHAN_SECONDS if attester.gone.is_set() else None):
                    await proxy.__aexit__(None, None, None)
    return True


def main() -> int:
    """Read what to do from standard input, written by the agent that started this process, and do it."""
    spec = pickle.loads(sys.stdin.buffer.read(_MAX_SPEC))  # noqa: S301 - our own agent's, over a pipe of its own
    assert isinstance(spec, WorkerSpec)
    logging.basicConfig(
        stream=sys.stderr, level=spec.log_level, format="%(levelname)s %(name)s worker: %(message)s"
    )
    try:
        return 0 if asyncio.run(work(spec)) else 1
    except (OSError, ValueError) as error:
        logging.error("the worker cannot serve: %s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
