# SPDX-License-Identifier: Apache-2.0
"""Verification of AWS Nitro Enclaves and NitroTPM documents, and appraisal of what one that holds says.

A document brings its own path, whose leaf lives three hours, and its own signed time: the path is checked at that time,
however long ago it is. How old it may be is a question of appraisal. The root is pinned; the one in the document has to
be the same, and is not used. AWS says that its CRLs must not be asked.
"""

from __future__ import annotations

import functools
import hmac
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from quotary_verifier.errors import EvidenceError, OutOfTimeError
from quotary_verifier.evidence.tee.device_pki import (
    PinnedRoot,
    read_certificate,
    verify_device_path,
)
from quotary_verifier.evidence.tee.device_roots import AWS_NITRO
from quotary_verifier.evidence.tee.nitro_document import NitroDocument, parse_nitro_document
from quotary_verifier.evidence.tee.shape import Finding, Severity, Signer, named, require_time
from quotary_verifier.wire.frozen import frozen

KIND_ENCLAVE: Final = "nitro-enclave"
KIND_TPM: Final = "nitro-tpm"

CLOCK_SKEW: Final = timedelta(minutes=5)
"""By how much a document's clock may be ahead of the time of verification."""

_DIGEST_BYTES: Final = 32
_IMAGE_PCRS: Final = (0, 1, 2)
_ENCLAVE_IMAGE: Final = frozenset({0, 8})
_INSTANCE_IMAGE: Final = 4
_SHOWN: Final = ("user-data", "nonce", "signature", "chain", "signed-time")
_NOT_SHOWN: Final = ("revocation",)


@functools.cache
def nitro_root() -> PinnedRoot:
    """The root of AWS Nitro."""
    return PinnedRoot(AWS_NITRO)


@frozen
class NitroClaims:
    """What a verified document says. `verified_at`: the time that the caller gave."""

    document: NitroDocument
    signer: Signer
    verified_at: datetime
    shown: tuple[str, ...] = _SHOWN
    not_shown: tuple[str, ...] = _NOT_SHOWN

    @property
    def kind(self) -> str:
        """Name of the kind: of an enclave, or of an instance with a NitroTPM, whose memory the host can read."""
        return KIND_TPM if self.document.tpm else KIND_ENCLAVE

    @property
    def device(self) -> bytes:
        """The module's id: instance, and enclave where there is one."""
        return self.document.module_id.encode()

    @property
    def measurements(self) -> Mapping[str, bytes]:
        """The PCRs by `pcr<number>`, 48 bytes each, zero ones included."""
        return {f"pcr{index}": value for index, value in self.document.pcrs.items()}

    @property
    def signed_time(self) -> datetime:
        """When the document was made, by AWS's clock."""
        return _moment(self.document.timestamp)

    @property
    def debug(self) -> bool:
        """Whether PCR 0 to 2 are zero or absent: an enclave in debug mode, or an instance that was never measured."""
        return not any(any(self.document.pcrs.get(index, b"")) for index in _IMAGE_PCRS)


def verify_nitro(
    evidence: bytes, at: datetime, *, user_data: bytes, nonce: bytes, root: PinnedRoot | None = None
) -> NitroClaims:
    """Verify a document that has to carry `user_data` (D of the commit) and `nonce` (SHA-256 of the genesis record).

    `at`: with a time zone.

    Raises:
        MalformedError: the document or a certificate in it is not of its form.
        EvidenceError: it binds something else, is of the future, or its path or signature does not hold.
        UnsupportedError: algorithm, key or a field is not known.
    """
    require_time(at)
    if len(user_data) != _DIGEST_BYTES or len(nonce) != _DIGEST_BYTES:
        raise ValueError("user data and nonce are digests of 32 bytes")
    return _bound(_verified(evidence, at, root or nitro_root()), user_data, nonce)


def verify_unbound_nitro(evidence: bytes, at: datetime, *, root: PinnedRoot | None = None) -> NitroClaims:
    """As `verify_nitro`, but of a document that was not made for us: what it binds is left to the caller.

    `not_shown` then has "user-data" and "nonce".
    """
    require_time(at)
    claims = _verified(evidence, at, root or nitro_root())
    shown = tuple(code for code in _SHOWN if code not in {"user-data", "nonce"})
    return NitroClaims(claims.document, claims.signer, at, shown, ("user-data", "nonce", *_NOT_SHOWN))


def _verified(evidence: bytes, at: datetime, root: PinnedRoot) -> NitroClaims:
    document = parse_nitro_document(evidence)
    signed_time = _moment(document.timestamp)
    if signed_time > at + CLOCK_SKEW:
        raise EvidenceError(f"the nitro document is of {signed_time.isoformat()}, which is yet to come")
    if document.bundle[0] != root.der:
        raise EvidenceError("the nitro document's root is not the pinned one")
    leaf = read_certificate(document.certificate)
    path = verify_device_path(leaf, [read_certificate(der) for der in document.bundle[1:]], root)
    path.verify(document.signature, document.signed, "the nitro document")
    try:
        signer = path.signer_at(signed_time)
    except OutOfTimeError as error:  # of its own time, which no caller can choose better: it is false
        raise EvidenceError(str(error)) from None
    return NitroClaims(document, signer, at)


def _bound(claims: NitroClaims, user_data: bytes, nonce: bytes) -> NitroClaims:
    document = claims.document
    for found, expected, name in (
        (document.user_data, user_data, "user data"),
        (document.nonce, nonce, "nonce"),
    ):
        if found is None or not hmac.compare_digest(found, expected):
            raise EvidenceError(f"the {name} is not what the nitro document has to bind")
    return claims


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)


@frozen
class NitroRules:
    """What is accepted. Whatever is None is not asked.

    `kinds`: enclaves, NitroTPMs or both; a NitroTPM protects no memory. `debug`: accepted with PCR 0 to 2 zero.
    `pcrs`: index → values of 48 bytes. `modules`: ids of instance and enclave. `max_age`: of the signed time.
    """

    kinds: frozenset[str] = frozenset({KIND_ENCLAVE})
    debug: bool = False
    pcrs: Mapping[int, frozenset[bytes]] | None = None
    modules: frozenset[str] | None = None
    max_age: timedelta | None = None


def names_image(rules: NitroRules) -> bool:
    """Whether the rules name, for each kind that they accept, what was started: an enclave's image or who signed it
    (PCR 0, 8), an instance's boot loader or kernel (PCR 4)."""
    found = {index for index, values in (rules.pcrs or {}).items() if named(values)}
    enclave = KIND_ENCLAVE not in rules.kinds or bool(found & _ENCLAVE_IMAGE)
    return enclave and (KIND_TPM not in rules.kinds or _INSTANCE_IMAGE in found)


def appraise_nitro(claims: NitroClaims, rules: NitroRules) -> tuple[Finding, ...]:
    """Return every rule that the claims break; `shape.enforce` raises for them."""
    return tuple(
        Finding(f"nitro.{rule}", Severity.FAIL, f"nitro: {message}")
        for rule, message in _broken(claims, rules)
    )


def _broken(claims: NitroClaims, rules: NitroRules) -> Iterator[tuple[str, str]]:
    document = claims.document
    if claims.kind not in rules.kinds:
        yield "kind", f"a document of the kind {claims.kind} is not accepted"
    if claims.debug and not rules.debug:
        yield (
            "debug",
            "pcr 0, 1 and 2 are zero: an enclave in debug mode, or an instance that was not measured",
        )
    for index, accepted in sorted((rules.pcrs or {}).items()):
        value = document.pcrs.get(index)
        if value not in accepted:
            yield "pcr", f"pcr {index} is {'absent' if value is None else value.hex()}, which is not accepted"
    if rules.modules is not None and document.module_id not in rules.modules:
        yield "module", f"the module {document.module_id!r} is not accepted"
    age = claims.verified_at - claims.signed_time
    if rules.max_age is not None and age > rules.max_age:
        yield (
            "age",
            f"the document is {int(age.total_seconds())} s old, {int(rules.max_age.total_seconds())} are allowed",
        )
