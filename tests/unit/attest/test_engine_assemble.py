# SPDX-License-Identifier: Apache-2.0
"""Attestations joined from parts are, byte for byte, what the verifier's encoder writes."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotary_attest.engine.assemble import Sealed, Supports, Template, WorkloadView, head_of, support_of
from quotary_attest.engine.outputs import RandomPool, make_output_id
from quotary_attest.roots import ClockReading, Quote
from quotary_attest.workload import Engine, ServedModel, Workload, events_of
from quotary_verifier.logs.workload import TYPE_ENGINE, TYPE_MODEL, WorkloadEvent, separator
from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import Attestation, TpmSupport

CONTENTS = [
    WorkloadEvent("agent", "a", bytes(32), {}).encode(),
    WorkloadEvent(TYPE_ENGINE, "old", bytes(32), {}).encode(),
    WorkloadEvent(TYPE_MODEL, "old", bytes(32), {}).encode(),
    separator(0, [bytes(32)]),
    WorkloadEvent("agent", "a", bytes(32), {}).encode(),
    WorkloadEvent(TYPE_ENGINE, "e", bytes(32), {}).encode(),
    WorkloadEvent(TYPE_MODEL, "m", bytes(32), {}).encode(),
    WorkloadEvent(TYPE_MODEL, "n", bytes(32), {}).encode(),
    separator(1, [bytes(32)]),
]
SUPPORT = TpmSupport("quotary/tpm2-quote/v1", {0: b"\1" * 32, 7: b"\7" * 32}, b"\2" * 32, (b"der",))


@given(
    record=st.binary(min_size=1, max_size=400),
    genesis=st.binary(min_size=1, max_size=300),
    index=st.integers(0, 2**63 - 1),
    path=st.integers(0, 63).map(lambda count: bytes(32 * count)),
    note=st.binary(min_size=1, max_size=70_000),
    key=st.none() | st.binary(min_size=32, max_size=32),
    event=st.sampled_from([None, 6, 7]),
)
def test_the_join_is_the_encoders_bytes(
    record: bytes, genesis: bytes, index: int, path: bytes, note: bytes, key: bytes | None, event: int | None
) -> None:
    view = WorkloadView(CONTENTS)
    parts = Template(genesis).parts(record, index, path, event, key)
    support = TpmSupport(
        SUPPORT.identifier, SUPPORT.pcrs, SUPPORT.chain_before, SUPPORT.certificates, view.reveal(event)
    )
    expected = Attestation(record, genesis, index, path, note, (support,), key).encode()
    sealed = Sealed(note, Supports((SUPPORT,)), view)
    assert sealed.join(parts) == sealed.join(parts) == expected


@given(st.sampled_from([0x00, 0x40, 0x80]), st.integers(0, 2**64 - 1))
def test_heads_are_those_of_deterministic_cbor(major: int, value: int) -> None:
    if major == 0:
        assert head_of(major, value) == cbor.encode(value)
    assert len(head_of(major, value)) == len(cbor.encode(value))


def test_only_the_cited_event_and_its_own_epochs_engine_are_shown() -> None:
    view = WorkloadView(CONTENTS)
    shown = [number for number, item in enumerate(view.reveal(7)) if len(item) != 32]
    assert shown == [5, 7]
    assert all(len(item) == 32 for item in view.reveal(None))


def test_an_agent_on_a_software_tpm_says_so_with_every_output() -> None:
    agent = WorkloadEvent("agent", "a", bytes(32), {"tpm": "software"}).encode()
    view = WorkloadView([*CONTENTS[:4], agent, *CONTENTS[5:]])
    for event, expected in ((None, [4]), (7, [4, 5, 7])):
        assert [number for number, item in enumerate(view.reveal(event)) if len(item) != 32] == expected


def test_a_support_leaves_out_zeros_and_the_origins_own_pcrs() -> None:
    pcrs = dict.fromkeys(range(16), bytes(32)) | {4: b"\4" * 32, 13: b"\x0d" * 32, 15: b"\x0f" * 32}
    quote = Quote(b"", b"", b"", pcrs, ClockReading(0, 1, 0, safe=True), 1)
    assert support_of("id", quote, bytes(32), (15, 13), ()).pcrs == {4: b"\4" * 32}


def test_output_ids_are_uuids_of_version_7_with_64_more_random_bits() -> None:
    import uuid

    pool = RandomPool()
    ids = [make_output_id(1_700_000_000_123, pool) for _ in range(3000)]
    assert len(set(ids)) == len(ids)
    for output_id in ids[:50]:
        parsed = uuid.UUID(bytes=output_id[:16])
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert parsed.int >> 80 == 1_700_000_000_123
    bits = [int.from_bytes(output_id) for output_id in ids]
    fixed = ~(0xFFFFFFFFFFFF << 144 | 0xF << 140 | 0x3 << 126) & (1 << 192) - 1
    seen_set = seen_clear = 0
    for value in bits:
        seen_set |= value
        seen_clear |= ~value
    assert seen_set & seen_clear & fixed == fixed


def test_random_bytes_are_never_handed_out_twice() -> None:
    blocks = iter(bytes([number]) * 16384 for number in range(1, 9))
    pool = RandomPool(lambda count: next(blocks)[:count])
    taken = b"".join(pool(16) for _ in range(3 * 1024))
    assert taken == b"".join(bytes([number]) * 16384 for number in (1, 2, 3))


def test_an_epochs_events_commit_to_what_may_be_secret_with_a_fresh_salt() -> None:
    workload = Workload(
        (ServedModel("m", bytes(32)),), Engine("vllm", bytes(32), ("--key", "s3cret"), ("TOKEN=t",))
    )
    first, second = (events_of(workload, RandomPool(), software_tpm=False) for _ in range(2))
    assert [event.type for event, _ in first] == [
        "agent",
        "engine",
        "configuration",
        "configuration",
        "model",
    ]
    ((event, (secret,)),) = [item for item in first if item[0].name == "vllm arguments"]
    assert event.digest == hashlib.sha256(secret.salt + b"--key\0s3cret\0").digest() == secret.commitment
    assert event.digest not in [other.digest for other, _ in second]
    assert b"s3cret" not in b"".join(event.encode() for event, _ in first)
    assert "s3cret" not in repr(first)


@pytest.mark.parametrize("count", [24, 32])
def test_a_pool_serves_any_size_up_to_a_block(count: int) -> None:
    pool = RandomPool()
    assert {len(pool(count)) for _ in range(2000)} == {count}
