# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets for the wire formats: CBOR, records, attestations, history, notes, tiles, bodies, TPM structures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cbor2
from fuzz_base import Target, corpus_files, fixed_forge, stored_attestations, tried, vector_files

from quotary_verifier.tlog import tiles
from quotary_verifier.tlog.checkpoint import parse_checkpoint
from quotary_verifier.tlog.cosignature import verify_cosignatures
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, decode_hardware_line
from quotary_verifier.tlog.merkle import root_from_inclusion, verify_consistency
from quotary_verifier.tlog.note import (
    TYPE_COSIGNATURE,
    TYPE_ED25519,
    Note,
    VerifierKey,
    open_note,
    parse_note,
    parse_vkey,
)
from quotary_verifier.wire import cbor, tpm
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.declaration import Declaration
from quotary_verifier.wire.fresh import FreshQuote
from quotary_verifier.wire.history import Commit, split
from quotary_verifier.wire.inband import insert, strip
from quotary_verifier.wire.inband_stream import Stripper
from quotary_verifier.wire.limits import MAX_ATTESTATION
from quotary_verifier.wire.records import Boot, Genesis, Output, Statement
from quotary_verifier.wire.shared import SharedParts

FORGE = fixed_forge()
ATTESTATION = FORGE.attestation()


def codec(data: bytes) -> None:
    """The CBOR codec: what it takes encodes to the same bytes, and a sequence ends where each item does."""
    try:
        value = cbor.decode(data, max_bytes=4096)
    except cbor.MalformedError:
        value = None
    else:
        assert cbor.encode(value) == data
        assert cbor.item_end(data, 0, max_bytes=4096) == len(data)
    end = tried(cbor.item_end, data, 0, max_bytes=4096)
    if end is not None:
        assert 0 < end <= len(data)
        cbor.decode(data[:end], max_bytes=4096)


def codec_seeds() -> Iterator[bytes]:
    """One item of each kind that is allowed, and some that are not."""
    values: list[Any] = [
        0,
        -1,
        2**64 - 1,
        b"x",
        "\u00e9",
        [1, [2, []]],
        {0: 1, -1: 2},
        {"a": None, "bb": True},
    ]
    for value in [*values, values, 1.5, cbor2.CBORTag(2, b"\x01"), 2**70]:
        yield cbor2.dumps(value, canonical=True)
    yield b"\x9f\x01\xff"
    yield FORGE.genesis_record


RECORDS: list[Any] = [Genesis, Output, Boot, Statement]


def records(data: bytes) -> None:
    """The four records and a statement's text: each decodes as at most one kind, and encodes to the same bytes."""
    kinds = 0
    for kind in RECORDS:
        record = tried(kind.decode, data)
        if record is None:
            continue
        kinds += 1
        encodes_again(record, data)
        if isinstance(record, Statement):
            tried(Declaration.parse, record.text)
    assert kinds <= 1
    text = data.decode("utf-8", "surrogateescape")
    declaration = tried(Declaration.parse, text)
    assert declaration is None or declaration.text == text


def record_seeds() -> Iterator[bytes]:
    """A record of each kind."""
    yield FORGE.genesis_record
    yield ATTESTATION.record
    yield Statement(b"s" * 16, 1, DECLARED).encode()
    yield DECLARED.encode()
    for attestation in stored_attestations():
        parsed = tried(Attestation.decode, attestation)
        if parsed is not None:
            yield parsed.record
            yield parsed.genesis
    yield from vector_files("statement/*", most=4096)


DECLARED = Declaration.of([]).text


def artefacts(data: bytes) -> None:
    """Attestations, fresh quotes, commits: what decodes encodes to the same bytes; the short cut agrees."""
    attestation = tried(Attestation.decode, data)
    shared = SHARED.read(data)
    assert shared is None or shared == attestation
    for found in (attestation, tried(FreshQuote.decode, data), tried(Commit.decode, data)):
        if found is not None:
            encodes_again(found, data)
    items = tried(lambda: list(split(data)))
    assert items is None or b"".join(items) == data


SHARED = SharedParts(Attestation.decode(ATTESTATION.encode()))


def encodes_again(found: Any, data: bytes) -> None:
    """What was decoded encodes to the bytes it came from, but for what is not kept: keys that are not understood, and
    optional maps and lists that stand there empty."""
    encoded = found.encode()
    if encoded != data:
        assert len(encoded) < len(data)
        assert _is_not_all_kept(cbor2.loads(data))
        assert type(found).decode(encoded).encode() == encoded


def _is_not_all_kept(value: Any) -> bool:
    if isinstance(value, dict):
        return (
            not value or any(type(key) is int and key < 0 for key in value) or _any_not_kept(value.values())
        )
    return isinstance(value, list) and (not value or _any_not_kept(value))


def _any_not_kept(values: Iterable[Any]) -> bool:
    return any(_is_not_all_kept(value) for value in values)


def artefact_seeds() -> Iterator[bytes]:
    """Attestations, a fresh quote and a commit."""
    yield ATTESTATION.encode()
    yield from stored_attestations()
    support = ATTESTATION.supports[0]
    evidence = decode_hardware_line(parse_note(ATTESTATION.note).lines[1], IDENTIFIER_TPM2_QUOTE).evidence
    yield FreshQuote(b"n" * 16, FORGE.genesis_record, evidence, support).encode()
    commit = Commit(2, ATTESTATION.note, (), {"tcg": (bytes(32), 5)}).encode()
    yield commit
    yield commit * 3


NOTE_KEY = VerifierKey(FORGE.origin, TYPE_ED25519, bytes(FORGE.note_key.verify_key))
WITNESS = VerifierKey("witness.example", TYPE_COSIGNATURE, bytes(FORGE.note_key.verify_key))


def notes(data: bytes) -> None:
    """Notes, checkpoints, keys, hardware lines and cosignatures; each in its one spelling."""
    note = tried(parse_note, data)
    if note is not None:
        assert note.encode() == data
        read_note(note)
    for extensions in (False, True):
        checkpoint = tried(parse_checkpoint, data, allow_extensions=extensions)
        assert checkpoint is None or checkpoint.text == data
    text = data.decode("utf-8", "surrogateescape")
    key = tried(parse_vkey, text)
    assert key is None or key.encode() == text


def read_note(note: Note) -> None:
    """All that a verifier does with a note."""
    tried(parse_checkpoint, note.text)
    tried(open_note, note, [NOTE_KEY])
    tried(verify_cosignatures, note, [WITNESS])
    for line in note.lines:
        found = tried(decode_hardware_line, line, IDENTIFIER_TPM2_QUOTE)
        if found is not None:
            tpm_evidence(found.evidence)


def note_seeds() -> Iterator[bytes]:
    """Notes of ours and of others, a checkpoint, a key."""
    yield ATTESTATION.note
    yield parse_note(ATTESTATION.note).text
    yield NOTE_KEY.encode().encode()
    yield from corpus_files("tlog", most=4096)


def tile_files(data: bytes) -> None:
    """Paths, bundles, tiles and proofs; the first two bytes are a width or a tree size."""
    number = int.from_bytes(data[:2], "big")
    entries = tried(tiles.decode_bundle, data[2:], number)
    assert entries is None or tiles.encode_bundle(entries) == data[2:]
    tried(lambda: tiles.Tile(0, 0, number % 257).split(data[2:]))
    text = data.decode("latin-1")
    for parse, again in (
        (tiles.parse_tile_path, lambda tile: tile.path),
        (tiles.parse_numbered_path, _numbered),
    ):
        found = tried(parse, text)  # type: ignore[type-var]
        assert found is None or again(found) == text
    proof, index = data[66:], int.from_bytes(data[:8], "big")
    tried(root_from_inclusion, data[2:34], number, index, proof)
    tried(root_from_inclusion, data[2:34], number, 65_536, proof)
    tried(verify_consistency, number, data[2:34], index, data[34:66], proof)


def _numbered(found: Any) -> str:
    return tiles.numbered_path(*found)


def tile_seeds() -> Iterator[bytes]:
    """Paths and bundles."""
    yield from (b"tile/0/x001/x234/067.p/5", b"tile/entries/000", b"x001/000", b"tile/63/000.p/255")
    yield (3).to_bytes(2, "big") + tiles.encode_bundle([b"a", b"", bytes(32)])
    yield (2).to_bytes(2, "big") + bytes(64)
    yield (5).to_bytes(2, "big") + bytes(32 * 5)
    yield from corpus_files("tlog/tiles-tessera", most=4096)


def body(data: bytes) -> None:
    """A body with its attestation in band: in pieces as at once; what was put in comes out again."""
    whole = tried(strip, data)
    for size in (1, 7, 64):
        if len(data) > 128 * size:
            continue  # the same in fewer pieces is as good, and faster
        stripper = Stripper()
        pieces = tried(lambda cut=size, into=stripper: _fed(into, data, cut))
        assert (None if pieces is None else (pieces, stripper.attestation)) == whole
    if whole is None:
        return
    rest, attestation = whole
    assert (attestation is None) == (rest == data)
    if attestation is None:
        again = insert(rest, b"evidence")
        assert again is None or strip(again) == (rest, b"evidence")
    else:
        assert len(attestation) <= MAX_ATTESTATION


def _fed(stripper: Stripper, data: bytes, size: int) -> bytes:
    out = [stripper.feed(data[at : at + size]) for at in range(0, len(data), size)]
    return b"".join(out) + stripper.finish()


def body_seeds() -> Iterator[bytes]:
    """Objects and streams, with and without a span, with every trap that the tests know."""
    chunk = b'data: {"id":"a","object":"c","created":1,"model":"m","choices":[]}\n\n'
    for plain in (
        FORGE.body,
        b'{"id":1}',
        chunk * 2 + b"data: [DONE]\n\n",
        chunk,
        b": x\r\n\r\n" + chunk,
        b"[]",
    ):
        yield plain
        spanned = insert(plain, b"evidence")
        if spanned is not None:
            yield spanned
    yield b'{"attestation":"AAAA","x":{"attestation":1}}'
    yield chunk + b'data: {"\\u0061ttestation":"AAAA"}\n\ndata: [DONE]\n\n'
    yield from vector_files("attestations/*/received", most=8192)


STRUCTURES: list[Callable[[bytes], Any]] = [tpm.parse_public, tpm.parse_attest, tpm.parse_nv_public]


def tpm_evidence(data: bytes) -> None:
    """TPM evidence and the structures in it; those that keep their bytes keep exactly these."""
    parts = tried(tpm.unpack_evidence, data)
    if parts is not None:
        assert tpm.pack_evidence(*parts) == data
        tried(tpm.parse_attest, parts[0])
        tried(tpm.parse_signature, parts[1])
    tried(tpm.parse_signature, data)
    for parse in STRUCTURES:
        found = tried(parse, data)
        assert found is None or found.raw == data
        if isinstance(found, tpm.Public):
            tried(found.public_key)
            tried(lambda public=found: public.name)
            assert found.to_spki_der().startswith(b"\x30")


def tpm_seeds() -> Iterator[bytes]:
    """Keys, quotes, certifications and signatures."""
    yield FORGE.public
    yield FORGE.counter
    evidence = decode_hardware_line(parse_note(ATTESTATION.note).lines[1], IDENTIFIER_TPM2_QUOTE).evidence
    yield evidence
    yield from tpm.unpack_evidence(evidence)
    for data in corpus_files("tpm/quote", most=4096):
        yield data
        yield data[2:]


TARGETS = {
    "cbor": Target(codec, codec_seeds, most=2048),
    "records": Target(records, record_seeds),
    "artefacts": Target(artefacts, artefact_seeds, most=16_384),
    "note": Target(notes, note_seeds),
    "tiles": Target(tile_files, tile_seeds),
    "inband": Target(body, body_seeds, most=2048),
    "tpm": Target(tpm_evidence, tpm_seeds),
}
CBOR_TARGETS = ("records", "artefacts")
"""Targets whose inputs are changed inside their encoding."""
