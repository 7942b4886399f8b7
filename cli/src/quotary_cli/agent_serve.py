# SPDX-License-Identifier: Apache-2.0
"""What runs while `attest agent run` runs: the agent, its doors, its chores, until a signal ends it."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from quotary_attest.agent import Agent
from quotary_cli.agent_doors import open_doors
from quotary_cli.enrolment import read_passphrase
from quotary_cli.output import note

if TYPE_CHECKING:
    from quotary_attest.config import AgentConfig
    from quotary_attest.config.sections import LogSection
    from quotary_attest.workload import Workload

SCHEMA = "quotary-agent-run/v1"
_HOUR = 3600.0
_SWITCH_SECONDS = 0.0005
_DAY = 86400


def set_up_logging(section: LogSection) -> None:
    """Write the process's log to standard error."""
    level = getattr(logging, section.level.upper())
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s %(message)s")


async def serve(config: AgentConfig, tcti: str, workload: Workload, *, resume: bool) -> None:
    """Run the agent until SIGTERM or SIGINT, then commit what was handed in. Raises what starting raises."""
    from quotary_attest.state import read_identity
    from quotary_attest.tpm.model import Authorizations
    from quotary_attest.tpm.root import TpmOptions, open_root

    stop, hangup = _signals()
    # the thread that speaks to the TPM must not wait 5 ms for the one that encodes records (measured: p99)
    sys.setswitchinterval(_SWITCH_SECONDS)
    auths = Authorizations(endorsement=read_passphrase(config.tpm.endorsement_auth_file) or b"")
    folder = config.state.folder
    root = await open_root(read_identity(folder).tpm, tcti, TpmOptions(authorizations=auths))
    agent = Agent(folder, root=root, workload=workload, resume=resume)
    async with agent, AsyncExitStack() as stack:
        _settle_memory()
        doors = await open_doors(config, agent, stack)
        print(json.dumps({"schema": SCHEMA, "origin": agent.origin, **doors}), flush=True)
        chores = [asyncio.create_task(_reload_on(hangup, agent))]
        if config.retention.keep_days is not None:
            chores.append(asyncio.create_task(_expire(agent, config.retention.keep_days)))
        await stop.wait()
        for chore in chores:
            chore.cancel()
        note("stopping: what was handed in is committed first")


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return the events that SIGTERM and SIGINT, and SIGHUP, set."""
    loop = asyncio.get_running_loop()
    stop, hangup = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    return stop, hangup


async def _reload_on(hangup: asyncio.Event, agent: Agent) -> None:
    """Take up newly installed certificates whenever SIGHUP comes; what cannot be read leaves the old ones."""
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            await agent.reload_certificates()
            note(f"certificates in use: {agent.status()['certificates']}")
        except Exception as error:
            note(f"the certificates cannot be taken up: {error}")


async def _expire(agent: Agent, days: int) -> None:
    """Delete old records once an hour, slice by slice, so that commits go on between."""
    while True:
        before = (int(time.time()) - days * _DAY) * 1000
        try:
            while await agent.expire(before):
                pass  # a slice at a time; commits go on between two of them
        except Exception as error:
            note(f"old records cannot be deleted now: {error}")
        await asyncio.sleep(_HOUR)


def _settle_memory() -> None:
    """Keep what start-up made out of the collector's way: its pauses stand in the 99th percentile (measured)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
