# SPDX-License-Identifier: Apache-2.0
"""Endorsement keys: their certificates, and opening a credential that a CA made for an AK.

Source: TCG EK Credential Profile for TPM Family 2.0, sections 2.2 (NV indices), B.3 and B.4 (templates).
"""

from __future__ import annotations

from typing import Any, Final

from quotary_attest.tpm.connection import Connection, Scope
from quotary_attest.tpm.errors import TpmConflict
from quotary_attest.tpm.keys import held, load_ak
from quotary_attest.tpm.model import Authorizations, EkCertificate, TpmIdentity
from quotary_attest.tpm.reading import read_nv, used_nv_indices
from quotary_attest.tpm.tss import NoSuchIndex, create_ek_template, lib

EK_KINDS: Final = {
    "ecc-p256": (0x01C0000A, "EK-ECC256"),
    "ecc-p384": (0x01C00016, "EK-HIGH-ECC384"),
    "rsa-2048": (0x01C00002, "EK-RSA2048"),
}
"""Kind → (NV index of the certificate, name of the template), in the order of preference: an RSA key takes a
discrete TPM seconds to make anew."""

_CHAIN: Final = range(0x01C00100, 0x01C00200)
_SEQUENCE: Final = 0x30


def read_ek_certificates(connection: Connection) -> list[EkCertificate]:
    """Read the endorsement key certificates of this TPM, best kind first; empty where it has none."""
    found = ((kind, index, read_nv(connection, index)) for kind, (index, _) in EK_KINDS.items())
    return [EkCertificate(kind, index, _first_der(data, index)) for kind, index, data in found if data]


def read_ek_chain(connection: Connection) -> list[bytes]:
    """Read the intermediate certificates that some TPMs carry beside the EK's: DER, in their order."""
    used = used_nv_indices(connection)
    data = b"".join(read_nv(connection, index) or b"" for index in _CHAIN if index in used)
    chain: list[bytes] = []
    while data[:1] == b"\x30":
        chain.append(_first_der(data, _CHAIN.start))
        data = data[len(chain[-1]) :]
    return chain


def _first_der(data: bytes, index: int) -> bytes:
    """Cut padding from behind a certificate. Raises TpmConflict when the index holds none."""
    size = _der_size(data)
    if size is None or size > len(data):
        raise TpmConflict(
            f"nv index 0x{index:08x} does not hold a certificate",
            hint="use another endorsement key, or the certificate file of the tpm's vendor",
        )
    return data[:size]


def _der_size(data: bytes) -> int | None:
    """The size of a DER SEQUENCE with its header; None where there is none."""
    if len(data) < 4 or data[0] != _SEQUENCE:
        return None
    if data[1] < 0x80:
        return 2 + data[1]
    count = data[1] & 0x7F
    if count not in (1, 2, 3):
        return None
    return 2 + count + int.from_bytes(data[2 : 2 + count], "big")


def ek_public(connection: Connection, kind: str, *, authorizations: Authorizations | None = None) -> bytes:
    """Make an endorsement key from the default template and return its TPMT_PUBLIC.

    Raises KeyError for an unknown kind, TpmConflict where this TPM has none of this kind, TpmAuthError
    when the endorsement hierarchy has an authorisation that was not given.
    """
    with connection.scope() as scope:
        _, public = _endorsement_key(connection, scope, kind, authorizations or Authorizations())
        return bytes(public.publicArea.marshal())


def _endorsement_key(
    connection: Connection, scope: Scope, kind: str, auths: Authorizations
) -> tuple[Any, Any]:
    """Create the endorsement key: (handle, TPM2B_PUBLIC)."""

    def read(index: int) -> bytes:
        if (data := read_nv(connection, int(index))) is None:
            raise NoSuchIndex(index)
        return data

    try:
        _, template = create_ek_template(EK_KINDS[kind][1], read)
    except ValueError:  # high-range keys exist only where the vendor certified them
        raise TpmConflict(f"this tpm has no {kind} endorsement key", hint="use another kind") from None
    connection.authorize(lib.ESYS_TR.ENDORSEMENT, auths.endorsement)
    handle, public, *_ = connection.commands.create_primary(
        lib.TPM2B_SENSITIVE_CREATE(), template, lib.ESYS_TR.ENDORSEMENT
    )
    return scope.key(handle), public


def activate_credential(
    connection: Connection,
    identity: TpmIdentity,
    kind: str,
    *,
    id_object: bytes,
    encrypted_secret: bytes,
    authorizations: Authorizations | None = None,
) -> bytes:
    """Open a credential made for this identity's AK and the endorsement key of `kind`; the secret.

    `id_object` and `encrypted_secret` are without the 16-bit sizes of their TPM2B, as
    `enrol.credential.Credential` has them. Raises TpmForeignKey when the credential was made for another AK
    or another TPM.
    """
    auths = authorizations or Authorizations()
    with connection.scope() as scope:
        ek, public = _endorsement_key(connection, scope, kind, auths)
        ak = held(scope, identity, load_ak(connection, identity, authorizations=auths))
        by_password = bool(public.publicArea.objectAttributes & lib.TPMA_OBJECT.USERWITHAUTH)
        session = lib.ESYS_TR.PASSWORD if by_password else _ek_session(connection, scope)
        secret = connection.commands.activate_credential(
            ak,
            ek,
            lib.TPM2B_ID_OBJECT(id_object),
            lib.TPM2B_ENCRYPTED_SECRET(encrypted_secret),
            session1=lib.ESYS_TR.PASSWORD,
            session2=session,
        )
        return bytes(secret)


def _ek_session(connection: Connection, scope: Scope) -> Any:
    """A policy session that satisfies the low-range template: PolicySecret of the endorsement hierarchy."""
    none = lib.ESYS_TR.NONE
    session = scope.session(
        connection.commands.start_auth_session(none, none, lib.TPM2_SE.POLICY, None, lib.TPM2_ALG.SHA256)
    )
    connection.commands.policy_secret(lib.ESYS_TR.ENDORSEMENT, session)
    return session
