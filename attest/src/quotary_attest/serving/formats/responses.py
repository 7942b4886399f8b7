# SPDX-License-Identifier: Apache-2.0
"""Responses: an answer made of output items, as one object or as typed events.

An answer is one choice, number 0. Its text is what clients show as such: the texts of all messages in the order in
which they were sent. A tool call's number is the position of its item in the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from quotary_attest.serving.formats.meaning import Announce, Meaning, nobody
from quotary_attest.serving.texts import index_of

_PARTS: Final[Mapping[Any, str]] = {"output_text": "text/0", "reasoning_text": "reasoning/0"}
_DELTAS: Final[Mapping[str, str]] = {
    "response.output_text.delta": "text/0",
    "response.reasoning_text.delta": "reasoning/0",
}
_ENDS: Final = frozenset(("response.completed", "response.incomplete", "response.failed"))
_RESPONSES: Final = _ENDS | {"response.created", "response.in_progress", "response.queued"}


class Response(Meaning):
    """A response."""

    __slots__ = ("_count", "_items", "sequence")

    def __init__(self, key: bytes, announce: Announce = nobody) -> None:
        super().__init__(key, announce)
        self._count = 0
        self._items: dict[str, int] = {}
        self.sequence = -1
        """The last sequence number of the stream."""

    def whole(self, payload: dict[str, Any]) -> None:
        """Take in an answer that is one object."""
        self._response(payload)
        output = payload.get("output")
        for position, item in enumerate(output if isinstance(output, list) else ()):
            self._item(item, position)

    def event(self, payload: dict[str, Any], kind: str) -> None:
        """Take in one event."""
        kind = payload["type"] if isinstance(payload.get("type"), str) else kind
        if type(payload.get("sequence_number")) is int:
            self.sequence = payload["sequence_number"]
        self.error = self.error or kind == "error"
        self._take_error(payload)
        if kind in _DELTAS:
            self.texts.add(_DELTAS[kind], payload.get("delta"))
        elif kind == "response.function_call_arguments.delta":
            self._call(payload.get("delta"), self._number(payload))
        elif kind == "response.output_item.added":
            self._added(payload)
        elif kind == "response.content_part.added":
            self._part(payload.get("part"))
        elif kind in _RESPONSES and isinstance(payload.get("response"), dict):
            self._response(payload["response"])
        if kind in _ENDS:
            self.ended = True

    def _response(self, response: dict[str, Any]) -> None:
        self._take_error(response)
        self.error = self.error or response.get("status") == "failed"
        self._known_as(response.get("id"))
        self._take_counts(response.get("usage"), "input_tokens", "output_tokens")

    def _added(self, event: dict[str, Any]) -> None:
        item = event.get("item")
        number = index_of(event, self._count, "output_index")
        if not isinstance(item, dict) or number is None:
            return
        self._count += 1
        for name in (item.get("id"), item.get("call_id")):
            if isinstance(name, str):
                self._items[name] = number
        self._item(item, number)

    def _number(self, event: dict[str, Any]) -> int | None:
        """Return the position of the item that an event speaks of; some engines only name the item."""
        name = event.get("item_id")
        known = self._items.get(name, -1) if isinstance(name, str) else -1
        return index_of(event, known, "output_index")

    def _item(self, item: Any, number: int) -> None:
        if not isinstance(item, dict):
            return
        if item.get("type") == "function_call":
            self._call(item.get("arguments"), number)
        content = item.get("content")
        for part in content if isinstance(content, list) else ():
            self._part(part)

    def _part(self, part: Any) -> None:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in _PARTS:
            self.texts.add(_PARTS[kind], part.get("text"))

    def _call(self, arguments: Any, number: int | None) -> None:
        if number is not None:
            self.texts.add(f"tool/0/{number}", arguments)
