# SPDX-License-Identifier: Apache-2.0
"""What tests of audits with TEE lines share: a processor of their own, rules that trust it, and a witness."""

from __future__ import annotations

from base64 import encodebytes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import intel_sgx
from agents import policy_of
from amd_pki import NOW, AmdForge
from device_forge import device_root
from nacl.signing import SigningKey
from soft_log import SoftLog

from quotary_verifier.audit.findings import Code, Severity
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.evidence.tee.lines import TeeRoots, snp_support
from quotary_verifier.evidence.tee.snp_rules import SnpRules
from quotary_verifier.policy.model import Policy, Witnesses
from quotary_verifier.policy.tee import TeeRules
from quotary_verifier.tlog.cosignature import TYPE_COSIGNATURE
from quotary_verifier.tlog.hardware import IDENTIFIER_SEV_SNP, HardwareLine, encode_hardware_line
from quotary_verifier.tlog.note import Note, VerifierKey, parse_note
from quotary_verifier.wire.history import Commit

AT = int(NOW.timestamp())
FAR = AT + 20 * 365 * 86_400
REPORT_DATA = 0x50

LAUNCH = "4d" * 48
"""The launch measurement of every report of a forged processor."""


def pem(der: bytes) -> str:
    """A certificate as text."""
    return f"-----BEGIN CERTIFICATE-----\n{encodebytes(der).decode()}-----END CERTIFICATE-----\n"


def _roots() -> str:
    devices, intel = pem(device_root().der), pem(intel_sgx.forged_root().der)
    named = "".join(
        f'{name} = """\n{text}"""\n'
        for name, text in (("intel", intel), ("nitro", devices), ("nvidia", devices))
    )
    return f'[tee.roots]\n{named}[tee.roots.amd]\ngenoa = """\n{pem(AmdForge().ark())}"""\n'


ROOTS = _roots()
"""Roots of all forged processors and devices, as they stand in a policy."""

Bound = dict[str, tuple[bytes, Mapping[str, Sequence[bytes]]]]


def snp(forge: AmdForge, twist: Callable[[bytes], bytes] = bytes) -> Callable[[bytes], Bound]:
    """A processor that binds what it is asked to, or what `twist` makes of it."""
    endorsements = snp_support(forge.endorsements()).endorsements

    def bind(data: bytes) -> Bound:
        return {IDENTIFIER_SEV_SNP: (forge.report({REPORT_DATA: twist(data)}), endorsements)}

    return bind


def rules(forge: AmdForge, *, required: bool = True, **more: object) -> TeeRules:
    """Rules that trust the processor; `more` is what else is asked of its reports."""
    names = frozenset({"sev-snp"}) if required else frozenset()
    of_snp = SnpRules(frozenset({forge.generation}), **more)  # type: ignore[arg-type]
    return TeeRules(names, snp=of_snp, roots=TeeRoots(amd=forge.roots()))


def told(report: AuditReport) -> list[tuple[Code, Severity, int | None]]:
    """What a report finds, by code, severity and commit."""
    return [(found.code, found.severity, found.where.commit) for found in report.findings]


def changed(log: SoftLog, number: int, change: Callable[[Commit], Commit]) -> None:
    """Change a commit of the history that is not on disk yet."""
    log._history[number] = change(Commit.decode(log._history[number])).encode()


def line_of(log: SoftLog, commit: Commit, evidence: bytes) -> Commit:
    """The commit with other evidence in its line."""
    line = encode_hardware_line(log.origin, b"", HardwareLine(IDENTIFIER_SEV_SNP, commit.first, evidence))
    note = parse_note(commit.note)
    kept = tuple(line if one.key_id == line.key_id else one for one in note.lines)
    return replace(commit, note=Note(note.text, kept).encode())


def evidence_of(log: SoftLog, number: int) -> bytes:
    """The evidence in the line of a commit that is not on disk yet."""
    note = parse_note(Commit.decode(log._history[number]).note)
    return note.lines[-1].payload[8:]


def watched(log: SoftLog, tee: TeeRules) -> tuple[Policy, Callable[[int], None]]:
    """A policy that asks for one witness, and the witness: it cosigns the newest checkpoint at a time."""
    key = SigningKey.generate()
    name = "witness.example.org"
    witnesses = Witnesses((VerifierKey(name, TYPE_COSIGNATURE, bytes(key.verify_key)),), 1)
    policy = replace(policy_of(log.origin), tee=tee, witnesses=witnesses)
    return policy, lambda time: log.cosigned(name, key, time)
