# SPDX-License-Identifier: Apache-2.0
"""The strict parsers of TPM structures, and their encoders."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from soft_tpm import CLOCK, FIRMWARE, attest_bytes, ecc_key, nv_body, quote_body, rsa_key

from quotary_verifier.errors import EvidenceError, MalformedError, QuotaryError, UnsupportedError
from quotary_verifier.wire import tpm
from quotary_verifier.wire.tpm_names import name_algorithm
from quotary_verifier.wire.tpm_reader import Reader, sized, u16, u32

SELECTION = tpm.PcrSelection(tpm.ALG_SHA256, b"\xff\xff\x00")
QUOTE = attest_bytes(quote_body([SELECTION], bytes(32)), signer=b"\x00\x0b" + bytes(32))
NV = attest_bytes(nv_body(b"\x00\x0b" + bytes(32), bytes(8)), kind=tpm.ST_ATTEST_NV)
NV_PUBLIC = tpm.encode_nv_public(index=0x0180_0100, attributes=0x2206_0016, data_size=8)
ECC = ecc_key()
RSA = rsa_key()

u16s = st.integers(0, 0xFFFF)
u32s = st.integers(0, 0xFFFF_FFFF)
u64s = st.integers(0, 0xFFFF_FFFF_FFFF_FFFF)
selections = st.builds(tpm.PcrSelection, u16s, st.binary(max_size=32))
clocks = st.builds(tpm.ClockInfo, u64s, u32s, u32s, st.booleans())

PARSERS = {
    "quote": (tpm.parse_attest, QUOTE),
    "nv certification": (tpm.parse_attest, NV),
    "ecc public": (tpm.parse_public, ECC.public.raw),
    "rsa public": (tpm.parse_public, RSA.public.raw),
    "ecdsa signature": (tpm.parse_signature, ECC.sign(b"")),
    "rsa signature": (tpm.parse_signature, RSA.sign(b"")),
    "nv public": (tpm.parse_nv_public, NV_PUBLIC),
    "evidence": (tpm.unpack_evidence, tpm.pack_evidence(QUOTE, ECC.sign(QUOTE))),
}


@pytest.mark.parametrize("kind", PARSERS)
def test_a_structure_cut_at_any_offset_is_malformed(kind: str) -> None:
    parse, whole = PARSERS[kind]
    parse(whole)
    for end in range(len(whole)):
        with pytest.raises(MalformedError, match="truncated"):
            parse(whole[:end])


@pytest.mark.parametrize("kind", PARSERS)
@pytest.mark.parametrize("tail", [b"\x00", b"\xff" * 7])
def test_a_structure_with_trailing_bytes_is_malformed(kind: str, tail: bytes) -> None:
    parse, whole = PARSERS[kind]
    with pytest.raises(MalformedError, match="trailing"):
        parse(whole + tail)


@pytest.mark.parametrize("kind", PARSERS)
@given(data=st.data())
def test_changed_bytes_raise_nothing_but_the_verifiers_errors(kind: str, data: st.DataObject) -> None:
    parse, whole = PARSERS[kind]
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + data.draw(st.binary(min_size=1, max_size=4)) + whole[at + 1 :]
    with contextlib.suppress(QuotaryError):
        parse(changed)


@given(st.binary(max_size=256))
def test_any_bytes_raise_nothing_but_the_verifiers_errors(data: bytes) -> None:
    for parse, _ in PARSERS.values():
        for candidate in (data, QUOTE[:6] + data, NV[:6] + data):
            with contextlib.suppress(QuotaryError):
                parse(candidate)


@given(
    st.binary(max_size=66), st.binary(max_size=66), clocks, u64s, st.lists(selections, max_size=16),
    st.binary(max_size=64),
)  # fmt: skip
def test_a_quote_reads_back_as_it_was_written(
    signer: bytes,
    extra: bytes,
    clock: tpm.ClockInfo,
    firmware: int,
    chosen: list[tpm.PcrSelection],
    digest: bytes,
) -> None:
    data = attest_bytes(
        quote_body(chosen, digest), signer=signer, extra=extra, clock=clock, firmware=firmware
    )
    assert tpm.parse_attest(data) == tpm.Attest(
        tpm.TPM_GENERATED,
        tpm.ST_ATTEST_QUOTE,
        signer,
        extra,
        clock,
        firmware,
        tpm.QuoteInfo(tuple(chosen), digest),
        None,
        data,
    )


@given(st.binary(max_size=66), u16s, st.binary(max_size=2048))
def test_an_nv_certification_reads_back_as_it_was_written(name: bytes, offset: int, contents: bytes) -> None:
    data = attest_bytes(nv_body(name, contents, offset), kind=tpm.ST_ATTEST_NV)
    parsed = tpm.parse_attest(data)
    assert parsed.nv == tpm.NvInfo(name, offset, contents)
    assert (parsed.quote, parsed.clock, parsed.firmware_version) == (None, CLOCK, FIRMWARE)


@given(u16s, u32s, st.binary(max_size=64), u16s)
def test_an_nv_public_area_reads_back_as_it_was_written(
    name_alg: int, attributes: int, policy: bytes, size: int
) -> None:
    data = tpm.encode_nv_public(
        index=0x0181_7100, attributes=attributes, data_size=size, name_alg=name_alg, auth_policy=policy
    )
    parsed = tpm.parse_nv_public(data)
    assert parsed == tpm.NvPublic(0x0181_7100, name_alg, attributes, policy, size, data)


@given(st.binary(max_size=4096), st.binary(max_size=600))
def test_evidence_reads_back_as_it_was_packed(attest: bytes, signature: bytes) -> None:
    assert tpm.unpack_evidence(tpm.pack_evidence(attest, signature)) == (attest, signature)


@given(u16s, st.binary(min_size=1, max_size=66), st.binary(min_size=1, max_size=66))
def test_an_ecdsa_signature_reads_back_as_it_was_written(hash_alg: int, r: bytes, s: bytes) -> None:
    parsed = tpm.parse_signature(u16(tpm.ALG_ECDSA) + u16(hash_alg) + sized(r) + sized(s))
    numbers = int.from_bytes(r, "big"), int.from_bytes(s, "big")
    assert parsed == tpm.Signature(tpm.ALG_ECDSA, hash_alg, None, *numbers)


@given(st.sampled_from([tpm.ALG_RSASSA, tpm.ALG_RSAPSS]), u16s, st.binary(max_size=512))
def test_an_rsa_signature_reads_back_as_it_was_written(scheme: int, hash_alg: int, value: bytes) -> None:
    parsed = tpm.parse_signature(u16(scheme) + u16(hash_alg) + sized(value))
    assert parsed == tpm.Signature(scheme, hash_alg, value, None, None)


symmetrics = st.none() | st.builds(
    tpm.SymmetricDefinition, st.just(tpm.ALG_AES), st.sampled_from([128, 256]), st.just(tpm.ALG_CFB)
)
attribute_bits = st.integers(0, 0xFFFF_FFFF).map(lambda bits: bits & 0x000F_0FF6)
ecc_keys = st.one_of(
    [
        st.builds(
            tpm.EccPoint, st.just(curve), st.binary(min_size=n, max_size=n), st.binary(min_size=n, max_size=n)
        )
        for curve, n in ((tpm.CURVE_P256, 32), (tpm.CURVE_P384, 48))
    ]
)
rsa_keys = st.sampled_from([2048, 3072]).flatmap(
    lambda bits: st.binary(min_size=bits // 8 - 1, max_size=bits // 8 - 1).map(
        lambda rest: tpm.RsaKey(bits, 65537, b"\x80" + rest)
    )
)


@given(
    attribute_bits,
    st.binary(max_size=64),
    symmetrics,
    ecc_keys,
    st.sampled_from([(None, None), (tpm.ALG_ECDSA, tpm.ALG_SHA384)]),
    u16s,
)
def test_an_ecc_public_area_reads_back_as_it_was_written(
    attributes: int,
    policy: bytes,
    symmetric: tpm.SymmetricDefinition | None,
    key: tpm.EccPoint,
    scheme: tuple[int | None, int | None],
    name_alg: int,
) -> None:
    _public_reads_back(attributes, policy, symmetric, key, scheme, name_alg)


@given(
    attribute_bits,
    st.binary(max_size=64),
    symmetrics,
    rsa_keys,
    st.sampled_from([(None, None), (0x0015, None), (tpm.ALG_RSAPSS, tpm.ALG_SHA256)]),
    u16s,
)
def test_an_rsa_public_area_reads_back_as_it_was_written(
    attributes: int,
    policy: bytes,
    symmetric: tpm.SymmetricDefinition | None,
    key: tpm.RsaKey,
    scheme: tuple[int | None, int | None],
    name_alg: int,
) -> None:
    _public_reads_back(attributes, policy, symmetric, key, scheme, name_alg)


def _public_reads_back(
    attributes: int,
    policy: bytes,
    symmetric: tpm.SymmetricDefinition | None,
    key: tpm.EccPoint | tpm.RsaKey,
    scheme: tuple[int | None, int | None],
    name_alg: int,
) -> None:
    data = tpm.encode_public(
        attributes=attributes,
        key=key,
        scheme=scheme[0],
        scheme_hash=scheme[1],
        name_alg=name_alg,
        auth_policy=policy,
        symmetric=symmetric,
    )
    kind = tpm.ALG_ECC if isinstance(key, tpm.EccPoint) else tpm.ALG_RSA
    assert tpm.parse_public(data) == tpm.Public(
        kind, name_alg, attributes, policy, symmetric, *scheme, key, data
    )


@pytest.mark.parametrize("magic", [0, 0xFF544346, 0x474354FF])
def test_a_structure_without_the_tpms_magic_is_refused(magic: int) -> None:
    with pytest.raises(EvidenceError, match="magic"):
        tpm.parse_attest(attest_bytes(quote_body([SELECTION], bytes(32)), magic=magic))


@pytest.mark.parametrize("kind", [0x8015, 0x8016, 0x8017, 0x8019, 0x801A, 0x801C, 0x8000, 0xFFFF])
def test_a_structure_of_another_type_is_not_a_quote(kind: int) -> None:
    with pytest.raises(EvidenceError, match=f"not a quote.*0x{kind:04x}"):
        tpm.parse_attest(attest_bytes(quote_body([SELECTION], bytes(32)), kind=kind))


def test_a_quote_and_an_nv_certification_never_stand_for_each_other() -> None:
    with pytest.raises(EvidenceError, match="not a quote but nv certification"):
        tpm.parse_attest(NV).require_quote()
    with pytest.raises(EvidenceError, match="not an nv certification but quote"):
        tpm.parse_attest(QUOTE).require_nv()
    assert tpm.parse_attest(QUOTE).require_quote().selections == (SELECTION,)
    assert tpm.parse_attest(NV).require_nv().contents == bytes(8)


def test_safe_is_zero_or_one() -> None:
    at = 4 + 2 + 2 + 34 + 2 + 32 + 16
    assert QUOTE[at] == 1
    with pytest.raises(MalformedError, match="safe"):
        tpm.parse_attest(QUOTE[:at] + b"\x02" + QUOTE[at + 1 :])


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (u32(17) + bytes(400), "17 pcr selections"),
        (u32(0xFFFF_FFFF), "pcr selections"),
        (u32(1) + u16(tpm.ALG_SHA256) + b"\x21" + bytes(100), "bitmap of 33"),
        (u32(0) + sized(bytes(65)), "pcrDigest"),
    ],
)
def test_counts_and_sizes_of_a_quote_are_bounded(body: bytes, what: str) -> None:
    with pytest.raises(MalformedError, match=what):
        tpm.parse_attest(attest_bytes(body))


@pytest.mark.parametrize("field", ["signer", "extra"])
def test_names_and_data_of_an_attestation_are_bounded(field: str) -> None:
    with pytest.raises(MalformedError, match="67 bytes"):
        tpm.parse_attest(attest_bytes(quote_body([], b""), **{field: bytes(67)}))


def test_a_selection_names_its_pcrs_bit_by_bit() -> None:
    assert tpm.PcrSelection(tpm.ALG_SHA256, b"\x87\x20\x80").pcrs == (0, 1, 2, 7, 13, 23)
    assert tpm.PcrSelection(tpm.ALG_SHA256, b"").pcrs == ()


@pytest.mark.parametrize("bit", [0x1, 0x8, 0x1000, 0x8000, 0x0010_0000, 0x8000_0000])
def test_reserved_attribute_bits_are_refused(bit: int) -> None:
    raw = bytearray(ECC.public.raw)
    raw[4:8] = u32(ECC.public.attributes | bit)
    with pytest.raises(MalformedError, match="reserved"):
        tpm.parse_public(bytes(raw))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({0: b"\x00\x08"}, "key type 0x0008"),
        ({10: b"\x00\x03"}, "symmetric"),
        ({12: b"\x00\x1a"}, "scheme 0x001a"),
        ({16: b"\x00\x10"}, "curve 0x0010"),
    ],
)
def test_key_types_and_algorithms_not_known_are_unsupported_and_not_false(
    change: dict[int, bytes], what: str
) -> None:
    raw = bytearray(ECC.public.raw)
    for at, value in change.items():
        raw[at : at + 2] = value
    with pytest.raises(UnsupportedError, match=what):
        tpm.parse_public(bytes(raw))


@pytest.mark.parametrize(("at", "value"), [(16, u16(2049)), (18, u32(3))])
def test_odd_rsa_sizes_and_exponents_are_unsupported(at: int, value: bytes) -> None:
    raw = bytearray(RSA.public.raw)
    raw[at : at + len(value)] = value
    with pytest.raises(UnsupportedError, match="rsa"):
        tpm.parse_public(bytes(raw))


def test_an_rsa_modulus_has_the_bits_that_it_claims() -> None:
    raw = RSA.public.raw
    assert raw[22:24] == u16(256)
    with pytest.raises(MalformedError, match="2048 bits"):
        tpm.parse_public(raw[:24] + b"\x00" + raw[25:])


def test_the_default_and_the_explicit_rsa_exponent_are_one_key_with_two_names() -> None:
    raw = RSA.public.raw
    explicit = tpm.parse_public(raw[:18] + u32(65537) + raw[22:])
    assert explicit.key == RSA.public.key
    assert explicit.name != RSA.public.name


def test_a_coordinate_without_its_leading_zeros_is_filled_up() -> None:
    head = ECC.public.raw[:20]
    parsed = tpm.parse_public(head + sized(b"\x01\x02") + sized(b"\x03" * 32))
    assert parsed.key == tpm.EccPoint(tpm.CURVE_P256, bytes(30) + b"\x01\x02", b"\x03" * 32)
    with pytest.raises(MalformedError, match="not a public key"):
        parsed.public_key()


def test_an_empty_coordinate_is_malformed() -> None:
    with pytest.raises(MalformedError, match="coordinate x"):
        tpm.parse_public(ECC.public.raw[:20] + sized(b"") + sized(bytes(32)))


@pytest.mark.parametrize(
    "key", [ECC, ecc_key(tpm.CURVE_P384), RSA, rsa_key(3072)], ids=["p256", "p384", "rsa2048", "rsa3072"]
)
def test_a_public_area_becomes_the_same_key_elsewhere(key: object) -> None:
    assert isinstance(key, type(ECC))
    expected = key.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key.public.to_spki_der() == expected
    built = key.public.public_key()
    assert isinstance(built, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    assert built.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == expected
    assert key.public.public_key() is built


def test_names_are_hashes_of_public_areas_led_by_their_algorithm() -> None:
    assert ECC.public.name == b"\x00\x0b" + hashlib.sha256(ECC.public.raw).digest()
    assert tpm.parse_nv_public(NV_PUBLIC).name == b"\x00\x0b" + hashlib.sha256(NV_PUBLIC).digest()


def test_a_qualified_name_hashes_the_parents_and_the_own_name() -> None:
    name = b"\x00\x0c" + bytes(48)
    expected = hashlib.sha384(bytes.fromhex("4000000b") + name).digest()
    assert tpm.qualified_name(tpm.hierarchy_qn(tpm.RH_ENDORSEMENT), name) == b"\x00\x0c" + expected


@pytest.mark.parametrize(
    "name", [b"", b"\x00", b"\x00\x0b", b"\x00\x0b" + bytes(31), b"\x00\x99" + bytes(32)]
)
def test_what_is_not_as_long_as_its_algorithm_says_is_not_a_name(name: bytes) -> None:
    with pytest.raises(MalformedError, match="not a TPM name"):
        name_algorithm(name)


def test_a_name_by_sha_1_is_refused() -> None:
    with pytest.raises(EvidenceError, match="sha-1"):
        tpm.entity_name(tpm.ALG_SHA1, b"")
    with pytest.raises(UnsupportedError, match="0x0012"):
        tpm.entity_name(0x0012, b"")


def test_an_unknown_signature_scheme_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="0x001c"):
        tpm.parse_signature(u16(0x001C) + u16(tpm.ALG_SHA256) + sized(b"a") + sized(b"b"))


@pytest.mark.parametrize("empty", [0, 1])
def test_an_ecdsa_signature_has_two_numbers(empty: int) -> None:
    parts = [sized(b"" if part == empty else b"a") for part in range(2)]
    with pytest.raises(MalformedError, match="is empty"):
        tpm.parse_signature(u16(tpm.ALG_ECDSA) + u16(tpm.ALG_SHA256) + b"".join(parts))


def test_an_nv_public_area_is_of_an_nv_handle() -> None:
    with pytest.raises(MalformedError, match="not the handle of an nv index"):
        tpm.parse_nv_public(tpm.encode_nv_public(index=0x8100_0001, attributes=0x10, data_size=8))


def test_what_does_not_fit_its_length_field_is_refused() -> None:
    with pytest.raises(MalformedError, match="16-bit"):
        tpm.pack_evidence(bytes(0x10000), b"")


def test_a_reader_takes_nothing_beyond_its_bytes() -> None:
    reader = Reader(b"\x00\x01", "a thing")
    with pytest.raises(MalformedError, match="a thing is truncated at byte 2"):
        reader.take(3)
    assert reader.u8() == 0
