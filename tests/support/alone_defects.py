# SPDX-License-Identifier: Apache-2.0
"""Cases of origins without a TPM, registered with those of `defects`: one that verifies, and one fault each."""

from __future__ import annotations

from dataclasses import replace

import alone_forge  # by its module: it needs `tee_defects`, which needs `defects`, which needs this one
import tee_defects
from defects import Case, _case, case
from forge import Forge

from quotary_verifier import Outcome, Step
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.attestation import Attestation


def judged(
    forge: alone_forge.AloneForge,
    attestation: Attestation | None = None,
    step: Step | None = Step.TEE,
    *,
    policy: str | None = None,
) -> Case:
    """A case under a policy that pins the origin and requires SEV-SNP."""
    whole = attestation or forge.attestation()
    outcome = Outcome.REJECTED
    return _case(forge, whole, step, policy=policy or forge.pinned(tee_defects.POLICY), outcome=outcome)


@case
def no_tpm_but_a_tee() -> Case:
    return judged(alone_forge.AloneForge(), step=None)


@case
def no_tpm_and_an_image_that_the_policy_names() -> Case:
    return judged(
        alone_forge.AloneForge(), step=None, policy='schema = "quotary-policy/v1"\n' + tee_defects.POLICY
    )


@case
def no_tpm_and_no_line_of_the_note_key() -> Case:
    return judged(alone_forge.AloneForge(signed=False), step=Step.NOTE)


@case
def no_tpm_and_no_tee_line() -> Case:
    forge = alone_forge.AloneForge()
    whole = forge.attestation()
    note = parse_note(whole.note)
    return judged(forge, replace(whole, note=replace(note, lines=note.lines[:1]).encode(), tees=()))


@case
def no_tpm_and_another_pinned_origin() -> Case:
    policy = alone_forge.AloneForge().pinned(tee_defects.POLICY)
    return judged(alone_forge.AloneForge(), step=Step.ORIGIN, policy=policy)


@case
def no_tpm_and_no_tee_that_the_policy_requires() -> Case:
    forge = alone_forge.AloneForge()
    return judged(forge, policy=forge.pinned(tee_defects.RULES + tee_defects.ROOTS))


@case
def no_tpm_under_a_policy_with_pcrs() -> Case:
    forge = alone_forge.AloneForge()
    rules = f'[platform.pcrs]\n4 = ["{"aa" * 32}"]\n'
    return judged(forge, step=Step.PLATFORM, policy=forge.pinned(rules + tee_defects.POLICY))


@case
def no_tpm_and_a_record_that_cites_an_event() -> Case:
    forge = alone_forge.AloneForge()
    record = replace(forge.record(), model=Forge().record().model)
    return judged(forge, forge.attestation(record=record), Step.MODEL)


@case
def no_tpm_and_the_report_of_another_commit() -> Case:
    forge = alone_forge.AloneForge(tees=(lambda digest, genesis: tee_defects.snp()(digest[::-1], genesis),))
    return judged(forge)
