# SPDX-License-Identifier: Apache-2.0
"""What genuine hardware signs and nobody may rely on: guests that others can write to, names that name nothing, and
registers of another kind. None of it may look stronger in a verdict than it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import device_forge
import intel_sgx
import pytest
from alone_forge import AloneForge
from azure_forge import AzureForge
from azure_host import AZURE_RULES, AzureHost
from cca_tokens import pem_key, realm_claims, token
from defects import _witness
from device_forge import NitroForge
from forge import NOW, Forge
from intel_sgx import TdxForge
from tee_defects import LAUNCH, REQUIRED, ROOTS, RULES, pem, snp
from tee_defects import tdx as bare_tdx
from tee_makers import outcome, said

from quotary_verifier import ClaimSource, Outcome, Question, Report, load_policy
from quotary_verifier.errors import PolicyError
from quotary_verifier.evidence.tee.azure import AzureTdxEndorsements
from quotary_verifier.evidence.tee.azure_hcl import TDX
from quotary_verifier.evidence.tee.azure_support import azure_endorsements
from quotary_verifier.evidence.tee.shape import report_data
from quotary_verifier.tlog.cosignature import cosign
from quotary_verifier.tlog.hardware import IDENTIFIER_CCA, IDENTIFIER_NITRO
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.tee_support import TeeSupport

SPRING = int(device_forge.NOW.timestamp())
BARE = 'schema = "quotary-policy/v1"\n'
NONE, SOME = "00" * 48, "11" * 48
DEBUG, MIGRATION = 1 << 19, 1 << 18


def sources(report: Report) -> dict[str, ClaimSource]:
    assert report.outcome is Outcome.VERIFIED, report.reason
    return {claim.name: claim.source for claim in report.claims}


def guest(bits: int) -> Any:
    """A guest whose policy has these bits besides."""
    return snp({0x08: (0x30000 | bits).to_bytes(8, "little")})


def image(kind: str, weights: bytes, registers: str) -> str:
    return f'[[tee.{kind}.image]]\nweights = "{weights.hex()}"\nregisters = {{ {registers} }}\n'


@pytest.mark.parametrize(("bit", "key"), [(DEBUG, "debug"), (MIGRATION, "migration_agent")])
def test_a_guest_that_others_may_write_to_shows_no_model_though_the_policy_accepts_it(
    bit: int, key: str
) -> None:
    for bits, source in ((bit, ClaimSource.HOST), (0, ClaimSource.MEASURED)):
        forge = AloneForge(tees=(guest(bits),))
        rules = RULES + f"{key} = true\n" + image("sev-snp", forge.weights, f'launch = ["{LAUNCH}"]')
        data, question = forge.attestation().encode(), Question(forge.body, NOW)
        assert sources(outcome(data, question, forge.pinned(REQUIRED + rules + ROOTS)))["model"] is source


def test_a_line_that_needed_a_tolerance_shows_no_model_whatever_the_rule_is_about() -> None:
    forge = AloneForge(tees=(snp({0x30: b"\1\0\0\0"}),))
    for accepted, source in ((True, ClaimSource.MEASURED), (False, ClaimSource.HOST)):
        warn = '[[warn]]\nrule = "tee.sev-snp.vmpl"\nuntil = 2100-01-01T00:00:00Z\n'
        rules = RULES + ("vmpls = [1]\n" if accepted else "")
        rules += image("sev-snp", forge.weights, f'launch = ["{LAUNCH}"]')
        policy = forge.pinned(warn + REQUIRED + rules + ROOTS)
        report = outcome(forge.attestation().encode(), Question(forge.body, NOW), policy)
        assert sources(report)["model"] is source


def realm(lifecycle: int) -> Callable[[bytes, bytes], tuple[bytes, TeeSupport]]:
    def bind(digest: bytes, genesis: bytes) -> tuple[bytes, TeeSupport]:
        made = token({10: report_data(digest, genesis)}, {2395: lifecycle})
        return made, TeeSupport(IDENTIFIER_CCA, {})

    return bind


def test_a_realm_on_a_platform_under_debug_shows_no_model_though_the_policy_accepts_it() -> None:
    for lifecycle, source in ((0x3000, ClaimSource.MEASURED), (0x4000, ClaimSource.HOST)):
        forge = AloneForge(tees=(realm(lifecycle),))
        rim = realm_claims()[44238].hex()
        rules = f'[tee.cca]\nkeys = ["""{pem_key()}"""]\ndebug = true\n' + image(
            "cca", forge.weights, f'rim = ["{rim}"]'
        )
        policy = forge.pinned('[tee]\nrequired = ["cca"]\n' + rules)
        report = outcome(forge.attestation().encode(), Question(forge.body, NOW), policy)
        assert sources(report)["model"] is source


def document(kind: str, **pcrs: bytes) -> Callable[[bytes, bytes], tuple[bytes, TeeSupport]]:
    """An enclave or an instance whose registers are these, the others of 0 to 4 not zero."""

    def bind(digest: bytes, genesis: bytes) -> tuple[bytes, TeeSupport]:
        values = {number: bytes([number + 1]) * 48 for number in range(5)}
        values |= {int(name[3:]): value for name, value in pcrs.items()}
        forge = NitroForge().having(user_data=digest, nonce=genesis)
        if kind == "nitro-tpm":
            forge = NitroForge(without=("pcrs",)).having(
                user_data=digest, nonce=genesis, nitrotpm_pcrs=values
            )
        else:
            forge = forge.having(pcrs=values)
        return forge.document(), TeeSupport(IDENTIFIER_NITRO, {})

    return bind


NITRO_ROOT = f'[tee.roots]\nnitro = """\n{pem(NitroForge().root.der)}"""\n'


@pytest.mark.parametrize(
    ("kind", "register", "source"),
    [
        ("enclave", 0, ClaimSource.MEASURED),
        ("nitro-tpm", 4, ClaimSource.MEASURED),
        ("enclave", 4, ClaimSource.HOST),  # which instance the enclave is on
        ("nitro-tpm", 0, ClaimSource.HOST),  # the firmware, which starts anything
    ],
)
def test_an_image_counts_by_the_register_that_the_kind_has_for_what_was_launched(
    kind: str, register: int, source: ClaimSource
) -> None:
    forge = AloneForge(tees=(document(kind),))
    value = (bytes([register + 1]) * 48).hex()
    rules = '[tee]\nrequired = ["nitro"]\n[tee.nitro]\nkinds = ["enclave", "nitro-tpm"]\n'
    rules += image("nitro", forge.weights, f'pcr{register} = ["{value}"]') + NITRO_ROOT
    report = outcome(forge.attestation().encode(), Question(forge.body, SPRING), forge.pinned(rules))
    assert sources(report)["model"] is source


def test_an_instance_that_was_never_measured_shows_no_model_though_the_policy_accepts_it() -> None:
    zero = {f"pcr{number}": bytes(48) for number in range(3)}
    for pcrs, source in ((zero, ClaimSource.HOST), ({}, ClaimSource.MEASURED)):
        forge = AloneForge(tees=(document("nitro-tpm", **pcrs),))
        rules = '[tee]\nrequired = ["nitro"]\n[tee.nitro]\nkinds = ["nitro-tpm"]\ndebug = true\n'
        rules += image("nitro", forge.weights, f'pcr4 = ["{"05" * 48}"]') + NITRO_ROOT
        report = outcome(forge.attestation().encode(), Question(forge.body, SPRING), forge.pinned(rules))
        assert sources(report)["model"] is source


def test_an_image_without_the_register_of_any_accepted_kind_is_no_policy() -> None:
    forge = AloneForge()
    for kind, register in (("enclave", "pcr4"), ("nitro-tpm", "pcr0")):
        rules = f'[tee]\nrequired = ["nitro"]\n[tee.nitro]\nkinds = ["{kind}"]\n'
        with pytest.raises(PolicyError, match="must name pcr"):
            load_policy(forge.pinned(rules + image("nitro", b"w" * 32, f'{register} = ["{SOME}"]')).encode())


@pytest.mark.parametrize(
    "rules",
    [
        f'[tee]\nrequired = ["sev-snp"]\n[tee.sev-snp]\ngenerations = ["genoa"]\nid_keys = ["{NONE}"]\n',
        f'[tee]\nrequired = ["sev-snp"]\n[tee.sev-snp]\ngenerations = ["genoa"]\nid_keys = ["{NONE}", "{SOME}"]\n',
        f'[tee]\nrequired = ["sev-snp"]\n[tee.sev-snp]\ngenerations = ["genoa"]\nmeasurements = ["{NONE}"]\n',
        f'[tee]\nrequired = ["nitro"]\n[tee.nitro]\npcrs = {{ 8 = ["{NONE}"] }}\n',
        f'[tee]\nrequired = ["nitro"]\n[tee.nitro]\nkinds = ["nitro-tpm"]\npcrs = {{ 4 = ["{NONE}", "{SOME}"] }}\n',
        f'[tee]\nrequired = ["cca"]\n[tee.cca]\nkeys = ["""{pem_key()}"""]\nrim = ["{NONE}"]\n',
        REQUIRED + RULES + "migration_agent = true\n",
        '[[warn]]\nrule = "tee.sev-snp.migration-agent"\nuntil = 2099-01-01T00:00:00Z\n' + REQUIRED + RULES,
        '[[warn]]\nrule = "tee.tdx.service-td"\nuntil = 2099-01-01T00:00:00Z\n'
        f'[tee]\nrequired = ["tdx"]\n[tee.tdx]\nmrtd = ["{SOME}"]\n',
    ],
)
def test_what_anybody_can_have_launched_names_nothing(rules: str) -> None:
    with pytest.raises(PolicyError, match="it would accept nothing"):
        load_policy((BARE + rules).encode())


CCA_RIM = f'[tee]\nrequired = ["cca"]\n[tee.cca]\nkeys = ["""{pem_key()}"""]\nrim = ["{SOME}"]\n'
ENCLAVE = f'[tee]\nrequired = ["nitro"]\n[tee.nitro]\npcrs = {{ 0 = ["{SOME}"] }}\n'
TD = f'[tee]\nrequired = ["tdx"]\n[tee.tdx]\nmrtd = ["{SOME}"]\n'


@pytest.mark.parametrize(
    ("rules", "more", "warned"),
    [
        (CCA_RIM, "debug = true\n", ("cca.rim", "cca.debug", "cca")),
        (ENCLAVE, "debug = true\n", ("nitro.pcr", "nitro.debug", "nitro.kind", "nitro")),
        (
            REQUIRED + RULES,
            "debug = true\n",
            ("sev-snp.measurement", "sev-snp.id-key", "sev-snp.debug", "sev-snp"),
        ),
        (TD, "", ("tdx.mrtd", "tdx.service-td", "tdx")),
    ],
)
def test_a_launch_is_named_by_rules_that_hold_now_and_leave_nothing_open(
    rules: str, more: str, warned: tuple[str, ...]
) -> None:
    load_policy((BARE + rules).encode())
    if more:
        with pytest.raises(PolicyError, match="it would accept nothing"):
            load_policy((BARE + rules + more).encode())
    for rule in warned:
        warn = f'[[warn]]\nrule = "tee.{rule}"\nuntil = 2099-01-01T00:00:00Z\n'
        with pytest.raises(PolicyError, match="it would accept nothing"):
            load_policy((BARE + warn + rules).encode())


def test_a_warning_ends_by_the_time_of_verification_and_not_by_that_of_witnesses() -> None:
    forge = AloneForge(tees=(guest(DEBUG),))
    key, rule = _witness()
    whole = forge.attestation()
    note = parse_note(whole.note)
    seen = note.with_lines([cosign(note.text, "witness.example", key, NOW - 86_400)]).encode()
    data = replace(whole, note=seen).encode()
    for until, expected in ((NOW + 60, Outcome.VERIFIED), (NOW - 60, Outcome.REJECTED)):
        date = f"{datetime.fromtimestamp(until, UTC):%Y-%m-%dT%H:%M:%SZ}"
        warn = f'[[warn]]\nrule = "tee.sev-snp.debug"\nuntil = {date}\n'
        policy = forge.pinned(rule + warn + REQUIRED + RULES + ROOTS)
        assert outcome(data, Question(forge.body, NOW), policy).outcome is expected


def test_an_instance_is_not_called_a_confidential_guest() -> None:
    for kind, word in (("nitro-tpm", "whose memory its host can read"), ("enclave", "confidential guest")):
        forge = AloneForge(tees=(document(kind),))
        rules = f'[tee]\nrequired = ["nitro"]\n[tee.nitro]\nkinds = ["{kind}"]\n' + NITRO_ROOT
        report = outcome(forge.attestation().encode(), Question(forge.body, SPRING), forge.pinned(rules))
        (root,) = said(report, "root")
        assert word in str(root)


def test_a_signed_enclave_and_an_id_key_name_what_was_launched() -> None:
    for rules in (
        f'[tee]\nrequired = ["nitro"]\n[tee.nitro]\npcrs = {{ 0 = ["{NONE}"], 8 = ["{SOME}"] }}\n',
        f'[tee]\nrequired = ["sev-snp"]\n[tee.sev-snp]\ngenerations = ["genoa"]\nid_keys = ["{SOME}"]\n'
        f'measurements = ["{NONE}"]\n',
    ):
        load_policy((BARE + rules).encode())


@pytest.mark.parametrize(
    "rules",
    [
        f'[tee.azure.sev-snp]\ngenerations = ["genoa"]\nid_keys = ["{NONE}"]\n',
        f'[tee.azure.sev-snp]\ngenerations = ["genoa"]\nmeasurements = ["{SOME}"]\ndebug = true\n',
        f'[tee.azure.sev-snp]\ngenerations = ["genoa"]\nmeasurements = ["{SOME}"]\nmigration_agent = true\n',
    ],
)
def test_a_paravisor_that_anybody_can_be_or_write_to_is_not_named(rules: str) -> None:
    with pytest.raises(PolicyError, match="does not name the paravisor"):
        load_policy(AzureHost().accepted(rules, roots="").encode())


def test_a_key_that_any_guest_could_have_named_is_not_endorsed_as_a_vtpms() -> None:
    host = AzureHost()
    rules = '[tee.azure]\nany_paravisor = true\n[tee.azure.sev-snp]\ngenerations = ["genoa"]\n'
    report = outcome(host.attestation().encode(), Question(host.body, NOW), host.accepted(rules))
    assert report.outcome is Outcome.VERIFIED, report.reason
    (kind,) = [claim for claim in report.claims if claim.name == "tpm_kind"]
    assert kind.source is ClaimSource.HOST
    assert str(kind.value).startswith("unknown")
    _, azure = said(report, "root")
    assert "any guest of such hardware could have made" in str(azure)
    settings = {"tee.azure.vm", "tee.azure.secure_boot"}
    assert {sources(report)[name] for name in settings} == {ClaimSource.HOST}
    assert sources(report)["tee.azure.launch"] is ClaimSource.HARDWARE
    named = outcome(host.attestation().encode(), Question(host.body, NOW), host.accepted(AZURE_RULES))
    assert sources(named)["tpm_kind"] is ClaimSource.ENDORSED
    assert {sources(named)[name] for name in settings} == {ClaimSource.HARDWARE}


def test_a_quote_of_which_nobody_knows_the_enclave_is_not_the_hardwares_word() -> None:
    forge = Forge(tees=(bare_tdx,))
    policy = f'{BARE}[[pin]]\norigin = "{forge.origin}"\n{ROOTS}'
    report = outcome(forge.attestation().encode(), Question(forge.body, NOW), policy)
    assert report.outcome is Outcome.VERIFIED, report.reason
    tdx = {claim.name: claim.source for claim in report.claims if claim.name.startswith("tee.tdx")}
    assert tdx["tee.tdx"] is ClaimSource.HOST
    assert tdx["tee.tdx.mrtd"] is ClaimSource.HOST
    (root,) = [claim for claim in report.claims if claim.name == "root" and "tdx" in str(claim.value)]
    assert root.source is ClaimSource.HOST
    assert "any enclave of such a platform" in str(root.value)


def test_an_azure_report_below_such_a_quote_is_not_the_hardwares_word_either() -> None:
    forge = AzureForge(kind=TDX, tail=b"")
    quote = TdxForge(body={0x208: forge.report_data()}).quote()
    for collateral, source in ((None, ClaimSource.HOST), (intel_sgx.collateral(), ClaimSource.HARDWARE)):
        parts = azure_endorsements(forge.report(), AzureTdxEndorsements(quote, collateral))
        host = AzureHost(endorsements=parts)
        question = Question(host.body, int(intel_sgx.NOW.timestamp()))
        found = sources(outcome(host.attestation().encode(), question, host.accepted("")))
        assert (found["tee.azure"], found["tee.azure.mrtd"]) == (source, source)
