# SPDX-License-Identifier: Apache-2.0
"""From an answer, as an HTTP or API client hands it out, to its verdict."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from quotary.exchanges import Exchange
from quotary_verifier import Verdict

EXTENSION = "quotary"
"""The key of an `Exchange` among the extensions of a response of httpx2 or httpx."""

_HOLDERS = ("response", "http_response", "_response")
_known: dict[int, tuple[weakref.ref[object], Exchange]] = {}


def verdict(answer: object) -> Verdict:
    """Return the verdict on an answer: a response, a stream, or what an API client made of one.

    Raises:
        AttestationError: it has none, and why; a stream has one once it was read to its end.
        TypeError: it did not come through this library.
    """
    return exchange(answer).verdict


def exchange(answer: object) -> Exchange:
    """Return the exchange that an answer is of: what was asked, the exact bytes that came, the attestation.

    Raises:
        TypeError: it did not come through this library.
    """
    found = find(answer)
    if found is None:
        raise TypeError(f"no answer that came through quotary: {type(answer).__name__}")
    return found


def find(answer: object) -> Exchange | None:
    """Return the exchange that an answer is of, None if it has none."""
    if isinstance(answer, Exchange):
        return answer
    known = _known.get(id(answer))
    if known is not None and known[0]() is answer:
        return known[1]
    extensions = getattr(answer, "extensions", None)
    found = extensions.get(EXTENSION) if isinstance(extensions, Mapping) else None
    if isinstance(found, Exchange):
        return found
    for name in _HOLDERS:
        inner = getattr(answer, name, None)
        if inner is not None and inner is not answer:
            return find(inner)
    return None


def attach(answer: object, made_of: object) -> None:
    """Let `verdict` find for `answer` what it finds for `made_of`; nothing for what Python cannot refer to weakly."""
    found = find(made_of)
    if found is None:
        return
    key = id(answer)
    try:
        _known[key] = (weakref.ref(answer, lambda _: _known.pop(key, None)), found)
    except TypeError:
        return
