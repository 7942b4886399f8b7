# SPDX-License-Identifier: Apache-2.0
"""One thread that does all work on one TPM connection.

An ESAPI object is not thread safe, and a TPM does one command at a time anyway. So each connection has one
thread and a queue; `await worker.run(job)` puts a job into the queue and returns its result. A job that is
running cannot be interrupted (the TPM would not stop either); when a TPM does not answer before the deadline
the worker is given up: its thread is left behind as a daemon, and every further job fails with TpmGone.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from quotary_attest.tpm.errors import TpmGone

T = TypeVar("T")

_Item = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class Worker:
    """A thread with a queue. `deadline` is in seconds and bounds the wait for one job, queueing included."""

    def __init__(self, *, deadline: float = 120.0) -> None:
        self._deadline = deadline
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._dead = False
        self._thread = threading.Thread(target=self._serve, name="quotary-tpm", daemon=True)
        self._thread.start()

    @property
    def dead(self) -> bool:
        """True once it was stopped or given up."""
        return self._dead

    async def run(self, job: Callable[[], T]) -> T:
        """Run `job` on the thread and return what it returns, or raise what it raises.

        Raises TpmGone when the worker is stopped or the deadline passes. A cancelled caller does not stop the
        job: it runs to its end, so that the TPM is never left between two commands by accident.
        """
        if self._dead:
            raise TpmGone("the connection to the tpm is closed", hint="reconnect first")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put((job, loop, future))
        try:
            done, _ = await asyncio.wait({future}, timeout=self._deadline)
            if done:
                return future.result()
        finally:
            future.cancel()  # does nothing to a future that is done
        self.stop()
        raise TpmGone(
            f"the tpm did not answer within {self._deadline:g} seconds",
            hint="see whether another program holds the tpm, and whether the device still works",
        )

    def stop(self) -> None:
        """End the thread after the jobs that are queued already. Returns at once; twice is fine."""
        if not self._dead:
            self._dead = True
            self._queue.put(None)

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            job, loop, future = item
            result, error = None, None
            try:
                result = job()
            except BaseException as caught:
                error = caught
            with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, future, result, error)
            del item, job, future, result, error


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    """Hand the outcome to a caller that may have been cancelled in the meantime."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
