# SPDX-License-Identifier: Apache-2.0
"""Header fields of Quotary's own, whatever carries them (docs/spec/serving.md)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from quotary_attest.serving.refusals import Refusal
from quotary_verifier.wire.limits import MAX_NONCE, MIN_NONCE

OUTPUT: Final = "Quotary-Output"
"""In every answer of an attested path: `out_` and 48 hexadecimal digits. Knowing it is the right to fetch."""

ATTESTED: Final = "Quotary-Attested"
"""`no` in every answer that is not attested, and in no other."""

NONCE: Final = "Quotary-Nonce"
"""In a request: 8 to 64 bytes in lower-case hexadecimal, which the output record will carry."""

BODY_DIGESTS: Final = ("Content-MD5", "Content-Digest", "Repr-Digest", "Digest")
"""Fields that would be wrong for a body with a span in it (RFC 9530)."""

_NONCE: Final = re.compile(rf"(?:[0-9a-f]{{2}}){{{MIN_NONCE},{MAX_NONCE}}}")


def parse_nonce(values: Sequence[str]) -> bytes | None:
    """Return the nonce that a client asks to have bound; `values` are those of its field.

    Raises:
        Refusal: it is not 8 to 64 bytes in lower-case hexadecimal, or there are several.
    """
    if not values:
        return None
    if len(values) > 1 or not _NONCE.fullmatch(values[0]):
        raise Refusal(400, "bad_nonce", "Quotary-Nonce is not 8 to 64 bytes in lower-case hexadecimal")
    return bytes.fromhex(values[0])


def all_identity(values: Sequence[str]) -> bool:
    """Tell whether an answer has no content coding; `values` are those of its field."""
    return all(coding.strip().lower() in ("", "identity") for coding in ",".join(values).split(","))
