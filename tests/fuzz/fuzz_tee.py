# SPDX-License-Identifier: Apache-2.0
"""Fuzz target for the evidence of confidential-computing hardware: every parser, and what reads certificates in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from amd_pki import AmdForge
from azure_forge import AzureForge
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from device_forge import NOW, NitroForge, device_root, p384
from fuzz_base import Target, corpus_files, tried
from nvidia_forge import NvidiaForge

from quotary_verifier.evidence.tee.azure_hcl import parse_hcl_report
from quotary_verifier.evidence.tee.cca import PlatformKey, verify_cca
from quotary_verifier.evidence.tee.device_pki import PinnedRoot
from quotary_verifier.evidence.tee.intel_pki import read_chain
from quotary_verifier.evidence.tee.nitro import NitroRules, appraise_nitro, verify_unbound_nitro
from quotary_verifier.evidence.tee.nvidia import split_reports, verify_nvidia
from quotary_verifier.evidence.tee.nvidia_spdm import parse_spdm_report
from quotary_verifier.evidence.tee.snp_report import parse_snp_report
from quotary_verifier.evidence.tee.tdx import verify_tdx
from quotary_verifier.evidence.tee.tdx_collateral import TdxCollateral
from quotary_verifier.evidence.tee.tdx_quote import parse_tdx_quote
from quotary_verifier.wire import cbor

ROOT = PinnedRoot(device_root().der)
CPAK = PlatformKey(p384(1).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
NVIDIA = NvidiaForge()
PATH = NVIDIA.certificates()
PARSERS: list[Callable[[bytes], Any]] = [
    parse_snp_report,
    parse_tdx_quote,
    TdxCollateral.from_json,
    read_chain,
    split_reports,
]


def tee(data: bytes) -> None:
    """Whatever the bytes are taken for: refused by an error of ours, or read within their own bounds."""
    for parse in PARSERS:
        tried(parse, data)
    tried(verify_tdx, data, None, NOW, report_data=bytes(64))
    tried(verify_cca, data, [CPAK], challenge=bytes(64))
    value = tried(cbor.decode_unordered, data, max_bytes=1 << 16)
    assert value is None or tried(cbor.decode_unordered, cbor.encode(value), max_bytes=1 << 16) == value
    document = tried(verify_unbound_nitro, data, NOW + timedelta(days=1), root=ROOT)
    if document is not None:  # nobody else has the key that signs here
        assert document.device == b"i-1-enc2"
        assert not appraise_nitro(document, NitroRules())
    report = tried(parse_spdm_report, data)
    if report is not None:
        assert report.signed + report.signature == data
        tried(verify_nvidia, data, PATH, NOW, nonce=report.nonce, root=ROOT)
    hcl = tried(parse_hcl_report, data)
    assert hcl is None or (hcl.text in data and hcl.hardware in data)


def tee_seeds() -> Iterator[bytes]:
    """Evidence of every kind that the tests mint, and what the corpus has."""
    nitro = NitroForge()
    yield nitro.document()
    yield nitro.having(nitrotpm_pcrs={0: bytes(48)}, pcrs=None).document()
    yield NVIDIA.report()
    yield NvidiaForge(model="GB20X").report()
    forge = AzureForge()
    yield forge.report()
    yield AzureForge(kind=4).report()
    yield AmdForge().report()
    yield from corpus_files("tee", most=16_384)


TARGETS = {"tee": Target(tee, tee_seeds, most=16_384)}
CBOR_TARGETS = ("tee",)
"""Targets whose inputs are changed inside their encoding."""
