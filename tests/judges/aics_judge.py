# SPDX-License-Identifier: Apache-2.0
"""Puts questions to `aics-tlog`, a C2SP implementation that is not ours; runs in an environment of its own.

Reads a JSON list of questions on stdin, writes a JSON list of answers in the same order. Bytes are base64.
"""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

import aics_tlog
from aics_tlog.verified import audit_tiles
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Question = dict[str, Any]


def checkpoint(question: Question) -> dict[str, Any]:
    """Verify a checkpoint note with a log key and a quorum of witnesses."""
    found = aics_tlog.verify_checkpoint(
        aics_tlog.parse_note(b64decode(question["note"])),
        aics_tlog.parse_vkey(question["log"]),
        [aics_tlog.parse_vkey(vkey) for vkey in question["witnesses"]],
        question["quorum"],
        expected_origin=question["origin"],
    )
    if not found.ok:
        raise ValueError(found.error or "the quorum is not met")
    return {"size": found.size, "witnesses": sorted(found.witnesses), "timestamps": found.timestamps}


def inclusion(question: Question) -> dict[str, Any]:
    """Verify an inclusion path."""
    leaf, root, *path = map(b64decode, (question["leaf"], question["root"], *question["path"]))
    if not aics_tlog.verify_inclusion(leaf, question["index"], question["size"], path, root):
        raise ValueError("the path does not verify")
    return {}


def consistency(question: Question) -> dict[str, Any]:
    """Verify a consistency proof."""
    before, root, *proof = map(b64decode, (question["before"], question["root"], *question["proof"]))
    if not aics_tlog.verify_consistency(question["old"], question["size"], before, root, proof):
        raise ValueError("the proof does not verify")
    return {}


def audit(question: Question) -> dict[str, Any]:
    """Authenticate every tile and entry bundle of a log."""
    reader = aics_tlog.MemoryTileReader({path: b64decode(data) for path, data in question["files"].items()})
    report = audit_tiles(reader, question["size"], b64decode(question["root"]))
    return {"tiles": report.tiles, "bundles": report.bundles}


def cosigned(question: Question) -> dict[str, Any]:
    """Sign and cosign a checkpoint, and give the note and both keys."""
    log, witness = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    origin, size, root = question["origin"], question["size"], b64decode(question["root"])
    note = aics_tlog.sign_checkpoint(aics_tlog.Checkpoint(origin, size, root), log, origin)
    _, line = aics_tlog.sign_cosignature(witness, "witness.example", question["time"], origin, size, root)
    return {
        "note": b64encode(aics_tlog.Note(note.text, (*note.signatures, line)).to_bytes()).decode(),
        "log": aics_tlog.format_vkey(aics_tlog.vkey_from_ed25519(origin, log.public_key())),
        "witness": aics_tlog.format_vkey(aics_tlog.cosignature_vkey("witness.example", witness.public_key())),
    }


OPERATIONS: dict[str, Callable[[Question], dict[str, Any]]] = {
    "audit": audit,
    "checkpoint": checkpoint,
    "consistency": consistency,
    "cosigned": cosigned,
    "inclusion": inclusion,
}


def answer(question: Question) -> dict[str, Any]:
    """Answer one question; `error` is empty where it is accepted."""
    try:
        return {"error": ""} | OPERATIONS[question["op"]](question)
    except (ValueError, OSError) as error:
        return {"error": str(error)}


if __name__ == "__main__":
    json.dump([answer(question) for question in json.load(sys.stdin)], sys.stdout)
