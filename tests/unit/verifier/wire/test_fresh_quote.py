# SPDX-License-Identifier: Apache-2.0
"""The fresh quote as an artefact: read strictly, of its own kind, its nonce bounded."""

from __future__ import annotations

import pytest

from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import Attestation, TpmSupport
from quotary_verifier.wire.fresh import FreshQuote

SUPPORT = TpmSupport("quotary/tpm2-quote/v1", {0: b"\1" * 32}, b"\2" * 32, (b"der",), (b"d" * 32,))
FRESH = FreshQuote(b"n" * 16, b"genesis", b"evidence", SUPPORT)


def changed(**fields: object) -> bytes:
    value = cbor.decode(FRESH.encode(), max_bytes=1 << 20)
    for key, item in fields.items():
        value[int(key[1:])] = item
    return cbor.encode(value)


def test_it_reads_back_what_was_written() -> None:
    assert FreshQuote.decode(FRESH.encode()) == FRESH


@pytest.mark.parametrize("size", [7, 65])
def test_a_nonce_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(MalformedError, match="field 2"):
        FreshQuote.decode(changed(_2=bytes(size)))


def test_another_kind_version_or_field_is_refused() -> None:
    with pytest.raises(MalformedError, match="expected kind 19"):
        FreshQuote.decode(changed(_0=16))
    with pytest.raises(UnsupportedError, match="version 2"):
        FreshQuote.decode(changed(_1=2))
    with pytest.raises(MalformedError, match="field 6 is unknown"):
        FreshQuote.decode(changed(_6=1))
    with pytest.raises(MalformedError, match="field 5"):
        FreshQuote.decode(changed(_5=[]))


def test_it_never_passes_for_an_attestation() -> None:
    with pytest.raises(MalformedError, match="expected kind 16"):
        Attestation.decode(FRESH.encode())
