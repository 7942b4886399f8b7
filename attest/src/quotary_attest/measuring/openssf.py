# SPDX-License-Identifier: Apache-2.0
"""OpenSSF model signatures (model-signing, format 1.0), checked offline against files that were measured already.

A signature is a Sigstore bundle: a DSSE envelope around an in-toto statement that lists every file with its digest.
Signatures by a key or by a certificate of the operator's authorities are verified here; one by a Sigstore identity
needs that system's log and trust root, and is said to be not checked. The library itself is not used: it reads all
files again, and its releases do not import with the dependencies they name (ADR 35). Tests hold this module against
it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from quotary_attest.measuring.errors import MeasureError, SignatureError
from quotary_attest.measuring.files import MeasuredFile
from quotary_attest.measuring.folder import IGNORED, MAX_FILES, SIGNATURE_NAME
from quotary_attest.measuring.signers import Signers, certificate_path

_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"
_PREDICATE: Final = "https://model_signing/signature/v1.0"
_MAX_SIGNATURE: Final = 64 * 1024 * 1024
_HASHES: Final[Mapping[int, type[hashes.HashAlgorithm]]] = {
    256: hashes.SHA256,
    384: hashes.SHA384,
    521: hashes.SHA512,
}
VERIFIED: Final = "verified"
NOT_CHECKED: Final = "could not be checked"


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """What a signature says: `status` is VERIFIED or NOT_CHECKED, `signer` who made it (empty where not verified),
    and `reason` why it was not checked."""

    status: str
    signer: str = ""
    reason: str = ""


def signature_of(paths: Sequence[Path]) -> Path | None:
    """Return where the signature of a folder (`model.sig` in it) or of a file (`<file>.sig`) lies, if it does."""
    if len(paths) != 1:
        return None
    path = paths[0]
    found = path / SIGNATURE_NAME if path.is_dir() else path.with_name(path.name + ".sig")
    return found if found.is_file() else None


def check_signature(
    signature: Path, files: Sequence[MeasuredFile], signers: Signers, *, folder: bool
) -> ModelSignature:
    """Verify that a signature covers exactly `files`, as measured, and was made by one of `signers`.

    Raises:
        SignatureError: it is malformed or false, of somebody else, or covers other files.
        MeasureError: it cannot be read.
    """
    if not signers:  # so what it is need not be known, either: other programs leave files of that name, too
        return ModelSignature(NOT_CHECKED, reason="no signer is trusted")
    bundle = _read(signature)
    material = _member(bundle, "verificationMaterial", dict)
    if "certificate" in material or material.get("tlogEntries"):
        return ModelSignature(
            NOT_CHECKED, reason="it was made by a sigstore identity, which needs sigstore's log"
        )
    envelope = _member(bundle, "dsseEnvelope", dict)
    payload, signed = _signed(envelope)
    signer = _signer(material, signers, payload, signed)
    resources = _resources(payload)
    if resources is None:
        return ModelSignature(NOT_CHECKED, reason="it lists pieces of files, or digests other than sha-256")
    _compare(resources, {file.name if folder else ".": file.digest for file in files})
    return ModelSignature(VERIFIED, signer)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SIGNATURE + 1)
    except OSError as error:
        raise MeasureError(f"cannot read {path}: {(error.strerror or 'it failed').lower()}") from error
    if len(data) > _MAX_SIGNATURE:
        raise SignatureError(f"the signature is longer than {_MAX_SIGNATURE} bytes")
    bundle = _object(data, "the signature")
    if bundle.get("mediaType") != _MEDIA_TYPE:
        raise SignatureError("the signature is not a sigstore bundle of version 0.3")
    return bundle


def _object(data: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object strictly. Raises SignatureError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError
        return found

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise SignatureError(f"{what} is not json, or has a name twice") from None
    if not isinstance(value, dict):
        raise SignatureError(f"{what} is not an object")
    return value


def _member(value: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    found = value.get(name)
    if type(found) is not kind:
        raise SignatureError(f"the signature has no proper {name}")
    return found


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SignatureError("the signature holds what is not base64") from None


def _signed(envelope: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return payload and signature of an envelope with exactly one signature."""
    if envelope.get("payloadType") != _PAYLOAD_TYPE:
        raise SignatureError("the signature is not over an in-toto statement")
    signatures = _member(envelope, "signatures", list)
    if len(signatures) != 1 or type(signatures[0]) is not dict:
        raise SignatureError("the signature has not exactly one signature")
    return _base64(_member(envelope, "payload", str)), _base64(_member(signatures[0], "sig", str))


def _signer(material: Mapping[str, Any], signers: Signers, payload: bytes, signed: bytes) -> str:
    """Verify the signature and return who made it. Raises SignatureError."""
    message = b"DSSEv1 %d %b %d %b" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)
    if "x509CertificateChain" in material:
        chain = _member(_member(material, "x509CertificateChain", dict), "certificates", list)
        ders = [_base64(_member(item, "rawBytes", str)) for item in chain if type(item) is dict]
        leaf = certificate_path(ders, signers.authorities)
        _verify(leaf.public_key(), signed, message)
        fingerprint = leaf.fingerprint(hashes.SHA256()).hex()
        return f"certificate {leaf.subject.rfc4514_string()} sha256:{fingerprint}"
    for key in signers.keys:
        try:
            _verify(key, signed, message)
        except SignatureError:
            continue
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"key sha256:{hashlib.sha256(der).hexdigest()}"
    raise SignatureError("the signature was made by none of the keys that are trusted, or is false")


def _verify(key: object, signed: bytes, message: bytes) -> None:
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size not in _HASHES:
        raise SignatureError("the signer's key is not on p-256, p-384 or p-521")
    try:
        key.verify(signed, message, ec.ECDSA(_HASHES[key.curve.key_size]()))
    except InvalidSignature:
        raise SignatureError("the signature is false") from None


def _resources(payload: bytes) -> dict[str, bytes] | None:
    """Return name and digest of every file that the statement lists; None where it lists something else."""
    statement = _object(payload, "what the signature is over")
    if statement.get("_type") != _STATEMENT or statement.get("predicateType") != _PREDICATE:
        raise SignatureError("the signature is not of openssf model-signing 1.0")
    predicate = _member(statement, "predicate", dict)
    serialization = _member(predicate, "serialization", dict)
    listed = _member(predicate, "resources", list)
    if serialization.get("method") != "files" or serialization.get("hash_type") != "sha256":
        return None
    if len(listed) > MAX_FILES:
        raise SignatureError(f"the signature lists more than {MAX_FILES} files")
    found: dict[str, bytes] = {}
    for item in listed:
        if type(item) is not dict or item.get("algorithm") != "sha256":
            raise SignatureError("the signature lists a file without a sha-256 digest")
        name, text = _member(item, "name", str), _member(item, "digest", str)
        try:
            digest = bytes.fromhex(text)
        except ValueError:
            digest = b""
        if len(digest) != 32 or name in found:
            raise SignatureError("the signature lists a file twice, or a digest of another length")
        found[name] = digest
    return found


def _compare(signed: Mapping[str, bytes], measured: Mapping[str, bytes]) -> None:
    """Check that both are the same files. What is never measured may be signed; what is measured must be signed."""
    other = sorted(name for name in measured if name in signed and signed[name] != measured[name])
    extra = sorted(measured.keys() - signed.keys())
    gone = sorted(name for name in signed.keys() - measured.keys() if not _ignored(name))
    for names, what in (
        (other, "differ from what was signed"),
        (extra, "are not covered by the signature"),
        (gone, "were signed and are not there"),
    ):
        if names:
            raise SignatureError(f"files {what}: {_some(names)}")


def _ignored(name: str) -> bool:
    return any(name == path or name.startswith(path + "/") for path in IGNORED)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load_signers(keys: Iterable[Path], authorities: Iterable[Path]) -> Signers:
    """Read who may sign models: PEM files of public keys, and of authorities' certificates.

    Raises:
        MeasureError: a file cannot be read, or holds something else.
    """
    found = []
    for path in keys:
        try:
            key = load_pem_public_key(_contents(path))
        except (ValueError, UnsupportedAlgorithm):
            raise MeasureError(f"{path} holds no public key in pem") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size not in _HASHES:
            raise MeasureError(f"the key in {path} is not on p-256, p-384 or p-521")
        found.append(key)
    roots: list[x509.Certificate] = []
    for path in authorities:
        try:
            roots += x509.load_pem_x509_certificates(_contents(path))
        except ValueError:
            raise MeasureError(f"{path} holds no certificate in pem") from None
    return Signers(tuple(found), tuple(roots))


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MeasureError(f"cannot read {path}: {(error.strerror or 'it failed').lower()}") from error
