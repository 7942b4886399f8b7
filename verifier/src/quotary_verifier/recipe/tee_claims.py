# SPDX-License-Identifier: Apache-2.0
"""What TEE lines that hold say, as claims of a verdict. Loaded only where there are any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from quotary_verifier.evidence.tee.azure import AZURE_SETTINGS, AzureClaims
from quotary_verifier.evidence.tee.cca import DEBUG_STATES, CcaClaims
from quotary_verifier.evidence.tee.nitro import KIND_TPM, NitroClaims
from quotary_verifier.evidence.tee.nvidia import NvidiaClaims
from quotary_verifier.evidence.tee.shape import TeeClaims
from quotary_verifier.evidence.tee.snp import SnpClaims
from quotary_verifier.evidence.tee.snp_report import Policy as GuestPolicy
from quotary_verifier.evidence.tee.snp_report import Tcb
from quotary_verifier.evidence.tee.tdx import QE_IDENTITY, TdxClaims
from quotary_verifier.recipe.tee import JudgedTee, said_of
from quotary_verifier.recipe.verdict import Claim, ClaimSource

_HARDWARE, _ENDORSED, _HOST = ClaimSource.HARDWARE, ClaimSource.ENDORSED, ClaimSource.HOST
_DEBUG = 0xFF

Said = Iterator[tuple[str, str | int | bool]]


def tee_claims(judged: Iterable[JudgedTee]) -> Iterator[Claim]:
    """Yield what each TEE on the note contributes, then all that each line says; a device with each its number."""
    lines = tuple(judged)
    for line in lines:
        if line.claims:
            yield Claim("root", f"{line.name}: {_contribution(line)}", _source(line.claims[0]))
    for line in lines:
        said = "accepted by the policy's rules" if said_of(line) == "accepted" else said_of(line)
        yield Claim(f"tee.{line.name}", said, _source(line.claims[0]) if line.claims else _HOST)
        for number, device in enumerate(line.claims):
            yield from device_claims(
                f"tee.{line.name}." + (f"{number}." if len(line.claims) > 1 else ""),
                device,
                any_guest=line.any_guest,
            )


def _source(claims: TeeClaims) -> ClaimSource:
    """Whose word evidence is: the hardware's, unless nothing shows that a quote's enclave is one of its maker's."""
    hardware = claims.hardware if isinstance(claims, AzureClaims) else claims
    unknown = isinstance(hardware, TdxClaims) and QE_IDENTITY in hardware.not_shown
    return _HOST if unknown else _HARDWARE


def _contribution(line: JudgedTee) -> str:
    first = line.claims[0]
    if isinstance(first, AzureClaims):
        if line.any_guest:
            return (
                "a report that names the attestation key, and that any guest of such hardware could have made"
            )
        return "the attestation key, which its hardware endorses as that of the confidential vm's vtpm"
    if isinstance(first, NvidiaClaims):
        count = len(line.claims)
        return f"this commit was answered by {count} genuine device{'' if count == 1 else 's'}"
    if isinstance(first, NitroClaims) and first.kind == KIND_TPM:
        return "this commit, and what an EC2 instance booted, whose memory its host can read"
    if isinstance(first, TdxClaims) and _source(first) is _HOST:
        return "a quote that any enclave of such a platform could have made, as there is no collateral"
    if isinstance(first, CcaClaims):
        return "this commit, and the start of the realm that asked for it"
    return "this commit, and the launch of the confidential guest that asked for it"


def device_claims(prefix: str, claims: TeeClaims, *, any_guest: bool = False) -> Iterator[Claim]:
    """Yield all that one device's evidence says; `prefix` goes before each name.

    `any_guest`: whatever ran wrote the settings of an Azure VM, so that they are its word.
    """
    source = _source(claims)
    for name, value in _said(claims):
        yield Claim(prefix + name, value, _HOST if any_guest and name in AZURE_SETTINGS else source)
    for name, measured in claims.measurements.items():
        if any(measured):
            yield Claim(prefix + name, measured.hex(), source)
    yield Claim(prefix + "root", claims.signer.root, _ENDORSED)
    yield Claim(prefix + "revocation", str(claims.signer.revocation.value), _ENDORSED)
    if claims.not_shown:
        yield Claim(prefix + "not_shown", ", ".join(claims.not_shown), source)


def _said(claims: TeeClaims) -> Said:
    """Yield what claims of every kind say, by name, in words where they are for people."""
    if isinstance(claims, SnpClaims):
        yield from _snp(claims)
    elif isinstance(claims, TdxClaims):
        yield from _tdx(claims)
    elif isinstance(claims, NitroClaims):
        yield "kind", claims.kind
        yield "module", claims.document.module_id
        yield "debug", claims.debug
        yield "signed_time_ms", claims.document.timestamp
    elif isinstance(claims, AzureClaims):
        yield from _azure(claims)
    elif isinstance(claims, NvidiaClaims):
        yield "model", claims.model or "unknown"
        yield "driver", claims.report.driver
        yield "vbios", claims.report.vbios
    elif isinstance(claims, CcaClaims):
        token = claims.token
        yield "profile", token.profile
        yield "lifecycle", f"0x{token.lifecycle:x}, {token.state.name.lower().replace('_', ' ')}"
        yield "debug", token.state in DEBUG_STATES
        yield "hash", token.hash_name
        yield "personalization", token.personalization.hex()
        yield "implementation", token.implementation.hex()
        yield "components", ", ".join(f"{one.name} {one.measurement.hex()}" for one in token.components)
    if claims.device is not None and not isinstance(claims, NitroClaims):
        yield "device", claims.device.hex()


def _azure(claims: AzureClaims) -> Said:
    """Yield what the paravisor says of the vm, and what the hardware's report says of the paravisor."""
    yield "hardware", claims.hardware.kind
    for name, setting in AZURE_SETTINGS.items():
        value = claims.report.settings.get(setting)
        if value is not None:
            yield name, value
    yield from _snp(claims.hardware) if isinstance(claims.hardware, SnpClaims) else _tdx(claims.hardware)


def _snp(claims: SnpClaims) -> Said:
    report = claims.report
    yield "generation", claims.generation.value
    yield "signing_key", report.signing_key.value
    yield "debug", bool(report.policy & GuestPolicy.DEBUG)
    yield "vmpl", report.vmpl
    for name, tcb in (
        ("reported", claims.reported),
        ("committed", claims.committed),
        ("launch", claims.launch),
    ):
        yield f"{name}_tcb", _tcb(tcb)
    if claims.csp is not None:
        yield "provider", claims.csp


def _tdx(claims: TdxClaims) -> Said:
    tcb = claims.tcb
    yield "tcb", "not appraised" if tcb is None else tcb.status
    if tcb is not None:
        yield "tcb_date", tcb.date
        if tcb.advisories:
            yield "advisories", ", ".join(tcb.advisories)
    yield "debug", bool(int.from_bytes(claims.quote.body.td_attributes, "little") & _DEBUG)
    yield "platform", claims.pck.fmspc.hex()


def _tcb(tcb: Tcb) -> str:
    components: Mapping[str, int] = tcb.components()
    return " ".join(f"{name}={number}" for name, number in components.items())
