# SPDX-License-Identifier: Apache-2.0
"""One defect each: how to make an attestation that is false in one respect, and which step has to find it.

`tests/unit/verifier/test_recipe.py` forges them anew at every run, `tests/vectors/generate.py` writes them to files
for other implementations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from forge import NOW, Authority, Forge
from nacl.signing import SigningKey

from quotary_verifier import Outcome, Question, Step
from quotary_verifier.logs.cel import content_digest
from quotary_verifier.logs.workload import WorkloadEvent, reveal, separator
from quotary_verifier.tlog.cosignature import cosign
from quotary_verifier.tlog.note import SignatureLine, parse_note
from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import Attestation, LaterCheckpoint
from quotary_verifier.wire.records import Link, Source, State


@dataclass(frozen=True)
class Case:
    """An attestation as bytes, the question, the policy, and what must come of it."""

    attestation: bytes
    question: Question
    policy: str
    outcome: Outcome
    step: Step | None


def _question(forge: Forge, **changes: Any) -> Question:
    question = Question(forge.body, at=NOW, request=forge.request, nonce=forge.nonce)
    return replace(question, **changes)


def _case(
    forge: Forge,
    attestation: Attestation | bytes,
    step: Step | None,
    *,
    policy: str | None = None,
    outcome: Outcome = Outcome.REJECTED,
    **question: Any,
) -> Case:
    data = attestation if isinstance(attestation, bytes) else attestation.encode()
    outcome = Outcome.VERIFIED if step is None else outcome
    return Case(data, _question(forge, **question), policy or forge.policy(), outcome, step)


CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    """Register a case under its function's name."""
    CASES[make.__name__.strip("_")] = make
    return make


def raw(forge: Forge, change: Callable[[dict[int, Any]], None]) -> bytes:
    """The attestation with its decoded map changed, encoded again."""
    value = cbor.decode(forge.attestation().encode(), max_bytes=1 << 20)
    change(value)
    return cbor.encode(value)


# --- what verifies -------------------------------------------------------------------------------------------


@case
def everything_holds() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(), None)


@case
def no_ed25519_line() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    note = parse_note(attestation.note)
    return _case(forge, replace(attestation, note=replace(note, lines=note.lines[1:]).encode()), None)


@case
def an_unknown_line_in_the_note() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    note = parse_note(attestation.note).with_lines([SignatureLine("other.example", b"abcd", b"x" * 64)])
    return _case(forge, replace(attestation, note=note.encode()), None)


@case
def an_unknown_negative_key() -> Case:
    forge = Forge()
    return _case(forge, raw(forge, lambda value: value.update({-1: "ignored"})), None)


@case
def pinned_origin_without_certificate() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    support = replace(attestation.supports[0], certificates=())
    policy = f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{forge.origin}"\n'
    return _case(forge, replace(attestation, supports=(support,)), None, policy=policy)


@case
def text_of_the_choice() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(), None, output=b"Paris.")


@case
def text_with_one_more_newline() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(), None, output=b"Paris.\n")


# --- decode, output, request, nonce --------------------------------------------------------------------------


@case
def attestation_with_a_trailing_byte() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation().encode() + b"\0", Step.DECODE)


@case
def attestation_of_an_unknown_version() -> Case:
    forge = Forge()
    data = raw(forge, lambda value: value.update({1: 2}))
    return _case(forge, data, Step.DECODE, outcome=Outcome.COULD_NOT_CHECK)


@case
def attestation_with_an_unknown_positive_key() -> Case:
    forge = Forge()
    return _case(forge, raw(forge, lambda value: value.update({11: 0})), Step.DECODE)


@case
def genesis_in_the_place_of_the_record() -> Case:
    forge = Forge()
    return _case(forge, raw(forge, lambda value: value.update({2: value[3]})), Step.DECODE)


@case
def path_of_a_broken_length() -> Case:
    forge = Forge()
    return _case(forge, raw(forge, lambda value: value.update({5: value[5][:-1]})), Step.DECODE)


@case
def submitted_output_that_claims_a_model() -> Case:
    forge = Forge(source=Source.SUBMITTED)
    return _case(forge, forge.attestation(), Step.DECODE)


@case
def altered_output() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(), Step.OUTPUT, output=forge.body.replace(b"Paris", b"Rome!"))


@case
def tolerance_although_exact() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(), Step.OUTPUT, output=b"Paris.\n", exact=True)


@case
def truncated_output_under_a_policy_for_complete_ones() -> Case:
    forge = Forge(state=State.ENGINE_TRUNCATED)
    return _case(forge, forge.attestation(), Step.OUTPUT)


@case
def another_request() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(), Step.REQUEST, request=b"{}")


@case
def request_key_dropped() -> Case:
    forge = Forge()
    attestation = replace(forge.attestation(), request_key=None)
    return _case(forge, attestation, Step.REQUEST, outcome=Outcome.COULD_NOT_CHECK)


@case
def dropped_key_and_altered_record() -> Case:
    """What is false goes before what could not be checked."""
    forge = Forge()
    record = replace(forge.record(), time=1).encode()
    attestation = replace(forge.attestation(), request_key=None, record=record)
    return _case(forge, attestation, Step.INCLUSION)


@case
def another_nonce() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(), Step.NONCE, nonce=b"m" * 32)


@case
def another_nonce_than_the_policy_expects() -> Case:
    forge = Forge()
    policy = forge.policy(f'[freshness]\nexpected_nonce = "{(b"m" * 32).hex()}"\n')
    return _case(forge, forge.attestation(), Step.NONCE, policy=policy, nonce=None)


@case
def the_nonce_that_the_policy_expects() -> Case:
    forge = Forge()
    policy = forge.policy(f'[freshness]\nexpected_nonce = "{(b"n" * 32).hex()}"\n')
    return _case(forge, forge.attestation(), None, policy=policy, nonce=None)


@case
def nonce_that_is_a_prefix() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(), Step.NONCE, nonce=b"n" * 31)


@case
def record_without_a_nonce() -> Case:
    forge = Forge(nonce=None)
    return _case(forge, forge.attestation(), Step.NONCE, nonce=b"n" * 32)


# --- genesis, origin, inclusion, note ------------------------------------------------------------------------


@case
def genesis_of_another_origin() -> Case:
    forge, other = Forge(), Forge(host="gpu-08.example.net")
    return _case(forge, replace(forge.attestation(), genesis=other.genesis_record), Step.ORIGIN)


@case
def genesis_with_equal_pcrs() -> Case:
    forge = Forge()
    tpm = forge.genesis.tpm
    assert tpm is not None
    genesis = replace(forge.genesis, tpm=replace(tpm, workload_pcr=tpm.chain_pcr)).encode()
    return _case(forge, replace(forge.attestation(), genesis=genesis), Step.GENESIS)


@case
def genesis_with_half_a_tpm() -> Case:
    forge = Forge()
    value = cbor.decode(forge.genesis_record, max_bytes=9999)
    del value[10]
    return _case(forge, replace(forge.attestation(), genesis=cbor.encode(value)), Step.GENESIS)


@case
def altered_record() -> Case:
    forge = Forge()
    record = replace(forge.record(), context={"endpoint": "/v1/completions"}).encode()
    return _case(forge, replace(forge.attestation(), record=record), Step.INCLUSION)


@case
def path_of_another_leaf() -> Case:
    forge = Forge()
    return _case(forge, replace(forge.attestation(), index=2), Step.INCLUSION)


@case
def path_with_a_hash_too_many() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    return _case(forge, replace(attestation, path=attestation.path + bytes(32)), Step.INCLUSION)


@case
def path_with_a_hash_too_few() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    return _case(forge, replace(attestation, path=attestation.path[:-32]), Step.INCLUSION)


@case
def index_outside_the_tree() -> Case:
    forge = Forge()
    return _case(forge, replace(forge.attestation(), index=5), Step.INCLUSION)


@case
def note_with_a_false_ed25519_line() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    note = parse_note(attestation.note)
    line = replace(note.lines[0], payload=bytes(64))
    note = replace(note, lines=(line, *note.lines[1:]))
    return _case(forge, replace(attestation, note=note.encode()), Step.NOTE)


@case
def note_with_two_ed25519_lines() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    note = parse_note(attestation.note)
    return _case(forge, replace(attestation, note=note.with_lines(note.lines[:1]).encode()), Step.NOTE)


@case
def note_without_a_final_newline() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    return _case(forge, replace(attestation, note=attestation.note[:-1]), Step.NOTE)


@case
def note_with_an_extension_line() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    note = parse_note(attestation.note)
    note = replace(note, text=note.text + b"extra\n", lines=note.lines[1:])
    return _case(forge, replace(attestation, note=note.encode()), Step.ORIGIN)


# --- the quote -----------------------------------------------------------------------------------------------


@case
def note_without_the_hardware_line() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    note = parse_note(attestation.note)
    note = replace(note, lines=note.lines[:1])
    return _case(forge, replace(attestation, note=note.encode()), Step.QUOTE_STRUCTURE)


@case
def no_support() -> Case:
    forge = Forge()
    return _case(forge, replace(forge.attestation(), supports=()), Step.QUOTE_STRUCTURE)


@case
def support_without_a_line() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    extra = replace(attestation.supports[0], identifier="quotary/sev-snp/v1")
    return _case(forge, replace(attestation, supports=(*attestation.supports, extra)), Step.QUOTE_STRUCTURE)


@case
def wrong_magic() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(magic=0xFF544348), Step.QUOTE_STRUCTURE)


@case
def certify_in_the_place_of_a_quote() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(kind=0x8017), Step.QUOTE_STRUCTURE)


@case
def bytes_after_the_quote() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(tail=b"\0"), Step.QUOTE_STRUCTURE)


@case
def quote_over_other_extra_data() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(extra_data=bytes(32)), Step.QUOTE_CHAIN)


@case
def quote_over_a_prefix_of_the_digest() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(extra_data=bytes(16)), Step.QUOTE_CHAIN)


@case
def quote_without_extra_data() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(extra_data=b""), Step.QUOTE_CHAIN)


@case
def swapped_quote() -> Case:
    """The quote of another commit of the same host."""
    forge = Forge()
    attestation = forge.attestation()
    other = replace(forge, body=b"another").attestation()
    lines = (parse_note(attestation.note).lines[0], parse_note(other.note).lines[1])
    note = replace(parse_note(attestation.note), lines=lines)
    return _case(forge, replace(attestation, note=note.encode()), Step.QUOTE_CHAIN)


@case
def support_that_gives_the_chain_pcr() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    support = attestation.supports[0]
    support = replace(support, pcrs={**support.pcrs, forge.chain_pcr: b"c" * 32})
    return _case(forge, replace(attestation, supports=(support,)), Step.QUOTE_CHAIN)


@case
def support_that_gives_the_workload_pcr() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    support = attestation.supports[0]
    support = replace(support, pcrs={**support.pcrs, forge.workload_pcr: b"c" * 32})
    return _case(forge, replace(attestation, supports=(support,)), Step.QUOTE_CHAIN)


@case
def support_that_gives_a_zero_pcr() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    support = attestation.supports[0]
    support = replace(support, pcrs={**support.pcrs, 3: bytes(32)})
    return _case(forge, replace(attestation, supports=(support,)), Step.QUOTE_CHAIN)


@case
def quote_signed_by_another_key() -> Case:
    forge = Forge(signer=ec.generate_private_key(ec.SECP256R1()))
    return _case(forge, forge.attestation(), Step.QUOTE_SIGNATURE)


@case
def chain_pcr_that_does_not_follow() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    support = replace(attestation.supports[0], chain_before=b"\1" * 32)
    return _case(forge, replace(attestation, supports=(support,)), Step.QUOTE_PCRS)


@case
def another_pcr_value() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    support = attestation.supports[0]
    support = replace(support, pcrs={**support.pcrs, 0: b"x" * 32})
    return _case(forge, replace(attestation, supports=(support,)), Step.QUOTE_PCRS)


@case
def quote_over_fewer_pcrs() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(selections=((0x0B, b"\xff\x7f\x00"),)), Step.QUOTE_PCRS)


@case
def quote_over_resettable_pcrs() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(selections=((0x0B, b"\xff\xff\x01"),)), Step.QUOTE_PCRS)


@case
def quote_over_nothing() -> Case:
    forge = Forge()
    digest = hashlib.sha256(b"").digest()
    return _case(forge, forge.attestation(selections=(), pcr_digest=digest), Step.QUOTE_PCRS)


@case
def quote_over_a_bank_twice() -> Case:
    forge = Forge()
    twice = ((0x0B, b"\xff\xff\x00"), (0x0B, b"\xff\xff\x00"))
    return _case(forge, forge.attestation(selections=twice), Step.QUOTE_PCRS)


@case
def quote_over_the_sha1_bank() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(selections=((0x04, b"\xff\xff\x00"),)), Step.QUOTE_PCRS)


@case
def unsafe_clock_under_a_policy_for_safe_ones() -> Case:
    forge = Forge()
    return _case(
        forge, forge.attestation(safe=0), Step.QUOTE_CLOCK, policy=forge.policy("[tpm]\nsafe_clock = true\n")
    )


@case
def leaf_that_the_commit_did_not_add() -> Case:
    """A leaf from before this commit is history, not evidence."""
    forge = Forge(first=4, index=3)
    return _case(forge, forge.attestation(), Step.QUOTE_RANGE)


# --- the AK --------------------------------------------------------------------------------------------------


@case
def unrestricted_ak() -> Case:
    forge = Forge(attributes=0x00040472)
    return _case(forge, forge.attestation(), Step.AK_ATTRIBUTES)


@case
def ak_that_may_leave_its_tpm() -> Case:
    forge = Forge(attributes=0x00050470)
    return _case(forge, forge.attestation(), Step.AK_ATTRIBUTES)


@case
def ak_made_outside_the_tpm() -> Case:
    forge = Forge(attributes=0x00050452)
    return _case(forge, forge.attestation(), Step.AK_ATTRIBUTES)


@case
def ak_that_decrypts() -> Case:
    forge = Forge(attributes=0x00070472)
    return _case(forge, forge.attestation(), Step.AK_ATTRIBUTES)


@case
def foreign_ak_that_the_policy_does_not_allow() -> Case:
    forge = Forge(attributes=0x00050072)
    return _case(forge, forge.attestation(), Step.AK_ATTRIBUTES)


@case
def another_qualified_signer() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(signer=b"\x00\x0b" + bytes(32)), Step.AK_NAME)


@case
def certificate_of_an_unknown_authority() -> Case:
    forge = Forge()
    stranger = Authority(name=forge.authority.name)
    forge.certificate = stranger.issue(forge.ak.public_key(), forge.host, forge.origin)
    return _case(forge, forge.attestation(), Step.AK_ENDORSEMENT)


@case
def certificate_of_another_host() -> Case:
    forge = Forge()
    forge.certificate = forge.authority.issue(forge.ak.public_key(), "gpu-08.example.net", None)
    return _case(forge, forge.attestation(), Step.AK_ENDORSEMENT)


@case
def certificate_of_another_log() -> Case:
    forge = Forge()
    other = f"{forge.host}/{'a' * 32}"
    forge.certificate = forge.authority.issue(forge.ak.public_key(), forge.host, other)
    return _case(forge, forge.attestation(), Step.AK_ENDORSEMENT)


@case
def certificate_of_another_key() -> Case:
    """Another host's key: its certificate is good, and it is not the AK of this log."""
    forge = Forge()
    other = ec.generate_private_key(ec.SECP256R1())
    forge.certificate = forge.authority.issue(other.public_key(), forge.host, forge.origin)
    return _case(forge, forge.attestation(), Step.AK_ENDORSEMENT)


@case
def expired_certificate() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(), Step.AK_ENDORSEMENT, at=NOW + 400 * 86400)


@case
def certificate_not_yet_valid() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(), Step.AK_ENDORSEMENT, at=NOW - 2 * 86400)


@case
def certificate_without_the_role() -> Case:
    from cryptography.x509.oid import ExtendedKeyUsageOID

    forge = Forge()
    eku = ExtendedKeyUsageOID.SERVER_AUTH
    forge.certificate = forge.authority.issue(forge.ak.public_key(), forge.host, forge.origin, eku=eku)
    return _case(forge, forge.attestation(), Step.AK_ENDORSEMENT)


@case
def ca_certificate_as_a_leaf() -> Case:
    forge = Forge()
    forge.certificate = forge.authority.issue(forge.ak.public_key(), forge.host, forge.origin, ca=True)
    return _case(forge, forge.attestation(), Step.AK_ENDORSEMENT)


@case
def authority_that_may_not_speak_for_the_host() -> Case:
    forge = Forge()
    policy = forge.policy('hosts = ["*.example.org"]\n')
    return _case(forge, forge.attestation(), Step.AK_ENDORSEMENT, policy=policy)


@case
def no_certificate_and_no_pin() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    support = replace(attestation.supports[0], certificates=())
    return _case(forge, replace(attestation, supports=(support,)), Step.AK_ENDORSEMENT)


@case
def revoked_certificate() -> Case:
    forge = Forge()
    assert forge.certificate is not None
    policy = forge.policy(f'crls = ["""\n{forge.authority.crl(forge.certificate)}"""]\n')
    return _case(forge, forge.attestation(), Step.AK_ENDORSEMENT, policy=policy)


@case
def certificate_that_no_crl_covers_under_a_policy_that_wants_to_know() -> Case:
    forge = Forge()
    policy = forge.policy("revocation_required = true\n")
    return _case(
        forge, forge.attestation(), Step.AK_ENDORSEMENT, policy=policy, outcome=Outcome.COULD_NOT_CHECK
    )


@case
def certificate_that_a_crl_covers() -> Case:
    forge = Forge()
    policy = forge.policy(f'revocation_required = true\ncrls = ["""\n{forge.authority.crl()}"""]\n')
    return _case(forge, forge.attestation(), None, policy=policy)


@case
def software_tpm_by_its_certificate() -> Case:
    forge = Forge()
    forge.certificate = forge.authority.issue(forge.ak.public_key(), forge.host, forge.origin, model="swtpm")
    return _case(forge, forge.attestation(), Step.TPM_KIND)


@case
def software_tpm_by_its_firmware() -> Case:
    forge = Forge()
    return _case(forge, forge.attestation(firmware=0x2019102300163636), Step.TPM_KIND)


# --- workload log, model, platform ---------------------------------------------------------------------------


def _with_log(forge: Forge, items: tuple[bytes, ...]) -> Attestation:
    attestation = forge.attestation()
    return replace(attestation, supports=(replace(attestation.supports[0], workload_log=items),))


@case
def altered_workload_event() -> Case:
    forge = Forge()
    events = forge.events()
    events[0] = WorkloadEvent("agent", "another", bytes(32), {}).encode()
    events[3] = separator(0, [content_digest(event) for event in events[:3]])
    return _case(forge, _with_log(forge, reveal(events, frozenset({1}))), Step.QUOTE_PCRS)


@case
def events_after_the_last_separator() -> Case:
    forge = Forge()
    items = (*reveal(forge.events(), frozenset({1})), b"\x11" * 32)
    return _case(forge, _with_log(forge, items), Step.WORKLOAD)


@case
def separator_that_does_not_fit() -> Case:
    forge = Forge()
    events = forge.events()
    events[3] = separator(1, [content_digest(event) for event in events[:3]])
    return _case(forge, _with_log(forge, tuple(events)), Step.WORKLOAD)


@case
def opaque_events_under_a_policy_against_them() -> Case:
    forge = Forge()
    policy = forge.policy("[workload]\nopaque = false\n")
    return _case(forge, forge.attestation(), Step.WORKLOAD, policy=policy)


@case
def model_event_of_another_number() -> Case:
    forge = Forge()
    record = forge.record()
    assert record.model is not None
    record = replace(record, model=replace(record.model, event=2))
    return _case(forge, forge.attestation(record=record), Step.MODEL)


@case
def model_event_of_no_epoch_in_force() -> Case:
    forge = Forge()
    record = forge.record()
    assert record.model is not None
    record = replace(record, model=replace(record.model, event=3))
    return _case(forge, forge.attestation(record=record), Step.MODEL)


@case
def model_name_that_was_not_measured() -> Case:
    forge = Forge()
    record = forge.record()
    assert record.model is not None
    record = replace(record, model=replace(record.model, name="GPT-9"))
    return _case(forge, forge.attestation(record=record), Step.MODEL)


@case
def model_that_the_policy_does_not_allow() -> Case:
    forge = Forge()
    policy = forge.policy(f'[[model]]\nname = "SmolLM2-135M"\nweights = "sha256:{"0" * 64}"\n')
    return _case(forge, forge.attestation(), Step.MODEL, policy=policy)


@case
def model_with_a_weaker_link_than_the_policy_demands() -> Case:
    forge = Forge(link=Link.CONFIGURED)
    policy = forge.policy('[[model]]\nname = "SmolLM2-135M"\nlink = "started"\n')
    return _case(forge, forge.attestation(), Step.MODEL, policy=policy)


@case
def opaque_model_under_a_policy_with_weights() -> Case:
    forge = Forge(keep=frozenset())
    policy = forge.policy(f'[[model]]\nweights = "sha256:{forge.weights.hex()}"\n')
    return _case(forge, forge.attestation(), Step.MODEL, policy=policy)


@case
def no_model_under_a_policy_with_models() -> Case:
    forge = Forge()
    record = replace(forge.record(), model=None)
    policy = forge.policy('[[model]]\nname = "SmolLM2-135M"\n')
    return _case(forge, forge.attestation(record=record), Step.MODEL, policy=policy)


@case
def platform_that_the_policy_does_not_allow() -> Case:
    forge = Forge()
    policy = forge.policy(f'[platform.pcrs]\n7 = ["{"0" * 64}"]\n')
    return _case(forge, forge.attestation(), Step.PLATFORM, policy=policy)


@case
def policy_that_fixes_the_chain_pcr() -> Case:
    forge = Forge()
    policy = forge.policy(f'[platform.pcrs]\n{forge.chain_pcr} = ["{"0" * 64}"]\n')
    return _case(forge, forge.attestation(), Step.PLATFORM, policy=policy)


# --- witnesses, freshness ------------------------------------------------------------------------------------


def _witness(threshold: int = 1) -> tuple[SigningKey, str]:
    from quotary_verifier.tlog.note import TYPE_COSIGNATURE, VerifierKey

    key = SigningKey.generate()
    vkey = VerifierKey("witness.example", TYPE_COSIGNATURE, bytes(key.verify_key)).encode()
    return key, f'[witnesses]\nkeys = ["{vkey}"]\nthreshold = {threshold}\n'


@case
def witnessed_and_fresh() -> Case:
    forge = Forge()
    key, rule = _witness()
    attestation = forge.attestation()
    note = parse_note(attestation.note)
    note = note.with_lines([cosign(note.text, "witness.example", key, NOW - 10)])
    policy = forge.policy(rule + "[freshness]\nmax_age = 60\n")
    return _case(forge, replace(attestation, note=note.encode()), None, policy=policy)


@case
def too_few_witnesses() -> Case:
    forge = Forge()
    _, rule = _witness()
    return _case(forge, forge.attestation(), Step.WITNESS, policy=forge.policy(rule))


@case
def false_cosignature() -> Case:
    forge = Forge()
    key, rule = _witness()
    attestation = forge.attestation()
    note = parse_note(attestation.note)
    line = cosign(note.text, "witness.example", key, NOW)
    line = replace(line, payload=(NOW + 1).to_bytes(8) + line.payload[8:])
    note = note.with_lines([line])
    policy = forge.policy(rule)
    return _case(forge, replace(attestation, note=note.encode()), Step.WITNESS, policy=policy)


@case
def later_checkpoint_that_does_not_hold_the_leaf() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    other = replace(forge, body=b"x", leaves=9, index=4).attestation()
    later = (LaterCheckpoint(other.note, other.path),)
    return _case(forge, replace(attestation, later=later), Step.WITNESS)


@case
def later_checkpoint_with_a_false_ed25519_line() -> Case:
    forge = Forge()
    attestation = forge.attestation()
    note = parse_note(attestation.note)
    false = replace(note, lines=(replace(note.lines[0], payload=bytes(64)), *note.lines[1:]))
    later = (LaterCheckpoint(false.encode(), attestation.path),)
    return _case(forge, replace(attestation, later=later), Step.WITNESS)


@case
def revoked_certificate_of_a_pinned_origin() -> Case:
    forge = Forge()
    assert forge.certificate is not None
    crl = f'crls = ["""\n{forge.authority.crl(forge.certificate)}"""]\n'
    policy = forge.policy(f'{crl}[[pin]]\norigin = "{forge.origin}"\n')
    return _case(forge, forge.attestation(), None, policy=policy)


@case
def witnessed_too_long_ago() -> Case:
    forge = Forge()
    key, rule = _witness()
    attestation = forge.attestation()
    note = parse_note(attestation.note)
    note = note.with_lines([cosign(note.text, "witness.example", key, NOW - 600)])
    policy = forge.policy(rule + "[freshness]\nmax_age = 60\n")
    return _case(forge, replace(attestation, note=note.encode()), Step.FRESHNESS, policy=policy)


@case
def age_that_only_the_host_states() -> Case:
    forge = Forge()
    return _case(
        forge, forge.attestation(), Step.FRESHNESS, policy=forge.policy("[freshness]\nmax_age = 60\n")
    )


@case
def no_nonce_under_a_policy_that_demands_one() -> Case:
    forge = Forge()
    policy = forge.policy("[freshness]\nnonce = true\n")
    return _case(forge, forge.attestation(), Step.FRESHNESS, policy=policy, nonce=None)


import alone_defects  # noqa: E402, F401 - registers its cases, and needs what stands above
import boot_defects  # noqa: E402, F401 - as alone_defects
import tee_defects  # noqa: E402, F401 - as alone_defects
