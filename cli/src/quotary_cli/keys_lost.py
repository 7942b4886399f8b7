# SPDX-License-Identifier: Apache-2.0
"""What rests on a key that is no longer to be trusted from some time on, in an audited history.

Whoever has such a key can state any time. So the host's clock draws no line here: a leaf is safe only if witnesses saw
a checkpoint with it before that time, by a quorum that does not need the lost key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from quotary_cli.auditworkers import reading
from quotary_cli.logsource import LogSource, SourceMissing
from quotary_verifier.audit.again import commits_again
from quotary_verifier.audit.reading import Absent, Blobs
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.errors import EvidenceError, PolicyError, QuotaryError
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.platform import Host, TeeHost
from quotary_verifier.tlog.checkpoint import parse_checkpoint
from quotary_verifier.tlog.cosignature import quorum_time, verify_cosignatures
from quotary_verifier.tlog.note import VerifierKey, parse_note, parse_vkey
from quotary_verifier.wire.history import Commit
from quotary_verifier.wire.limits import MAX_CERTIFICATE, MAX_NOTE

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class LostKey:
    """A key as it was given: the DER of a public key, with the certificate if it came in one, or a note's key."""

    spki: bytes = b""
    certificate: x509.Certificate | None = None
    note_key: VerifierKey | None = None


@dataclass(frozen=True, slots=True)
class Affected:
    """What rests on a lost key: the role in which it stands, leaves for which nothing else speaks, and why."""

    role: str
    ranges: Ranges
    said: str

    @property
    def leaves(self) -> int:
        """How many leaves these are."""
        return sum(end - start for start, end in self.ranges)


def read_key(data: bytes) -> LostKey | None:
    """Read a certificate or public key (PEM or DER), or a note's key as text; None where it is none of these."""
    pem = data.lstrip().startswith(b"-----BEGIN")
    try:
        certificate = (x509.load_pem_x509_certificate if pem else x509.load_der_x509_certificate)(data)
        return LostKey(_spki(certificate), certificate)
    except (ValueError, UnsupportedAlgorithm):
        pass
    try:
        key = (load_pem_public_key if pem else load_der_public_key)(data)
        return LostKey(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    except (ValueError, UnsupportedAlgorithm):
        pass
    try:
        return LostKey(note_key=parse_vkey(data.decode().strip()))
    except (UnicodeDecodeError, QuotaryError):
        return None


def affected(
    key: LostKey, since: int, report: AuditReport, policy: Policy, source: LogSource, host: Host | TeeHost
) -> Affected | None:
    """Return what of a log rests on a key that is not trusted from `since` (seconds) on; None where nothing does.

    Raises as `LogSource.read`, and MalformedError, EvidenceError where the source gives something else than before.
    """
    assert report.log is not None
    size, rule = report.log.size, policy.witnesses
    safe = _seen(report, since)
    if key.note_key is not None and key.note_key.key in {known.key for known in rule.keys}:
        others = tuple(known for known in rule.keys if known.key != key.note_key.key)
        safe = max(safe, _seen_by(others, rule.threshold, report, source))
        said = "their time needs this witness; what the quotes say of them stands"
        return Affected("witness", _from(safe, _seen(report, None)), said)
    if key.note_key is not None:
        if key.note_key.key != host.genesis.note_key:
            return None
        said = "checkpoints under this key can be made by others; the quotes that they carry stand"
        return Affected("note key", _from(safe, size), said)
    if isinstance(host, Host) and key.spki == host.spki:
        said = "whoever has the attestation key can quote what he likes"
        return Affected("attestation key", _from(safe, size), said)
    endorsed = list(_endorsed(key, source, report))
    if not endorsed:
        return None
    said = "only certificates that this key made, or that lead to it, say that the attestation key is a TPM's"
    if host.origin in policy.pins:
        said += "; but the policy pins this origin, and needs none"
    return Affected("certificate authority", tuple(_cut(endorsed, safe)), said)


def _seen(report: AuditReport, before: int | None) -> int:
    """Return how many leaves a quorum saw before a time in seconds; at any time for None."""
    sizes = [
        item.size
        for item in report.witnesses
        if item.time is not None and (before is None or item.time < before)
    ]
    return max(sizes, default=0)


def _seen_by(keys: tuple[VerifierKey, ...], threshold: int, report: AuditReport, source: LogSource) -> int:
    """Return how many leaves a quorum of some witnesses alone saw."""
    size = 0
    for item in report.witnesses:
        try:
            note = parse_note(source.read(f"cosigned/{item.size}", MAX_NOTE))
            quorum_time(verify_cosignatures(note, keys), threshold)
        except (SourceMissing, EvidenceError, PolicyError):
            continue
        size = max(size, item.size)
    return size


def _from(safe: int, end: int) -> Ranges:
    return ((safe, end),) if safe < end else ()


def _cut(ranges: list[tuple[int, int]], safe: int) -> Iterator[tuple[int, int]]:
    for start, end in ranges:
        if end > safe:
            yield max(start, safe), end


def _endorsed(key: LostKey, source: LogSource, report: AuditReport) -> Iterator[tuple[int, int]]:
    """Yield the ranges of leaves whose commits come with a certificate that the key made, or that is the given one."""
    known: dict[tuple[bytes, ...], bool] = {}
    begun: int | None = None
    size = 0
    for number in range(len(report.history)):
        for item in commits_again(number, report, reading(source)):
            commit = Commit.decode(item)
            chains = [support.certificates for support in commit.supports]
            hit = False
            for chain in chains:
                if chain not in known:
                    known[chain] = any(_made_by(key, digest, source) for digest in chain)
                hit = hit or known[chain]
            if hit and begun is None:
                begun = size
            if not hit and begun is not None:
                yield begun, size
                begun = None
            size = parse_checkpoint(parse_note(commit.note).text).size
    if begun is not None:
        yield begun, size


def _made_by(key: LostKey, digest: bytes, source: LogSource) -> bool:
    try:
        certificate = x509.load_der_x509_certificate(Blobs(reading(source)).get(digest, MAX_CERTIFICATE))
    except (Absent, ValueError):
        return False  # the audit tells that it could not be judged
    if _spki(certificate) == key.spki:
        return True
    try:
        if key.certificate is not None:
            certificate.verify_directly_issued_by(key.certificate)
            return True
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return False


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
