# SPDX-License-Identifier: Apache-2.0
"""What the fuzz targets share: the shape of a target, the errors that hostile bytes may raise, seeds."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from corpus import corpus_root
from cryptography.hazmat.primitives.asymmetric import ec
from forge import Authority, Forge
from nacl.signing import SigningKey

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
TYPED = (MalformedError, EvidenceError, UnsupportedError)
"""What a parser may raise for hostile bytes; anything else is a finding."""

T = TypeVar("T")
Mutator = Callable[[bytes, int, int], bytes]


@dataclass(frozen=True)
class Target:
    """One fuzz target: `run` takes hostile bytes and returns, or fails with what no bytes may cause.

    `seeds` gives the first inputs, `most` the longest input. `mutate` takes the bytes, the longest result and a
    random number, and returns the bytes changed where plain changes would not come past a checksum or an encoding.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    most: int = 4096
    mutate: Mutator | None = None


def tried(function: Callable[..., T], *args: object, **named: object) -> T | None:
    """What a parser makes of hostile bytes, or None where it refuses them with an error of its own."""
    try:
        return function(*args, **named)
    except TYPED:
        return None


def corpus_files(*folders: str, most: int) -> Iterator[bytes]:
    """The files of the corpus below some folders that are not longer than a target takes; none without a corpus."""
    root = corpus_root()
    for folder in folders if root is not None else ():
        assert root is not None
        for file in sorted((root / folder).rglob("*")):
            if file.is_file() and file.stat().st_size <= most:
                yield file.read_bytes()


def vector_files(*patterns: str, most: int) -> Iterator[bytes]:
    """The files of the project's own vectors that fit some patterns."""
    for pattern in patterns:
        for file in sorted(VECTORS.glob(pattern)):
            if file.is_file() and file.stat().st_size <= most:
                yield file.read_bytes()


def stored_attestations() -> Iterator[bytes]:
    """The attestations of the stored vectors, valid and broken."""
    for file in sorted((VECTORS / "attestation").glob("*.json")):
        yield base64.b64decode(json.loads(file.read_text())["attestation"])
    yield from vector_files("attestations/*/output.attestation", most=1 << 20)


def fixed_forge() -> Forge:
    """A forge whose keys are the same in every run, so that what one run found speaks to the next."""
    keys = [ec.derive_private_key(number, ec.SECP256R1()) for number in (7, 8)]
    return Forge(ak=keys[0], authority=Authority(key=keys[1]), note_key=SigningKey(b"n" * 32))
