# SPDX-License-Identifier: Apache-2.0
"""The root's commits against a real software TPM: cost, evidence, and moves of PCRs explained."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ima_logs import ima_entry
from tpms import CC_PCR_EXTEND, CC_PCR_READ, CC_QUOTE, Between, Tpm, extend_command

from quotary_attest.roots import CommitSteps, ForeignExtend, PlatformUnknown, Quote, Root
from quotary_attest.tpm.errors import TpmBusy, TpmConflict, TpmError
from quotary_attest.tpm.ima import DEFAULT_LOG
from quotary_attest.tpm.root import TpmOptions, TpmRoot, open_root
from quotary_verifier.evidence.tpm_quote import verify_signature
from quotary_verifier.wire.bindings import chain_extend
from quotary_verifier.wire.tpm import (
    ALG_SHA256,
    parse_attest,
    parse_public,
    parse_signature,
    unpack_evidence,
)

D = [hashlib.sha256(bytes([step])).digest() for step in range(20)]
OTHER = hashlib.sha256(b"somebody else").digest()


@pytest.fixture
async def root(tpm: Tpm, tmp_path: Path) -> AsyncIterator[TpmRoot]:
    opened = await open_root(tpm.identity(), tpm.tcti, TpmOptions(ima_log=tmp_path / "ima"))
    yield opened
    await opened.close()


def measured(tpm: Tpm, log: Path, *datas: bytes) -> None:
    """Let the kernel measure files: into PCR 10, and into the log."""
    for data in datas:
        tpm.extend(10, hashlib.sha256(data).digest())
        with log.open("ab") as file:
            file.write(ima_entry(data))


async def test_a_commit_costs_exactly_one_extend_and_one_quote(tpm: Tpm, root: TpmRoot) -> None:
    with tpm.counted() as codes:
        for digest in D[:5]:
            await root.commit(digest)
    assert codes == [CC_QUOTE] * 5 + [CC_PCR_EXTEND] * 5


async def test_the_quote_binds_the_digest_the_chain_and_all_values(root: TpmRoot) -> None:
    before = (await root.platform()).pcrs[root.chain_pcr]
    for digest in D[:3]:
        quote = await root.commit(digest)
        attest = parse_attest(quote.attest)
        assert attest.extra_data == digest
        assert attest.quote is not None
        (selection,) = attest.quote.selections
        assert (selection.hash_alg, selection.pcrs) == (ALG_SHA256, tuple(range(16)))
        values = b"".join(quote.pcrs[pcr] for pcr in range(16))
        assert hashlib.sha256(values).digest() == attest.quote.pcr_digest
        before = chain_extend(before, digest)
        assert quote.pcrs[root.chain_pcr] == before
        assert quote.firmware_version == attest.firmware_version
        assert unpack_evidence(quote.evidence) == (quote.attest, quote.signature)
        verify_signature(
            parse_public(root.identity.ak_public), quote.attest, parse_signature(quote.signature)
        )


async def test_the_root_fulfils_the_protocol_of_the_engine(root: TpmRoot) -> None:
    assert isinstance(root, Root)
    assert root.identifier == "quotary/tpm2-quote/v1"


async def test_a_fresh_quote_extends_nothing(tpm: Tpm, root: TpmRoot) -> None:
    with tpm.counted() as codes:
        quote = await root.quote(D[0])
    assert codes == [CC_QUOTE]
    assert quote.pcrs[root.chain_pcr] == bytes(32)


async def test_each_step_of_a_commit_is_called_at_its_place(tpm: Tpm, root: TpmRoot) -> None:
    counts = tpm.board.counts
    start = counts[CC_PCR_EXTEND], counts[CC_QUOTE]
    seen: list[tuple[str, int, int]] = []

    class Steps(CommitSteps):
        def before(self) -> None:
            self.note("before")

        def between(self) -> None:
            self.note("between")

        def after(self, quote: Quote) -> None:
            assert parse_attest(quote.attest).extra_data == D[0]
            self.note("after")

        def note(self, name: str) -> None:
            seen.append((name, counts[CC_PCR_EXTEND] - start[0], counts[CC_QUOTE] - start[1]))

    await root.commit(D[0], Steps())
    assert seen == [("before", 0, 0), ("between", 1, 0), ("after", 1, 1)]


async def test_after_a_crash_between_the_extend_and_the_quote_the_same_digest_is_quoted_without_a_second_extend(
    root: TpmRoot,
) -> None:
    class Crash(Exception):  # noqa: N818
        pass

    def crash() -> None:
        raise Crash

    with pytest.raises(Crash):
        await root.commit(D[0], Between(crash))
    state = await root.platform()
    assert state.pcrs[root.chain_pcr] == chain_extend(bytes(32), D[0])
    quote = await root.quote(D[0])
    assert quote.pcrs[root.chain_pcr] == state.pcrs[root.chain_pcr]


async def test_commits_of_many_tasks_are_chained_one_after_another(root: TpmRoot) -> None:
    quotes = await asyncio.gather(*(root.commit(digest) for digest in D))
    value = bytes(32)
    for digest, quote in zip(D, quotes, strict=True):
        value = chain_extend(value, digest)
        assert quote.pcrs[root.chain_pcr] == value


async def test_workload_extends_are_predicted_too(tpm: Tpm, root: TpmRoot) -> None:
    with tpm.counted() as codes:
        await root.extend_workload(D[0])
        await root.extend_workload(D[1])
        quote = await root.commit(D[2])
    assert codes == [CC_QUOTE] + [CC_PCR_EXTEND] * 3
    assert quote.pcrs[root.workload_pcr] == chain_extend(chain_extend(bytes(32), D[0]), D[1])


@pytest.mark.parametrize("pcr", [15, 13])
async def test_a_foreign_extend_of_a_pcr_of_ours_is_detected(tpm: Tpm, root: TpmRoot, pcr: int) -> None:
    await root.commit(D[0])
    tpm.extend(pcr, OTHER)
    with pytest.raises(ForeignExtend) as caught:
        await root.commit(D[1])
    assert caught.value.pcr == pcr
    assert caught.value.expected != caught.value.found
    assert f"pcr {pcr} was extended by somebody else" in str(caught.value)


async def test_a_foreign_extend_between_our_extend_and_our_quote_is_detected(tpm: Tpm, root: TpmRoot) -> None:
    tpm.before(CC_QUOTE, extend_command(15, OTHER))
    with pytest.raises(ForeignExtend):
        await root.commit(D[0])
    with pytest.raises(PlatformUnknown):
        await root.commit(D[1])
    state = await root.platform()
    assert (await root.commit(D[1])).pcrs[15] == chain_extend(state.pcrs[15], D[1])


async def test_another_pcr_that_moved_once_costs_a_reading_but_no_second_quote(
    tpm: Tpm, root: TpmRoot
) -> None:
    tpm.extend(12, OTHER)
    with tpm.counted() as codes:
        quote = await root.commit(D[0])
    assert codes == [CC_QUOTE, CC_PCR_READ, CC_PCR_READ, CC_PCR_EXTEND]
    assert quote.pcrs[12] == chain_extend(bytes(32), OTHER)


async def test_a_pcr_that_moves_after_the_quote_makes_the_same_digest_be_quoted_again(
    tpm: Tpm, root: TpmRoot
) -> None:
    tpm.before(CC_QUOTE, extend_command(12, OTHER))
    tpm.before(CC_PCR_READ, extend_command(12, OTHER))
    with tpm.counted() as codes:
        quote = await root.commit(D[0])
    assert codes.count(CC_QUOTE) == 2
    assert codes.count(CC_PCR_EXTEND) == 1
    assert parse_attest(quote.attest).extra_data == D[0]
    assert quote.pcrs[root.chain_pcr] == chain_extend(bytes(32), D[0])


async def test_pcrs_that_never_rest_end_in_an_error_after_three_more_quotes(tpm: Tpm, root: TpmRoot) -> None:
    tpm.before(CC_QUOTE, *[extend_command(12, OTHER)] * 4)
    tpm.before(CC_PCR_READ, *[extend_command(12, OTHER), None] * 4)
    with tpm.counted() as codes, pytest.raises(TpmConflict, match="moved during each of 4 quotes"):
        await root.commit(D[0])
    assert codes.count(CC_QUOTE) == 4
    assert codes.count(CC_PCR_EXTEND) == 1


async def test_on_an_ima_host_the_log_explains_pcr_10_without_any_reading(
    tpm: Tpm, tmp_path: Path, root: TpmRoot
) -> None:
    log = tmp_path / "ima"
    measured(tpm, log, b"boot_aggregate")
    await root.platform()
    measured(tpm, log, b"one", b"two")
    log.write_bytes(log.read_bytes() + ima_entry(b"measured after the quote"))
    with tpm.counted() as codes:
        quote = await root.commit(D[0])
    assert codes == [CC_QUOTE, CC_PCR_EXTEND]
    expected = bytes(32)
    for data in (b"boot_aggregate", b"one", b"two"):
        expected = chain_extend(expected, hashlib.sha256(data).digest())
    assert quote.pcrs[10] == expected


async def test_on_an_ima_host_without_its_log_the_pcrs_are_read(tpm: Tpm, root: TpmRoot) -> None:
    tpm.extend(10, OTHER)
    with tpm.counted() as codes:
        await root.commit(D[0])
    assert codes.count(CC_PCR_READ) == 2


async def test_ima_and_a_foreign_extend_together_are_still_a_foreign_extend(
    tpm: Tpm, tmp_path: Path, root: TpmRoot
) -> None:
    measured(tpm, tmp_path / "ima", b"boot_aggregate")
    await root.platform()
    measured(tpm, tmp_path / "ima", b"one")
    tpm.extend(15, OTHER)
    with pytest.raises(ForeignExtend):
        await root.commit(D[0])


async def test_the_start_counter_counts_and_is_certified_over_callers_data(root: TpmRoot) -> None:
    value = await root.read_counter()
    assert await root.increment_counter() == value + 1
    assert await root.read_counter() == value + 1
    evidence = await root.certify_counter(D[0])
    attest, signature = unpack_evidence(evidence)
    parsed = parse_attest(attest)
    assert parsed.extra_data == D[0]
    assert parsed.nv is not None
    assert int.from_bytes(parsed.nv.contents, "big") == value + 1
    verify_signature(parse_public(root.identity.ak_public), attest, parse_signature(signature))


async def test_a_failed_extend_leaves_nothing_predicted(tpm: Tpm, root: TpmRoot) -> None:
    tpm.inject(CC_PCR_EXTEND, 0x127)
    with pytest.raises(TpmConflict):
        await root.commit(D[0])
    with pytest.raises(PlatformUnknown):
        await root.commit(D[0])
    await root.platform()
    await root.commit(D[0])


async def test_a_quote_that_fails_after_the_extend_can_be_asked_for_again(tpm: Tpm, root: TpmRoot) -> None:
    tpm.inject(CC_QUOTE, 0x09B)
    with pytest.raises(TpmError):
        await root.commit(D[0])
    quote = await root.quote(D[0])
    assert quote.pcrs[root.chain_pcr] == chain_extend(bytes(32), D[0])


@pytest.mark.parametrize("place", [-1, 60])
async def test_a_broken_answer_is_found_before_anybody_is_answered(
    tpm: Tpm, root: TpmRoot, place: int
) -> None:
    """A bit falls over between the TPM and us, in the signature or in what is signed."""

    def broken(code: int, command: bytes) -> bytes | None:
        if code != CC_QUOTE:
            return None
        response = bytearray(tpm.board.exchange(command))
        response[place - 5 if place < 0 else place] ^= 1  # the last five bytes are the password session's
        return bytes(response)

    tpm.board.answer = broken
    with pytest.raises(TpmError, match="what the tpm signed does not verify"):
        await root.commit(D[0])


async def test_an_answer_to_another_question_is_found(tpm: Tpm, root: TpmRoot) -> None:
    """Something between us and the TPM asks for a quote over other data; the AK signs it truly."""

    def swapped(code: int, command: bytes) -> bytes | None:
        return tpm.board.exchange(command.replace(D[0], OTHER)) if code == CC_QUOTE else None

    tpm.board.answer = swapped
    with pytest.raises(TpmError, match="quoted something else"):
        await root.quote(D[0])


async def test_the_counter_of_a_tpm_that_never_gets_ready_ends_in_busy(tpm: Tpm) -> None:
    from quotary_attest.tpm.connection import Retry

    waits: list[float] = []
    options = TpmOptions(retry=Retry(attempts=3, sleep=waits.append))
    root = await open_root(tpm.identity(), tpm.tcti, options)
    tpm.inject(0x134, 0x920, times=3)
    with pytest.raises(TpmBusy, match="limits the rate of nv writes"):
        await root.increment_counter()
    assert waits == [0.02, 0.04]
    await root.close()


def test_the_default_log_is_the_kernels() -> None:
    assert TpmOptions().ima_log == DEFAULT_LOG
