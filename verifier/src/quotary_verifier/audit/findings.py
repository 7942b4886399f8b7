# SPDX-License-Identifier: Apache-2.0
"""What an audit finds, by stable codes (docs/spec/audit.md lists what each means)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from quotary_verifier.wire.frozen import frozen


class Severity(StrEnum):
    """What a finding means for the outcome; the first three decide it, in this order."""

    FALSE = "false"
    """Evidence is malformed or does not hold: rejected."""
    POLICY = "policy"
    """The evidence holds and shows what the policy does not accept: rejected."""
    COULD_NOT = "could-not"
    """Something is missing or of an unknown kind, so that a check could not be done."""
    GAP = "gap"
    """Nothing is false, and something may have happened that the history does not tell."""
    NOTICE = "notice"
    """Worth knowing."""


class Code(StrEnum):
    """What was found, by the part of the log that it is about."""

    GENESIS = "genesis"
    CHECKPOINT = "checkpoint"
    BUNDLE = "tree.bundle"
    TILE = "tree.tile"
    ROOT = "tree.root"
    TREE_UNCHECKED = "tree.unchecked"
    HISTORY = "history"
    HISTORY_SHORT = "history.short"
    RANGE = "commit.range"
    NOTE = "commit.note"
    QUOTE = "commit.quote"
    PCRS = "commit.pcrs"
    WORKLOAD = "commit.workload"
    TEE = "commit.tee"
    EPOCHS = "commit.epochs"
    CHAIN = "chain"
    CHAIN_GAP = "chain.gap"
    LOST_COMMIT = "chain.lost-commit"
    CLOCK = "clock"
    RESETS = "clock.resets"
    SLEEP = "clock.sleep"
    UNSAFE_CLOCK = "clock.unsafe"
    START = "start"
    START_COUNTER = "start.counter"
    START_SKIPPED = "start.skipped"
    HISTORY_LEAVES = "start.history"
    BOOT_LOG = "boot-log"
    ENDORSEMENT = "policy.endorsement"
    KEY = "policy.key"
    TPM_KIND = "policy.tpm"
    SAFE_CLOCK = "policy.clock"
    PLATFORM = "policy.platform"
    TEE_RULES = "policy.tee"
    STATEMENT = "statement"
    WITNESS = "witness"
    WITNESS_SPLIT = "witness.split"
    RECORD = "record"
    RECORD_UNMATCHED = "record.unmatched"
    RECORD_OMITTED = "record.omitted"
    RECORD_OTHER_HISTORY = "record.other-history"
    SPLIT = "split"


@frozen
class Place:
    """Where something was found; None where a part does not apply. Boots are numbered from 0 in order."""

    path: str | None = None
    commit: int | None = None
    leaf: int | None = None
    boot: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the place as it stands in the report's JSON form."""
        return {"path": self.path, "commit": self.commit, "leaf": self.leaf, "boot": self.boot}


@frozen
class Finding:
    """One thing found. `message` is for people, and may repeat what an attacker wrote: escape it where it is shown."""

    code: Code
    severity: Severity
    where: Place
    message: str

    def as_json(self) -> dict[str, Any]:
        """Return the finding as it stands in the report's JSON form."""
        return {
            "code": str(self.code),
            "severity": str(self.severity),
            "where": self.where.as_json(),
            "message": self.message,
        }
