# SPDX-License-Identifier: Apache-2.0
"""Where the chain stands, and what that makes of a staged batch (design section 4, "Crash").

What is on disk never decides by itself: only a commit of the history whose quote verifies, made in the boot that
the TPM is in now, says which value the chain PCR should have. Everything here is pure, so that every case can be
tested without a TPM.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from quotary_attest.engine.host import Host, TpmHost
from quotary_attest.log.errors import StoreError
from quotary_attest.log.journal import StagedBatch
from quotary_attest.roots import PlatformState
from quotary_verifier.errors import QuotaryError
from quotary_verifier.evidence.tpm_quote import verify_quote
from quotary_verifier.logs.cel import parse_log
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, hardware_lines
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.bindings import ZERO, chain_extend, commit_digest
from quotary_verifier.wire.history import Commit


@dataclass(frozen=True, slots=True)
class Position:
    """The chain as a commit left it: D of that commit, its boot, and the chain PCR after it."""

    digest: bytes
    boot: tuple[int, int]
    chain: bytes


class Course(Enum):
    """What the chain PCR says to do with this boot and its staged batch."""

    GO_ON = "go on"  # the chain is where the last commit left it, and nothing is staged
    EXTEND = "extend"  # the staged batch was not extended: commit it
    QUOTE = "quote again"  # it was extended: quote it again
    NEW_BOOT = "new boot"  # no commit of this boot: what is staged is history
    FOREIGN = "foreign"  # somebody else extended the chain PCR


def digest_of(host: Host, commit: Commit) -> bytes:
    """Return D of a commit of the history."""
    return commit_digest(host.origin, commit.first, parse_note(commit.note).text)


def verified_position(host: TpmHost, commit: Commit) -> Position:
    """Return where a commit of the history left the chain, if its quote verifies under the genesis AK.

    Raises:
        QuotaryError: the quote, the note or the workload log does not hold.
        StoreError: the workload log's blob cannot be read.
    """
    note = parse_note(commit.note)
    lines = hardware_lines(note, host.origin, {IDENTIFIER_TPM2_QUOTE: host.ak_spki})
    digest = commit_digest(host.origin, commit.first, note.text)
    (line,), (support,) = lines, commit.supports
    chain = chain_extend(support.chain_before, digest)
    chain_pcr, workload_pcr = host.own_pcrs
    values = dict.fromkeys(range(16), ZERO)
    values |= support.pcrs
    values[chain_pcr] = chain
    values[workload_pcr] = _replayed(host, support.workload_log)
    state = verify_quote(
        host.ak.public,
        line.evidence,
        qualified_signer=host.ak.qualified_name,
        extra_data=digest,
        values=values,
    )
    return Position(digest, (state.clock.reset_count, state.clock.restart_count), chain)


def _replayed(host: TpmHost, named: tuple[bytes, int] | None) -> bytes:
    value = ZERO
    if named is not None:
        name, size = named
        for record in parse_log(host.store.blob(name)[:size], pcr=host.tpm.workload_pcr):
            value = chain_extend(value, record.digest)
    return value


def last_position(host: TpmHost) -> Position | None:
    """Return where the history's last commit left the chain; None where there is none, or none that verifies."""
    stored = host.store.last_commit
    if stored is None:
        return None
    try:
        return verified_position(host, stored.commit)
    except (QuotaryError, StoreError, ValueError):
        return None


def decide(position: Position | None, staged: StagedBatch | None, found: bytes) -> Course:
    """Say what to do. `position` is the last commit's in the present boot, `found` the chain PCR's value now."""
    if position is None:
        return Course.NEW_BOOT
    if staged is not None and staged.before == position.chain:
        if found == staged.before:
            return Course.EXTEND
        if found == chain_extend(staged.before, staged.digest):
            return Course.QUOTE
        return Course.FOREIGN
    return Course.GO_ON if found == position.chain else Course.FOREIGN


def woke(position: Position, staged: StagedBatch | None, platform: PlatformState, chain_pcr: int) -> bool:
    """Whether a moved boot is only sleep (S3): same reset count, and the chain PCR as a running agent left it.

    A chain PCR that should be zero cannot tell sleep from hibernation.
    """
    found = platform.pcrs[chain_pcr]
    left = {position.chain}
    if staged is not None and staged.before == position.chain:
        left.add(chain_extend(staged.before, staged.digest))
    return platform.clock.reset_count == position.boot[0] and found != ZERO and found in left


def explained(last: Position | None, staged: StagedBatch | None, found: bytes, reset_count: int) -> bool:
    """Whether this agent itself can have left the chain PCR as a new boot finds it.

    Zero after a reset; what a first commit of this boot extended before the agent died; after sleep, what the
    last commit left. Anything else somebody else extended.
    """
    own = {ZERO}
    if last is not None and last.boot[0] == reset_count:
        own.add(last.chain)
    if staged is not None and staged.before:
        own |= {
            staged.before,
            chain_extend(staged.before, staged.digest),
            chain_extend(ZERO, staged.digest),
        }
    return found in own
