# SPDX-License-Identifier: Apache-2.0
"""`attest policy key`: a key that signs policies; and the one place that signs with such a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quotary_cli.agent_tpm import DEFAULT_TPM, host_failures
from quotary_cli.enrolment import FILE, json_option, read_file, read_passphrase, show, write_file
from quotary_cli.output import ExitCode, Failure
from quotary_verifier.errors import QuotaryError
from quotary_verifier.policy.signed import PolicyKey, policy_key, read_policy_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    FileKey = Ed25519PrivateKey | EllipticCurvePrivateKey

SCHEMA = "quotary-policy-key/v1"
PUBLIC_SUFFIX = ".pub"
_TPM_PEM = b"-----BEGIN TSS2 PRIVATE KEY-----"
_SCALAR_BYTES = 32

tpm_option = click.option(
    "--tpm",
    is_flag=False,
    flag_value=DEFAULT_TPM,
    metavar="[TSS]",
    help=f"Use the TPM, by default {DEFAULT_TPM}.",
)
passphrase_option = click.option(
    "--passphrase-file", type=FILE, help="File whose first line is the passphrase of the key."
)


@click.command()
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Where to write the key; its public half goes into OUT{PUBLIC_SUFFIX}.",
)
@tpm_option
@passphrase_option
@json_option
def key(out: Path, tpm: str | None, passphrase_file: Path | None, as_json: bool) -> None:
    """Make a key that signs policies: Ed25519 in a file, or P-256 that never leaves a TPM.

    With --tpm the file holds what that TPM alone can load. Hand the public half to those who verify.
    """
    public_file = out.with_name(out.name + PUBLIC_SUFFIX)
    for path in (out, public_file):
        if path.exists():
            raise Failure(
                f"{path}: there is a file already, and a key is not overwritten", code=ExitCode.USAGE
            )
    passphrase = read_passphrase(passphrase_file)
    private, public = _make_file(passphrase) if tpm is None else _make_in_tpm(tpm, passphrase)
    write_file(out, private)
    public_file.write_bytes(public)
    made = read_policy_key(public)
    show(
        {
            "schema": SCHEMA,
            "key": str(out),
            "public_key": str(public_file),
            "algorithm": made.name,
            "kid": made.kid.hex(),
        },
        as_json=as_json,
    )


def _make_file(passphrase: bytes | None) -> tuple[bytes, bytes]:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = Ed25519PrivateKey.generate()
    protection: Any = form.NoEncryption() if passphrase is None else form.BestAvailableEncryption(passphrase)
    private = made.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, protection)
    public = made.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    return private, public


def _make_in_tpm(tcti: str, passphrase: bytes | None) -> tuple[bytes, bytes]:
    with host_failures():
        from quotary_attest.tpm.connection import Connection
        from quotary_attest.tpm.policy_key import make_policy_key

        with Connection(tcti) as connection:
            made = make_policy_key(connection, passphrase)
    return made.private, made.public


@contextmanager
def opened_key(
    path: Path, tpm: str | None, passphrase_file: Path | None
) -> Iterator[tuple[PolicyKey, Callable[[bytes], bytes]]]:
    """Yield the public key of a key file, and what signs with it: by itself, or in the TPM that it is of."""
    data, passphrase = read_file(path), read_passphrase(passphrase_file)
    if not data.lstrip().startswith(_TPM_PEM):
        if tpm is not None:
            raise Failure(f"{path}: not a key of a tpm", code=ExitCode.USAGE, hint="leave --tpm out")
        yield _file_key(path, data, passphrase)
        return
    with host_failures():
        from quotary_attest.tpm.connection import Connection
        from quotary_attest.tpm.policy_key import read_policy_key_file, sign_with

        held = read_policy_key_file(data)
        with Connection(tpm or DEFAULT_TPM) as connection:
            yield (
                read_policy_key(held.public),
                lambda message: sign_with(connection, held, message, passphrase),
            )


def _file_key(
    path: Path, data: bytes, passphrase: bytes | None
) -> tuple[PolicyKey, Callable[[bytes], bytes]]:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private: Any = load_pem_private_key(data, passphrase)
        return policy_key(private.public_key()), _signer(private)
    except (ValueError, TypeError) as error:
        hint = "name a file with its passphrase by --passphrase-file" if "assword" in str(error) else ""
        raise Failure(f"{path}: not a private key that can be read", code=ExitCode.USAGE, hint=hint) from None
    except QuotaryError as error:
        raise Failure(f"{path}: {error}", code=ExitCode.USAGE) from None


def _signer(private: FileKey) -> Callable[[bytes], bytes]:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA256

    if not isinstance(private, EllipticCurvePrivateKey):
        return private.sign

    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(private.sign(message, ECDSA(SHA256())))
        return r.to_bytes(_SCALAR_BYTES) + s.to_bytes(_SCALAR_BYTES)

    return sign
