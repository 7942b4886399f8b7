# SPDX-License-Identifier: Apache-2.0
"""Origins without a TPM: what their TEEs have to show in its place, and what such an origin is refused for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import device_forge
import intel_sgx
import pytest
import tee_defects
from alone_forge import AloneForge
from defects import _witness
from device_forge import NitroForge
from forge import NOW, Forge
from nacl.signing import SigningKey
from nvidia_forge import NvidiaForge
from tee_defects import LAUNCH, POLICY, REQUIRED, ROOTS, RULES, pem, snp, with_lines
from tee_makers import nitro, nvidia, outcome, said, tdx

from quotary_verifier import (
    CheckState,
    ClaimSource,
    NotChecked,
    Outcome,
    Question,
    Rejected,
    Report,
    Step,
    load_policy,
    verify,
    verify_in,
    verify_statement,
)
from quotary_verifier.errors import PolicyError
from quotary_verifier.evidence.tee.lines import Bound, TeeRoots, verify_tee_line
from quotary_verifier.policy.tee import Image, TeeRules
from quotary_verifier.recipe.alone import NO_CHAIN, NO_TPM
from quotary_verifier.recipe.endorsement import moment
from quotary_verifier.recipe.evidence import evidence_of
from quotary_verifier.recipe.tee import ONE_AGENT
from quotary_verifier.tlog.cosignature import cosign
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, HardwareLine, encode_hardware_line
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.attestation import Attestation, LaterCheckpoint
from quotary_verifier.wire.declaration import Declaration, Service
from quotary_verifier.wire.records import Link, Statement

SPRING, SUMMER = int(device_forge.NOW.timestamp()), int(intel_sgx.NOW.timestamp())
NITRO_ROOT = f'[tee.roots]\nnitro = """\n{pem(NitroForge().root.der)}"""\n'
BARE = 'schema = "quotary-policy/v1"\n'
"""A policy that pins nothing and names no authority."""


def judged(
    forge: AloneForge, attestation: Attestation | None = None, policy: str = "", at: int = NOW
) -> Report:
    """What becomes of an attestation under a policy, by default one that pins the origin and requires SEV-SNP."""
    data = (attestation or forge.attestation()).encode()
    return outcome(data, Question(forge.body, at), policy or forge.pinned(POLICY))


def refused(report: Report, step: Step, reason: str) -> None:
    assert (report.outcome, report.failing) == (Outcome.REJECTED, step), report.reason
    assert reason in report.reason


def test_a_pinned_origin_without_a_tpm_verifies_by_its_processor_alone() -> None:
    forge = AloneForge()
    report = judged(forge)
    assert report.outcome is Outcome.VERIFIED, report.reason
    (root,) = said(report, "root")
    assert str(root).startswith("sev-snp: this commit")
    assert said(report, "tee.sev-snp") == ["accepted by the policy's rules"]
    sources = {claim.name: claim.source for claim in report.claims}
    assert (sources["host"], sources["model"], sources["commit"]) == (
        ClaimSource.HOST,
        ClaimSource.HOST,
        ClaimSource.HARDWARE,
    )
    assert said(report, "origin_pinned") == [True]
    assert NO_CHAIN in report.notices
    assert ONE_AGENT not in report.notices
    states = {check.step: (check.state, check.detail) for check in report.checks}
    skipped = [step for step in Step if step.startswith(("quote.", "ak.")) and step is not Step.QUOTE_RANGE]
    for step in (*skipped, Step.TPM_KIND, Step.WORKLOAD, Step.BOOT_LOGS, Step.PLATFORM):
        assert states[step] == (CheckState.NOT_CHECKED, NO_TPM)
    for step in (
        Step.GENESIS,
        Step.ORIGIN,
        Step.NOTE,
        Step.INCLUSION,
        Step.QUOTE_RANGE,
        Step.MODEL,
        Step.TEE,
    ):
        assert states[step][0] is CheckState.PASSED


@pytest.mark.parametrize(
    ("kind", "make", "rules", "at"),
    [
        ("nitro", nitro, '[tee]\nrequired = ["nitro"]\n[tee.nitro]\n' + NITRO_ROOT, SPRING),
        ("tdx", tdx, '[tee]\nrequired = ["tdx"]\n[tee.tdx]\nstatuses = ["UpToDate"]\n' + ROOTS, SUMMER),
    ],
)
def test_each_kind_of_a_whole_machine_can_bind_alone(
    kind: str, make: Callable[..., object], rules: str, at: int
) -> None:
    forge = AloneForge(tees=(make,))  # type: ignore[arg-type]
    report = judged(forge, policy=forge.pinned(rules), at=at)
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert str(said(report, "root")[0]).startswith(f"{kind}: this commit")


def test_an_origin_that_nobody_pins_is_known_by_what_was_launched() -> None:
    forge = AloneForge()
    report = judged(forge, policy=BARE + POLICY)
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert said(report, "origin_pinned") == [False]
    assert any("not pinned" in notice for notice in report.notices)
    snp_without = '[tee.sev-snp]\ngenerations = ["genoa"]\n'
    with pytest.raises(PolicyError, match="it would accept nothing"):
        load_policy((BARE + REQUIRED + snp_without + ROOTS).encode())


@pytest.mark.parametrize(
    "rules",
    [
        REQUIRED + '[tee.sev-snp]\ngenerations = ["genoa"]\n',
        REQUIRED + RULES + "debug = true\n",
        REQUIRED + '[tee.sev-snp]\ngenerations = ["genoa"]\nhost_data = []\n',
        RULES,
        '[tee]\nrequired = ["tdx"]\n[tee.tdx]\nrtmr = { 1 = ["' + "00" * 48 + '"] }\n',
        '[tee]\nrequired = ["nitro"]\n[tee.nitro]\npcrs = { 3 = ["' + "11" * 48 + '"] }\n',
        '[tee]\nrequired = ["nitro"]\n[tee.nitro]\nkinds = ["enclave", "nitro-tpm"]\npcrs = { 0 = ["'
        + "11" * 48
        + '"] }\n',
        '[[warn]]\nrule = "tee.sev-snp.measurement"\nuntil = 2020-01-01T00:00:00Z\n' + POLICY,
        '[[warn]]\nrule = "tee.sev-snp"\nuntil = 2020-01-01T00:00:00Z\n' + POLICY,
    ],
)
def test_a_policy_without_pins_and_authorities_must_name_what_was_launched(rules: str) -> None:
    with pytest.raises(PolicyError, match="it would accept nothing"):
        load_policy((BARE + rules).encode())


def test_who_pins_or_endorses_others_does_not_accept_an_origin_for_its_image() -> None:
    forge, other = AloneForge(), AloneForge()
    refused(judged(forge, policy=other.pinned(POLICY)), Step.ORIGIN, "does not pin the origin")
    refused(
        judged(forge, policy=Forge().policy(POLICY)), Step.ORIGIN, "no key that an authority could endorse"
    )


def test_an_origin_with_a_tpm_is_not_accepted_for_its_image() -> None:
    forge = Forge(tees=(snp(),))
    report = outcome(forge.attestation().encode(), Question(forge.body, NOW), BARE + POLICY)
    refused(report, Step.AK_ENDORSEMENT, "does not pin the origin")


def test_a_note_without_the_line_of_the_note_key_or_with_a_wrong_one_is_refused() -> None:
    refused(judged(AloneForge(signed=False)), Step.NOTE, "lacks the Ed25519 line")
    refused(judged(AloneForge(other_key=SigningKey.generate())), Step.NOTE, "lacks the Ed25519 line")
    forge = AloneForge()
    whole = forge.attestation()
    note = parse_note(whole.note)
    payload = bytearray(note.lines[0].payload)
    payload[0] ^= 1
    wrong = replace(note, lines=(replace(note.lines[0], payload=bytes(payload)), *note.lines[1:]))
    refused(judged(forge, replace(whole, note=wrong.encode())), Step.NOTE, "")


def test_a_later_checkpoint_needs_the_line_of_the_note_key_too() -> None:
    forge = AloneForge()
    whole = forge.attestation()
    note = parse_note(whole.note)
    later = LaterCheckpoint(replace(note, lines=note.lines[:1]).encode(), whole.path)
    assert judged(forge, replace(whole, later=(later,))).outcome is Outcome.VERIFIED
    bare = LaterCheckpoint(replace(note, lines=note.lines[1:]).encode(), whole.path)
    refused(judged(forge, replace(whole, later=(bare,))), Step.WITNESS, "lacks the Ed25519 line")


@pytest.mark.parametrize(
    "rules",
    [
        ROOTS,
        RULES + ROOTS,
        '[tee]\nrequired = ["nvidia"]\n[tee.nvidia]\narchitectures = ["hopper"]\n' + ROOTS,
        "",
    ],
)
def test_a_policy_that_requires_no_tee_of_a_whole_machine_refuses_it(rules: str) -> None:
    forge = AloneForge()
    refused(judged(forge, policy=forge.pinned(rules)), Step.TEE, "requires no TEE of a whole machine")


def test_a_gpu_alone_binds_nothing() -> None:
    gpu = NvidiaForge()
    forge = AloneForge(tees=(nvidia((gpu,)),))
    root = f'[tee.roots]\nnvidia = """\n{pem(gpu.root.der)}"""\n'
    rules = '[tee]\nrequired = ["nvidia"]\n[tee.nvidia]\narchitectures = ["hopper", "blackwell"]\n' + root
    refused(
        judged(forge, policy=forge.pinned(rules), at=SPRING), Step.TEE, "requires no TEE of a whole machine"
    )
    refused(judged(forge, at=SPRING), Step.TEE, "")


@pytest.mark.parametrize(
    ("rules", "step"),
    [
        (f'[platform.pcrs]\n4 = ["{"aa" * 32}"]\n', Step.PLATFORM),
        ("[platform.secure_boot]\n", Step.PLATFORM),
        ("[platform.clock]\nrestarts = 0\n", Step.PLATFORM),
        (f'[[reference]]\nname = "a"\npcrs = {{ 4 = ["{"aa" * 32}"] }}\n', Step.PLATFORM),
        ("[tpm]\nsafe_clock = true\n", Step.QUOTE_CLOCK),
        ("[workload]\nopaque = false\n", Step.WORKLOAD),
        ('[workload]\ntypes = ["model"]\n', Step.WORKLOAD),
    ],
)
def test_a_policy_with_rules_that_only_a_tpm_can_keep_refuses_it(rules: str, step: Step) -> None:
    forge = AloneForge()
    refused(judged(forge, policy=forge.pinned(rules + POLICY)), step, NO_TPM)


def test_boot_logs_have_nothing_to_which_they_could_replay() -> None:
    forge = AloneForge()
    with_log = replace(forge.attestation(), boot_logs={"tcg": b"\0" * 40})
    refused(judged(forge, with_log), Step.BOOT_LOGS, "no PCRs")


def test_a_record_that_cites_an_event_is_refused_and_one_of_a_tpm_that_cites_none() -> None:
    forge, beside = AloneForge(), Forge(tees=(snp(),))
    cited = replace(forge.record(), model=beside.record().model)
    refused(judged(forge, forge.attestation(record=cited)), Step.MODEL, "cites an event of a workload log")
    uncited = replace(beside.record(), model=forge.record().model)
    data = beside.attestation(record=uncited).encode()
    refused(outcome(data, Question(beside.body, NOW), beside.policy(POLICY)), Step.MODEL, "cites no event")


def test_lines_that_claim_different_first_leaves_are_refused() -> None:
    forge = AloneForge(tees=(snp(), tdx), second=1)
    refused(judged(forge), Step.TEE, "different first leaves")


def test_leaves_before_the_first_are_history() -> None:
    refused(judged(AloneForge(index=1)), Step.QUOTE_RANGE, "not-in-commit")


def test_a_note_without_a_line_or_with_one_that_no_support_fits_is_refused() -> None:
    forge = AloneForge()
    whole = forge.attestation()
    note = parse_note(whole.note)
    bare = replace(whole, note=replace(note, lines=note.lines[:1]).encode())
    refused(judged(forge, bare), Step.TEE, "no line of a known TEE")
    refused(judged(forge, replace(whole, tees=())), Step.TEE, "one support for each")
    other = AloneForge(tees=(tdx,)).attestation().tees
    refused(judged(forge, replace(whole, tees=(*whole.tees, *other))), Step.TEE, "one support for each")


def test_a_tpms_line_is_unknown_there_and_a_tpms_support_refused() -> None:
    forge, beside = AloneForge(), Forge()
    whole, quoted = forge.attestation(), beside.attestation()
    line = encode_hardware_line(
        forge.origin, b"an ak", HardwareLine(IDENTIFIER_TPM2_QUOTE, forge.first, b"quote")
    )
    report = judged(forge, replace(whole, note=with_lines(whole, line)))
    assert report.outcome is Outcome.VERIFIED
    assert any(text.startswith("note: a line of") for text in report.not_understood)
    refused(judged(forge, replace(whole, supports=quoted.supports)), Step.TEE, "one is of a TPM")


@pytest.mark.parametrize("what", ["digest", "genesis", "signature", "rule"])
def test_evidence_that_binds_something_else_or_breaks_a_rule_is_refused(what: str) -> None:
    def make(digest: bytes, genesis: bytes) -> object:
        if what == "rule":
            return snp({0x90: b"\x4e" * 48})(digest, genesis)
        report, support = snp()(
            digest[::-1] if what == "digest" else digest, genesis[::-1] if what == "genesis" else genesis
        )
        return (report[:0x90] + b"\xff" + report[0x91:] if what == "signature" else report), support

    refused(judged(AloneForge(tees=(make,))), Step.TEE, "sev-snp: ")  # type: ignore[arg-type]


def test_further_outputs_of_a_commit_verify_by_the_fast_path_as_they_do_in_full() -> None:
    forge = AloneForge()
    policy, question = load_policy(forge.pinned(POLICY).encode()), Question(forge.body, NOW)
    data = forge.attestation().encode()
    verdict, commit = verify_in(data, question, policy)
    again = commit.verify(data, question)
    assert (
        again.report.as_json() == verdict.report.as_json() == verify(data, question, policy).report.as_json()
    )
    with pytest.raises(Rejected, match="output"):
        commit.verify(data, Question(b"another", NOW))


def test_a_statement_of_such_an_origin_verifies_and_says_what_its_tee_shows() -> None:
    forge = AloneForge()
    text = Declaration((Service(("/v1/chat/completions",), (), ()),)).text
    record = Statement(salt=b"s" * 16, time=NOW * 1000, text=text).encode()
    policy = load_policy(forge.pinned(POLICY).encode())
    verified = verify_statement(forge.attestation(record=record).encode(), NOW, policy)
    assert verified.origin == forge.origin
    names = [claim.name for claim in verified.verdict.claims]
    assert {"tee.sev-snp", "tee.sev-snp.launch", "commit", "statement"} <= set(names)
    assert verified.verdict.claim("tee.sev-snp.launch").value == LAUNCH  # type: ignore[union-attr]


def test_there_is_no_platform_of_which_a_policy_could_learn_pcrs() -> None:
    forge = AloneForge()
    with pytest.raises(NotChecked, match="names no TPM: there are no PCRs") as caught:
        evidence_of(forge.attestation().encode(), NOW, load_policy(forge.pinned(POLICY).encode()))
    assert caught.value.report.failing is Step.QUOTE_PCRS


def test_witnesses_and_freshness_are_judged_as_with_a_tpm() -> None:
    forge = AloneForge()
    whole = forge.attestation()
    key, rule = _witness()
    policy = forge.pinned(rule + "[freshness]\nmax_age = 600\n" + POLICY)
    refused(judged(forge, whole, policy), Step.WITNESS, "")
    note = parse_note(whole.note)
    seen = note.with_lines([cosign(note.text, "witness.example", key, NOW - 60)]).encode()
    assert judged(forge, replace(whole, note=seen), policy).outcome is Outcome.VERIFIED


def image(weights: bytes, launch: str = LAUNCH) -> str:
    return f'[[tee.sev-snp.image]]\nweights = "{weights.hex()}"\nregisters = {{ launch = ["{launch}"] }}\n'


def test_a_model_is_measured_where_the_launched_image_is_one_that_serves_its_weights() -> None:
    forge = AloneForge()
    report = judged(forge, policy=forge.pinned(REQUIRED + RULES + image(forge.weights) + ROOTS))
    assert report.outcome is Outcome.VERIFIED, report.reason
    sources = {claim.name: claim.source for claim in report.claims}
    assert (sources["model"], sources["model_weights"]) == (ClaimSource.MEASURED, ClaimSource.MEASURED)
    assert sources["model_link"] is ClaimSource.HOST


def test_a_record_of_other_weights_than_the_launched_image_serves_is_refused() -> None:
    forge, other = AloneForge(), hashlib.sha256(b"other").digest()
    rules = forge.pinned(REQUIRED + RULES + image(other) + ROOTS)
    refused(judged(forge, policy=rules), Step.MODEL, "does not serve the weights")
    rules = forge.pinned(REQUIRED + RULES + image(other) + image(forge.weights) + ROOTS)
    assert judged(forge, policy=rules).outcome is Outcome.VERIFIED


@pytest.mark.parametrize("why", ["another image", "a configured link", "a tolerated rule", "no image"])
def test_else_a_model_is_the_hosts_word(why: str) -> None:
    forge = AloneForge(link=Link.CONFIGURED if why == "a configured link" else Link.STARTED)
    rules, warn = RULES, ""
    if why == "a tolerated rule":
        forge.tees = (snp({0x08: (0x30000 | 1 << 19).to_bytes(8, "little")}),)
        warn = '[[warn]]\nrule = "tee.sev-snp.debug"\nuntil = 2100-01-01T00:00:00Z\n'
    if why != "no image":
        rules += image(forge.weights, "11" * 48 if why == "another image" else LAUNCH)
    report = judged(forge, policy=forge.pinned(warn + REQUIRED + rules + ROOTS))
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert {claim.name: claim.source for claim in report.claims}["model"] is ClaimSource.HOST


def test_every_register_of_an_image_has_to_be_as_the_policy_says() -> None:
    forge = AloneForge(tees=(tdx,))
    quoted = {
        str(claim.name): claim.value
        for claim in judged(forge, policy=tdx_policy(forge, ""), at=SUMMER).claims
    }
    mrtd, rtmr = quoted["tee.tdx.mrtd"], quoted["tee.tdx.rtmr1"]
    for value, source in ((rtmr, ClaimSource.MEASURED), ("11" * 48, ClaimSource.HOST)):
        registers = f'registers = {{ mrtd = ["{mrtd}"], rtmr1 = ["{value}"] }}\n'
        rules = f'[[tee.tdx.image]]\nweights = "{forge.weights.hex()}"\n{registers}'
        report = judged(forge, policy=tdx_policy(forge, rules), at=SUMMER)
        assert {claim.name: claim.source for claim in report.claims}["model"] is source


def test_the_registers_of_another_kind_are_no_image() -> None:
    evidence, support = snp()(b"d" * 32, b"g" * 32)
    bound, roots = Bound(b"d" * 32, b"g" * 32), TeeRoots(amd=tee_defects.AMD.roots())
    (claims,) = verify_tee_line(evidence, support, bound, moment(NOW), roots)
    launch = frozenset({bytes.fromhex(LAUNCH)})
    rules = TeeRules(images=(Image("sev-snp", b"w" * 32, {"launch": launch}),))
    assert rules.served("sev-snp", claims) == {b"w" * 32}
    assert not rules.served("cca", claims)
    more = TeeRules(images=(Image("sev-snp", b"w" * 32, {"launch": launch, "rtmr0": launch}),))
    assert not more.served("sev-snp", claims)


def tdx_policy(forge: AloneForge, image: str) -> str:
    return forge.pinned('[tee]\nrequired = ["tdx"]\n[tee.tdx]\nstatuses = ["UpToDate"]\n' + image + ROOTS)


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ('[[tee.sev-snp.image]]\nweights = "00"\nregisters = {}\n', "weights cannot be used"),
        (f'[[tee.sev-snp.image]]\nweights = "{"11" * 32}"\n', "must name launch"),
        (image(b"w" * 32, "00" * 48), "measured nothing"),
        (image(b"w" * 32, "11" * 47), "96 lower-case"),
        (image(b"w" * 32, "") + "more = 1\n", "hexadecimal"),
        (image(b"w" * 32) + "more = 1\n", "more is not a key"),
        (image(b"w" * 32).replace("launch =", "pcr0 ="), "is not one of launch"),
        (image(b"w" * 32).replace(f'["{LAUNCH}"]', "[]"), "allows no value"),
        (
            f'[[tee.tdx.image]]\nweights = "{"11" * 32}"\nregisters = {{ rtmr1 = ["{LAUNCH}"] }}\n',
            "must name mrtd",
        ),
        (
            f'[[tee.nitro.image]]\nweights = "{"11" * 32}"\nregisters = {{ pcr16 = ["{LAUNCH}"] }}\n',
            "must name pcr0",
        ),
        (
            f'[[tee.nvidia.image]]\nweights = "{"11" * 32}"\n[tee.nvidia]\narchitectures = ["hopper"]\n',
            "image is not a key",
        ),
    ],
)
def test_an_image_that_shows_nothing_is_no_policy(rules: str, why: str) -> None:
    with pytest.raises(PolicyError, match=why):
        load_policy(AloneForge().pinned(REQUIRED + RULES + rules).encode())


def test_a_rule_that_only_warns_is_a_tolerance_until_its_date_and_no_longer() -> None:
    debug = snp({0x08: (0x30000 | 1 << 19).to_bytes(8, "little")})
    for forge in (AloneForge(tees=(debug,)), Forge(tees=(debug,))):
        data, warn = (
            forge.attestation().encode(),
            '[[warn]]\nrule = "tee.sev-snp.debug"\nuntil = 2026-12-01T00:00:00Z\n',
        )
        rules = f'{BARE}[[pin]]\norigin = "{forge.origin}"\n{warn}{POLICY}'
        report = outcome(data, Question(forge.body, NOW), rules)
        assert report.outcome is Outcome.VERIFIED, report.reason
        (tolerance,) = report.tolerances
        assert tolerance.startswith("tee.sev-snp.debug only warns: ")
        assert "rejected from 2026-12-01T00:00:00Z" in tolerance
        assert said(report, "tee.sev-snp") == ["accepted, with tolerances"]
        policy = load_policy(rules.encode())
        _, commit = verify_in(data, Question(forge.body, NOW), policy)
        assert commit.verify(data, Question(forge.body, NOW)).report.tolerances == report.tolerances
        refused(
            outcome(data, Question(forge.body, NOW), rules.replace("2026-12", "2026-10")),
            Step.TEE,
            "debugged",
        )
        kind = rules.replace('"tee.sev-snp.debug"', '"tee.sev-snp"')
        assert outcome(data, Question(forge.body, NOW), kind).outcome is Outcome.VERIFIED
        exact = kind + '[[warn]]\nrule = "tee.sev-snp.debug"\nuntil = 2026-10-01T00:00:00Z\n'
        refused(outcome(data, Question(forge.body, NOW), exact), Step.TEE, "debugged")


def test_signatures_and_what_evidence_binds_are_never_warned_away() -> None:
    forge = AloneForge(tees=(lambda digest, genesis: snp()(digest[::-1], genesis),))
    warn = '[[warn]]\nrule = "tee.sev-snp"\nuntil = 2100-01-01T00:00:00Z\n'
    refused(judged(forge, policy=forge.pinned(warn + POLICY)), Step.TEE, "report data")


def test_a_warning_for_no_rule_is_answered_with_the_rules_that_begin_alike() -> None:
    text = '[[warn]]\nrule = "tee.sev-snp.measurements"\nuntil = 2100-01-01T00:00:00Z\n'
    with pytest.raises(PolicyError, match=r"names no rule.*tee\.sev-snp\.measurement,") as caught:
        load_policy(AloneForge().pinned(text + POLICY).encode())
    assert "platform" not in str(caught.value)


def test_rules_that_do_not_name_what_was_launched_are_said_to_fit_other_guests() -> None:
    forge = AloneForge()
    unnamed = REQUIRED + RULES.replace(f'measurements = ["{LAUNCH}"]', "") + ROOTS
    said_so = "do not name what was launched"
    loose, strict = judged(forge, policy=forge.pinned(unnamed)), judged(forge)
    assert loose.outcome is strict.outcome is Outcome.VERIFIED, loose.reason
    assert [said_so in notice for notice in loose.notices].count(True) == 1
    assert not any(said_so in notice for notice in strict.notices)


def test_what_no_key_of_a_policy_accepts_no_warning_does() -> None:
    for rule in (
        "tee",
        "tee.required",
        "tee.tdx.tcb",
        "tee.tdx.debug",
        "tee.sev-snp.tcb-order",
        "tee.azure.paravisor",
        "tee.azure.hardware",
        "tee.azure.tpm",
        "tee.cca.lifecycle",
        "tee.cca.platform-key",
    ):
        text = f'[[warn]]\nrule = "{rule}"\nuntil = 2100-01-01T00:00:00Z\n'
        with pytest.raises(PolicyError, match="names no rule"):
            load_policy(AloneForge().pinned(text + POLICY).encode())
    forge = Forge(tees=(tee_defects.tdx,))
    text = '[[warn]]\nrule = "tee.tdx"\nuntil = 2100-01-01T00:00:00Z\n[tee]\nrequired = ["tdx"]\n[tee.tdx]\n'
    report = outcome(
        forge.attestation().encode(),
        Question(forge.body, SUMMER),
        f'{BARE}[[pin]]\norigin = "{forge.origin}"\n{text}{ROOTS}',
    )
    assert (report.outcome, report.failing) == (Outcome.COULD_NOT_CHECK, Step.TEE)
