# SPDX-License-Identifier: Apache-2.0
"""Chat completions, completions and embeddings, as OpenAI-compatible servers answer them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from quotary_attest.serving.formats.meaning import Announce, Meaning, nobody
from quotary_attest.serving.texts import index_of
from quotary_attest.serving.tokens import COMPLETION, PROMPT


class _Choices(Meaning):
    """An answer with choices."""

    __slots__ = ("choices", "finished")

    def __init__(self, key: bytes, announce: Announce = nobody) -> None:
        super().__init__(key, announce)
        self.choices: set[int] = set()
        """The indices of all choices seen."""
        self.finished: set[int] = set()
        """The indices of the choices that had a finish reason."""

    def whole(self, payload: dict[str, Any]) -> None:
        """Take in an answer that is one object."""
        self._take(payload, streamed=False)

    def event(self, payload: dict[str, Any], kind: str) -> None:
        """Take in one chunk."""
        self.error = self.error or kind == "error"
        self._take(payload, streamed=True)

    @property
    def complete(self) -> bool:
        """Tell whether `[DONE]` came, or every choice seen had a finish reason."""
        return self.ended or (bool(self.choices) and self.choices <= self.finished)

    def _take(self, payload: dict[str, Any], *, streamed: bool) -> None:
        self._take_error(payload)
        self._known_as(payload.get("id"))
        self._take_counts(payload.get("usage"), "prompt_tokens", "completion_tokens")
        if payload.get(PROMPT) is not None:
            self.tokens.add(PROMPT, payload[PROMPT])
        choices = payload.get("choices")
        if isinstance(choices, list):
            for position, choice in enumerate(choices):
                if isinstance(choice, dict) and (number := index_of(choice, position)) is not None:
                    self._choice(choice, number, streamed)

    def _choice(self, choice: dict[str, Any], number: int, streamed: bool) -> None:
        self.choices.add(number)
        if choice.get("finish_reason") is not None:
            self.finished.add(number)
        for name in (PROMPT, COMPLETION):
            if choice.get(name) is not None:
                self.tokens.add(f"{name}/{number}", choice[name])
        self._texts(choice, number, streamed)

    @abstractmethod
    def _texts(self, choice: dict[str, Any], number: int, streamed: bool) -> None: ...

    def text_place(self, payload: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
        """Return the place of the text of a chunk with one choice that does not end and has no numbers."""
        choices = payload.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            return None
        choice = choices[0]
        numbered = any(
            item.get(name) is not None for item in (payload, choice) for name in (PROMPT, COMPLETION)
        )
        if numbered or choice.get("finish_reason") is not None or payload.get("usage") is not None:
            return None
        return self._place(choice)

    @abstractmethod
    def _place(self, choice: dict[str, Any]) -> tuple[dict[str, Any], str] | None: ...


class Chat(_Choices):
    """A chat completion."""

    __slots__ = ()

    def _texts(self, choice: dict[str, Any], number: int, streamed: bool) -> None:
        message = choice.get("delta" if streamed else "message")
        if not isinstance(message, dict):
            return
        texts = self.texts
        texts.add(f"text/{number}", message.get("content"))
        # engines call it one or the other; some send both, each a copy
        reasoning = message.get("reasoning_content")
        texts.add(
            f"reasoning/{number}", reasoning if isinstance(reasoning, str) else message.get("reasoning")
        )
        calls = message.get("tool_calls")
        for position, call in enumerate(calls if isinstance(calls, list) else ()):
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and (index := index_of(call, position)) is not None:
                texts.add(f"tool/{number}/{index}", function.get("arguments"))

    def _place(self, choice: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
        delta = choice.get("delta")
        # a role, null tool calls and the like stand in many first chunks; other strings would need their own place
        if not isinstance(delta, dict) or any(
            isinstance(delta.get(key), str | list) for key in delta if key != "content"
        ):
            return None
        return delta, "content"

    def more(self, payload: dict[str, Any], text: str) -> None:
        """Take in a chunk that is `payload` with another text."""
        choice = payload["choices"][0]
        number = index_of(choice, 0)
        if number is not None:
            self._texts({"delta": {**choice["delta"], "content": text}}, number, True)


class Completion(_Choices):
    """A completion."""

    __slots__ = ()

    def _texts(self, choice: dict[str, Any], number: int, streamed: bool) -> None:
        del streamed
        self.texts.add(f"text/{number}", choice.get("text"))

    def _place(self, choice: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
        return choice, "text"

    def more(self, payload: dict[str, Any], text: str) -> None:
        """Take in a chunk that is `payload` with another text."""
        number = index_of(payload["choices"][0], 0)
        if number is not None:
            self.texts.add(f"text/{number}", text)


class Embeddings(Meaning):
    """Embeddings: they have no text, but an id and counts."""

    __slots__ = ()

    def whole(self, payload: dict[str, Any]) -> None:
        """Take in an answer that is one object."""
        self._take_error(payload)
        self._known_as(payload.get("id"))
        self._take_counts(payload.get("usage"), "prompt_tokens", "completion_tokens")

    def event(self, payload: dict[str, Any], kind: str) -> None:
        """Take in one object of a stream, which no engine sends."""
        self.error = self.error or kind == "error"
        self.whole(payload)
