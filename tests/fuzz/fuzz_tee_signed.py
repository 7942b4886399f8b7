# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets for TEE evidence behind its signatures: reports, quotes, tokens and the documents that vouch for them.

What is signed is signed anew by keys that the target trusts, so that what stands behind the signature is reached too.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator

import amd_pki
import cbor2
import cca_tokens
import intel_sgx
from fuzz_base import Target, corpus_files, tried

from quotary_verifier.evidence.tee.amd_certs import Generation, read_amd_certificate
from quotary_verifier.evidence.tee.cca import CcaRules, PlatformKey, appraise_cca, verify_cca
from quotary_verifier.evidence.tee.lines import Bound, TeeRoots, snp_support, tdx_support, verify_tee_line
from quotary_verifier.evidence.tee.snp import SnpEndorsements, verify_snp
from quotary_verifier.evidence.tee.snp_report import REPORT_BYTES, parse_snp_report, parse_tcb
from quotary_verifier.evidence.tee.snp_rules import SnpRules, appraise_snp
from quotary_verifier.evidence.tee.tdx import verify_tdx
from quotary_verifier.evidence.tee.tdx_collateral import TdxCollateral
from quotary_verifier.evidence.tee.tdx_quote import parse_tdx_quote
from quotary_verifier.evidence.tee.tdx_rules import TdxRules, appraise_tdx
from quotary_verifier.wire import cbor
from quotary_verifier.wire.tee_support import TeeSupport

ANY = SnpRules(frozenset(Generation))


@functools.cache
def amd() -> tuple[amd_pki.AmdForge, SnpEndorsements]:
    """A processor, and what vouches for its reports."""
    forge = amd_pki.AmdForge()
    return forge, forge.endorsements()


def snp(data: bytes) -> None:
    """A report as it is, and one with these bytes at its beginning, signed by a key that is trusted."""
    report = tried(parse_snp_report, data)
    if report is not None:
        for generation in Generation:
            tried(parse_tcb, report.committed_tcb, generation)
        assert report.signed == data[: len(report.signed)]
    forge, endorsements = amd()
    signed = forge.report({0: data[:0x2A0]})
    claims = tried(
        verify_snp, signed, endorsements, amd_pki.NOW, report_data=signed[0x50:0x90], roots=forge.roots()
    )
    if claims is not None:
        appraise_snp(claims, ANY)


def snp_seeds() -> Iterator[bytes]:
    """Real reports, and minted ones of each generation."""
    yield from corpus_files("tee/snp", most=REPORT_BYTES)
    for generation in Generation:
        yield amd_pki.AmdForge(generation).report()


def amd_certificate(data: bytes) -> None:
    """One certificate as AMD's, at either place of a path."""
    tried(read_amd_certificate, data)
    forge, endorsements = amd()
    for given in (SnpEndorsements(data, endorsements.issuer), SnpEndorsements(endorsements.leaf, data)):
        tried(
            verify_snp,
            forge.report(),
            given,
            amd_pki.NOW,
            report_data=amd_pki.BOUND,
            roots=forge.roots(),
        )


def amd_certificate_seeds() -> Iterator[bytes]:
    """Real certificates, and a minted path."""
    yield from corpus_files("tee/snp", most=1900)
    _, endorsements = amd()
    yield endorsements.leaf
    yield endorsements.issuer


@functools.cache
def quote() -> bytes:
    """A quote of a minted platform."""
    return intel_sgx.TdxForge().quote()


def verify(data: bytes, collateral: TdxCollateral | None, report_data: bytes = intel_sgx.BOUND) -> None:
    """Verify a quote under the minted root, and appraise it where it holds."""
    root = intel_sgx.forged_root()
    claims = tried(verify_tdx, data, collateral, intel_sgx.NOW, report_data=report_data, root=root)
    if claims is not None:
        appraise_tdx(claims, TdxRules())


def tdx(data: bytes) -> None:
    """A quote as it is, and one whose head and body are these bytes, signed by a key that is trusted."""
    parsed = tried(parse_tdx_quote, data)
    if parsed is not None:
        assert data.startswith(parsed.raw)
        assert len(parsed.raw) + parsed.trailing == len(data)
    head = len(intel_sgx.TdxForge().signed())
    changed = data[:head] + quote()[len(data[:head]) :]
    signature = intel_sgx.raw_signature(intel_sgx.key("attestation"), changed[:head])
    changed = changed[: head + 4] + signature + changed[head + 68 :]
    for given in (data, changed):
        if len(given) >= head:
            verify(given, None, given[0x238:0x278])


def tdx_seeds() -> Iterator[bytes]:
    """Real quotes, and minted ones of each body."""
    yield from corpus_files("tee/tdx", most=8192)
    for version, body in ((4, 2), (5, 2), (5, 3)):
        yield intel_sgx.TdxForge(version, body).quote()


def tdx_documents(data: bytes) -> None:
    """Collateral in one object, and either of Intel's documents, signed by a key that is trusted."""
    tried(TdxCollateral.from_json, data)
    for given in (intel_sgx.collateral(data), intel_sgx.collateral(None, data)):
        verify(quote(), given)


def tdx_document_seeds() -> Iterator[bytes]:
    """Documents that fit the minted platform."""
    for document in (intel_sgx.tcb_info(), intel_sgx.qe_identity(), {}):
        yield json.dumps(document).encode()


def tdx_platform(data: bytes) -> None:
    """The extension of a PCK certificate."""
    verify(intel_sgx.TdxForge(extension=data).quote(), None)


def tdx_platform_seeds() -> Iterator[bytes]:
    """What minted platforms say."""
    for platform in (intel_sgx.Platform(), intel_sgx.Platform((255,) * 16, 65_535)):
        yield platform.extension()


def cca(data: bytes) -> None:
    """A token as it is, and one whose platform or realm claims are these bytes, signed by keys that are trusted."""
    key = PlatformKey(cca_tokens.spki(cca_tokens.CPAK.public_key()))
    platform = cca_tokens.token(tokens={44234: cca_tokens.sign1(data, cca_tokens.CPAK)})
    realm = cca_tokens.token(tokens={44241: cca_tokens.sign1(data, cca_tokens.RAK)})
    for given in (data, platform, realm):
        claims = tried(verify_cca, given, [key], challenge=cca_tokens.BOUND)
        if claims is not None:
            appraise_cca(claims, CcaRules())


def cca_seeds() -> Iterator[bytes]:
    """The emulator's token, and the claims of a minted one."""
    yield from corpus_files("tee/cca", most=4096)
    yield cbor2.dumps(cca_tokens.platform_claims())
    yield cbor2.dumps(cca_tokens.realm_claims())


def lines(data: bytes) -> None:
    """A line's evidence and its support, in one array; the report is signed by a key that is trusted."""
    pair = tried(cbor.decode, data, max_bytes=1 << 16)
    if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not bytes:
        return
    support = tried(TeeSupport.read, pair[1])
    if support is None:
        return
    assert TeeSupport.read(support.fields()) == support
    forge, _ = amd()
    roots = TeeRoots(amd=forge.roots(), intel=intel_sgx.forged_root())
    bound = Bound(amd_pki.BOUND[:32], amd_pki.BOUND[32:])
    tried(verify_tee_line, pair[0], support, bound, amd_pki.NOW, roots)


def line_seeds() -> Iterator[bytes]:
    """Lines of two kinds with their supports."""
    forge, endorsements = amd()
    for evidence, support in (
        (forge.report(), snp_support(endorsements)),
        (quote(), tdx_support(intel_sgx.collateral())),
        (quote(), tdx_support(None)),
    ):
        yield cbor.encode([evidence, support.fields()])


TARGETS = {
    "snp": Target(snp, snp_seeds, most=REPORT_BYTES),
    "amd-certificate": Target(amd_certificate, amd_certificate_seeds),
    "tdx": Target(tdx, tdx_seeds, most=8192),
    "tdx-documents": Target(tdx_documents, tdx_document_seeds, most=8192),
    "tdx-platform": Target(tdx_platform, tdx_platform_seeds, most=1024),
    "cca": Target(cca, cca_seeds),
    "tee-line": Target(lines, line_seeds, most=24_576),
}
CBOR_TARGETS = ("cca", "tee-line")
"""Targets whose inputs are changed inside their encoding."""
