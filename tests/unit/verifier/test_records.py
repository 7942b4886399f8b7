# SPDX-License-Identifier: Apache-2.0
"""Records, attestations and commits: what is written reads the same, and every field has its bounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pycddl
import pytest
from forge import Forge
from hypothesis import given
from hypothesis import strategies as st

from quotary_verifier.errors import MalformedError
from quotary_verifier.logs.workload import WorkloadEvent
from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import Attestation, LaterCheckpoint, TpmSupport
from quotary_verifier.wire.fresh import FreshQuote
from quotary_verifier.wire.history import Commit, CommitSupport, CommitTeeSupport, split
from quotary_verifier.wire.names import check_host, check_origin, format_output_id, parse_output_id
from quotary_verifier.wire.records import (
    Boot,
    BootTpm,
    Genesis,
    Link,
    ModelClaim,
    Output,
    Source,
    State,
    Statement,
    TpmIdentity,
)
from quotary_verifier.wire.tee_support import TeeSupport

CDDL = (Path(__file__).parents[3] / "docs" / "spec" / "quotary.cddl").read_text()
SCHEMA = pycddl.Schema(CDDL)
DIGEST = st.binary(min_size=32, max_size=32)
SALT = st.binary(min_size=16, max_size=16)
TIME = st.integers(0, 2**53 - 1)
TEXT = st.text(max_size=20)
PCRS = st.dictionaries(st.integers(0, 15), DIGEST, max_size=5)
TPM = st.builds(
    TpmIdentity,
    ak=st.binary(min_size=1, max_size=90),
    ak_parent=st.binary(min_size=4, max_size=34),
    chain_pcr=st.just(15),
    workload_pcr=st.integers(8, 14),
    counter=st.binary(min_size=14, max_size=20),
)
GENESIS = st.builds(
    Genesis, salt=SALT, time=TIME, host=st.just("h.example"), note_key=DIGEST, tpm=st.none() | TPM,
    not_understood=st.just(()),
)  # fmt: skip
MODEL = st.builds(
    ModelClaim,
    name=TEXT,
    weights=DIGEST,
    event=st.integers(0, 2**32),
    event_digest=DIGEST,
    link=st.sampled_from(Link),
)
OUTPUT = st.builds(
    Output,
    salt=SALT,
    time=TIME,
    output_id=st.binary(min_size=24, max_size=24),
    state=st.sampled_from(State),
    digests=st.dictionaries(TEXT, DIGEST, min_size=1, max_size=4),
    request=st.none() | DIGEST,
    nonce=st.none() | st.binary(min_size=8, max_size=64),
    model=st.none() | MODEL,
    context=st.dictionaries(
        TEXT, TEXT | st.integers(0, 99) | st.booleans() | st.binary(max_size=9), max_size=4
    ),
    source=st.sampled_from([Source.RELAYED, Source.MIDDLEWARE]),
    not_understood=st.just(()),
)
BOOT = st.builds(
    Boot,
    salt=SALT,
    time=TIME,
    last_commit=DIGEST,
    tpm=st.none()
    | st.builds(
        BootTpm,
        reset_count=st.integers(0, 2**32 - 1),
        restart_count=st.integers(0, 2**32 - 1),
        chain_before=DIGEST,
        counter_evidence=st.binary(min_size=1, max_size=50),
    ),
    not_understood=st.just(()),
)
STATEMENT = st.builds(Statement, salt=SALT, time=TIME, text=TEXT, not_understood=st.just(()))
EVENTS = st.lists(st.binary(min_size=32, max_size=50), max_size=4).map(tuple)
ENDORSEMENTS = st.dictionaries(
    st.text("ab-", min_size=1, max_size=4),
    st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=2).map(tuple),
    max_size=3,
)
NAMED = st.dictionaries(
    st.text("ab-", min_size=1, max_size=4), st.lists(DIGEST, min_size=1, max_size=2).map(tuple), max_size=3
)
SUPPORT = st.builds(
    TpmSupport,
    identifier=st.just("quotary/tpm2-quote/v1"),
    pcrs=PCRS,
    chain_before=DIGEST,
    certificates=st.lists(st.binary(min_size=1, max_size=9), max_size=2).map(tuple),
    workload_log=EVENTS,
    endorsements=ENDORSEMENTS,
)
TEE = st.builds(TeeSupport, identifier=TEXT, endorsements=ENDORSEMENTS)
PATH = st.integers(0, 5).flatmap(lambda n: st.binary(min_size=32 * n, max_size=32 * n))
ATTESTATION = st.builds(
    Attestation,
    record=st.binary(min_size=1, max_size=30),
    genesis=st.binary(min_size=1, max_size=30),
    index=st.integers(0, 2**63 - 1),
    path=PATH,
    note=st.binary(min_size=1, max_size=30),
    supports=st.lists(SUPPORT, max_size=2).map(tuple),
    request_key=st.none() | DIGEST,
    boot_logs=st.dictionaries(TEXT, st.binary(min_size=32, max_size=40), max_size=2),
    later=st.lists(
        st.builds(LaterCheckpoint, note=st.binary(min_size=1, max_size=9), path=PATH), max_size=2
    ).map(tuple),
    not_understood=st.just(()),
    tees=st.lists(TEE, max_size=2, unique_by=lambda tee: tee.identifier).map(tuple),
)
COMMIT = st.builds(
    Commit,
    first=st.integers(0, 2**62),
    note=st.binary(min_size=1, max_size=20),
    supports=st.lists(
        st.builds(
            CommitSupport,
            identifier=TEXT,
            pcrs=PCRS,
            chain_before=DIGEST,
            certificates=st.lists(DIGEST, max_size=2).map(tuple),
            workload_log=st.none() | st.tuples(DIGEST, st.integers(0, 9)),
            endorsements=NAMED,
        ),
        max_size=2,
    ).map(tuple),
    boot_logs=st.dictionaries(TEXT, st.tuples(DIGEST, st.integers(0, 9)), max_size=2),
    tees=st.lists(
        st.builds(CommitTeeSupport, identifier=TEXT, endorsements=NAMED),
        max_size=2,
        unique_by=lambda support: support.identifier,
    ).map(tuple),
)
EVENT = st.builds(
    WorkloadEvent,
    type=TEXT,
    name=TEXT,
    digest=DIGEST,
    details=st.dictionaries(TEXT, TEXT | st.integers(0, 9), max_size=3),
)
FRESH = st.builds(
    FreshQuote,
    nonce=st.binary(min_size=8, max_size=64),
    genesis=st.binary(min_size=1, max_size=9),
    evidence=st.binary(min_size=1, max_size=9),
    support=SUPPORT,
    not_understood=st.just(()),
)


@given(GENESIS | OUTPUT | BOOT | STATEMENT | ATTESTATION | COMMIT | EVENT | FRESH)
def test_what_is_written_reads_the_same_and_fits_the_cddl(thing: Any) -> None:
    data = thing.encode()
    assert type(thing).decode(data) == thing
    SCHEMA.validate_cbor(data)


@pytest.mark.parametrize("field", range(2, 12))
def test_an_output_record_with_a_field_of_another_type_is_refused(field: int) -> None:
    value = cbor.decode(Forge().record().encode(), max_bytes=9999)
    value[field] = [None]
    with pytest.raises(MalformedError):
        Output.decode(cbor.encode(value))


@pytest.mark.parametrize("field", [2, 3, 4, 5, 6, 11])
def test_an_output_record_without_a_required_field_is_refused(field: int) -> None:
    value = cbor.decode(Forge().record().encode(), max_bytes=9999)
    del value[field]
    with pytest.raises(MalformedError):
        Output.decode(cbor.encode(value))


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        (2, bytes(15)),
        (3, 2**53),
        (4, bytes(23)),
        (5, 4),
        (6, {}),
        (6, {"body": bytes(31)}),
        (6, {1: bytes(32)}),
        (7, bytes(31)),
        (8, bytes(7)),
        (8, bytes(65)),
        (9, {1: "m"}),
        (10, {"k": [1]}),
        (10, {"k": "x" * 5000}),
        (11, 3),
    ],
)
def test_an_output_record_with_a_field_out_of_bounds_is_refused(field: int, bad: object) -> None:
    value = cbor.decode(Forge().record().encode(), max_bytes=9999)
    value[field] = bad
    with pytest.raises(MalformedError):
        Output.decode(cbor.encode(value))


@pytest.mark.parametrize(
    "host", ["", ".", "a.", ".a", "A.example", "a..b", "-a", "a-", "a_b", "ä.example", "a" * 223, "a/b"]
)
def test_a_host_that_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(MalformedError):
        check_host(host)
    genesis = Forge().genesis
    with pytest.raises(MalformedError):
        Genesis.decode(replace(genesis, host=host).encode())


def test_a_host_of_222_characters_makes_an_origin_of_255() -> None:
    host = ".".join(["a" * 54] * 4) + ".bc"
    assert len(check_host(host)) == 222
    assert len(Genesis(bytes(16), 0, host, bytes(32), None).origin(b"x")) == 255


def test_an_origin_has_the_form_of_one() -> None:
    origin = Forge().origin
    assert check_origin(origin) == origin
    for bad in (origin.upper(), origin + "a", origin[:-1], origin.replace("/", "//"), "/" + "a" * 32):
        with pytest.raises(MalformedError):
            check_origin(bad)


def test_an_output_id_has_one_text_form() -> None:
    assert parse_output_id(format_output_id(bytes(range(24)))) == bytes(range(24))
    for bad in ("out_" + "A" * 48, "out_" + "0" * 47, "out-" + "0" * 48, "out_" + "0" * 48 + "\n"):
        with pytest.raises(MalformedError):
            parse_output_id(bad)


def test_a_history_is_split_into_its_commits_and_a_torn_one_is_refused() -> None:
    commits = [Commit(first, b"note", ()).encode() for first in (1, 2, 300)]
    data = b"".join(commits)
    assert list(split(data)) == commits
    for length in range(1, len(data)):
        if length not in (len(commits[0]), len(commits[0]) * 2):
            with pytest.raises(MalformedError):
                list(split(data[:length]))
