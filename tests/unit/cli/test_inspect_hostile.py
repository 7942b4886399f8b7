# SPDX-License-Identifier: Apache-2.0
"""Whatever bytes `attest inspect` is given, it describes them or refuses them with a typed error, and soon."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from forge import Forge
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ima_logs import file_data, ima_entry
from tcg_logs import good_boot

from quotary_cli.kinds import describe
from quotary_verifier.errors import QuotaryError
from quotary_verifier.logs.cel import encode_record
from quotary_verifier.logs.workload import WorkloadEvent
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.fresh import FreshQuote
from quotary_verifier.wire.history import Commit, CommitSupport
from quotary_verifier.wire.records import Boot, BootTpm, Statement
from quotary_verifier.wire.tpm import unpack_evidence

FORGE = Forge()
ATTESTATION = FORGE.attestation()
EVIDENCE = parse_note(ATTESTATION.note).lines[1].payload[8:]
SUPPORT = ATTESTATION.supports[0]
LOG = FORGE.events()
ARTEFACTS: dict[str, bytes] = {
    "attestation": ATTESTATION.encode(),
    "genesis record": ATTESTATION.genesis,
    "output record": ATTESTATION.record,
    "boot record": Boot(bytes(16), 1, bytes(32), BootTpm(1, 2, bytes(32), EVIDENCE)).encode(),
    "statement": Statement(bytes(16), 1, "every answer is attested").encode(),
    "signed note": ATTESTATION.note,
    "TPM evidence": EVIDENCE,
    "TPM attestation structure": unpack_evidence(EVIDENCE)[0],
    "fresh quote": FreshQuote(b"n" * 8, ATTESTATION.genesis, EVIDENCE, SUPPORT).encode(),
    "workload event": LOG[1],
    "workload log": b"".join(encode_record(number, 13, content) for number, content in enumerate(LOG)),
    "history": b"".join(
        Commit(
            first,
            ATTESTATION.note,
            (CommitSupport("quotary/tpm2-quote/v1", SUPPORT.pcrs, bytes(32), (bytes(32),), (bytes(32), 9)),),
            {"ima": (bytes(32), 7)},
        ).encode()
        for first in (1, 2)
    ),
    "certificate": FORGE.certificate or b"",
    "policy": FORGE.policy().encode(),
    "event log": good_boot().agile(),
    "IMA log": b"".join(ima_entry(file_data(number)) for number in range(4)),
}


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_it_knows_each_kind_and_says_what_it_holds(kind: str) -> None:
    found, content = describe(ARTEFACTS[kind])
    assert found == kind
    assert content
    json.dumps(content)


@pytest.mark.parametrize("kind", ARTEFACTS)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_damaged_artefact_is_described_or_refused_and_never_more(kind: str, data: st.DataObject) -> None:
    octets = bytearray(ARTEFACTS[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(octets) - 1))
        octets[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(octets)))
    for damaged in (bytes(octets), bytes(octets[:cut]), bytes(octets) + bytes(octets[:cut])):
        try:
            json.dumps(describe(damaged)[1])
        except QuotaryError:
            continue


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
@example(b"\xa1\x00\x11" * 50)
@example(b"-----BEGIN CERTIFICATE-----\n")
@example(b"\x30\x82\xff\xff")
def test_garbage_is_refused_with_a_typed_error(data: bytes) -> None:
    try:
        describe(data)
    except QuotaryError:
        return


HUGE = {
    "an array said to be huge": b"\xa3\x00\x10\x01\x01\x07\x9b\x00\x00\x00\xff\xff\xff\xff\xff",
    "many small arrays": b"\xa1\x00" + b"\x81" * 200_000,
    "a note of many lines": b"x\n\n" + "\u2014 a ".encode() * 100_000,
    "a policy of one long line": b'schema = "quotary-policy/v1"\nx = "' + b"a" * 900_000,
    "a policy of many tables": b'schema = "quotary-policy/v1"\n' + b"[[model]]\n" * 50_000,
    "a body that nearly carries a span": b'{"a":' * 100_000 + b',"attestation":"' + b"A" * 100_000 + b'"}',
    "a certificate that nests": b"\x30\x80" * 100_000,
    "a log of empty records": b"\x00\x00\x00\x00\x08" * 100_000,
    "many commits": Commit(1, b"n", ()).encode() * 20_000,
    "a number of a million digits": b"a\n" + b"1" * 1_000_000 + b"\nAAAA\n\n\xe2\x80\x94 a AAAA\n",
}


@pytest.mark.parametrize("name", HUGE)
def test_hostile_sizes_are_refused_in_bounded_time(name: str) -> None:
    start = time.process_time()
    with pytest.raises(QuotaryError):
        describe(HUGE[name])
    assert time.process_time() - start < 5


def test_what_inspect_shows_is_a_view_of_the_same_bytes() -> None:
    content = describe(ARTEFACTS["attestation"])[1]
    assert content["origin"] == FORGE.origin
    assert content["supports"][0]["workload_log"][1]["name"] == FORGE.model
    event = WorkloadEvent.decode(LOG[1])
    assert describe(LOG[1])[1]["digest"] == event.digest.hex()


def test_it_reads_the_artefacts_that_a_real_agent_made() -> None:
    stored = Path(__file__).parents[2] / "vectors" / "attestations"
    for folder in stored.iterdir():
        assert describe((folder / "output.attestation").read_bytes())[0] == "attestation"
        assert describe((folder / "received").read_bytes())[0] == "response body"
        assert describe((folder / "policy.toml").read_bytes())[0] == "policy"
