# SPDX-License-Identifier: Apache-2.0
"""Every sample of every kind with any byte of it altered, cut off, added or in another's place: nothing of it verifies.

A sample is a piece of evidence and all that vouches for it. Where an alteration may be let through, because nobody
signed those bytes and no claim comes from them, it stands in `UNSIGNED` with its reason, and the claims have to be the
same. The default run takes some of the places of the larger parts, the one marked slow takes all of them.
"""

from __future__ import annotations

import functools
import json
from base64 import b64decode, urlsafe_b64decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

import amd_pki
import cbor2
import cca_tokens
import device_forge
import intel_sgx
import pytest
from amd_pki import AmdForge
from azure_forge import AzureForge
from corpus import corpus_bytes, corpus_root, entries, entry
from cryptography.hazmat.primitives.asymmetric import ec
from device_forge import NitroForge
from intel_sgx import TdxForge
from nvidia_forge import NvidiaForge

from quotary_verifier.errors import QuotaryError
from quotary_verifier.evidence.tee.amd_certs import Generation, SigningKey
from quotary_verifier.evidence.tee.azure import AzureTdxEndorsements, verify_azure
from quotary_verifier.evidence.tee.cca import PlatformKey, verify_cca
from quotary_verifier.evidence.tee.device_pki import PinnedRoot
from quotary_verifier.evidence.tee.nitro import nitro_root, verify_nitro, verify_unbound_nitro
from quotary_verifier.evidence.tee.nvidia import verify_nvidia
from quotary_verifier.evidence.tee.snp import SnpEndorsements, verify_snp
from quotary_verifier.evidence.tee.tdx import TdxClaims, verify_tdx
from quotary_verifier.evidence.tee.tdx_collateral import TdxCollateral
from quotary_verifier.evidence.tee.tdx_quote import parse_tdx_quote

Parts = Mapping[str, bytes]


@dataclass(frozen=True)
class Sample:
    """Evidence and what vouches for it, by name, and what verifies exactly these. `most`: places of a default run."""

    parts: Parts
    verify: Callable[[Parts], object]
    most: int = 120


def snp(report: bytes, leaf: bytes, issuer: bytes, crl: bytes | None = None, **options: Any) -> Sample:
    at, bound = options.pop("at", amd_pki.NOW), options.pop("bound", amd_pki.BOUND)

    def verify(parts: Parts) -> object:
        crls = (parts["crl"],) if "crl" in parts else ()
        endorsements = SnpEndorsements(parts["leaf"], parts["issuer"], crls)
        return verify_snp(parts["evidence"], endorsements, at, report_data=bound, **options)

    parts = {"evidence": report, "leaf": leaf, "issuer": issuer}
    return Sample(parts if crl is None else {**parts, "crl": crl}, verify)


def minted_snp(forge: AmdForge) -> Sample:
    return snp(forge.report(), forge.leaf(), forge.issuer(), forge.crl(), roots=forge.roots())


def pem(data: bytes) -> bytes:
    return b64decode(b"".join(data.split(b"-----")[2].split()))


def corpus_snp(file: str) -> Sample:
    item = entry(file)
    vcek, ask, _ = map(corpus_bytes, item["needs"])
    expected = item["expected"]
    at = datetime.fromisoformat(expected["valid_at"])
    leaf = pem(vcek) if vcek.startswith(b"-----") else vcek
    return snp(corpus_bytes(file), leaf, ask, at=at, bound=bytes.fromhex(expected["report_data"]))


def tdx(quote: bytes, collateral: TdxCollateral | None, at: datetime, bound: bytes, **options: Any) -> Sample:
    names = list(TdxCollateral.__dataclass_fields__) if collateral else []

    def verify(parts: Parts) -> object:
        given = TdxCollateral(**{name: parts[name] for name in names}) if names else None
        return verify_tdx(parts["evidence"], given, at, report_data=bound, **options)

    return Sample({"evidence": quote, **{name: getattr(collateral, name) for name in names}}, verify, most=50)


def corpus_tdx(file: str, collateral: str = "") -> Sample:
    given = TdxCollateral.from_json(corpus_bytes(collateral)) if collateral else None
    bound = bytes.fromhex(entry(file)["expected"]["report_data"])
    return tdx(parse_tdx_quote(corpus_bytes(file)).raw, given, datetime(2025, 6, 20, tzinfo=UTC), bound)


def minted_tdx(**changes: Any) -> Sample:
    quote = TdxForge(**changes).quote()
    root = intel_sgx.forged_root()
    return tdx(quote, intel_sgx.collateral(), intel_sgx.NOW, intel_sgx.BOUND, root=root)


def corpus_nitro(file: str) -> Sample:
    data = corpus_bytes(file)
    if file.endswith(".der"):
        names = data[data.index(b"\x55\x1d\x11") :]
        start = names.index(b"8444")
        data = bytes.fromhex(names[start : names.index(b".", start)].decode())
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Sample(
        {"evidence": data}, lambda parts: verify_unbound_nitro(parts["evidence"], at, root=nitro_root())
    )


def minted_nitro(**payload: Any) -> Sample:
    forge = NitroForge().having(**payload)
    root = PinnedRoot(forge.root.der)
    bound = {"user_data": device_forge.DIGEST, "nonce": device_forge.GENESIS}
    return Sample(
        {"evidence": forge.document()},
        lambda parts: verify_nitro(parts["evidence"], device_forge.NOW, root=root, **bound),
    )


def minted_nvidia() -> Sample:
    forge = NvidiaForge()
    root, path = PinnedRoot(forge.root.der), forge.certificates()

    def verify(parts: Parts) -> object:
        given = [parts[f"certificate {number}"] for number in range(len(path))]
        return verify_nvidia(parts["evidence"], given, device_forge.NOW, nonce=device_forge.DIGEST, root=root)

    named = {f"certificate {number}": der for number, der in enumerate(path)}
    return Sample({"evidence": forge.report(), **named}, verify)


def corpus_cca() -> Sample:
    jwk = json.loads(corpus_bytes("tee/cca/cpak-public.jwk.json"))
    x, y = (int.from_bytes(urlsafe_b64decode(jwk[name] + "=="), "big") for name in "xy")
    key = PlatformKey(cca_tokens.spki(ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()))
    token = corpus_bytes("tee/cca/cca-token-emulator.cbor")
    challenge = cbor2.loads(cbor2.loads(cbor2.loads(token).value[44241]).value[2])[10]
    return Sample(
        {"evidence": token}, lambda parts: verify_cca(parts["evidence"], [key], challenge=challenge)
    )


def minted_cca() -> Sample:
    keys = [cca_tokens.platform_key()]
    return Sample(
        {"evidence": cca_tokens.newer()},
        lambda parts: verify_cca(parts["evidence"], keys, challenge=cca_tokens.BOUND),
    )


def azure_snp(hcl: bytes, leaf: bytes, issuer: bytes, at: datetime, **options: Any) -> Sample:
    return Sample(
        {"evidence": hcl, "leaf": leaf, "issuer": issuer},
        lambda parts: verify_azure(
            parts["evidence"], SnpEndorsements(parts["leaf"], parts["issuer"]), at, **options
        ),
    )


def corpus_azure() -> Sample:
    found = json.loads(corpus_bytes("tee/azure-snp/evidence-v1.json"))
    hcl, vcek = (urlsafe_b64decode(found[name]) for name in ("hcl_report", "vcek"))
    return azure_snp(hcl, vcek, corpus_bytes("tee/snp/ask-milan.der"), datetime(2026, 1, 1, tzinfo=UTC))


def corpus_azure_files() -> Sample:
    chain = corpus_bytes("tee/azure-snp/vcek-chain.pem").split(b"-----BEGIN CERTIFICATE-----")[1:]
    vcek, ask, _ = (b64decode(b"".join(one.partition(b"-----END")[0].split())) for one in chain)
    hcl = corpus_bytes("tee/azure-snp/hcl-report.bin")
    return azure_snp(hcl, vcek, ask, datetime(2026, 1, 1, tzinfo=UTC))


def minted_azure_snp() -> Sample:
    forge = AzureForge()
    amd = forge.amd
    return azure_snp(forge.report(), amd.leaf(), amd.issuer(), amd_pki.NOW, amd=amd.roots())


def minted_azure_tdx() -> Sample:
    forge = AzureForge(kind=4)
    quote = TdxForge(body={0x208: forge.report_data()}).quote()
    intel = intel_sgx.forged_root()
    return Sample(
        {"evidence": forge.report(), "quote": quote},
        lambda parts: verify_azure(
            parts["evidence"], AzureTdxEndorsements(parts["quote"]), intel_sgx.NOW, intel=intel
        ),
    )


MINTED: dict[str, Callable[[], Sample]] = {
    "minted vcek of turin": lambda: minted_snp(AmdForge(Generation.TURIN)),
    "minted vlek": lambda: minted_snp(AmdForge(signing_key=SigningKey.VLEK)),
    "minted quote of version 4": minted_tdx,
    "minted quote of version 5": lambda: minted_tdx(version=5, body_type=3),
    "minted enclave": minted_nitro,
    "minted device": minted_nvidia,
    "minted realm": minted_cca,
    "minted azure snp": minted_azure_snp,
    "minted azure tdx": minted_azure_tdx,
}
REAL: dict[str, Callable[[], Sample]] = {
    "tee/snp/milan-v2-report.bin": lambda: corpus_snp("tee/snp/milan-v2-report.bin"),
    "tee/snp/milan-v3-report.bin": lambda: corpus_snp("tee/snp/milan-v3-report.bin"),
    "tee/snp/genoa-v5-report.bin": lambda: corpus_snp("tee/snp/genoa-v5-report.bin"),
    "tee/tdx/tdx-v4-quote.bin": lambda: corpus_tdx(
        "tee/tdx/tdx-v4-quote.bin", "tee/tdx/tdx-v4-collateral.json"
    ),
    "tee/tdx/tdx-v4-quote-no-collateral.bin": lambda: corpus_tdx("tee/tdx/tdx-v4-quote-no-collateral.bin"),
    "tee/tdx/gce-cos113-quote.bin": lambda: corpus_tdx("tee/tdx/gce-cos113-quote.bin"),
    "tee/nitro/nitro-enclave-document.cbor": lambda: corpus_nitro("tee/nitro/nitro-enclave-document.cbor"),
    "tee/nitro/nitro-enclave-document-in-cert.der": lambda: corpus_nitro(
        "tee/nitro/nitro-enclave-document-in-cert.der"
    ),
    "tee/cca/cca-token-emulator.cbor": corpus_cca,
    "tee/azure-snp/evidence-v1.json": corpus_azure,
    "tee/azure-snp/hcl-report.bin": corpus_azure_files,
}
SAMPLES = MINTED | (REAL if corpus_root() else {})

UNSIGNED: dict[tuple[str, str], tuple[range, str]] = {
    ("minted azure tdx", "evidence"): (
        range(32, 32 + 1024),
        "a tdreport has no signature: only its report data are read, and the quote beside it speaks for the rest",
    ),
}
"""Sample and part → the places at which an alteration is let through, and why."""
REPORT_DATA_OF_TDREPORT = range(32 + 128, 32 + 192)

PEM_PADDING = b"\r\n\0"
PADDED = {
    "quote": "what stands behind the declared length of a quote is no part of it",
    "chain": "line ends and zeros may stand behind certificates in pem, as intel's own tools write them",
    "root": "the root, which is pinned, may be left out of a chain",
    "index": "an hcl report is read from an index that is filled with zeros",
}
"""Why something may be cut off or added at the end, by what it is."""


@functools.cache
def made(name: str) -> tuple[Sample, object]:
    sample = SAMPLES[name]()
    return sample, sample.verify(sample.parts)


def accepted(name: str, parts: Parts) -> bool:
    sample, claims = made(name)
    try:
        found = sample.verify(parts)
    except QuotaryError:
        return False
    for name in ("kind", "device", "measurements", "signer", "shown", "not_shown"):
        assert getattr(found, name) == getattr(claims, name)
    return True


def every(data: bytes, most: int | None) -> range:
    return range(0, len(data), 1 if most is None else max(1, len(data) // most))


def flips(data: bytes, most: int | None) -> Iterator[tuple[int, bytes]]:
    """One bit of each byte, or with no limit each bit of it."""
    for at in every(data, most):
        for bit in range(8) if most is None else (at % 8,):
            yield at, data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]


def let_through(name: str, most: int | None) -> Iterator[tuple[str, int]]:
    sample, _ = made(name)
    for part, data in sample.parts.items():
        for at, changed in flips(data, most):
            if accepted(name, {**sample.parts, part: changed}):
                yield part, at


def allowed(name: str, part: str, at: int) -> bool:
    places, _ = UNSIGNED.get((name, part), (range(0), ""))
    return at in places and at not in REPORT_DATA_OF_TDREPORT


@pytest.mark.parametrize("name", SAMPLES)
def test_no_sample_verifies_with_a_byte_altered(name: str) -> None:
    found = let_through(name, made(name)[0].most)
    assert [one for one in found if not allowed(name, *one)] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SAMPLES)
def test_no_sample_verifies_with_any_bit_altered(name: str) -> None:
    assert [one for one in let_through(name, None) if not allowed(name, *one)] == []


WHOLE = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=WHOLE)], ids=["some places", "every place"]
)
@pytest.mark.parametrize("name", SAMPLES)
def test_no_sample_verifies_cut_off_anywhere_or_with_bytes_behind_it(name: str, whole: bool) -> None:
    sample, _ = made(name)
    most = None if whole else sample.most
    for part, data in sample.parts.items():
        cut = [data[:length] for length in every(data, most)] + [data[:-1], data[1:]]
        longer = [data + b"\0", data + b"\xff", b"\0" + data, data + data, data + bytes(64)]
        for changed in cut + longer:
            if accepted(name, {**sample.parts, part: changed}):
                assert padded(name, part, data, changed) in PADDED, (part, len(changed))


def padded(name: str, part: str, data: bytes, changed: bytes) -> str:
    """What kind of thing it is that was cut off or added where that is no part of the evidence."""
    if (
        part == "quote" or (part == "evidence" and isinstance(made(name)[1], TdxClaims))
    ) and changed.startswith(data):
        return "quote"
    if part.endswith("_chain"):
        kept = {
            data.rstrip(PEM_PADDING): "chain",
            data[: data.rindex(b"-----BEGIN")].rstrip(PEM_PADDING): "root",
        }
        return kept.get(changed.rstrip(PEM_PADDING), "")
    rest = changed.removeprefix(data) if len(changed) > len(data) else data.removeprefix(changed)
    return "index" if part == "evidence" and "azure" in name and not any(rest) else ""


ANY_ORDER = {f"certificate {number}" for number in range(1, 4)}
"""The CAs of a device's path: they are one path in whatever order they are given."""


@pytest.mark.parametrize("name", SAMPLES)
def test_no_sample_verifies_with_two_of_its_parts_exchanged(name: str) -> None:
    sample, _ = made(name)
    for one, other in combinations(sample.parts, 2):
        mine, theirs = sample.parts[one], sample.parts[other]
        if mine != theirs and not (one in ANY_ORDER and other in ANY_ORDER):
            assert not accepted(name, {**sample.parts, one: theirs, other: mine}), (one, other)


def test_every_real_piece_of_evidence_is_a_sample_here() -> None:
    evidence = {
        one["file"]
        for one in entries("tee/")
        if one["expect"].startswith(("ok", "reject-by-default"))
        and one["kind"] not in {"vcek", "quote-attest"}
    }
    assert evidence <= set(REAL)
