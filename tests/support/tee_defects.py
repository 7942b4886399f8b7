# SPDX-License-Identifier: Apache-2.0
"""Cases of step `tee`, registered with those of `defects`: notes that a TPM and a TEE bound, and one fault each."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace

import intel_sgx
from amd_pki import AmdForge
from cryptography.hazmat.primitives.serialization import Encoding
from defects import Case, _case, case, raw
from forge import Forge, TeeRoot
from intel_sgx import TdxForge

from quotary_verifier import Outcome, Step
from quotary_verifier.evidence.tee.lines import snp_support, tdx_support
from quotary_verifier.evidence.tee.shape import report_data
from quotary_verifier.tlog.hardware import (
    IDENTIFIER_SEV_SNP,
    IDENTIFIER_TDX,
    HardwareLine,
    encode_hardware_line,
    hardware_key_id,
)
from quotary_verifier.tlog.note import Note, SignatureLine, parse_note
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.tee_support import TeeSupport

AMD = AmdForge()
LAUNCH = "4d" * 48
"""The launch measurement of every report of `AMD`."""


def pem(der: bytes) -> str:
    """A certificate as text."""
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n"


ROOTS = (
    f'[tee.roots]\nintel = """\n{pem(intel_sgx.forged_root().certificate.public_bytes(Encoding.DER))}"""\n'
    + (f'[tee.roots.amd]\ngenoa = """\n{pem(AMD.ark())}"""\n')
)
"""Roots of the forged processors, as they stand in a policy."""
RULES = f'[tee.sev-snp]\ngenerations = ["genoa"]\nmeasurements = ["{LAUNCH}"]\n'
REQUIRED = '[tee]\nrequired = ["sev-snp"]\n'
POLICY = REQUIRED + RULES + ROOTS


def snp(changes: Mapping[int, bytes] | None = None, forge: AmdForge = AMD) -> TeeRoot:
    """A processor whose reports have other bytes at places."""

    def bind(digest: bytes, genesis: bytes) -> tuple[bytes, TeeSupport]:
        report = forge.report({0x50: report_data(digest, genesis), **(changes or {})})
        return report, snp_support(forge.endorsements())

    return bind


def tdx(digest: bytes, genesis: bytes) -> tuple[bytes, TeeSupport]:
    """A TD's quote without collateral."""
    return TdxForge(body={0x208: report_data(digest, genesis)}).quote(), tdx_support(None)


def bound(*tees: TeeRoot) -> Forge:
    """A host whose commits these bind beside its TPM."""
    return Forge(tees=tees or (snp(),))


def of(name: str) -> str:
    """The identifier of a kind."""
    return {"sev-snp": IDENTIFIER_SEV_SNP, "tdx": IDENTIFIER_TDX}[name]


def without_line(forge: Forge, attestation: Attestation, name: str = "sev-snp") -> bytes:
    """The note without the line of a kind."""
    note = parse_note(attestation.note)
    gone = hardware_key_id(forge.origin, of(name), b"")
    return replace(note, lines=tuple(line for line in note.lines if line.key_id != gone)).encode()


def with_lines(attestation: Attestation, *lines: SignatureLine) -> bytes:
    """The note with more lines."""
    note: Note = parse_note(attestation.note)
    return note.with_lines(list(lines)).encode()


def judged(
    forge: Forge,
    attestation: Attestation | None = None,
    step: Step | None = Step.TEE,
    *,
    rules: str = POLICY,
    outcome: Outcome = Outcome.REJECTED,
) -> Case:
    """A case under a policy with rules on TEEs."""
    policy = forge.policy(rules)
    return _case(forge, attestation or forge.attestation(), step, policy=policy, outcome=outcome)


@case
def tee_line_beside_the_quote() -> Case:
    return judged(bound(), None, None)


@case
def tee_line_that_the_policy_does_not_mention() -> Case:
    return judged(bound(), None, None, rules=ROOTS)


@case
def tee_line_and_its_support_removed_where_nothing_requires_them() -> Case:
    forge = bound()
    whole = forge.attestation()
    half = replace(whole, note=without_line(forge, whole), tees=())
    return judged(forge, half, None, rules=RULES + ROOTS)


@case
def support_of_an_unknown_identifier() -> Case:
    forge = Forge()
    attestation = replace(forge.attestation(), tees=(TeeSupport("example.org/other/v1", {"a": (b"b",)}),))
    return _case(forge, attestation, None)


@case
def required_tee_line_and_its_support_removed() -> Case:
    forge = bound()
    whole = forge.attestation()
    return judged(forge, replace(whole, note=without_line(forge, whole), tees=()))


@case
def tee_line_removed_but_not_its_support() -> Case:
    forge = bound()
    whole = forge.attestation()
    return judged(forge, replace(whole, note=without_line(forge, whole)), Step.QUOTE_STRUCTURE)


@case
def tee_line_without_its_support() -> Case:
    forge = bound()
    return judged(forge, replace(forge.attestation(), tees=()), Step.QUOTE_STRUCTURE)


@case
def tee_line_with_the_support_of_another_kind() -> Case:
    forge = bound()
    return judged(forge, replace(forge.attestation(), tees=(tdx_support(None),)), Step.QUOTE_STRUCTURE)


@case
def two_supports_of_one_tee_line() -> Case:
    forge = bound()
    whole = forge.attestation()
    return judged(forge, replace(whole, tees=whole.tees * 2), Step.DECODE)


@case
def support_of_a_tee_before_that_of_the_tpm() -> Case:
    forge = bound()
    data = raw(forge, lambda value: value[7].reverse())
    return _case(forge, data, Step.DECODE, policy=forge.policy(POLICY))


@case
def two_tee_lines_of_one_identifier() -> Case:
    forge = bound()
    whole = forge.attestation()
    line = parse_note(whole.note).lines[-1]
    other = replace(line, payload=line.payload[:-1] + b"\1")
    return judged(forge, replace(whole, note=with_lines(whole, other)), Step.QUOTE_STRUCTURE)


@case
def tee_line_that_claims_from_another_leaf() -> Case:
    forge = bound()
    whole = forge.attestation()
    payload = parse_note(whole.note).lines[-1].payload
    moved = HardwareLine(IDENTIFIER_SEV_SNP, forge.first + 1, payload[8:])
    note = parse_note(without_line(forge, whole))
    note = note.with_lines([encode_hardware_line(forge.origin, b"", moved)])
    return judged(forge, replace(whole, note=note.encode()), Step.QUOTE_STRUCTURE)


@case
def tee_line_of_another_commit() -> Case:
    forge = bound()
    other = replace(forge, first=forge.first + 1).attestation()
    payload = parse_note(other.note).lines[-1].payload
    whole = forge.attestation()
    line = encode_hardware_line(forge.origin, b"", HardwareLine(IDENTIFIER_SEV_SNP, forge.first, payload[8:]))
    note = parse_note(without_line(forge, whole)).with_lines([line])
    return judged(forge, replace(whole, note=note.encode()))


@case
def tee_line_that_binds_another_genesis_record() -> Case:
    def other(digest: bytes, _: bytes) -> tuple[bytes, TeeSupport]:
        return snp()(digest, b"\1" * 32)

    return judged(bound(other))


@case
def tee_line_of_a_guest_that_may_be_debugged() -> Case:
    return judged(bound(snp({0x08: (0x30000 | 1 << 19).to_bytes(8, "little")})))


@case
def tee_line_of_another_guest() -> Case:
    return judged(bound(snp({0x90: b"\x4e" * 48})))


@case
def tee_line_of_an_older_platform_than_the_policy_accepts() -> Case:
    return judged(
        bound(), rules=REQUIRED + RULES + "[tee.sev-snp.committed.genoa]\nmicrocode = 201\n" + ROOTS
    )


@case
def tee_line_under_another_root_than_the_makers() -> Case:
    return judged(bound(), rules=REQUIRED + RULES)


@case
def false_tee_line_that_the_policy_does_not_mention() -> Case:
    return judged(bound(snp({0x2A0: bytes(48)})), rules=ROOTS)


@case
def tee_line_whose_tcb_nobody_appraised() -> Case:
    rules = '[tee]\nrequired = ["tdx"]\n[tee.tdx]\n' + ROOTS
    return judged(bound(tdx), rules=rules, outcome=Outcome.COULD_NOT_CHECK)


@case
def tee_line_whose_tcb_nobody_appraised_beside_one_that_breaks_a_rule() -> Case:
    rules = '[tee]\nrequired = ["sev-snp", "tdx"]\n[tee.tdx]\n' + RULES + ROOTS
    return judged(bound(tdx, snp({0x90: b"\x4e" * 48})), rules=rules)


@case
def two_tee_lines_beside_the_quote() -> Case:
    return judged(bound(tdx, snp()), None, None)


@case
def tee_report_of_an_unknown_version_that_the_policy_does_not_mention() -> Case:
    return judged(bound(snp({0: b"\x63"})), rules=ROOTS, outcome=Outcome.COULD_NOT_CHECK)
