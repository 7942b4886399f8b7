# SPDX-License-Identifier: Apache-2.0
"""An agent on a measured host: commits name the logs of the boot, and what they name replays to what they quote."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from agents import AT, audit, commits_of, make_state, policy_of, release, running, settled, start
from ima_logs import file_data, ima_entry
from measured_host import BOOT, MeasuredHost
from tcg_logs import good_boot
from tpms import CC_QUOTE, Tpm, extend_command

import dtpm
from quotary_attest.agent import Agent, Unavailable
from quotary_attest.log import growing
from quotary_attest.log.errors import DamagedError, NotFound, StorageFull
from quotary_attest.log.export import export
from quotary_attest.log.store import Store
from quotary_verifier.recipe.steps import Step
from quotary_verifier.recipe.verdict import CheckState, Verdict
from quotary_verifier.recipe.verify import Question, verify
from quotary_verifier.wire.attestation import Attestation


@pytest.fixture
def host(tpm: Tpm, tmp_path: Path) -> MeasuredHost:
    make_state(tpm, tmp_path / "state")
    return MeasuredHost(tpm, tmp_path / "logs").start()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def judged(agent: Agent, attestation: bytes, body: bytes) -> Verdict:
    """Verify with all logs that the attestation names, fetched from the agent as any consumer would."""
    names = Attestation.decode(attestation).boot_logs.values()
    logs = {name: agent.store.serve(f"blob/{name.hex()}") for name in names}
    return verify(attestation, Question(body, AT, logs=logs), policy_of(agent.origin))


def step(verdict: Verdict) -> tuple[CheckState, str]:
    (check,) = [check for check in verdict.report.checks if check.step is Step.BOOT_LOGS]
    return check.state, check.detail


def all_replay(folder: Path) -> list[dict[str, int]]:
    """Hold every log that a commit names against the PCRs that it quotes; how many bytes each commit names."""
    from quotary_verifier.logs.ima import parse_ima_binary
    from quotary_verifier.logs.tcg import parse_tcg_log

    store, found = Store.open(folder / "log"), []
    for commit in commits_of(store):
        (support,) = commit.supports
        values = dict.fromkeys(range(16), bytes(32)) | dict(support.pcrs)
        quoted = {pcr: value for pcr, value in values.items() if pcr not in (13, 15)}
        for name, (digest, size) in commit.boot_logs.items():
            log = store.serve(f"blob/{digest.hex()}")
            assert (len(log), sha256(log)) == (size, digest)
            if name == "tcg":
                assert parse_tcg_log(log).replay(quoted).events
            else:
                assert parse_ima_binary(log).replay(quoted).unconfirmed == 0
        found.append({name: size for name, (_, size) in commit.boot_logs.items()})
    store.close()
    return found


async def test_an_output_is_verified_with_the_logs_of_its_hosts_boot(host: MeasuredHost, state: Path) -> None:
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        delivered = await agent.attest(b"an output")
        carried = Attestation.decode(delivered.encoded).boot_logs
        assert carried == {"tcg": sha256(host.tcg), "ima": sha256(host.ima)}
        passed, said = step(judged(agent, delivered.encoded, b"an output"))
        assert (passed, "its boot aggregate is of PCR 0-9" in said) == (CheckState.PASSED, True)
        assert await agent.fetch(delivered.output_id) == delivered.encoded
        assert {name: log["state"] for name, log in agent.status()["boot_logs"].items()} == {
            "tcg": "named",
            "ima": "named",
        }
    audit(state)
    assert all_replay(state) == [{"tcg": len(host.tcg), "ima": len(host.ima)}] * 2


async def test_each_commit_names_as_much_of_a_growing_log_as_its_quote_covers(
    host: MeasuredHost, state: Path
) -> None:
    sizes = []
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        for number in range(4):
            await asyncio.to_thread(host.run_files, number)
            sizes.append(len(host.ima))
            delivered = await agent.attest(b"output")
            assert step(judged(agent, delivered.encoded, b"output"))[0] is CheckState.PASSED
    assert [size["ima"] for size in all_replay(state)[1:]] == sizes
    assert len(list((state / "log" / "boot").iterdir())) == 1
    stored = (state / "log" / "boot").rglob("*.ima")
    assert next(stored).read_bytes() == host.ima


async def test_a_log_that_grows_while_the_tpm_quotes_is_named_up_to_what_was_quoted(
    host: MeasuredHost, state: Path
) -> None:
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        during, late = file_data(70), file_data(71)
        host.log(during)
        covered = len(host.ima)
        host.log(late)  # logged, and not extended yet: the kernel logs first
        host.tpm.before(CC_QUOTE, extend_command(10, sha256(during)))
        delivered = await agent.attest(b"output")
        assert Attestation.decode(delivered.encoded).boot_logs["ima"] == sha256(host.ima[:covered])
        assert step(judged(agent, delivered.encoded, b"output"))[0] is CheckState.PASSED
        await asyncio.to_thread(host.tpm.extend, 10, sha256(late))
        delivered = await agent.attest(b"another")
        assert Attestation.decode(delivered.encoded).boot_logs["ima"] == sha256(host.ima)
    assert all_replay(state)[-1]["ima"] == len(host.ima)


async def test_a_later_start_of_the_same_boot_goes_on_with_the_same_log(
    host: MeasuredHost, state: Path
) -> None:
    for _ in range(2):
        async with running(host.tpm, state, boot_logs=host.settings) as agent:
            await agent.attest(b"output")
        host.run_files(2)
    all_replay(state)
    (stored,) = (state / "log" / "boot").iterdir()
    assert host.ima.startswith(stored.read_bytes())


@pytest.mark.parametrize("files", [(5, 1), (1, 5), (3, 3)], ids=["shorter", "longer", "the same"])
async def test_a_new_boot_begins_a_log_of_its_own_even_where_its_bytes_are_those_of_the_last(
    host: MeasuredHost, state: Path, files: tuple[int, int]
) -> None:
    for count in files:
        host.reboot(files=count)
        for _ in range(2):  # two starts of one boot share a file
            async with running(host.tpm, state, boot_logs=host.settings) as agent:
                delivered = await agent.attest(b"output")
                assert step(judged(agent, delivered.encoded, b"output"))[0] is CheckState.PASSED
    all_replay(state)
    assert len(list((state / "log" / "boot").iterdir())) == 2


async def test_a_reboot_under_a_running_agent_is_followed_by_the_logs(
    host: MeasuredHost, state: Path
) -> None:
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        await agent.attest(b"output")
        other = good_boot(banks=(0x0B,)).add(1, 0x0D, b"another setting")
        await asyncio.to_thread(host.reboot, other, 1)
        with pytest.raises(Exception, match="reset"):
            await agent.attest(b"lost")
        async with asyncio.timeout(10):
            while agent.outage is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.002)  # it starts anew by itself
        delivered = await agent.attest(b"output")
        assert step(judged(agent, delivered.encoded, b"output"))[0] is CheckState.PASSED
        named = Attestation.decode(delivered.encoded).boot_logs
        assert named == {"tcg": sha256(host.tcg), "ima": sha256(host.ima)}
    all_replay(state)


async def test_a_tpm_that_was_not_measured_into_has_no_logs_whatever_lies_on_the_host(
    tpm: Tpm, tmp_path: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_state(tpm, state)
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "tcg").write_bytes(BOOT.agile())
    (folder / "ima").write_bytes(ima_entry(file_data(1)))
    async with running(tpm, state, boot_logs=MeasuredHost(tpm, folder).settings) as agent:
        delivered = await agent.attest(b"output")
        assert Attestation.decode(delivered.encoded).boot_logs == {}
        assert {log["state"] for log in agent.status()["boot_logs"].values()} == {"absent"}
    assert all_replay(state) == [{}, {}]
    assert "boot log" not in caplog.text


async def test_logs_that_are_not_there_change_nothing(
    tpm: Tpm, tmp_path: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_state(tpm, state)
    tpm.extend(10, sha256(b"measured by nobody"))
    tpm.extend(0, sha256(b"measured by nobody"))
    async with running(tpm, state, boot_logs=MeasuredHost(tpm, tmp_path / "absent").settings) as agent:
        with tpm.counted() as codes:
            await agent.attest(b"output")
        assert len(codes) == 2
    assert all_replay(state) == [{}, {}]
    assert "boot log" not in caplog.text


def kexec(host: MeasuredHost) -> None:
    """Another kernel took over, whose log begins anew while PCR 10 goes on."""
    (host.folder / "ima").write_bytes(ima_entry(file_data(50)))
    host.tpm.extend(10, sha256(file_data(50)))


def foreign_pcr(host: MeasuredHost) -> None:
    """A policy measures into a PCR that no quote covers."""
    data = file_data(51)
    with (host.folder / "ima").open("ab") as file:
        file.write(ima_entry(data, pcr=23))
    host.run_files(1)


def false_template_hash(host: MeasuredHost) -> None:
    """A record's template hash is not that of its data, which is what was extended."""
    data = file_data(52)
    with (host.folder / "ima").open("ab") as file:
        file.write(ima_entry(data).replace(hashlib.sha1(data).digest(), b"\1" * 20))
    host.tpm.extend(10, sha256(data))


@pytest.mark.parametrize("defect", [kexec, foreign_pcr, false_template_hash])
async def test_an_ima_log_that_no_verifier_would_take_is_left_out_and_reported(
    host: MeasuredHost, state: Path, caplog: pytest.LogCaptureFixture, defect: object
) -> None:
    defect(host)  # type: ignore[operator]
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        for body in (b"one", b"two"):
            delivered = await agent.attest(body)
            assert set(Attestation.decode(delivered.encoded).boot_logs) == {"tcg"}
            assert step(judged(agent, delivered.encoded, body))[0] is CheckState.PASSED
        log = agent.status()["boot_logs"]["ima"]
    assert (log["state"], bool(log["reason"])) == ("left out", True)
    assert caplog.text.count("boot log ima is left out") == 1
    assert list((state / "log" / "boot").iterdir()) == []


async def test_a_firmware_log_that_does_not_replay_is_left_out_and_never_stored(
    host: MeasuredHost, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (host.folder / "tcg").write_bytes(BOOT.without(0).agile())
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        delivered = await agent.attest(b"output")
        assert set(Attestation.decode(delivered.encoded).boot_logs) == {"ima"}
        with pytest.raises(NotFound):
            agent.store.serve(f"blob/{sha256(host.tcg).hex()}")
        assert agent.status()["boot_logs"]["tcg"]["state"] == "left out"
    assert "boot log tcg is left out: " in caplog.text


async def test_the_firmwares_log_is_left_out_from_the_moment_on_when_its_pcrs_move(
    host: MeasuredHost, state: Path
) -> None:
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        await asyncio.to_thread(host.tpm.extend, 12, sha256(b"a service"))
        delivered = await agent.attest(b"output")
        assert set(Attestation.decode(delivered.encoded).boot_logs) == {"tcg", "ima"}
        await asyncio.to_thread(host.tpm.extend, 4, sha256(b"nobody knows what"))
        delivered = await agent.attest(b"output")
        assert set(Attestation.decode(delivered.encoded).boot_logs) == {"ima"}
        said = step(judged(agent, delivered.encoded, b"output"))[1]
        assert "no log says what PCR 8 and 9 were at boot" in said
    assert [set(sizes) for sizes in all_replay(state)] == [{"tcg", "ima"}, {"tcg", "ima"}, {"ima"}]


async def test_attestations_carry_nothing_where_the_operator_says_so_and_the_history_still_does(
    host: MeasuredHost, state: Path
) -> None:
    async with running(host.tpm, state, boot_logs=replace(host.settings, carried=False)) as agent:
        delivered = await agent.attest(b"output")
        assert Attestation.decode(delivered.encoded).boot_logs == {}
        assert await agent.fetch(delivered.output_id) == delivered.encoded
    assert [set(sizes) for sizes in all_replay(state)] == [{"tcg", "ima"}] * 2


async def test_where_nothing_moves_a_commit_reads_no_log_and_asks_the_tpm_nothing_more(
    host: MeasuredHost, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        await agent.attest(b"the first")

        def never(*_: object) -> None:
            raise AssertionError("a log was read")

        monkeypatch.setattr("quotary_attest.growing.GrowingFile.read", never)
        monkeypatch.setattr("quotary_attest.log.growing.GrowingLogs.append", never)
        with host.tpm.counted() as codes:
            await agent.attest(b"another")
        assert len(codes) == 2


async def test_a_static_export_holds_the_longest_part_of_each_boots_log(
    host: MeasuredHost, state: Path, tmp_path: Path
) -> None:
    logs = []
    for count in (2, 3):
        async with running(host.tpm, state, boot_logs=host.settings) as agent:
            for _ in range(2):
                await asyncio.to_thread(host.run_files, count)
                await agent.attest(b"output")
            await settled(agent.store)
            export(agent.store, tmp_path / "static")
        logs.append(host.ima)
        host.reboot()
    blobs = {path.name for path in (tmp_path / "static" / "blob").iterdir()}
    assert {sha256(log).hex() for log in logs} < blobs
    assert (tmp_path / "static" / "blob" / sha256(host.boot.agile()).hex()).read_bytes() == host.boot.agile()
    store = Store.open(state / "log")
    named = {commit.boot_logs["ima"] for commit in commits_of(store)}
    store.close()
    for digest, size in named:
        assert digest.hex() in blobs or any(sha256(log[:size]) == digest for log in logs)
    assert sum(digest.hex() in blobs for digest, _ in named) == len(logs)


async def test_what_was_appended_and_never_named_is_served_to_nobody(host: MeasuredHost, state: Path) -> None:
    agent = await start(host.tpm, state, boot_logs=host.settings)
    await agent.attest(b"output")
    await agent.close()
    (stored,) = (state / "log" / "boot").iterdir()
    stored.write_bytes(stored.read_bytes() + b"torn by a power cut")
    host.run_files(1)
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        delivered = await agent.attest(b"output")
        assert step(judged(agent, delivered.encoded, b"output"))[0] is CheckState.PASSED
        for name in ("00" * 32, sha256(b"").hex(), sha256(host.ima).hex().upper(), "../boot", ""):
            with pytest.raises(NotFound):
                agent.store.serve(f"blob/{name}")
    all_replay(state)
    assert len(list((state / "log" / "boot").iterdir())) == 1


async def test_a_stored_log_that_was_altered_is_not_served(host: MeasuredHost, state: Path) -> None:
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        await agent.attest(b"output")
        await settled(agent.store)
        (stored,) = (state / "log" / "boot").iterdir()
        stored.write_bytes(stored.read_bytes().replace(b"program", b"another"))
        with pytest.raises(DamagedError):
            agent.store.serve(f"blob/{sha256(host.ima).hex()}")


CHILD = Path(__file__).parent.parent / "support" / "engine_child.py"


async def killed(host: MeasuredHost, state: Path, point: str, skip: int) -> list[bytes]:
    """Run an agent in a process of its own until it kills itself; the attestations that it acknowledged."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(CHILD), host.tpm.tcti, str(state), point, str(skip), "3", str(host.folder)),
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": f"{CHILD.parent}:{Path(dtpm.__file__).parent}", "TSS2_LOG": "all+none"},
    )
    out, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    release(host.tpm)
    return [bytes.fromhex(line.decode()) for line in out.split()]


@pytest.mark.parametrize(
    ("point", "reboots"),
    [
        *[(point, False) for point in ("quoted", "boot-log-on-disk", "in-history", "applied")],
        *[(point, True) for point in ("boot-log-on-disk", "in-history")],
    ],
)
async def test_whatever_a_killed_agent_named_is_there_after_the_next_start(
    host: MeasuredHost, state: Path, point: str, reboots: bool
) -> None:
    acknowledged = await killed(host, state, point, -1)
    host.run_files(1)  # so that nobody names again what the dead agent named
    acknowledged += await killed(host, state, point, 0 if point != "boot-log-on-disk" else -1)
    if reboots:
        host.reboot(files=1)
    else:
        host.run_files(2)
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        delivered = await agent.attest(b"output")
        for number, attestation in enumerate(acknowledged):
            assert step(judged(agent, attestation, b"output %d" % number))[0] is CheckState.PASSED
        assert step(judged(agent, delivered.encoded, b"output"))[0] is CheckState.PASSED
    audit(state)
    all_replay(state)
    assert len(list((state / "log" / "boot").iterdir())) <= 2


async def test_the_names_of_all_parts_are_found_again_where_the_records_were_lost(
    host: MeasuredHost, state: Path
) -> None:
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        for _ in range(3):
            await asyncio.to_thread(host.run_files, 1)
            await agent.attest(b"output")
    for path in (state / "log").glob("records.sqlite*"):
        path.unlink()
    assert len({sizes["ima"] for sizes in all_replay(state)}) == 4


async def test_a_full_disk_keeps_the_commit_back_that_names_more_of_a_log(
    host: MeasuredHost, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        await agent.attest(b"output")
        write, full = growing.write_at, [True]

        def write_at(descriptor: int, data: bytes, offset: int, path: Path) -> None:
            if full:
                full.pop()
                raise StorageFull("the disk is full")
            write(descriptor, data, offset, path)

        monkeypatch.setattr(growing, "write_at", write_at)
        await asyncio.to_thread(host.run_files, 1)
        with pytest.raises(Unavailable, match="full"):
            await agent.attest(b"lost")
        async with asyncio.timeout(10):
            while agent.outage is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.002)  # it takes the chain up again by itself
        delivered = await agent.attest(b"output")
        assert step(judged(agent, delivered.encoded, b"output"))[0] is CheckState.PASSED
    assert not audit(state).gaps
    all_replay(state)
