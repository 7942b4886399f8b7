# SPDX-License-Identifier: Apache-2.0
"""`aics-tlog`, another implementation of the C2SP log specifications, judges our notes, proofs and tiles."""

from __future__ import annotations

import json
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from judge_tools import newer_python, venv_with
from nacl.signing import SigningKey
from rfc6962 import consistency_proof, inclusion_path, tree
from tile_log import entry_bundles, hash_tiles, root_of_leaves

from quotary_verifier.errors import EvidenceError
from quotary_verifier.tlog import merkle
from quotary_verifier.tlog.checkpoint import Checkpoint, parse_checkpoint
from quotary_verifier.tlog.compact import leaf_hashes
from quotary_verifier.tlog.cosignature import cosign, quorum_time, verify_cosignatures
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, HardwareLine, encode_hardware_line
from quotary_verifier.tlog.note import (
    TYPE_COSIGNATURE,
    TYPE_ED25519,
    Note,
    SignatureLine,
    VerifierKey,
    open_note,
    parse_note,
    parse_vkey,
    sign_ed25519,
)

# The first run makes the judge's environment.
pytestmark = [pytest.mark.judge, pytest.mark.timeout(900)]

Ask = Callable[..., list[dict[str, Any]]]

AICS = "aics-tlog==0.2.1"
ORIGIN = "host.example/abcdefghijklmnopqrstuvwxyz234567"
KEY = SigningKey(bytes(range(32)))
LOG = VerifierKey(ORIGIN, TYPE_ED25519, bytes(KEY.verify_key))
WITNESS_KEYS = [SigningKey(bytes([number]) * 32) for number in range(3)]
WITNESSES = [
    VerifierKey(f"witness{number}.example", TYPE_COSIGNATURE, bytes(key.verify_key))
    for number, key in enumerate(WITNESS_KEYS)
]
TEXT = Checkpoint(ORIGIN, 600, bytes(range(32))).text
ED25519 = sign_ed25519(TEXT, ORIGIN, KEY)
HARDWARE = encode_hardware_line(ORIGIN, b"spki", HardwareLine(IDENTIFIER_TPM2_QUOTE, 590, b"quote" * 60))
COSIGNATURES = [
    cosign(TEXT, witness.name, key, 1_700_000_000 + number)
    for number, (witness, key) in enumerate(zip(WITNESSES, WITNESS_KEYS, strict=True))
]


@pytest.fixture(scope="module")
def ask() -> Ask:
    """Puts questions to the judge."""
    python = venv_with(AICS, newer_python(12)) / "bin" / "python"
    program = Path(__file__).parent / "aics_judge.py"

    def put(*questions: dict[str, Any]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [str(python), "-I", str(program)],
            input=json.dumps(questions),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers

    return put


def b64(data: bytes) -> str:
    return b64encode(data).decode()


def nodes(path: bytes) -> list[str]:
    return [b64(path[start : start + 32]) for start in range(0, len(path), 32)]


def checkpoint(note: Note, quorum: int, **changed: Any) -> dict[str, Any]:
    witnesses = [witness.encode() for witness in WITNESSES]
    question = {"op": "checkpoint", "note": b64(note.encode()), "log": LOG.encode(), "origin": ORIGIN}
    return question | {"witnesses": witnesses, "quorum": quorum} | changed


def test_our_cosigned_checkpoints_verify_with_their_hardware_lines_ignored(ask: Ask) -> None:
    full = Note(TEXT, (ED25519, HARDWARE, *COSIGNATURES))
    two = Note(TEXT, (HARDWARE, COSIGNATURES[2], ED25519, COSIGNATURES[0]))
    alone, counted, some = ask(
        checkpoint(Note(TEXT, (ED25519, HARDWARE)), 0), checkpoint(full, 3), checkpoint(two, 2)
    )
    assert [alone["error"], counted["error"], some["error"]] == ["", "", ""]
    assert counted["size"] == 600
    assert counted["timestamps"] == {
        found.witness.name: found.time for found in verify_cosignatures(full, WITNESSES)
    }
    assert some["witnesses"] == ["witness0.example", "witness2.example"]


def test_checkpoints_that_we_refuse_are_refused(ask: Ask) -> None:
    moved = COSIGNATURES[0].payload[:7] + b"\1" + COSIGNATURES[0].payload[8:]
    later = SignatureLine(COSIGNATURES[0].name, COSIGNATURES[0].key_id, moved)
    stolen = SignatureLine(COSIGNATURES[1].name, COSIGNATURES[1].key_id, COSIGNATURES[0].payload)
    refused = [
        (Note(TEXT, (ED25519, *COSIGNATURES[:2])), 3),
        (Note(TEXT, (ED25519, later)), 1),
        (Note(TEXT, (ED25519, COSIGNATURES[0], stolen)), 1),
        (Note(TEXT, (ED25519, COSIGNATURES[0], COSIGNATURES[0])), 1),
    ]
    for (note, quorum), answer in zip(refused, ask(*(checkpoint(*case) for case in refused)), strict=True):
        assert answer["error"] != ""
        with pytest.raises(EvidenceError):
            quorum_time(verify_cosignatures(note, WITNESSES), quorum)


def test_a_log_line_that_we_refuse_is_refused(ask: Ask) -> None:
    false = SignatureLine(ORIGIN, ED25519.key_id, ED25519.payload[:-1] + b"\0")
    refused = [Note(TEXT, (false,)), Note(TEXT, (HARDWARE,)), Note(TEXT, (ED25519, ED25519))]
    for note, answer in zip(refused, ask(*(checkpoint(note, 0) for note in refused)), strict=True):
        assert answer["error"] != ""
        with pytest.raises(EvidenceError):
            open_note(note, [LOG])


def test_we_verify_the_checkpoints_that_it_signs_and_cosigns(ask: Ask) -> None:
    root = b64(bytes(range(32)))
    (made,) = ask({"op": "cosigned", "origin": ORIGIN, "size": 600, "root": root, "time": 1_700_000_007})
    note = parse_note(b64decode(made["note"]))
    log, witness = parse_vkey(made["log"]), parse_vkey(made["witness"])
    opened = open_note(note, [log])
    assert parse_checkpoint(opened.text, origin=ORIGIN) == Checkpoint(ORIGIN, 600, bytes(range(32)))
    assert quorum_time(verify_cosignatures(note, [witness]), 1) == 1_700_000_007


def test_our_proofs_verify_and_changed_ones_do_not(ask: Ask) -> None:
    leaves = tree(70)
    roots = [root_of_leaves(b"".join(leaves[:size])) for size in range(71)]
    questions = []
    for size in (1, 2, 3, 5, 8, 13, 64, 70):
        for index in range(size):
            path, proof = inclusion_path(index, leaves[:size]), consistency_proof(index + 1, leaves[:size])
            merkle.verify_inclusion(leaves[index], index, size, path, roots[size])
            merkle.verify_consistency(index + 1, roots[index + 1], size, roots[size], proof)
            head = {"size": size, "root": b64(roots[size])}
            questions += [
                head | {"op": "inclusion", "index": index, "leaf": b64(leaves[index]), "path": nodes(path)},
                head
                | {"op": "consistency", "old": index + 1, "before": b64(roots[index + 1])}
                | {"proof": nodes(proof)},
            ]
    assert {answer["error"] for answer in ask(*questions)} == {""}
    assert all(
        answer["error"] for answer in ask(*(question | {"root": b64(bytes(32))} for question in questions))
    )


def test_our_tiles_and_bundles_pass_an_audit_and_changed_ones_do_not(ask: Ask) -> None:
    for size in (1, 256, 700):
        entries = [sha256(b"%d" % number).digest() for number in range(size)]
        leaves = leaf_hashes(entries)
        files = hash_tiles(leaves) | entry_bundles(entries)
        question = {"op": "audit", "size": size, "root": b64(root_of_leaves(leaves))}
        encoded = {path: b64(data) for path, data in files.items()}
        changed = [encoded | {path: b64(data[:-1] + bytes([data[-1] ^ 1]))} for path, data in files.items()]
        good, *bad = ask(question | {"files": encoded}, *(question | {"files": some} for some in changed))
        assert (good["error"], good["tiles"] + good["bundles"]) == ("", len(files))
        assert all(answer["error"] for answer in bad)
