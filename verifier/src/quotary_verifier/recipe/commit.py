# SPDX-License-Identifier: Apache-2.0
"""The steps that judge a commit: its genesis record, its note, and what the quote on the note says.

They need nothing of a single output, so their result can serve every output of the same commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.logs.workload import WorkloadLog
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.appraisal import judge_platform_rules
from quotary_verifier.recipe.given_logs import GivenLogs
from quotary_verifier.recipe.platform import (
    Host,
    PlatformFacts,
    ReadQuote,
    judge_platform,
    read_host,
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
    from quotary_verifier.recipe.boot_logs import BootLogs
    from quotary_verifier.recipe.tee import JudgedTee, TeeLine

_UNMATCHED = "there must be one support for each known hardware line, and no other"


@frozen
class CommitFacts:
    """What the commit's steps established; meaningful only together with the checks that led here.

    `first` is the index from which the commit claims, `digest` is D, `boot` the boot logs that replayed, if any came,
    `appraisal` what came of the policy's rules on the platform, if it has any, `tees` what further lines of the note
    show.
    """

    host: Host
    checkpoint: Checkpoint
    first: int
    digest: bytes
    platform: PlatformFacts
    witnessed: Witnessed
    boot: BootLogs | None = None
    appraisal: Appraisal | None = None
    tees: tuple[JudgedTee, ...] = ()


@frozen
class OpenCommit:
    """A commit that was taken apart: what its leaves can be judged against, before its quote is.

    `tees` are the TEE lines of the note with their supports.
    """

    host: Host
    note: Note
    checkpoint: Checkpoint
    first: int
    quote: ReadQuote
    tees: tuple[TeeLine, ...] = ()


@frozen
class JudgedCommit:
    """What became of a commit: `facts` where every step could be done, and the parts that leaves depend on."""

    log: WorkloadLog | None
    witnessed: Witnessed | None
    facts: CommitFacts | None


def open_commit(run: Run, policy: Policy, attestation: Attestation) -> OpenCommit | None:
    """Take apart the commit that an attestation carries; None where a step could not be done.

    Raises:
        Stopped: a step failed; `run` says which and why.
    """
    host = run.do(Step.GENESIS, read_host, attestation.genesis)
    if host is None:
        return None
    for key in host.genesis.not_understood:
        run.not_understood.append(f"genesis record: key {key}")
    known = {hardware_key_id(host.origin, IDENTIFIER_TPM2_QUOTE, host.spki): IDENTIFIER_TPM2_QUOTE}
    note = run.do(Step.NOTE, _open_note, run, policy, host, known, attestation.note)
    if note is None:
        return None
    for support in attestation.tees:
        if support.identifier not in TEE_IDENTIFIERS:
            run.not_understood.append(f"note: a support of {support.identifier!r}")
    checkpoint = run.do(Step.ORIGIN, _checkpoint, host, note)
    if checkpoint is None:
        return None
    found = run.do(Step.QUOTE_STRUCTURE, _find_quote, host, known, note, attestation)
    if found is None:
        return None
    return OpenCommit(host, note, checkpoint, *found)


def judge_commit(
    run: Run, policy: Policy, attestation: Attestation, opened: OpenCommit, at: int, logs: GivenLogs
) -> JudgedCommit:
    """Do the commit's further steps; `logs` are those that the attestation may name by digest.

    Raises:
        Stopped: a step failed; `run` says which and why.
    """
    host, note, checkpoint, first, quote = (
        opened.host,
        opened.note,
        opened.checkpoint,
        opened.first,
        opened.quote,
    )
    digest = commit_digest(host.origin, first, note.text)
    chain_value = chain_extend(quote.support.chain_before, digest)
    key = host.genesis.note_key
    seen = run.do(Step.WITNESS, witnessed, policy, host.origin, key, note, checkpoint, attestation)
    if not policy.witnesses.keys:
        run.skip(Step.WITNESS, "the policy names no witnesses")  # what a later checkpoint says was looked at
    log, platform = judge_platform(run, policy, host, quote, digest, chain_value, at, seen)
    attest, named = quote.attest, attestation.boot_logs
    boot = boot_logs(run, named, logs, host, "the attestation carries none")
    appraisal = judge_platform_rules(run, policy, host, attest, platform, log, named, boot, at)
    tees = _tees(
        run, policy, opened, digest, attestation, at if seen is None or seen.time is None else seen.time
    )
    if platform is None or seen is None:
        return JudgedCommit(log, seen, None)
    return JudgedCommit(
        log, seen, CommitFacts(host, checkpoint, first, digest, platform, seen, boot, appraisal, tees)
    )


def _tees(
    run: Run, policy: Policy, opened: OpenCommit, digest: bytes, attestation: Attestation, at: int
) -> tuple[JudgedTee, ...]:
    """Do step `tee`; the code of TEEs is loaded only where the note has such a line, or the policy has such rules."""
    if not opened.tees and policy.tee is None:
        run.skip(Step.TEE, "the attestation carries none that this version knows")
        return ()
    from quotary_verifier.evidence.tee.lines import Bound
    from quotary_verifier.recipe.tee import judge_tees

    bound = Bound(digest, hashlib.sha256(attestation.genesis).digest())
    return judge_tees(run, policy, opened.tees, bound, at)


def _open_note(run: Run, policy: Policy, host: Host, known: dict[bytes, str], data: bytes) -> Note:
    """Parse the note, verify the log's Ed25519 line if it stands there, and list the lines nobody knows.

    `known` has the key id of the AK's line, and its identifier; those of TEE lines are added where the note has more
    lines of the log. The lines of the policy's witnesses are known too; step `witness` verifies them.
    """
    note = parse_note(data)
    own = verify_own_line(note, host.origin, host.genesis.note_key)
    witnesses = {(key.name, key.key_id) for key in policy.witnesses.keys}
    for other in note.lines:
        if (other.name, other.key_id) in witnesses:
            continue
        if other.name == host.origin and other.key_id != own and other.key_id not in known:
            known |= tee_key_ids(host.origin)
        if other.name != host.origin or (other.key_id != own and other.key_id not in known):
            run.not_understood.append(f"note: a line of {other.name}, key id {other.key_id.hex()}")
    return note


def _checkpoint(host: Host, note: Note) -> Checkpoint:
    return parse_checkpoint(note.text, origin=host.origin)


def _find_quote(
    host: Host, known: Mapping[bytes, str], note: Note, attestation: Attestation
) -> tuple[int, ReadQuote, tuple[TeeLine, ...]]:
    """Find the AK's line and the TEE lines, and the support of each."""
    lines = {line.identifier: line for line in hardware_lines_by_id(note, host.origin, known)}
    own = lines.pop(IDENTIFIER_TPM2_QUOTE, None)
    if own is None:
        raise EvidenceError("the genesis record names an AK, and the note has no line of it")
    supports = attestation.supports
    if len(supports) != 1 or supports[0].identifier != IDENTIFIER_TPM2_QUOTE:
        raise MalformedError(_UNMATCHED)
    tees = _find_tees(lines, attestation) if lines or attestation.tees else ()
    return own.first, read_quote(host.public, supports[0], own.evidence), tees


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
