# SPDX-License-Identifier: Apache-2.0
"""What a verified attestation says, each claim with its source (design section 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from quotary_verifier.recipe.commit import AkFacts, CommitFacts
from quotary_verifier.recipe.leaf import ModelFinding
from quotary_verifier.recipe.outputs import Match
from quotary_verifier.recipe.platform import Host, PlatformFacts
from quotary_verifier.recipe.verdict import Claim, ClaimSource
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.records import Output, Source

if TYPE_CHECKING:
    from quotary_verifier.policy.findings import Appraisal
    from quotary_verifier.recipe.alone import TeeFacts
    from quotary_verifier.recipe.boot_logs import BootLogs
    from quotary_verifier.recipe.tee import JudgedTee

_HARDWARE, _MEASURED = ClaimSource.HARDWARE, ClaimSource.MEASURED
_ENDORSED, _HOST = ClaimSource.ENDORSED, ClaimSource.HOST


def output_claims(
    record: Output, match: Match, model: ModelFinding | None, commit: CommitFacts
) -> tuple[Claim, ...]:
    """Return every claim about one output; call it only where all steps passed."""
    return (*commit_claims(commit), *_model(model), *_record(record, match))


def commit_claims(commit: CommitFacts) -> Iterator[Claim]:
    """Yield every claim about a host and its commit; call it only where all steps passed."""
    bound = commit.bound
    if isinstance(bound, AkFacts):
        yield from platform_claims(bound.host, bound.platform, commit.tees)
    else:
        yield from _tee_host(bound)
    yield Claim("commit", commit.digest.hex(), _HARDWARE)
    for name in commit.witnessed.names:
        yield Claim("witness", name, _ENDORSED)
    if isinstance(bound, AkFacts):
        yield from boot_claims(bound.platform, bound.boot, bound.appraisal)
    yield from root_claims(commit.tees, beside_tpm=isinstance(bound, AkFacts))


def _tee_host(bound: TeeFacts) -> Iterator[Claim]:
    """Yield what is known of a host without a TPM besides what its TEEs say: its own word, and whether it is pinned."""
    yield Claim("host", bound.host.genesis.host, _HOST)
    yield Claim("origin", bound.host.origin, _HOST)
    yield Claim("origin_pinned", bound.pinned, _HOST)
    yield Claim("tpm_kind", "none: the genesis record names no TPM", _HOST)


def platform_claims(host: Host, platform: PlatformFacts, tees: tuple[JudgedTee, ...] = ()) -> Iterator[Claim]:
    """Yield the claims about the host, its TPM and its platform; call it only where all steps passed."""
    endorsement = platform.endorsement
    certificate = endorsement.certificate
    yield Claim("host", host.genesis.host, _HOST if certificate is None else _ENDORSED)
    yield Claim("origin", host.origin, _ENDORSED if endorsement.binds_origin else _HOST)
    yield Claim("origin_pinned", endorsement.pinned, _HOST)
    if certificate is not None:
        yield Claim("authority", endorsement.authority, _ENDORSED)
        yield Claim(
            "revocation", str(endorsement.revocation.value if endorsement.revocation else None), _ENDORSED
        )
        yield Claim("tpm_manufacturer", certificate.tpm_manufacturer, _ENDORSED)
        yield Claim("tpm_model", certificate.tpm_model, _ENDORSED)
    yield _kind(platform, tees)
    yield Claim("ak_algorithm", platform.key.profile.algorithm, _HARDWARE)
    clock = platform.attest.clock
    yield Claim("boot", f"reset {clock.reset_count}, restart {clock.restart_count}", _HARDWARE)
    yield Claim("tpm_clock_ms", clock.clock, _HARDWARE)
    yield Claim("tpm_clock_safe", bool(clock.safe), _HARDWARE)
    yield Claim("firmware_version", f"{platform.attest.firmware_version:016x}", _HARDWARE)
    for pcr, value in sorted(platform.pcrs.items()):
        if any(value):
            yield Claim(f"pcr_{pcr}", value.hex(), _HARDWARE)
    # The PCR is quoted; that these are epochs is what the writer of the log says.
    yield Claim("workload_epoch", platform.log.epoch, _MEASURED if platform.pinned else _HOST)


def _kind(platform: PlatformFacts, tees: tuple[JudgedTee, ...]) -> Claim:
    if platform.software:
        return Claim("tpm_kind", f"software TPM: {platform.software}", _HOST)
    if platform.endorsement.certificate is not None:
        return Claim("tpm_kind", "a TPM, as the certificate says", _ENDORSED)
    if any(one.endorses_ak and one.appraised and not one.any_guest for one in tees):
        return Claim("tpm_kind", "the vTPM of a confidential VM, whose hardware endorses its key", _ENDORSED)
    return Claim("tpm_kind", "unknown: the origin is pinned and nothing endorses its TPM", _HOST)


def root_claims(tees: tuple[JudgedTee, ...], *, beside_tpm: bool = True) -> Iterator[Claim]:
    """Yield what TEEs showed, and what the TPM beside them does; their code is loaded only where there are any."""
    if tees:
        from quotary_verifier.recipe.tee_claims import tee_claims

        if beside_tpm:
            yield Claim("root", "tpm2-quote: this commit, the PCRs, the workload log and the boot", _HARDWARE)
        yield from tee_claims(tees)


def boot_claims(
    platform: PlatformFacts, boot: BootLogs | None, appraisal: Appraisal | None
) -> Iterator[Claim]:
    """Yield what boot logs and the rules on them showed; call it only where all steps passed."""
    source = _MEASURED if platform.pinned else _HOST
    if appraisal is not None and appraisal.reference is not None:
        yield Claim("reference_set", appraisal.reference, _MEASURED if platform.pinned else _HARDWARE)
    if boot is not None:
        # Digests are the PCRs'; what they are digests of is what firmware and kernel say.
        for name, said in boot.findings:
            yield Claim(f"boot_log.{name}", said, source)


def _model(finding: ModelFinding | None) -> Iterator[Claim]:
    if finding is None:
        return
    yield Claim("model", finding.claim.name, finding.source)
    yield Claim("model_weights", finding.claim.weights.hex(), finding.source)
    yield Claim("model_link", finding.claim.link.name.lower(), _HOST)
    if finding.opaque:
        yield Claim("model_event", "opaque", finding.source)


def _record(record: Output, match: Match) -> Iterator[Claim]:
    yield Claim("output_id", format_output_id(record.output_id), _HOST)
    matched = f"{match.key}, without its in-band attestation" if match.without_span else match.key
    yield Claim("matched", matched, _HARDWARE)
    yield Claim("state", record.state.name.lower().replace("_", "-"), _HOST)
    yield Claim("source", _SOURCES[record.source], _HOST)
    yield Claim("time_ms", record.time, _HOST)
    for key, value in record.context.items():
        yield Claim(f"context.{key}", value.hex() if isinstance(value, bytes) else value, _HOST)


_SOURCES = {
    Source.RELAYED: "relayed by the agent's proxy",
    Source.MIDDLEWARE: "reported by middleware inside the engine",
    Source.SUBMITTED: "submitted by a local caller",
}
