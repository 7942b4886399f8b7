# SPDX-License-Identifier: Apache-2.0
"""Where the corpus of third-party evidence lies, and what its index says about each file.

The corpus is not part of the repository. Its folder is named by the environment variable `QUOTARY_CORPUS`;
without it, `../shared/corpus`, relative to the repository, is tried. Tests that need it are marked with
`needs_corpus` and are skipped, with a reason, where it is absent.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

_REPOSITORY = Path(__file__).resolve().parents[2]


def corpus_root() -> Path | None:
    """The corpus folder, or None where there is none."""
    named = os.environ.get("QUOTARY_CORPUS")
    root = Path(named) if named else _REPOSITORY.parent / "shared" / "corpus"
    return root if (root / "INDEX.json").is_file() else None


@functools.cache
def _index() -> tuple[dict[str, Any], ...]:
    root = corpus_root()
    return () if root is None else tuple(json.loads((root / "INDEX.json").read_text("utf-8")))


def entries(prefix: str) -> list[dict[str, Any]]:
    """The index entries whose `file` begins with `prefix`, in index order; empty without a corpus."""
    return [entry for entry in _index() if entry["file"].startswith(prefix)]


def entry(file: str) -> dict[str, Any]:
    """The index entry of exactly `file`; KeyError if the index has none."""
    for candidate in _index():
        if candidate["file"] == file:
            return candidate
    raise KeyError(file)


class _Stated(dict[str, Any]):
    """What the index states of a file. It keeps in mind what of it a test has read."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def judge(
    item: Mapping[str, Any],
    checks: Mapping[str, Callable[[dict[str, Any]], None]],
    left: Mapping[str, str] | None = None,
) -> None:
    """Run the check of an entry's kind, which has to look at its outcome and at all that the index expects of it.

    `left`: what need not be looked at, by name, with the reason; it has to be there. KeyError where there is no check.
    """
    stated = _Stated({**item, "expected": _Stated(item["expected"])})
    checks[item["kind"]](stated)
    expected: _Stated = stated["expected"]
    assert "expect" in stated.read, "the outcome was not looked at"
    assert set(expected) - expected.read == set(left or {}), "what the index expects was not looked at"


def check_certificate(certificate: x509.Certificate, expected: Mapping[str, Any]) -> None:
    """Hold a certificate against the names and dates that the index states; the parts of a name in any order."""
    for name in ("subject", "issuer"):
        if name in expected:
            found = getattr(certificate, name).rfc4514_string().split(",")
            assert sorted(found) == sorted(expected[name].split(","))
    assert certificate.not_valid_before_utc == datetime.fromisoformat(expected["not_before"])
    assert certificate.not_valid_after_utc == datetime.fromisoformat(expected["not_after"])


def corpus_bytes(file: str) -> bytes:
    """The content of a corpus file, named as in the index; skips the calling test without a corpus."""
    root = corpus_root()
    if root is None:
        pytest.skip(_REASON)
    return (root / file).read_bytes()


_REASON = "the evidence corpus is absent: set QUOTARY_CORPUS to its folder"
needs_corpus = pytest.mark.skipif(corpus_root() is None, reason=_REASON)
