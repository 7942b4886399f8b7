# SPDX-License-Identifier: Apache-2.0
"""The CA's side of an enrolment: from a request to a challenge, and from its activation to a grant.

What a certificate of this CA says: the AK lives in the TPM whose manufacturer certified the endorsement key,
never leaves it and signs only what the TPM made; and whoever can use it belongs to this host and origin. The
first half is proven here. That the host name is the requester's is for the operator to know, who carried the
request or names the host that it must be for.

Credential activation alone does not prove hardware: a key that was made in software passes it. The attributes
inside the AK's Name decide, so they are judged before anything is issued, and the Name is computed here.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from quotary_attest.enrol.credential import make_credential
from quotary_attest.enrol.errors import EnrolmentUsageError, Refused
from quotary_attest.enrol.files import (
    CHALLENGE_ID_BYTES,
    Activation,
    Challenge,
    Grant,
    Identity,
    Request,
    activation_proof,
    file_digest,
)
from quotary_attest.enrol.issuance import Issuer, TpmModel, make_ak_certificate
from quotary_attest.enrol.ledger import Entry, conflicts
from quotary_attest.enrol.store import CaFolder, Pending, expiry, milliseconds
from quotary_verifier.errors import EvidenceError
from quotary_verifier.evidence.tpm_counter import check_counter_public
from quotary_verifier.evidence.tpm_keys import check_ak
from quotary_verifier.pki.chain import EkEndorsement, TrustAnchors, verify_ek_chain
from quotary_verifier.wire import tpm_public
from quotary_verifier.wire.records import Genesis
from quotary_verifier.wire.tpm import parse_nv_public
from quotary_verifier.wire.tpm_public import Public, parse_public

SECRET_BYTES: Final = 32

_EK_REQUIRED: Final = {
    "fixedTPM": tpm_public.FIXED_TPM,
    "fixedParent": tpm_public.FIXED_PARENT,
    "sensitiveDataOrigin": tpm_public.SENSITIVE_DATA_ORIGIN,
    "restricted": tpm_public.RESTRICTED,
    "decrypt": tpm_public.DECRYPT,
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What the operator of the CA decides for one challenge.

    `anchors` are the roots of TPM manufacturers that are trusted. `host`, where given, is the only host name
    accepted. `days` is the life of the certificate, `hours` that of the challenge. `replace` gives up what
    stands in the ledger against this host or AK.
    """

    anchors: TrustAnchors
    host: str | None = None
    days: int = 365
    hours: float = 24.0
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a request holds, after it was judged: nothing in it is taken on the requester's word."""

    identity: Identity
    ak: Public
    ek: Public
    endorsement: EkEndorsement


@dataclass(frozen=True, slots=True)
class Issued:
    """A grant to hand out, and what stands in the ledger for it."""

    grant: bytes
    entry: Entry


def examine(request: Request, terms: Terms, now: datetime) -> Candidate:
    """Judge a request by itself, without the CA's folder.

    Raises:
        MalformedError: a structure in it is malformed.
        EvidenceError: the AK may not attest, the EK certificate has no path to the roots or another key.
        UnsupportedError: an algorithm that is not known here.
    """
    genesis = Genesis.decode(request.genesis)
    if genesis.tpm is None:
        raise EvidenceError("the origin has no attestation key: only TPM origins can be enrolled")
    if terms.host is not None and terms.host != genesis.host:
        raise Refused(f"the request is for the host {genesis.host}, not for {terms.host}")
    ak = parse_public(genesis.tpm.ak)
    check_ak(ak, strict=True)
    ak.public_key()
    check_counter_public(parse_nv_public(genesis.tpm.counter))
    ek = parse_public(request.ek_public)
    _check_ek(ek)
    endorsement = verify_ek_chain(request.ek_certificate, request.intermediates, terms.anchors, now)
    if not hmac.compare_digest(endorsement.spki_der, ek.to_spki_der()):
        raise EvidenceError("the EK certificate is of another key than the endorsement key in the request")
    ek_digest = hashlib.sha256(endorsement.spki_der).digest()
    identity = Identity(genesis.origin(request.genesis), ak.name, ek_digest)
    return Candidate(identity, ak, ek, endorsement)


def _check_ek(ek: Public) -> None:
    """EvidenceError unless the public area is of a restricted decryption key that cannot leave its TPM."""
    missing = [name for name, bit in _EK_REQUIRED.items() if not ek.attributes & bit]
    if missing:
        raise EvidenceError(f"the key is not an endorsement key: {', '.join(missing)} not set")
    if ek.attributes & tpm_public.SIGN:
        raise EvidenceError("the key is not an endorsement key: sign is set")


def challenge(folder: CaFolder, request: bytes, terms: Terms, now: datetime) -> bytes:
    """Answer a request with a challenge; the CA keeps only the hash of its answer.

    A newer challenge for the same origin voids the older one.

    Raises:
        Refused: the host or AK stands in the ledger with another identity, and `terms.replace` is not set.
        MalformedError, EvidenceError, UnsupportedError: as `examine`.
    """
    candidate = examine(Request.decode(request), terms, now)
    identity = candidate.identity
    with folder.locked():
        against = conflicts(folder.ledger.entries(), identity)
        if against and not terms.replace:
            raise _conflict(identity, against)
        made, pending = _make_challenge(candidate, request, terms, now, [entry.serial for entry in against])
        _clean(folder, identity.origin, now)
        folder.save(pending)
    return made


def _make_challenge(
    candidate: Candidate, request: bytes, terms: Terms, now: datetime, replaces: Sequence[str]
) -> tuple[bytes, Pending]:
    secret = secrets.token_bytes(SECRET_BYTES)
    challenge_id = secrets.token_bytes(CHALLENGE_ID_BYTES)
    identity = candidate.identity
    key = candidate.endorsement.chain[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    credential = make_credential(candidate.ek, key, ak_name=identity.ak_name, secret=secret)
    expires = expiry(now, terms.hours)
    made = Challenge(
        challenge_id=challenge_id,
        request=file_digest(request),
        identity=identity,
        expires=expires,
        id_object=credential.id_object,
        encrypted_secret=credential.encrypted_secret,
    ).encode()
    pending = Pending(
        challenge_id=challenge_id.hex(),
        challenge=file_digest(made).hex(),
        answer=hashlib.sha256(activation_proof(secret, made)).hexdigest(),
        origin=identity.origin,
        ak_name=identity.ak_name.hex(),
        ek_digest=identity.ek_digest.hex(),
        ak=candidate.ak.raw.hex(),
        tpm=_tpm_of(candidate.endorsement),
        expires=expires,
        days=terms.days,
        replaces=tuple(replaces),
    )
    return made, pending


def _tpm_of(endorsement: EkEndorsement) -> tuple[str, ...]:
    """Manufacturer, model and version, or nothing where the EK certificate does not give all three."""
    found = (endorsement.tpm_manufacturer, endorsement.tpm_model, endorsement.tpm_version)
    return tuple(text for text in found if text is not None) if None not in found else ()


def _clean(folder: CaFolder, origin: str, now: datetime) -> None:
    """Remove challenges that have expired, and older ones of this origin."""
    for pending in folder.pending():
        if pending.origin == origin or pending.expires <= milliseconds(now):
            folder.forget(pending)


def _conflict(identity: Identity, against: Sequence[Entry]) -> Refused:
    other = against[-1].identity
    if other.host != identity.host:
        what = f"this attestation key is enrolled for {other.origin}"
    elif other.ek_digest != identity.ek_digest:
        what = f"{identity.host} is enrolled with another endorsement key"
    elif other.ak_name != identity.ak_name:
        what = f"{identity.host} is enrolled with another attestation key"
    else:
        what = f"this attestation key is enrolled for another log of {identity.host}"
    return Refused(
        f"{what} (certificate {against[-1].serial})",
        hint="if the old one is given up for good, make the challenge with --replace",
    )


def issue(folder: CaFolder, issuer: Issuer, activation: bytes, now: datetime) -> Issued:
    """Answer an activation with a grant. The challenge is used up, whether or not this succeeds.

    Raises:
        Refused: no such challenge is open, it has expired, the answer is not the right one, or the ledger has
            moved against this identity since the challenge was made.
        MalformedError, UnsupportedError: the file is none.
    """
    answer = Activation.decode(activation)
    with folder.locked():
        pending = folder.take(answer.challenge_id)
        if pending is None:
            raise Refused(
                "no such challenge is open: it was answered, has failed, has expired or is another CA's",
                hint="begin again with a new request",
            )
        _check_answer(answer, pending, now)
        against = conflicts(folder.ledger.entries(), pending.identity)
        if any(entry.serial not in pending.replaces for entry in against):
            raise _conflict(pending.identity, against)
        return _grant(folder, issuer, answer.challenge_id, pending, now)


def _check_answer(answer: Activation, pending: Pending, now: datetime) -> None:
    """Refused unless the activation answers this challenge, in time, by who was challenged."""
    hint = "the challenge is used up; begin again with a new request"
    if milliseconds(now) >= pending.expires:
        raise Refused("the challenge has expired", hint=hint)
    if answer.identity != pending.identity or answer.challenge.hex() != pending.challenge:
        raise Refused("the activation answers another challenge than the one that was made", hint=hint)
    found = hashlib.sha256(answer.proof).digest()
    if not hmac.compare_digest(found, bytes.fromhex(pending.answer)):
        raise Refused("the activation does not prove that the challenge was opened", hint=hint)


def _grant(folder: CaFolder, issuer: Issuer, challenge_id: bytes, pending: Pending, now: datetime) -> Issued:
    """Sign the certificate, put it into the ledger, and only then hand it out."""
    ak = parse_public(bytes.fromhex(pending.ak)).public_key()
    assert isinstance(ak, ec.EllipticCurvePublicKey)
    if now >= issuer.certificate.not_valid_after_utc:
        raise EnrolmentUsageError("the root of this ca has expired", hint="make a new ca")
    tpm = TpmModel(*pending.tpm) if pending.tpm else None
    leaf = make_ak_certificate(issuer, ak, origin=pending.origin, tpm=tpm, now=now, days=pending.days)
    leaf_der = leaf.public_bytes(Encoding.DER)
    grant = Grant(challenge_id, pending.identity, (leaf_der, issuer.certificate.public_bytes(Encoding.DER)))
    entry = Entry(
        serial=f"{leaf.serial_number:040x}",
        identity=pending.identity,
        issued=now,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        tpm=pending.tpm,
        replaces=pending.replaces,
        certificate=leaf_der,
    )
    issued = Issued(grant.encode(), entry)
    folder.ledger.append(entry)
    return issued
