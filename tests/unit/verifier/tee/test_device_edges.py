# SPDX-License-Identifier: Apache-2.0
"""Nitro documents, NVIDIA's reports and HCL reports: how far each limit reaches, and each half of each condition."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import cbor2
import pytest
from amd_pki import NOW as SUMMER
from azure_forge import VM, AzureForge, ak_jwk, base64url
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from device_forge import DIGEST, GENESIS, NOW, Issued, NitroForge, device_root, issue
from nvidia_forge import FWID, NvidiaForge, fwid, little, tcb_info

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.azure import AzureRules, appraise_azure, verify_azure
from quotary_verifier.evidence.tee.azure_hcl import MAX_REPORT as MAX_HCL
from quotary_verifier.evidence.tee.azure_hcl import HclReport, parse_hcl_report
from quotary_verifier.evidence.tee.device_pki import MAX_PATH, PinnedRoot, verify_device_path
from quotary_verifier.evidence.tee.nitro import (
    NitroClaims,
    NitroRules,
    appraise_nitro,
    verify_nitro,
    verify_unbound_nitro,
)
from quotary_verifier.evidence.tee.nitro_document import MAX_DOCUMENT, parse_nitro_document
from quotary_verifier.evidence.tee.nvidia import (
    MAX_DEVICES,
    NvidiaClaims,
    NvidiaRules,
    appraise_nvidia,
    split_reports,
    verify_nvidia,
    verify_nvidia_devices,
)
from quotary_verifier.evidence.tee.nvidia_spdm import MAX_REPORT, SpdmReport, parse_spdm_report
from quotary_verifier.pki.der import encode

ROOT = PinnedRoot(device_root().der)


# paths


def long_path(cas: int) -> tuple[Issued, ...]:
    made = [device_root()]
    for at in range(cas):
        made.append(issue(f"ca {at}", 100 + at, made[-1]))
    return issue("device", 99, made[-1], ca=False), *reversed(made[1:])


def test_a_path_of_eight_certificates_is_not_too_long() -> None:
    assert MAX_PATH == 8
    leaf, *others = (one.certificate for one in long_path(6))
    assert len(verify_device_path(leaf, others, ROOT).chain) == 8
    leaf, *others = (one.certificate for one in long_path(7))
    with pytest.raises(MalformedError, match="7 certificates between"):
        verify_device_path(leaf, others, ROOT)
    for cas, message in ((6, "not signed by the key"), (7, "8 certificates without its root")):
        path = [one.der for one in long_path(cas)]
        with pytest.raises((EvidenceError, MalformedError), match=message):
            verify_nvidia(NvidiaForge().report(), path, NOW, nonce=DIGEST, root=ROOT)


def test_a_path_is_valid_while_all_of_it_is() -> None:
    root = issue("old root", 69, begins=NOW - timedelta(9), lasts=timedelta(99))
    ca = issue("ca", 70, root, begins=NOW - timedelta(5), lasts=timedelta(20))
    leaf = issue("device", 71, ca, ca=False, begins=NOW - timedelta(3), lasts=timedelta(30))
    path = verify_device_path(leaf.certificate, [ca.certificate], PinnedRoot(root.der))
    signer = path.signer_at(NOW)
    assert (signer.not_before, signer.not_after) == (NOW - timedelta(3), NOW + timedelta(15))


def test_a_device_whose_key_is_no_curves_could_not_be_checked() -> None:
    key: Any = rsa.generate_private_key(65537, 2048)
    leaf = issue("device", 72, device_root(), ca=False, key=key)
    with pytest.raises(UnsupportedError, match="not on p-384"):
        verify_device_path(leaf.certificate, [], ROOT)


# nitro


def document(**payload: Any) -> NitroClaims:
    made = NitroForge().having(**payload).document()
    return verify_nitro(made, NOW, user_data=DIGEST, nonce=GENESIS, root=ROOT)


NITRO: dict[str, tuple[dict[str, Any], str]] = {
    "a module of 257 characters": ({"module_id": "m" * 257}, "names no module"),
    "a module that is bytes": ({"module_id": b"m"}, "names no module"),
    "a time that is text": ({"timestamp": "1"}, "has no time"),
    "a time of zero": ({"timestamp": 0}, "has no time"),
    "a time past all dates": ({"timestamp": 250_000_000_000_000}, "has no time"),
    "a bundle that is a map": ({"cabundle": {0: b"x"}}, "no bundle"),
    "a bundle of seven": ({"cabundle": [b"x"] * 7}, "no bundle"),
    "33 pcrs": ({"pcrs": dict.fromkeys(range(33), bytes(48))}, "1 to 32 pcrs"),
    "no pcrs": ({"pcrs": {}}, "1 to 32 pcrs"),
    "a pcr below zero": ({"pcrs": {-1: bytes(48)}}, "not a number below 32"),
    "a pcr of the number 32": ({"pcrs": {32: bytes(48)}}, "not a number below 32"),
    "a pcr by a name": ({"pcrs": {"0": bytes(48)}}, "not a number below 32"),
    "a pcr that is text": ({"pcrs": {0: "0" * 48}}, "not a number below 32"),
    "a certificate that is text": ({"certificate": "x"}, "a certificate of a nitro document"),
    "an empty certificate": ({"certificate": b""}, "a certificate of a nitro document"),
    "a certificate of 1025 bytes": ({"certificate": bytes(1025)}, "a certificate of a nitro document"),
    "a public key of 1025 bytes": ({"public_key": bytes(1025)}, "public_key of a nitro document"),
    "a nonce that is text": ({"nonce": "x"}, "nonce of a nitro document"),
}


@pytest.mark.parametrize("case", NITRO.values(), ids=NITRO)
def test_a_field_of_a_document_beyond_its_limit_is_malformed(case: tuple[dict[str, Any], str]) -> None:
    payload, message = case
    with pytest.raises(MalformedError, match=message):
        parse_nitro_document(NitroForge().having(**payload).document())


def test_a_document_at_each_of_its_limits_is_read() -> None:
    forge = NitroForge()
    pcrs = dict.fromkeys(range(32), bytes(48))
    wide = forge.having(
        module_id="m" * 256, pcrs=pcrs, public_key=bytes(1024), certificate=bytes(1024), cabundle=[b"x"] * 6,
        timestamp=249_999_999_999_999, user_data=b"",
    )  # fmt: skip
    read = parse_nitro_document(wide.document())
    assert (len(read.module_id), len(read.pcrs), len(read.bundle)) == (256, 32, 6)
    assert (read.public_key, read.user_data, len(read.certificate)) == (bytes(1024), b"", 1024)
    small = parse_nitro_document(forge.having(module_id="m", pcrs={0: bytes(48)}, timestamp=1, cabundle=[b"x"],
                                              certificate=b"x").document())  # fmt: skip
    assert (small.module_id, small.timestamp, small.certificate, small.bundle) == ("m", 1, b"x", (b"x",))


def test_a_document_has_at_most_16_kib() -> None:
    assert MAX_DOCUMENT == 16384
    for size, message in ((MAX_DOCUMENT, "COSE_Sign1"), (MAX_DOCUMENT + 1, "too large")):
        data = cbor2.dumps(bytes(size - 3))
        assert len(data) == size
        with pytest.raises(MalformedError, match=message):
            parse_nitro_document(data)


def test_a_document_that_is_no_list_of_four_is_malformed() -> None:
    for made in (
        {0: b"", 1: {}, 2: b"", 3: b""},
        [b"", {}, b"", b"", b""],
        [b"", {4: b""}, b"", b""],
        "abcd",
    ):
        with pytest.raises(MalformedError, match="COSE_Sign1"):
            parse_nitro_document(cbor2.dumps(made))


def test_the_clock_may_be_five_minutes_ahead_and_a_document_as_old_as_the_rules_say() -> None:
    claims = document()
    for seconds, holds in ((300, True), (301, False)):
        at = NOW - timedelta(seconds=seconds)
        if holds:
            assert verify_unbound_nitro(NitroForge().document(), at, root=ROOT).signed_time == NOW
            continue
        with pytest.raises(EvidenceError, match="yet to come"):
            verify_unbound_nitro(NitroForge().document(), at, root=ROOT)
    with pytest.raises(ValueError, match="time zone"):
        verify_unbound_nitro(NitroForge().document(), NOW.replace(tzinfo=None), root=ROOT)
    old = replace(claims, verified_at=NOW + timedelta(seconds=60))
    assert appraise_nitro(old, NitroRules(max_age=timedelta(seconds=60))) == ()
    assert [one.rule for one in appraise_nitro(old, NitroRules(max_age=timedelta(seconds=59)))] == [
        "nitro.age"
    ]
    assert appraise_nitro(claims, NitroRules(modules=frozenset({"i-1-enc2"}))) == ()


@pytest.mark.parametrize("index", range(4))
def test_an_enclave_is_in_debug_mode_unless_one_of_its_first_three_pcrs_says_otherwise(index: int) -> None:
    pcrs = dict.fromkeys(range(16), bytes(48)) | {index: bytes(47) + b"\1"}
    assert document(pcrs=pcrs).debug is (index == 3)


# nvidia


def of(forge: NvidiaForge, **named: Any) -> NvidiaClaims:
    options = {"nonce": DIGEST, "root": ROOT, **named}
    return verify_nvidia(forge.report(), forge.certificates(), NOW, **options)


def test_a_report_has_at_most_32_kib() -> None:
    assert MAX_REPORT == 32768
    forge = NvidiaForge(blocks=b"", count=0)
    rest = MAX_REPORT - len(replace(forge, opaque=little(9, 2) + little(0, 2)).report())
    for size in (rest, rest + 1):
        data = replace(forge, opaque=little(9, 2) + little(size, 2) + bytes(size)).report()
        if size == rest:
            assert len(data) == MAX_REPORT
            assert parse_spdm_report(data).measurements == {}
            continue
        with pytest.raises(MalformedError, match="too large"):
            parse_spdm_report(data)


def test_versions_have_at_most_64_printable_characters() -> None:
    def read(**fields: bytes) -> SpdmReport:
        return parse_spdm_report(
            NvidiaForge(fields={int(name[1:]): value for name, value in fields.items()}).report()
        )

    assert read(_3=b"9" * 64).driver == "9" * 64
    assert read(_6=bytes(64)).vbios.count(".") == 32
    for fields in (
        {"_3": b"9" * 65},
        {"_3": "5é".encode()},
        {"_3": b"5\n"},
        {"_6": bytes(66)},
        {"_6": bytes(3)},
    ):
        with pytest.raises(MalformedError):
            read(**fields)


def line(*forges: NvidiaForge) -> bytes:
    return b"".join(len(one.report()).to_bytes(2, "big") + one.report() for one in forges)


def together(*forges: NvidiaForge, paths: list[list[bytes]] | None = None) -> tuple[NvidiaClaims, ...]:
    given = paths or [one.certificates() for one in forges]
    return verify_nvidia_devices(line(*forges), given, NOW, nonce=DIGEST, root=ROOT)


class _Own(NvidiaForge):
    """A device below NVIDIA's CA alone, without a CA of its own."""

    def path(self) -> tuple[Issued, ...]:
        identity = issue("NVIDIA GB20X Identity", 11, self.root)
        return issue("FMC", self.number + 1, identity, ca=False), identity


class _Signed(NvidiaForge):
    """A device with a second leaf."""

    def __init__(self, leaf_of: Issued) -> None:
        super().__init__()
        self.leaf_of = leaf_of

    def path(self) -> tuple[Issued, ...]:
        return self.leaf_of, *super().path()[1:]


def test_devices_are_told_apart_by_their_leaf_and_by_their_own_key() -> None:
    with pytest.raises(EvidenceError, match="are of one device"):  # one key of the device, two leaves
        together(NvidiaForge(), NvidiaForge(leaf={"begins": NOW - timedelta(hours=2)}))
    brom = issue("BROM", 20, NvidiaForge().path()[2])
    second = issue("FMC", 66, brom, ca=False, extra=(tcb_info("GH100", FWID),))
    forged = _Signed(leaf_of=second)
    with pytest.raises(EvidenceError, match="are of one device"):  # two leaf keys under one key of the device
        together(NvidiaForge(), forged)
    one, other = _Own(number=60, fields={}), _Own(number=62, fields={})
    assert [claims.device for claims in together(one, other)] == [None, None]
    with pytest.raises(ValueError, match="time zone"):
        verify_nvidia_devices(
            line(one), [one.certificates()], NOW.replace(tzinfo=None), nonce=DIGEST, root=ROOT
        )
    with pytest.raises(
        EvidenceError, match="are of one device"
    ):  # one leaf, and no key that names the device
        together(one, one)


def test_an_evidence_has_reports_of_1_to_32_devices() -> None:
    assert MAX_DEVICES == 32
    assert len(split_reports(b"\0\1x" * 32)) == 32
    assert split_reports(b"\0\1x") == [b"x"]
    for wrong in (b"", b"\0\1x" * 33):
        with pytest.raises(MalformedError, match="devices"):
            split_reports(wrong)


def test_a_device_is_named_by_its_own_ca_where_the_path_has_four_certificates() -> None:
    identity = issue("NVIDIA GB20X Identity", 11, device_root())
    own = issue("BROM", 64, identity)
    leaf = issue("FMC", 20 + 1, own, ca=False)
    claims = verify_nvidia(NvidiaForge(fields={}).report(), [leaf.der, own.der, identity.der], NOW, nonce=DIGEST,
                           root=ROOT)  # fmt: skip
    assert claims.device is not None
    rules = NvidiaRules(frozenset({claims.architecture} - {None}), devices=frozenset({b"x"}))  # type: ignore[arg-type]
    assert claims.device.hex() in next(
        one.message for one in appraise_nvidia(claims, rules) if "device" in one.rule
    )


@pytest.mark.parametrize(
    "content",
    [
        encode(0x30, encode(0x30, encode(0x06, bytes.fromhex("608648016503040201")) + encode(0x04, FWID))),
        encode(0x30, encode(0x30, encode(0x06, bytes.fromhex("608648016503040202")) + encode(0x03, FWID))),
        encode(
            0x30, encode(0x30, encode(0x06, bytes.fromhex("608648016503040202")) + encode(0x04, FWID[1:]))
        ),
        encode(0x30, fwid()[:0] + encode(0x31, fwid()[2:])),
        encode(0x31, fwid()),
    ],
    ids=["another hash", "no octets", "a short digest", "a set", "no sequence"],
)
def test_a_certified_firmware_is_a_sha_384_of_48_bytes(content: bytes) -> None:
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), content)
    forge = NvidiaForge(model="LS10", certified=(), leaf={"extra": (extension,)})
    assert "firmware" in of(forge).not_shown
    other = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.2"), encode(0x30, fwid(bytes(48))))
    assert "firmware" in of(NvidiaForge(model="LS10", certified=(), leaf={"extra": (other,)})).not_shown


def test_a_firmware_id_that_has_a_zero_byte_is_one_all_the_same() -> None:
    value = b"\0" + FWID[1:]
    assert "firmware" in of(NvidiaForge(certified=(value,), fields={20: value})).shown


# azure


def hcl(**changes: Any) -> HclReport:
    return parse_hcl_report(AzureForge(**changes).report())


AZURE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nine keys": ({"keys": [ak_jwk(), *[{"kid": "x"}] * 8]}, MalformedError, "lists no keys"),
    "65 settings": ({"settings": {f"s{at}": at for at in range(65)}}, MalformedError, "no configuration"),
    "a setting that is a list": ({"settings": {"a": 1, "b": []}}, MalformedError, "neither text"),
    "19 digits": ({"settings": {"a": 10**18}}, MalformedError, "too long"),
    "a modulus with accents": ({"keys": [ak_jwk(n="é" * 342)]}, MalformedError, "not base64url"),
    "a modulus of 257 bytes": (
        {"keys": [ak_jwk(n=base64url(b"\x80" + bytes(255) + b"\1"))]}, UnsupportedError, "another exponent or size"
    ),
    "a modulus that is short": (
        {"keys": [ak_jwk(n=base64url(b"\x7f" + bytes(254) + b"\1"))]}, UnsupportedError, "another exponent or size"
    ),
    "a modulus that is even": (
        {"keys": [ak_jwk(n=base64url(b"\x80" + bytes(255)))]}, UnsupportedError, "another exponent or size"
    ),
    "a key that does more": ({"keys": [ak_jwk(key_ops=["sign", "verify"])]}, UnsupportedError, "an rsa key that signs"),
    "user data that are no hex": ({"user_data": "0" * 127 + "X"}, MalformedError, "user data"),
}  # fmt: skip


@pytest.mark.parametrize("case", AZURE.values(), ids=AZURE)
def test_a_value_of_the_text_beyond_its_limit_is_refused(
    case: tuple[dict[str, Any], type[Exception], str],
) -> None:
    changes, error, message = case
    with pytest.raises(error, match=message):
        hcl(**changes)


@pytest.mark.parametrize("size", [256, 384, 512])
def test_a_text_at_each_of_its_limits_is_read(size: int) -> None:
    key = ak_jwk(n=base64url(b"\x80" + bytes(size - 2) + b"\1"))
    settings = {f"s{at}": at for at in range(63)} | {"digits": 10**18 - 1}
    report = hcl(keys=[key, *[{"kid": "x"}] * 7], settings=settings, user_data="aB" * 64, version=2)
    assert report.version == 2
    assert len(report.settings) == 64
    assert report.settings["digits"] == 10**18 - 1
    assert report.user_data == b"\xab" * 64


def test_an_hcl_report_has_at_most_8_kib_and_zeros_where_nothing_is() -> None:
    assert MAX_HCL == 8192
    bare = AzureForge(tail=b"").report()
    assert parse_hcl_report(bare.ljust(MAX_HCL, b"\0"))
    with pytest.raises(MalformedError, match="too large"):
        parse_hcl_report(bare.ljust(MAX_HCL + 1, b"\0"))
    for at in range(20, 32):
        with pytest.raises(MalformedError, match="header of the hcl report"):
            parse_hcl_report(bare[:at] + b"\1" + bare[at + 1 :])
    tdx = AzureForge(kind=4).report()
    for at in (32 + 1024, 32 + 1183):
        with pytest.raises(MalformedError, match="bytes where zeros are"):
            parse_hcl_report(tdx[:at] + b"\1" + tdx[at + 1 :])
    assert len(parse_hcl_report(tdx[: 32 + 1023] + b"\1" + tdx[32 + 1024 :]).hardware) == 1024


def test_console_and_vm_are_asked_for_by_name_only() -> None:
    def broken(settings: dict[str, Any], **rules: Any) -> set[str]:
        forge = AzureForge(settings={"tpm-enabled": True, "secure-boot": True, **settings})
        claims = verify_azure(forge.report(), forge.amd.endorsements(), SUMMER, amd=forge.amd.roots())
        found = {one.rule for one in appraise_azure(claims, AzureRules(any_paravisor=True, **rules))}
        return found - {"azure.hardware"}

    assert broken({}) == set()
    assert broken({}, console=False) == {"azure.console"}
    assert broken({"console-enabled": True}, console=False) == {"azure.console"}
    assert broken({"console-enabled": False}, console=False) == set()
    assert broken({}, vms=frozenset({VM.lower()})) == {"azure.vm"}
    assert broken({"vmUniqueId": VM}, vms=frozenset({VM.lower()})) == set()
    assert json.loads(AzureForge().body())["vm-configuration"]["vmUniqueId"] == VM
