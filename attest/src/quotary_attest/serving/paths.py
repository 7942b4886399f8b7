# SPDX-License-Identifier: Apache-2.0
"""Which API a path of the engine speaks, and so whether and how its answers are attested (docs/spec/serving.md)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

OWN_PREFIX: Final = "/quotary"
"""Below it the proxy answers itself, whatever an operator maps."""

_ANY: Final = "*"


class Api(Enum):
    """What an answer of a path means. The values are the words of a configuration."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"
    MESSAGES = "messages"
    OLLAMA_CHAT = "ollama-chat"
    OLLAMA_GENERATE = "ollama-generate"
    OPAQUE = "opaque"
    """Attested as bytes: a digest of the body, nothing of its meaning."""
    NONE = "none"
    """Passes through and says that it is not attested."""


DEFAULT_PATHS: Final[Mapping[str, Api]] = MappingProxyType(
    {
        "/v1/chat/completions": Api.CHAT,
        "/v1/completions": Api.COMPLETIONS,
        "/v1/embeddings": Api.EMBEDDINGS,
        "/v1/responses": Api.RESPONSES,
        "/v1/messages": Api.MESSAGES,
        "/api/chat": Api.OLLAMA_CHAT,
        "/api/generate": Api.OLLAMA_GENERATE,
    }
)


class PathTable:
    """The APIs by path. Paths are compared as they stand in the request, without query, nothing decoded.

    What a table does not know is `Api.NONE`: a path spelled in another way than a rule is at worst not attested, and
    says so.
    """

    __slots__ = ("_paths", "_patterns")

    def __init__(self, rules: Mapping[str, Api] | None = None) -> None:
        """Add `rules` to the defaults, which they override: path → API. A segment `*` stands for any one segment.

        Raises:
            ValueError: a path does not begin with `/`, has a query or an empty segment, or is the proxy's own.
        """
        merged = dict(DEFAULT_PATHS)
        for path, api in (rules or {}).items():
            _check(path)
            merged[path] = api
        self._paths = {path: api for path, api in merged.items() if _ANY not in path.split("/")}
        # of two patterns that fit, the one that names more segments counts
        self._patterns = sorted(
            ((tuple(path.split("/")), api) for path, api in merged.items() if path not in self._paths),
            key=lambda rule: (rule[0].count(_ANY), rule[0]),
        )

    @property
    def rules(self) -> dict[str, Api]:
        """Every rule in force, the defaults included: path → API."""
        return self._paths | {"/".join(pattern): api for pattern, api in self._patterns}

    def api_of(self, method: str, path: str) -> Api:
        """Return the API of a request; its path is without query. Only POST makes outputs."""
        if method != "POST":
            return Api.NONE
        found = self._paths.get(path)
        if found is not None or not self._patterns:
            return found or Api.NONE
        segments = tuple(path.split("/"))
        return next((api for pattern, api in self._patterns if _fits(pattern, segments)), Api.NONE)


def _fits(pattern: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    return len(pattern) == len(segments) and all(
        wanted == segment or (wanted == _ANY and segment != "")
        for wanted, segment in zip(pattern, segments, strict=True)
    )


def _check(path: str) -> None:
    segments = path.split("/")
    if segments[0] or len(segments) < 2 or (path != "/" and "" in segments[1:]):
        raise ValueError(f"the path {path!r} does not begin with a slash, or has an empty segment")
    if "?" in path or "#" in path or not path.isascii() or not path.isprintable() or " " in path:
        raise ValueError(f"the path {path!r} is not written as it stands in a request, without query")
    if path == OWN_PREFIX or path.startswith(OWN_PREFIX + "/"):
        raise ValueError(f"the paths below {OWN_PREFIX} are the proxy's own")
