# SPDX-License-Identifier: Apache-2.0
"""The host's side of an enrolment: make a request, open a challenge, install a grant.

The agent may run meanwhile: nothing here touches the log, and the state folder's lock is not needed. The
last request and activation are kept in the state folder, in `enrolment/`, because a challenge is answered only
if it was made for exactly that request, and a grant is installed only if it follows that activation.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quotary_attest.enrol.credential import EkKey
from quotary_attest.enrol.errors import Refused
from quotary_attest.enrol.files import (
    SALT_BYTES,
    Activation,
    Challenge,
    Grant,
    Identity,
    Request,
    activation_proof,
    file_digest,
)
from quotary_attest.enrol.issuance import ORIGIN_SCHEME
from quotary_attest.log.durable import make_folder, read_file, replace_file
from quotary_attest.state import HostIdentity, install_certificates, read_identity
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.ek import (
    EK_KINDS,
    activate_credential,
    ek_public,
    read_ek_certificates,
    read_ek_chain,
)
from quotary_attest.tpm.model import Authorizations, EkCertificate
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.pki.chain import AkEndorsement, TrustAnchors, verify_ak_chain
from quotary_verifier.wire.limits import MAX_ENROLMENT
from quotary_verifier.wire.tpm_public import CURVE_P256, EccPoint, Public, parse_public

_CURVE_KINDS: Final = {"secp256r1": "ecc-p256", "secp384r1": "ecc-p384"}


@dataclass(frozen=True, slots=True)
class Installed:
    """What was installed: for which identity, by which root (DER), and what the certificate says."""

    identity: Identity
    root: bytes
    endorsement: AkEndorsement


def make_request(
    connection: Connection,
    folder: Path,
    *,
    kind: str | None = None,
    certificate: bytes | None = None,
    intermediates: Sequence[bytes] = (),
    authorizations: Authorizations | None = None,
) -> bytes:
    """Make a request for the origin of a state folder, and keep a copy there.

    The endorsement key's certificate is read from the TPM: the one of `kind`, else the best that fits a key
    which this TPM makes. A host whose TPM holds none gives it as `certificate` (DER), with `intermediates`.

    Raises:
        Refused: this TPM has no EK certificate, or none that fits its endorsement keys.
        StateError, TpmError: the state folder or the TPM cannot be used.
    """
    identity = read_identity(folder)
    chain = [*intermediates, *read_ek_chain(connection)]
    found = read_ek_certificates(connection) if certificate is None else [_given(certificate)]
    for candidate in found:
        if kind not in (None, candidate.kind):
            continue
        public = ek_public(connection, candidate.kind, authorizations=authorizations)
        if parse_public(public).to_spki_der() != _spki_of(candidate.der):
            continue
        request = Request(
            secrets.token_bytes(SALT_BYTES), identity.genesis_record, public, candidate.der, tuple(chain)
        ).encode()
        _forget(folder, "activation")
        _keep(folder, "request", request)
        return request
    raise Refused(
        "no EK certificate fits an endorsement key of this TPM"
        if found
        else "this TPM holds no EK certificate",
        hint="get the certificate from the TPM's vendor, and name it with --ek-certificate",
    )


def _given(certificate: bytes) -> EkCertificate:
    """An EK certificate from a file. MalformedError or UnsupportedError where it is none."""
    key = _key_of(certificate)
    kind = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else f"rsa-{key.key_size}"
    kind = _CURVE_KINDS.get(kind, kind)
    if kind not in EK_KINDS:
        raise UnsupportedError(f"endorsement keys of the kind {kind} are not supported")
    return EkCertificate(kind, 0, certificate)


def _key_of(certificate: bytes) -> EkKey:
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except ValueError:
        raise MalformedError("the EK certificate cannot be read") from None
    except UnsupportedAlgorithm:
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise UnsupportedError("the EK certificate has a key that is neither RSA nor on an elliptic curve")
    return key


def _spki_of(certificate: bytes) -> bytes:
    return _key_of(certificate).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _kind_of_public(public: Public) -> str:
    if isinstance(public.key, EccPoint):
        return "ecc-p256" if public.key.curve == CURVE_P256 else "ecc-p384"
    return f"rsa-{public.key.bits}"


def _keep(folder: Path, name: str, data: bytes) -> None:
    make_folder(folder / "enrolment")
    replace_file(folder / "enrolment" / name, data)


def _kept(folder: Path, name: str, missing: str, hint: str) -> bytes:
    """A file that an earlier step kept. Refused where it is not there."""
    data = read_file(folder / "enrolment" / name, max_bytes=MAX_ENROLMENT)
    if data is None:
        raise Refused(missing, hint=hint)
    return data


def _forget(folder: Path, *names: str) -> None:
    for name in names:
        (folder / "enrolment" / name).unlink(missing_ok=True)


def _identity_of(identity: HostIdentity, ek: Public) -> Identity:
    return Identity(identity.origin, _ak_of(identity).name, hashlib.sha256(ek.to_spki_der()).digest())


def _ak_of(identity: HostIdentity) -> Public:
    return parse_public(identity.tpm_keys.ak_public)


def activate(
    connection: Connection,
    folder: Path,
    challenge: bytes,
    now: datetime,
    *,
    authorizations: Authorizations | None = None,
) -> bytes:
    """Open a challenge that answers the request kept in the state folder; returns the activation file.

    Raises:
        Refused: no request is kept, or the challenge is for another one or another identity, or has expired.
        MalformedError, UnsupportedError: the file is no challenge.
        TpmForeignKey: the credential is for another TPM or AK. Other TpmError: the TPM cannot be used.
    """
    made = Challenge.decode(challenge)
    request = _kept(
        folder,
        "request",
        "this host has not asked for a certificate",
        "begin with `attest agent enroll request`",
    )
    if made.request != file_digest(request):
        raise Refused(
            "the challenge does not answer this host's last request",
            hint="answer the newest challenge, or begin again with a new request",
        )
    identity = read_identity(folder)
    ek = parse_public(Request.decode(request).ek_public)
    if made.identity != _identity_of(identity, ek):
        raise Refused("the challenge is for another host, origin or key than this one's")
    if now.timestamp() * 1000 >= made.expires:
        raise Refused("the challenge has expired", hint="begin again with a new request")
    secret = activate_credential(
        connection,
        identity.tpm_keys,
        _kind_of_public(ek),
        id_object=made.id_object,
        encrypted_secret=made.encrypted_secret,
        authorizations=authorizations,
    )
    proof = activation_proof(secret, challenge)
    activation = Activation(made.challenge_id, file_digest(challenge), made.identity, proof).encode()
    _keep(folder, "activation", activation)
    return activation


def install(folder: Path, grant: bytes, now: datetime, *, root: bytes | None = None) -> Installed:
    """Check a grant against the host's own AK and origin, and install its certificates without the root.

    `root`, where given, is the DER certificate of the CA that the operator expects.

    Raises:
        Refused: no grant is awaited, or it is for another activation, host, origin or AK, or of another CA.
        EvidenceError: the path does not end at the root in the grant, or the certificate says something else.
        MalformedError, UnsupportedError: the file is no grant.
        StateError: the state folder cannot be used.
    """
    made = Grant.decode(grant)
    identity = read_identity(folder)
    ak = _ak_of(identity)
    kept = _kept(
        folder,
        "activation",
        "this host is not waiting for a grant: it was installed, or its challenge was never answered",
        "begin with `attest agent enroll request`",
    )
    answered = Activation.decode(kept)
    if (made.challenge_id, made.identity) != (answered.challenge_id, answered.identity):
        raise Refused("the grant does not follow this host's last activation")
    if (made.identity.origin, made.identity.ak_name) != (identity.origin, ak.name):
        raise Refused("the grant is for another host, origin or attestation key than this one's")
    *path, anchor = made.certificates
    if root is not None and anchor != root:
        raise Refused("the grant comes from another CA than the one you named")
    endorsement = verify_ak_chain(path, TrustAnchors.from_der([anchor]), now)
    _check_certificate(endorsement, ak, identity.origin, made.identity.host)
    install_certificates(folder, path)
    _forget(folder, "request", "activation")
    return Installed(made.identity, anchor, endorsement)


def _check_certificate(certificate: AkEndorsement, ak: Public, origin: str, host: str) -> None:
    """EvidenceError unless the certificate names this key, this host and this log."""
    if certificate.spki_der != ak.to_spki_der():
        raise EvidenceError("the certificate is of another key than this host's AK")
    if host not in certificate.dns_names:
        raise EvidenceError(f"the certificate does not name the host {host}")
    named = [uri for uri in certificate.uris if uri.startswith(ORIGIN_SCHEME)]
    if named != [ORIGIN_SCHEME + origin]:
        raise EvidenceError("the certificate does not name this host's log")
