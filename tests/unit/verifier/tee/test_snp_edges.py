# SPDX-License-Identifier: Apache-2.0
"""SEV-SNP: where each field of a report stands, how far each range reaches, and each form of a certificate's values."""

from __future__ import annotations

import pytest
from amd_pki import BOUND, NOW, OID, AmdForge, ca_extensions, certificate, integer, rsa_key
from cryptography import x509
from cryptography.x509.oid import NameOID

from quotary_verifier.errors import EvidenceError, MalformedError, QuotaryError, UnsupportedError
from quotary_verifier.evidence.tee.amd_certs import AmdRoots, Generation, SigningKey, read_amd_certificate
from quotary_verifier.evidence.tee.snp import SnpClaims, SnpEndorsements, verify_snp
from quotary_verifier.evidence.tee.snp_report import PlatformInfo, Policy, SnpReport, Tcb, parse_snp_report
from quotary_verifier.evidence.tee.snp_rules import SnpRules, appraise_snp
from quotary_verifier.pki.der import encode
from quotary_verifier.pki.revocation import Revocation

RESERVED = [
    *range(0x4C, 0x50), *range(0x18B, 0x1A0), 0x1EB, 0x1EF, *range(0x208, 0x2A0),
    *range(0x2A0 + 48, 0x2E8), *range(0x2E8 + 48, 0x330), *range(0x330, 0x4A0),
]  # fmt: skip
OLDER = {
    2: [*range(0x188, 0x18B), *range(0x1F8, 0x208)],
    3: [*range(0x1F8, 0x208)],
    4: [*range(0x1F8, 0x208)],
    5: [],
}
HELD = [*range(4), *range(0x08, 0x10), *range(0x30, 0x38), *range(0x48, 0x4C)]
"""Bytes of version, policy, vmpl, signature algorithm and flags, which have forms of their own."""


def parsed(changes: dict[int, bytes], version: int = 5) -> SnpReport:
    data = bytearray(AmdForge(version=version).report())
    for at, value in changes.items():
        data[at : at + len(value)] = value
    return parse_snp_report(bytes(data))


def refusal(changes: dict[int, bytes], version: int = 5) -> type[QuotaryError] | None:
    try:
        parsed(changes, version)
    except QuotaryError as error:
        return type(error)
    return None


def test_each_field_is_read_from_its_place() -> None:
    pattern = bytes((at * 7 + at // 256 + 13) % 256 for at in range(0x4A0))
    free = [at for at in range(0x330) if at not in RESERVED and at not in HELD]
    report = parsed({at: pattern[at : at + 1] for at in free} | {0x08: b"\x1f\x37\xff\x03", 0x48: b"\x05"})

    def number(start: int, size: int) -> int:
        return int.from_bytes(pattern[start : start + size], "little")

    assert report.guest_svn == number(0x04, 4)
    assert report.abi == (0x37, 0x1F)
    assert report.policy == Policy(0x3FD0000)
    assert (report.author_key, report.chip_key_masked, report.signing_key) == (True, False, SigningKey.VLEK)
    assert report.platform_info == PlatformInfo(number(0x40, 8))
    places = {
        "family_id": (0x10, 16), "image_id": (0x20, 16), "report_data": (0x50, 64), "measurement": (0x90, 48),
        "host_data": (0xC0, 32), "id_key_digest": (0xE0, 48), "author_key_digest": (0x110, 48),
        "report_id": (0x140, 32), "report_id_ma": (0x160, 32), "reported_tcb": (0x180, 8), "chip_id": (0x1A0, 64),
        "current_tcb": (0x38, 8), "committed_tcb": (0x1E0, 8), "launch_tcb": (0x1F0, 8),
    }  # fmt: skip
    for name, (start, size) in places.items():
        assert getattr(report, name) == pattern[start : start + size], name
    assert report.cpuid == tuple(pattern[0x188:0x18B])
    assert report.current_version == (pattern[0x1EA], pattern[0x1E9], pattern[0x1E8])
    assert report.committed_version == (pattern[0x1EE], pattern[0x1ED], pattern[0x1EC])
    assert report.mitigations == (number(0x1F8, 8), number(0x200, 8))
    assert (report.r, report.s) == (number(0x2A0, 48), number(0x2E8, 48))
    assert report.signed[0x90:0xC0] == pattern[0x90:0xC0]
    assert len(report.signed) == 0x2A0


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_exactly_the_reserved_bytes_have_to_be_zero(version: int) -> None:
    refused = {
        at for at in range(0x4A0) if at not in HELD and refusal({at: b"\1"}, version) is MalformedError
    }
    assert refused == {*RESERVED, *OLDER[version]}


@pytest.mark.parametrize("at", [1, 2, 3, 0x35, 0x36, 0x37])
def test_every_byte_of_version_and_algorithm_counts(at: int) -> None:
    assert refusal({at: b"\1"}) is UnsupportedError


def test_every_byte_of_policy_flags_and_vmpl_counts() -> None:
    assert refusal({0x0B: b"\x03"}) is None
    for at, value in ((0x0B, b"\x04"), *((place, b"\1") for place in range(0x0C, 0x10))):
        assert refusal({at: value}) is UnsupportedError
    assert refusal({0x30: b"\3"}) is None
    for at, value in ((0x30, b"\4"), (0x31, b"\1"), (0x33, b"\1")):
        assert refusal({at: value}) is MalformedError
    assert refusal({0x30: b"\xff" * 4}) is EvidenceError
    for at in (0x49, 0x4A, 0x4B):
        assert refusal({at: b"\1"}) is MalformedError
    assert [refusal({0x48: bytes((key << 2,))}) for key in range(8)] == [
        None, None, *[MalformedError] * 5, EvidenceError
    ]  # fmt: skip
    flags = [parsed({0x48: bytes((value,))}) for value in range(4)]
    assert [(one.author_key, one.chip_key_masked) for one in flags] == [
        (False, False), (True, False), (False, True), (True, True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "first", "last", "generation"),
    [
        (0x19, 0x00, 0x0F, Generation.MILAN),
        (0x19, 0x10, 0x1F, Generation.GENOA),
        (0x19, 0x20, 0x9F, None),
        (0x19, 0xA0, 0xAF, Generation.GENOA),
        (0x19, 0xB0, 0xFF, None),
        (0x1A, 0x00, 0x11, Generation.TURIN),
        (0x1A, 0x12, 0xFF, None),
        (0x18, 0x00, 0xFF, None),
    ],
)
def test_a_model_belongs_to_its_generation_or_is_not_known(
    family: int, first: int, last: int, generation: Generation | None
) -> None:
    for model in (first, last):
        report = parsed({0x188: bytes((family, model))})
        if generation is None:
            with pytest.raises(UnsupportedError, match="is not known"):
                report.generation()
        else:
            assert report.generation() is generation


def test_a_component_that_is_missing_is_lower_than_any() -> None:
    assert Tcb(1, 1, 1, 1).below(Tcb(1, 1, 1, 1, fmc=0)) == ("fmc",)
    assert Tcb(1, 1, 1, 1, fmc=0).below(Tcb(1, 1, 1, 1)) == ()


def verified(forge: AmdForge, report: bytes | None = None, **extensions: bytes) -> SnpClaims:
    given = forge.extensions() | {OID + name.replace("_", "."): value for name, value in extensions.items()}
    endorsements = SnpEndorsements(forge.leaf(extensions=given), forge.issuer())
    return verify_snp(report or forge.report(), endorsements, NOW, report_data=BOUND, roots=forge.roots())


@pytest.mark.parametrize("number", ["3_4", "3_5", "3_6", "3_7"])
def test_a_reserved_component_may_be_there_and_has_to_be_zero(number: str) -> None:
    assert verified(AmdForge(), **{number: integer(0)})
    with pytest.raises(EvidenceError, match="reserved tcb component"):
        verified(AmdForge(), **{number: integer(1)})


@pytest.mark.parametrize("value", [0, 127, 128, 255])
def test_a_component_has_one_byte_and_one_encoding(value: int) -> None:
    tcb = {"bootloader": value, "tee": 1, "snp": 27, "microcode": 200}
    assert verified(AmdForge(tcb=tcb)).reported.bootloader == value
    longer = encode(0x02, b"\0" + integer(value)[2:])
    for other in (
        longer,
        integer(value) + b"\0",
        b"\x02\x01\0" + bytes((value,)),
        b"\x03" + integer(value)[1:],
    ):
        with pytest.raises(MalformedError, match="integer of one byte"):
            verified(AmdForge(tcb=tcb), **{"3_1": other})


@pytest.mark.parametrize("tag", [0x0C, 0x16])
def test_a_provider_is_named_by_a_text_of_at_most_127_bytes(tag: int) -> None:
    forge = AmdForge(signing_key=SigningKey.VLEK)
    for text in (b"", b"a" * 127):
        assert verified(forge, **{"5": bytes((tag, len(text))) + text}).csp == text.decode()
    longer = bytes((tag, 128)) + b"a" * 128
    for wrong in (
        longer,
        b"",
        bytes((tag,)),
        bytes((tag, 1)) + b"ab",
        bytes((tag, 2)) + b"a",
        bytes((tag + 1, 1)) + b"a",
    ):
        with pytest.raises(MalformedError, match="is not a text"):
            verified(forge, **{"5": wrong})


def test_a_chips_id_that_looks_like_an_encoding_is_read_as_it_stands() -> None:
    chip = b"\x04\x40" + bytes(range(62))
    for value in (chip, encode(0x04, chip)):
        assert verified(AmdForge(chip=chip), **{"4": value}).device == chip
    for value in (encode(0x05, chip), b"\x04\x3f" + chip, chip + b"\0", encode(0x04, chip) + b"\0"):
        with pytest.raises(MalformedError, match="hardware id is not 64 bytes"):
            verified(AmdForge(chip=chip), **{"4": value})


def test_a_root_has_to_be_a_ca_that_may_sign_certificates() -> None:
    name, key = AmdForge().ark_name, rsa_key("ark")
    for extensions in (ca_extensions(ca=False), ca_extensions(signs=False), []):
        der = certificate(name, name, key, key, extensions, serial=1)
        with pytest.raises(MalformedError, match=r"is no root: .* may not sign certificates"):
            AmdRoots.from_der({Generation.GENOA: der})
    with pytest.raises(MalformedError, match="cannot be read"):
        read_amd_certificate(certificate(name, name, key, key, ca_extensions()[:1], serial=1))


def test_a_common_name_that_is_not_ascii_is_malformed() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SEV-VCÉK")])
    key = rsa_key("ark")
    with pytest.raises(MalformedError, match="not ascii"):
        read_amd_certificate(certificate(name, name, key, key, []))


def test_eight_crls_are_not_too_many() -> None:
    forge = AmdForge()
    endorsements = forge.endorsements(*[forge.crl()] * 8)
    claims = verify_snp(forge.report(), endorsements, NOW, report_data=BOUND, roots=forge.roots())
    assert claims.signer.revocation is Revocation.GOOD


def broken(claims: SnpClaims, **rules: object) -> dict[str, str]:
    found = appraise_snp(claims, SnpRules(frozenset(Generation), **rules))  # type: ignore[arg-type]
    return {finding.rule.removeprefix("sev-snp."): finding.message for finding in found}


def test_a_report_by_a_vlek_may_leave_the_chip_out_and_names_its_provider() -> None:
    forge = AmdForge(signing_key=SigningKey.VLEK)
    claims = verified(forge, forge.report({0x1A0: bytes(64)}))
    assert claims.device is None
    assert broken(claims) == {}
    assert broken(claims, providers=frozenset({"cloud.example"})) == {}
    assert set(broken(claims, providers=frozenset({"other.example"}))) == {"provider"}
    assert "names no chip" in broken(claims, devices=frozenset({forge.chip}))["device"]
    named = verified(forge)
    assert forge.chip.hex() in broken(named, devices=frozenset({bytes(64)}))["device"]
    assert broken(verified(AmdForge()), providers=frozenset({"other.example"})) == {}
