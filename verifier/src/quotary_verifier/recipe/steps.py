# SPDX-License-Identifier: Apache-2.0
"""The steps of the recipe, by number and stable code (docs/spec/verification.md, design section 5).

The same codes stand in the specification, the code, the tests, the vectors and every output.
"""

from __future__ import annotations

from enum import StrEnum


class Step(StrEnum):
    """One step of the recipe; the order of the members is the order of the recipe."""

    DECODE = "decode"
    OUTPUT = "output"
    REQUEST = "request"
    NONCE = "nonce"
    GENESIS = "genesis"
    ORIGIN = "origin"
    INCLUSION = "inclusion"
    NOTE = "note"
    QUOTE_STRUCTURE = "quote.structure"
    QUOTE_CHAIN = "quote.chain"
    QUOTE_SIGNATURE = "quote.signature"
    QUOTE_PCRS = "quote.pcrs"
    QUOTE_CLOCK = "quote.clock"
    QUOTE_RANGE = "quote.range"
    AK_ATTRIBUTES = "ak.attributes"
    AK_NAME = "ak.name"
    AK_ENDORSEMENT = "ak.endorsement"
    TPM_KIND = "tpm.kind"
    WORKLOAD = "workload"
    MODEL = "model"
    BOOT_LOGS = "boot-logs"
    PLATFORM = "platform"
    TEE = "tee"
    WITNESS = "witness"
    FRESHNESS = "freshness"


TITLES: dict[Step, str] = {
    Step.DECODE: "the attestation and its record decode strictly",
    Step.OUTPUT: "a digest of the record is that of the output",
    Step.REQUEST: "the record commits to the request",
    Step.NONCE: "the record carries the caller's nonce",
    Step.GENESIS: "the genesis record decodes and makes the origin",
    Step.ORIGIN: "the checkpoint is of this origin, which the policy accepts",
    Step.INCLUSION: "the record is a leaf of the checkpoint's tree",
    Step.NOTE: "the note is well formed and its Ed25519 line, if any, verifies",
    Step.QUOTE_STRUCTURE: "the hardware line holds one TPM quote and nothing else",
    Step.QUOTE_CHAIN: "the quote binds this commit, and the chain PCR follows from it",
    Step.QUOTE_SIGNATURE: "the AK of the genesis record signed the quote",
    Step.QUOTE_PCRS: "the quote covers PCR 0-15 of the SHA-256 bank with exactly these values",
    Step.QUOTE_CLOCK: "the TPM's clock is as the policy demands",
    Step.QUOTE_RANGE: "the commit that was quoted added this leaf (not-in-commit otherwise)",
    Step.AK_ATTRIBUTES: "the AK is a restricted signing key that never leaves its TPM",
    Step.AK_NAME: "the quote was signed under the AK's qualified name",
    Step.AK_ENDORSEMENT: "a trusted authority endorses the AK for this host, or the origin is pinned",
    Step.TPM_KIND: "the kind of TPM is one that the policy accepts",
    Step.WORKLOAD: "the workload log replays to the quoted PCR and ends with a closed epoch",
    Step.MODEL: "the model was measured in the epoch in force and the policy allows it",
    Step.BOOT_LOGS: "the boot logs replay to the quoted PCRs",
    Step.PLATFORM: "what booted and runs is what the policy accepts",
    Step.TEE: "evidence of a confidential-computing root",
    Step.WITNESS: "witnesses cosigned the tree",
    Step.FRESHNESS: "the output is as fresh as the policy demands",
}

ORDER: dict[Step, int] = {step: number for number, step in enumerate(Step, start=1)}
