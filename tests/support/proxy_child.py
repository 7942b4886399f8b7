# SPDX-License-Identifier: Apache-2.0
"""An agent with a proxy in a process of its own, to be killed.

    python proxy_child.py TCTI FOLDER UPSTREAM

prints the port that it listens on, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agents import WORKLOAD

from quotary_attest.agent import Agent
from quotary_attest.serving.proxy import Proxy, ProxyConfig
from quotary_attest.state import read_identity
from quotary_attest.tpm.root import open_root


async def main(tcti: str, folder: Path, upstream: str) -> None:
    """Serve."""
    root = await open_root(read_identity(folder).tpm, tcti)
    agent = await Agent.start(folder, root=root, workload=WORKLOAD)
    try:
        async with Proxy(agent, ProxyConfig(upstream, model="llama")) as proxy:
            print(await proxy.listen("127.0.0.1", 0), flush=True)
            await asyncio.to_thread(sys.stdin.read)
    finally:
        await agent.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
