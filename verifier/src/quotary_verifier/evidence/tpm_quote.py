# SPDX-License-Identifier: Apache-2.0
"""Verification of TPM2_Quote (TPM 2.0 Library, Part 3, section 18.4): signature, binding, selection, values.

Each rule is a function of its own, so that the recipe can report each; `verify_quote` applies all in order.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from quotary_verifier.errors import EvidenceError
from quotary_verifier.wire import tpm_algorithms as alg
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tpm import (
    Attest,
    ClockInfo,
    PcrSelection,
    QuoteInfo,
    Signature,
    parse_attest,
    parse_signature,
    unpack_evidence,
)
from quotary_verifier.wire.tpm_public import Public

OWN_SELECTION: Final = PcrSelection(alg.ALG_SHA256, b"\xff\xff\x00")
"""PCRs 0-15 of the SHA-256 bank: every PCR that only a reboot resets."""

RESETTABLE_PCRS: Final = frozenset(range(16, 24))
"""PCRs that software can reset without a reboot (16 and 23 at locality 0, 17-22 by a dynamic launch)."""

_EXTRA_DATA_BYTES: Final = 32


@frozen
class QuotedState:
    """What a verified quote says: PCRs that only a reboot resets, the clock, the firmware version."""

    pcrs: Mapping[int, bytes]
    clock: ClockInfo
    firmware_version: int


def verify_quote(
    public: Public,
    evidence: bytes,
    *,
    qualified_signer: bytes,
    extra_data: bytes,
    values: Mapping[int, bytes],
    required: PcrSelection = OWN_SELECTION,
) -> QuotedState:
    """Verify packed TPM evidence (u16 ‖ TPMS_ATTEST ‖ u16 ‖ TPMT_SIGNATURE) that must be a quote by `public`.

    `values` are PCR values of the required bank; those not selected are dropped. MalformedError,
    EvidenceError or UnsupportedError; the key's attributes are for `tpm_keys` to check.
    """
    attest_bytes, signature = unpack_evidence(evidence)
    attest = parse_attest(attest_bytes)
    attest.require_quote()
    parsed = parse_signature(signature)
    verify_signature(public, attest_bytes, parsed)
    check_qualified_signer(attest, qualified_signer)
    check_extra_data(attest, extra_data)
    pcrs = check_pcrs(attest, parsed, values, required)
    return QuotedState(pcrs, attest.clock, attest.firmware_version)


def verify_signature(public: Public, attest_bytes: bytes, signature: Signature) -> None:
    """Verify `signature` over exactly `attest_bytes` with the scheme and hash of the key, and no other.

    EvidenceError if it does not verify, is of another scheme, or uses SHA-1.
    """
    if public.scheme is None or (signature.alg, signature.hash_alg) != (public.scheme, public.scheme_hash):
        raise EvidenceError("the signature is not of the scheme and hash that the key fixes")
    chosen = alg.signature_hash(signature.hash_alg)
    key = public.public_key()
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            assert signature.r is not None
            assert signature.s is not None
            key.verify(encode_dss_signature(signature.r, signature.s), attest_bytes, ec.ECDSA(chosen))
        else:
            assert signature.rsa is not None
            if signature.alg == alg.ALG_RSASSA:
                key.verify(signature.rsa, attest_bytes, padding.PKCS1v15(), chosen)
            else:
                # TPMs salt with the digest's length or with all the room there is, by version
                pss = padding.PSS(padding.MGF1(chosen), padding.PSS.AUTO)
                key.verify(signature.rsa, attest_bytes, pss, chosen)
    except InvalidSignature:
        raise EvidenceError("the signature does not verify with the attestation key") from None


def check_qualified_signer(attest: Attest, qualified_signer: bytes) -> None:
    """EvidenceError unless the structure names its signer by the qualified name computed for the key."""
    if attest.qualified_signer != qualified_signer:
        raise EvidenceError(
            "the qualified signer is not the attestation key at its place in the endorsed hierarchy"
        )


def check_extra_data(attest: Attest, expected: bytes) -> None:
    """EvidenceError unless extraData is exactly the 32 bytes `expected`; ValueError if those are not 32."""
    if len(expected) != _EXTRA_DATA_BYTES:
        raise ValueError(f"{len(expected)} bytes are expected in extraData, not {_EXTRA_DATA_BYTES}")
    if not hmac.compare_digest(attest.extra_data, expected):
        raise EvidenceError("extraData is not the digest that the evidence has to bind")


def check_pcrs(
    attest: Attest,
    signature: Signature,
    values: Mapping[int, bytes],
    required: PcrSelection = OWN_SELECTION,
) -> Mapping[int, bytes]:
    """The quoted values of PCRs 0-15, read-only, of a quote that must cover exactly `required`.

    `signature` is the verified signature: its hash also makes the PCR digest. EvidenceError otherwise.
    """
    quote = attest.require_quote()
    check_selection(quote, required)
    return verify_pcr_values(quote, values, signature.hash_alg)


def check_selection(quote: QuoteInfo, required: PcrSelection) -> None:
    """EvidenceError unless the quote covers exactly `required`: one bank, and the same bitmap."""
    if not required.pcrs:
        raise ValueError("a required selection of no pcr would be satisfied by anything")
    selection = _only_selection(quote)
    if selection.hash_alg != required.hash_alg:
        raise EvidenceError(f"the quoted bank is {_bank(selection)}, not {_bank(required)}")
    if selection.bitmap != required.bitmap:
        raise EvidenceError(f"the quoted pcrs are {list(selection.pcrs)}, not {list(required.pcrs)}")


def pcr_digest(selection: PcrSelection, values: Mapping[int, bytes], hash_alg: int) -> bytes:
    """The digest that a quote over `selection` carries, by the hash of the signing scheme.

    EvidenceError if a selected value is missing or not of the bank's size, or the bank is SHA-1;
    UnsupportedError for other banks.
    """
    alg.signature_hash(selection.hash_alg)  # refuses the banks that never count
    size = alg.HASH_SIZES[selection.hash_alg]
    selected = []
    for number in selection.pcrs:
        value = values.get(number, b"")
        if len(value) != size:
            raise _bad_value(number, values, size)
        selected.append(value)
    return alg.digest(hash_alg, b"".join(selected))


def verify_pcr_values(quote: QuoteInfo, values: Mapping[int, bytes], hash_alg: int) -> Mapping[int, bytes]:
    """The quoted values of PCRs 0-15, read-only; values that were not quoted are dropped.

    Resettable PCRs take part in the digest and are then dropped too, as they tell no history. EvidenceError
    unless the values give the quoted digest.
    """
    selection = check_pcr_digest(quote, values, hash_alg)
    return MappingProxyType(
        {number: values[number] for number in selection.pcrs if number not in RESETTABLE_PCRS}
    )


def check_pcr_digest(quote: QuoteInfo, values: Mapping[int, bytes], hash_alg: int) -> PcrSelection:
    """What was selected. EvidenceError unless the values of what was selected give the quoted digest."""
    selection = _only_selection(quote)
    if not hmac.compare_digest(pcr_digest(selection, values, hash_alg), quote.pcr_digest):
        raise EvidenceError("the pcr values do not give the quoted digest")
    return selection


def _only_selection(quote: QuoteInfo) -> PcrSelection:
    if len(quote.selections) != 1:
        raise EvidenceError(f"{len(quote.selections)} pcr selections are quoted, exactly one is required")
    return quote.selections[0]


def _bank(selection: PcrSelection) -> str:
    return alg.HASH_NAMES.get(selection.hash_alg, f"0x{selection.hash_alg:04x}")


def _bad_value(number: int, values: Mapping[int, bytes], size: int) -> EvidenceError:
    if number not in values:
        return EvidenceError(f"the value of quoted pcr {number} is missing")
    return EvidenceError(f"the value of pcr {number} has {len(values[number])} bytes, not {size}")
