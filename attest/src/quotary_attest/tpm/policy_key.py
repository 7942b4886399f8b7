# SPDX-License-Identifier: Apache-2.0
"""Keys that sign policies and never leave the TPM in which they were made (docs/spec/signed-policy.md).

Such a key is kept as a file "TSS2 PRIVATE KEY", which only its TPM can load; OpenSSL's tpm2 provider reads the same
files. It is not restricted: unlike an AK it signs what it is given, so no verifier takes it for one.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any, Final

from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.errors import TpmAuthError, TpmForeignKey, TpmUnsupported
from quotary_attest.tpm.templates import signing_key
from quotary_attest.tpm.tss import key_files, lib
from quotary_verifier.wire.tpm_public import parse_public

PEM_BEGIN: Final = b"-----BEGIN TSS2 PRIVATE KEY-----"
_NUMBER_BYTES: Final = 32
_LINE: Final = 64


@dataclass(frozen=True, slots=True)
class TpmKeyFile:
    """A signing key of a TPM: the file's bytes and the public key as SubjectPublicKeyInfo in PEM."""

    private: bytes
    public: bytes


def make_policy_key(connection: Connection, password: bytes | None = None) -> TpmKeyFile:
    """Make a P-256 signing key under the TPM's storage primary of the owner hierarchy.

    Raises TpmError where the TPM refuses.
    """
    made = key_files().create(connection.commands, signing_key(), password=password)
    return TpmKeyFile(made.to_pem(), _public(made))


def read_policy_key_file(pem: bytes) -> TpmKeyFile:
    """Read a file "TSS2 PRIVATE KEY" and the public key in it, without a TPM.

    Raises TpmUnsupported where the file is none, or its key is not of P-256.
    """
    return TpmKeyFile(pem, _public(_parse(pem)))


def sign_with(
    connection: Connection, key: TpmKeyFile, message: bytes, password: bytes | None = None
) -> bytes:
    """Sign a message with ECDSA and SHA-256; return r and s, 32 bytes each.

    Raises TpmForeignKey where the key is another TPM's, TpmAuthError where the password is missing or wrong.
    """
    parsed = _parse(key.private)
    if password is None and not parsed.empty_auth:
        raise TpmAuthError("the key has a password", hint="name a file with it by --passphrase-file")
    scheme = lib.TPMT_SIG_SCHEME(
        scheme=lib.TPM2_ALG.ECDSA,
        details=lib.TPMU_SIG_SCHEME(any=lib.TPMS_SCHEME_HASH(hashAlg=lib.TPM2_ALG.SHA256)),
    )
    with connection.scope() as scope:
        handle = scope.key(_load(connection, parsed, password))
        signature = connection.commands.sign(handle, hashlib.sha256(message).digest(), scheme)
    pair = signature.signature.ecdsa
    return b"".join(bytes(part).rjust(_NUMBER_BYTES, b"\0") for part in (pair.signatureR, pair.signatureS))


def _load(connection: Connection, parsed: Any, password: bytes | None) -> Any:
    try:
        return parsed.load(connection.commands, None if parsed.empty_auth else password)
    except TpmForeignKey:
        raise TpmForeignKey(
            "the key file is of another tpm",
            hint="sign on the host where the key was made; if its tpm was cleared, make a new key",
        ) from None


def _parse(pem: bytes) -> Any:
    if not pem.lstrip().startswith(PEM_BEGIN):
        raise TpmUnsupported('the file is no "TSS2 PRIVATE KEY"')
    try:
        return key_files().from_pem(pem)
    except Exception as error:
        # What a decoder of ASN.1 and TPM structures raises on hostile bytes is of no one family.
        raise TpmUnsupported(f'the file is no "TSS2 PRIVATE KEY": {str(error)[:80]}') from None


def _public(key: Any) -> bytes:
    area = key.public.publicArea
    if area.type != lib.TPM2_ALG.ECC or area.parameters.eccDetail.curveID != lib.TPM2_ECC.NIST_P256:
        raise TpmUnsupported("the key is not a P-256 key")
    text = base64.b64encode(parse_public(area.marshal()).to_spki_der())
    lines = [text[start : start + _LINE] for start in range(0, len(text), _LINE)]
    return b"\n".join([b"-----BEGIN PUBLIC KEY-----", *lines, b"-----END PUBLIC KEY-----", b""])
