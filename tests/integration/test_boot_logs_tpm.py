# SPDX-License-Identifier: Apache-2.0
"""Boot logs against a TPM that was really extended and really quotes: what it holds is what our replay says."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ima_logs import file_data, host_log, ima_entry
from tcg_logs import good_boot
from tpms import Tpm

from quotary_attest.tpm.model import TpmIdentity
from quotary_attest.tpm.root import TpmOptions, TpmRoot, open_root
from quotary_verifier.errors import EvidenceError
from quotary_verifier.evidence.tpm_quote import verify_pcr_values, verify_signature
from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.ima import parse_ima_binary
from quotary_verifier.logs.tcg import parse_tcg_log
from quotary_verifier.logs.tcg_boot import read_boot
from quotary_verifier.logs.tcg_secureboot import read_secure_boot
from quotary_verifier.wire.tpm import ALG_SHA256, parse_attest, parse_public, parse_signature

BOOT = good_boot(banks=(0x0B,))


@pytest.fixture
def identity(tpm: Tpm) -> TpmIdentity:
    return tpm.identity()


@pytest.fixture
async def root(tpm: Tpm, identity: TpmIdentity, tmp_path: Path) -> AsyncIterator[TpmRoot]:
    """A root whose TPM went through the boot before the agent started."""
    for event in BOOT.events:
        tpm.extend(event.register, event.digest(0x0B))
    opened = await open_root(identity, tpm.tcti, TpmOptions(ima_log=tmp_path / "ima"))
    yield opened
    await opened.close()


async def quoted(identity: TpmIdentity, root: TpmRoot) -> dict[int, bytes]:
    """The PCR values that a fresh commit's quote authenticates."""
    quote = await root.commit(hashlib.sha256(b"commit").digest())
    key = parse_public(identity.ak_public)
    verify_signature(key, quote.attest, parse_signature(quote.signature))
    values = {pcr: quote.pcrs.get(pcr, bytes(32)) for pcr in range(16)}
    return dict(verify_pcr_values(parse_attest(quote.attest).require_quote(), values, ALG_SHA256))


async def test_the_log_of_a_boot_replays_to_what_the_tpm_quotes(
    tpm: Tpm, identity: TpmIdentity, root: TpmRoot
) -> None:
    log = parse_tcg_log(BOOT.agile()).replay(await quoted(identity, root))
    assert log.unconfirmed == ()
    assert read_secure_boot(log).enabled
    assert len(read_boot(log).applications) == 2


async def test_a_log_with_another_boot_loader_does_not_replay(
    tpm: Tpm, identity: TpmIdentity, root: TpmRoot
) -> None:
    number = next(
        n for n, event in enumerate(BOOT.events) if event.type == t.EV_EFI_BOOT_SERVICES_APPLICATION
    )
    values = await quoted(identity, root)
    for false in (BOOT.altered(number, measured=b"another"), BOOT.without(number)):
        with pytest.raises(EvidenceError, match="register 4"):
            parse_tcg_log(false.agile()).replay(values)


async def test_an_ima_log_that_grows_while_the_tpm_quotes_replays_to_the_prefix(
    tpm: Tpm, identity: TpmIdentity, root: TpmRoot
) -> None:
    boot = {pcr: BOOT.values().get(pcr, bytes(32)) for pcr in range(10)}
    datas = host_log(boot, 5)
    for data in datas:
        await asyncio.to_thread(tpm.extend, 10, hashlib.sha256(data).digest())
    values = await quoted(identity, root)
    log = b"".join(map(ima_entry, [*datas, file_data(77)]))
    replayed = parse_ima_binary(log).replay(values)
    assert (replayed.count, replayed.unconfirmed) == (len(datas), len(ima_entry(file_data(77))))
    with pytest.raises(EvidenceError, match="no prefix"):
        parse_ima_binary(b"".join(map(ima_entry, datas[:-1]))).replay(values)


async def test_late_extends_of_a_running_system_are_reported_and_boot_pcrs_are_not_excused(
    tpm: Tpm, identity: TpmIdentity, root: TpmRoot
) -> None:
    await asyncio.to_thread(tpm.extend, 14, hashlib.sha256(b"a service").digest())
    log = parse_tcg_log(BOOT.agile())
    assert log.replay(await quoted(identity, root)).unconfirmed == (14,)
    await asyncio.to_thread(tpm.extend, 4, hashlib.sha256(b"a false loader").digest())
    with pytest.raises(EvidenceError, match="register 4"):
        log.replay(await quoted(identity, root))
