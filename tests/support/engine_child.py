# SPDX-License-Identifier: Apache-2.0
"""An agent in a process of its own, which kills itself at a named crash point.

    python engine_child.py TCTI FOLDER POINT SKIP BODIES [LOGS]

attests BODIES outputs one after another, each with the digest of its body as an alias (none: it makes a statement
instead), and ends by SIGKILL the moment the crash point POINT is met for the (SKIP+1)-th time *after* the agent has
started; a SKIP below zero counts from the beginning of the start instead: -1 is the first time. Each acknowledged
attestation is one line of hexadecimal digits on stdout. In the folder LOGS are the logs of the boot, `tcg` and `ima`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agents import WORKLOAD
from crashing import Crash, attest_all

from quotary_attest.agent import Agent, BootLogSettings, World
from quotary_attest.state import read_identity
from quotary_attest.tpm.root import TpmOptions, open_root


async def main(tcti: str, folder: Path, point: str, skip: int, bodies: int, logs: Path) -> None:
    """Run until killed, or until all outputs are acknowledged and the agent is closed."""
    crash = Crash(point, skip)
    root = await open_root(read_identity(folder).tpm, tcti, TpmOptions(ima_log=logs / "ima"))
    boot_logs = BootLogSettings(logs / "tcg", logs / "ima")
    agent = await Agent.start(
        folder, root=root, workload=WORKLOAD, world=World(crash=crash), boot_logs=boot_logs
    )
    crash.started = True
    await attest_all(agent, bodies)


if __name__ == "__main__":
    tcti, folder, point, skip, bodies, *logs = sys.argv[1:]
    asyncio.run(main(tcti, Path(folder), point, int(skip), int(bodies), Path(*logs or ("absent",))))
