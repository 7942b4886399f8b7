# SPDX-License-Identifier: Apache-2.0
"""Public areas of what an origin has in a TPM (design section 3, "TPM"), built fresh at each call because the
library's objects are mutable."""

from __future__ import annotations

from typing import Any, Final

from quotary_attest.tpm.tss import lib

AK_ATTRIBUTES: Final = 0x00050472
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign."""

PRIMARY_ATTRIBUTES: Final = 0x00030472
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt."""

SIGNING_ATTRIBUTES: Final = 0x00040472
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, sign: whoever may use it signs anything with it."""

COUNTER_RANGE: Final = range(0x01817100, 0x01817200)
"""Where start counters are made: the first free index of these, inside the owner's range of the TCG registry
(0x01800000-0x01BFFFFF) and clear of systemd's NvPCRs (0x01D10200)."""

COUNTER_SIZE: Final = 8


def _no_scheme() -> dict[str, Any]:
    return {
        "scheme": lib.TPMT_ECC_SCHEME(scheme=lib.TPM2_ALG.NULL),
        "kdf": lib.TPMT_KDF_SCHEME(scheme=lib.TPM2_ALG.NULL),
    }


def storage_primary() -> Any:
    """TPM2B_PUBLIC of the storage primary: ECC P-256, restricted decrypt, AES-128-CFB, empty policy.

    It has no randomness of its own, so the same TPM makes the same key each time, until its endorsement seed
    is changed.
    """
    symmetric = lib.TPMT_SYM_DEF_OBJECT(
        algorithm=lib.TPM2_ALG.AES,
        keyBits=lib.TPMU_SYM_KEY_BITS(aes=128),
        mode=lib.TPMU_SYM_MODE(aes=lib.TPM2_ALG.CFB),
    )
    details = lib.TPMS_ECC_PARMS(symmetric=symmetric, curveID=lib.TPM2_ECC.NIST_P256, **_no_scheme())
    return _ecc_public(PRIMARY_ATTRIBUTES, details, unique=bytes(32))


def attestation_key() -> Any:
    """TPM2B_PUBLIC of the AK: ECC P-256, restricted signing with ECDSA and SHA-256, exactly AK_ATTRIBUTES."""
    scheme = lib.TPMT_ECC_SCHEME(
        scheme=lib.TPM2_ALG.ECDSA,
        details=lib.TPMU_ASYM_SCHEME(anySig=lib.TPMS_SCHEME_HASH(hashAlg=lib.TPM2_ALG.SHA256)),
    )
    details = lib.TPMS_ECC_PARMS(
        symmetric=lib.TPMT_SYM_DEF_OBJECT(algorithm=lib.TPM2_ALG.NULL),
        curveID=lib.TPM2_ECC.NIST_P256,
        **(_no_scheme() | {"scheme": scheme}),
    )
    return _ecc_public(AK_ATTRIBUTES, details, unique=b"")


def signing_key() -> Any:
    """TPMT_PUBLIC of a key that signs what it is given (policies): as the AK but not restricted."""
    area = attestation_key().publicArea
    area.objectAttributes = lib.TPMA_OBJECT(SIGNING_ATTRIBUTES)
    return area


def _ecc_public(attributes: int, details: Any, *, unique: bytes) -> Any:
    area = lib.TPMT_PUBLIC(
        type=lib.TPM2_ALG.ECC,
        nameAlg=lib.TPM2_ALG.SHA256,
        objectAttributes=lib.TPMA_OBJECT(attributes),
        authPolicy=b"",
        parameters=lib.TPMU_PUBLIC_PARMS(eccDetail=details),
        unique=lib.TPMU_PUBLIC_ID(ecc=lib.TPMS_ECC_POINT(x=unique, y=unique)),
    )
    return lib.TPM2B_PUBLIC(publicArea=area)


def start_counter(index: int) -> Any:
    """TPM2B_NV_PUBLIC of the start counter: COUNTER, read and written by its own authorisation, no DA."""
    flags = lib.TPMA_NV.AUTHREAD | lib.TPMA_NV.AUTHWRITE | lib.TPMA_NV.NO_DA
    area = lib.TPMS_NV_PUBLIC(
        nvIndex=index,
        nameAlg=lib.TPM2_ALG.SHA256,
        attributes=flags | (lib.TPM2_NT.COUNTER << lib.TPMA_NV.TPM2_NT_SHIFT),
        authPolicy=b"",
        dataSize=COUNTER_SIZE,
    )
    return lib.TPM2B_NV_PUBLIC(nvPublic=area)


def pcr_selection(pcrs: tuple[int, ...]) -> Any:
    """TPML_PCR_SELECTION of the SHA-256 bank."""
    return lib.TPML_PCR_SELECTION.parse("sha256:" + ",".join(map(str, pcrs)))


def sha256_digest(digest: bytes) -> Any:
    """TPML_DIGEST_VALUES with one SHA-256 digest: the other banks are not extended, and never count."""
    value = lib.TPMT_HA(hashAlg=lib.TPM2_ALG.SHA256, digest=lib.TPMU_HA(sha256=digest))
    return lib.TPML_DIGEST_VALUES([value])
