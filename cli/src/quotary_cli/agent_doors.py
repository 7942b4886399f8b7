# SPDX-License-Identifier: Apache-2.0
"""The doors of a running agent, as its configuration names them: the local interface and the proxies."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quotary_attest.config import claimed_model
from quotary_attest.linking.processes import process_peer
from quotary_attest.measuring.openssf import load_signers
from quotary_attest.serving.link.door import LinkConfig, LinkDoor
from quotary_attest.serving.local import LocalConfig, LocalInterface
from quotary_attest.serving.paths import PathTable
from quotary_attest.serving.peers import Allowed
from quotary_attest.serving.promise import declaration_of
from quotary_attest.serving.proxy import Proxy, ProxyConfig
from quotary_attest.serving.swap import Standing, Swapper
from quotary_attest.serving.workers import WorkerLogs, Workers, bind_shared
from quotary_cli.agent_workload import known_digests

if TYPE_CHECKING:
    from types import TracebackType

    from quotary_attest.agent import Agent
    from quotary_attest.config import AgentConfig
    from quotary_attest.config.sections import ProxySection
    from quotary_attest.inventory import Inventory
    from quotary_attest.metrics import ServingMetrics
    from quotary_attest.systemd import PassedSockets
    from quotary_cli.agent_engines import Engines


class Doors:
    """Every door of an agent. Open it as an async context manager; `where` then says where each is."""

    def __init__(
        self,
        config: AgentConfig,
        agent: Agent,
        sockets: PassedSockets,
        metrics: ServingMetrics,
        *,
        inventory: Inventory,
        engines: Engines,
    ) -> None:
        """Take what was passed on; nothing is served yet. `inventory` is what was measured, `engines` what stands
        behind the proxies. Raises ServiceError."""
        self._inventory, self._engines = inventory, engines
        self._config, self._agent, self._metrics = config, agent, metrics
        self._local = local_config(config, sockets)
        self._link = link_config(config, sockets)
        self._listeners = [
            [] if section.socket is None else sockets.take(section.socket) for section in config.proxy
        ]
        self._proxies: list[Proxy | Workers] = []
        self._stack = AsyncExitStack()
        self.where: dict[str, Any] = {}

    async def __aenter__(self) -> Doors:
        """Open them all. Raises SocketInUse or OSError, and then none is left open."""
        async with AsyncExitStack() as stack:
            # before anything answers: what is stated holds from the first answer on
            settings = [proxy_config(self._config, section) for section in self._config.proxy]
            await self._agent.declare(declaration_of(settings))
            standing = await self._engines.first()
            swapper = self._swapper(standing)
            stack.push_async_callback(
                swapper.close
            )  # after the proxies, whose answers the engines are to end
            addresses = [
                await self._open_proxy(section, listeners, stack, swapper, standing)
                for section, listeners in zip(self._config.proxy, self._listeners, strict=True)
            ]
            stack.push_async_callback(swapper.give_up)
            await stack.enter_async_context(LocalInterface(self._agent, self._local, swapper, self._metrics))
            self.where["socket"] = str(self._local.path)
            if self._link is not None:
                await stack.enter_async_context(self._link_door(self._link, standing))
                self.where["serving_link"] = str(self._link.path)
            if addresses:
                self.where |= {"proxy": addresses[0], "proxies": addresses}
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them all; what was handed in through them is answered first."""
        await self._stack.aclose()

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Let no request in any more, and running answers end; see `Proxy.drain`."""
        await asyncio.gather(*[proxy.drain(seconds, hurry) for proxy in self._proxies])

    def _link_door(self, config: LinkConfig, standing: Standing | None) -> LinkDoor:
        """Return the door for middleware, whose peers are looked at as engines behind proxies are."""
        link = self._engines.link if standing is None else standing.link
        return LinkDoor(
            self._agent, config, check=lambda peer: partial(link.link, peer=process_peer(peer.pid))
        )

    def _swapper(self, standing: Standing | None) -> Swapper:
        """Return what exchanges models behind these doors."""
        config = self._config
        swapper = Swapper(
            self._agent,
            self._inventory,
            self._engines.standing,
            signers=load_signers(config.signers.keys, config.signers.authorities),
            known=known_digests(config),
        )
        if standing is not None:
            swapper.keep(standing)
        return swapper

    async def _open_proxy(
        self,
        section: ProxySection,
        listeners: list[socket.socket],
        stack: AsyncExitStack,
        swapper: Swapper,
        standing: Standing | None,
    ) -> str:
        settings = proxy_config(self._config, section)
        served = None if settings.model is None else self._agent.workload.model(settings.model)
        if (
            served is not None
        ):  # by its key: its name may come to mean another while its answers are on their way
            settings = replace(settings, model=served.key)
        link = self._engines.link if standing is None else standing.link
        if section.workers:
            return await self._open_workers(section, settings, listeners, stack, swapper, standing)
        proxy = await stack.enter_async_context(Proxy(self._agent, settings, self._metrics, link=link))
        self._proxies.append(proxy)
        swapper.serve(proxy, claimed_model(self._config, section) or "", standing)
        if section.listen is not None:
            host, port = section.listen.host, section.listen.port
            return f"http://{host}:{await proxy.listen(host, port)}"
        for listener in listeners:
            await proxy.listen_on(listener)
        return _address_of(listeners[0])

    async def _open_workers(
        self,
        section: ProxySection,
        settings: ProxyConfig,
        listeners: list[socket.socket],
        stack: AsyncExitStack,
        swapper: Swapper,
        standing: Standing | None,
    ) -> str:
        """Let processes of their own relay: a listening socket for each, or what systemd passed on for all."""
        door = await stack.enter_async_context(LinkDoor(self._agent, metrics=self._metrics))
        if section.listen is not None:
            listeners = bind_shared(section.listen.host, section.listen.port, section.workers)
        shared = [listeners[place % len(listeners)] for place in range(section.workers)]
        config = self._config
        workers = Workers(
            door,
            settings,
            shared,
            link=self._engines.link if standing is None else standing.link,
            grace=config.stop.grace_seconds,
            logs=WorkerLogs(config.log.format, config.log.level),
        )
        await stack.enter_async_context(workers)
        self._proxies.append(workers)
        swapper.serve(workers, claimed_model(config, section) or "", standing)
        return _address_of(shared[0])


def _address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def local_config(config: AgentConfig, sockets: PassedSockets) -> LocalConfig:
    """Return how the local interface is set up. Raises ServiceError."""
    users = frozenset((0, os.geteuid(), *config.local.allow_uids))
    others = bool(config.local.allow_uids or config.local.allow_gids)
    mode = 0o666 if others else 0o660  # whoever connects is still refused unless allowed
    listener = None if config.local.socket is None else sockets.take(config.local.socket, Path)[0]
    path = config.local_path if listener is None else Path(listener.getsockname())
    return LocalConfig(path, Allowed(users, frozenset(config.local.allow_gids)), mode=mode, listener=listener)


def link_config(config: AgentConfig, sockets: PassedSockets) -> LinkConfig | None:
    """Return how the serving link is set up; None where there is to be none. Raises ServiceError."""
    section = config.serving_link
    listener = None if section.socket is None else sockets.take(section.socket, Path)[0]
    path = section.path if listener is None else Path(listener.getsockname())
    if path is None:
        return None
    users = frozenset((0, os.geteuid(), *section.allow_uids))
    mode = 0o666 if section.allow_uids or section.allow_gids else 0o660
    return LinkConfig(path, Allowed(users, frozenset(section.allow_gids)), mode=mode, listener=listener)


def proxy_config(config: AgentConfig, section: ProxySection) -> ProxyConfig:
    """Return how one proxy is set up."""
    binary = config.engine.binary
    return ProxyConfig(
        section.upstream,
        model=claimed_model(config, section),
        engine=config.engine.name or (None if binary is None else binary.name),
        max_request=section.max_request,
        max_held=section.max_held,
        max_inband=section.max_inband,
        fetch_seconds=section.fetch_seconds,
        connect_timeout=section.connect_timeout,
        doors=section.doors,
        paths=PathTable(section.paths),
        when_unavailable=section.when_unavailable,
        max_held_total=section.max_held_total,
        idle_seconds=section.idle_seconds or None,
    )
