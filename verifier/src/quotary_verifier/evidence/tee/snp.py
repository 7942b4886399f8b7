# SPDX-License-Identifier: Apache-2.0
"""Verification of SEV-SNP attestation reports, and what one that holds says (docs/spec/tee.md)."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.evidence.tee.amd_certs import (
    AmdPath,
    AmdRoots,
    Generation,
    SigningKey,
    amd_roots,
    read_amd_certificate,
    verify_amd_path,
)
from quotary_verifier.evidence.tee.shape import REPORT_DATA_BYTES, Signer, require_time
from quotary_verifier.evidence.tee.snp_report import SnpReport, Tcb, parse_snp_report, parse_tcb
from quotary_verifier.pki.revocation import Revocation
from quotary_verifier.wire.frozen import frozen

KIND: Final = "sev-snp"

_OID: Final = "1.3.6.1.4.1.3704.1."
_PRODUCT: Final = _OID + "2"
_HWID: Final = _OID + "4"
_CSP: Final = _OID + "5"
_COMPONENTS: Final = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_RESERVED: Final = ("3.4", "3.5", "3.6", "3.7")
_INTEGER: Final = 0x02
_OCTETS: Final = 0x04
_TEXTS: Final = (0x0C, 0x16)  # UTF8String, IA5String
_CHIP_ID_BYTES: Final = {Generation.MILAN: 64, Generation.GENOA: 64, Generation.TURIN: 8}
_MAX_BYTE: Final = 255
_MAX_TEXT: Final = 127


@frozen
class SnpEndorsements:
    """What vouches for a report's key, all DER: the VCEK or VLEK, its ASK or ASVK, and the ARK's CRLs, if any."""

    leaf: bytes
    issuer: bytes
    crls: tuple[bytes, ...] = ()


@frozen
class SnpClaims:
    """What a verified report says.

    `reported` is what the host had the key derived for, and what the certificate vouches for; `committed` is what the
    firmware cannot be taken back behind. `csp`: the provider for whom a VLEK was made. `device`: the chip, None where
    the report does not name it; where a VLEK signed it, that is the firmware's word and no certificate's.
    """

    report: SnpReport
    generation: Generation
    reported: Tcb
    committed: Tcb
    current: Tcb
    launch: Tcb
    csp: str | None
    signer: Signer
    shown: tuple[str, ...]
    not_shown: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Name of the kind."""
        return KIND

    @property
    def device(self) -> bytes | None:
        """The chip's id: 64 bytes, 8 on Turin."""
        chip = self.report.chip_id
        return chip[: _CHIP_ID_BYTES[self.generation]] if any(chip) else None

    @property
    def measurements(self) -> Mapping[str, bytes]:
        """The launch digest, 48 bytes, as "launch"."""
        return {"launch": self.report.measurement}

    @property
    def signed_time(self) -> None:
        """A report has no time."""
        return None


def verify_snp(
    evidence: bytes,
    endorsements: SnpEndorsements,
    at: datetime,
    *,
    report_data: bytes,
    roots: AmdRoots | None = None,
) -> SnpClaims:
    """Verify a report that has to carry `report_data` (64 bytes); `at`: with a time zone.

    Raises:
        MalformedError: report, certificate or CRL is not of its form.
        EvidenceError: the report binds something else, or key, path, chip or TCB do not fit each other.
        OutOfTimeError: all of that fits, and the certificates are of another time.
        UnsupportedError: version, algorithm or processor is not known.
    """
    require_time(at)
    if len(report_data) != REPORT_DATA_BYTES:
        raise ValueError(f"{len(report_data)} bytes are expected as report data, not {REPORT_DATA_BYTES}")
    report = parse_snp_report(evidence)
    generation = report.generation() or _generation_of(endorsements.issuer)
    trusted = roots or amd_roots()
    path = verify_amd_path(
        endorsements.leaf,
        endorsements.issuer,
        endorsements.crls,
        trusted,
        (generation, report.signing_key),
        at,
    )
    _check_signature(report, path)
    reported = parse_tcb(report.reported_tcb, generation)
    csp = _check_leaf(path, report, generation, reported)
    if not hmac.compare_digest(report.report_data, report_data):
        raise EvidenceError("the report data is not what the sev-snp report has to bind")
    path.require_valid(at)
    return _claims(report, generation, reported, csp, path, trusted.names[generation])


def _claims(
    report: SnpReport,
    generation: Generation,
    reported: Tcb,
    csp: str | None,
    path: AmdPath,
    root: str,
) -> SnpClaims:
    shown = ["report-data", "signature", "chain", "tcb-certificate"]
    not_shown: list[str] = []
    chip = any(report.chip_id) and report.signing_key is SigningKey.VCEK
    (shown if chip else not_shown).append("chip-id")
    (shown if path.revocation is Revocation.GOOD else not_shown).append("revocation")
    return SnpClaims(
        report=report,
        generation=generation,
        reported=reported,
        committed=parse_tcb(report.committed_tcb, generation),
        current=parse_tcb(report.current_tcb, generation),
        launch=parse_tcb(report.launch_tcb, generation),
        csp=csp,
        signer=Signer(
            root=root,
            root_sha256=path.ark.sha256,
            not_before=path.not_before,
            not_after=path.not_after,
            revocation=path.revocation,
        ),
        shown=tuple(shown),
        not_shown=tuple(not_shown),
    )


def _generation_of(issuer: bytes) -> Generation:
    """The generation that the issuer's name says: all there is for reports before version 3."""
    name = read_amd_certificate(issuer).name
    for generation in Generation:
        if name in {f"SEV-{generation.value}", f"SEV-VLEK-{generation.value}"}:
            return generation
    raise EvidenceError(f"{name!r} is not an issuer of sev-snp certificates")


def _check_signature(report: SnpReport, path: AmdPath) -> None:
    try:
        path.key.verify(encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise EvidenceError(f"the sev-snp report was not signed by this {report.signing_key.value}") from None


def _check_leaf(path: AmdPath, report: SnpReport, generation: Generation, reported: Tcb) -> str | None:
    """Hold the leaf's extensions against the report; return the provider of a VLEK."""
    extensions = path.leaf.extensions
    product = _text(extensions, _PRODUCT)
    if product.partition("-")[0] != generation.value:
        raise EvidenceError(f"the certificate is of a {product!r}, and the report of a {generation.value}")
    certified = _certified_tcb(extensions, generation)
    differing = [
        name for name, value in reported.components().items() if certified.components()[name] != value
    ]
    if differing:
        raise EvidenceError(f"the certificate is of another tcb than reported: {', '.join(differing)}")
    if report.signing_key is SigningKey.VLEK:
        if _HWID in extensions:
            raise EvidenceError("a vlek's certificate names a chip")
        return _text(extensions, _CSP)
    hwid = _octets(extensions, _CHIP_ID_BYTES[generation])
    if any(report.chip_id) and report.chip_id != hwid.ljust(len(report.chip_id), b"\0"):
        raise EvidenceError("the vcek is of another chip than the sev-snp report")
    return None


def _certified_tcb(extensions: Mapping[str, bytes], generation: Generation) -> Tcb:
    names = set(_COMPONENTS)
    if generation is not Generation.TURIN:
        names.discard("fmc")
        if _OID + _COMPONENTS["fmc"] in extensions:
            raise EvidenceError(f"the certificate has an fmc version, which {generation.value} has not")
    for number in _RESERVED:
        if _OID + number in extensions and _integer(extensions, _OID + number):
            raise EvidenceError("the certificate has a reserved tcb component that is not zero")
    return Tcb(**{name: _integer(extensions, _OID + _COMPONENTS[name]) for name in names})


def _value(extensions: Mapping[str, bytes], oid: str) -> bytes:
    found = extensions.get(oid)
    if found is None:
        raise EvidenceError(f"the certificate has no extension {oid}")
    return found


def _integer(extensions: Mapping[str, bytes], oid: str) -> int:
    """A DER INTEGER from 0 to 255, which has two bytes of content from 128 on."""
    found = _value(extensions, oid)
    number = int.from_bytes(found[2:], "big")
    length = 1 + (number > _MAX_BYTE >> 1)
    if number > _MAX_BYTE or found[:2] != bytes((_INTEGER, length)) or len(found) != 2 + length:
        raise MalformedError(f"the certificate's extension {oid} is not an integer of one byte")
    return number


def _text(extensions: Mapping[str, bytes], oid: str) -> str:
    found = _value(extensions, oid)
    if len(found) < 2 or found[0] not in _TEXTS or found[1] != len(found) - 2 or found[1] > _MAX_TEXT:
        raise MalformedError(f"the certificate's extension {oid} is not a text")
    try:
        return found[2:].decode("ascii")
    except UnicodeDecodeError:
        raise MalformedError(f"the certificate's extension {oid} is not a text") from None


def _octets(extensions: Mapping[str, bytes], size: int) -> bytes:
    """The chip's id: older certificates hold the bare bytes, newer ones an OCTET STRING."""
    found = _value(extensions, _HWID)
    if len(found) == size + 2 and found[:2] == bytes((_OCTETS, size)):
        found = found[2:]
    if len(found) != size:
        raise MalformedError(f"the certificate's hardware id is not {size} bytes")
    return found
