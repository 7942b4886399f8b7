# SPDX-License-Identifier: Apache-2.0
"""AMD's certificates for SEV-SNP: ARK → ASK → VCEK, or ARK → ASVK → VLEK (AMD 57230, "VCEK Certificate and KDS").

They are odd in two ways, and this module is the only place that knows:

- Every VCEK and VLEK has the serial number 0, which RFC 5280 forbids and the certificate library warns of. A copy with
  the serial number 1 is read in its place; signatures are verified over the original bytes.
- RSA-PSS parameters stand in them in two encodings, one of which spells out a default (not DER). Exactly these two are
  accepted, and always mean SHA-384, MGF1 with SHA-384 and 48 bytes of salt. No parameter is taken from a certificate.

The library's path builder refuses both, so the links of these paths, of fixed length and shape, are checked here.
"""

from __future__ import annotations

import enum
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.evidence.tee.amd_roots import ARK_GENOA, ARK_MILAN, ARK_TURIN
from quotary_verifier.evidence.tee.shape import require_valid
from quotary_verifier.pki.anchors import UNREADABLE
from quotary_verifier.pki.der import elements, header
from quotary_verifier.pki.revocation import Revocation, check_revocation, made_by, read_crl
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_CERTIFICATE

_SHA384: Final = bytes.fromhex("300d06096086480165030402020500")
_MGF1_SHA384: Final = bytes.fromhex("301a06092a864886f70d010108") + _SHA384
_PSS: Final = bytes.fromhex("06092a864886f70d01010a")
_PARAMETERS: Final = b"\xa0\x0f" + _SHA384 + b"\xa1\x1c" + _MGF1_SHA384 + bytes.fromhex("a203020130")
_TRAILER_FIELD: Final = bytes.fromhex("a303020101")
_ALGORITHMS: Final = frozenset(
    {
        b"\x30\x41" + _PSS + b"\x30\x34" + _PARAMETERS,
        b"\x30\x46" + _PSS + b"\x30\x39" + _PARAMETERS + _TRAILER_FIELD,
    }
)
_SALT_BYTES: Final = 48
_SERIAL_ZERO: Final = b"\x02\x01\x00"
_SERIAL_ONE: Final = b"\x02\x01\x01"
_VERSION: Final = 0xA0
_BIT_STRING: Final = 0x03
_COMMON_NAME: Final = bytes.fromhex("550403")
_MAX_CRLS: Final = 8
_MAX_LINKS: Final = 64
_CA_EXTENSIONS: Final = frozenset({x509.BasicConstraints.oid, x509.KeyUsage.oid})


class Generation(enum.Enum):
    """A generation of EPYC processors, by the name that AMD's certificates use. Bergamo and Siena are Genoa."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"


class SigningKey(enum.Enum):
    """The kind of key that signs reports: of one chip, or of one provider's chips of a generation."""

    VCEK = "VCEK"
    VLEK = "VLEK"


@frozen
class AmdCertificate:
    """One certificate, read whole, and what was really signed.

    `name`: the subject's common name. `subject`, `issuer`: names as they stand there (DER). `ca`: whether it may sign
    certificates. `extensions`: those that the library does not know, by identifier. `sha256`: of the original bytes,
    `der`. `certificate`: a copy for reading, see above.
    """

    name: str
    subject: bytes
    issuer: bytes
    not_before: datetime
    not_after: datetime
    key: object
    ca: bool
    extensions: Mapping[str, bytes]
    certificate: x509.Certificate
    signed: bytes
    signature: bytes
    sha256: bytes
    der: bytes


@frozen
class AmdRoots:
    """The ARKs that are trusted, and their names (RFC 4514), by generation. `amd_roots` are AMD's own.

    `links`: leaves and issuers whose signatures were verified under these, where that is remembered (`remembering`).
    """

    arks: Mapping[Generation, AmdCertificate]
    names: Mapping[Generation, str]
    links: dict[tuple[bytes, bytes, Generation, SigningKey], tuple[AmdCertificate, AmdCertificate]] | None = (
        field(default=None, compare=False, repr=False)
    )

    def remembering(self) -> AmdRoots:
        """Return roots for whoever verifies many reports of few chips: each pair of certificates is verified once.

        What depends on a time, dates and revocation, is judged each time.
        """
        return AmdRoots(self.arks, self.names, {})

    @classmethod
    def from_der(cls, arks: Mapping[Generation, bytes]) -> AmdRoots:
        """Read ARKs. MalformedError if one cannot be read, or does not sign itself as a CA."""
        read = {generation: read_amd_certificate(der) for generation, der in arks.items()}
        for ark in read.values():
            try:
                _require_ca(ark)
                verify_link(ark, ark)
            except EvidenceError as error:
                raise MalformedError(f"{ark.name} is no root: {error}") from None
        names = {generation: ark.certificate.subject.rfc4514_string() for generation, ark in read.items()}
        return cls(read, names)

    def __reduce__(self) -> tuple[object, ...]:
        """Between processes go the certificates alone: what the library read of them stays in its process."""
        return AmdRoots.from_der, ({generation: ark.der for generation, ark in self.arks.items()},)


@functools.cache
def amd_roots() -> AmdRoots:
    """AMD's ARKs for Milan, Genoa and Turin, as published by its Key Distribution Service."""
    return AmdRoots.from_der(
        {Generation.MILAN: ARK_MILAN, Generation.GENOA: ARK_GENOA, Generation.TURIN: ARK_TURIN}
    )


def read_amd_certificate(der: bytes) -> AmdCertificate:
    """Read one certificate. MalformedError if it is not one that is signed as AMD signs."""
    if len(der) > MAX_CERTIFICATE:
        raise MalformedError(f"an amd certificate of {len(der)} bytes is too large")
    body, algorithm, signature = _parts(der)
    inside = _inside(body)
    if algorithm not in _ALGORITHMS or inside.algorithm != algorithm:
        raise MalformedError("an amd certificate is not signed with rsa-pss and sha-384")
    copy = der
    if body[inside.serial : inside.serial + 3] == _SERIAL_ZERO:
        at = header(der, 0)[2] + inside.serial
        copy = der[:at] + _SERIAL_ONE + der[at + 3 :]
    try:
        return _read(x509.load_der_x509_certificate(copy), inside, body, signature, der)
    except (*UNREADABLE, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise MalformedError(f"an amd certificate cannot be read: {error}") from None


def _read(
    certificate: x509.Certificate, inside: _Body, body: bytes, signature: bytes, der: bytes
) -> AmdCertificate:
    """Read at once all that is used: the library reads lazily, and would raise its own errors later."""
    ca, unknown = False, {}
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.UnrecognizedExtension):
            unknown[extension.oid.dotted_string] = value.value
        if extension.critical and extension.oid not in _CA_EXTENSIONS:
            raise MalformedError("an amd certificate has a critical extension that is not known")
        if isinstance(value, x509.BasicConstraints):
            ca = value.ca
    if ca:
        ca = certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    return AmdCertificate(
        name=_common_name(inside.subject),
        subject=inside.subject,
        issuer=inside.issuer,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        key=certificate.public_key(),
        ca=ca,
        extensions=unknown,
        certificate=certificate,
        signed=body,
        signature=signature,
        sha256=hashlib.sha256(der).digest(),
        der=der,
    )


def _parts(der: bytes) -> tuple[bytes, bytes, bytes]:
    """Body and algorithm as they stand, and the signature's bytes."""
    at, end = header(der, 0)[2], len(der)
    found = []
    for _ in range(3):
        tag, size, content = header(der, at)
        found.append((tag, der[at : content + size], der[content : content + size]))
        at = content + size
    (_, body, _), (_, algorithm, _), (tag, _, signature) = found
    if at != end or tag != _BIT_STRING or signature[:1] != b"\0":
        raise MalformedError("not a certificate: body, algorithm and signature are expected")
    return body, algorithm, signature[1:]


@frozen
class _Body:
    """Parts of a certificate's signed body as they stand, and where in it the serial number does."""

    serial: int
    algorithm: bytes
    issuer: bytes
    subject: bytes


def _inside(body: bytes) -> _Body:
    at = header(body, 0)[2]
    tag, size, content = header(body, at)
    if tag == _VERSION:
        at = content + size
    places = [at]
    for _ in range(5):  # serial number, algorithm, issuer, validity, subject
        _, size, content = header(body, places[-1])
        places.append(content + size)
    serial, algorithm, issuer, validity, subject, end = places
    return _Body(serial, body[algorithm:issuer], body[issuer:validity], body[subject:end])


def verify_link(child: AmdCertificate, issuer: AmdCertificate) -> None:
    """EvidenceError unless `issuer` is named as issuer by `child` and signed it."""
    if child.issuer != issuer.subject:
        raise EvidenceError(f"{child.name} names another issuer than {issuer.name}")
    key = issuer.key
    if not isinstance(key, rsa.RSAPublicKey):
        raise EvidenceError(f"{issuer.name} has no rsa key")
    chosen = hashes.SHA384()
    try:
        key.verify(child.signature, child.signed, padding.PSS(padding.MGF1(chosen), _SALT_BYTES), chosen)
    except InvalidSignature:
        raise EvidenceError(f"{issuer.name} did not sign {child.name}") from None


@frozen
class AmdPath:
    """A verified path: leaf, ASK or ASVK, ARK, and whether the middle one was revoked at the time."""

    leaf: AmdCertificate
    issuer: AmdCertificate
    ark: AmdCertificate
    revocation: Revocation

    @property
    def not_before(self) -> datetime:
        """When the path begins to be valid."""
        return max(self.leaf.not_before, self.issuer.not_before, self.ark.not_before)

    @property
    def not_after(self) -> datetime:
        """When the path ceases to be valid."""
        return min(self.leaf.not_after, self.issuer.not_after, self.ark.not_after)

    def require_valid(self, at: datetime) -> None:
        """OutOfTimeError unless the whole path is valid at a time."""
        require_valid(f"the certificate path of {self.leaf.name}", self.not_before, self.not_after, at)

    @property
    def key(self) -> ec.EllipticCurvePublicKey:
        """The leaf's key. EvidenceError unless it is a point on P-384."""
        key = self.leaf.key
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
            raise EvidenceError(f"the key of {self.leaf.name} is not on p-384")
        return key


def verify_amd_path(
    leaf: bytes,
    issuer: bytes,
    crls: Sequence[bytes],
    roots: AmdRoots,
    expected: tuple[Generation, SigningKey],
    at: datetime,
) -> AmdPath:
    """Verify the path of a VCEK or VLEK (DER) of the expected generation and kind.

    `issuer`: its ASK or ASVK. `crls`: of the ARK (DER), as many as there are; they list ASKs and ASVKs only, and tell
    whether the issuer was revoked by the time `at`. Whether the path is valid then, `AmdPath.require_valid` tells once
    what its leaf signed was verified.
    MalformedError, or EvidenceError where a name, signature or the ARK does not fit, a CRL is by somebody else, or the
    issuer was revoked.
    """
    ark = roots.arks.get(expected[0])
    if ark is None:
        raise EvidenceError(f"no root is trusted for {expected[0].value}")
    key, links = (leaf, issuer, *expected), {} if roots.links is None else roots.links
    linked = links.get(key)
    if linked is None:
        linked = _linked(leaf, issuer, ark, expected)
        if len(links) >= _MAX_LINKS:
            links.clear()
        links[key] = linked
    path = AmdPath(*linked, ark, _revocation(linked[1], ark, crls, at))
    if path.not_before > path.not_after:
        raise EvidenceError(f"at no time are all certificates of {linked[0].name} and its issuers valid")
    return path


def _linked(
    leaf: bytes, issuer: bytes, ark: AmdCertificate, expected: tuple[Generation, SigningKey]
) -> tuple[AmdCertificate, AmdCertificate]:
    """Return leaf and issuer where their names and signatures lead to the ARK, at whatever time."""
    generation, kind = expected
    chain = read_amd_certificate(leaf), read_amd_certificate(issuer)
    if chain[0].name != f"SEV-{kind.value}":
        raise EvidenceError(
            f"the report is signed by a {kind.value}, and the certificate is of {chain[0].name!r}"
        )
    middle = f"SEV-VLEK-{generation.value}" if kind is SigningKey.VLEK else f"SEV-{generation.value}"
    if chain[1].name != middle:
        raise EvidenceError(f"the certificate of {middle} is expected, not that of {chain[1].name!r}")
    _require_ca(chain[1])
    verify_link(chain[1], ark)
    verify_link(chain[0], chain[1])
    return chain


def _revocation(
    issuer: AmdCertificate, ark: AmdCertificate, crls: Sequence[bytes], at: datetime
) -> Revocation:
    if len(crls) > _MAX_CRLS:
        raise MalformedError(f"{len(crls)} crls, at most {_MAX_CRLS} are allowed")
    lists = [read_crl(der) for der in crls]
    if not all(made_by(one, ark.certificate) for one in lists):
        raise EvidenceError(f"a crl that stands beside the certificates was not made by {ark.name}")
    state = check_revocation((issuer.certificate, ark.certificate), lists, at).state
    if state is Revocation.REVOKED:
        raise EvidenceError(f"the certificate of {issuer.name} was revoked")
    return state


def _require_ca(certificate: AmdCertificate) -> None:
    if not certificate.ca:
        raise EvidenceError(f"{certificate.name} may not sign certificates")


def _common_name(name: bytes) -> str:
    found = [
        value
        for _, names in elements(name)
        for _, one in elements(names)
        for _, pair in elements(one)
        for (_, oid), (_, value) in [elements(pair)]  # two, or the library had not read the certificate
        if oid == _COMMON_NAME
    ]
    if len(found) != 1:
        raise MalformedError("an amd certificate does not have exactly one common name")
    try:
        return found[0].decode("ascii")
    except UnicodeDecodeError:
        raise MalformedError("the common name of an amd certificate is not ascii") from None
