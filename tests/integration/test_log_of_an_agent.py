# SPDX-License-Identifier: Apache-2.0
"""The log of a real agent, as its socket, a web server, a folder and an archive give it out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from agents import judge, running, settled
from served_logs import serving_files
from tpms import Tpm

from quotary_attest.log.export import export as publish
from quotary_attest.serving.local import LocalConfig, LocalInterface
from quotary_cli.logsource import SourceMissing, open_source
from quotary_cli.main import run
from quotary_cli.sources.archive import ArchiveSource
from quotary_verifier.errors import QuotaryError
from quotary_verifier.wire.history import Commit, split
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.records import Boot, Genesis, entry_of


def is_a(kind: type[Boot | Genesis], record: bytes) -> bool:
    try:
        kind.decode(record)
    except QuotaryError:
        return False
    return True


async def command(*words: object) -> int:
    """Run `attest` in a thread, since the agent answers it in this one."""
    return int(await asyncio.to_thread(run, [str(word) for word in words]))


async def test_the_archive_of_an_agent_has_all_that_an_auditor_reads(
    tpm: Tpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = tmp_path / "held"
    held.mkdir()
    socket, static = tmp_path / "agent.sock", tmp_path / "static"
    names = []
    for _ in range(2):
        async with running(tpm, tmp_path / "state") as agent, LocalInterface(agent, LocalConfig(socket)):
            delivered = await asyncio.gather(*(agent.attest(b"answer %d" % number) for number in range(9)))
            for output in delivered:
                names.append(f"attestations/{format_output_id(output.output_id)}.attestation")
                (held / f"{len(names)}.attestation").write_bytes(output.encoded)
            await settled(agent.store)
            publish(agent.store, static)
            archives = [tmp_path / f"{kind} {len(names)}.tar" for kind in ("live", "static", "web")]
            assert await command("log", "export", f"unix:{socket}", archives[0], "-a", held) == 0
            assert await command("log", "export", static, archives[1], "-a", held) == 0
            files = {
                path.relative_to(static).as_posix(): path.read_bytes()
                for path in static.rglob("*")
                if path.is_file()
            }
            with serving_files(files, "/quotary/v1/") as served:
                assert await command("log", "export", served.url, archives[2], "-a", held) == 0
            assert len({archive.read_bytes() for archive in archives}) == 1
            origin = agent.origin
    capsys.readouterr()
    with ArchiveSource.open(archives[0]) as archive:
        assert list(archive.paths("attestations")) == sorted(names)
        judge(archive.read(names[0], 1 << 20), b"answer 0", origin)
        commits = [Commit.decode(item) for item in split(archive.read("history/000", 1 << 20))]
        named = {
            digest for commit in commits for support in commit.supports for digest in support.certificates
        }
        named |= {
            support.workload_log[0]
            for commit in commits
            for support in commit.supports
            if support.workload_log
        }
        assert {f"blob/{digest.hex()}" for digest in named} <= set(archive.paths("blob"))
        records = [archive.read(path, 1 << 20) for path in archive.paths("blob")]
        assert sum(is_a(Genesis, record) for record in records) == 1
        assert sum(is_a(Boot, record) for record in records) == 2, "one for each start"
        assert all(path[5:] == entry_of(archive.read(path, 1 << 20)).hex() for path in archive.paths("blob"))


async def test_what_a_socket_does_not_have_is_missing_there(tpm: Tpm, tmp_path: Path) -> None:
    socket = tmp_path / "agent.sock"
    async with running(tpm, tmp_path / "state") as agent, LocalInterface(agent, LocalConfig(socket)):
        await settled(agent.store)

        def read() -> bytes:
            with open_source(f"unix:{socket}") as source:
                with pytest.raises(SourceMissing):
                    source.read("blob/" + 64 * "0", 1000)
                return source.read("checkpoint", 1 << 16)

        assert await asyncio.to_thread(read) == agent.store.serve("checkpoint")
