# SPDX-License-Identifier: Apache-2.0
"""Statements: their text has one spelling, only verification makes one, and a missing attestation contradicts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pycddl
import pytest
from forge import NOW, Forge
from hypothesis import given
from hypothesis import strategies as st

from quotary_verifier import (
    CheckState,
    EvidenceError,
    MalformedError,
    NotChecked,
    Rejected,
    Step,
    UnsupportedError,
    VerifiedStatement,
    load_policy,
    verify_statement,
)
from quotary_verifier.wire import cbor
from quotary_verifier.wire.declaration import CODED, UNAVAILABLE, Declaration, Service
from quotary_verifier.wire.records import Statement

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "statement" / "texts.json").read_text())
CDDL = (Path(__file__).parents[3] / "docs" / "spec" / "quotary.cddl").read_text()
TEXTS = pycddl.Schema("start = statement-text\n" + CDDL)
GOOD = [vector for vector in VECTORS if vector["expect"] == "read"]
BAD = [vector for vector in VECTORS if vector["expect"] != "read"]
CHAT = "/v1/chat/completions"
TOLD = Declaration.of([Service((CHAT,))])
SEGMENT = st.sampled_from(["a", "b", "*", "v1"])
PATH = st.lists(SEGMENT, min_size=1, max_size=3).map(lambda segments: "/" + "/".join(segments))
SERVICE = st.builds(
    lambda paths, unless, without: Service(
        tuple(sorted(paths)), tuple(sorted(unless)), tuple(sorted(without - paths))
    ),
    st.frozensets(PATH, min_size=1, max_size=4),
    st.frozensets(st.sampled_from([CODED, UNAVAILABLE])),
    st.frozensets(PATH, max_size=4),
)


def statement(text: str, forge: Forge | None = None, **quote: object) -> tuple[bytes, str]:
    """The attestation of a statement, and a policy that accepts its host."""
    forge = forge or Forge()
    record = Statement(b"s" * 16, NOW * 1000, text).encode()
    return forge.attestation(record=record, **quote).encode(), forge.policy()


def check(text: str) -> VerifiedStatement:
    attestation, policy = statement(text)
    return verify_statement(attestation, NOW, load_policy(policy.encode()))


@pytest.mark.parametrize("vector", GOOD, ids=lambda vector: vector["name"])
def test_a_text_of_the_vectors_is_read_and_promises_what_it_says(vector: dict[str, object]) -> None:
    text = str(vector["text"])
    assert Declaration.parse(text).text == text
    found = check(text)
    for path in vector["promised"]:  # type: ignore[attr-defined]
        assert found.promised(path) == found.declaration.services
    for path in vector["not_promised"]:  # type: ignore[attr-defined]
        assert found.promised(path) == ()


@pytest.mark.parametrize("vector", GOOD, ids=lambda vector: vector["name"])
def test_the_cddl_admits_what_is_read(vector: dict[str, str]) -> None:
    TEXTS.validate_cbor(cbor.encode(json.loads(vector["text"])))


@pytest.mark.parametrize("vector", BAD, ids=lambda vector: vector["name"])
def test_a_text_of_the_vectors_is_refused_for_what_it_is(vector: dict[str, str]) -> None:
    malformed = vector["expect"] == "malformed"
    with pytest.raises(MalformedError if malformed else UnsupportedError):
        Declaration.parse(vector["text"])
    with pytest.raises(Rejected if malformed else NotChecked) as raised:
        check(vector["text"])
    assert raised.value.report.failing is Step.DECODE


def test_a_long_or_deep_text_is_malformed() -> None:
    for text in ("[" * 4096, "[" * 2000 + "]" * 2000, " " * 5000, '{"schema":' + "9" * 4000 + "}"):
        with pytest.raises(MalformedError):
            Declaration.parse(text)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([CHAT, CODED]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["paths", "unless", "without", "services", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.one_of(
        st.text(alphabet=st.characters()),
        JSON.map(json.dumps),
        JSON.map(lambda value: json.dumps({"schema": "quotary-statement/v1", "services": value})),
        JSON.map(lambda value: json.dumps({"schema": "quotary-statement/v1", "services": [value]})),
    )
)
def test_any_other_text_is_refused_and_nothing_else_happens(text: str) -> None:
    try:
        declaration = Declaration.parse(text)
    except (MalformedError, UnsupportedError):
        return
    assert declaration.text == text


@given(st.lists(SERVICE, max_size=4))
def test_what_is_written_is_read_again_as_it_was(services: list[Service]) -> None:
    declaration = Declaration.of(services)
    if len(declaration.text) <= 4096:
        assert Declaration.parse(declaration.text) == declaration


def test_a_verified_statement_says_who_stated_what_and_that_a_newer_one_may_exist() -> None:
    forge = Forge()
    attestation, policy = statement(TOLD.text, forge)
    found = verify_statement(attestation, NOW, load_policy(policy.encode()))
    assert (found.origin, found.index, found.time) == (forge.origin, forge.index, NOW * 1000)
    report = found.verdict.report
    claims = {claim.name: claim for claim in report.claims}
    assert (claims["statement"].value, str(claims["statement"].source)) == (TOLD.text, "host")
    assert any("newest" in notice for notice in report.notices)
    states = {item.step: item.state for item in report.checks}
    for step in (Step.OUTPUT, Step.MODEL, Step.NONCE, Step.REQUEST, Step.FRESHNESS):
        assert states[step] is CheckState.NOT_CHECKED
    for step in (Step.INCLUSION, Step.QUOTE_SIGNATURE, Step.QUOTE_RANGE, Step.AK_ENDORSEMENT):
        assert states[step] is CheckState.PASSED


def _other_record(forge: Forge) -> bytes:
    return forge.attestation().encode()


def _altered_text(forge: Forge) -> bytes:
    whole = forge.attestation(record=Statement(b"s" * 16, 1, TOLD.text).encode())
    return replace(whole, record=Statement(b"s" * 16, 1, Declaration(()).text).encode()).encode()


def _history(forge: Forge) -> bytes:
    forge.index = 1
    return forge.attestation(record=Statement(b"s" * 16, 1, TOLD.text).encode()).encode()


def _unsigned(forge: Forge) -> bytes:
    forge.signer = Forge().ak
    return forge.attestation(record=Statement(b"s" * 16, 1, TOLD.text).encode()).encode()


@pytest.mark.parametrize(
    ("make", "step"),
    [
        (_other_record, Step.DECODE),
        (_altered_text, Step.INCLUSION),
        (_history, Step.QUOTE_RANGE),
        (_unsigned, Step.QUOTE_SIGNATURE),
    ],
)
def test_what_the_host_did_not_state_is_rejected_at_its_step(
    make: Callable[[Forge], bytes], step: Step
) -> None:
    forge = Forge()
    with pytest.raises(Rejected) as raised:
        verify_statement(make(forge), NOW, load_policy(forge.policy().encode()))
    assert raised.value.report.failing is step
    assert raised.value.report.claims == ()


def test_a_statement_of_another_host_is_rejected() -> None:
    attestation, _ = statement(TOLD.text)
    with pytest.raises(Rejected):
        verify_statement(attestation, NOW, load_policy(Forge().policy().encode()))


def test_a_verified_statement_is_made_by_verification_alone() -> None:
    found = check(TOLD.text)
    with pytest.raises(TypeError, match="verification alone"):
        VerifiedStatement(
            object(), found.origin, 1, Statement(b"s" * 16, 1, "x"), found.declaration, found.verdict
        )


def test_an_answer_without_its_attestation_contradicts_the_statement() -> None:
    found = check(TOLD.text)
    for excuse in ({}, {"coded": True}, {"unavailable": True}, {"coded": True, "unavailable": True}):
        with pytest.raises(EvidenceError, match="every answer"):
            found.judge_unattested(CHAT, **excuse)
    found.judge_unattested("/v1/models", unavailable=False)


def test_only_an_exception_that_the_host_made_excuses_an_answer() -> None:
    found = check(Declaration.of([Service((CHAT,), (CODED,))]).text)
    found.judge_unattested(CHAT, coded=True)
    for excuse in ({}, {"unavailable": True}):
        with pytest.raises(EvidenceError):
            found.judge_unattested(CHAT, **excuse)
    # of two doors, of which one made the exception, nobody can tell which one answered
    found = check(Declaration.of([Service((CHAT,), (CODED,)), Service((CHAT,))]).text)
    found.judge_unattested(CHAT, coded=True)
    with pytest.raises(EvidenceError):
        found.judge_unattested(CHAT)
    found = check(Declaration.of([Service((CHAT,), (CODED, UNAVAILABLE))]).text)
    found.judge_unattested(CHAT, unavailable=True)
    with pytest.raises(EvidenceError):
        found.judge_unattested(CHAT)
