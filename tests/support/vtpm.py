# SPDX-License-Identifier: Apache-2.0
"""What a cloud puts into a vTPM: a persistent attestation key, and beside Azure's the paravisor's report in NV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agents import HOST
from azure_forge import AzureForge, ak_jwk, base64url
from tpms import Tpm

from quotary_attest.origin import init_state
from quotary_attest.tee.archive import store
from quotary_attest.tpm.azure import HCL_REPORT
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.foreign import AZURE_AK, make_foreign_identity
from quotary_attest.tpm.keys import counter_value, open_counter
from quotary_attest.tpm.model import TpmIdentity
from quotary_attest.tpm.tss import lib
from quotary_verifier.evidence.tee.lines import snp_support
from quotary_verifier.wire.tpm_public import Public, RsaKey, parse_public

RSA, P384 = "rsa-2048", "p-384"
ATTRIBUTES = 0x50472
_PIECE = 256


def template(kind: str = RSA, attributes: int = ATTRIBUTES, unique: bytes = b"") -> Any:
    """TPM2B_PUBLIC of an attestation key as clouds make them; an RSA key is another one for another `unique`."""
    none = lib.TPMT_SYM_DEF_OBJECT(algorithm=lib.TPM2_ALG.NULL)
    if kind == RSA:
        any_sig = lib.TPMU_ASYM_SCHEME(anySig=lib.TPMS_SCHEME_HASH(hashAlg=lib.TPM2_ALG.SHA256))
        scheme = lib.TPMT_RSA_SCHEME(scheme=lib.TPM2_ALG.RSASSA, details=any_sig)
        details = lib.TPMS_RSA_PARMS(symmetric=none, scheme=scheme, keyBits=2048, exponent=0)
        kinds = {
            "type": lib.TPM2_ALG.RSA,
            "parameters": lib.TPMU_PUBLIC_PARMS(rsaDetail=details),
            "unique": lib.TPMU_PUBLIC_ID(rsa=unique),
        }
    else:
        any_sig = lib.TPMU_ASYM_SCHEME(anySig=lib.TPMS_SCHEME_HASH(hashAlg=lib.TPM2_ALG.SHA384))
        ecc = lib.TPMT_ECC_SCHEME(scheme=lib.TPM2_ALG.ECDSA, details=any_sig)
        kdf = lib.TPMT_KDF_SCHEME(scheme=lib.TPM2_ALG.NULL)
        points = lib.TPMS_ECC_PARMS(symmetric=none, scheme=ecc, curveID=lib.TPM2_ECC.NIST_P384, kdf=kdf)
        kinds = {"type": lib.TPM2_ALG.ECC, "parameters": lib.TPMU_PUBLIC_PARMS(eccDetail=points)}
    area = lib.TPMT_PUBLIC(
        nameAlg=lib.TPM2_ALG.SHA256, objectAttributes=lib.TPMA_OBJECT(attributes), authPolicy=b"", **kinds
    )
    return lib.TPM2B_PUBLIC(publicArea=area)


def put_key(
    tpm: Tpm,
    kind: str = RSA,
    *,
    handle: int = AZURE_AK,
    hierarchy: Any = lib.ESYS_TR.ENDORSEMENT,
    auth: bytes = b"",
    attributes: int = ATTRIBUTES,
    unique: bytes = b"",
) -> Public:
    """Make a primary and keep it at a handle, in the place of the key that is there."""
    with Connection(tpm.tcti) as connection, connection.scope() as scope:
        sensitive = lib.TPM2B_SENSITIVE_CREATE(lib.TPMS_SENSITIVE_CREATE(userAuth=auth))
        made, public, *_ = connection.commands.create_primary(
            sensitive, template(kind, attributes, unique), hierarchy
        )
        scope.key(made)
        put_away(tpm, connection, handle)
        connection.commands.tr_close(connection.commands.evict_control(lib.ESYS_TR.OWNER, made, handle))
        return parse_public(bytes(public.publicArea.marshal()))


def put_away(tpm: Tpm, connection: Connection, handle: int = AZURE_AK) -> None:
    """Remove what is at a handle, if anything."""
    _, data = connection.commands.get_capability(lib.TPM2_CAP.HANDLES, handle, 1)
    if handle in [int(found) for found in data.data.handles]:
        there = connection.commands.tr_from_tpmpublic(handle)
        connection.commands.evict_control(lib.ESYS_TR.OWNER, there, handle)


def write_report(connection: Connection, data: bytes) -> None:
    """Define the index as the paravisor does, anew: the owner alone reads it."""
    flags = lib.TPMA_NV.OWNERWRITE | lib.TPMA_NV.OWNERREAD | lib.TPMA_NV.NO_DA
    area = lib.TPMS_NV_PUBLIC(
        nvIndex=HCL_REPORT, nameAlg=lib.TPM2_ALG.SHA256, attributes=flags, authPolicy=b"", dataSize=len(data)
    )
    _, found = connection.commands.get_capability(lib.TPM2_CAP.HANDLES, HCL_REPORT, 1)
    if HCL_REPORT in [int(index) for index in found.data.handles]:
        connection.commands.nv_undefine_space(connection.commands.tr_from_tpmpublic(HCL_REPORT))
    handle = connection.commands.nv_define_space(b"", lib.TPM2B_NV_PUBLIC(nvPublic=area))
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        connection.commands.nv_write(handle, piece, start, auth_handle=lib.ESYS_TR.OWNER)
    connection.commands.tr_close(handle)


def report_of(public: Public, **options: Any) -> AzureForge:
    """The paravisor of a VM whose vTPM has this AK; options are those of `AzureForge`."""
    assert isinstance(public.key, RsaKey)
    key = ak_jwk(n=base64url(public.key.modulus))
    return AzureForge(**({"keys": [key], "tail": b""} | options))


def boot_azure(tpm: Tpm, **options: Any) -> AzureForge:
    """Make a TPM the vTPM of a confidential VM: its key, and the report that endorses it."""
    forge = report_of(put_key(tpm), **options)
    with Connection(tpm.tcti) as connection:
        write_report(connection, forge.report())
    return forge


def collateral(folder: Path, forge: AzureForge) -> Path:
    """A folder of `attest tee fetch-collateral` for this machine."""
    store(folder, forge.report(), snp_support(forge.amd.endorsements()))
    return folder


def foreign_state(tpm: Tpm, folder: Path, *, handle: int = AZURE_AK, auth: bytes = b"") -> TpmIdentity:
    """Make an origin on a persistent key, as `attest agent init --ak` does."""
    with Connection(tpm.tcti) as connection:
        identity = make_foreign_identity(connection, handle, chain_pcr=15, workload_pcr=13, ak_auth=auth)
        counter = counter_value(connection, open_counter(connection, identity))
    init_state(folder, HOST, identity, counter=counter)
    return identity
