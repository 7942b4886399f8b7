# SPDX-License-Identifier: Apache-2.0
"""Step `tee`: what a verdict says of a note that TEEs bound beside a TPM, and what costs only who has such lines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cca_tokens
import device_forge
import intel_sgx
import pytest
from defects import CASES, _witness
from device_forge import NitroForge
from forge import NOW, Forge
from fresh_quotes import made
from tee_defects import AMD, LAUNCH, POLICY, REQUIRED, ROOTS, RULES, bound, pem, snp
from tee_makers import GPUS, nitro, nvidia, outcome, said, tdx

from quotary_verifier import (
    CheckState,
    ClaimSource,
    NotChecked,
    Outcome,
    Question,
    Rejected,
    Step,
    load_policy,
    verify,
    verify_fresh,
    verify_in,
)
from quotary_verifier.evidence.tee.shape import report_data
from quotary_verifier.recipe.tee import NO_PLATFORM_KEY, ONE_AGENT
from quotary_verifier.tlog.cosignature import cosign
from quotary_verifier.tlog.hardware import IDENTIFIER_CCA
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.tee_support import TeeSupport

SPRING, SUMMER = int(device_forge.NOW.timestamp()), int(intel_sgx.NOW.timestamp())
DEVICE_ROOTS = (
    f'[tee.roots]\nnitro = """\n{pem(NitroForge().root.der)}"""\nnvidia = """\n{pem(GPUS[0].root.der)}"""\n'
)


def pinned(forge: Forge, rules: str) -> str:
    """A policy that pins the origin, whatever the time."""
    return f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{forge.origin}"\n{rules}'


def test_a_verdict_names_what_each_root_contributes_and_that_they_need_not_be_of_one_machine() -> None:
    forge = bound()
    report = outcome(forge.attestation().encode(), Question(forge.body, NOW), forge.policy(POLICY))
    assert report.outcome is Outcome.VERIFIED, report.reason
    tpm, tee = said(report, "root")
    assert str(tpm).startswith("tpm2-quote: this commit")
    assert str(tee).startswith("sev-snp: this commit")
    assert said(report, "tee.sev-snp") == ["accepted by the policy's rules"]
    assert said(report, "tee.sev-snp.generation") == ["Genoa"]
    assert said(report, "tee.sev-snp.debug") == [False]
    assert said(report, "tee.sev-snp.launch") == [LAUNCH]
    assert said(report, "tee.sev-snp.device") == [AMD.chip.hex()]
    assert said(report, "tee.sev-snp.committed_tcb") == ["bootloader=10 tee=1 snp=27 microcode=200"]
    sources = {claim.name: claim.source for claim in report.claims}
    assert sources["tee.sev-snp.launch"] is ClaimSource.HARDWARE
    assert sources["tee.sev-snp.root"] is ClaimSource.ENDORSED
    assert ONE_AGENT in report.notices
    assert any("a root of the policy's own" in notice for notice in report.notices)


def test_a_line_without_rules_is_verified_and_listed_as_not_appraised() -> None:
    forge = bound(snp({0x08: (0x30000 | 1 << 19).to_bytes(8, "little")}))
    report = outcome(forge.attestation().encode(), Question(forge.body, NOW), forge.policy(ROOTS))
    assert report.outcome is Outcome.VERIFIED
    assert said(report, "tee.sev-snp") == ["verified, not appraised"]
    assert said(report, "tee.sev-snp.debug") == [True]
    assert any("nothing of it was appraised" in notice for notice in report.notices)
    (check,) = [check for check in report.checks if check.step is Step.TEE]
    assert (check.state, check.detail) == (CheckState.PASSED, "sev-snp verified, not appraised")


def test_an_intel_and_an_amd_processor_are_each_judged_by_their_own_rules() -> None:
    forge = bound(tdx, snp())
    rules = '[tee]\nrequired = ["sev-snp"]\n' + RULES + ROOTS
    report = outcome(forge.attestation().encode(), Question(forge.body, SUMMER), pinned(forge, rules))
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert len(said(report, "root")) == 3
    assert said(report, "tee.tdx") == ["verified, not appraised"]
    assert said(report, "tee.sev-snp") == ["accepted by the policy's rules"]
    assert said(report, "tee.tdx.debug") == [False]
    assert len(said(report, "tee.tdx.mrtd")) == 1


def cca(digest: bytes, genesis: bytes) -> tuple[bytes, TeeSupport]:
    return cca_tokens.cca_mint(report_data(digest, genesis)), TeeSupport(IDENTIFIER_CCA, {})


CCA_RULES = f'[tee.cca]\nkeys = ["""{cca_tokens.pem_key()}"""]\nrim = ["{"01" * 32}"]\n'


def test_a_realm_is_accepted_under_the_platform_keys_that_the_policy_brings() -> None:
    forge = bound(cca)
    policy = pinned(forge, '[tee]\nrequired = ["cca"]\n' + CCA_RULES)
    report = outcome(forge.attestation().encode(), Question(forge.body, NOW), policy)
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert said(report, "tee.cca") == ["accepted by the policy's rules"]
    assert said(report, "tee.cca.rim") == ["01" * 32]
    assert said(report, "tee.cca.lifecycle") == ["0x3000, secured"]
    assert said(report, "tee.cca.debug") == [False]
    assert said(report, "tee.cca.root") == [f"platform key sha256:{cca_tokens.platform_key().sha256.hex()}"]
    assert said(report, "tee.cca.not_shown") == ["revocation"]
    assert NO_PLATFORM_KEY not in report.not_understood
    other = policy.replace(cca_tokens.pem_key(), cca_tokens.pem_key(cca_tokens.RAK))
    report = outcome(forge.attestation().encode(), Question(forge.body, NOW), other)
    assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.TEE)
    assert report.reason == (
        "cca: the signature of the platform token of arm cca verifies by no platform key that was given"
    )
    bare = Forge()
    report = outcome(
        bare.attestation().encode(), Question(bare.body, NOW), policy.replace(forge.origin, bare.origin)
    )
    assert (report.outcome, report.reason) == (
        Outcome.REJECTED,
        "the policy requires evidence of cca, and the note has none",
    )


def test_under_a_policy_without_platform_keys_a_realms_line_is_listed_and_nothing_of_it_counts() -> None:
    forge = bound(cca, snp())
    report = outcome(forge.attestation().encode(), Question(forge.body, NOW), forge.policy(ROOTS))
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert NO_PLATFORM_KEY in report.not_understood
    assert not any(claim.name.startswith("tee.cca") for claim in report.claims)
    assert len(said(report, "root")) == 2
    (check,) = [check for check in report.checks if check.step is Step.TEE]
    assert check.detail == "sev-snp verified, not appraised"
    alone = bound(cca)
    report = outcome(alone.attestation().encode(), Question(alone.body, NOW), alone.policy())
    assert report.outcome is Outcome.VERIFIED, report.reason
    (check,) = [check for check in report.checks if check.step is Step.TEE]
    assert check.state is CheckState.NOT_CHECKED
    verdict, commit = verify_in(
        alone.attestation().encode(), Question(alone.body, NOW), load_policy(alone.policy().encode())
    )
    again = commit.verify(alone.attestation().encode(), Question(alone.body, NOW))
    assert again.report.not_understood == verdict.report.not_understood == (NO_PLATFORM_KEY,)


@pytest.mark.parametrize(
    ("token", "listed"),
    [
        (lambda data: cca_tokens.cca_mint(data)[:-1], False),
        (lambda data: cca_tokens.cca_mint(data[::-1]), False),
        (lambda data: cca_tokens.newer(realm={10: data, 44238: b"x"}), False),
        (lambda data: cca_tokens.token({10: data}, {265: "tag:arm.com,2026:cca_platform#2.0.0"}), True),
    ],
    ids=["cut off", "another challenge", "short measurement", "later profile"],
)
def test_a_realms_line_without_platform_keys_is_still_held_to_all_that_needs_none(
    token: Callable[[bytes], bytes], listed: bool
) -> None:
    forge = bound(
        lambda digest, genesis: (token(report_data(digest, genesis)), TeeSupport(IDENTIFIER_CCA, {}))
    )
    report = outcome(forge.attestation().encode(), Question(forge.body, NOW), forge.policy())
    assert report.outcome is (Outcome.VERIFIED if listed else Outcome.REJECTED)
    assert (NO_PLATFORM_KEY in report.not_understood) is listed
    with_keys = pinned(forge, CCA_RULES)
    report = outcome(forge.attestation().encode(), Question(forge.body, NOW), with_keys)
    assert report.outcome is (Outcome.COULD_NOT_CHECK if listed else Outcome.REJECTED)


def test_an_enclave_and_devices_beside_it_are_told_apart() -> None:
    forge = bound(nitro, nvidia())
    rules = '[tee]\nrequired = ["nitro", "nvidia"]\n[tee.nitro]\n[tee.nvidia]\narchitectures = ["hopper"]\n'
    policy = pinned(forge, rules + DEVICE_ROOTS)
    report = outcome(forge.attestation().encode(), Question(forge.body, SPRING), policy)
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert said(report, "tee.nitro.module") == ["i-1-enc2"]
    assert said(report, "tee.nvidia.0.model") == said(report, "tee.nvidia.1.model") == ["GH100"]
    assert said(report, "tee.nvidia.0.device") != said(report, "tee.nvidia.1.device")
    assert said(report, "tee.nvidia.0.not_shown") == ["revocation, reference-values, attachment"]
    assert any("no measurement of it was judged" in notice for notice in report.notices)
    other = outcome(
        forge.attestation().encode(), Question(forge.body, SPRING), policy.replace("hopper", "blackwell")
    )
    assert (other.outcome, other.failing) == (Outcome.REJECTED, Step.TEE)


def test_collateral_is_judged_at_the_time_that_a_quorum_shows_and_else_at_the_time_of_verification() -> None:
    forge = bound(tdx)
    whole = forge.attestation()
    key, rule = _witness()
    note = parse_note(whole.note)
    seen = note.with_lines([cosign(note.text, "witness.example", key, SUMMER)]).encode()
    later = Question(forge.body, NOW)
    report = outcome(replace(whole, note=seen).encode(), later, pinned(forge, rule + ROOTS))
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert said(report, "tee.tdx") == ["verified, not appraised"]
    rules = "[tee.tdx]\n" + ROOTS
    report = outcome(replace(whole, note=seen).encode(), later, pinned(forge, rules))
    assert (report.outcome, report.failing) == (Outcome.COULD_NOT_CHECK, Step.TEE)


def test_a_line_of_another_time_that_no_rule_asks_for_is_listed_and_counts_for_nothing() -> None:
    forge = bound(tdx, snp())
    report = outcome(forge.attestation().encode(), Question(forge.body, NOW), pinned(forge, ROOTS))
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert said(report, "tee.tdx") == ["could not be dated: nothing of it counts"]
    assert said(report, "tee.sev-snp") == ["verified, not appraised"]
    assert len(said(report, "root")) == 2
    assert not any(claim.name.startswith("tee.tdx.") for claim in report.claims)
    assert any("could not be dated" in notice for notice in report.notices)
    years = Question(forge.body, NOW + 20 * 366 * 86_400)
    report = outcome(forge.attestation().encode(), years, pinned(forge, ROOTS))
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert said(report, "tee.sev-snp") == ["could not be dated: nothing of it counts"]
    (check,) = [check for check in report.checks if check.step is Step.TEE]
    assert check.state is CheckState.NOT_CHECKED
    report = outcome(forge.attestation().encode(), years, pinned(forge, RULES + ROOTS))
    assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.TEE)
    assert "is not valid at" in report.reason


def test_what_is_false_in_a_line_of_another_time_rejects_all_the_same() -> None:
    forge = bound(lambda digest, genesis: snp()(digest[::-1], genesis))
    years = Question(forge.body, NOW + 20 * 366 * 86_400)
    report = outcome(forge.attestation().encode(), years, pinned(forge, ROOTS))
    assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.TEE)


def test_the_first_false_line_is_named_with_the_number_of_the_others() -> None:
    forge = bound(snp({0x90: b"\x4e" * 48}))
    rules = '[tee]\nrequired = ["sev-snp", "nitro"]\n[tee.nitro]\n' + RULES + ROOTS
    report = outcome(forge.attestation().encode(), Question(forge.body, NOW), forge.policy(rules))
    assert report.failing is Step.TEE
    assert report.reason == f"sev-snp: the measurement {'4e' * 48} is not accepted (and 1 more)"
    assert report.claims == ()


def test_no_byte_of_the_line_can_be_altered() -> None:
    forge = bound()
    whole = forge.attestation()
    policy, question = load_policy(forge.policy(ROOTS).encode()), Question(forge.body, NOW)
    note = parse_note(whole.note)
    line = note.lines[-1]
    assert verify(whole.encode(), question, policy).claim("tee.sev-snp") is not None
    for position in range(len(line.payload)):
        payload = bytearray(line.payload)
        payload[position] ^= 0x01
        altered = replace(note, lines=(*note.lines[:-1], replace(line, payload=bytes(payload)))).encode()
        with pytest.raises((Rejected, NotChecked)):
            verify(replace(whole, note=altered).encode(), question, policy)


def test_no_byte_of_what_vouches_for_it_can_be_altered() -> None:
    forge = bound()
    whole = forge.attestation()
    data = whole.encode()
    policy, question = load_policy(forge.policy(ROOTS).encode()), Question(forge.body, NOW)
    (support,) = whole.tees
    start = data.index(support.endorsements["leaf"][0]) - 60
    for position in range(start, data.index(b"\x08\x58\x20", start), 3):
        altered = data[:position] + bytes((data[position] ^ 0x01,)) + data[position + 1 :]
        with pytest.raises(Rejected):
            verify(altered, question, policy)


def test_further_outputs_of_a_commit_say_the_same_without_its_evidence_being_verified_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forge = bound()
    data, policy, question = (
        forge.attestation(),
        load_policy(forge.policy(POLICY).encode()),
        Question(forge.body, NOW),
    )
    verdict, commit = verify_in(data.encode(), question, policy)
    assert verdict.report.as_json() == commit.verify(data.encode(), question).report.as_json()
    monkeypatch.setattr(
        "quotary_verifier.recipe.tee.verify_tee_line", lambda *_: pytest.fail("verified again")
    )
    dropped = replace(data, request_key=None).encode()
    assert commit.verify(dropped, question).claims == verdict.claims


def test_further_outputs_with_other_tee_lines_are_verified_in_full() -> None:
    forge = bound()
    data, policy, question = (
        forge.attestation(),
        load_policy(forge.policy(POLICY).encode()),
        Question(forge.body, NOW),
    )
    _, commit = verify_in(data.encode(), question, policy)
    note = parse_note(data.note)
    for other in (
        replace(data, tees=()),
        replace(data, note=replace(note, lines=note.lines[:-1]).encode(), tees=()),
    ):
        with pytest.raises(Rejected):
            commit.verify(other.encode(), question)


def test_a_fresh_quote_carries_no_evidence_of_a_tee_and_is_rejected_where_the_policy_requires_one() -> None:
    forge = Forge()
    nonce = b"n" * 16
    data = made(forge, nonce=nonce).encode()
    assert verify_fresh(data, nonce, NOW, load_policy(forge.policy(RULES).encode())).claims
    with pytest.raises(Rejected, match="requires evidence of sev-snp, and a fresh quote carries none"):
        verify_fresh(data, nonce, NOW, load_policy(forge.policy(REQUIRED + RULES).encode()))


ALONE = """
import json, base64, sys
from quotary_verifier import Question, load_policy, verify
vector = json.load(open(sys.argv[1]))
question = Question(base64.b64decode(vector["output"]), at=vector["at"])
verify(base64.b64decode(vector["attestation"]), question, load_policy(vector["policy"].encode())).report
print(json.dumps([name for name in sys.modules if "tee" in name.split(".")[-1] or ".tee." in name]))
"""


@pytest.mark.parametrize(
    ("name", "loaded"), [("everything_holds", False), ("tee_line_beside_the_quote", True)]
)
def test_code_for_tees_is_loaded_only_where_a_note_has_such_a_line(name: str, loaded: bool) -> None:
    vector = Path(__file__).parents[3] / "vectors" / "attestation" / f"{name}.json"
    found = subprocess.run(
        [sys.executable, "-c", ALONE, str(vector)], capture_output=True, check=True, text=True
    )
    assert bool(json.loads(found.stdout)) is loaded, found.stdout


def test_an_attestation_with_tee_lines_is_written_as_it_was_read() -> None:
    case = CASES["two_tee_lines_beside_the_quote"]()
    parsed = Attestation.decode(case.attestation)
    assert parsed.encode() == case.attestation
    assert [support.identifier for support in parsed.tees] == ["quotary/tdx/v1", "quotary/sev-snp/v1"]
