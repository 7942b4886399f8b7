# SPDX-License-Identifier: Apache-2.0
"""The prefixes of an IMA log by their SHA-256: whoever holds a longer part of a boot's log has the shorter ones too.

A commit names as much of the log as its quote covers (docs/spec/history.md). That part ends with a record, so of a
longer part all names can be computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from quotary_verifier.errors import MalformedError
from quotary_verifier.logs.ima import parse_ima_binary


def prefix_digests(log: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the SHA-256 of each prefix that ends with a record, and how many bytes it has; nothing is verified.

    It ends with the first record that is not well formed, and yields nothing for what is no binary IMA log.
    """
    digest, begin = hashlib.sha256(), 0
    view = memoryview(log)
    try:
        for _, end in parse_ima_binary(log).read():
            digest.update(view[begin:end])
            begin = end
            yield digest.digest(), end
    except MalformedError:
        return
