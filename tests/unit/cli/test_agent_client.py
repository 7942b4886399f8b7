# SPDX-License-Identifier: Apache-2.0
"""The commands that speak to a running agent, where something else answers; and command lines that cannot be used."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from quotary_cli.main import run

STRANGE = [
    b"",
    b"no json",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b'{"outputs": 1}',
    b'{"outputs": []}',
    b'{"outputs": [1]}',
    b'{"outputs": [{}]}',
    b'{"outputs": [{"output_id": 1, "attestation": "zz!"}]}',
    b'{"outputs": [{"output_id": [1], "attestation": 3}]}',
]


@contextmanager
def answering(body: bytes, status: bytes = b"200 OK") -> Iterator[Path]:
    """Something that listens on a Unix socket and answers one request with `body`."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "socket"
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                head = b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
                connection.sendall(head + body)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # what is closed unread would reset the connection
                    pass

        thread = Thread(target=serve)
        thread.start()
        yield path
        thread.join()


@pytest.mark.parametrize("body", STRANGE, ids=lambda body: body[:40].decode())
def test_what_answers_like_no_agent_ends_with_four_and_writes_nothing(
    body: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for command in (["sign", str(file)], ["status"]):
        with answering(body) as path:
            assert run(["agent", *command, "--socket", str(path), "--json"]) == 4
        assert "is not the agent" in json.loads(capsys.readouterr().out)["error"]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--upstream", "ftp://x", "--listen", "127.0.0.1:0"], "--upstream: "),
        (["--upstream", "http://a:99999", "--listen", "127.0.0.1:0"], "--upstream: "),
        (["--upstream", "http://a", "--listen", "nowhere"], "not HOST:PORT"),
        (["--upstream", "http://a"], "belong together"),
        (["--model", "no such file"], "no such file"),
        (["--model", "\udcff=FILE"], "is not utf-8"),
        (["--model", "a" * 501 + "=FILE"], "1 to 500 bytes"),
        (["--", "argument"], "need --engine"),
        (["--allow-uid", "65534"], "--allow-uid needs --socket"),
        (
            [
                "--model",
                "a=FILE",
                "--engine",
                "FILE",
                "--start-engine",
                "--upstream",
                "http://a",
                "--listen",
                "b:1",
                "--",
                "x",
            ],
            "arguments after --: has no place for what was measured",
        ),
    ],
)
def test_a_command_line_that_cannot_be_used_is_refused_before_the_agent_starts(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"x")
    given = [argument.replace("FILE", str(file)) for argument in arguments]
    assert run(["agent", "run", "--state", str(tmp_path), *given]) == 2
    assert words in capsys.readouterr().err


def test_a_life_of_a_challenge_that_is_no_number_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    command = [
        "ca",
        "challenge",
        str(tmp_path),
        str(file),
        "--ek-roots",
        str(file),
        "-o",
        str(tmp_path / "o"),
    ]
    assert run([*command, "--hours", "nan"]) == 2
    assert "--hours" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("expiry", "shown"),
    [("1826985442", "2027-11-23T15:57:22Z"), ("99999999999999999999", "99999999999999999999")],
)
def test_status_shows_when_the_certificate_ends_as_a_date(
    expiry: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(b'{"origin": "o", "certificate_expiry": %b}' % expiry.encode()) as agent:
        assert run(["agent", "status", "--socket", str(agent)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["certificate", "expiry", shown]


def test_status_says_in_words_what_became_of_the_logs_of_the_boot(capsys: pytest.CaptureFixture[str]) -> None:
    logs = {
        "tcg": {"state": "named", "bytes": 30000, "reason": ""},
        "ima": {"state": "left out", "bytes": 0, "reason": "it cannot be read: permission denied"},
        "other": {"state": "off"},
        "odd": 1,
    }
    with answering(json.dumps({"origin": "o", "boot_logs": logs}).encode()) as agent:
        assert run(["agent", "status", "--socket", str(agent)]) == 0
    said = " ".join(capsys.readouterr().out.splitlines()[1].split())
    assert said == (
        "boot logs tcg: named (30000 bytes), ima: left out (it cannot be read: permission denied), "
        "other: off, odd: 1"
    )


@pytest.mark.parametrize(("status", "hinted"), [(b"503 Unavailable", True), (b"404 Not Found", False)])
def test_an_agent_that_cannot_attest_is_asked_for_its_reason(
    status: bytes, hinted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(b'{"error": {"message": "not now"}}', status) as agent:
        words = ["agent", "quote", "--nonce", "00" * 8, "--out", str(tmp_path / "q"), "--socket", str(agent)]
        assert run(words) == 4
    said = capsys.readouterr().err
    assert said.startswith("error: not now")
    assert ("attest agent status" in said) is hinted
