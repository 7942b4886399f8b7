# SPDX-License-Identifier: Apache-2.0
"""What is collected of an answer whatever its API: texts, the engine's id, token counts and ids, errors, its end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from quotary_attest.serving.aliases import is_upstream_id
from quotary_attest.serving.texts import Texts
from quotary_attest.serving.tokens import TokenIds
from quotary_verifier.wire.records import ContextValue

Announce = Callable[[str], None]

_MAX_COUNT: Final = 1 << 53


def nobody(_: str) -> None:
    """Announce an engine's id to nobody."""


class Meaning(ABC):
    """What one answer says. An API's own class fills it from the parsed objects of the answer.

    What is not of the API's form is left out: an engine's answer is never refused for it.
    """

    __slots__ = ("_announce", "_counts", "ended", "error", "texts", "tokens", "upstream_id")

    def __init__(self, key: bytes, announce: Announce = nobody) -> None:
        """`key` is the request key; `announce` is told the engine's id of the answer once."""
        self._announce = announce
        self._counts: dict[str, Any] = {}
        self.texts = Texts()
        self.tokens = TokenIds(key)
        self.upstream_id: str | None = None
        """The engine's own id of the answer."""
        self.error = False
        """True if the engine said within the answer that it failed."""
        self.ended = False
        """True once the API's own sign of the end of a stream was read."""

    @abstractmethod
    def whole(self, payload: dict[str, Any]) -> None:
        """Take in an answer that is one object."""

    @abstractmethod
    def event(self, payload: dict[str, Any], kind: str) -> None:
        """Take in one object of a stream; `kind` is the type of its event, empty where it has none."""

    def text_place(self, payload: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
        """Return the object and the member that hold the only thing that changes from an event of this kind to the
        next: a piece of text. None where there is no such place."""
        del payload
        return None

    def more(self, payload: dict[str, Any], text: str) -> None:
        """Take in an event that is `payload` with `text` at its `text_place`; not called where there is none."""
        del payload, text
        raise TypeError(f"{type(self).__name__} has no place for a text that changes")

    @property
    def complete(self) -> bool:
        """Tell whether a stream came to its end by its API's own signs."""
        return self.ended

    def facts(self) -> dict[str, ContextValue]:
        """Return the context of a record: token counts that are such, commitments to token ids."""
        counts = {name: count for name, count in self._counts.items() if is_count(count)}
        return {**counts, **self.tokens.commitments()}

    def _known_as(self, upstream_id: Any) -> None:
        if self.upstream_id is None and is_upstream_id(upstream_id):
            self.upstream_id = upstream_id
            self._announce(upstream_id)

    def _take_counts(self, usage: Any, prompt: str, completion: str) -> None:
        """Remember the last counts that were sent; `prompt` and `completion` are the API's names of them."""
        if not isinstance(usage, dict):
            return
        for ours, theirs in (("prompt_tokens", prompt), ("completion_tokens", completion)):
            if usage.get(theirs) is not None:
                self._counts[ours] = usage[theirs]

    def _take_error(self, payload: dict[str, Any]) -> None:
        if payload.get("error") is not None:
            self.error = True


def is_count(value: Any) -> bool:
    """Tell whether a value is a number of tokens that JSON keeps exact."""
    return type(value) is int and 0 <= value < _MAX_COUNT
