# SPDX-License-Identifier: Apache-2.0
"""The doors of a running agent, as its configuration names them: the local interface and the proxies."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from quotary_attest.config import claimed_model
from quotary_attest.serving.local import LocalConfig, LocalInterface
from quotary_attest.serving.peers import Allowed
from quotary_attest.serving.proxy import Proxy, ProxyConfig

if TYPE_CHECKING:
    from quotary_attest.agent import Agent
    from quotary_attest.config import AgentConfig
    from quotary_attest.config.sections import ProxySection


async def open_doors(config: AgentConfig, agent: Agent, stack: AsyncExitStack) -> dict[str, Any]:
    """Open every door, to be closed with `stack`; return where they are, as the line on standard output says it."""
    await stack.enter_async_context(LocalInterface(agent, local_config(config)))
    ready: dict[str, Any] = {"socket": str(config.local_path)}
    proxies = [await _open_proxy(config, section, agent, stack) for section in config.proxy]
    if proxies:
        ready |= {"proxy": proxies[0], "proxies": proxies}
    return ready


def local_config(config: AgentConfig) -> LocalConfig:
    """Return how the local interface is set up."""
    users = frozenset((0, os.geteuid(), *config.local.allow_uids))
    others = bool(config.local.allow_uids or config.local.allow_gids)
    mode = 0o666 if others else 0o660  # whoever connects is still refused unless allowed
    return LocalConfig(config.local_path, Allowed(users, frozenset(config.local.allow_gids)), mode=mode)


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
    )


async def _open_proxy(config: AgentConfig, section: ProxySection, agent: Agent, stack: AsyncExitStack) -> str:
    proxy = await stack.enter_async_context(Proxy(agent, proxy_config(config, section)))
    if section.listen is None:
        raise RuntimeError("a proxy listens somewhere")
    host, port = section.listen.host, section.listen.port
    return f"http://{host}:{await proxy.listen(host, port)}"
