# SPDX-License-Identifier: Apache-2.0
"""Token ids that the engine sent, as commitments under the request key (docs/spec/records.md "Context").

A prompt's ids are the prompt, so they are never hashed bare; neither are those of the answer, which say more than its
text does. They are not kept: the commitment grows with them.
"""

from __future__ import annotations

import hmac
import struct
from typing import Any, Final

from quotary_verifier.wire.bindings import token_ids_label

PROMPT: Final = "prompt_token_ids"
COMPLETION: Final = "token_ids"

MAX_COMMITMENTS: Final = 16
"""Of one record; an answer with more has none."""

_MAX_ID: Final = (1 << 32) - 1


class TokenIds:
    """Commits to the token ids of one answer, by name, as they come."""

    __slots__ = ("_broken", "_crowded", "_key", "_macs")

    def __init__(self, key: bytes) -> None:
        """`key` is the request key, 32 bytes."""
        self._key = key
        self._macs: dict[str, hmac.HMAC] = {}
        self._broken: set[str] = set()
        self._crowded = False

    def add(self, name: str, ids: Any) -> None:
        """Append to the list of a name. Null is nothing sent; a list with anything but ids leaves the name out."""
        if ids is None:
            return
        mac = self._macs.get(name)
        if mac is None:
            if len(self._macs) >= MAX_COMMITMENTS:
                self._crowded = True
                return
            mac = self._macs[name] = hmac.new(self._key, token_ids_label(name), "sha256")
        if not isinstance(ids, list) or any(
            type(each) is not int or not 0 <= each <= _MAX_ID for each in ids
        ):
            self._broken.add(name)
            return
        mac.update(struct.pack(f">{len(ids)}I", *ids))

    def commitments(self) -> dict[str, bytes]:
        """Return name → 32 bytes. Empty if a record has no room for all: some of them would look like all of them."""
        if self._crowded:
            return {}
        return {name: mac.digest() for name, mac in self._macs.items() if name not in self._broken}
