# SPDX-License-Identifier: Apache-2.0
"""How a client wants its attestation, and on what terms an answer is passed on (docs/spec/serving.md "Delivery")."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from quotary_attest.serving.paths import Api
from quotary_attest.serving.refusals import Refusal

DELIVER: Final = "Quotary-Deliver"
"""In a request: `inline`, `deferred` or `header`."""

ATTESTATION: Final = "Quotary-Attestation"
"""In an answer, where a client asked for it: the attestation in base64."""

MAX_HEADER: Final = 8000
"""Characters of that field: clients in wide use refuse a field of more than 8,190 bytes."""

# Where the official clients were run with a span in the body and took it (docs/reference/upstream-behaviour.md).
_IN_STREAM: Final = frozenset((Api.CHAT, Api.COMPLETIONS))
_IN_OBJECT: Final = _IN_STREAM | {Api.EMBEDDINGS, Api.RESPONSES}


class Delivery(Enum):
    """Where the attestation goes. Whatever a client asks, it can be fetched by id."""

    INLINE = "inline"
    """In the body, where its API has a place for it and the official clients were seen to take it."""
    DEFERRED = "deferred"
    """By id only; the answer does not wait for the commit."""
    HEADER = "header"
    """In a header field, if the answer is held whole and the attestation is short enough."""


_DELIVERIES: Final[Mapping[str, Delivery]] = {item.value: item for item in Delivery}


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms one answer is passed on. `max_inband` is in bytes of an attestation.

    With `lenient`, an answer that cannot be attested goes out all the same, and says so.
    """

    api: Api
    delivery: Delivery = Delivery.INLINE
    max_inband: int = 256 * 1024
    lenient: bool = False

    @property
    def in_stream(self) -> bool:
        """Tell whether a span may go into a stream."""
        return self.delivery is Delivery.INLINE and self.api in _IN_STREAM

    @property
    def in_object(self) -> bool:
        """Tell whether a span may go into a JSON object."""
        return self.delivery is Delivery.INLINE and self.api in _IN_OBJECT


def delivery_of(values: Sequence[str]) -> Delivery:
    """Return how the client wants its attestation; `values` are those of its field, none where it has none.

    Raises:
        Refusal: it asks for something else, or for several.
    """
    if not values:
        return Delivery.INLINE
    delivery = _DELIVERIES.get(values[0]) if len(values) == 1 else None
    if delivery is None:
        raise Refusal(400, "bad_delivery", "Quotary-Deliver is not one of inline, deferred and header")
    return delivery


def header_value(attestation: bytes) -> str | None:
    """Return an attestation as a field's value, None if it does not fit into one."""
    encoded = base64.b64encode(attestation).decode()
    return encoded if len(encoded) <= MAX_HEADER else None
