# SPDX-License-Identifier: Apache-2.0
"""Evidence of TEE lines with what is archived beside it: each kind by its identifier, and what does not fit it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import amd_pki
import cca_tokens
import device_forge
import intel_sgx
import pytest
from amd_pki import AmdForge
from device_forge import DIGEST, GENESIS, NitroForge
from intel_sgx import TdxForge
from nvidia_forge import NvidiaForge

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.device_pki import PinnedRoot
from quotary_verifier.evidence.tee.lines import Bound, TeeRoots, snp_support, tdx_support, verify_tee_line
from quotary_verifier.evidence.tee.shape import TeeClaims, report_data
from quotary_verifier.tlog import hardware
from quotary_verifier.wire import cbor
from quotary_verifier.wire.tee_support import MAX_NAMES, MAX_PART, MAX_PARTS, TeeSupport

BOUND = Bound(DIGEST, GENESIS)
DATA = report_data(DIGEST, GENESIS)
GPU = NvidiaForge()
SECOND = NvidiaForge(number=30)
Line = tuple[bytes, TeeSupport, datetime]


def nvidia_evidence(*devices: NvidiaForge) -> bytes:
    reports = [device.report() for device in devices]
    return b"".join(len(report).to_bytes(2, "big") + report for report in reports)


def nvidia_support(*devices: NvidiaForge) -> TeeSupport:
    paths = {f"device-{number}": tuple(device.certificates()) for number, device in enumerate(devices)}
    return TeeSupport(hardware.IDENTIFIER_NVIDIA, paths)


AMD = AmdForge()
ROOTS = TeeRoots(
    AMD.roots(),
    intel_sgx.forged_root(),
    PinnedRoot(NitroForge().root.der),
    PinnedRoot(GPU.root.der),
    (cca_tokens.platform_key(),),
)
LINES: dict[str, Line] = {
    "sev-snp": (
        AMD.report({0x50: DATA}),
        snp_support(AMD.endorsements(AMD.crl())),
        amd_pki.NOW,
    ),
    "tdx": (
        TdxForge(body={0x208: DATA}).quote(),
        tdx_support(intel_sgx.collateral()),
        intel_sgx.NOW,
    ),
    "nitro": (NitroForge().document(), TeeSupport(hardware.IDENTIFIER_NITRO, {}), device_forge.NOW),
    "nvidia": (nvidia_evidence(GPU, SECOND), nvidia_support(GPU, SECOND), device_forge.NOW),
    "cca": (cca_tokens.cca_mint(DATA), TeeSupport(hardware.IDENTIFIER_CCA, {}), device_forge.NOW),
}


def verified(line: Line, bound: Bound = BOUND, **changes: Any) -> tuple[TeeClaims, ...]:
    evidence, support, at = line
    return verify_tee_line(
        changes.get("evidence", evidence), changes.get("support", support), bound, at, ROOTS
    )


@pytest.mark.parametrize("kind", LINES)
def test_a_line_of_each_kind_verifies_with_what_is_archived_beside_it(kind: str) -> None:
    claims = verified(LINES[kind])
    assert len(claims) == (2 if kind == "nvidia" else 1)
    for one in claims:
        assert one.kind.startswith(kind)
        assert one.shown
        assert not set(one.shown) & set(one.not_shown)
        assert one.device
        assert one.measurements
        assert one.signer.not_before < LINES[kind][2] < one.signer.not_after
        assert (one.signed_time is not None) is (kind == "nitro")


@pytest.mark.parametrize("kind", LINES)
def test_a_line_of_each_kind_binds_the_commit(kind: str) -> None:
    with pytest.raises(EvidenceError):
        verified(LINES[kind], Bound(bytes(32), GENESIS))
    if kind != "nvidia":  # a device answers 32 bytes, which leaves no room for more than D
        with pytest.raises(EvidenceError):
            verified(LINES[kind], Bound(DIGEST, bytes(32)))


@pytest.mark.parametrize("kind", [kind for kind in LINES if kind != "cca"])
def test_the_makers_own_roots_do_not_vouch_for_what_is_minted(kind: str) -> None:
    evidence, support, at = LINES[kind]
    with pytest.raises(EvidenceError):
        verify_tee_line(evidence, support, BOUND, at)


@pytest.mark.parametrize("kind", LINES)
def test_an_endorsement_that_nobody_asked_for_is_malformed(kind: str) -> None:
    support = LINES[kind][1]
    more = TeeSupport(support.identifier, {**support.endorsements, "more": (b"x",)})
    with pytest.raises(MalformedError, match=r"missing or too many: .*more"):
        verified(LINES[kind], support=more)


@pytest.mark.parametrize(
    ("kind", "name"), [("sev-snp", "leaf"), ("sev-snp", "issuer"), ("tdx", "qe_identity")]
)
def test_an_endorsement_that_is_missing_or_there_twice_is_malformed(kind: str, name: str) -> None:
    support = LINES[kind][1]
    less = {one: parts for one, parts in support.endorsements.items() if one != name}
    with pytest.raises(MalformedError, match=f"missing or too many: {name}"):
        verified(LINES[kind], support=TeeSupport(support.identifier, less))
    twice = {**support.endorsements, name: support.endorsements[name] * 2}
    with pytest.raises(MalformedError, match=f"2 endorsements '{name}'"):
        verified(LINES[kind], support=TeeSupport(support.identifier, twice))


def test_a_tdx_line_without_collateral_says_that_the_tcb_was_not_appraised() -> None:
    (claims,) = verified(LINES["tdx"], support=tdx_support(None))
    assert "tcb" in claims.not_shown
    (claims,) = verified(LINES["tdx"])
    assert claims.not_shown == ()


def test_a_cca_line_without_a_platform_key_says_that_its_platform_is_nobodys_word() -> None:
    evidence, support, at = LINES["cca"]
    (claims,) = verify_tee_line(evidence, support, BOUND, at)
    assert "platform-signature" in claims.not_shown
    (claims,) = verified(LINES["cca"])
    assert "platform-signature" in claims.shown


def test_every_device_of_an_nvidia_line_needs_its_path() -> None:
    for paths in (nvidia_support(GPU), nvidia_support(GPU, SECOND, GPU), nvidia_support(SECOND, GPU)):
        with pytest.raises((EvidenceError, MalformedError)):
            verified(LINES["nvidia"], support=paths)


def test_an_identifier_that_is_not_known_could_not_be_checked() -> None:
    for identifier in ("quotary/sev-snp/v2", hardware.IDENTIFIER_TPM2_QUOTE):
        with pytest.raises(UnsupportedError, match="is not known"):
            verified(LINES["nitro"], support=TeeSupport(identifier, {}))


@pytest.mark.parametrize("kind", LINES)
def test_a_support_is_read_as_it_was_written(kind: str) -> None:
    support = LINES[kind][1]
    data = cbor.encode(support.fields())
    assert TeeSupport.read(cbor.decode(data, max_bytes=1 << 20)) == support


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {1: "x"},
        {1: b"x", 6: {}},
        {1: "x" * 256, 6: {}},
        {1: "x", 6: []},
        {1: "x", 6: {}, 7: 0},
        {1: "x", 6: {1: [b"x"]}},
        {1: "x", 6: {"": [b"x"]}},
        {1: "x", 6: {"n" * 33: [b"x"]}},
        {1: "x", 6: {"n": b"x"}},
        {1: "x", 6: {"n": []}},
        {1: "x", 6: {"n": ["x"]}},
        {1: "x", 6: {"n": [b""]}},
        {1: "x", 6: {"n": [b"x"] * (MAX_PARTS + 1)}},
        {1: "x", 6: {"n": [bytes(MAX_PART + 1)]}},
        {1: "x", 6: {f"n{number}": [b"x"] for number in range(MAX_NAMES + 1)}},
        [1],
    ],
    ids=lambda fields: repr(fields)[:40],
)
def test_a_support_of_another_form_is_malformed(fields: Any) -> None:
    with pytest.raises(MalformedError):
        TeeSupport.read(fields)


def test_the_crls_of_a_line_count_and_need_not_be_there() -> None:
    evidence, _, at = LINES["sev-snp"]
    for crls, shown in (((AMD.crl(),), True), ((), False)):
        support = snp_support(AMD.endorsements(*crls))
        assert ("crls" in support.endorsements) is shown
        (claims,) = verified((evidence, support, at))
        assert ("revocation" in claims.shown) is shown
    with pytest.raises(EvidenceError, match="was revoked"):
        verified((evidence, snp_support(AMD.endorsements(AMD.crl({5: amd_pki.NOW}))), at))
