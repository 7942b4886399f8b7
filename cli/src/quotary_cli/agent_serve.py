# SPDX-License-Identifier: Apache-2.0
"""What runs while `attest agent run` runs: the agent, its doors, its chores, until a signal ends it."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from quotary_attest import memory
from quotary_attest.agent import Agent, World
from quotary_attest.engine.errors import AgentError, Unavailable
from quotary_attest.linking.started import EngineFailed
from quotary_attest.prometheus import CONTENT_TYPE, PrometheusMetrics
from quotary_attest.serving.health import HealthServer
from quotary_attest.serving.peers import listen_on
from quotary_attest.systemd import Notifier, PassedSockets, credential, keep_alive, watchdog_seconds
from quotary_cli.agent_doors import Doors
from quotary_cli.agent_engines import Engines
from quotary_cli.agent_roots import endorsing_section, open_endorsing, open_roots
from quotary_cli.enrolment import read_passphrase

if TYPE_CHECKING:
    from quotary_attest.config import AgentConfig
    from quotary_attest.inventory import Inventory
    from quotary_attest.tpm.root import TpmRoot

SCHEMA = "quotary-agent-run/v1"
_LOG = logging.getLogger("quotary.agent")
_HOUR = 3600.0
_SWITCH_SECONDS = 0.0005
_DAY = 86400
_REPORT_SECONDS: Final = 1.0
_COMMIT_SECONDS: Final = 150.0
"""What stopping may take beyond the grace: the TPM's deadline for one commit, and the disk."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the service manager handed over: where to report, how often, and sockets that listen already."""

    notifier: Notifier
    watchdog: float | None
    sockets: PassedSockets

    @classmethod
    def of_environment(cls) -> Service:
        """Take it out of this process's environment, so that an engine that it starts does not find it. Raises
        ServiceError."""
        return cls(Notifier.of(), watchdog_seconds(), PassedSockets.of())


class Signals:
    """What the operator asks for: to stop, to stop now, to read the certificates anew."""

    def __init__(self) -> None:
        self.stop, self.hurry, self.hangup = asyncio.Event(), asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told)
        loop.add_signal_handler(signal.SIGHUP, self.hangup.set)

    def _told(self) -> None:
        if self.stop.is_set():
            _LOG.info("stopping at once: running answers are broken off")
            self.hurry.set()
        self.stop.set()


async def serve(
    config: AgentConfig, tcti: str | None, inventory: Inventory, service: Service, *, resume: bool
) -> None:
    """Run the agent until SIGTERM or SIGINT, then commit what was handed in; `tcti` is None where the origin has no
    TPM. Raises what starting raises."""
    signals, metrics = Signals(), PrometheusMetrics()
    # the thread that speaks to the TPM must not wait 5 ms for the one that encodes records (measured: p99)
    sys.setswitchinterval(_SWITCH_SECONDS)
    async with AsyncExitStack() as stack:
        root = None
        if tcti is not None:
            root = await _root(config, tcti)
            stack.push_async_callback(root.close)  # also where the agent, which closes it, never came up
        agent = Agent(
            config.state.folder,
            root=root,
            workload=inventory.workload,
            resume=resume,
            world=World(spare=memory.collect),
            metrics=metrics,
            boot_logs=config.boot_logs.settings,
            roots=open_roots(config),
            endorsing=open_endorsing(config),
        )
        engines = Engines(config, inventory)
        doors = Doors(config, agent, service.sockets, metrics, inventory=inventory, engines=engines)
        health = await stack.enter_async_context(_health(config, agent, metrics, signals, service.sockets))
        await stack.enter_async_context(agent)
        metrics.watch(agent.status, config.state.folder)
        memory.settle(spare=True)
        await stack.enter_async_context(doors)
        for name in service.sockets.left:
            _LOG.warning("systemd passed a socket named %s, which the configuration does not use", name)
        service.sockets.close()
        print(json.dumps({"schema": SCHEMA, "origin": agent.origin, **doors.where, **health}), flush=True)
        await _attend(config, agent, service, signals, engines)
        service.notifier.stopping()
        service.notifier.extend(config.stop.grace_seconds + _COMMIT_SECONDS)
        service.notifier.status("stopping: what was handed in is committed first")
        _LOG.info("stopping: what was handed in is committed first")
        await doors.drain(config.stop.grace_seconds, signals.hurry)
    if engines.ended.is_set():
        raise EngineFailed(
            "the engine has ended, so the agent has stopped", hint="what it wrote stands above"
        )


async def _root(config: AgentConfig, tcti: str) -> TpmRoot:
    """Open the TPM for the configured origin. Raises StateError, RootError, ServiceError."""
    from quotary_attest.state import read_identity
    from quotary_attest.tpm.model import Authorizations
    from quotary_attest.tpm.root import TpmOptions, open_root

    name = config.tpm.endorsement_auth_credential
    given = read_passphrase(config.tpm.endorsement_auth_file) if name is None else credential(name)
    auths = Authorizations(endorsement=given or b"")
    options = TpmOptions(authorizations=auths, ima_log=config.boot_logs.ima)
    return await open_root(read_identity(config.state.folder).tpm_keys, tcti, options)


@asynccontextmanager
async def _health(
    config: AgentConfig, agent: Agent, metrics: PrometheusMetrics, signals: Signals, sockets: PassedSockets
) -> AsyncIterator[dict[str, str]]:
    """Serve figures, health and readiness where the configuration says, from before the start to after the end."""

    def outage() -> Exception | None:
        if signals.stop.is_set():
            return Unavailable("the agent is stopping")
        try:
            return agent.outage
        except AgentError as error:
            return error

    section = config.metrics
    async with HealthServer(outage, metrics.text, CONTENT_TYPE) as server:
        if section.listen is not None:
            host, port = section.listen.host, section.listen.port
            yield {"metrics": f"http://{host}:{await server.listen(host, port)}/metrics"}
        elif section.path is not None:
            await server.listen_on(listen_on(section.path, mode=0o666))
            yield {"metrics": str(section.path)}
            section.path.unlink(missing_ok=True)
        elif section.socket is not None:
            for listener in sockets.take(section.socket):
                await server.listen_on(listener)
            yield {"metrics": section.socket}
        else:
            yield {}


async def _attend(
    config: AgentConfig, agent: Agent, service: Service, signals: Signals, engines: Engines
) -> None:
    """Tell the service manager that all is ready, and do the chores until a signal says stop, or the engine is
    gone."""
    chores = [
        _reload_on(signals.hangup, agent),
        _report(service.notifier, agent),
        _stop_with(engines, signals),
    ]
    if config.retention.keep_days is not None:
        chores.append(_expire(agent, config.retention.keep_days))
    if endorsing_section(config) is not None:
        chores.append(_renew(agent))
    if service.watchdog is not None:
        stuck = config.watchdog.stuck_seconds
        chores.append(keep_alive(service.notifier, service.watchdog, lambda: agent.alive(stuck)))
    service.notifier.ready()
    tasks = [asyncio.create_task(chore) for chore in chores]
    try:
        await signals.stop.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _stop_with(engines: Engines, signals: Signals) -> None:
    """Stop where an engine that the agent started is gone, and is not to be started again."""
    await engines.ended.wait()
    _LOG.error("the engine has ended: the agent stops, as it is configured")
    signals.stop.set()


async def _report(notifier: Notifier, agent: Agent) -> None:
    """Keep the line that `systemctl status` shows true."""
    while True:
        outage = agent.outage
        state = f"attesting for {agent.origin}" if outage is None else f"attesting nothing: {outage}"
        notifier.status(state)
        await asyncio.sleep(_REPORT_SECONDS)


async def _reload_on(hangup: asyncio.Event, agent: Agent) -> None:
    """Take up newly installed certificates whenever SIGHUP comes; what cannot be read leaves the old ones."""
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            await agent.reload_certificates()
            _LOG.info("certificates in use: %d", agent.status()["certificates"])
        except Exception as error:
            _LOG.error("the certificates cannot be taken up: %s", error)


async def _renew(agent: Agent) -> None:
    """Look once an hour for newer collateral of what endorses the AK: what is carried must not run out unseen."""
    while True:
        await asyncio.sleep(_HOUR)
        try:
            await agent.reload_certificates()
        except Exception as error:
            _LOG.error("what endorses the attestation key cannot be found anew: %s", error)


async def _expire(agent: Agent, days: int) -> None:
    """Delete old records once an hour, slice by slice, so that commits go on between."""
    while True:
        before = (int(time.time()) - days * _DAY) * 1000
        try:
            while await agent.expire(before):
                pass  # a slice at a time; commits go on between two of them
        except Exception as error:
            _LOG.error("old records cannot be deleted now: %s", error)
        await asyncio.sleep(_HOUR)
