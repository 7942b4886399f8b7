# SPDX-License-Identifier: Apache-2.0
"""Go's own note and tlog packages judge our notes, proofs and tiles, and we judge theirs."""

from __future__ import annotations

import json
import subprocess
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from judge_tools import go_program
from nacl.signing import SigningKey
from rfc6962 import consistency_proof, inclusion_path, tree
from tile_log import hash_tiles, root_of_leaves

from quotary_attest.log.hashes import HashTree
from quotary_attest.log.tree import Growth, RightEdge, entry_hashes
from quotary_attest.log.tree import consistency_proof as host_proof
from quotary_attest.log.tree import inclusion_path as host_path
from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.tlog import merkle, tiles
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.cosignature import cosign
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, HardwareLine, encode_hardware_line
from quotary_verifier.tlog.note import (
    TYPE_ED25519,
    Note,
    SignatureLine,
    VerifierKey,
    decode_base64,
    open_note,
    parse_note,
    parse_vkey,
    sign_ed25519,
)

# The first run installs the toolchain and compiles its standard library.
pytestmark = [pytest.mark.judge, pytest.mark.timeout(900)]

Ask = Callable[..., list[dict[str, Any]]]

ORIGIN = "host.example/abcdefghijklmnopqrstuvwxyz234567"
KEY = SigningKey(bytes(range(32)))
LOG = VerifierKey(ORIGIN, TYPE_ED25519, bytes(KEY.verify_key))
TEXT = Checkpoint(ORIGIN, 600, bytes(range(32))).text
ED25519 = sign_ed25519(TEXT, ORIGIN, KEY)
HARDWARE = encode_hardware_line(ORIGIN, b"spki", HardwareLine(IDENTIFIER_TPM2_QUOTE, 590, b"quote" * 60))
COSIGNATURE = cosign(TEXT, "witness.example", SigningKey(bytes(32)), 1_700_000_000)

SIZES = [1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 64, 70]
LEAVES = tree(SIZES[-1])
ROOTS = [root_of_leaves(b"".join(LEAVES[:size])) for size in range(len(LEAVES) + 1)]


@pytest.fixture(scope="module")
def ask() -> Ask:
    """Puts questions to the Go program."""
    modules = {f"golang.org/x/mod/sumdb/{name}": name for name in ("note", "tlog")}
    program = go_program(Path(__file__).parent / "go_tlog", modules)

    def put(*questions: dict[str, Any]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [str(program)],
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
    """A path of ours as the list that Go takes."""
    return [b64(path[start : start + 32]) for start in range(0, len(path), 32)]


def joined(proof: list[str] | None) -> bytes:
    """A list of hashes from Go as a path of ours."""
    return b"".join(map(decode_base64, proof or []))


def opening(note: Note) -> dict[str, Any]:
    return {"op": "open", "note": b64(note.encode()), "vkeys": [LOG.encode()]}


def test_go_opens_our_notes_and_ignores_their_hardware_lines_and_cosignatures(ask: Ask) -> None:
    lines = [(ED25519,), (ED25519, HARDWARE), (HARDWARE, ED25519), (ED25519, HARDWARE, COSIGNATURE)]
    for some, answer in zip(lines, ask(*(opening(Note(TEXT, some)) for some in lines)), strict=True):
        assert answer["error"] == ""
        assert answer["text"].encode() == TEXT
        assert answer["signers"] == [ORIGIN]
        unknown = [line.name for line in some if line is not ED25519]
        assert answer.get("unknown", []) == unknown


def test_go_refuses_the_notes_that_we_refuse(ask: Ask) -> None:
    false = SignatureLine(ORIGIN, ED25519.key_id, ED25519.payload[:-1] + b"\0")
    refused = [Note(TEXT, (false, HARDWARE)), Note(TEXT + b"x\n", (ED25519,)), Note(TEXT, (HARDWARE,))]
    for note, answer in zip(refused, ask(*map(opening, refused)), strict=True):
        assert answer["error"] != ""
        with pytest.raises(EvidenceError):
            open_note(note, [LOG])


def test_go_finds_malformed_whatever_we_find_malformed(ask: Ask) -> None:
    good = Note(TEXT, (ED25519, HARDWARE)).encode()
    bad = [
        good[:-1],
        good + b"\n",
        good.replace(b"600\n", b"600\r\n"),
        good.replace("\u2014 ".encode(), b"- ", 1),
        good.replace(b"=\n", b"\n"),
        good.replace(b"\n\n", b"\n"),
        good.replace(ORIGIN.encode() + b" ", b"a+b "),
        good.replace(b"600", b"6\xff0"),
        good + HARDWARE.encode() * 99,
    ]
    questions = [{"op": "open", "note": b64(data), "vkeys": [LOG.encode()]} for data in [*bad, good]]
    *answers, accepted = ask(*questions)
    assert accepted["error"] == ""
    for data, answer in zip(bad, answers, strict=True):
        assert answer["error"] == "malformed note"
        with pytest.raises(MalformedError):
            parse_note(data)


def test_we_open_the_notes_that_go_signs(ask: Ask) -> None:
    for text in (TEXT.decode(), "text\n\nafter a blank line\n", "\u00e8 subito sera \u2713\n"):
        (answer,) = ask({"op": "sign", "name": "go.example/log", "text": text})
        key = parse_vkey(answer["vkey"])
        assert key.encode() == answer["vkey"]
        opened = open_note(parse_note(decode_base64(answer["note"])), [key])
        assert opened.text == text.encode()


def inclusion(size: int, index: int, path: bytes, **changed: Any) -> dict[str, Any]:
    question = {"op": "inclusion", "size": size, "root": b64(ROOTS[size]), "index": index}
    return question | {"leaf": b64(LEAVES[index]), "proof": nodes(path)} | changed


def test_go_accepts_every_inclusion_path_that_we_accept(ask: Ask) -> None:
    cases = [(size, index, inclusion_path(index, LEAVES[:size])) for size in SIZES for index in range(size)]
    answers = ask(*(inclusion(*case) for case in cases))
    assert {answer["error"] for answer in answers} == {""}
    for size, index, path in cases:
        merkle.verify_inclusion(LEAVES[index], index, size, path, ROOTS[size])


def test_go_refuses_the_inclusion_paths_that_we_refuse(ask: Ask) -> None:
    path = inclusion_path(5, LEAVES[:13])
    cases = [
        (5, LEAVES[5], path[:-32], ROOTS[13]),
        (5, LEAVES[5], path + path[:32], ROOTS[13]),
        (5, LEAVES[5], bytes(32) + path[32:], ROOTS[13]),
        (5, LEAVES[6], path, ROOTS[13]),
        (4, LEAVES[5], path, ROOTS[13]),
        (13, LEAVES[5], path, ROOTS[13]),
        (5, LEAVES[5], path, ROOTS[16]),
    ]
    questions = [
        inclusion(13, index, wrong, leaf=b64(leaf), root=b64(root)) for index, leaf, wrong, root in cases
    ]
    *answers, good = ask(*questions, inclusion(13, 5, path))
    assert good["error"] == ""
    for (index, leaf, wrong, root), answer in zip(cases, answers, strict=True):
        assert answer["error"] != ""
        with pytest.raises((MalformedError, EvidenceError)):
            merkle.verify_inclusion(leaf, index, 13, wrong, root)


def test_go_judges_consistency_proofs_as_we_do(ask: Ask) -> None:
    cases = [
        (old, size, consistency_proof(old, LEAVES[:size])) for size in SIZES for old in range(1, size + 1)
    ]
    true = [consistency(*case) for case in cases]
    false = [consistency(*case) | {"before": b64(bytes(32))} for case in cases]
    longer = [consistency(old, size, proof + bytes(32)) for old, size, proof in cases]
    answers = ask(*true, *false, *longer)
    assert {answer["error"] for answer in answers[: len(cases)]} == {""}
    assert all(answer["error"] for answer in answers[len(cases) :])
    for old, size, proof in cases:
        merkle.verify_consistency(old, ROOTS[old], size, ROOTS[size], proof)
        with pytest.raises(EvidenceError):
            merkle.verify_consistency(old, bytes(32), size, ROOTS[size], proof)
        with pytest.raises(MalformedError):
            merkle.verify_consistency(old, ROOTS[old], size, ROOTS[size], proof + bytes(32))


def consistency(old: int, size: int, proof: bytes) -> dict[str, Any]:
    question = {"op": "consistency", "size": size, "root": b64(ROOTS[size]), "old": old}
    return question | {"before": b64(ROOTS[old]), "proof": nodes(proof)}


def test_we_accept_every_proof_of_the_trees_that_go_builds(ask: Ask) -> None:
    questions = [{"op": "prove", "leaves": [b64(leaf) for leaf in LEAVES[:size]]} for size in SIZES]
    for size, answer in zip(SIZES, ask(*questions), strict=True):
        assert decode_base64(answer["root"]) == ROOTS[size]
        for index in range(size):
            path, growth = joined(answer["proofs"][index]), joined(answer["growth"][index])
            merkle.verify_inclusion(LEAVES[index], index, size, path, ROOTS[size])
            merkle.verify_consistency(index + 1, ROOTS[index + 1], size, ROOTS[size], growth)


def test_a_go_client_proves_leaves_from_our_tiles(ask: Ask) -> None:
    for size in (1, 255, 256, 257, 700, 66_000):
        leaves = tree(size)
        published = {path: b64(data) for path, data in hash_tiles(b"".join(leaves)).items()}
        root = root_of_leaves(b"".join(leaves))
        for index in {0, size // 2, size - 1}:
            question = {"op": "client", "size": size, "root": b64(root), "index": index, "tiles": published}
            good, wrong_leaf = ask(
                question | {"leaf": b64(leaves[index])}, question | {"leaf": b64(bytes(32))}
            )
            assert good["error"] == ""
            path = joined(good["proofs"][0])
            merkle.verify_inclusion(leaves[index], index, size, path, root)
            assert wrong_leaf["error"] != ""


def test_a_go_client_refuses_our_tiles_with_one_byte_changed(ask: Ask) -> None:
    leaves = tree(700)
    published = hash_tiles(b"".join(leaves))
    root = b64(root_of_leaves(b"".join(leaves)))
    question = {"op": "client", "size": 700, "root": root, "index": 3, "leaf": b64(leaves[3])}
    for path in ("tile/0/000", "tile/0/002.p/188", "tile/1/000.p/2"):
        changed = published | {path: published[path][:-1] + bytes([published[path][-1] ^ 1])}
        (answer,) = ask(question | {"tiles": {name: b64(data) for name, data in changed.items()}})
        assert answer["error"] != ""


def test_go_names_the_same_tiles_as_we_do(ask: Ask) -> None:
    growths = [(0, 0), (0, 1), (0, 256), (5, 5), (5, 300), (255, 257), (600, 70_000), (65_000, 66_000)]
    growths += [(2**62 - 3, 2**62 + 300), (1234067 * 256, 1234067 * 256 + 9)]
    answers = ask(*({"op": "grown", "old": old, "size": new} for old, new in growths))
    for (old, new), answer in zip(growths, answers, strict=True):
        assert answer.get("paths", []) == [tile.path for tile in tiles.grown_tiles(old, new)]


def test_go_reads_a_path_as_we_do(ask: Ask) -> None:
    texts = [
        "0/000",
        "0/000.p/1",
        "7/x001/x234/067",
        "3/999.p/255",
        "0/x000/001",
        "0/1",
        "0/000.p/256",
        "0/000.p/0",
    ]
    texts += ["0/x009/x223/x372/x036/x854/x775/807", "0/001/000", "-1/000", "0/0000", "0/000.p/01", "00/000"]
    for text, answer in zip(
        texts, ask(*({"op": "path", "path": f"tile/8/{text}"} for text in texts)), strict=True
    ):
        if answer["error"]:
            with pytest.raises(MalformedError):
                tiles.parse_tile_path(f"tile/{text}")
        else:
            tile = tiles.parse_tile_path(f"tile/{text}")
            assert [tile.level, tile.number, tile.width] == answer["position"]


def grown_on_disk(folder: Path, batches: list[int]) -> tuple[HashTree, list[Growth], list[bytes]]:
    """The host's log after some batches: its files, its growth by batch, and all leaf hashes."""
    log, edge, growths = HashTree(folder), RightEdge(), []
    entries = [sha256(b"%d" % number).digest() for number in range(sum(batches))]
    for batch in batches:
        new = entries[edge.size : edge.size + batch]
        growths.append(edge.extended(entry_hashes(new)))
        log.append(new, growths[-1])
        edge = growths[-1].edge
    return log, growths, entry_hashes(entries)


def test_go_accepts_the_paths_that_the_host_hands_out_and_no_other(ask: Ask, tmp_path: Path) -> None:
    log, growths, leaves = grown_on_disk(tmp_path, [1, 1, 5, 249, 1, 70, 300])
    questions = []
    for growth in growths:
        head = {"op": "inclusion", "size": growth.size, "root": b64(growth.root)}
        for index, path in enumerate(growth.paths(), growth.start):
            assert path == host_path(log.node, index, growth.size)
            merkle.verify_inclusion(leaves[index], index, growth.size, path, growth.root)
            questions.append(head | {"index": index, "leaf": b64(leaves[index]), "proof": nodes(path)})
    log.close()
    assert {answer["error"] for answer in ask(*questions)} == {""}
    wrong = [question | {"leaf": b64(bytes(32))} for question in questions]
    assert all(answer["error"] for answer in ask(*wrong))


def test_go_accepts_the_consistency_proofs_of_the_host_and_no_other(ask: Ask, tmp_path: Path) -> None:
    log, growths, _ = grown_on_disk(tmp_path, [1, 1, 5, 249, 1, 70, 300])
    questions = []
    for old, new in combinations(growths, 2):
        proof = host_proof(log.node, old.size, new.size)
        merkle.verify_consistency(old.size, old.root, new.size, new.root, proof)
        question = {"op": "consistency", "size": new.size, "root": b64(new.root), "old": old.size}
        questions.append(question | {"before": b64(old.root), "proof": nodes(proof)})
    log.close()
    assert {answer["error"] for answer in ask(*questions)} == {""}
    assert all(answer["error"] for answer in ask(*(some | {"before": b64(bytes(32))} for some in questions)))


def test_a_go_client_proves_leaves_from_the_tiles_that_the_host_publishes(ask: Ask, tmp_path: Path) -> None:
    log, growths, leaves = grown_on_disk(tmp_path, [1, 300, 65_300, 400])
    size, root = growths[-1].size, growths[-1].root
    published = {
        tile.path: b64(log.tile(tile.level, tile.number, tile.width)) for tile in tiles.grown_tiles(0, size)
    }
    log.close()
    question = {"op": "client", "size": size, "root": b64(root), "tiles": published}
    for index in (0, 300, 65_535, size - 1):
        good, bad = ask(
            question | {"index": index, "leaf": b64(leaves[index])},
            question | {"index": index, "leaf": b64(bytes(32))},
        )
        assert good["error"] == ""
        assert bad["error"] != ""
