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
from pathlib import Path
from typing import Any

import pytest

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


def corpus_bytes(file: str) -> bytes:
    """The content of a corpus file, named as in the index; skips the calling test without a corpus."""
    root = corpus_root()
    if root is None:
        pytest.skip(_REASON)
    return (root / file).read_bytes()


_REASON = "the evidence corpus is absent: set QUOTARY_CORPUS to its folder"
needs_corpus = pytest.mark.skipif(corpus_root() is None, reason=_REASON)
