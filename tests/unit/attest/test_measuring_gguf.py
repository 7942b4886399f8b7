# SPDX-License-Identifier: Apache-2.0
"""GGUF: the parts in a file's head are told apart, and a file that is not understood is measured all the same."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

from quotary_attest.measure import MeasureError, ModelFile
from quotary_attest.measuring.files import hash_file
from quotary_attest.measuring.gguf import gguf_parts
from quotary_attest.workload import measure_models

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, *values: bytes) -> bytes:
    return struct.pack("<IQ", kind, len(values)) + b"".join(values)


ENTRIES = [
    entry("general.architecture", 8, text("llama")),
    entry("llama.block_count", 4, struct.pack("<I", 30)),
    entry("tokenizer.ggml.tokens", 9, array(8, text("a"), text("bc"), text(""))),
    entry("tokenizer.ggml.scores", 9, array(6, struct.pack("<f", 1.0), struct.pack("<f", 2.0))),
    entry("tokenizer.chat_template", 8, text(TEMPLATE)),
    entry("tokenizer.ggml.add_bos_token", 7, b"\x01"),
]


def gguf(entries: list[bytes], *, version: int = 3, count: int | None = None) -> bytes:
    head = struct.pack("<4sIQQ", b"GGUF", version, 0, len(entries) if count is None else count)
    return head + b"".join(entries) + b"tensors"


def parts(tmp_path: Path, data: bytes) -> dict[str, bytes]:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    identity = hash_file(path).identity
    assert identity is not None
    return gguf_parts(path, identity)


@pytest.mark.parametrize("version", [2, 3])
def test_template_and_tokenizer_are_told_apart(tmp_path: Path, version: int) -> None:
    found = parts(tmp_path, gguf(ENTRIES, version=version))
    assert found["chat_template"] == hashlib.sha256(TEMPLATE.encode()).digest()
    assert found["tokenizer"] == hashlib.sha256(ENTRIES[2] + ENTRIES[3] + ENTRIES[5]).digest()


def test_a_file_without_them_has_none(tmp_path: Path) -> None:
    assert parts(tmp_path, gguf(ENTRIES[:2])) == {}


def test_the_event_of_a_model_says_them(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(ENTRIES))
    (model,) = measure_models([ModelFile("m", (path,))])
    assert model.weights == hashlib.sha256(path.read_bytes()).digest()
    assert model.details["chat_template"] == hashlib.sha256(TEMPLATE.encode()).digest()
    assert {"tokenizer", "files", "bytes"} < model.details.keys()


@pytest.mark.parametrize("cut", range(0, len(gguf(ENTRIES)) - 8, 3))
def test_a_head_that_breaks_off_tells_nothing(tmp_path: Path, cut: int) -> None:
    assert parts(tmp_path, gguf(ENTRIES)[:cut]) == {}


@pytest.mark.parametrize(
    "data",
    [
        b"GGUF",
        b"",
        gguf(ENTRIES, version=1),
        gguf(ENTRIES).replace(b"GGUF", b"GGML", 1),
        gguf(ENTRIES, count=1 << 60),
        gguf([entry("x", 13, b"")]),
        gguf([entry("x", 9, array(9))]),
        gguf([entry("x", 9, struct.pack("<IQ", 8, 1 << 62))]),
        gguf([entry("x", 9, struct.pack("<IQ", 4, 1 << 20))]),
        gguf([entry("x", 8, struct.pack("<Q", 1 << 63))]),
        gguf([struct.pack("<Q", 1 << 40)]),
    ],
    ids=range(11),
)
def test_a_head_of_another_form_tells_nothing_and_costs_nothing(tmp_path: Path, data: bytes) -> None:
    assert parts(tmp_path, data) == {}


def test_a_file_that_changes_after_it_was_hashed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(ENTRIES))
    identity = hash_file(path).identity
    assert identity is not None
    path.write_bytes(gguf(ENTRIES[:2]))
    with pytest.raises(MeasureError, match="changed while it was measured"):
        gguf_parts(path, identity)
