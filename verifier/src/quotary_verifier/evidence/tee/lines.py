# SPDX-License-Identifier: Apache-2.0
"""Evidence of a note's TEE lines: which identifier is verified how, what it binds, and by what it is endorsed.

This is the one place that knows all kinds that a line can have. It takes a line's evidence and support apart and hands
them to the kind's own verifier; nothing is decided here that a kind decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.amd_certs import AmdRoots
from quotary_verifier.evidence.tee.cca import PlatformKey, verify_cca
from quotary_verifier.evidence.tee.device_pki import PinnedRoot
from quotary_verifier.evidence.tee.intel_pki import IntelRoot
from quotary_verifier.evidence.tee.nitro import verify_nitro
from quotary_verifier.evidence.tee.nvidia import verify_nvidia_devices
from quotary_verifier.evidence.tee.shape import TeeClaims, report_data
from quotary_verifier.evidence.tee.snp import SnpEndorsements, verify_snp
from quotary_verifier.evidence.tee.tdx import verify_tdx
from quotary_verifier.evidence.tee.tdx_collateral import TdxCollateral
from quotary_verifier.tlog.hardware import (
    IDENTIFIER_CCA,
    IDENTIFIER_NITRO,
    IDENTIFIER_NVIDIA,
    IDENTIFIER_SEV_SNP,
    IDENTIFIER_TDX,
)
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tee_support import TeeSupport


@frozen
class Bound:
    """What a commit's evidence binds: D, and SHA-256 of the genesis record, 32 bytes each."""

    digest: bytes
    genesis_sha256: bytes


@frozen
class TeeRoots:
    """Roots in place of the makers' own, which are pinned and used where this says None.

    `cca`: the keys of Arm CCA platforms, of which no maker publishes a root; without any, nothing is shown of them.
    """

    amd: AmdRoots | None = None
    intel: IntelRoot | None = None
    nitro: PinnedRoot | None = None
    nvidia: PinnedRoot | None = None
    cca: tuple[PlatformKey, ...] = ()


@frozen
class _Line:
    evidence: bytes
    endorsements: Mapping[str, tuple[bytes, ...]]
    bound: Bound
    at: datetime
    roots: TeeRoots


def verify_tee_line(
    evidence: bytes, support: TeeSupport, bound: Bound, at: datetime, roots: TeeRoots | None = None
) -> tuple[TeeClaims, ...]:
    """Verify the evidence of one line at a time: one claims object, or one for each NVIDIA device in order.

    Raises:
        MalformedError: the evidence, or an endorsement, is not of its form, or an endorsement is missing or too much.
        EvidenceError: the evidence does not hold, or binds something else.
        UnsupportedError: the identifier, or something inside, is not known.
    """
    verify = _KINDS.get(support.identifier)
    if verify is None:
        raise UnsupportedError(f"evidence of {support.identifier!r} is not known")
    return verify(_Line(evidence, support.endorsements, bound, at, roots or TeeRoots()))


def snp_support(endorsements: SnpEndorsements) -> TeeSupport:
    """The support of an SEV-SNP line."""
    crls = {"crls": endorsements.crls} if endorsements.crls else {}
    parts = {"leaf": (endorsements.leaf,), "issuer": (endorsements.issuer,), **crls}
    return TeeSupport(IDENTIFIER_SEV_SNP, parts)


def tdx_support(collateral: TdxCollateral | None) -> TeeSupport:
    """The support of a TDX line."""
    parts = {} if collateral is None else {name: (getattr(collateral, name),) for name in _COLLATERAL}
    return TeeSupport(IDENTIFIER_TDX, parts)


def _snp(line: _Line) -> tuple[TeeClaims, ...]:
    _require(line, {"leaf", "issuer"}, {"crls"})
    endorsements = SnpEndorsements(
        _one(line, "leaf"), _one(line, "issuer"), line.endorsements.get("crls", ())
    )
    bound = report_data(line.bound.digest, line.bound.genesis_sha256)
    return (verify_snp(line.evidence, endorsements, line.at, report_data=bound, roots=line.roots.amd),)


def _tdx(line: _Line) -> tuple[TeeClaims, ...]:
    collateral = None
    if line.endorsements:
        _require(line, _COLLATERAL, set())
        collateral = TdxCollateral(**{name: _one(line, name) for name in _COLLATERAL})
    bound = report_data(line.bound.digest, line.bound.genesis_sha256)
    return (verify_tdx(line.evidence, collateral, line.at, report_data=bound, root=line.roots.intel),)


def _nitro(line: _Line) -> tuple[TeeClaims, ...]:
    _require(line, set(), set())
    digest, genesis = line.bound.digest, line.bound.genesis_sha256
    return (verify_nitro(line.evidence, line.at, user_data=digest, nonce=genesis, root=line.roots.nitro),)


def _nvidia(line: _Line) -> tuple[TeeClaims, ...]:
    names = [f"device-{number}" for number in range(len(line.endorsements))]
    _require(line, set(names), set())
    paths = [line.endorsements[name] for name in names]
    return verify_nvidia_devices(
        line.evidence, paths, line.at, nonce=line.bound.digest, root=line.roots.nvidia
    )


def _cca(line: _Line) -> tuple[TeeClaims, ...]:
    _require(line, set(), set())
    bound = report_data(line.bound.digest, line.bound.genesis_sha256)
    return (verify_cca(line.evidence, line.roots.cca, challenge=bound),)


def _require(line: _Line, needed: set[str] | frozenset[str], allowed: set[str]) -> None:
    given = line.endorsements.keys()
    if not needed <= given <= needed | allowed:
        differing = sorted((needed - given) | (given - needed - allowed))
        raise MalformedError(f"endorsements of the tee line are missing or too many: {', '.join(differing)}")


def _one(line: _Line, name: str) -> bytes:
    parts = line.endorsements[name]
    if len(parts) != 1:
        raise MalformedError(f"the tee line has {len(parts)} endorsements {name!r}, one is expected")
    return parts[0]


_COLLATERAL: Final = frozenset(TdxCollateral.__dataclass_fields__)
_KINDS: Final[Mapping[str, Callable[[_Line], tuple[TeeClaims, ...]]]] = {
    IDENTIFIER_SEV_SNP: _snp,
    IDENTIFIER_TDX: _tdx,
    IDENTIFIER_NITRO: _nitro,
    IDENTIFIER_NVIDIA: _nvidia,
    IDENTIFIER_CCA: _cca,
}
