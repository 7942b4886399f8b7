# SPDX-License-Identifier: Apache-2.0
"""Verification of reports of NVIDIA's Hopper and Blackwell GPUs and its switches, and what one that holds says.

It shows that a genuine device of NVIDIA's answered this nonce, and which versions and measurements it reports. It does
not show that these are good ones (that takes NVIDIA's reference manifests), that the device still is in that state, or
that it is attached to the machine whose other evidence stands beside it.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quotary_verifier.errors import EvidenceError, MalformedError, PolicyError
from quotary_verifier.evidence.tee.device_pki import (
    MAX_PATH,
    DevicePath,
    PinnedRoot,
    read_certificate,
    require_common_time,
    verify_device_path,
)
from quotary_verifier.evidence.tee.device_roots import NVIDIA_DEVICES
from quotary_verifier.evidence.tee.nvidia_spdm import FWID_BYTES, SpdmReport, parse_spdm_report
from quotary_verifier.evidence.tee.shape import Finding, Severity, Signer, require_time
from quotary_verifier.pki.anchors import UNREADABLE
from quotary_verifier.pki.der import elements
from quotary_verifier.wire.frozen import frozen

KIND: Final = "nvidia-device"

MAX_DEVICES: Final = 32
"""Devices that report in one evidence."""

_NONCE_BYTES: Final = 32
_MODEL: Final = re.compile(r"NVIDIA ([A-Z0-9]{2,12}) Identity")
_TCB_INFO: Final = ("2.23.133.5.4.1", "2.23.133.5.4.1.1")  # the second is Blackwell's
_SEQUENCE: Final = 0x30
_FWIDS: Final = 0xA6
_SHA384: Final = (0x06, bytes.fromhex("608648016503040202"))
_OCTETS: Final = 0x04
_OWN_PATH: Final = 4  # leaf, the device's own CA, at least one of NVIDIA's, root
_SHOWN: Final = ("nonce", "signature", "chain")
_NOT_SHOWN: Final = ("revocation", "reference-values", "attachment")


class Architecture(enum.Enum):
    """A family of devices, by the first letters of the model in the name of its CA."""

    HOPPER = "GH"
    BLACKWELL = "GB"
    NVSWITCH = "LS"


@functools.cache
def nvidia_root() -> PinnedRoot:
    """The root of NVIDIA's devices."""
    return PinnedRoot(NVIDIA_DEVICES)


@frozen
class NvidiaClaims:
    """What one verified report says. `model`: as NVIDIA's CA names it, such as "GH100".

    `device`: SHA-256 of the key (SubjectPublicKeyInfo) that was put into this device and vouches for the key that
    signed; None where the path does not have it.
    """

    report: SpdmReport
    architecture: Architecture | None
    model: str
    device: bytes | None
    signer: Signer
    shown: tuple[str, ...]
    not_shown: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Name of the kind."""
        return KIND

    @property
    def measurements(self) -> Mapping[str, bytes]:
        """The measurements by `measurement<index>`."""
        return {f"measurement{index}": value for index, value in self.report.measurements.items()}

    @property
    def signed_time(self) -> None:
        """A report has no time."""
        return None


def verify_nvidia(
    evidence: bytes,
    certificates: Sequence[bytes],
    at: datetime,
    *,
    nonce: bytes,
    root: PinnedRoot | None = None,
) -> NvidiaClaims:
    """Verify one device's report that has to answer `nonce` (D of the commit).

    `certificates`: DER, leaf first, with or without the root at the end. `at`: with a time zone.

    Raises:
        MalformedError: report or certificate is not of its form.
        EvidenceError: the report answers another nonce, or its path, signature or firmware does not hold.
        OutOfTimeError: all of that fits, and the certificates are of another time.
        UnsupportedError: a version or key is not known.
    """
    require_time(at)
    return _verified(evidence, certificates, nonce, root).claims_at(at)


@frozen
class _Verified:
    """A report that holds at some time, and the path of its signer. `firmware`: it was held against the certificate."""

    report: SpdmReport
    path: DevicePath
    model: str
    architecture: Architecture | None
    device: bytes | None
    firmware: bool

    def claims_at(self, at: datetime) -> NvidiaClaims:
        """Return what it says; OutOfTimeError unless the path is valid at that time."""
        shown, not_shown = _SHOWN, _NOT_SHOWN
        return NvidiaClaims(
            self.report,
            self.architecture,
            self.model,
            self.device,
            self.path.signer_at(at),
            (*shown, "firmware") if self.firmware else shown,
            not_shown if self.firmware else ("firmware", *not_shown),
        )


def _verified(
    evidence: bytes, certificates: Sequence[bytes], nonce: bytes, root: PinnedRoot | None
) -> _Verified:
    if len(nonce) != _NONCE_BYTES:
        raise ValueError(f"{len(nonce)} bytes are expected as nonce, not {_NONCE_BYTES}")
    report = parse_spdm_report(evidence)
    path = _path(certificates, root or nvidia_root())
    path.verify(report.signature, report.signed, "the device's report")
    if not hmac.compare_digest(report.nonce, nonce):
        raise EvidenceError("the nonce is not what the device's report has to answer")
    model = _model(path)
    architecture = next((one for one in Architecture if model.startswith(one.value)), None)
    checked = _check_firmware(path.chain[0], report, architecture)
    return _Verified(report, path, model, architecture, _device(path), checked)


def verify_nvidia_devices(
    evidence: bytes,
    certificates: Sequence[Sequence[bytes]],
    at: datetime,
    *,
    nonce: bytes,
    root: PinnedRoot | None = None,
) -> tuple[NvidiaClaims, ...]:
    """Verify what a hardware line carries for all devices of a host: for each, u16 length and report.

    `certificates`: a path for each, in the same order. The rest as `verify_nvidia`; EvidenceError also where two
    reports are of one device.
    """
    reports = split_reports(evidence)
    if len(reports) != len(certificates):
        raise EvidenceError(f"{len(reports)} devices report, and {len(certificates)} have certificates")
    require_time(at)
    verified = [
        _verified(report, path, nonce, root) for report, path in zip(reports, certificates, strict=True)
    ]
    leaves = {
        _key_digest(one.path.chain[0]) for one in verified
    }  # a certificate can be encoded in several ways
    devices = [one.device for one in verified if one.device is not None]
    if len(leaves) != len(verified) or len(set(devices)) != len(devices):
        raise EvidenceError("two of the reports are of one device")
    require_common_time([one.path for one in verified], at)
    return tuple([one.claims_at(at) for one in verified])


def split_reports(evidence: bytes) -> list[bytes]:
    """Take the reports of several devices apart. MalformedError unless there are 1 to 32, each behind its length."""
    reports = []
    at = 0
    while at < len(evidence):
        end = at + 2 + int.from_bytes(evidence[at : at + 2], "big")
        if end > len(evidence) or end == at + 2:
            raise MalformedError("the evidence of the devices ends within a report, or one is empty")
        reports.append(evidence[at + 2 : end])
        at = end
    if not 0 < len(reports) <= MAX_DEVICES:
        raise MalformedError(f"the evidence has reports of {len(reports)} devices")
    return reports


def _path(certificates: Sequence[bytes], root: PinnedRoot) -> DevicePath:
    given = list(certificates)
    if given and given[-1] == root.der:
        given.pop()
    if not 0 < len(given) < MAX_PATH:
        raise MalformedError(f"a device's path has {len(given)} certificates without its root")
    leaf, *others = [read_certificate(der) for der in given]
    return verify_device_path(leaf, others, root)


def _model(path: DevicePath) -> str:
    """Return the model in the name of the CA below the root, empty if it has another name."""
    names = path.chain[-2].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    found = _MODEL.fullmatch(str(names[0].value)) if len(names) == 1 else None
    return found[1] if found else ""


def _device(path: DevicePath) -> bytes | None:
    if len(path.chain) < _OWN_PATH:
        return None
    return _key_digest(path.chain[1])


def _key_digest(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).digest()


def _check_firmware(leaf: x509.Certificate, report: SpdmReport, architecture: Architecture | None) -> bool:
    """Hold the firmware's id in the report against those in the certificate; tell whether there are both.

    EvidenceError where they differ, or where Hopper, which always has both, lacks one.
    """
    certified = _certified(leaf)
    if report.fwid is not None and certified:
        if report.fwid not in certified or not any(report.fwid):
            raise EvidenceError(
                "the firmware that signed is not the one that the device's certificate is for"
            )
        return True
    if architecture is Architecture.HOPPER:
        raise EvidenceError("report or certificate of the device do not say which firmware holds its key")
    return False


def _certified(leaf: x509.Certificate) -> list[bytes]:
    """Return the firmware ids (SHA-384) in a certificate's DICE extension; MalformedError if that cannot be read."""
    try:
        extensions = list(leaf.extensions)
    except UNREADABLE as error:
        raise MalformedError(f"the certificate of the device cannot be read: {error}") from None
    found: list[bytes] = []
    for extension in extensions:
        if extension.oid.dotted_string in _TCB_INFO and isinstance(
            extension.value, x509.UnrecognizedExtension
        ):
            for tag, content in elements(extension.value.value):
                found += _fwids(content) if tag == _SEQUENCE else []
    return found


def _fwids(info: bytes) -> Iterator[bytes]:
    """Yield the ids among the fields of a TcbInfo: pairs of the hash's identifier and a digest, alone or in a list."""
    for tag, content in elements(info):
        for inner_tag, inner in elements(content) if tag == _FWIDS else ((tag, content),):
            parts = list(elements(inner)) if inner_tag == _SEQUENCE else []
            if (
                len(parts) == 2
                and parts[0] == _SHA384
                and parts[1][0] == _OCTETS
                and len(parts[1][1]) == FWID_BYTES
            ):
                yield parts[1][1]


@frozen
class NvidiaRules:
    """What is accepted. Whatever is None is not asked.

    `architectures`: at least one. `drivers`, `vbioses`: versions as the device writes them. `measurements`: index →
    values; without any, a warning says that the device's state was not judged. `devices`: as in the claims.
    `firmware`: the firmware's id has to be in report and certificate, as it always is on Hopper.
    """

    architectures: frozenset[Architecture]
    drivers: frozenset[str] | None = None
    vbioses: frozenset[str] | None = None
    measurements: Mapping[int, frozenset[bytes]] | None = None
    devices: frozenset[bytes] | None = None
    firmware: bool = False

    def __post_init__(self) -> None:
        if not self.architectures:
            raise PolicyError("the nvidia rules accept no architecture")


def appraise_nvidia(claims: NvidiaClaims, rules: NvidiaRules) -> tuple[Finding, ...]:
    """Return every rule that the claims break, with what follows from it; `shape.enforce` raises for them."""
    return tuple(
        Finding(f"nvidia.{rule}", severity, f"nvidia: {message}")
        for rule, severity, message in _broken(claims, rules)
    )


def _broken(claims: NvidiaClaims, rules: NvidiaRules) -> Iterator[tuple[str, Severity, str]]:
    report = claims.report
    if claims.architecture not in rules.architectures:
        yield (
            "architecture",
            Severity.FAIL,
            f"a device of the model {claims.model or 'that is not known'!r} is not accepted",
        )
    for rule, value, accepted in (
        ("driver", report.driver, rules.drivers),
        ("vbios", report.vbios, rules.vbioses),
    ):
        if accepted is not None and value not in accepted:
            yield rule, Severity.FAIL, f"the {rule} version {value!r} is not accepted"
    for index, values in sorted((rules.measurements or {}).items()):
        found = report.measurements.get(index)
        if found not in values:
            shown = "absent" if found is None else found.hex()
            yield "measurement", Severity.FAIL, f"measurement {index} is {shown}, which is not accepted"
    if not rules.measurements:
        yield "state", Severity.WARN, "the device is genuine, but no measurement of it was judged"
    if rules.devices is not None and claims.device not in rules.devices:
        named = "no device" if claims.device is None else claims.device.hex()
        yield "device", Severity.FAIL, f"the path names {named}, which is not accepted"
    if rules.firmware and "firmware" in claims.not_shown:
        yield (
            "firmware",
            Severity.FAIL,
            "report or certificate do not say which firmware holds the device's key",
        )
