# SPDX-License-Identifier: Apache-2.0
"""One thread does all work on a TPM connection, in order, and is given up when it hangs."""

from __future__ import annotations

import asyncio
import threading

import pytest

from quotary_attest.tpm.errors import TpmGone
from quotary_attest.tpm.worker import Worker


async def test_jobs_run_on_one_thread_in_the_order_of_the_calls() -> None:
    worker = Worker()
    done: list[int] = []
    threads = await asyncio.gather(
        *(worker.run(lambda step=step: (done.append(step), threading.get_ident())[1]) for step in range(20))
    )
    worker.stop()
    assert done == list(range(20))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_an_error_of_a_job_reaches_its_caller_and_no_other() -> None:
    worker = Worker()

    def fail() -> None:
        raise ValueError("this job alone")

    failed, fine = await asyncio.gather(worker.run(fail), worker.run(lambda: 7), return_exceptions=True)
    worker.stop()
    assert isinstance(failed, ValueError)
    assert fine == 7


async def test_a_cancelled_caller_does_not_stop_the_job() -> None:
    worker = Worker()
    started, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        go_on.wait()
        done.set()

    task = asyncio.create_task(worker.run(job))
    await asyncio.to_thread(started.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await worker.run(lambda: None)
    worker.stop()
    assert done.is_set()


async def test_a_tpm_that_does_not_answer_is_given_up_and_said_to_be_gone() -> None:
    worker = Worker(deadline=0.05)
    release = threading.Event()
    with pytest.raises(TpmGone, match="did not answer within"):
        await worker.run(release.wait)
    assert worker.dead
    with pytest.raises(TpmGone, match="closed"):
        await worker.run(lambda: None)
    release.set()


async def test_a_stopped_worker_finishes_what_is_queued_and_takes_no_more() -> None:
    worker = Worker()
    queued = asyncio.create_task(worker.run(lambda: 1))
    await asyncio.sleep(0)
    worker.stop()
    worker.stop()
    assert await queued == 1
    with pytest.raises(TpmGone):
        await worker.run(lambda: 2)
