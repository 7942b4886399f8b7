# SPDX-License-Identifier: Apache-2.0
"""What an audit says (docs/spec/audit.md): plain data, which `as_json` turns into the schema `quotary-audit/v1`.

Everything but `findings` was authenticated before it got here, except what says of itself that it is the host's word.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from quotary_verifier.audit.findings import Finding, Severity
from quotary_verifier.wire.frozen import frozen

SCHEMA: Final = "quotary-audit/v1"


@frozen
class AuditedLog:
    """The log and how much of it was checked.

    `size` and `root` (hexadecimal) are those of the last checkpoint that the audit reached, `published` the size of the
    one that the host publishes. `resumed` is the size from which this audit went on, None where it began at the first
    leaf. `ak_algorithm` is None where the origin has no TPM.
    """

    origin: str
    host: str
    size: int
    root: str
    published: int
    commits: int
    genesis_time_ms: int
    ak_algorithm: str | None
    ak_own: bool
    resumed: int | None

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in the report."""
        return {
            "origin": self.origin,
            "host": self.host,
            "size": self.size,
            "root": self.root,
            "published": self.published,
            "commits": self.commits,
            "genesis_time_ms": self.genesis_time_ms,
            "ak": None if self.ak_algorithm is None else {"algorithm": self.ak_algorithm, "own": self.ak_own},
            "resumed": self.resumed,
        }


@frozen
class Span:
    """A stretch of the history: commits `first_commit` to `last_commit`, leaves `first_leaf` to below `size`.

    `clock` is the TPM's clock in milliseconds at the first and the last quote of the stretch, None where quotes did not
    hold. `time_ms` are those two as the host's clock would show them: the time that the last start before them stated,
    and the TPM's milliseconds since. They are the host's word.
    """

    first_commit: int
    last_commit: int
    first_leaf: int
    size: int
    clock: tuple[int, int] | None
    time_ms: tuple[int, int] | None

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in the report."""
        return {
            "commits": [self.first_commit, self.last_commit],
            "leaves": [self.first_leaf, self.size],
            "clock_ms": None if self.clock is None else list(self.clock),
            "host_time_ms": None if self.time_ms is None else list(self.time_ms),
        }


@frozen
class AuditedBootLog:
    """A boot log that the commits of one boot name: `state` is replayed, not-replayed, missing or unknown.

    `digest` (hexadecimal) and `size` are those of the longest prefix named, `said` tells what was found.
    """

    name: str
    state: str
    digest: str
    size: int
    said: str

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in the report."""
        return {
            "name": self.name,
            "state": self.state,
            "digest": self.digest,
            "size": self.size,
            "said": self.said,
        }


@frozen
class AuditedBoot:
    """One boot of the host, by its counts. `chain` tells how the chain PCR began in it.

    It is one of: zero (a fresh boot), continued (after sleep), explained (the agent's own lost commits), gap.
    """

    number: int
    reset_count: int
    restart_count: int
    span: Span
    chain: str
    safe_clock: bool
    firmware_version: str
    logs: tuple[AuditedBootLog, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in the report."""
        return {
            "number": self.number,
            "reset_count": self.reset_count,
            "restart_count": self.restart_count,
            **self.span.as_json(),
            "chain": self.chain,
            "safe_clock": self.safe_clock,
            "firmware_version": self.firmware_version,
            "logs": [log.as_json() for log in self.logs],
        }


@frozen
class AuditedStart:
    """One start of the agent: its boot record at `leaf`, the certified counter, and how many numbers it skipped.

    `history` is the range of leaves before the record for which nothing is claimed, `lost` the leaves of boot records
    of starts whose own commits were lost, which explain skipped numbers. `time_ms` is the host's word. Without a TPM
    there is no counter, and the boot is -1.
    """

    commit: int
    leaf: int
    boot: int
    counter: int | None
    skipped: int
    time_ms: int
    history: tuple[int, int] | None = None
    lost: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in the report."""
        return {
            "commit": self.commit,
            "leaf": self.leaf,
            "boot": self.boot,
            "counter": self.counter,
            "skipped": self.skipped,
            "host_time_ms": self.time_ms,
            "history": None if self.history is None else list(self.history),
            "lost": list(self.lost),
        }


@frozen
class AuditedModel:
    """A model that an epoch of the workload log lists: `digest` (hexadecimal) is that of the weights.

    `allowed` tells whether the policy allows it, None where it names no models.
    """

    name: str
    digest: str
    allowed: bool | None

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in the report."""
        return {"name": self.name, "weights": self.digest, "allowed": self.allowed}


@frozen
class Period:
    """A stretch in which platform, workload and what the policy says of them stayed the same.

    `status` is accepted, rejected, warned or could-not; `findings` are (rule, severity, message) of what the policy
    found, `reference` the name of the reference set that fitted. `pcrs` are the quoted values that are not zero, but
    for chain and workload PCR. `workload_epoch` is -1 where no workload log stands in force.
    """

    boot: int
    span: Span
    status: str
    findings: tuple[tuple[str, str, str], ...]
    reference: str | None
    pcrs: tuple[tuple[int, str], ...]
    software_tpm: str
    endorsed_by: str | None
    workload_epoch: int
    engine: str | None
    models: tuple[AuditedModel, ...]
    tolerances: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in the report."""
        return {
            "boot": self.boot,
            **self.span.as_json(),
            "status": self.status,
            "findings": [
                {"rule": rule, "severity": severity, "message": message}
                for rule, severity, message in self.findings
            ],
            "reference": self.reference,
            "pcrs": {str(pcr): value for pcr, value in self.pcrs},
            "software_tpm": self.software_tpm,
            "endorsed_by": self.endorsed_by,
            "workload_epoch": self.workload_epoch,
            "engine": self.engine,
            "models": [model.as_json() for model in self.models],
            "tolerances": list(self.tolerances),
        }


@frozen
class AuditedTee:
    """A stretch of the history in which TEE lines of one kind said the same, or a kind that the policy requires is
    missing.

    `lines` of its commits have one, the others none. `status` is accepted, warned, rejected, could-not (be checked),
    undated (certificates of another time), not-appraised (the policy has no rules) or missing; `findings` are (rule,
    severity, message). `devices` has for each device what its evidence says, as (name, value).
    """

    kind: str
    first_commit: int
    last_commit: int
    first_leaf: int
    size: int
    lines: int
    status: str
    findings: tuple[tuple[str, str, str], ...]
    devices: tuple[tuple[tuple[str, str], ...], ...]

    def same(self, other: AuditedTee) -> bool:
        """Tell whether another stretch of the kind says the same."""
        return (self.status, self.findings, self.devices) == (other.status, other.findings, other.devices)

    def joined(self, other: AuditedTee) -> AuditedTee:
        """Return this stretch and a later one that says the same as one."""
        return replace(self, last_commit=other.last_commit, size=other.size, lines=self.lines + other.lines)

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in the report."""
        return {
            "kind": self.kind,
            "commits": [self.first_commit, self.last_commit],
            "leaves": [self.first_leaf, self.size],
            "lines": self.lines,
            "status": self.status,
            "findings": [
                {"rule": rule, "severity": severity, "message": message}
                for rule, severity, message in self.findings
            ],
            "devices": [dict(device) for device in self.devices],
        }


@frozen
class AuditedStatement:
    """A statement at `leaf`, which holds until the next one; text and `time_ms` are the host's word."""

    leaf: int
    commit: int
    time_ms: int
    text: str

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in the report."""
        return {"leaf": self.leaf, "commit": self.commit, "host_time_ms": self.time_ms, "text": self.text}


@frozen
class Witnessing:
    """A checkpoint that witnesses of the policy cosigned; `time` (seconds) is that of the quorum, None without one."""

    commit: int
    size: int
    time: int | None
    names: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in the report."""
        return {"commit": self.commit, "size": self.size, "time": self.time, "witnesses": list(self.names)}


@frozen
class MatchedRecords:
    """The records that were given: matched ones as (name, leaf), names of unmatched ones, ranges of leaves without any.

    Long lists are cut; the counts are whole. `omitted` counts leaves that some commit claims and no given record is of,
    public records left out of account.
    """

    given: int
    matched: int
    omitted: int
    places: tuple[tuple[str, int], ...]
    unmatched: tuple[str, ...]
    omitted_ranges: tuple[tuple[int, int], ...]

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in the report."""
        return {
            "given": self.given,
            "matched": self.matched,
            "omitted": self.omitted,
            "places": [{"name": name, "leaf": leaf} for name, leaf in self.places],
            "unmatched": list(self.unmatched),
            "omitted_ranges": [list(part) for part in self.omitted_ranges],
        }


@frozen
class AuditReport:
    """The result of an audit. `counts` has the number of findings by severity; `findings` may have been cut.

    `at` is the time argument in seconds, `policy` the SHA-256 of the policy in hexadecimal, `complete` whether it
    reached the published checkpoint. `log` is None where not even the genesis record could be read. `history` is for
    who reads history files again (`audit.again`), and no part of the JSON form.
    """

    at: int
    policy: str
    complete: bool
    log: AuditedLog | None
    boots: tuple[AuditedBoot, ...]
    starts: tuple[AuditedStart, ...]
    periods: tuple[Period, ...]
    statements: tuple[AuditedStatement, ...]
    witnesses: tuple[Witnessing, ...]
    records: MatchedRecords | None
    findings: tuple[Finding, ...]
    counts: tuple[tuple[Severity, int], ...]
    unknowable: tuple[str, ...]
    tees: tuple[AuditedTee, ...] = ()
    history: tuple[bytes, ...] = ()

    @property
    def outcome(self) -> str:
        """Verified, rejected or could-not-check, as in a verdict."""
        counts = dict(self.counts)
        if counts.get(Severity.FALSE) or counts.get(Severity.POLICY):
            return "rejected"
        return "verified" if self.complete and not counts.get(Severity.COULD_NOT) else "could-not-check"

    @property
    def exit_code(self) -> int:
        """The exit code of the command (design section 7): 0, 1 or 3."""
        return {"verified": 0, "rejected": 1, "could-not-check": 3}[self.outcome]

    def as_json(self) -> dict[str, Any]:
        """Return the report as one object of the schema `quotary-audit/v1`; equal inputs give equal bytes."""
        return {
            "schema": SCHEMA,
            "outcome": self.outcome,
            "exit": self.exit_code,
            "at": self.at,
            "policy": self.policy,
            "complete": self.complete,
            "log": None if self.log is None else self.log.as_json(),
            "boots": [boot.as_json() for boot in self.boots],
            "starts": [start.as_json() for start in self.starts],
            "periods": [period.as_json() for period in self.periods],
            "tees": [tee.as_json() for tee in self.tees],
            "statements": [statement.as_json() for statement in self.statements],
            "witnesses": [witness.as_json() for witness in self.witnesses],
            "records": None if self.records is None else self.records.as_json(),
            "findings": [finding.as_json() for finding in self.findings],
            "counts": {str(severity): count for severity, count in self.counts},
            "unknowable": list(self.unknowable),
        }
