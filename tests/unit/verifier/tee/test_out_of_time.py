# SPDX-License-Identifier: Apache-2.0
"""Evidence whose certificates are of another time: said only where nothing else is wrong, with when they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import amd_pki
import device_forge
import intel_sgx
import pytest
from amd_pki import AmdForge
from device_forge import DIGEST, GENESIS, NitroForge
from intel_sgx import TdxForge
from nvidia_forge import NvidiaForge

from quotary_verifier.errors import EvidenceError, OutOfTimeError, StaleCollateralError
from quotary_verifier.evidence.tee.device_pki import PinnedRoot
from quotary_verifier.evidence.tee.lines import Bound, TeeRoots, snp_support, tdx_support, verify_tee_line
from quotary_verifier.evidence.tee.shape import report_data
from quotary_verifier.tlog import hardware
from quotary_verifier.wire.tee_support import TeeSupport

DATA = report_data(DIGEST, GENESIS)
AMD = AmdForge()
GPUS = (NvidiaForge(), NvidiaForge(number=30))
ROOTS = TeeRoots(
    AMD.roots(), intel_sgx.forged_root(), PinnedRoot(NitroForge().root.der), PinnedRoot(GPUS[0].root.der)
)
NEVER = datetime(2050, 1, 1, tzinfo=UTC)
Line = tuple[bytes, TeeSupport]


def snp(data: bytes) -> Line:
    return AMD.report({0x50: data}), snp_support(AMD.endorsements())


def tdx(data: bytes) -> Line:
    return TdxForge(body={0x208: data}).quote(), tdx_support(None)


def nvidia(data: bytes) -> Line:
    reports = [device.report() for device in GPUS]
    if data != DATA:  # the last one of them
        reports[-1] = reports[-1][:-1] + bytes((reports[-1][-1] ^ 1,))
    paths = {f"device-{number}": tuple(device.certificates()) for number, device in enumerate(GPUS)}
    evidence = b"".join(len(report).to_bytes(2) + report for report in reports)
    return evidence, TeeSupport(hardware.IDENTIFIER_NVIDIA, paths)


def at(line: Line, time: datetime) -> None:
    verify_tee_line(*line, Bound(DIGEST, GENESIS), time, ROOTS)


@pytest.mark.parametrize("make", [snp, tdx, nvidia])
def test_a_path_of_another_time_is_named_with_the_time_at_which_the_same_bytes_verify(
    make: Callable[[bytes], Line],
) -> None:
    with pytest.raises(OutOfTimeError, match="is not valid at 2050-01-01T00:00:00Z, but from") as caught:
        at(make(DATA), NEVER)
    for time in (caught.value.not_before, caught.value.not_after):
        at(make(DATA), time)
    for time in (caught.value.not_before - timedelta(0, 1), caught.value.not_after + timedelta(0, 1)):
        with pytest.raises(OutOfTimeError):
            at(make(DATA), time)


@pytest.mark.parametrize("make", [snp, tdx, nvidia])
def test_what_is_false_besides_is_false_whatever_the_time(make: Callable[[bytes], Line]) -> None:
    with pytest.raises(EvidenceError) as caught:
        at(make(DATA[::-1]), NEVER)
    assert not isinstance(caught.value, OutOfTimeError)


def test_an_altered_signature_under_a_path_of_another_time_is_false() -> None:
    report, support = snp(DATA)
    altered = report[:0x90] + bytes((report[0x90] ^ 1,)) + report[0x91:]
    with pytest.raises(EvidenceError, match="not signed by this VCEK"):
        at((altered, support), NEVER)
    quote, support = tdx(DATA)
    place = quote.index(DATA) - 1
    altered = quote[:place] + bytes((quote[place] ^ 1,)) + quote[place + 1 :]
    with pytest.raises(EvidenceError) as caught:
        at((altered, support), NEVER)
    assert not isinstance(caught.value, OutOfTimeError)


def test_a_path_that_is_valid_at_no_time_is_false() -> None:
    endorsements = amd_pki.SnpEndorsements(AMD.leaf(days=(-30, -20)), AMD.issuer(days=(-10, 10)))
    with pytest.raises(EvidenceError, match="at no time") as caught:
        at((AMD.report({0x50: DATA}), snp_support(endorsements)), amd_pki.NOW)
    assert not isinstance(caught.value, OutOfTimeError)
    forge = TdxForge(body={0x208: DATA}, pck={"days": (-9000, -8000)})
    with pytest.raises(EvidenceError, match="at no time") as caught:
        at((forge.quote(), tdx_support(None)), intel_sgx.NOW)
    assert not isinstance(caught.value, OutOfTimeError)


def test_a_nitro_document_outside_its_own_path_is_false_as_no_other_time_could_be_asked_for() -> None:
    forge = replace(NitroForge(), time=device_forge.NOW + timedelta(days=2))
    with pytest.raises(EvidenceError, match="is not valid at") as caught:
        at((forge.document(), TeeSupport(hardware.IDENTIFIER_NITRO, {})), NEVER)
    assert not isinstance(caught.value, OutOfTimeError)


def test_collateral_of_another_time_is_stale_only_where_the_quote_and_all_of_it_hold() -> None:
    quote = TdxForge(body={0x208: DATA}).quote()
    later = intel_sgx.NOW + timedelta(days=200)
    with pytest.raises(StaleCollateralError, match="the tdx collateral is valid from") as caught:
        at((quote, tdx_support(intel_sgx.collateral())), later)
    assert caught.value.not_before <= intel_sgx.NOW < caught.value.not_after <= later
    info = intel_sgx.tcb_info(fmspc="00" * 6)
    with pytest.raises(EvidenceError, match="is for platforms"):
        at((quote, tdx_support(intel_sgx.collateral(info=info))), later)
    with pytest.raises(EvidenceError, match="signature of the tcb info"):
        at((quote, tdx_support(intel_sgx.collateral(signer="other"))), later)
