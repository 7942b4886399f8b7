# SPDX-License-Identifier: Apache-2.0
"""Verification of TPM2_NV_Certify over a start counter (TPM 2.0 Library, Part 3, section 31.16).

The index is known by its name, which is computed from the public area in the genesis record: another index,
or the same handle defined anew with other attributes, has another name.
"""

from __future__ import annotations

from typing import Final

from quotary_verifier.errors import EvidenceError
from quotary_verifier.evidence.tpm_quote import check_extra_data, check_qualified_signer, verify_signature
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tpm import (
    ClockInfo,
    NvInfo,
    NvPublic,
    parse_attest,
    parse_signature,
    unpack_evidence,
)
from quotary_verifier.wire.tpm_public import Public

NV_WRITTEN: Final = 0x20000000
NV_TYPE_MASK: Final = 0x000000F0
NV_TYPE_COUNTER: Final = 0x00000010
COUNTER_BYTES: Final = 8


@frozen
class CounterReading:
    """A certified value of a counter, and the TPM's clock when it was certified."""

    value: int
    clock: ClockInfo


def check_counter_public(nv_public: NvPublic) -> None:
    """EvidenceError unless the index is a counter that has been written, so that its value can only rise."""
    if nv_public.attributes & NV_TYPE_MASK != NV_TYPE_COUNTER:
        raise EvidenceError(f"nv index 0x{nv_public.index:08x} is not a counter")
    if not nv_public.attributes & NV_WRITTEN:
        raise EvidenceError(f"nv counter 0x{nv_public.index:08x} has never been incremented")
    if nv_public.data_size != COUNTER_BYTES:
        raise EvidenceError(f"nv counter 0x{nv_public.index:08x} has {nv_public.data_size} bytes, not 8")


def verify_counter(
    public: Public, evidence: bytes, *, qualified_signer: bytes, extra_data: bytes, nv_public: NvPublic
) -> CounterReading:
    """Verify packed TPM evidence that must be an NV certification, by `public`, of the counter `nv_public`.

    MalformedError, EvidenceError or UnsupportedError; the key's attributes are for `tpm_keys` to check.
    """
    check_counter_public(nv_public)
    attest_bytes, signature = unpack_evidence(evidence)
    attest = parse_attest(attest_bytes)
    certified = attest.require_nv()
    verify_signature(public, attest_bytes, parse_signature(signature))
    check_qualified_signer(attest, qualified_signer)
    check_extra_data(attest, extra_data)
    return CounterReading(_value(certified, nv_public), attest.clock)


def check_counter_step(before: int, after: int) -> int:
    """How many numbers were skipped between two starts; EvidenceError unless the counter rose."""
    if after <= before:
        raise EvidenceError(f"the start counter did not rise: {before}, then {after}")
    return after - before - 1


def _value(certified: NvInfo, nv_public: NvPublic) -> int:
    if certified.index_name != nv_public.name:
        raise EvidenceError("the certified nv index is not the start counter of the genesis record")
    if certified.offset != 0 or len(certified.contents) != COUNTER_BYTES:
        raise EvidenceError("the nv certification does not cover the whole counter")
    return int.from_bytes(certified.contents, "big")
