# SPDX-License-Identifier: Apache-2.0
"""Messages, as Anthropic's API has them: content blocks, as one object or as typed events.

An answer is one choice, number 0. Its text is that of all text blocks in the order in which they were sent; a tool's
number is the position of its block. Tool input is an object in a whole answer, so it has a digest in streams only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from quotary_attest.serving.formats.meaning import Meaning
from quotary_attest.serving.texts import index_of

_TEXTS: Final[Mapping[Any, tuple[str, str]]] = {
    "text": ("text/0", "text"),
    "thinking": ("reasoning/0", "thinking"),
    "text_delta": ("text/0", "text"),
    "thinking_delta": ("reasoning/0", "thinking"),
}


class Message(Meaning):
    """A message."""

    __slots__ = ()

    def whole(self, payload: dict[str, Any]) -> None:
        """Take in an answer that is one object."""
        self._take_error(payload)
        self._message(payload)
        content = payload.get("content")
        for block in content if isinstance(content, list) else ():
            self._block(block)

    def event(self, payload: dict[str, Any], kind: str) -> None:
        """Take in one event."""
        kind = payload["type"] if isinstance(payload.get("type"), str) else kind
        self.error = self.error or kind == "error"
        self._take_error(payload)
        if kind == "content_block_delta":
            self._delta(payload)
        elif kind == "content_block_start":
            self._block(payload.get("content_block"))
        elif kind == "message_start" and isinstance(payload.get("message"), dict):
            self._message(payload["message"])
        elif kind == "message_delta":
            self._take_counts(payload.get("usage"), "input_tokens", "output_tokens")
        elif kind == "message_stop":
            self.ended = True

    def _message(self, message: dict[str, Any]) -> None:
        self._known_as(message.get("id"))
        self._take_counts(message.get("usage"), "input_tokens", "output_tokens")

    def _block(self, block: Any) -> None:
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(kind, str) and kind in _TEXTS:
            key, member = _TEXTS[kind]
            self.texts.add(key, block.get(member))

    def _delta(self, event: dict[str, Any]) -> None:
        delta, number = event.get("delta"), index_of(event, 0)
        if not isinstance(delta, dict) or delta.get("type") != "input_json_delta":
            self._block(delta)
        elif number is not None:
            self.texts.add(f"tool/0/{number}", delta.get("partial_json"))
