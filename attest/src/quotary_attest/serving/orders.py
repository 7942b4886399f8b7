# SPDX-License-Identifier: Apache-2.0
"""What an agent tells its workers, over a pipe that only the two have: u32 length ‖ a pickled order."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import dataclass
from typing import Any, Final

from quotary_attest.enginelink import EngineLink
from quotary_attest.serving.exchange import ProxyConfig

READY: Final = "ready"
"""What a worker says once it listens; later it says `switched N` and `left N`."""

_MAX_ORDER: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Start:
    """Begin to serve. The first order, and the only one of its kind.

    `connection` and `listener` are file descriptors: of the serving link and of a listening socket. `grace` is how
    long, in seconds, running answers may take to end after SIGTERM; a second SIGTERM ends them.
    """

    proxy: ProxyConfig
    link: EngineLink
    connection: int
    listener: int
    grace: float
    log_format: str
    log_level: str


@dataclass(frozen=True, slots=True)
class Switch:
    """Send new requests elsewhere (`Proxy.switch`)."""

    number: int
    upstream: str
    model: str | None
    link: EngineLink


@dataclass(frozen=True, slots=True)
class Leave:
    """Say when nothing is on its way any more where requests went before a switch (`Proxy.leave`)."""

    number: int


def write_order(order: Start | Switch | Leave) -> bytes:
    """Return an order as it goes over the pipe."""
    body = pickle.dumps(order)
    return len(body).to_bytes(4) + body


async def read_order(pipe: asyncio.StreamReader) -> Any:
    """Return the next order; None where the agent says nothing any more. Only for the pipe from our own agent."""
    try:
        length = int.from_bytes(await pipe.readexactly(4))
        if length > _MAX_ORDER:
            return None
        return pickle.loads(await pipe.readexactly(length))  # noqa: S301 - our own agent wrote it
    except asyncio.IncompleteReadError:
        return None
