# SPDX-License-Identifier: Apache-2.0
"""`attest agent doctor` finds what is wrong with a host, says it in one finding each, and changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from agents import make_state, pcr_of, start
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import NameOID
from measured_host import MeasuredHost
from tpms import Tpm

from quotary_attest.doctor import attestation_key_of
from quotary_attest.state import install_certificates, read_identity
from quotary_cli.main import run

HEALTHS = {"good", "warning", "wrong", "not checked"}


@pytest.fixture
def state(tpm: Tpm, tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    return folder


@pytest.fixture(autouse=True)
def _clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is kept right, whatever the host of the tests is."""
    said = tmp_path / "bin"
    said.mkdir()
    (said / "timedatectl").write_text("#!/bin/sh\necho yes\n")
    (said / "timedatectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{said}:{os.environ['PATH']}")


def examine(
    tpm: Tpm, state: Path, capsys: pytest.CaptureFixture[str], text: str = ""
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the findings by what they are of."""
    file = state.parent / "agent.toml"
    file.write_text(f'[state]\nfolder = "{state}"\n[tpm]\ntcti = "{tpm.tcti}"\n{text}')
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(["agent", "doctor", "--config", str(file), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == "quotary-agent-doctor/v1"
    assert shown["exit"] == caught.value.code
    assert {finding["health"] for finding in shown["findings"]} <= HEALTHS
    return shown["exit"], {finding["what"]: finding for finding in shown["findings"]}


def test_a_host_that_can_attest_has_nothing_wrong_and_is_left_as_it_was(
    tpm: Tpm, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in state.rglob("*")}
    pcrs = [pcr_of(tpm, number) for number in (13, 15)]
    with socket.create_server(("127.0.0.1", 0)) as engine:
        door = f'[[proxy]]\nupstream = "http://127.0.0.1:{engine.getsockname()[1]}"\nlisten = "127.0.0.1:0"\n'
        code, found = examine(tpm, state, capsys, door)
    assert code == 0
    tees = {what for what in found if what.startswith("tee")}  # whatever this machine has
    assert tees
    assert {found[what]["health"] for what in tees} == {"good"}
    assert {what: each["health"] for what, each in found.items() if what not in tees} == {
        "state": "good",
        "permissions": "good",
        "disk": "good",
        "tpm": "good",
        "resource manager": "good",
        "key": "good",
        "start counter": "good",
        "certificate": "warning",
        "clock": "good",
        "proxy[0].upstream": "good",
        "proxy[0].listen": "good",
    }
    assert {path: path.stat().st_mtime_ns for path in state.rglob("*")} == before
    assert [pcr_of(tpm, number) for number in (13, 15)] == pcrs
    assert tpm.board.counts[0x134] == 1, "the counter was incremented when it was made, and not since"


def test_a_root_that_is_configured_and_cannot_be_used_is_wrong(
    tpm: Tpm, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = examine(tpm, state, capsys, f'[[root]]\nkind = "nitro"\ndevice = "{tmp_path}/nsm"\n')
    assert code == 4
    assert found["tee nitro"]["health"] == "wrong"
    assert found["tee nitro"]["text"] == f"there is no {tmp_path}/nsm"
    assert "modprobe" in found["tee nitro"]["hint"]


def logs_of(host: MeasuredHost) -> str:
    return f'[boot_logs]\ntcg = "{host.settings.tcg}"\nima = "{host.settings.ima}"\n'


def test_the_logs_of_a_measured_boot_are_read_and_replayed(
    tpm: Tpm, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = MeasuredHost(tpm, state.parent / "logs").start()
    code, found = examine(tpm, state, capsys, logs_of(host))
    assert (found["firmware's log"]["health"], found["ima log"]["health"]) == ("good", "good")
    assert found["ima log"]["text"] == f"its first {len(host.ima)} bytes replay to the tpm's pcrs"
    assert code == 0


def test_logs_that_do_not_replay_or_are_not_there_are_warned_of(
    tpm: Tpm, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = MeasuredHost(tpm, state.parent / "logs").start()
    (host.folder / "tcg").write_bytes(host.boot.without(1).agile())
    (host.folder / "ima").write_bytes(host.ima[:-1])
    code, found = examine(tpm, state, capsys, logs_of(host))
    assert found["firmware's log"]["health"] == found["ima log"]["health"] == "warning"
    assert "does not replay" in found["firmware's log"]["text"]
    assert "no part of it leads to" in found["ima log"]["text"]
    assert code == 0
    for path in host.folder.iterdir():
        path.unlink()
        path.mkdir()
    _, found = examine(tpm, state, capsys, logs_of(host))
    assert found["firmware's log"]["text"].endswith(": is a directory")
    assert found["ima log"]["text"].endswith(": is a directory")
    for path in host.folder.iterdir():
        path.rmdir()
    _, found = examine(tpm, state, capsys, logs_of(host))
    assert "is not there" in found["firmware's log"]["text"]
    assert "ima log" not in found
    _, found = examine(tpm, state, capsys, logs_of(host) + "read = false\n")
    assert not {"firmware's log", "ima log"} & found.keys()


def test_people_are_told_in_lines_with_hints(
    tpm: Tpm, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["agent", "doctor", "--state", str(state), "--tpm", tpm.tcti])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert "warning      certificate       none is installed" in shown
    assert "hint: consumers must pin the origin" in shown
    assert "\x1b" not in shown


async def test_an_agent_that_runs_is_asked_how_it_is(
    tpm: Tpm, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = await start(tpm, state)
    try:
        code, found = await asyncio.to_thread(examine, tpm, state, capsys)
        assert code == 4
        assert "does not answer" in found["agent"]["text"], "it has no local interface here"
        assert found["start counter"]["health"] == "good"
    finally:
        await agent.close()


def certificate(state: Path, *, days: int, mine: bool = True) -> bytes:
    """A certificate of the attestation key, or of another, that ends in so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = load_der_public_key(attestation_key_of(read_identity(state))) if mine else key.public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = datetime.now(UTC)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    builder = x509.CertificateBuilder(name, name, public, x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=99)).not_valid_after(now + timedelta(days=days))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("days", "mine", "health", "text"),
    [
        (400, True, "good", "valid until"),
        (10, True, "warning", "runs out on"),
        (-1, True, "wrong", "ran out on"),
        (400, False, "wrong", "not of this origin's attestation key"),
    ],
)
def test_a_certificate_is_held_against_the_key_and_the_time(
    tpm: Tpm,
    state: Path,
    capsys: pytest.CaptureFixture[str],
    days: int,
    mine: bool,
    health: str,
    text: str,
) -> None:
    install_certificates(state, [certificate(state, days=days, mine=mine)])
    code, found = examine(tpm, state, capsys)
    assert found["certificate"]["health"] == health
    assert text in found["certificate"]["text"]
    assert code == (4 if health == "wrong" else 0)


def test_each_thing_that_is_wrong_is_found(
    tpm: Tpm, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state.chmod(0o755)
    (state / "starts").write_text("9\n")
    (tmp_path / "bin" / "timedatectl").write_text("#!/bin/sh\necho no\n")
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as gone:
        port, dead = taken.getsockname()[1], gone.getsockname()[1]
        gone.close()
        text = (
            f'[[proxy]]\nupstream = "http://127.0.0.1:{dead}"\nlisten = "127.0.0.1:{port}"\n'
            f'[[model]]\nname = "m"\nfiles = ["{tmp_path}/no-weights"]\n'
        )
        code, found = examine(tpm, state, capsys, text)
    assert code == 4
    assert {what: each["health"] for what, each in found.items() if each["health"] != "good"} == {
        "model[0].files[0]": "wrong",
        "permissions": "wrong",
        "start counter": "wrong",
        "certificate": "warning",
        "clock": "warning",
        "proxy[0].upstream": "warning",
        "proxy[0].listen": "wrong",
    }
    assert "old copy" in found["start counter"]["hint"]


def test_a_tpm_that_is_gone_is_wrong_and_the_rest_is_looked_at_all_the_same(
    tpm: Tpm, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tpm.gone()
    code, found = examine(tpm, state, capsys)
    assert (code, found["tpm"]["health"], found["clock"]["health"]) == (4, "wrong", "good")
    assert found["tpm"]["hint"]


def test_what_nobody_can_say_is_not_checked(
    tpm: Tpm, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin" / "timedatectl").write_text("#!/bin/sh\nexit 1\n")
    code, found = examine(tpm, state, capsys)
    assert (code, found["clock"]["health"]) == (3, "not checked")


def test_a_configuration_that_cannot_be_used_is_wrong_usage(
    tpm: Tpm, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "agent.toml").write_text("[stat]\n")
    assert run(["agent", "doctor", "--config", str(tmp_path / "agent.toml")]) == 2
    assert "stat: is no key" in capsys.readouterr().err


def test_a_folder_without_an_origin_is_wrong(
    tpm: Tpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    code, found = examine(tpm, tmp_path / "empty", capsys)
    assert (code, list(found)) == (4, ["state"])
