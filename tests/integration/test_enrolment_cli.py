# SPDX-License-Identifier: Apache-2.0
"""Enrolment through the command line: the whole run by files, exit codes, and what openssl says of the result."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from enrolling import HOST, EnrollingHost, altered
from tpms import Tpm

from quotary_attest.enrol.files import Request
from quotary_attest.enrol.store import create_ca
from quotary_attest.state import read_certificates
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.tss import lib
from quotary_cli.main import run
from quotary_verifier.pki.chain import TrustAnchors, verify_ak_chain


class Desk:
    """A CA's folder, a host, and the files that go between them, all by commands."""

    def __init__(self, tpm: Tpm, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.host = EnrollingHost.make(tpm, folder / "state")
        self._capsys = capsys
        self._roots = folder / "ek-roots.pem"
        self._roots.write_bytes(tpm.machine.ek_root.read_bytes() + tpm.machine.ek_issuer.read_bytes())

    def file(self, name: str) -> Path:
        """A file in the test's folder."""
        return self.folder / name

    def ca(self, command: str, *arguments: object) -> tuple[int, Any]:
        """`attest ca COMMAND ca-folder ARGUMENTS --json`: exit code and object."""
        code = run(["ca", command, str(self.file("ca")), *map(str, arguments), "--json"])
        return code, json.loads(self._capsys.readouterr().out)

    def enroll(self, command: str, *arguments: object) -> tuple[int, Any]:
        """`attest agent enroll COMMAND --state state ARGUMENTS --json`: exit code and object."""
        line = ["agent", "enroll", command, "--state", str(self.host.folder), *map(str, arguments), "--json"]
        return run(line), json.loads(self._capsys.readouterr().out)

    def init(self, *options: object) -> tuple[int, Any]:
        """Make the CA."""
        return self.ca("init", "--name", "Example AK CA", *options)

    def request(self, *options: object) -> tuple[int, Any]:
        """The host asks."""
        return self.enroll("request", "--tpm", self.host.tpm.tcti, "--out", self.file("request"), *options)

    def challenge(self, *options: object) -> tuple[int, Any]:
        """The CA challenges."""
        files = (self.file("request"), "--ek-roots", self._roots, "--out", self.file("challenge"))
        return self.ca("challenge", *files, *options)

    def activate(self) -> tuple[int, Any]:
        """The host answers."""
        files = (self.file("challenge"), "--out", self.file("activation"))
        return self.enroll("activate", *files, "--tpm", self.host.tpm.tcti)

    def issue(self, *options: object) -> tuple[int, Any]:
        """The CA grants."""
        return self.ca("issue", self.file("activation"), "--out", self.file("grant"), *options)

    def install(self, *options: object) -> tuple[int, Any]:
        """The host installs."""
        return self.enroll("install", self.file("grant"), *options)


@pytest.fixture
def desk(tpm: Tpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    """A host that was not enrolled, and no CA yet."""
    return Desk(tpm, tmp_path, capsys)


@pytest.fixture
def enrolled(desk: Desk) -> Desk:
    """A host with a certificate."""
    for step in (desk.init, desk.request, desk.challenge, desk.activate, desk.issue, desk.install):
        code, said = step()
        assert code == 0, said
    return desk


def test_five_commands_and_four_files_enrol_a_host(
    enrolled: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ca", "show", str(enrolled.file("ca")), "--root"]) == 0
    anchors = TrustAnchors.from_pem(capsys.readouterr().out)
    endorsement = verify_ak_chain(read_certificates(enrolled.host.folder), anchors, datetime.now(UTC))
    assert endorsement.dns_names == (HOST,)
    assert endorsement.uris == (f"quotary://{enrolled.host.origin}",)


def test_show_lists_what_was_issued_and_what_is_open(enrolled: Desk) -> None:
    assert enrolled.request()[0] == enrolled.challenge("--hours", "2")[0] == 0
    code, said = enrolled.ca("show")
    assert code == 0
    assert said["root"]["name"] == "CN=Example AK CA"
    assert [entry["host"] for entry in said["issued"]] == [HOST]
    assert [entry["origin"] for entry in said["open"]] == [enrolled.host.origin]


def test_show_speaks_to_people_too(enrolled: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ca", "show", str(enrolled.file("ca"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "CN=Example", "AK", "CA"]
    assert lines[-1].startswith(f"issued  {enrolled.host.origin}  until 2")


def test_answers_are_readable_by_their_owner_only(enrolled: Desk) -> None:
    for name in ("request", "challenge", "activation", "grant"):
        assert enrolled.file(name).stat().st_mode & 0o777 == 0o600


def test_a_refused_request_ends_with_one_and_a_hint_and_writes_nothing(enrolled: Desk) -> None:
    second = EnrollingHost.make(enrolled.host.tpm, enrolled.file("second"), HOST)
    enrolled.file("request").write_bytes(second.request())
    enrolled.file("challenge").unlink()
    code, said = enrolled.challenge()
    assert (code, said["exit"]) == (1, 1)
    assert "another attestation key" in said["error"] and "--replace" in said["hint"]
    assert not enrolled.file("challenge").exists()
    assert enrolled.challenge("--replace")[0] == 0


def test_a_request_for_another_host_ends_with_one(desk: Desk) -> None:
    desk.init()
    desk.request()
    code, said = desk.challenge("--host", "gpu-9.example.com")
    assert code == 1
    assert "not for gpu-9.example.com" in said["error"]


def test_a_changed_answer_ends_with_one(desk: Desk) -> None:
    for step in (desk.init, desk.request, desk.challenge, desk.activate):
        assert step()[0] == 0
    answer = desk.file("activation")
    answer.write_bytes(altered(answer.read_bytes(), 7, lambda proof: proof[::-1]))
    code, said = desk.issue()
    assert code == 1
    assert said["error"] == "the activation does not prove that the challenge was opened"


def test_an_unknown_version_ends_with_three(desk: Desk) -> None:
    desk.init()
    desk.request()
    desk.file("request").write_bytes(altered(desk.file("request").read_bytes(), 1, lambda _: 2))
    assert desk.challenge()[0] == 3


def test_a_file_that_is_no_enrolment_file_ends_with_one(desk: Desk) -> None:
    desk.init()
    desk.file("request").write_bytes(bytes(70_000))
    code, said = desk.challenge()
    assert code == 1
    assert "are allowed" in said["error"]


def test_a_folder_without_a_ca_ends_with_two(desk: Desk) -> None:
    desk.request()
    desk.file("ca").mkdir()
    code, said = desk.challenge()
    assert (code, said["hint"]) == (2, "make one with `attest ca init`")


def test_a_second_ca_in_one_folder_ends_with_two(desk: Desk) -> None:
    assert desk.init()[0] == 0
    before = desk.file("ca").joinpath("key.pem").read_bytes()
    assert desk.init()[0] == 2
    assert desk.file("ca").joinpath("key.pem").read_bytes() == before


def test_a_file_with_no_root_ends_with_two(desk: Desk) -> None:
    desk.init()
    desk.request()
    leaf = desk.file("ek-roots.pem")
    leaf.write_text("nothing")
    assert desk.challenge()[0] == 2


def test_a_tpm_that_is_not_there_ends_with_four(desk: Desk) -> None:
    code, said = desk.enroll("request", "--tpm", "device:/nonexistent/tpm", "--out", desk.file("request"))
    assert code == 4
    assert said["hint"]


def test_a_folder_without_an_origin_ends_with_four(desk: Desk) -> None:
    desk.file("state").joinpath("identity").unlink()
    code, said = desk.request()
    assert (code, said["hint"]) == (4, "make one with `attest agent init`")


@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_an_endorsement_certificate_may_come_from_a_file(desk: Desk, encoding: Encoding) -> None:
    der = Request.decode(desk.host.request(kind="rsa-2048")).ek_certificate
    issuer = x509.load_pem_x509_certificate(desk.host.tpm.machine.ek_issuer.read_bytes())
    leaf, middle = desk.file("ek"), desk.file("issuer")
    leaf.write_bytes(x509.load_der_x509_certificate(der).public_bytes(encoding))
    middle.write_bytes(issuer.public_bytes(encoding))
    assert desk.request("--ek-certificate", leaf, "--ek-intermediate", middle)[0] == 0
    made = Request.decode(desk.file("request").read_bytes())
    assert (made.ek_certificate, made.intermediates) == (der, (issuer.public_bytes(Encoding.DER),))


def test_a_file_that_is_no_certificate_ends_with_two(desk: Desk) -> None:
    desk.file("ek").write_text("nothing")
    code, said = desk.request("--ek-certificate", desk.file("ek"))
    assert (code, said["error"]) == (2, f"{desk.file('ek')}: not a certificate")


def test_an_unusable_certificate_among_the_roots_is_named_and_spoils_nothing(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.init()
    desk.request()
    roots = desk.file("ek-roots.pem")
    leaf = x509.load_der_x509_certificate(Request.decode(desk.file("request").read_bytes()).ek_certificate)
    roots.write_bytes(leaf.public_bytes(Encoding.PEM) + roots.read_bytes())
    assert run(["ca", "challenge", *map(str, (desk.file("ca"), desk.file("request"))), "--ek-roots", str(roots),
                "--out", str(desk.file("challenge"))]) == 0  # fmt: skip
    assert "certificate 1 left out: not a ca certificate" in capsys.readouterr().err


def test_without_a_root_among_the_roots_it_ends_with_two(desk: Desk) -> None:
    desk.init()
    desk.request()
    desk.file("ek-roots.pem").write_bytes(desk.host.tpm.machine.ek_issuer.read_bytes())
    code, said = desk.challenge()
    assert (code, said["hint"]) == (2, "name a file with the manufacturer's root")


def test_an_answer_that_cannot_be_written_ends_with_four(desk: Desk) -> None:
    desk.init()
    desk.request()
    files = (
        desk.file("request"),
        "--ek-roots",
        desk.file("ek-roots.pem"),
        "--out",
        "/proc/nowhere/challenge",
    )
    assert desk.ca("challenge", *files)[0] == 4


def test_the_endorsement_hierarchys_authorisation_comes_from_a_file(desk: Desk) -> None:
    with Connection(desk.host.tpm.tcti) as connection:
        connection.commands.hierarchy_change_auth(lib.ESYS_TR.ENDORSEMENT, b"owner's word")
    code, said = desk.request()
    assert code == 4
    assert "authoris" in said["error"]
    desk.file("auth").write_text("owner's word\n")
    assert desk.request("--endorsement-auth-file", desk.file("auth"))[0] == 0


def test_an_encrypted_key_needs_its_passphrase_and_a_wrong_one_costs_no_challenge(desk: Desk) -> None:
    right, wrong = desk.file("passphrase"), desk.file("wrong")
    right.write_text("correct horse\nsecond line\n")
    wrong.write_text("battery staple\n")
    assert desk.init("--passphrase-file", right)[0] == 0
    assert "ENCRYPTED" in desk.file("ca").joinpath("key.pem").read_text()
    for step in (desk.request, desk.challenge, desk.activate):
        assert step()[0] == 0
    assert desk.issue()[0] == 2
    assert desk.issue("--passphrase-file", wrong)[0] == 2
    assert desk.issue("--passphrase-file", right)[0] == 0


def test_a_passphrase_for_a_key_without_one_ends_with_two(desk: Desk) -> None:
    desk.file("passphrase").write_text("word\n")
    for step in (desk.init, desk.request, desk.challenge, desk.activate):
        assert step()[0] == 0
    assert desk.issue("--passphrase-file", desk.file("passphrase"))[0] == 2


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 2000])
def test_a_file_without_a_passphrase_ends_with_two(desk: Desk, content: bytes) -> None:
    desk.file("passphrase").write_bytes(content)
    assert desk.init("--passphrase-file", desk.file("passphrase"))[0] == 2


def test_the_root_may_be_named_to_install(desk: Desk) -> None:
    for step in (desk.init, desk.request, desk.challenge, desk.activate, desk.issue):
        assert step()[0] == 0
    create_ca(desk.file("stranger"), name="Another CA", now=datetime.now(UTC), days=1)
    assert desk.install("--root", desk.file("stranger") / "root.pem")[0] == 1
    assert desk.install("--root", desk.file("ca") / "root.pem")[0] == 0


# openssl as a judge

openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def ask_openssl(*arguments: object) -> str:
    """Run openssl and return what it prints; AssertionError where it fails."""
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def pem(enrolled: Desk) -> Callable[[], Path]:
    """The installed certificate as a PEM file."""
    (der,) = read_certificates(enrolled.host.folder)
    path = enrolled.file("ak.pem")
    path.write_bytes(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
    return lambda: path


@pytest.mark.judge
@openssl
def test_openssl_verifies_the_certificate_strictly(enrolled: Desk, pem: Callable[[], Path]) -> None:
    after = int((datetime.now(UTC) + timedelta(days=1)).timestamp())
    root = enrolled.file("ca") / "root.pem"
    said = ask_openssl("verify", "-x509_strict", "-check_ss_sig", "-attime", after, "-CAfile", root, pem())
    assert said.strip().endswith(": OK")
    assert "does match" in ask_openssl("x509", "-in", pem(), "-noout", "-checkhost", HOST)


@pytest.mark.judge
@openssl
def test_openssl_reads_in_the_certificate_what_was_meant(enrolled: Desk, pem: Callable[[], Path]) -> None:
    text = ask_openssl("x509", "-in", pem(), "-noout", "-text")
    lines = [line.strip() for line in text.splitlines()]
    for title, value in (
        ("X509v3 Basic Constraints: critical", "CA:FALSE"),
        ("X509v3 Key Usage: critical", "Digital Signature"),
        ("X509v3 Extended Key Usage:", "2.23.133.8.3"),
    ):
        assert lines[lines.index(title) + 1] == value
    names = lines[lines.index("X509v3 Subject Alternative Name: critical") + 1]
    assert names.startswith(f"DNS:{HOST}, URI:quotary://{enrolled.host.origin}, DirName:")
    assert "2.23.133.2.1=id:00001014" in names and "2.23.133.2.2=swtpm" in names
