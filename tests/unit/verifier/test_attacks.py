# SPDX-License-Identifier: Apache-2.0
"""What an attacker tries who has no TPM, or an enrolled host that lies: each attack, and how it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from forge import NOW, Authority, Forge, tree
from nacl.signing import SigningKey

from quotary_verifier import (
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
)
from quotary_verifier.logs.cel import content_digest
from quotary_verifier.logs.workload import WorkloadEvent, reveal, separator
from quotary_verifier.policy.model import Authority as PolicyAuthority
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.cosignature import cosign
from quotary_verifier.tlog.merkle import leaf_hash
from quotary_verifier.tlog.note import TYPE_COSIGNATURE, Note, SignatureLine, VerifierKey, parse_note
from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import Attestation, LaterCheckpoint
from quotary_verifier.wire.bindings import fresh_digest
from quotary_verifier.wire.inband import insert
from quotary_verifier.wire.records import Boot, Source, Statement, entry_of

WITNESS = "witness.example"


def judge(forge: Forge, attestation: Attestation | bytes, policy: str = "", **question: object) -> Report:
    """Verify, and return the report whatever the outcome."""
    asked = replace(Question(forge.body, at=NOW), **question)
    data = attestation if isinstance(attestation, bytes) else attestation.encode()
    try:
        return verify(data, asked, load_policy((policy or forge.policy()).encode())).report
    except (Rejected, NotChecked) as error:
        return error.report


def outcome(report: Report) -> tuple[Outcome, Step | None]:
    return report.outcome, report.failing


def source(report: Report, name: str) -> ClaimSource:
    return next(claim.source for claim in report.claims if claim.name == name)


def witness_rule(key: SigningKey) -> str:
    vkey = VerifierKey(WITNESS, TYPE_COSIGNATURE, bytes(key.verify_key)).encode()
    return f'[witnesses]\nkeys = ["{vkey}"]\n'


def with_lines(attestation: Attestation, *lines: SignatureLine) -> Attestation:
    return replace(attestation, note=parse_note(attestation.note).with_lines(lines).encode())


def later_checkpoint(forge: Forge, key: SigningKey, time: int) -> LaterCheckpoint:
    """A later checkpoint of the same log that holds the same leaf, cosigned at `time`."""
    later = replace(forge, leaves=9).attestation()
    note = parse_note(later.note)
    note = Note(note.text, (cosign(note.text, WITNESS, key, time),))
    return LaterCheckpoint(note.encode(), later.path)


# --- what is kept of one verification, and used for another ---------------------------------------------------


def test_a_witness_that_saw_one_leaf_does_not_speak_for_another_of_the_same_commit() -> None:
    forge, key = Forge(), SigningKey.generate()
    plain = forge.attestation()
    seen = replace(plain, later=(later_checkpoint(forge, key, NOW - 9),))
    policy = forge.policy(witness_rule(key))
    _, commit = verify_in(seen.encode(), Question(forge.body, at=NOW), load_policy(policy.encode()))
    with pytest.raises(Rejected) as caught:
        commit.verify(plain.encode(), Question(forge.body, at=NOW))
    assert caught.value.report.failing is Step.WITNESS


def test_an_old_attestation_is_not_made_fresh_by_adding_a_new_checkpoint() -> None:
    forge, key = Forge(), SigningKey.generate()
    aged = replace(forge.attestation(), later=(later_checkpoint(forge, key, NOW - 1),))
    policy = forge.policy(witness_rule(key) + "[freshness]\nmax_age = 60\n")
    assert outcome(judge(forge, aged, policy)) == (Outcome.REJECTED, Step.FRESHNESS)


def test_a_checkpoint_of_equal_size_and_another_root_shows_a_split_and_is_false() -> None:
    forge, key = Forge(), SigningKey.generate()
    attestation = forge.attestation()
    entries = [entry_of(b"another leaf %d" % number) for number in range(forge.leaves)]
    entries[forge.index] = entry_of(attestation.record)
    root, paths = tree([leaf_hash(entry) for entry in entries])
    text = Checkpoint(forge.origin, forge.leaves, root).text
    split = LaterCheckpoint(Note(text, (cosign(text, WITNESS, key, NOW),)).encode(), paths[attestation.index])
    report = judge(forge, replace(attestation, later=(split,)), forge.policy(witness_rule(key)))
    assert outcome(report) == (Outcome.REJECTED, Step.WITNESS)


def test_a_later_checkpoint_of_another_origin_is_false() -> None:
    forge, key = Forge(), SigningKey.generate()
    text = Checkpoint(Forge(host="other.example.net").origin, 9, bytes(32)).text
    foreign = LaterCheckpoint(Note(text, (cosign(text, WITNESS, key, NOW),)).encode(), bytes(32 * 4))
    report = judge(forge, replace(forge.attestation(), later=(foreign,)), forge.policy(witness_rule(key)))
    assert outcome(report) == (Outcome.REJECTED, Step.WITNESS)


def test_a_witness_of_the_policy_that_verified_is_not_listed_as_not_understood() -> None:
    forge, key = Forge(), SigningKey.generate()
    attestation = forge.attestation()
    line = cosign(parse_note(attestation.note).text, WITNESS, key, NOW)
    report = judge(forge, with_lines(attestation, line), forge.policy(witness_rule(key)))
    assert report.outcome is Outcome.VERIFIED
    assert report.not_understood == ()
    unknown = judge(forge, with_lines(attestation, line))
    assert any(WITNESS in text for text in unknown.not_understood)


# --- times that no calendar has -------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [253_402_300_800, 2**63 - 1])
def test_a_witness_with_an_absurd_clock_makes_no_other_error_than_a_rejection(time: int) -> None:
    forge, key = Forge(), SigningKey.generate()
    attestation = forge.attestation()
    line = cosign(parse_note(attestation.note).text, WITNESS, key, time)
    report = judge(forge, with_lines(attestation, line), forge.policy(witness_rule(key)))
    assert outcome(report) == (Outcome.REJECTED, Step.AK_ENDORSEMENT)


@pytest.mark.parametrize("at", [-(10**18), -62_135_596_801, 253_402_300_800, 10**18])
def test_a_time_of_verification_outside_of_the_calendar_is_a_rejection(at: int) -> None:
    forge = Forge()
    assert outcome(judge(forge, forge.attestation(), at=at)) == (Outcome.REJECTED, Step.AK_ENDORSEMENT)


# --- what could not be checked hides nothing that is false ----------------------------------------------------


def _of_an_unknown_key(forge: Forge) -> bytes:
    """A self-made certificate whose key this verifier cannot check."""
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    start = forge.authority.certificate.not_valid_before_utc
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + timedelta(days=9))
    return builder.sign(key, None).public_bytes(Encoding.DER)


STALE: dict[str, Callable[[Forge, Attestation], tuple[Attestation, str, Step]]] = {
    "altered record": lambda forge, good: (
        replace(good, record=replace(forge.record(), time=1).encode()),
        "",
        Step.INCLUSION,
    ),
    "other leaf": lambda _forge, good: (replace(good, index=2), "", Step.INCLUSION),
    "model that is not allowed": lambda _forge, good: (good, '[[model]]\nname = "x"\n', Step.MODEL),
    "no age": lambda _forge, good: (good, "[freshness]\nmax_age = 9\n", Step.FRESHNESS),
}


@pytest.mark.parametrize("name", STALE)
def test_a_certificate_that_cannot_be_read_does_not_hide_what_is_false(name: str) -> None:
    forge = Forge()
    attestation, extra, step = STALE[name](forge, forge.attestation())
    support = replace(attestation.supports[0], certificates=(_of_an_unknown_key(forge),))
    report = judge(forge, replace(attestation, supports=(support,)), forge.policy(extra))
    assert outcome(report) == (Outcome.REJECTED, step)
    good = replace(forge.attestation(), supports=(support,))
    assert outcome(judge(forge, good)) == (Outcome.COULD_NOT_CHECK, Step.AK_ENDORSEMENT)


def _of_version_two(event: bytes) -> bytes:
    value = cbor.decode(event, max_bytes=9999)
    return cbor.encode({**value, 1: 2})


@dataclass
class ForgeOfTomorrow(Forge):
    """A host whose agent logs one event of a later version, and quotes it."""

    def events(self) -> list[bytes]:
        contents = super().events()[:3]
        contents[2] = _of_version_two(contents[2])
        return [*contents, separator(0, [content_digest(content) for content in contents])]


def test_an_event_of_an_unknown_version_does_not_hide_that_the_log_does_not_replay() -> None:
    forge = Forge()
    attestation = forge.attestation()
    items = list(attestation.supports[0].workload_log)
    items[0] = _of_version_two(forge.events()[0])
    items[3] = separator(0, [content_digest(items[0]), content_digest(items[1]), items[2]])
    support = replace(attestation.supports[0], workload_log=tuple(items))
    report = judge(forge, replace(attestation, supports=(support,)))
    assert outcome(report) == (Outcome.REJECTED, Step.QUOTE_PCRS)


def test_a_quoted_event_of_an_unknown_version_could_not_be_checked() -> None:
    forge = ForgeOfTomorrow(keep=frozenset({1, 2}))
    assert outcome(judge(forge, forge.attestation())) == (Outcome.COULD_NOT_CHECK, Step.WORKLOAD)


def test_a_signature_of_an_unknown_scheme_is_false_where_the_key_fixes_another() -> None:
    forge = Forge()
    attestation = forge.attestation()
    note = parse_note(attestation.note)
    line = note.lines[1]
    position = line.payload.rfind(b"\x00\x18\x00\x0b\x00\x20")
    payload = line.payload[:position] + b"\x00\x1b" + line.payload[position + 2 :]
    note = replace(note, lines=(note.lines[0], replace(line, payload=payload)))
    report = judge(forge, replace(attestation, note=note.encode()))
    assert outcome(report) == (Outcome.REJECTED, Step.QUOTE_STRUCTURE)


# --- leaves and kinds -----------------------------------------------------------------------------------------


def test_no_commit_claims_leaf_zero() -> None:
    forge = Forge(first=0)
    assert outcome(judge(forge, forge.attestation())) == (Outcome.REJECTED, Step.QUOTE_RANGE)


@pytest.mark.parametrize(
    "record",
    [Boot(bytes(16), 1, bytes(32), None).encode(), Statement(bytes(16), 1, "promise").encode()],
    ids=["boot", "statement"],
)
def test_a_record_of_another_kind_is_no_output(record: bytes) -> None:
    forge = Forge()
    assert outcome(judge(forge, forge.attestation(record=record))) == (Outcome.REJECTED, Step.DECODE)


def test_the_entry_in_the_place_of_the_record_is_no_output() -> None:
    forge = Forge()
    attestation = forge.attestation()
    report = judge(forge, replace(attestation, record=entry_of(attestation.record)))
    assert outcome(report) == (Outcome.REJECTED, Step.DECODE)


def test_only_the_body_and_texts_are_ever_matched() -> None:
    forge = Forge()
    secret = b"chain of thought"
    digests = {**forge.record().digests, "reasoning/0": hashlib.sha256(secret).digest()}
    attestation = forge.attestation(record=replace(forge.record(), digests=digests))
    assert outcome(judge(forge, attestation)) == (Outcome.VERIFIED, None)
    assert outcome(judge(forge, attestation, output=secret)) == (Outcome.REJECTED, Step.OUTPUT)


def test_a_verdict_says_that_an_in_band_attestation_was_left_out() -> None:
    forge = Forge()
    attestation = forge.attestation().encode()
    carried = insert(forge.body, b"any other attestation")
    assert carried is not None
    report = judge(forge, attestation, output=carried)
    assert [claim.value for claim in report.claims if claim.name == "matched"] == [
        "body, without its in-band attestation"
    ]


def test_a_second_member_of_that_name_stays_part_of_the_body() -> None:
    forge = Forge(body=b'{"a":1,"attestation":"AAAA"}')
    attestation = forge.attestation().encode()
    carried = insert(forge.body, attestation)
    assert carried is not None
    assert judge(forge, attestation, output=carried).outcome is Outcome.VERIFIED
    assert judge(forge, attestation, output=b'{"a":1}').failing is Step.OUTPUT


def test_a_fresh_quote_on_a_note_is_no_commit() -> None:
    forge = Forge()
    attestation = forge.attestation(extra_data=fresh_digest(forge.origin, b"n" * 8))
    assert outcome(judge(forge, attestation)) == (Outcome.REJECTED, Step.QUOTE_CHAIN)


def test_two_hardware_lines_of_one_key_reject_the_note() -> None:
    forge = Forge()
    attestation = forge.attestation()
    line = parse_note(attestation.note).lines[1]
    for other in (line, replace(line, payload=line.payload[:8] + b"x")):
        report = judge(forge, with_lines(attestation, other))
        assert outcome(report) == (Outcome.REJECTED, Step.QUOTE_STRUCTURE)


def test_a_line_of_the_same_key_id_under_another_name_is_unknown() -> None:
    forge = Forge()
    attestation = forge.attestation()
    line = replace(parse_note(attestation.note).lines[1], name="other.example/log")
    report = judge(forge, with_lines(attestation, line))
    assert report.outcome is Outcome.VERIFIED
    assert any("other.example/log" in text for text in report.not_understood)


# --- who vouches ----------------------------------------------------------------------------------------------


def test_a_pinned_origin_with_a_certificate_of_a_stranger_shows_no_endorsed_claim() -> None:
    forge = Forge()
    stranger = Authority(name="Stranger")
    forge.certificate = stranger.issue(forge.ak.public_key(), forge.host, forge.origin)
    report = judge(forge, forge.attestation(), forge.policy(f'[[pin]]\norigin = "{forge.origin}"\n'))
    assert report.outcome is Outcome.VERIFIED
    assert {source(report, name) for name in ("host", "origin", "tpm_kind")} == {ClaimSource.HOST}
    assert not [claim for claim in report.claims if claim.source is ClaimSource.ENDORSED]


def test_a_root_that_comes_with_the_evidence_is_no_anchor() -> None:
    forge = Forge()
    stranger = Authority(name=forge.authority.name)
    leaf = stranger.issue(forge.ak.public_key(), forge.host, forge.origin)
    root = stranger.certificate.public_bytes(Encoding.DER)
    attestation = forge.attestation()
    support = replace(attestation.supports[0], certificates=(leaf, root))
    report = judge(forge, replace(attestation, supports=(support,)))
    assert outcome(report) == (Outcome.REJECTED, Step.AK_ENDORSEMENT)


def test_one_authority_of_two_is_enough_and_is_the_one_that_is_named() -> None:
    forge = Forge()
    other = Authority(name="Other CA")
    extra = f'[[authority]]\nname = "Other CA"\ncertificates = """\n{other.pem}"""\n'
    report = judge(forge, forge.attestation(), forge.policy(extra))
    assert [claim.value for claim in report.claims if claim.name == "authority"] == [forge.authority.name]


@pytest.mark.parametrize("host", ["example.net", "evilexample.net", "example.net.evil.org", "a.example.netx"])
def test_a_host_pattern_covers_what_is_below_its_suffix_and_nothing_else(host: str) -> None:
    authority = Authority()
    policy = load_policy(Forge(authority=authority).policy('hosts = ["*.example.net"]\n').encode())
    rule: PolicyAuthority = policy.authorities[0]
    assert rule.speaks_for("gpu-07.example.net")
    assert not rule.speaks_for(host)


def test_a_wildcard_in_a_certificate_names_no_host() -> None:
    forge = Forge()
    forge.certificate = forge.authority.issue(forge.ak.public_key(), "*.example.net", None)
    assert outcome(judge(forge, forge.attestation())) == (Outcome.REJECTED, Step.AK_ENDORSEMENT)


# --- what is measured -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pcr", [0, 4, 7])
def test_a_boot_that_was_never_measured_fits_no_policy_that_pins_another_pcr(pcr: int) -> None:
    forge = Forge()
    forge.pcrs = {key: value for key, value in forge.pcrs.items() if key != pcr}
    pinned = f'[platform.pcrs]\n2 = ["{forge.pcrs[2].hex()}"]\n'
    attestation = forge.attestation()
    assert outcome(judge(forge, attestation, forge.policy(pinned))) == (Outcome.REJECTED, Step.PLATFORM)
    named = forge.policy(f'{pinned}{pcr} = ["{"0" * 64}"]\n')
    report = judge(forge, attestation, named)
    assert report.outcome is Outcome.VERIFIED
    assert any("never measured" in text for text in report.notices)


def test_epochs_are_the_hosts_word_where_nothing_says_who_wrote_the_log() -> None:
    forge = Forge()
    attestation = forge.attestation()
    assert source(judge(forge, attestation), "workload_epoch") is ClaimSource.HOST
    pinned = forge.policy(f'[platform.pcrs]\n4 = ["{forge.pcrs[4].hex()}"]\n')
    assert source(judge(forge, attestation, pinned), "workload_epoch") is ClaimSource.MEASURED


def test_a_hidden_event_carries_no_model_but_the_hosts_word() -> None:
    """The record cites the agent's own event, which nobody can look into."""
    forge = Forge(keep=frozenset())
    record = forge.record()
    assert record.model is not None
    cited = replace(record.model, name="GPT-9", event=0, event_digest=content_digest(forge.events()[0]))
    attestation = forge.attestation(record=replace(record, model=cited))
    report = judge(forge, attestation, forge.policy(f'[platform.pcrs]\n4 = ["{forge.pcrs[4].hex()}"]\n'))
    assert source(report, "model") is ClaimSource.HOST
    assert source(report, "model_weights") is ClaimSource.HOST
    shown = replace(attestation.supports[0], workload_log=reveal(forge.events(), frozenset({0})))
    assert judge(forge, replace(attestation, supports=(shown,))).failing is Step.MODEL


@dataclass
class ForgeOfTwoEpochs(Forge):
    """A host that has swapped its model: the old one stands in the first epoch, which is not in force."""

    def events(self) -> list[bytes]:
        first = super().events()
        second = WorkloadEvent("model", "other", bytes(32), {}).encode()
        return [*first, second, separator(1, [content_digest(second)])]


def test_a_record_cites_no_event_of_an_earlier_epoch() -> None:
    forge = ForgeOfTwoEpochs()
    assert outcome(judge(forge, forge.attestation())) == (Outcome.REJECTED, Step.MODEL)


def test_what_a_local_caller_submitted_is_never_a_model_s_output() -> None:
    forge = Forge(source=Source.SUBMITTED)
    record = replace(forge.record(), model=None)
    report = judge(forge, forge.attestation(record=record))
    assert report.outcome is Outcome.VERIFIED
    assert not [claim for claim in report.claims if claim.name.startswith("model")]
