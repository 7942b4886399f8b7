# SPDX-License-Identifier: Apache-2.0
"""The steps that judge a commit: its genesis record, its note, and what hardware says of it.

An AK binds it, and TEEs beside it, or TEEs alone where the genesis record names no TPM. They need nothing of a single
output, so their result can serve every output of the same commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.appraisal import judge_platform_rules
from quotary_verifier.recipe.given_logs import GivenLogs
from quotary_verifier.recipe.leaf import LoggedModels, ModelSource
from quotary_verifier.recipe.platform import (
    Host,
    PlatformFacts,
    ReadQuote,
    TeeHost,
    judge_platform,
    read_origin,
    read_quote,
)
from quotary_verifier.recipe.run import Run
from quotary_verifier.recipe.steps import Step
from quotary_verifier.recipe.witness import Witnessed, verify_own_line, witnessed
from quotary_verifier.tlog.checkpoint import Checkpoint, parse_checkpoint
from quotary_verifier.tlog.hardware import (
    IDENTIFIER_TPM2_QUOTE,
    TEE_IDENTIFIERS,
    HardwareLine,
    hardware_key_id,
    hardware_lines_by_id,
    tee_key_ids,
)
from quotary_verifier.tlog.note import Note, parse_note
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.bindings import chain_extend, commit_digest
from quotary_verifier.wire.frozen import frozen

if TYPE_CHECKING:
    from quotary_verifier.policy.findings import Appraisal
    from quotary_verifier.recipe.alone import TeeFacts
    from quotary_verifier.recipe.boot_logs import BootLogs
    from quotary_verifier.recipe.tee import EndorsedAk, JudgedTee, TeeLine

_UNMATCHED = "there must be one support for each known hardware line, and no other"


@frozen
class AkFacts:
    """What a commit's quote establishes.

    `boot` are the boot logs that replayed, if any came, `appraisal` is what came of the policy's rules on the platform,
    if it has any.
    """

    host: Host
    platform: PlatformFacts
    boot: BootLogs | None
    appraisal: Appraisal | None

    @property
    def models(self) -> ModelSource:
        """What is shown of models."""
        return LoggedModels(self.platform.log)


@frozen
class CommitFacts:
    """What the commit's steps established; meaningful only together with the checks that led here.

    `first` is the index from which the commit claims, `digest` is D, `bound` what the AK or, without a TPM, TEEs alone
    establish, `tees` what the note's TEE lines show, `tolerances` what was passed over because the policy says so.
    """

    checkpoint: Checkpoint
    first: int
    digest: bytes
    witnessed: Witnessed
    bound: AkFacts | TeeFacts
    tees: tuple[JudgedTee, ...] = ()
    tolerances: tuple[str, ...] = ()


@frozen
class ByAk:
    """A commit that the AK of the genesis record binds: its quote, and the TEE lines beside it; nothing is verified."""

    host: Host
    quote: ReadQuote
    tees: tuple[TeeLine, ...]


@frozen
class ByTees:
    """A commit of an origin without a TPM: the lines that bind it; nothing is verified.

    `pinned` tells whether the policy pins the origin.
    """

    host: TeeHost
    pinned: bool
    tees: tuple[TeeLine, ...]


@frozen
class OpenCommit:
    """A commit that was taken apart: what its leaves can be judged against, before its evidence is."""

    note: Note
    checkpoint: Checkpoint
    first: int
    bound: ByAk | ByTees


@frozen
class JudgedCommit:
    """What became of a commit: `facts` where every step could be done, and the parts that leaves depend on."""

    models: ModelSource | None
    witnessed: Witnessed | None
    facts: CommitFacts | None


def open_commit(run: Run, policy: Policy, attestation: Attestation) -> OpenCommit | None:
    """Take apart the commit that an attestation carries; None where a step could not be done.

    Raises:
        Stopped: a step failed; `run` says which and why.
    """
    host = run.do(Step.GENESIS, read_origin, attestation.genesis)
    if host is None:
        return None
    for key in host.genesis.not_understood:
        run.not_understood.append(f"genesis record: key {key}")
    known = _known(host)
    note = run.do(Step.NOTE, _open_note, run, policy, host, known, attestation.note)
    if note is None:
        return None
    for support in attestation.tees:
        if support.identifier not in TEE_IDENTIFIERS:
            run.not_understood.append(f"note: a support of {support.identifier!r}")
    if isinstance(host, TeeHost):
        return _open_alone(run, policy, host, known, note, attestation)
    checkpoint = run.do(Step.ORIGIN, _checkpoint, host, note)
    if checkpoint is None:
        return None
    found = run.do(Step.QUOTE_STRUCTURE, _find_quote, host, known, note, attestation)
    return None if found is None else OpenCommit(note, checkpoint, *found)


def _known(host: Host | TeeHost) -> dict[bytes, str]:
    """The key ids of the hardware lines that every note of the origin may have, and their identifiers."""
    if isinstance(host, TeeHost):
        return tee_key_ids(host.origin)
    return {hardware_key_id(host.origin, IDENTIFIER_TPM2_QUOTE, host.spki): IDENTIFIER_TPM2_QUOTE}


def _open_alone(
    run: Run, policy: Policy, host: TeeHost, known: dict[bytes, str], note: Note, attestation: Attestation
) -> OpenCommit | None:
    from quotary_verifier.recipe.alone import require_trusted

    checkpoint = run.begin(Step.ORIGIN, _checkpoint, host, note)
    pinned = run.do(Step.ORIGIN, require_trusted, policy, host)
    lines = run.begin(Step.TEE, _find_alone, host, known, note, attestation)
    if checkpoint is None or pinned is None or lines is None:
        return None
    return OpenCommit(note, checkpoint, lines[0].line.first, ByTees(host, pinned, lines))


def judge_commit(
    run: Run, policy: Policy, attestation: Attestation, opened: OpenCommit, at: int, logs: GivenLogs
) -> JudgedCommit:
    """Do the commit's further steps; `logs` are those that the attestation may name by digest.

    Raises:
        Stopped: a step failed; `run` says which and why.
    """
    bound, note, checkpoint = opened.bound, opened.note, opened.checkpoint
    host, tolerated = bound.host, len(run.tolerances)
    digest = commit_digest(host.origin, opened.first, note.text)
    seen = run.do(Step.WITNESS, witnessed, policy, host.origin, host.genesis, note, checkpoint, attestation)
    if not policy.witnesses.keys:
        run.skip(Step.WITNESS, "the policy names no witnesses")  # what a later checkpoint says was looked at
    then = at if seen is None or seen.time is None else seen.time
    models: ModelSource | None
    facts: AkFacts | TeeFacts | None
    if isinstance(bound, ByTees):
        facts, tees = _by_tees(run, policy, bound, digest, attestation, (at, then))
        models = facts.models
    else:
        models, facts, tees = _by_ak(run, policy, bound, digest, attestation, (at, then), seen, logs)
    if facts is None or seen is None:
        return JudgedCommit(models, seen, None)
    passed = tuple(run.tolerances[tolerated:])
    return JudgedCommit(
        models, seen, CommitFacts(checkpoint, opened.first, digest, seen, facts, tees, passed)
    )


def _by_ak(
    run: Run,
    policy: Policy,
    bound: ByAk,
    digest: bytes,
    attestation: Attestation,
    times: tuple[int, int],
    seen: Witnessed | None,
    logs: GivenLogs,
) -> tuple[ModelSource | None, AkFacts | None, tuple[JudgedTee, ...]]:
    """Judge the quote, and the TEEs beside it. `times`: of verification, and that which witnesses show."""
    host, quote, named = bound.host, bound.quote, attestation.boot_logs
    at, then = times
    chain_value = chain_extend(quote.support.chain_before, digest)
    log, platform = judge_platform(run, policy, host, quote, digest, chain_value, at, seen)
    boot = boot_logs(run, named, logs, host, "the attestation carries none")
    appraisal = judge_platform_rules(run, policy, host, quote.attest, platform, log, named, boot, at)
    tees = _tees(run, policy, bound, digest, attestation, (at, then))
    models = None if log is None else LoggedModels(log)
    return models, None if platform is None else AkFacts(host, platform, boot, appraisal), tees


def _by_tees(
    run: Run, policy: Policy, bound: ByTees, digest: bytes, attestation: Attestation, times: tuple[int, int]
) -> tuple[TeeFacts, tuple[JudgedTee, ...]]:
    """Judge the TEEs that bind the commit alone."""
    from quotary_verifier.recipe.alone import TeeFacts, image_models, judge_alone

    judge_alone(run, policy, attestation, pinned=bound.pinned)
    tees = _judged(run, policy, bound.tees, digest, attestation, times, beside_tpm=False)
    return TeeFacts(bound.host, bound.pinned, image_models(policy.tee, tees)), tees


def _tees(
    run: Run,
    policy: Policy,
    bound: ByAk,
    digest: bytes,
    attestation: Attestation,
    times: tuple[int, int],
) -> tuple[JudgedTee, ...]:
    """Do step `tee`; the code of TEEs is loaded only where the note has such a line, or the policy has such rules."""
    endorsements = bound.quote.support.endorsements
    if not bound.tees and not endorsements and policy.tee is None:
        run.skip(Step.TEE, "the attestation carries none that this version knows")
        return ()
    from quotary_verifier.recipe.tee import EndorsedAk

    endorsed = (EndorsedAk(bound.host.public, endorsements),) if endorsements else ()
    return _judged(run, policy, (*bound.tees, *endorsed), digest, attestation, times, beside_tpm=True)


def _judged(
    run: Run,
    policy: Policy,
    lines: tuple[TeeLine | EndorsedAk, ...],
    digest: bytes,
    attestation: Attestation,
    times: tuple[int, int],
    *,
    beside_tpm: bool,
) -> tuple[JudgedTee, ...]:
    from quotary_verifier.evidence.tee.lines import Bound
    from quotary_verifier.recipe.tee import judge_tees

    bound = Bound(digest, hashlib.sha256(attestation.genesis).digest())
    now, then = times
    return judge_tees(run, policy, lines, bound, then, now, beside_tpm=beside_tpm)


def _open_note(run: Run, policy: Policy, host: Host | TeeHost, known: dict[bytes, str], data: bytes) -> Note:
    """Parse the note, verify the log's Ed25519 line if it stands there, and list the lines nobody knows.

    `known` has the key ids of lines and their identifiers; those of TEE lines are added where the note has more
    lines of the log. The lines of the policy's witnesses are known too; step `witness` verifies them.
    """
    note = parse_note(data)
    own = verify_own_line(note, host.origin, host.genesis)
    witnesses = {(key.name, key.key_id) for key in policy.witnesses.keys}
    for other in note.lines:
        if (other.name, other.key_id) in witnesses:
            continue
        if other.name == host.origin and other.key_id != own and other.key_id not in known:
            known |= tee_key_ids(host.origin)
        if other.name != host.origin or (other.key_id != own and other.key_id not in known):
            run.not_understood.append(f"note: a line of {other.name}, key id {other.key_id.hex()}")
    return note


def _checkpoint(host: Host | TeeHost, note: Note) -> Checkpoint:
    return parse_checkpoint(note.text, origin=host.origin)


def _find_quote(
    host: Host, known: Mapping[bytes, str], note: Note, attestation: Attestation
) -> tuple[int, ByAk]:
    """Find the AK's line and the TEE lines, and the support of each; also return the first leaf that they claim."""
    lines = {line.identifier: line for line in hardware_lines_by_id(note, host.origin, known)}
    own = lines.pop(IDENTIFIER_TPM2_QUOTE, None)
    if own is None:
        raise EvidenceError("the genesis record names an AK, and the note has no line of it")
    supports = attestation.supports
    if len(supports) != 1 or supports[0].identifier != IDENTIFIER_TPM2_QUOTE:
        raise MalformedError(_UNMATCHED)
    quote = read_quote(host.public, supports[0], own.evidence)
    tees = _find_tees(lines, attestation) if lines or attestation.tees else ()
    return own.first, ByAk(host, quote, tees)


def _find_alone(
    host: TeeHost, known: Mapping[bytes, str], note: Note, attestation: Attestation
) -> tuple[TeeLine, ...]:
    """Find the TEE lines that bind a commit alone, at least one, and the support of each."""
    lines = {line.identifier: line for line in hardware_lines_by_id(note, host.origin, known)}
    if not lines:
        raise EvidenceError("the genesis record names no TPM, and the note has no line of a known TEE")
    if attestation.supports:
        raise MalformedError(f"{_UNMATCHED}: one is of a TPM, and the genesis record names none")
    return _find_tees(lines, attestation)


def _find_tees(lines: Mapping[str, HardwareLine], attestation: Attestation) -> tuple[TeeLine, ...]:
    from quotary_verifier.recipe.tee import TeeLine

    supports = {one.identifier: one for one in attestation.tees if one.identifier in TEE_IDENTIFIERS}
    if supports.keys() != lines.keys():
        raise MalformedError(_UNMATCHED)
    return tuple([TeeLine(line, supports[identifier]) for identifier, line in lines.items()])


def boot_logs(
    run: Run, named: Mapping[str, bytes], logs: GivenLogs, host: Host, absent: str
) -> BootLogs | None:
    """Do step `boot-logs`; the code that reads them is loaded only where there are any, and `absent` says why not."""
    if not named:
        run.skip(Step.BOOT_LOGS, absent)
        return None
    if run.quoted is None:
        run.skip(Step.BOOT_LOGS, "the quoted PCR values could not be established")
        return None
    from quotary_verifier.recipe.boot_logs import judge_boot_logs

    return judge_boot_logs(run, named, logs, host.identity, run.quoted)
