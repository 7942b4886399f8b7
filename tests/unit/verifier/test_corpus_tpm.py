# SPDX-License-Identifier: Apache-2.0
"""Every file of the corpus folders `tpm/quote` and `tpm/cert`, with the outcome that its index states."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from corpus import corpus_bytes, corpus_root, entries, entry, needs_corpus
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)
from small_pki import Ca, root

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.evidence.tpm_counter import check_counter_public, verify_counter
from quotary_verifier.evidence.tpm_keys import ak_qualified_name, check_ak
from quotary_verifier.evidence.tpm_quote import (
    OWN_SELECTION,
    check_extra_data,
    check_qualified_signer,
    check_selection,
    pcr_digest,
    verify_pcr_values,
    verify_quote,
    verify_signature,
)
from quotary_verifier.pki.anchors import read_ca_certificate
from quotary_verifier.pki.chain import (
    LeafProfile,
    TrustAnchors,
    load_bundle,
    verify_ak_chain,
    verify_ek_chain,
)
from quotary_verifier.wire import tpm
from quotary_verifier.wire.tpm_reader import sized, u16

# Names of real CAs are longer than X.520 allows, which the certificate library warns of.
pytestmark = [needs_corpus, pytest.mark.filterwarnings("ignore:Attribute's length must be")]

Entry = dict[str, Any]

AT = datetime(2024, 1, 1, tzinfo=UTC)
BANKS = {"sha1": tpm.ALG_SHA1, "sha256": tpm.ALG_SHA256, "sha384": tpm.ALG_SHA384}
ENDORSEMENT = bytes.fromhex("4000000b")
OLD_PATH = ("gce-ek-intermediate-2.crt", "gce-ek-root-1.cer")
NEW_PATH = ("gce-ca-intermediate-v3.crt", "gce-ca-root.crt")

ENTRIES = [one for folder in ("quote", "cert") for one in entries(f"tpm/{folder}/")]


def quote_file(name: str) -> bytes:
    return corpus_bytes(f"tpm/quote/{name}")


def public_of(name: str) -> tpm.Public:
    data = quote_file(name)
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    return tpm.parse_public(data[2:])


def certificate(name: str) -> x509.Certificate:
    data = corpus_bytes(f"tpm/cert/{name}")
    pem = data.startswith(b"-----")
    return x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)


def der(name: str) -> bytes:
    return certificate(name).public_bytes(Encoding.DER)


def base_of(file: str) -> str:
    return file.rpartition("/")[2].partition(".")[0].removeprefix("bad-")


def key_of(base: str) -> tpm.Public:
    """The key that signed a companion: named by the first parts of its name."""
    if base.startswith("keylime"):
        return public_of("keylime-rsa-ak.tpm2b.bin")
    return public_of(f"swtpm-{base.split('-')[1]}-ak.tpm2b.bin")


def selections(expected: Entry) -> tuple[tpm.PcrSelection, ...]:
    return tuple(
        tpm.PcrSelection(BANKS[bank], sum(1 << pcr for pcr in pcrs).to_bytes(3, "little"))
        for bank, pcrs in expected["selection"]
    )


def has_facts(attest: tpm.Attest, expected: Entry) -> None:
    assert attest.magic == int(expected["magic"], 16)
    assert attest.type == int(expected["type"], 16)
    assert attest.qualified_signer.hex() == expected["qualified_signer"]
    assert attest.extra_data.hex() == expected["extra_data"]
    counts = expected["clock"], expected["reset_count"], expected["restart_count"], bool(expected["safe"])
    assert attest.clock == tpm.ClockInfo(*counts)
    if "selection" in expected:
        assert attest.require_quote() == tpm.QuoteInfo(
            selections(expected), bytes.fromhex(expected["pcr_digest"])
        )


def values_of(selection: tpm.PcrSelection, data: bytes) -> dict[int, bytes]:
    size = tpm.HASH_SIZES[selection.hash_alg]
    assert len(data) == size * len(selection.pcrs)
    return {pcr: data[at * size : (at + 1) * size] for at, pcr in enumerate(selection.pcrs)}


def pcr_blob(data: bytes) -> bytes:
    """The values in a PCR file of tpm2-tools: sixteen selections of eight bytes, then lists of digests."""
    digests, at = b"", 132 + 4
    for _ in range(int.from_bytes(data[132:136], "little")):
        count = int.from_bytes(data[at : at + 4], "little")
        for number in range(count):
            place = at + 4 + 66 * number
            size = int.from_bytes(data[place : place + 2], "little")
            digests += data[place + 2 : place + 2 + size]
        at += 4 + 66 * 8
    return digests


def check_quote_attest(item: Entry) -> None:
    stem = item["file"].rpartition("/")[2].removesuffix(".attest.bin")
    attest_bytes, signature = quote_file(f"{stem}.attest.bin"), quote_file(f"{stem}.sig.bin")
    attest = tpm.parse_attest(attest_bytes)
    has_facts(attest, item["expected"])
    key = key_of(base_of(item["file"]))
    check_ak(key)
    verify_signature(key, attest_bytes, tpm.parse_signature(signature))
    (selection,) = selections(item["expected"])
    stored = quote_file(f"{stem}.pcrs.bin")
    values = values_of(selection, pcr_blob(stored) if "keylime" in stem else stored)
    kept = verify_pcr_values(attest.require_quote(), values, key.scheme_hash or 0)
    assert kept == {pcr: value for pcr, value in values.items() if pcr < 16}
    with pytest.raises(EvidenceError, match="the quoted"):
        check_selection(attest.require_quote(), OWN_SELECTION)
    if "keylime" in stem:
        return
    nonce = bytes.fromhex(item["expected"]["expected_nonce"])
    check_qualified_signer(attest, ak_qualified_name(ENDORSEMENT, key))
    state = verify_quote(
        key,
        tpm.pack_evidence(attest_bytes, signature),
        qualified_signer=attest.qualified_signer,
        extra_data=nonce,
        values=values,
        required=selection,
    )
    assert state.pcrs == kept
    assert [values[pcr].hex() for pcr in selection.pcrs] == item["expected"]["pcr_values_in_selection_order"]
    if item["expect"] == "reject":
        wanted = tpm.PcrSelection(tpm.ALG_SHA256, b"\x87\x20\x00")
        with pytest.raises(EvidenceError, match="quoted pcrs are"):
            check_selection(attest.require_quote(), wanted)


def check_signature(item: Entry) -> None:
    stem = item["file"].rpartition("/")[2].removesuffix(".sig.bin")
    signature = tpm.parse_signature(corpus_bytes(item["file"]))
    if item["expect"] == "reject":
        (attest_file, key_file) = item["needs"]
        attest_bytes = corpus_bytes(attest_file)
        with pytest.raises(EvidenceError, match="does not verify"):
            verify_signature(key_of(stem.removeprefix("bad-")), attest_bytes, signature)
        other = public_of(key_file.rpartition("/")[2])
        with pytest.raises(EvidenceError, match="restricted not set"):
            check_ak(other)
        return
    verify_signature(key_of(stem.removeprefix("bad-")), quote_file(f"{stem}.attest.bin"), signature)


def check_other_attest(item: Entry) -> None:
    """A certification of a key or a time: validly signed, and refused as a quote by its type."""
    stem = item["file"].rpartition("/")[2].removesuffix(".attest.bin")
    attest_bytes = corpus_bytes(item["file"])
    signature = tpm.parse_signature(quote_file(f"{stem}.sig.bin"))
    verify_signature(key_of(stem), attest_bytes, signature)
    with pytest.raises(EvidenceError, match=f"not a quote but .*{item['expected']['type']}"):
        tpm.parse_attest(attest_bytes)


def check_nv_certify(item: Entry) -> None:
    expected = item["expected"]
    attest_bytes = corpus_bytes(item["file"])
    attest = tpm.parse_attest(attest_bytes)
    has_facts(attest, expected)
    nv_public = tpm.parse_nv_public(
        tpm.encode_nv_public(
            index=int(expected["nv_index"], 16),
            attributes=int(expected["nv_attributes"].split()[0], 16),
            data_size=8,
        )
    )
    assert nv_public.name.hex() == expected["nv_name"]
    key = key_of(base_of(item["file"]))
    nonce = bytes.fromhex(expected["expected_nonce"])
    reading = verify_counter(
        key,
        tpm.pack_evidence(attest_bytes, ecdsa_signature("swtpm-ecc256-nvcertify-counter.sig-der.bin")),
        qualified_signer=ak_qualified_name(ENDORSEMENT, key),
        extra_data=nonce,
        nv_public=nv_public,
    )
    check_counter_public(nv_public)
    assert reading.value == int(expected["nv_contents"], 16)
    with pytest.raises(EvidenceError, match="not a quote"):
        attest.require_quote()


def ecdsa_signature(name: str) -> bytes:
    """TPMT_SIGNATURE of a DER signature with SHA-256."""
    r, s = decode_dss_signature(quote_file(name))
    return (
        u16(tpm.ALG_ECDSA) + u16(tpm.ALG_SHA256) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))
    )


def check_signature_der(item: Entry) -> None:
    stem = item["file"].rpartition("/")[2].removesuffix(".sig-der.bin")
    signature = tpm.parse_signature(ecdsa_signature(item["file"].rpartition("/")[2]))
    verify_signature(key_of(stem), quote_file(f"{stem}.attest.bin"), signature)


def check_public(item: Entry) -> None:
    public = public_of(item["file"].rpartition("/")[2])
    if "name" in item["expected"]:
        assert public.name.hex() == item["expected"]["name"]
    if item["expect"] == "reject":
        with pytest.raises(EvidenceError, match="restricted not set"):
            check_ak(public)
        return
    assert public.attributes == 0x50072
    assert not check_ak(public).own


def check_public_pem(item: Entry) -> None:
    key = load_pem_public_key(corpus_bytes(item["file"]))
    public = public_of(item["file"].rpartition("/")[2].replace(".pem", ".tpm2b.bin"))
    assert public.to_spki_der() == key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check_name(item: Entry) -> None:
    public = public_of(item["file"].rpartition("/")[2].replace(".name.", ".tpm2b."))
    assert public.name == corpus_bytes(item["file"])


def check_pcr_values(item: Entry) -> None:
    stem = item["file"].rpartition("/")[2].removesuffix(".pcrs.bin")
    quote = tpm.parse_attest(quote_file(f"{stem}.attest.bin")).require_quote()
    data = corpus_bytes(item["file"])
    values = values_of(quote.selections[0], pcr_blob(data) if item["kind"] == "pcr-blob" else data)
    verify_pcr_values(quote, values, key_of(base_of(item["file"])).scheme_hash or 0)


def check_quote_json(item: Entry) -> None:
    found = json.loads(corpus_bytes(item["file"]))
    spki = load_der_public_key(base64.b64decode(found["ak_public"]))
    assert isinstance(spki, rsa.RSAPublicKey)
    modulus = spki.public_numbers().n.to_bytes(spki.key_size // 8, "big")
    public = tpm.parse_public(
        tpm.encode_public(
            attributes=0x50072,
            key=tpm.RsaKey(spki.key_size, 65537, modulus),
            scheme=tpm.ALG_RSASSA,
            scheme_hash=tpm.ALG_SHA256,
        )
    )
    message = base64.b64decode(found["tpm_quote"]["message"])
    attest = tpm.parse_attest(message)
    has_facts(attest, item["expected"])
    signature = tpm.parse_signature(base64.b64decode(found["tpm_quote"]["signature"]))
    verify_signature(public, message, signature)
    values = {number: bytes.fromhex(value) for number, value in enumerate(found["tpm_quote"]["pcrs"])}
    kept = verify_pcr_values(attest.require_quote(), values, tpm.ALG_SHA256)
    assert set(kept) == set(range(16))
    with pytest.raises(EvidenceError, match="extraData"):
        check_extra_data(attest, attest.extra_data[:32])


def check_quote_set(item: Entry) -> None:
    found = json.loads(corpus_bytes(item["file"]))
    public = tpm.parse_public(bytes.fromhex(found["ak_pub_tpmt_hex"]))
    assert not check_ak(public).own
    for quote, expected in zip(found["quotes"], item["expected"]["quotes"], strict=True):
        attest_bytes = bytes.fromhex(quote["tpms_attest"])
        attest = tpm.parse_attest(attest_bytes)
        has_facts(attest, expected)
        check_qualified_signer(attest, ak_qualified_name(ENDORSEMENT, public))
        verify_signature(public, attest_bytes, tpm.parse_signature(bytes.fromhex(quote["tpmt_signature"])))
        values = {int(number): bytes.fromhex(value) for number, value in quote["pcrs"].items()}
        if expected["selection"][0][0] == "sha1":
            with pytest.raises(EvidenceError, match="sha-1 is refused"):
                verify_pcr_values(attest.require_quote(), values, tpm.ALG_SHA256)
            continue
        kept = verify_pcr_values(attest.require_quote(), values, tpm.ALG_SHA256)
        assert kept == {pcr: value for pcr, value in values.items() if pcr < 16}
    leaf = base64.b64decode(found["other_fields"]["6"])
    anchors = TrustAnchors.from_der([der(OLD_PATH[1])])
    endorsed = verify_ak_chain([leaf, der(OLD_PATH[0])], anchors, AT, profile=LeafProfile.AK_CLOUD)
    assert endorsed.spki_der == public.to_spki_der()


def check_protobuf(item: Entry) -> None:
    """The protobuf holds the bytes that its decoded form was checked with."""
    data = corpus_bytes(item["file"])
    found = json.loads(corpus_bytes(item["needs"][0]))
    parts = [bytes.fromhex(found["ak_pub_tpmt_hex"]), base64.b64decode(found["other_fields"]["6"])]
    for quote in found["quotes"]:
        parts += [bytes.fromhex(quote["tpms_attest"]), bytes.fromhex(quote["tpmt_signature"])]
    assert all(part in data for part in parts)
    assert len(found["quotes"]) == item["expected"]["quotes"]


def check_keylime_string(item: Entry) -> None:
    quote, signature, _ = corpus_bytes(item["file"]).decode("ascii").strip().removeprefix("r").split(":")
    attest = tpm.parse_attest(base64.b64decode(quote))
    assert attest.extra_data.decode("ascii") == item["expected"]["nonce_ascii"]
    parsed = tpm.parse_signature(base64.b64decode(signature))
    assert parsed.hash_alg == tpm.ALG_SHA1
    key = public_of("keylime-rsa-ak.tpm2b.bin")
    with pytest.raises(EvidenceError, match="scheme and hash"):
        verify_signature(key, attest.raw, parsed)
    with pytest.raises(EvidenceError, match="bank is sha1"):
        check_selection(attest.require_quote(), OWN_SELECTION)
    with pytest.raises(EvidenceError, match="sha-1 is refused"):
        pcr_digest(attest.require_quote().selections[0], {16: bytes(20)}, tpm.ALG_SHA256)


def check_ca(item: Entry) -> None:
    name = item["file"].rpartition("/")[2]
    if name.startswith("platform-attr"):
        with pytest.raises(MalformedError, match="not a ca certificate"):
            read_ca_certificate(der(name))
        return
    read = read_ca_certificate(der(name))
    assert read.subject == item["expected"]["subject"]
    assert read.root == (item["expected"]["subject"] == item["expected"]["issuer"])
    dates = read.certificate.not_valid_before_utc, read.certificate.not_valid_after_utc
    assert [f"{date:%Y-%m-%dT%H:%M:%SZ}" for date in dates] == [
        item["expected"]["not_before"],
        item["expected"]["not_after"],
    ]


def check_bundle(item: Entry) -> None:
    bundle = load_bundle(corpus_bytes(item["file"]))
    assert (len(bundle.certificates), bundle.unreadable) == (item["expected"]["certificates"], ())


def check_tpm_certificate(item: Entry) -> None:
    """The path where the corpus has it; else the leaf's own words, issued again by a CA of the test."""
    leaf = certificate(item["file"].rpartition("/")[2])
    if "pca" in item["file"]:
        chain = [leaf.public_bytes(Encoding.DER), der(NEW_PATH[0])]
        anchors = TrustAnchors.from_der([der(NEW_PATH[1])])
    else:
        leaf_der = leaf.public_bytes(Encoding.DER)
        with pytest.raises(EvidenceError, match="does not hold"):
            verify_ak_chain(
                [leaf_der, der(OLD_PATH[0])],
                TrustAnchors.from_der([der(OLD_PATH[1])]),
                AT,
                profile=LeafProfile.AK_CLOUD,
            )
        ca = root("Stand-in")
        chain, anchors = [issued_again(leaf, ca)], TrustAnchors.from_der([ca.der])
    ak, ek = LeafProfile.AK_CLOUD, LeafProfile.EK_CLOUD
    if item["expected"]["role"] == "AK":
        assert verify_ak_chain(chain, anchors, AT, profile=ak).not_after == leaf.not_valid_after_utc
        with pytest.raises(EvidenceError, match="endorsement key"):
            verify_ek_chain(chain[0], chain[1:], anchors, AT, profile=ek)
        with pytest.raises(EvidenceError, match="does not hold"):
            verify_ak_chain(chain, anchors, AT)
    else:
        assert (
            verify_ek_chain(chain[0], chain[1:], anchors, AT, profile=ek).not_after
            == leaf.not_valid_after_utc
        )
        with pytest.raises(EvidenceError, match="attestation key"):
            verify_ak_chain(chain, anchors, AT, profile=ak)


def issued_again(leaf: x509.Certificate, ca: Ca) -> bytes:
    """The same subject, key, dates and extensions under another CA."""
    builder = x509.CertificateBuilder().subject_name(leaf.subject).issuer_name(ca.certificate.subject)
    builder = builder.serial_number(leaf.serial_number).public_key(leaf.public_key())
    builder = builder.not_valid_before(leaf.not_valid_before_utc).not_valid_after(leaf.not_valid_after_utc)
    for extension in leaf.extensions:
        if not isinstance(extension.value, x509.AuthorityKeyIdentifier):
            builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(Encoding.DER)


def check_attribute_certificate(item: Entry) -> None:
    """An attribute certificate has no key: it is refused wherever a certificate of a key is expected."""
    data = corpus_bytes(item["file"])
    anchors = TrustAnchors.from_der([der(NEW_PATH[1])])
    with pytest.raises(MalformedError):
        verify_ak_chain([data], anchors, AT)
    with pytest.raises(MalformedError):
        read_ca_certificate(data)


def check_attribute_parse(item: Entry) -> None:
    stated = json.loads(corpus_bytes(item["file"]))
    name = item["file"].replace(".expected.json", ".cer")
    assert entry(name)["needs"] == [item["file"]]
    assert base64.b64decode(stated["Raw"]) in corpus_bytes(name)


def check_secure_boot_certificate(item: Entry) -> None:
    """Neither vouches for a TPM: one may not sign certificates, the other is no root."""
    name = item["file"].rpartition("/")[2]
    leaf = certificate(name)
    assert leaf.subject.rfc4514_string() == item["expected"]["subject"]
    with pytest.raises(MalformedError, match=r"not a ca|no root"):
        TrustAnchors.from_der([leaf.public_bytes(Encoding.DER)])


CHECKS: dict[str, Callable[[Entry], None]] = {
    "attestation-protobuf": check_protobuf,
    "ca-bundle": check_bundle,
    "ca-certificate": check_ca,
    "certify-attest": check_other_attest,
    "expected-parse": check_attribute_parse,
    "nv-certify-attest": check_nv_certify,
    "pcr-blob": check_pcr_values,
    "pcr-values": check_pcr_values,
    "platform-attribute-certificate": check_attribute_certificate,
    "public-key": check_public_pem,
    "quote-attest": check_quote_attest,
    "quote-json": check_quote_json,
    "quote-keylime-string": check_keylime_string,
    "quote-set": check_quote_set,
    "quote-signature": check_signature,
    "secure-boot-certificate": check_secure_boot_certificate,
    "signature-der": check_signature_der,
    "time-attest": check_other_attest,
    "tpm-certificate": check_tpm_certificate,
    "tpm-name": check_name,
    "tpm-public": check_public,
}


@pytest.mark.parametrize(
    "item",
    ENTRIES,
    ids=lambda one: one["file"].removeprefix("tpm/"),
)
def test_a_file_of_the_corpus_has_its_stated_outcome(item: Entry) -> None:
    CHECKS[item["kind"]](item)


def test_every_file_of_these_folders_is_in_the_index() -> None:
    top = corpus_root()
    assert top is not None
    present = {
        file.relative_to(top).as_posix()
        for folder in ("quote", "cert")
        for file in (top / "tpm" / folder).iterdir()
    }
    assert present == {one["file"] for one in ENTRIES}
