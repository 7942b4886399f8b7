# SPDX-License-Identifier: Apache-2.0
"""The SEV-SNP attestation report (AMD 56860, "SEV-SNP Firmware ABI", ATTESTATION_REPORT), little-endian.

Only bytes 0 to 0x29f are signed. Whatever is reserved, inside or behind them, has to be zero, and both halves of the
signature have one form: so every report has exactly one encoding.
"""

from __future__ import annotations

import enum
from typing import Final

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.amd_certs import Generation, SigningKey
from quotary_verifier.wire.frozen import frozen

REPORT_BYTES: Final = 0x4A0
SIGNED_BYTES: Final = 0x2A0
KNOWN_VERSIONS: Final = frozenset({2, 3, 4, 5})

_ECDSA_P384_SHA384: Final = 1
_MAX_VMPL: Final = 3
_HOST_VMPL: Final = 0xFFFFFFFF
_POLICY_ONE: Final = 1 << 17
_KNOWN_POLICY: Final = (1 << 26) - 1
_KNOWN_FLAGS: Final = 0x1F
_NO_KEY: Final = 7
_SCALAR: Final = 48
_SCALAR_FIELD: Final = 72
_MITIGATIONS: Final = 5
_CPUID: Final = 3

_RESERVED: Final = ((0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, 0x2A0))
_RESERVED_BEFORE_3: Final = (0x188, 0x18B)
_RESERVED_BEFORE_5: Final = (0x1F8, 0x208)
_TAIL: Final = (SIGNED_BYTES + 2 * _SCALAR_FIELD, REPORT_BYTES)


class Policy(enum.IntFlag):
    """The bits of the guest's policy (ABI, "Guest Policy"); the rest of its lower half is the least ABI version."""

    SMT = 1 << 16
    MIGRATION_AGENT = 1 << 18
    DEBUG = 1 << 19
    SINGLE_SOCKET = 1 << 20
    CXL = 1 << 21
    AES_256_XTS = 1 << 22
    RAPL_DISABLED = 1 << 23
    CIPHERTEXT_HIDING = 1 << 24
    PAGE_SWAP_DISABLED = 1 << 25


class PlatformInfo(enum.IntFlag, boundary=enum.KEEP):
    """What is known of the platform's state; real reports have bits beyond, which are kept."""

    SMT = 1 << 0
    TSME = 1 << 1
    ECC = 1 << 2
    RAPL_DISABLED = 1 << 3
    CIPHERTEXT_HIDING = 1 << 4
    ALIAS_CHECK_COMPLETE = 1 << 5
    TIO = 1 << 7


@frozen
class Tcb:
    """Security version numbers of a platform's firmware, by component; `fmc` exists from Turin on.

    They are compared component by component: none is more significant than another.
    """

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    def components(self) -> dict[str, int]:
        """The components by name; those that the generation does not have are left out."""
        found = {"bootloader": self.bootloader, "tee": self.tee, "snp": self.snp, "microcode": self.microcode}
        return found if self.fmc is None else {"fmc": self.fmc, **found}

    def below(self, least: Tcb) -> tuple[str, ...]:
        """Names of the components that are lower than in `least`; a component that is missing here is lower."""
        mine = self.components()
        return tuple(name for name, value in least.components().items() if mine.get(name, -1) < value)


@frozen
class SnpReport:
    """A parsed report; nothing in it is verified. TCB versions are raw, as their layout depends on the generation.

    `cpuid`: family, model, stepping, or None before version 3. `mitigations`: of launch and now, or None before
    version 5. `r`, `s`: the signature.
    """

    version: int
    guest_svn: int
    abi: tuple[int, int]
    policy: Policy
    family_id: bytes
    image_id: bytes
    vmpl: int
    platform_info: PlatformInfo
    author_key: bool
    chip_key_masked: bool
    signing_key: SigningKey
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    current_tcb: bytes
    reported_tcb: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    current_version: tuple[int, int, int]
    committed_version: tuple[int, int, int]
    mitigations: tuple[int, int] | None
    r: int
    s: int
    signed: bytes

    def generation(self) -> Generation | None:
        """The generation by CPUID, None before version 3. UnsupportedError if the processor is not known."""
        if self.cpuid is None:
            return None
        family, model, _ = self.cpuid
        for generation, known, models in _PROCESSORS:
            if family == known and model in models:
                return generation
        raise UnsupportedError(f"a processor of family 0x{family:x}, model 0x{model:x} is not known")


_PROCESSORS: Final = (
    (Generation.MILAN, 0x19, range(0x10)),
    (Generation.GENOA, 0x19, range(0x10, 0x20)),
    (Generation.GENOA, 0x19, range(0xA0, 0xB0)),
    (Generation.TURIN, 0x1A, range(0x12)),
)


def parse_snp_report(data: bytes) -> SnpReport:
    """Read a report of exactly 1184 bytes.

    Raises:
        MalformedError: it has another length, or something reserved in it is not zero.
        EvidenceError: it is of the host's own making, or not signed.
        UnsupportedError: its version, signature algorithm or policy is not known.
    """
    if len(data) != REPORT_BYTES:
        raise MalformedError(f"an sev-snp report has {REPORT_BYTES} bytes, not {len(data)}")
    version = _number(data, 0, 4)
    if version not in KNOWN_VERSIONS:
        raise UnsupportedError(f"version {version} of the sev-snp report is not known")
    if _number(data, 0x34, 4) != _ECDSA_P384_SHA384:
        raise UnsupportedError(
            f"signature algorithm {_number(data, 0x34, 4)} of the sev-snp report is not known"
        )
    _check_reserved(data, version)
    author_key, masked, signing_key = _flags(_number(data, 0x48, 4))
    policy = _number(data, 0x08, 8)
    return SnpReport(
        version=version,
        guest_svn=_number(data, 0x04, 4),
        abi=(policy >> 8 & 0xFF, policy & 0xFF),
        policy=_policy(policy),
        family_id=data[0x10:0x20],
        image_id=data[0x20:0x30],
        vmpl=_vmpl(_number(data, 0x30, 4)),
        platform_info=PlatformInfo(_number(data, 0x40, 8)),
        author_key=author_key,
        chip_key_masked=masked,
        signing_key=signing_key,
        report_data=data[0x50:0x90],
        measurement=data[0x90:0xC0],
        host_data=data[0xC0:0xE0],
        id_key_digest=data[0xE0:0x110],
        author_key_digest=data[0x110:0x140],
        report_id=data[0x140:0x160],
        report_id_ma=data[0x160:0x180],
        current_tcb=data[0x38:0x40],
        reported_tcb=data[0x180:0x188],
        committed_tcb=data[0x1E0:0x1E8],
        launch_tcb=data[0x1F0:0x1F8],
        cpuid=(data[0x188], data[0x189], data[0x18A]) if version >= _CPUID else None,
        chip_id=data[0x1A0:0x1E0],
        current_version=(data[0x1EA], data[0x1E9], data[0x1E8]),
        committed_version=(data[0x1EE], data[0x1ED], data[0x1EC]),
        mitigations=((_number(data, 0x1F8, 8), _number(data, 0x200, 8)) if version >= _MITIGATIONS else None),
        r=_scalar(data, SIGNED_BYTES),
        s=_scalar(data, SIGNED_BYTES + _SCALAR_FIELD),
        signed=data[:SIGNED_BYTES],
    )


def parse_tcb(raw: bytes, generation: Generation) -> Tcb:
    """Read a TCB_VERSION of 8 bytes in the layout of its generation. MalformedError if a reserved byte is not zero."""
    if generation is Generation.TURIN:
        fmc, bootloader, tee, snp, *reserved, microcode = raw
        tcb = Tcb(bootloader, tee, snp, microcode, fmc)
    else:
        bootloader, tee, *reserved, snp, microcode = raw
        tcb = Tcb(bootloader, tee, snp, microcode)
    if any(reserved):
        raise MalformedError(f"a tcb version of {generation.value} has a reserved byte that is not zero")
    return tcb


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _check_reserved(data: bytes, version: int) -> None:
    reserved = [*_RESERVED, _TAIL]
    if version < _CPUID:
        reserved.append(_RESERVED_BEFORE_3)
    if version < _MITIGATIONS:
        reserved.append(_RESERVED_BEFORE_5)
    for start, end in reserved:
        if any(data[start:end]):
            raise MalformedError(f"bytes 0x{start:x} to 0x{end - 1:x} of the sev-snp report are not zero")


def _policy(value: int) -> Policy:
    if not value & _POLICY_ONE:
        raise MalformedError("bit 17 of the sev-snp guest policy is not set")
    if value & ~_KNOWN_POLICY:
        raise UnsupportedError(f"the sev-snp guest policy 0x{value:x} has bits that are not known")
    return Policy(value & ~_POLICY_ONE & ~0xFFFF)


def _flags(value: int) -> tuple[bool, bool, SigningKey]:
    if value & ~_KNOWN_FLAGS:
        raise MalformedError("the sev-snp report has flags that are not known")
    key = value >> 2
    if key == _NO_KEY:
        raise EvidenceError("the sev-snp report is not signed")
    if key not in (0, 1):
        raise MalformedError(f"the sev-snp report has signing key {key}, which is reserved")
    return bool(value & 1), bool(value & 2), SigningKey.VLEK if key else SigningKey.VCEK


def _vmpl(value: int) -> int:
    if value == _HOST_VMPL:
        raise EvidenceError("the sev-snp report was requested by the host, not by the guest")
    if value > _MAX_VMPL:
        raise MalformedError(f"the sev-snp report has vmpl {value}")
    return value


def _scalar(data: bytes, at: int) -> int:
    if any(data[at + _SCALAR : at + _SCALAR_FIELD]):
        raise MalformedError("a half of the sev-snp signature has more than 48 bytes")
    return _number(data, at, _SCALAR)
