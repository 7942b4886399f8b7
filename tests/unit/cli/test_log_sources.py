# SPDX-License-Identifier: Apache-2.0
"""Where a log is read from: one interface over servers, sockets and folders, and nothing that leads out of it."""

from __future__ import annotations

import datetime as dt
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from served_logs import Answer, answering, serving, serving_files

from quotary_cli.logsource import SourceFailed, SourceMissing, SourceTooLarge, open_source
from quotary_cli.main import run
from quotary_cli.output import ExitCode
from quotary_cli.sources.http import HttpSource, url_source
from quotary_cli.sources.paths import parse_path
from quotary_verifier.errors import MalformedError

TILE = bytes(range(256)) * 32
FILES = {"checkpoint": b"note", "tile/0/000": TILE, "cosigned/256": b"cosigned"}
MOST = 1 << 20


def folder_of(files: dict[str, bytes], folder: Path) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/checkpoint",
        "../checkpoint",
        "checkpoint/",
        "tile/0/../000",
        "tile/0/0",
        "tile/64/000",
        "tile/0/000.p/256",
        "tile/0/000.p/0",
        "tile/0/x000/001",
        "history/-01",
        "history/000/../000",
        "blob/" + 64 * "A",
        "blob/" + 63 * "a",
        "blob/../" + 64 * "a",
        "cosigned/0",
        "cosigned/01",
        "attestations/out_" + 47 * "a" + ".attestation",
        "attestations/" + 48 * "a" + ".attestation",
        "policy/.hidden",
        "policy/a/b",
        "policy/..",
        "policy/a\0b",
        "checkpoint\n",
    ],
)
def test_no_path_but_those_of_a_log_is_asked_for(path: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedError):
        parse_path(path)
    with pytest.raises(MalformedError), open_source(str(tmp_path)) as source:
        source.read(path, MOST)


def test_a_folder_and_a_server_give_the_same(tmp_path: Path) -> None:
    folder = folder_of(FILES, tmp_path)
    with serving_files(FILES, "/quotary/v1/") as served:
        for name in (str(folder), served.url, f"{served.url}/", f"{served.url}/quotary/v1"):
            with open_source(name) as source:
                assert source.name == name
                assert source.read("checkpoint", MOST) == b"note"
                assert source.read("tile/0/000", MOST) == TILE
                assert source.read("tile/0/000.p/3", MOST) == TILE[:96]
                with pytest.raises(SourceMissing, match="there is no cosigned/7") as missing:
                    source.read("cosigned/7", MOST)
                assert (missing.value.path, missing.value.code) == ("cosigned/7", ExitCode.NOT_CHECKED)
                with pytest.raises(SourceTooLarge, match="tile/0/000 has more than 8191 bytes"):
                    source.read("tile/0/000", 8191)


def test_one_connection_serves_a_thousand_reads() -> None:
    with serving_files(FILES, "/log/") as served, open_source(f"{served.url}/log/") as source:
        for _ in range(1000):
            source.read("tile/0/000", MOST)
        assert served.connections == 1
        with pytest.raises(SourceMissing):
            source.read("tile/1/000", MOST)
        source.read("checkpoint", MOST)
        assert served.connections == 1, "an answer without a file ends the connection"


def test_a_kept_connection_that_ended_is_made_anew() -> None:
    def answer(path: str) -> Answer:
        return 200, {"Connection": "close"} if len(served.asked) % 2 else {}, b"note"

    with serving(answer) as served, open_source(f"{served.url}/log") as source:
        for _ in range(6):
            assert source.read("checkpoint", MOST) == b"note"
        assert served.connections == 4


def test_a_busy_server_is_asked_again_a_few_times() -> None:
    pauses: list[float] = []
    with serving(lambda _: (503, {}, b"") if len(served.asked) < 4 else (200, {}, b"note")) as served:
        with url_source(f"{served.url}/log", pauses.append) as source:
            assert source.read("checkpoint", MOST) == b"note"
        assert pauses == [0.25, 1.0, 4.0]
    with (
        serving(lambda _: (503, {}, b"")) as served,
        url_source(f"{served.url}/log", lambda _: None) as source,
        pytest.raises(SourceFailed, match="the server answers 503 for checkpoint"),
    ):
        source.read("checkpoint", MOST)


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with (
        serving(lambda _: (302, {"Location": "http://127.0.0.1:1/"}, b"")) as served,
        open_source(f"{served.url}/log") as source,
        pytest.raises(SourceFailed, match="points to another place for checkpoint, which is not followed"),
    ):
        source.read("checkpoint", MOST)


def test_bytes_in_a_content_coding_are_refused() -> None:
    with (
        serving(lambda _: (200, {"Content-Encoding": "gzip"}, b"note")) as served,
        open_source(f"{served.url}/log") as source,
        pytest.raises(SourceFailed, match="content coding"),
    ):
        source.read("checkpoint", MOST)


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", "more than 65536 bytes"),
        (HEAD + b"\r\n" + bytes(70000), "more than 65536 bytes"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n11170\r\n" + bytes(70000), "more than 65536 bytes"),
        (HEAD + b"Content-Length: 9\r\n\r\nshort", "does not answer: "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "does not answer: "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + bytes(70000), "a size below zero"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-9\r\n" + bytes(70000), "a size below zero"),
        (HEAD + b"X: " + bytes(70000), "does not answer: "),
        (b"SSH-2.0-OpenSSH\r\n", "does not answer: "),
        (b"", "does not answer: "),
    ],
)
def test_an_answer_that_is_none_or_too_long_ends_the_read(reply: bytes, message: str) -> None:
    with answering(reply) as url, url_source(f"{url}/log", lambda _: None) as source:
        with pytest.raises(SourceFailed, match=message) as failed:
            source.read("checkpoint", MOST)
        assert failed.value.code in (ExitCode.FAILURE, ExitCode.REJECTED)


def test_a_server_that_never_ends_its_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quotary_cli.sources.http.OBJECT_SECONDS", 0.0)
    with (
        serving_files(FILES) as served,
        url_source(f"{served.url}/log", lambda _: None) as source,
        pytest.raises(SourceFailed, match="no whole answer within 0 seconds"),
    ):
        source.read("checkpoint", MOST)


def tls_server(folder: Path) -> ssl.SSLContext:
    """A context of a server with a certificate of its own making, which is left in the folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    begin = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), 7, begin, begin + dt.timedelta(days=2))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    (folder / "cert.pem").write_bytes(
        made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*private))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def test_a_server_is_read_over_tls_if_its_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: float) -> None:
        raise AssertionError("asked a server again whose certificate is not trusted")

    with serving(lambda _: (200, {}, b"note"), tls_server(tmp_path)) as served:
        with (
            url_source(f"{served.url}/log", never) as source,
            pytest.raises(SourceFailed, match="its certificate is not trusted: self"),
        ):
            source.read("checkpoint", MOST)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        with open_source(f"{served.url}/log") as source:
            assert source.read("checkpoint", MOST) == b"note"


def test_a_server_that_is_not_there_is_named_at_once() -> None:
    def never(_: float) -> None:
        raise AssertionError("waited for a server that never answered")

    with serving_files({}) as served:
        url = served.url
    with url_source(f"{url}/log", never) as source, pytest.raises(SourceFailed, match=f"{url}/log does not"):
        source.read("checkpoint", MOST)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://user:word@h/",
        "http://h/?a=b",
        "http://h/#x",
        "http://h:99999/",
        "http://h/\r\nX: y",
        "http://\u00fc.example/",
    ],
)
def test_an_address_that_says_more_than_where_is_refused(url: str) -> None:
    with pytest.raises(SourceFailed, match="not the address of a log") as refused:
        open_source(url)
    assert refused.value.code == ExitCode.USAGE


def test_a_name_that_no_host_can_have_is_no_crash() -> None:
    with (
        open_source(f"http://{64 * 'a'}.example/log") as source,
        pytest.raises(SourceFailed, match="does not"),
    ):
        source.read("checkpoint", MOST)


def test_links_pipes_and_folders_in_a_log_are_not_read(tmp_path: Path) -> None:
    folder = folder_of({"tile/0/000": TILE}, tmp_path / "log")
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "checkpoint").symlink_to(tmp_path / "secret")
    (folder / "history").symlink_to(tmp_path)
    (folder / "cosigned").mkdir()
    os.mkfifo(folder / "cosigned" / "1")
    (folder / "cosigned" / "2").mkdir()
    with open_source(str(folder)) as source:
        for path in ("checkpoint", "history/000", "cosigned/1", "cosigned/2"):
            with pytest.raises(SourceFailed, match=r"not a (plain file|folder)"):
                source.read(path, MOST)
        assert source.read("tile/0/000", MOST) == TILE


def test_a_folder_lists_what_follows_the_grammar(tmp_path: Path) -> None:
    names = ["policy/b.toml", "policy/a.toml", "policy/.c", "policy/d e"]
    with open_source(str(folder_of(dict.fromkeys(names, b""), tmp_path))) as source:
        assert list(source.paths("policy") or ()) == ["policy/a.toml", "policy/b.toml"]
        assert list(source.paths("attestations") or ()) == []


def test_what_is_no_log_is_named_with_what_would_be(tmp_path: Path) -> None:
    with pytest.raises(SourceFailed, match="no log is there") as refused:
        open_source(str(tmp_path / "nothing"))
    assert (refused.value.code, "https://" in refused.value.hint) == (ExitCode.USAGE, True)


@pytest.mark.parametrize("command", [("audit",), ("log", "query"), ("log", "show"), ("log", "export")])
def test_where_no_log_is_every_command_says_what_was_expected(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "host.example/{"a" * 32}"\n')
    more = {"log show": [], "log export": [str(tmp_path / "a.tar")]}
    (tmp_path / "empty").mkdir()
    with serving_files({}, "/log/") as served:
        for place in (str(tmp_path / "empty"), f"{served.url}/x"):
            words = [*command, place, *more.get(" ".join(command), ["-p", str(policy)])]
            assert run(words) == ExitCode.NOT_CHECKED
            shown = "".join(capsys.readouterr())
            assert "there is no checkpoint" in shown or command == ("log", "query")
            assert "https://HOST/quotary/v1/" in shown
    (tmp_path / "text").write_text("hello")
    for name in ("text", "policy.toml"):
        words = [*command, str(tmp_path / name), *more.get(" ".join(command), ["-p", str(policy)])]
        assert run(words) == ExitCode.USAGE
        assert "attest log export" in capsys.readouterr().err


def test_threads_have_connections_of_their_own() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with serving_files(FILES, "/log/") as served, open_source(f"{served.url}/log") as source:
        assert isinstance(source, HttpSource)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: source.read("tile/0/000", MOST), range(200)))
        assert set(found) == {TILE}
        assert served.connections <= 4
