# SPDX-License-Identifier: Apache-2.0
"""Appraisal of TDX claims: what a relying party accepts, and every rule that a quote breaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Final

from quotary_verifier.errors import PolicyError
from quotary_verifier.evidence.tee.shape import Finding, Severity, named
from quotary_verifier.evidence.tee.tdx import TdxClaims
from quotary_verifier.evidence.tee.tdx_tcb import UP_TO_DATE
from quotary_verifier.wire.frozen import frozen

NO_SERVICE_TD: Final = bytes(48)

_DEBUG: Final = 0xFF
_SEPT_VE_DISABLE: Final = 1 << 28
_MIGRATABLE: Final = 1 << 29
_REGISTERS: Final = frozenset(range(4))


@frozen
class TdxRules:
    """What is accepted. Whatever is None is not asked; the defaults of the rest refuse what is unsafe.

    A TD under debug is never accepted, and a quote whose TCB was not appraised never is either. `statuses`: Intel's
    words for a platform's TCB. `advisories`: those that may apply although the status says so, None for any.
    `evaluation`: the least evaluation data number of the collateral. `service_tds`: MRSERVICETD, zero for none.
    `rtmrs`: by number, 0 to 3. `devices`: platform ids (PPID); `platforms`: models (FMSPC).
    """

    statuses: frozenset[str] = frozenset({UP_TO_DATE})
    advisories: frozenset[str] | None = None
    evaluation: int = 0
    sept_ve_disable: bool = True
    migratable: bool = False
    service_tds: frozenset[bytes] = frozenset({NO_SERVICE_TD})
    mr_tds: frozenset[bytes] | None = None
    rtmrs: Mapping[int, frozenset[bytes]] = field(default_factory=dict)
    mr_seams: frozenset[bytes] | None = None
    mr_config_ids: frozenset[bytes] | None = None
    mr_owners: frozenset[bytes] | None = None
    mr_owner_configs: frozenset[bytes] | None = None
    devices: frozenset[bytes] | None = None
    platforms: frozenset[bytes] | None = None

    def __post_init__(self) -> None:
        if not self.rtmrs.keys() <= _REGISTERS:
            raise PolicyError("a td has the registers 0 to 3")

    @property
    def names_launch(self) -> bool:
        """Whether they say what was launched."""
        return named(self.mr_tds)


def appraise_tdx(claims: TdxClaims, rules: TdxRules) -> tuple[Finding, ...]:
    """Return every rule that the claims break, with what follows from it; `shape.enforce` raises for them."""
    found = [*_of_tcb(claims, rules), *_of_attributes(claims, rules), *_of_measurements(claims, rules)]
    return tuple(Finding(f"tdx.{rule}", severity, f"tdx: {message}") for rule, severity, message in found)


_Found = Iterator[tuple[str, Severity, str]]


def _of_tcb(claims: TdxClaims, rules: TdxRules) -> _Found:
    tcb = claims.tcb
    if tcb is None:
        missing = "dcap-qvl is not installed" if "qe-identity" in claims.shown else "there is no collateral"
        yield "tcb", Severity.COULD_NOT, f"tcb not appraised: {missing}"
        return
    if tcb.status not in rules.statuses:
        yield "tcb-status", Severity.FAIL, f"the status {tcb.status} of the tcb is not accepted"
    if rules.advisories is not None and not rules.advisories.issuperset(tcb.advisories):
        listed = ", ".join(sorted(set(tcb.advisories) - rules.advisories))
        yield "advisories", Severity.FAIL, f"advisories that are not accepted apply: {listed}"
    if tcb.evaluation < rules.evaluation:
        yield (
            "evaluation",
            Severity.FAIL,
            f"the evaluation data {tcb.evaluation} are older than {rules.evaluation}",
        )


def _of_attributes(claims: TdxClaims, rules: TdxRules) -> _Found:
    attributes = int.from_bytes(claims.quote.body.td_attributes, "little")
    if attributes & _DEBUG:
        yield "debug", Severity.FAIL, "the td may be debugged: the host can read and change its memory"
    if rules.sept_ve_disable and not attributes & _SEPT_VE_DISABLE:
        yield (
            "sept-ve-disable",
            Severity.FAIL,
            "the host can raise exceptions in the td where memory is missing",
        )
    if attributes & _MIGRATABLE and not rules.migratable:
        yield "migratable", Severity.FAIL, "the td may be moved to another platform"
    service = claims.quote.body.mr_service_td or NO_SERVICE_TD
    if service not in rules.service_tds:
        yield (
            "service-td",
            Severity.FAIL,
            f"the td is bound to service tds {service.hex()}, which are not accepted",
        )


def _of_measurements(claims: TdxClaims, rules: TdxRules) -> _Found:
    body = claims.quote.body
    asked = {
        "mrtd": (body.mr_td, rules.mr_tds),
        "mrseam": (body.mr_seam, rules.mr_seams),
        "mrconfigid": (body.mr_config_id, rules.mr_config_ids),
        "mrowner": (body.mr_owner, rules.mr_owners),
        "mrownerconfig": (body.mr_owner_config, rules.mr_owner_configs),
        "device": (claims.device, rules.devices),
        "platform": (claims.pck.fmspc, rules.platforms),
        **{f"rtmr{number}": (body.rtmrs[number], accepted) for number, accepted in rules.rtmrs.items()},
    }
    for rule, (value, accepted) in asked.items():
        if accepted is not None and value not in accepted:
            yield rule, Severity.FAIL, f"{rule} {value.hex()} is not accepted"
