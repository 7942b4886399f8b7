# SPDX-License-Identifier: Apache-2.0
"""Step `ak.endorsement`: who says that this AK lives in a TPM, and of which host and log."""

from __future__ import annotations

from datetime import UTC, datetime

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.pki.chain import AkEndorsement, verify_ak_chain
from quotary_verifier.pki.revocation import Revocation, check_revocation
from quotary_verifier.policy.model import Authority, Policy
from quotary_verifier.recipe.witness import Witnessed
from quotary_verifier.wire.frozen import frozen

ORIGIN_SCHEME = "quotary://"


@frozen
class Endorsement:
    """How the AK is vouched for: by a certificate under `authority`, by a pinned origin, or both.

    `binds_origin` tells whether the certificate names this log and not only its host; `revocation` what the CRLs of
    the policy say of the path, None where no certificate counts; `problem` why a certificate does not hold, where the
    origin is pinned all the same.
    """

    pinned: bool
    authority: str | None
    certificate: AkEndorsement | None
    binds_origin: bool
    revocation: Revocation | None = None
    problem: str = ""


def endorse(
    policy: Policy,
    origin: str,
    host: str,
    spki: bytes,
    certificates: tuple[bytes, ...],
    at: int,
    seen: Witnessed | None,
) -> Endorsement:
    """Find an authority of the policy whose certificate covers the AK, or the origin among the pins.

    `spki` is the AK as DER SubjectPublicKeyInfo.

    Raises:
        EvidenceError: neither does.
        UnsupportedError: a certificate path uses what this verifier cannot read, and the origin is not pinned.
    """
    pinned = origin in policy.pins
    if not certificates or not policy.authorities:
        if pinned:
            return Endorsement(True, None, None, False)
        raise EvidenceError(
            f"no certificate endorses the AK, and the policy does not pin the origin {origin}"
            if policy.authorities
            else f"the policy does not pin the origin {origin}"
        )
    problems: list[str] = []
    unsupported = False
    for authority in policy.authorities:
        try:
            certificate, moment = _under(authority, host, spki, certificates, at, seen)
            state = _revocation(authority, certificate, moment)
            return Endorsement(pinned, authority.name, certificate, _names_origin(certificate, origin), state)
        except UnsupportedError as error:
            unsupported = True
            problems.append(f"{authority.name}: {error}")
        except (EvidenceError, MalformedError) as error:
            problems.append(f"{authority.name}: {error}")
    if pinned:
        return Endorsement(True, None, None, False, problem="; ".join(problems))
    message = "no trusted authority endorses the AK: " + "; ".join(problems)
    raise UnsupportedError(message) if unsupported else EvidenceError(message)


def _under(
    authority: Authority,
    host: str,
    spki: bytes,
    certificates: tuple[bytes, ...],
    at: int,
    seen: Witnessed | None,
) -> tuple[AkEndorsement, datetime]:
    if not authority.speaks_for(host):
        raise EvidenceError(f"the policy does not let it speak for the host {host}")
    certificate, moment = _at_the_right_time(authority, certificates, at, seen)
    if certificate.spki_der != spki:
        raise EvidenceError("the certificate is of another key than the AK of the genesis record")
    if host not in certificate.dns_names:
        raise EvidenceError(f"the certificate does not name the host {host}")
    return certificate, moment


def _revocation(authority: Authority, certificate: AkEndorsement, moment: datetime) -> Revocation:
    """Return what the authority's CRLs say; "unknown" is never "good", and the policy may demand to know."""
    state = check_revocation(certificate.chain, authority.crls, moment).state
    if state is Revocation.REVOKED:
        raise EvidenceError("the certificate was revoked")
    if state is Revocation.UNKNOWN and authority.revocation_required:
        raise UnsupportedError(
            "no current CRL says whether the certificate was revoked, and the policy wants to know"
        )
    return state


def _at_the_right_time(
    authority: Authority, certificates: tuple[bytes, ...], at: int, seen: Witnessed | None
) -> tuple[AkEndorsement, datetime]:
    """Check the path at the witnesses' time where there is one, else at the time argument.

    A certificate issued later still vouches, as a fixedTPM key does not change: its path is then checked at the
    time argument (design section 5).
    """
    now = moment(at)
    if seen is None or seen.time is None:
        return verify_ak_chain(certificates, authority.anchors, now), now
    then = moment(seen.time)
    try:
        return verify_ak_chain(certificates, authority.anchors, then), then
    except EvidenceError:
        certificate = verify_ak_chain(certificates, authority.anchors, now)
        if certificate.not_before <= then:
            raise
        return certificate, now


def moment(seconds: int) -> datetime:
    """Return a time in seconds since the epoch; EvidenceError for what no calendar has, as a witness may sign."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise EvidenceError(f"{seconds} s is no time at which a certificate can be checked") from None


def _names_origin(certificate: AkEndorsement, origin: str) -> bool:
    """Tell whether the certificate names this log; one that names another log is false."""
    named = [uri for uri in certificate.uris if uri.startswith(ORIGIN_SCHEME)]
    if named and named != [ORIGIN_SCHEME + origin]:
        raise EvidenceError("the certificate is for another log of this host")
    return bool(named)
