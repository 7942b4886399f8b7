# SPDX-License-Identifier: Apache-2.0
"""A measured host's history with two boots, from its static files into an archive and through the audit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from agents import running, settled
from measured_host import MeasuredHost
from tpms import Tpm

from quotary_attest.log.export import export
from quotary_cli.main import run


def command(capsys: Any, *arguments: object) -> dict[str, Any]:
    """Run a command, which must succeed, and return the object that it prints."""
    capsys.readouterr()
    try:
        code: object = run([*map(str, arguments), "--json"])
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr()
    assert not code, shown.out + shown.err
    found: dict[str, Any] = json.loads(shown.out)
    return found


async def test_an_audit_replays_the_logs_of_every_boot_from_static_files_and_from_an_archive(
    tpm: Tpm, tmp_path: Path, capsys: Any
) -> None:
    host, state, static = (
        MeasuredHost(tpm, tmp_path / "logs").start(),
        tmp_path / "state",
        tmp_path / "static",
    )
    for count in (1, 2):  # the first boot's log is what the second one's begins with
        async with running(tpm, state, boot_logs=host.settings) as agent:
            for _ in range(3):
                await asyncio.to_thread(host.run_files, count)
                await agent.attest(b"output")
            await settled(agent.store)
            await asyncio.to_thread(export, agent.store, static)
            policy = (
                'schema = "quotary-policy/v1"\n[tpm]\nsoftware = true\n'
                f'[[pin]]\norigin = "{agent.origin}"\n[platform.pcrs]\n'
                + "".join(f'{pcr} = ["{host.boot.values()[pcr].hex()}"]\n' for pcr in (0, 4, 7))
            )
        await asyncio.to_thread(host.reboot)
    (tmp_path / "policy").write_text(policy)
    archive = tmp_path / "log.tar"
    assert command(capsys, "log", "export", static, archive)["missing"] == []
    for source in (static, archive):
        found = command(capsys, "audit", source, "--policy", tmp_path / "policy")
        states = [{log["name"]: log["state"] for log in boot["logs"]} for boot in found["boots"]]
        assert states == [{"tcg": "replayed", "ima": "replayed"}] * 2
        assert found["findings"] == []
