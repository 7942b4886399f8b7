# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/howto/air-gapped.md, on the log of a real agent on a measured host, over two boots."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from agents import make_state, running, settled
from measured_host import BOOT, MeasuredHost
from served_logs import serving_files
from tpms import Tpm

from quotary_attest.log.export import export as publish
from quotary_attest.serving.local import LocalConfig, LocalInterface
from quotary_cli.main import run
from quotary_cli.sources.archive import ArchiveSource
from quotary_cli.sources.folder import FolderSource
from quotary_verifier.tlog.checkpoint import parse_checkpoint
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.history import Commit, split

HOWTO = Path(__file__).parents[2] / "docs" / "howto" / "air-gapped.md"
SOCKET = "unix:/run/quotary/agent.sock"


def commands() -> list[list[str]]:
    """Every command of the page, in order."""
    blocks = re.findall(r"^```\n(.*?)^```", HOWTO.read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
async def place(tpm: Tpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where somebody stands with the answers, their attestations and a policy, the agent's log exported to it."""
    make_state(tpm, tmp_path / "state")
    host = MeasuredHost(tpm, tmp_path / "logs").start()
    answers, socket = tmp_path / "answers", tmp_path / "agent.sock"
    answers.mkdir()
    for name in ("first", "last"):
        async with (
            running(tpm, tmp_path / "state", boot_logs=host.settings) as agent,
            LocalInterface(agent, LocalConfig(socket)),
        ):
            for number in range(3):
                file = answers / (f"{name}.txt" if number == 0 else f"{name}-{number}.txt")
                file.write_bytes(b"answer %d" % number)
                delivered = await agent.attest(file.read_bytes())
                file.with_name(f"{file.name}.attestation").write_bytes(delivered.encoded)
                host.run_files(2)
            await settled(agent.store)
            publish(agent.store, tmp_path / "static")
            pinned = (
                f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{agent.origin}"\n[tpm]\nsoftware = true\n'
            )
            (tmp_path / "policy.toml").write_text(pinned)
            monkeypatch.chdir(tmp_path)
            for words in commands() if name == "last" else []:
                if words[:2] == ["log", "export"]:
                    assert await command(words, socket) == 0
        if name == "first":
            host.reboot(files=5)
    return tmp_path


async def command(words: list[str], socket: Path) -> int:
    named = [f"unix:{socket}" if word == SOCKET else word for word in words]
    return int(await asyncio.to_thread(run, named))


def shown(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert run([*map(str, words), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


async def test_every_command_of_the_howto_does_what_the_page_says(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in commands():
        if words[:2] != ["log", "export"]:
            assert run(words) == 0, (words, capsys.readouterr())
    out = capsys.readouterr().out
    assert "6 of 6 given are in the log" in out
    assert (place / "gpu-07.html").read_text().startswith("<!doctype html>")
    with ArchiveSource.open(place / "gpu-07-december.tar") as archive:
        assert list(archive.paths("attestations")) == []


async def test_an_archive_a_folder_and_a_server_are_audited_alike(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving_files(files_of(place / "static"), "/quotary/v1/") as served:
        reports = [
            shown(capsys, "audit", source, "-p", "policy.toml", "--records", "answers", "--at", "1800000000")
            for source in ("gpu-07.tar", "static", served.url)
        ]
    assert reports[0] == reports[1]
    for report in reports:
        report.pop("unknowable")  # a server cannot list what it has, so statements may stand elsewhere, too
    assert reports[0] == reports[2]
    assert reports[0]["outcome"] == "verified"
    states = [[log["state"] for log in boot["logs"]] for boot in reports[0]["boots"]]
    assert states == [["replayed", "replayed"], ["replayed", "replayed"]]


async def test_what_booted_and_ran_finds_the_boots_and_their_outputs(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    booted = BOOT.events[0].digest(0x0B)
    query = ("log", "query", "gpu-07.tar", "-p", "policy.toml", "--records", "gpu-07.tar", "--measured")
    found = shown(capsys, *query, booted.hex())["logs"][0]
    assert [match["boot"] for match in found["matches"]] == [0, 1]
    assert len(found["outputs"]) == 6
    assert all(output["output_id"].startswith("out_") for output in found["outputs"])
    assert shown(capsys, *query, hashlib.sha256(b"nothing").hexdigest())["logs"][0]["matches"] == []


async def test_attestations_of_what_the_log_lost_make_it_false(
    place: Path, tpm: Tpm, capsys: pytest.CaptureFixture[str]
) -> None:
    """The host goes back to the log that it had after its first boot, and hopes that nobody kept an answer."""
    rolled = place / "rolled-back"
    publish_first_boot(place / "static", rolled)
    report = shown(capsys, "audit", rolled, "-p", "policy.toml", "--records", "answers", code=1)
    found = {finding["code"] for finding in report["findings"] if finding["severity"] == "false"}
    assert {"record.unmatched", "record.other-history"} <= found
    assert report["records"]["matched"] == 3
    assert len(report["records"]["unmatched"]) == 3
    only = shown(
        capsys, "audit", "gpu-07.tar", "-p", "policy.toml", "--records", "answers/first.txt.attestation"
    )
    assert (only["records"]["matched"], only["records"]["omitted"]) == (1, 5)


def publish_first_boot(static: Path, target: Path) -> None:
    """Write the log as it was after the first boot: commits, tree and checkpoint of that time."""
    commits = [Commit.decode(item) for item in split((static / "history" / "000").read_bytes())]
    second = next(number for number, commit in enumerate(commits) if number and is_fresh_boot(commit))
    kept = commits[:second]
    size = parse_checkpoint(parse_note(kept[-1].note).text).size
    with FolderSource(static) as source:
        files = {
            "checkpoint": kept[-1].note,
            "history/000": b"".join(commit.encode() for commit in kept),
        }
        for path in (
            f"tile/entries/000.p/{size}",
            f"tile/0/000.p/{size}",
        ):  # of the export after the first boot
            files[path] = source.read(path, 1 << 20)
        for path in source.paths("blob"):
            files[path] = source.read(path, 1 << 20)
    for path, data in files.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(data)


def is_fresh_boot(commit: Commit) -> bool:
    return commit.supports[0].chain_before == bytes(32)
