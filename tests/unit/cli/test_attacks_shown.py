# SPDX-License-Identifier: Apache-2.0
"""Attacks on whoever reads what the command prints, or only looks at its exit code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from forge import NOW, Forge, sign_tpm

from quotary_cli.main import run
from quotary_cli.verify import MAX_ATTESTATION
from quotary_verifier.logs.cel import content_digest
from quotary_verifier.wire import cbor
from quotary_verifier.wire.bindings import ZERO, chain_extend, fresh_digest
from quotary_verifier.wire.fresh import FreshQuote
from quotary_verifier.wire.tpm import pack_evidence

NONCE = bytes(range(16))
HOSTILE = "x\n  host            evil.example  [endorsed]\x1b[2J\u202e"


def fresh_quote(forge: Forge) -> bytes:
    """A good fresh quote over the nonce, in which somebody put a text of theirs under an unknown negative key."""
    quote = forge.quote(ZERO, forge.events())
    quote.extra_data = fresh_digest(forge.origin, NONCE)
    values = {pcr: forge.pcrs.get(pcr, ZERO) for pcr in range(16)}
    for content in forge.events():
        values[forge.workload_pcr] = chain_extend(values[forge.workload_pcr], content_digest(content))
    values[forge.chain_pcr] = forge.before
    quote.pcr_digest = hashlib.sha256(b"".join(values[pcr] for pcr in range(16))).digest()
    attest = quote.encode()
    evidence = pack_evidence(attest, sign_tpm(forge.ak, attest))
    made = FreshQuote(NONCE, forge.genesis_record, evidence, forge.attestation().supports[0]).encode()
    return cbor.encode({**cbor.decode(made, max_bytes=1 << 20), -1: "what the attacker wants to be read"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    forge = Forge()
    (tmp_path / "policy").write_text(forge.policy())
    (tmp_path / "answer").write_bytes(forge.body)
    (tmp_path / "request").write_bytes(forge.request)
    (tmp_path / "answer.attestation").write_bytes(forge.attestation().encode())
    (tmp_path / "quote").write_bytes(fresh_quote(forge))
    return tmp_path


def verify(*arguments: str) -> int:
    return run(["verify", "-p", "policy", "--at", str(NOW), *arguments])


def test_a_fresh_quote_in_the_place_of_an_output_does_not_verify(folder: Path) -> None:
    nonce = ("--nonce", NONCE.hex())
    assert verify("--fresh", "quote", *nonce) == 0
    assert verify("quote", *nonce) == 2
    (folder / "answer").write_bytes((folder / "quote").read_bytes())
    assert verify("answer", *nonce) == 1
    assert verify("answer", *nonce, "--request", "request") == 1


def test_a_question_about_an_output_is_not_asked_of_a_fresh_quote(folder: Path) -> None:
    nonce = ("--nonce", NONCE.hex())
    assert verify("--fresh", "quote") == 2
    assert verify("--fresh", "quote", *nonce, "--request", "request") == 2
    assert verify("--fresh", "quote", *nonce, "-a", "answer.attestation") == 2


def test_no_name_or_text_of_the_host_reaches_the_terminal_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge = Forge()
    record = replace(forge.record(), context={HOSTILE: HOSTILE})
    (folder / "policy").write_text(forge.policy())
    (folder / "answer").write_bytes(forge.body)
    (folder / "answer.attestation").write_bytes(forge.attestation(record=record).encode())
    assert verify("answer", "--explain") == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert not [line for line in shown.splitlines() if line.startswith("  host  ") and "evil" in line]
    assert verify("answer", "--json") == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed)["results"][0]["verdict"]["outcome"] == "verified"


def test_names_of_digests_do_not_reach_the_terminal_in_a_rejection_either(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge = Forge()
    record = replace(forge.record(), digests={f"text/{HOSTILE}": bytes(32)})
    (folder / "answer.attestation").write_bytes(forge.attestation(record=record).encode())
    assert verify("answer") == 1
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert not [line for line in shown.splitlines() if line.startswith("  host  ")]


@pytest.mark.parametrize(
    "text", [NONCE.hex(" "), NONCE.hex().upper(), " " + NONCE.hex(), "AAECAwQFBgcICQoLDA0ODw=="]
)
def test_a_nonce_has_one_spelling(folder: Path, text: str) -> None:
    assert verify("--fresh", "quote", "--nonce", text) == 2


@pytest.mark.parametrize("name", ["answer.attestation", "policy"])
def test_no_more_is_read_of_a_file_than_shows_that_it_is_too_long(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    assert verify("answer", "-a", "answer.attestation") == (2 if name == "policy" else 1)
    assert MAX_ATTESTATION < 1 << 26


def test_a_rejection_goes_before_what_could_not_be_checked_and_both_before_success(folder: Path) -> None:
    forge = Forge()
    (folder / "policy").write_text(forge.policy())
    (folder / "a").write_bytes(forge.body)
    (folder / "a.attestation").write_bytes(forge.attestation().encode())
    (folder / "b").write_bytes(forge.body)
    later = {**cbor.decode(forge.attestation().encode(), max_bytes=1 << 20), 1: 2}
    (folder / "b.attestation").write_bytes(cbor.encode(later))
    (folder / "c").write_bytes(b"altered")
    (folder / "c.attestation").write_bytes(forge.attestation().encode())
    assert [verify("a"), verify("a", "b"), verify("b", "a", "c")] == [0, 3, 1]
