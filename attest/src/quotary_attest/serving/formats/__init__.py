# SPDX-License-Identifier: Apache-2.0
"""What answers say, one module for each API (docs/spec/serving.md "Text digests")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quotary_attest.serving.formats.meaning import Announce, Meaning, nobody
from quotary_attest.serving.formats.messages import Message
from quotary_attest.serving.formats.ollama import Chat as OllamaChat
from quotary_attest.serving.formats.ollama import Generated
from quotary_attest.serving.formats.openai import Chat, Completion, Embeddings
from quotary_attest.serving.formats.responses import Response
from quotary_attest.serving.paths import Api

_MEANINGS: Final[Mapping[Api, type[Meaning]]] = {
    Api.CHAT: Chat,
    Api.COMPLETIONS: Completion,
    Api.EMBEDDINGS: Embeddings,
    Api.RESPONSES: Response,
    Api.MESSAGES: Message,
    Api.OLLAMA_CHAT: OllamaChat,
    Api.OLLAMA_GENERATE: Generated,
}


def meaning_of(api: Api, key: bytes, announce: Announce = nobody) -> Meaning | None:
    """Return what collects the meaning of one answer of an API; None for bytes of no known API.

    `key` is the request key of the output, `announce` is told the engine's own id as soon as it is read.
    """
    kind = _MEANINGS.get(api)
    return None if kind is None else kind(key, announce)


__all__ = ["Announce", "Meaning", "meaning_of", "nobody"]
