# SPDX-License-Identifier: Apache-2.0
"""Processors and devices of each kind that bind a commit, and what became of a verification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import intel_sgx
from device_forge import NitroForge
from forge import TeeRoot
from intel_sgx import TdxForge
from nvidia_forge import NvidiaForge

from quotary_verifier import NotChecked, Question, Rejected, Report, load_policy, verify
from quotary_verifier.evidence.tee.lines import tdx_support
from quotary_verifier.evidence.tee.shape import report_data
from quotary_verifier.tlog.hardware import IDENTIFIER_NITRO, IDENTIFIER_NVIDIA
from quotary_verifier.wire.tee_support import TeeSupport

GPUS = (NvidiaForge(), NvidiaForge(number=30))


def outcome(data: bytes, question: Question, policy: str) -> Report:
    try:
        return verify(data, question, load_policy(policy.encode())).report
    except (Rejected, NotChecked) as error:
        return error.report


def said(report: Report, name: str) -> list[object]:
    return [claim.value for claim in report.claims if claim.name == name]


def tdx(digest: bytes, genesis: bytes) -> tuple[bytes, TeeSupport]:
    quote = TdxForge(body={0x208: report_data(digest, genesis)}).quote()
    return quote, tdx_support(intel_sgx.collateral())


def nitro(digest: bytes, genesis: bytes) -> tuple[bytes, TeeSupport]:
    document = NitroForge().having(user_data=digest, nonce=genesis).document()
    return document, TeeSupport(IDENTIFIER_NITRO, {})


def nvidia(devices: Sequence[NvidiaForge] = GPUS) -> TeeRoot:
    def bind(digest: bytes, _: bytes) -> tuple[bytes, TeeSupport]:
        reports = [replace(device, nonce=digest).report() for device in devices]
        paths = {f"device-{number}": tuple(one.certificates()) for number, one in enumerate(devices)}
        evidence = b"".join(len(report).to_bytes(2) + report for report in reports)
        return evidence, TeeSupport(IDENTIFIER_NVIDIA, paths)

    return bind
