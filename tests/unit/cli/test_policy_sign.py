# SPDX-License-Identifier: Apache-2.0
"""`attest policy key`, `sign` and `verify`, and signed policies wherever a policy is read."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from forge import NOW, Forge

import quotary
from quotary.checks import Checks
from quotary.judge import Judge
from quotary_cli.main import run
from quotary_verifier import PolicyError
from quotary_verifier.policy.signed import SignedPolicy, policy_key, sign_policy

HOST = Forge()
END = 4_102_444_800
"""2100-01-01T00:00:00Z: policies are signed at the clock's time."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a policy, an output with its attestation, and a key."""
    monkeypatch.chdir(tmp_path)
    Path("fleet.toml").write_text(HOST.policy())
    Path("out").write_bytes(HOST.body)
    Path("out.attestation").write_bytes(HOST.attestation().encode())
    assert run(["policy", "key", "--out", "key.pem"]) == 0
    return tmp_path


def sign(version: int = 1, out: str = "fleet.policy", *options: str, policy: str = "fleet.toml") -> int:
    end = ["--expires", str(END)] if "--days" not in options else []
    words = ["policy", "sign", policy, "--key", "key.pem", "--out", out, "--policy-version", str(version)]
    return run([*words, *end, *options])


def attest(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def verified(
    *words: str, capsys: pytest.CaptureFixture[str], policy: str = "fleet.policy"
) -> tuple[int, str]:
    at = ["--at", str(NOW)]
    code, found = attest("verify", "out", "--policy", policy, *at, *words, capsys=capsys)
    return code, found.get("error", "")


def test_a_signed_policy_is_taken_with_the_key_of_its_author_and_only_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sign() == 0
    assert verified("--policy-key", "key.pem.pub", capsys=capsys) == (0, "")
    code, error = verified(capsys=capsys)
    assert code == 2
    assert "no key was given" in error
    assert run(["policy", "key", "--out", "other.pem"]) == 0
    code, error = verified("--policy-key", "other.pem.pub", capsys=capsys)
    assert code == 2
    assert "none of those given" in error
    assert verified("--policy-key", "other.pem.pub", "--policy-key", "key.pem.pub", capsys=capsys)[0] == 0


def test_with_a_key_no_plain_policy_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = verified("--policy-key", "key.pem.pub", capsys=capsys, policy="fleet.toml")
    assert code == 2
    assert "not signed" in error


def test_a_policy_that_ended_is_not_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sign() == 0
    late = [
        "verify",
        "out",
        "--policy",
        "fleet.policy",
        "--policy-key",
        "key.pem.pub",
        "--at",
        str(END),
    ]
    code, found = attest(*late, capsys=capsys)
    assert code == 2
    assert "expired" in found["error"]


def test_with_a_state_no_older_policy_is_taken_and_no_second_one_of_a_version(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ("--policy-key", "key.pem.pub", "--policy-state", "seen.json")
    for version in (1, 2):
        assert sign(version, f"{version}.policy") == 0
    Path("fleet.toml").write_text(HOST.policy("# another\n"))
    assert sign(2, "2b.policy") == 0
    assert verified(*known, capsys=capsys, policy="1.policy")[0] == 0
    assert verified(*known, capsys=capsys, policy="2.policy")[0] == 0
    assert verified(*known, capsys=capsys, policy="2.policy")[0] == 0
    code, error = verified(*known, capsys=capsys, policy="1.policy")
    assert (code, "version 2 was seen" in error) == (2, True)
    code, error = verified(*known, capsys=capsys, policy="2b.policy")
    assert (code, "its author signed two" in error) == (2, True)
    assert sign(1, "named.policy", "--name", "laboratory") == 0
    assert verified(*known, capsys=capsys, policy="named.policy")[0] == 0
    assert verified("--policy-key", "key.pem.pub", capsys=capsys, policy="1.policy")[0] == 0


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"schema": "quotary-policy-state/v1", "seen": {"a": 1}}']
)
def test_a_state_that_cannot_be_read_is_refused_and_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    assert sign() == 0
    Path("seen.json").write_text(content)
    code, error = verified("--policy-key", "key.pem.pub", "--policy-state", "seen.json", capsys=capsys)
    assert (code, "not a file of policies seen" in error) == (2, True)
    assert Path("seen.json").read_text() == content


def test_policy_verify_says_what_was_signed_and_gives_the_policy_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sign(7) == 0
    words = ["policy", "verify", "fleet.policy", "--policy-key", "key.pem.pub", "--at", str(NOW)]
    code, found = attest(*words, "--out", "again.toml", capsys=capsys)
    assert (code, found["name"], found["version"], found["expires"]) == (
        0,
        "fleet",
        7,
        "2100-01-01T00:00:00Z",
    )
    assert Path("again.toml").read_bytes() == Path("fleet.toml").read_bytes()
    assert attest(*words, "--least-version", "8", capsys=capsys)[0] == 1
    data = bytearray(Path("fleet.policy").read_bytes())
    data[-1] ^= 1
    Path("fleet.policy").write_bytes(data)
    code, found = attest(*words, capsys=capsys)
    assert (code, "does not verify" in found["error"]) == (1, True)


def test_what_keeps_a_policy_from_being_signed_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["policy", "sign", "fleet.toml", "--key", "key.pem", "--out", "fleet.policy"]
    assert "--policy-version" in attest(*words, "--days", "3", capsys=capsys)[1]["hint"]
    assert "--days" in attest(*words, "--policy-version", "3", capsys=capsys)[1]["hint"]
    assert (
        "ended already"
        in attest(*words, "--policy-version", "3", "--expires", "9", capsys=capsys)[1]["error"]
    )
    Path("bad.toml").write_text("schema = 3\n")
    assert sign(policy="bad.toml") == 2
    assert sign(1, "fleet.policy", "--name", "a\nb") == 2
    assert sign() == 0
    assert sign(2, "twice.policy", policy="fleet.policy") == 2
    text = "version = 4\nexpires = 2100-01-01T00:00:00Z\n"
    Path("dated.toml").write_text(HOST.policy(head=text))
    assert sign(3, policy="dated.toml") == 2
    dated = ["policy", "sign", "dated.toml", "--key", "key.pem", "--out", "dated.policy"]
    code, found = attest(*dated, capsys=capsys)
    assert (code, found["version"], found["expires"]) == (0, 4, "2100-01-01T00:00:00Z")


def test_a_key_is_kept_to_its_owner_and_not_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stat.S_IMODE(Path("key.pem").stat().st_mode) == 0o600
    before = Path("key.pem").read_bytes()
    assert attest("policy", "key", "--out", "key.pem", capsys=capsys)[0] == 2
    assert Path("key.pem").read_bytes() == before


def test_a_key_with_a_passphrase_signs_with_it_and_not_without(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("secret").write_text("correct horse\n")
    assert run(["policy", "key", "--out", "safe.pem", "--passphrase-file", "secret"]) == 0
    words = [
        "policy",
        "sign",
        "fleet.toml",
        "--key",
        "safe.pem",
        "--out",
        "safe.policy",
        "--policy-version",
        "1",
    ]
    code, found = attest(*words, "--days", "1", capsys=capsys)
    assert (code, "--passphrase-file" in found["hint"]) == (2, True)
    assert attest(*words, "--days", "1", "--passphrase-file", "secret", capsys=capsys)[0] == 0


def test_the_consumers_library_takes_signed_policies_as_it_is_told(folder: Path) -> None:
    assert sign() == 0
    trust = quotary.PolicyTrust(keys=("key.pem.pub",), state="seen.json")
    checks = Checks("fleet.policy", policy_trust=trust, clock=lambda: NOW)
    assert Judge(checks).policy.version == 1
    with pytest.raises(PolicyError, match="no key was given"):
        Judge(Checks("fleet.policy", clock=lambda: NOW))
    with pytest.raises(PolicyError, match="not signed"):
        Judge(Checks(HOST.policy(), policy_trust=trust))
    with pytest.raises(PolicyError, match="expired"):
        Judge(Checks(Path("fleet.policy"), policy_trust=trust, clock=lambda: END))


def test_a_signature_of_another_version_than_the_policy_says_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private = load_pem_private_key(Path("key.pem").read_bytes(), None)
    assert isinstance(private, Ed25519PrivateKey)
    text = HOST.policy(head="version = 4\n").encode()
    for version, code in ((4, 0), (5, 2)):
        statement = SignedPolicy(text, "fleet", version, NOW - 1, END)
        data = sign_policy(statement, policy_key(private.public_key()), private.sign)
        Path("fleet.policy").write_bytes(data)
        assert verified("--policy-key", "key.pem.pub", capsys=capsys)[0] == code


def test_inspect_shows_a_signed_policy_and_that_nothing_was_verified(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sign(3) == 0
    code, found = attest("inspect", "fleet.policy", capsys=capsys)
    assert (code, found["kind"], found["status"]) == (0, "signed policy", "parsed, not verified")
    content = found["content"]
    assert (content["name"], content["version"], content["algorithm"]) == ("fleet", 3, -8)
    assert content["policy"]["authorities"][0]["name"] == HOST.authority.name


def test_inspect_shows_a_policy_with_the_lists_beside_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = b"ab" * 32 + b"  /usr/bin/true\n"
    (folder / "programs").write_bytes(listed)
    names = f'[[platform.ima.list]]\nfile = "programs"\nsha256 = "{hashlib.sha256(listed).hexdigest()}"\n'
    Path("fleet.toml").write_text(HOST.policy(names))
    code, found = attest("inspect", "fleet.toml", capsys=capsys)
    assert (code, found["content"]["ima"]["digests"]) == (0, 1)
    (folder / "programs").unlink()
    code, found = attest("inspect", "fleet.toml", capsys=capsys)
    assert (code, "programs" in found["error"]) == (1, True)
