# SPDX-License-Identifier: Apache-2.0
"""Signs model files as OpenSSF model-signing does, and with every fault that a signature can have."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

PAYLOAD_TYPE = "application/vnd.in-toto+json"


def statement(files: Mapping[str, bytes], **changes: Any) -> dict[str, Any]:
    """What is signed for files by name and content; `changes` replace members of its predicate."""
    resources = [
        {"name": name, "algorithm": "sha256", "digest": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(files.items())
    ]
    root = hashlib.sha256(b"".join(bytes.fromhex(each["digest"]) for each in resources)).hexdigest()
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model", "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {"serialization": serialization, "resources": resources} | changes,
    }


def bundle(
    key: ec.EllipticCurvePrivateKey, signed: Mapping[str, Any], chain: Sequence[bytes] = ()
) -> dict[str, Any]:
    """A bundle over a statement, by a key, or by a certificate whose path is given as DER, leaf first."""
    payload = json.dumps(signed).encode()
    message = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload
    algorithm = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[key.curve.key_size]
    signature = key.sign(message, ec.ECDSA(algorithm))
    material: dict[str, Any] = {"publicKey": {"hint": ""}, "tlogEntries": []}
    if chain:
        certificates = [{"rawBytes": text(der)} for der in chain]
        material = {"x509CertificateChain": {"certificates": certificates}, "tlogEntries": []}
    envelope = {
        "payload": text(payload),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": text(signature)}],
    }
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": material,
        "dsseEnvelope": envelope,
    }


def text(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode()


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half of a key."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a model folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
