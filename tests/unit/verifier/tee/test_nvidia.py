# SPDX-License-Identifier: Apache-2.0
"""Reports of NVIDIA-like devices that the tests mint: what verifies, every refusal, and what appraisal makes of it."""

from __future__ import annotations

import dataclasses
import hashlib
from base64 import b64decode
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from corpus import check_certificate, corpus_bytes, entries, judge, needs_corpus
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from device_forge import DIGEST, GENESIS, NOW, device_root, issue
from nvidia_forge import FWID, NvidiaForge

from quotary_verifier.errors import (
    EvidenceError,
    MalformedError,
    OutOfTimeError,
    PolicyError,
    UnsupportedError,
)
from quotary_verifier.evidence.tee.device_pki import PinnedRoot
from quotary_verifier.evidence.tee.nvidia import (
    Architecture,
    NvidiaClaims,
    NvidiaRules,
    appraise_nvidia,
    nvidia_root,
    split_reports,
    verify_nvidia,
    verify_nvidia_devices,
)
from quotary_verifier.evidence.tee.shape import Severity, enforce

FORGE = NvidiaForge()
REPORT, PATH = FORGE.report(), FORGE.certificates()
ROOT = PinnedRoot(FORGE.root.der)
ANY = NvidiaRules(frozenset(Architecture))


def verified(
    report: bytes = REPORT, path: Sequence[bytes] = PATH, at: datetime = NOW, **named: Any
) -> NvidiaClaims:
    return verify_nvidia(report, path, at, **({"nonce": DIGEST, "root": ROOT} | named))


def of(**changes: Any) -> NvidiaClaims:
    forge = NvidiaForge(**changes)
    return verified(forge.report(), forge.certificates())


def test_a_report_that_holds_says_which_genuine_device_answered_and_what_that_does_not_show() -> None:
    claims = verified()
    assert (claims.kind, claims.model, claims.architecture) == ("nvidia-device", "GH100", Architecture.HOPPER)
    assert (claims.report.driver, claims.report.vbios) == ("550.90.07", "96.00.9f.00.01")
    assert claims.measurements == {"measurement1": bytes(48), "measurement2": b"\x02" * 48}
    own = FORGE.path()[1].key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert claims.device == hashlib.sha256(own).digest()
    assert claims.signed_time is None
    assert claims.signer.root_sha256 == ROOT.sha256
    assert claims.shown == ("nonce", "signature", "chain", "firmware")
    assert claims.not_shown == ("revocation", "reference-values", "attachment")


def test_the_root_may_stand_at_the_end_of_the_path() -> None:
    assert verified(path=[*PATH, FORGE.root.der]).device == verified().device


@pytest.mark.parametrize(
    ("model", "architecture"),
    [("GB20X", Architecture.BLACKWELL), ("LS10", Architecture.NVSWITCH), ("XY1", None)],
)
def test_other_models_are_told_by_the_name_of_their_ca(model: str, architecture: Architecture | None) -> None:
    claims = of(model=model)
    assert (claims.model, claims.architecture) == (model, architecture)
    assert "firmware" in claims.shown


def test_a_device_other_than_hopper_may_lack_the_firmwares_id_and_the_claims_say_so() -> None:
    for changes in ({"certified": ()}, {"fields": {}}):
        claims = of(model="LS10", **changes)
        assert claims.not_shown[0] == "firmware"
        assert "firmware" not in claims.shown
        with pytest.raises(EvidenceError, match="do not say which firmware"):
            of(**changes)
    (finding, _) = appraise_nvidia(claims, NvidiaRules(ANY.architectures, firmware=True))[::-1]
    assert (finding.rule, finding.severity) == ("nvidia.firmware", Severity.FAIL)


@pytest.mark.parametrize("model", ["GH100", "GB20X"])
def test_firmware_other_than_the_certified_is_refused_on_every_model(model: str) -> None:
    with pytest.raises(EvidenceError, match="not the one that the device's certificate is for"):
        of(model=model, certified=(FWID[::-1],))
    assert of(model=model, certified=(FWID, bytes(48))).device
    with pytest.raises(EvidenceError, match="not the one"):
        of(model=model, certified=(FWID, bytes(48)), fields={20: bytes(48)})


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_no_byte_of_a_report_can_be_altered(step: int) -> None:
    for position in range(0, len(REPORT), step):
        altered = REPORT[:position] + bytes((REPORT[position] ^ 0x40,)) + REPORT[position + 1 :]
        with pytest.raises((MalformedError, EvidenceError, UnsupportedError)):
            verified(altered)


def test_nothing_may_be_cut_off_a_report_or_follow_it() -> None:
    for length in range(0, len(REPORT), 9):
        with pytest.raises(MalformedError):
            verified(REPORT[:length])
    for tail, why in ((b"\0", "trailing"), (bytes(40_000), "too large")):
        with pytest.raises(MalformedError, match=why):
            of(tail=tail)


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"head": b"\x12\xe0\x01\xff"}, UnsupportedError, "0x12"),
        ({"answer": b"\x10\x60\0\0"}, UnsupportedError, "0x10"),
        ({"head": b"\x11\xe1\x01\xff"}, MalformedError, "no signed exchange"),
        ({"answer": b"\x11\x61\0\0"}, MalformedError, "no signed exchange"),
        ({"head": b"\x11\xe0\x00\xff"}, MalformedError, "no signed exchange"),
        ({"count": 1}, MalformedError, "trailing"),
        ({"count": 3}, MalformedError, "within a field"),
        ({"blocks": b"\1\2\4\0\1\1\0x", "count": 1}, UnsupportedError, "specification 2"),
        ({"blocks": b"\1\1\5\0\1\1\0x", "count": 1}, MalformedError, "do not fit"),
        ({"blocks": 2 * b"\1\1\4\0\1\1\0x", "count": 2}, MalformedError, "stands twice"),
        ({"opaque": 2 * b"\3\0\1\0x"}, MalformedError, "field 3 .* twice"),
        ({"opaque": b"\3\0\2\0x"}, MalformedError, "within a field"),
        ({"fields": {3: b"\x1b[2J", 20: FWID}}, MalformedError, "no short text"),
        ({"fields": {3: b"9" * 65, 20: FWID}}, MalformedError, "no short text"),
        ({"fields": {6: b"123", 20: FWID}}, MalformedError, "vbios"),
        ({"fields": {20: FWID[1:]}}, MalformedError, "firmware's id"),
        ({"nonce": GENESIS}, EvidenceError, "the nonce is not"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_signed_report_of_another_form_is_refused(
    changes: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        of(**changes)


def test_the_nonce_is_that_of_the_request_and_never_the_devices_own() -> None:
    with pytest.raises(EvidenceError, match="the nonce is not"):
        verified(nonce=b"\x33" * 32)
    for wrong in (b"", DIGEST[:31], DIGEST + b"\0"):
        with pytest.raises(ValueError, match="32"):
            verified(nonce=wrong)
    with pytest.raises(ValueError, match="time zone"):
        verified(at=NOW.replace(tzinfo=None))


def test_a_path_that_lacks_a_certificate_has_one_too_many_or_another_root_is_refused() -> None:
    for missing in (1, 2, 3):
        with pytest.raises(EvidenceError, match="does not hold"):
            verified(path=[der for place, der in enumerate(PATH) if place != missing])
    with pytest.raises(EvidenceError, match=r"not signed by|does not hold"):
        verified(path=PATH[1:])
    stranger = issue("stranger", 60, FORGE.root)
    with pytest.raises(EvidenceError, match="not exactly one path"):
        verified(path=[*PATH, stranger.der])
    with pytest.raises(EvidenceError, match="does not hold"):
        verified(root=nvidia_root())
    other = NvidiaForge(root=device_root("another root"))
    with pytest.raises(EvidenceError, match="does not hold"):
        verified(other.report(), [*other.certificates(), FORGE.root.der])
    for certificates in ([], [FORGE.root.der], [PATH[0]] * 9):
        with pytest.raises(MalformedError, match="certificates without its root"):
            verified(path=certificates)
    with pytest.raises(MalformedError, match="cannot be read"):
        verified(path=[b"\x30\x00", *PATH[1:]])


def test_a_path_is_valid_at_its_time_only_and_its_leaf_signs_nothing_else() -> None:
    with pytest.raises(OutOfTimeError, match="is not valid at") as caught:
        verified(at=NOW + timedelta(days=2))
    assert verified(at=caught.value.not_after)
    for leaf in ({"ca": True}, {"usage": ["key_agreement"]}):
        forge = NvidiaForge(leaf=leaf)
        with pytest.raises(EvidenceError, match="does not hold"):
            verified(forge.report(), forge.certificates())


def test_a_leaf_with_an_extension_that_cannot_be_read_is_malformed() -> None:
    broken = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("2.5.29.31"), b"\x30\x03x"
    )  # no distribution points
    with pytest.raises(MalformedError, match="certificate of the device cannot be read"):
        of(certified=(), leaf={"extra": (broken,)})


def test_devices_whose_certificates_were_never_valid_together_are_refused() -> None:
    past = NvidiaForge(model="GB20X", number=40, leaf={"begins": NOW - timedelta(9), "lasts": timedelta(8)})
    past = dataclasses.replace(past, root=FORGE.root)
    later = NvidiaForge(leaf={"begins": NOW - timedelta(hours=1)})
    evidence = b"".join(len(one.report()).to_bytes(2, "big") + one.report() for one in (past, later))
    with pytest.raises(EvidenceError, match="at no time are the certificate paths of all devices valid"):
        verify_nvidia_devices(
            evidence, [past.certificates(), later.certificates()], NOW, nonce=DIGEST, root=ROOT
        )


def test_a_report_signed_by_another_device_is_refused() -> None:
    with pytest.raises(EvidenceError, match="not signed by the key of its certificate"):
        verified(NvidiaForge(number=40).report())


def test_all_devices_of_a_host_answer_one_nonce_in_one_evidence() -> None:
    forges = [NvidiaForge(), NvidiaForge(model="GB20X", number=40)]
    evidence = b"".join(len(one.report()).to_bytes(2, "big") + one.report() for one in forges)
    paths = [one.certificates() for one in forges]
    claims = verify_nvidia_devices(evidence, paths, NOW, nonce=DIGEST, root=ROOT)
    assert [one.model for one in claims] == ["GH100", "GB20X"]
    with pytest.raises(EvidenceError, match="2 devices report, and 1"):
        verify_nvidia_devices(evidence, paths[:1], NOW, nonce=DIGEST, root=ROOT)
    with pytest.raises(EvidenceError, match="not signed by"):
        verify_nvidia_devices(evidence, paths[::-1], NOW, nonce=DIGEST, root=ROOT)
    first = len(REPORT).to_bytes(2, "big") + REPORT
    with pytest.raises(EvidenceError, match="two of the reports are of one device"):
        verify_nvidia_devices(first * 2, [PATH, PATH], NOW, nonce=DIGEST, root=ROOT)
    for broken in (b"", first[:-1], first + b"\0", first + b"\0\0", b"\0\1x" * 33):
        with pytest.raises(MalformedError):
            split_reports(broken)


def test_a_genuine_device_whose_state_nobody_judged_is_accepted_with_a_warning() -> None:
    (finding,) = enforce(appraise_nvidia(verified(), ANY))
    assert (finding.rule, finding.severity) == ("nvidia.state", Severity.WARN)
    rules = NvidiaRules(
        frozenset({Architecture.HOPPER}),
        drivers=frozenset({"550.90.07"}),
        vbioses=frozenset({"96.00.9f.00.01"}),
        measurements={2: frozenset({b"\x02" * 48})},
        devices=frozenset({verified().device or b""}),
        firmware=True,
    )
    assert appraise_nvidia(verified(), rules) == ()


def test_every_rule_that_is_broken_is_named() -> None:
    rules = NvidiaRules(
        frozenset({Architecture.BLACKWELL}),
        drivers=frozenset({"1"}),
        vbioses=frozenset({"2"}),
        measurements={2: frozenset({bytes(48)}), 9: frozenset({bytes(48)})},
        devices=frozenset({b"x"}),
    )
    findings = appraise_nvidia(verified(), rules)
    assert [finding.rule for finding in findings] == [
        "nvidia.architecture", "nvidia.driver", "nvidia.vbios", "nvidia.measurement", "nvidia.measurement",
        "nvidia.device",
    ]  # fmt: skip
    assert "measurement 9 is absent" in findings[4].message
    unknown = appraise_nvidia(of(model="x y"), ANY)
    assert "'that is not known'" in unknown[0].message
    with pytest.raises(PolicyError, match="no architecture"):
        NvidiaRules(frozenset())


def test_a_path_without_a_ca_of_the_devices_own_names_no_device() -> None:
    identity = issue("NVIDIA GB20X Identity", 11, FORGE.root)
    leaf = issue("device", 21, identity, ca=False)
    claims = verified(NvidiaForge().report(), [leaf.der, identity.der])
    assert claims.device is None
    rules = NvidiaRules(ANY.architectures, devices=frozenset({b"x"}))
    assert "names no device" in appraise_nvidia(claims, rules)[-1].message


NVIDIA_FILES = entries("tee/nvidia/")


@needs_corpus
@pytest.mark.parametrize("item", NVIDIA_FILES, ids=[one["file"].rpartition("/")[2] for one in NVIDIA_FILES])
def test_a_file_of_the_corpus_has_its_stated_outcome(item: dict[str, Any]) -> None:
    judge(item, {"ca-certificate": check_root})


def check_root(item: dict[str, Any]) -> None:
    assert item["expect"] == "reference"
    der = b64decode(b"".join(corpus_bytes(item["file"]).split(b"-----")[2].split()))
    assert nvidia_root().der == der
    check_certificate(nvidia_root().certificate, item["expected"])
