# SPDX-License-Identifier: Apache-2.0
"""Ollama's own API: one object, or one a line, each with a piece of the answer; the last says that it is done.

An answer is one choice, number 0. Arguments of tools are objects, so they have no digest.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from quotary_attest.serving.formats.meaning import Meaning


class _Lines(Meaning):
    """An answer of either path."""

    __slots__ = ()

    def whole(self, payload: dict[str, Any]) -> None:
        """Take in an answer that is one object, or one line of it."""
        self._take_error(payload)
        self._take_counts(payload, "prompt_eval_count", "eval_count")
        self._texts(payload)
        if payload.get("done") is True:
            self.ended = True

    def event(self, payload: dict[str, Any], kind: str) -> None:
        """Take in one line."""
        del kind
        self.whole(payload)

    @abstractmethod
    def _texts(self, payload: dict[str, Any]) -> None: ...


class Chat(_Lines):
    """An answer of `/api/chat`."""

    __slots__ = ()

    def _texts(self, payload: dict[str, Any]) -> None:
        message = payload.get("message")
        if isinstance(message, dict):
            self.texts.add("text/0", message.get("content"))
            self.texts.add("reasoning/0", message.get("thinking"))


class Generated(_Lines):
    """An answer of `/api/generate`."""

    __slots__ = ()

    def _texts(self, payload: dict[str, Any]) -> None:
        self.texts.add("text/0", payload.get("response"))
        self.texts.add("reasoning/0", payload.get("thinking"))
