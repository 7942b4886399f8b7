# SPDX-License-Identifier: Apache-2.0
"""Every file of the corpus folder `tlog`, judged by our code and expected as the corpus's index says.

The subtree vectors belong to draft-ietf-plants-merkle-tree-certs, whose proofs this project has no use for.
A leaf's path in the subtree [start, end) is its path in a tree of end - start leaves, so all inclusion
vectors are exercised. A subtree that begins at 0 is an older tree, so those consistency vectors are
exercised; the others all concern subtrees that are empty or do not exist, and one test holds that fact.
The COSE part of the receipts is checked here, the Merkle part by our code.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from hashlib import sha256
from itertools import combinations
from typing import Any

import cbor2
import pytest
from corpus import corpus_bytes, corpus_root, entries, needs_corpus
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from nacl.signing import SigningKey
from rfc6962 import consistency_proof

from quotary_verifier.errors import EvidenceError, MalformedError, QuotaryError
from quotary_verifier.tlog import merkle, tiles
from quotary_verifier.tlog.checkpoint import Checkpoint, parse_checkpoint
from quotary_verifier.tlog.compact import CompactRange, leaf_hashes
from quotary_verifier.tlog.cosignature import cosigned_message, verify_cosignatures
from quotary_verifier.tlog.note import (
    TYPE_ED25519,
    VerifierKey,
    decode_base64,
    open_note,
    parse_note,
    parse_vkey,
    sign_ed25519,
)

pytestmark = needs_corpus

Entry = dict[str, Any]
ENTRIES = entries("tlog/")

# The staging log's key as its operator publishes it; the bundle names it by its full key-id hash.
REKOR_STAGING_KEY = base64.b64decode("Pn+AREHoBaZ7wgS1zBqpxmLSGnyhxXj4lFxSdWVB8o8=")


def vectors(file: str) -> list[Entry]:
    """A file of vectors."""
    found: list[Entry] = json.loads(corpus_bytes(file))
    return found


def path_of(proof: list[str] | None) -> bytes:
    """A path given as base64 hashes, in our form; every hash must have 32 bytes."""
    nodes = [decode_base64(node) for node in proof or []]
    if any(len(node) != merkle.HASH_SIZE for node in nodes):
        raise MalformedError("every hash of a proof has 32 bytes")
    return b"".join(nodes)


def outcome(vector: Entry, check: Callable[[], None]) -> None:
    """Run a check that must fail, with an error of ours, exactly where the vector says so."""
    if vector["wantErr"]:
        with pytest.raises((MalformedError, EvidenceError)):
            check()
    else:
        check()


def included(vector: Entry, start: int, size: int) -> Callable[[], None]:
    """The check of an inclusion vector in the tree of `size` leaves that begins at leaf `start`."""
    return lambda: merkle.verify_inclusion(
        decode_base64(vector["leafHash"]),
        vector["leafIdx"] - start,
        size,
        path_of(vector["proof"]),
        decode_base64(vector["root"]),
    )


def consistent(vector: Entry, size1: int, size2: int) -> Callable[[], None]:
    """The check of a consistency vector between two trees.

    Where the vector does not care about a root it gives a text instead, whose length we would refuse.
    """
    roots = [decode_base64(vector[name] or "") for name in ("root1", "root2")]
    roots = [sha256(root).digest() if root.startswith(b"don't care") else root for root in roots]
    return lambda: merkle.verify_consistency(size1, roots[0], size2, roots[1], path_of(vector["proof"]))


def inclusion_vectors(entry: Entry) -> None:
    for vector in vectors(entry["file"]):
        outcome(vector, included(vector, 0, vector["treeSize"]))


def consistency_vectors(entry: Entry) -> None:
    for vector in vectors(entry["file"]):
        outcome(vector, consistent(vector, vector["size1"], vector["size2"]))


def subtree_inclusion_vectors(entry: Entry) -> None:
    for vector in vectors(entry["file"]):
        outcome(vector, included(vector, vector["start"], vector["end"] - vector["start"]))


def subtree_consistency_vectors(entry: Entry) -> None:
    for vector in vectors(entry["file"]):
        if vector["start"] == 0:
            outcome(vector, consistent(vector, vector["end"], vector["size"]))
        else:
            assert vector["start"] == vector["end"] or not is_subtree(vector["start"], vector["end"])


def is_subtree(start: int, end: int) -> bool:
    """Whether [start, end) is a node of the tree: it begins at a multiple of its size, rounded up to 2^n."""
    return start % (1 << (end - start - 1).bit_length()) == 0


def root_vectors(entry: Entry) -> None:
    found = json.loads(corpus_bytes(entry["file"]))
    tree = CompactRange()
    assert tree.root().hex() == found["root_hash_hex_by_size"][0]
    for leaf, root in zip(found["leaf_inputs_hex"], found["root_hash_hex_by_size"][1:], strict=True):
        tree.append(leaf_hashes([bytes.fromhex(leaf)]))
        assert tree.root().hex() == root


def signed_note(entry: Entry) -> None:
    data = corpus_bytes(entry["file"])
    note = parse_note(data)
    assert note.encode() == data
    expected = entry["expected"]
    if "vkey" in expected:
        opened = open_note(note, [parse_vkey(expected["vkey"])])
        assert opened.others == ()
    else:
        own_note_with_unknown_line(entry)


def own_note_with_unknown_line(entry: Entry) -> None:
    """The corpus kept no key of this note: known is a line added here, and both of its own are ignored."""
    note = parse_note(corpus_bytes(entry["file"]))
    checkpoint = parse_checkpoint(note.text)
    assert checkpoint.size == entry["expected"]["size"]
    assert [len(line.payload) == 64 for line in note.lines] == [True, False]
    key = SigningKey(bytes(32))
    known = VerifierKey(checkpoint.origin, TYPE_ED25519, bytes(key.verify_key))
    with pytest.raises(EvidenceError, match="no line of a known key"):
        open_note(note, [known])
    signed = note.with_lines([sign_ed25519(note.text, checkpoint.origin, key)])
    assert open_note(parse_note(signed.encode()), [known]).others == note.lines


def checkpoint_note(entry: Entry) -> None:
    expected = entry["expected"]
    opened = open_note(parse_note(corpus_bytes(entry["file"])), [parse_vkey(expected["vkey"])])
    root = decode_base64(expected["root_base64"])
    assert parse_checkpoint(opened.text) == Checkpoint("example.com/log/testdata", expected["size"], root)
    assert parse_checkpoint(opened.text).text == opened.text


def cosigned_checkpoint(entry: Entry) -> None:
    expected = entry["expected"]
    note = parse_note(corpus_bytes(entry["file"]))
    witness = parse_vkey(expected["witness_vkey"])
    (found,) = verify_cosignatures(note, [witness])
    assert (found.witness, found.time) == (witness, expected["timestamp"])
    assert cosigned_message(note.text, found.time) == expected["signed_message"].encode()
    assert parse_checkpoint(note.text).size == 300


def tile_hashes(entry: Entry) -> None:
    tile = tiles.parse_tile_path(entry["file"].removeprefix("tlog/tiles-tessera/"))
    found = tile.split(corpus_bytes(entry["file"]))
    assert len(found) == entry["expected"]["hashes"]
    tree = CompactRange()
    tree.append(b"".join(found))
    checkpoint = parse_checkpoint(
        parse_note(corpus_bytes(f"tlog/tiles-tessera/checkpoint.{tile.width}")).text
    )
    assert (tree.size, tree.root()) == (checkpoint.size, checkpoint.root)


def tile_entries(entry: Entry) -> None:
    bundle = tiles.parse_tile_path(entry["file"].removeprefix("tlog/tiles-tessera/"))
    assert bundle.level == tiles.ENTRIES
    data = corpus_bytes(entry["file"])
    found = tiles.decode_bundle(data, bundle.width)
    assert [text.decode() for text in found] == entry["expected"]["entries"]
    assert tiles.encode_bundle(found) == data
    same_tile = tiles.Tile(0, bundle.number, bundle.width)
    assert leaf_hashes(found) == corpus_bytes(f"tlog/tiles-tessera/{same_tile.path}")


def tile_paths(entry: Entry) -> None:
    for vector in vectors(entry["file"]):
        # Go's paths carry the tile height behind `tile/`, ours are always of height 8.
        top, height, level, *rest = vector["path"].split("/")
        path = "/".join([top, "entries" if level == "data" else level, *rest])
        if vector["tile"] is None:
            with pytest.raises(MalformedError):
                tiles.parse_tile_path(path)
        else:
            _, expected_level, number, width = vector["tile"]
            width = 256 if width == 1 << int(height) else width
            assert tiles.parse_tile_path(path) == tiles.Tile(expected_level, number, width)
            assert tiles.Tile(expected_level, number, width).path == path


def sigstore_bundle(entry: Entry) -> None:
    bundle = json.loads(corpus_bytes(entry["file"]))
    (logged,) = bundle["verificationMaterial"]["tlogEntries"]
    proof = logged["inclusionProof"]
    note = parse_note(proof["checkpoint"]["envelope"].encode())
    origin = parse_checkpoint(note.text).origin
    key = VerifierKey(origin, TYPE_ED25519, REKOR_STAGING_KEY)
    full_key_id = sha256(origin.encode() + b"\n\x01" + REKOR_STAGING_KEY).digest()
    assert full_key_id == decode_base64(logged["logId"]["keyId"])
    checkpoint = parse_checkpoint(open_note(note, [key]).text)
    assert checkpoint.size == int(proof["treeSize"])
    assert checkpoint.root == decode_base64(proof["rootHash"])
    body = decode_base64(logged["canonicalizedBody"])
    index, path = int(proof["logIndex"]), path_of(proof["hashes"])
    merkle.verify_inclusion(merkle.leaf_hash(body), index, checkpoint.size, path, checkpoint.root)
    with pytest.raises(EvidenceError):
        merkle.verify_inclusion(merkle.leaf_hash(body + b" "), index, checkpoint.size, path, checkpoint.root)
    spec = json.loads(body)["spec"]["hashedRekordV002"]
    artifact = corpus_bytes(entry["expected"]["artifact"])
    assert decode_base64(spec["data"]["digest"]) == sha256(artifact).digest()


def cose_receipt(entry: Entry) -> None:
    check = receipt_of_consistency if "old_root" in entry["expected"] else receipt_of_inclusion
    if entry["expect"] == "ok":
        check(entry)
    else:
        with pytest.raises((QuotaryError, InvalidSignature)):
            check(entry)


def opened_receipt(entry: Entry) -> tuple[Entry, Callable[[bytes], None]]:
    """The proofs of a receipt (RFC 9942), and a check of its signature over a root. The COSE part is here."""
    stream = io.BytesIO(corpus_bytes(entry["file"]))
    receipt = cbor2.load(stream)
    if stream.read():
        raise MalformedError("bytes follow the receipt")
    protected, unprotected, payload, signature = receipt.value
    header = cbor2.loads(protected)
    if receipt.tag != 18 or payload is not None or header[395] != 1:
        raise MalformedError("the receipt is no detached COSE_Sign1 over an RFC 9162 tree")
    key = load_pem_public_key(corpus_bytes("tlog/cose-receipt-key.pem"))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert header[1] == -7

    def verify(root: bytes) -> None:
        signed = cbor2.dumps(["Signature1", protected, b"", root])
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))

    return unprotected[396], verify


def receipt_of_inclusion(entry: Entry) -> None:
    proofs, verify = opened_receipt(entry)
    (encoded,) = proofs[-1]
    size, index, path = cbor2.loads(encoded)
    leaf = merkle.leaf_hash(entry["expected"]["leaf_input"].encode())
    verify(merkle.root_from_inclusion(leaf, index, size, b"".join(path)))
    assert (size, index) == (entry["expected"]["tree_size"], entry["expected"]["leaf_index"])


def receipt_of_consistency(entry: Entry) -> None:
    expected = entry["expected"]
    proofs, verify = opened_receipt(entry)
    (encoded,) = proofs[-2]
    size1, size2, path = cbor2.loads(encoded)
    assert (size1, size2) == (expected["size1"], expected["size2"])
    old, new = bytes.fromhex(expected["old_root"]), bytes.fromhex(expected["new_root"])
    merkle.verify_consistency(size1, old, size2, new, b"".join(path))
    verify(new)


def companion(entry: Entry) -> None:
    """A key or artifact that other files need: it is the right one if a file that needs it verifies."""
    needing = [other for other in ENTRIES if entry["file"] in other.get("needs", ())]
    assert any(other["expect"] == "ok" for other in needing)
    for other in needing:
        JUDGES[other["kind"]](other)


JUDGES: dict[str, Callable[[Entry], None]] = {
    "artifact": companion,
    "checkpoint-note": checkpoint_note,
    "cose-receipt": cose_receipt,
    "cosigned-checkpoint": cosigned_checkpoint,
    "merkle-consistency-vectors": consistency_vectors,
    "merkle-inclusion-vectors": inclusion_vectors,
    "merkle-root-vectors": root_vectors,
    "merkle-subtreeconsistency-vectors": subtree_consistency_vectors,
    "merkle-subtreeinclusion-vectors": subtree_inclusion_vectors,
    "public-key": companion,
    "signed-note": signed_note,
    "sigstore-bundle": sigstore_bundle,
    "tile-entries": tile_entries,
    "tile-hashes": tile_hashes,
    "tile-paths": tile_paths,
}


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["file"] for entry in ENTRIES])
def test_the_file_gives_the_outcome_that_the_index_states(entry: Entry) -> None:
    JUDGES[entry["kind"]](entry)


def test_every_file_of_the_folder_is_in_the_index_and_so_has_a_test() -> None:
    root = corpus_root()
    assert root is not None
    present = {file.relative_to(root).as_posix() for file in (root / "tlog").rglob("*") if file.is_file()}
    assert present == {entry["file"] for entry in ENTRIES}


def test_vector_files_hold_as_many_refusals_as_the_index_states() -> None:
    for entry in ENTRIES:
        if "reject" in entry["expected"]:
            found = vectors(entry["file"])
            refused = sum(vector["wantErr"] for vector in found)
            assert (len(found), refused) == (entry["expected"]["vectors"], entry["expected"]["reject"])


def test_each_refused_receipt_is_refused_for_its_own_reason() -> None:
    reasons = {
        "short-path": "has 3 hashes of 32 bytes, not 64 bytes",
        "trailing-byte": "bytes follow the receipt",
        "vds-9": "over an RFC 9162 tree",
    }
    for name, reason in reasons.items():
        with pytest.raises(MalformedError, match=reason):
            receipt_of_inclusion(next(e for e in ENTRIES if e["file"].endswith(f"receipt-{name}.cbor")))
    for name in ("signature", "wrong-index"):
        with pytest.raises(InvalidSignature):
            receipt_of_inclusion(next(e for e in ENTRIES if e["file"].endswith(f"receipt-{name}.cbor")))


def test_each_checkpoint_of_the_tile_log_continues_all_before_it() -> None:
    leaves = tiles.Tile(0, 0, 15).split(corpus_bytes("tlog/tiles-tessera/tile/0/000.p/15"))
    heads = [
        parse_checkpoint(parse_note(corpus_bytes(f"tlog/tiles-tessera/checkpoint.{size}")).text)
        for size in range(16)
    ]
    for old, new in combinations(heads[1:], 2):
        proof = consistency_proof(old.size, leaves[: new.size])
        merkle.verify_consistency(old.size, old.root, new.size, new.root, proof)
