# SPDX-License-Identifier: Apache-2.0
"""Which TPM keys may attest, and how their qualified names are computed.

The attributes inside a key's name decide what its signatures mean: a restricted key signs a structure with
the TPM's magic only if the TPM itself made that structure, and a key that never was outside its TPM speaks
for that TPM alone. The agent makes its AKs to one template; keys that a cloud made for its vTPMs satisfy
less.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from quotary_verifier.errors import EvidenceError
from quotary_verifier.wire import tpm_algorithms as alg
from quotary_verifier.wire import tpm_public as tpm
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tpm_names import (
    HIERARCHIES,
    RH_ENDORSEMENT,
    hierarchy_qn,
    name_algorithm,
    qualified_name,
)

OWN_AK_ATTRIBUTES: Final = 0x00050472
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign; and no other."""

_REQUIRED: Final = {
    "fixedTPM": tpm.FIXED_TPM,
    "fixedParent": tpm.FIXED_PARENT,
    "sensitiveDataOrigin": tpm.SENSITIVE_DATA_ORIGIN,
    "restricted": tpm.RESTRICTED,
    "sign": tpm.SIGN,
}
_REQUIRED_BITS: Final = sum(_REQUIRED.values())
_HANDLE_BYTES: Final = 4
_MIN_RSA_BITS: Final = 2048
_SCHEME_NAMES: Final = {alg.ALG_ECDSA: "ecdsa", alg.ALG_RSASSA: "rsassa", alg.ALG_RSAPSS: "rsapss"}
_CURVE_NAMES: Final = {tpm.CURVE_P256: "p256", tpm.CURVE_P384: "p384"}


@frozen
class AkProfile:
    """What an attestation key is.

    `own`: made to the agent's template, so that only who knows its auth value can quote with it; a foreign
    key has to be taken as one that any process with access to the TPM can use. `algorithm`: such as
    "ecdsa-p256-sha256". `hash_alg`: the hash of its signatures.
    """

    own: bool
    algorithm: str
    hash_alg: int


@frozen
class AttestationKey:
    """An attestation key whose attributes hold, and the qualified name that its evidence must carry."""

    public: tpm.Public
    profile: AkProfile
    qualified_name: bytes


def attestation_key(public: tpm.Public, genesis_parent: bytes) -> AttestationKey:
    """The AK of a genesis record, own or foreign, with its qualified name.

    `genesis_parent` is item 6 of the genesis record (design, section 3). EvidenceError where the key may not
    attest, MalformedError where the parent is no name.
    """
    profile = check_ak(public)
    if len(genesis_parent) == _HANDLE_BYTES:
        profile = replace(profile, own=False)  # the agent's keys are children, this is a primary
    return AttestationKey(public, profile, ak_qualified_name(genesis_parent, public))


def check_ak(public: tpm.Public, *, strict: bool = False) -> AkProfile:
    """Check that `public` may attest; `strict` demands the agent's template, and without it `own` tells.

    EvidenceError if the key could sign what its TPM did not make, could leave it, or is too weak.
    """
    _check_attributes(public.attributes)
    _check_scheme(public)
    difference = _template_difference(public)
    if strict and difference is not None:
        raise EvidenceError(difference)
    return AkProfile(difference is None, _algorithm(public), _scheme_hash(public))


def ak_qualified_name(genesis_parent: bytes, public: tpm.Public) -> bytes:
    """The qualified name of an AK, by item 6 of its genesis record.

    For the agent's own AKs item 6 is the name of a primary in the endorsement hierarchy; for foreign ones the
    parent's qualified name, or the 4-byte handle of the hierarchy in which the AK is a primary.
    MalformedError if it is none of these; EvidenceError for a hierarchy whose keys do not outlive a reset.
    """
    if len(genesis_parent) == _HANDLE_BYTES:
        handle = int.from_bytes(genesis_parent, "big")
        if handle not in HIERARCHIES:
            raise EvidenceError(f"0x{handle:08x} is not the handle of a lasting hierarchy")
        return qualified_name(genesis_parent, public.name)
    name_algorithm(genesis_parent)
    parent = genesis_parent
    if _template_difference(public) is None:
        parent = qualified_name(hierarchy_qn(RH_ENDORSEMENT), genesis_parent)
    return qualified_name(parent, public.name)


def _check_attributes(attributes: int) -> None:
    if attributes & _REQUIRED_BITS != _REQUIRED_BITS:
        missing = [name for name, bit in _REQUIRED.items() if not attributes & bit]
        raise EvidenceError(f"the key is not an attestation key: {', '.join(missing)} not set")
    if attributes & tpm.DECRYPT:
        raise EvidenceError("the key is not an attestation key: decrypt is set")


def _check_scheme(public: tpm.Public) -> None:
    ecc = isinstance(public.key, tpm.EccPoint)
    allowed = {alg.ALG_ECDSA} if ecc else {alg.ALG_RSASSA, alg.ALG_RSAPSS}
    if public.scheme not in allowed or public.symmetric is not None:
        raise EvidenceError("the key is not an attestation key: it has no fixed signature scheme")
    alg.signature_hash(_scheme_hash(public))
    if isinstance(public.key, tpm.RsaKey) and public.key.bits < _MIN_RSA_BITS:
        raise EvidenceError(f"an rsa key of {public.key.bits} bits is too weak")


def _template_difference(public: tpm.Public) -> str | None:
    if public.attributes != OWN_AK_ATTRIBUTES:
        return f"attributes 0x{public.attributes:08x} are not the agent's, 0x{OWN_AK_ATTRIBUTES:08x}"
    curve = public.key.curve if isinstance(public.key, tpm.EccPoint) else None
    algorithms = (curve, public.scheme_hash, public.name_alg)
    if algorithms != (tpm.CURVE_P256, alg.ALG_SHA256, alg.ALG_SHA256):
        return "the key is not a p-256 key with sha-256 throughout, as the agent's keys are"
    if public.auth_policy:
        return "the key has a policy, which the agent's keys do not have"
    return None


def _scheme_hash(public: tpm.Public) -> int:
    return alg.ALG_NULL if public.scheme_hash is None else public.scheme_hash


def _algorithm(public: tpm.Public) -> str:
    key = public.key
    size = _CURVE_NAMES[key.curve] if isinstance(key, tpm.EccPoint) else str(key.bits)
    return f"{_SCHEME_NAMES[public.scheme or 0]}-{size}-{alg.HASH_NAMES[_scheme_hash(public)]}"
