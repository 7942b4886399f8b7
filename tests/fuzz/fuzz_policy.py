# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets for what a policy makes of hostile hosts, and for the files that stand beside and around a policy."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator

from appraising import ORIGIN, accepted, evidence, policy
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from forge import NOW
from fuzz_base import Target, corpus_files, tried
from fuzz_logs import as_events, events_of
from ima_logs import file_data, ima_entry, ng
from tcg_logs import good_boot

from quotary_verifier import Policy, PolicyError
from quotary_verifier.errors import MalformedError
from quotary_verifier.policy.appraise import appraise_platform
from quotary_verifier.policy.findings import Appraisal, PlatformEvidence
from quotary_verifier.policy.lists import parse_list
from quotary_verifier.policy.patterns import Pattern
from quotary_verifier.policy.signed import (
    PolicyKey,
    SignedPolicy,
    open_signed_policy,
    policy_key,
    read_policy_key,
    sign_policy,
    unverified_signed_policy,
)

NOBODY = "00" * 32
STRICT = f"""
[platform.pcrs]
14 = ["{NOBODY}"]
[platform.secure_boot]
pk = ["x509:{NOBODY}"]
kek = ["x509:{NOBODY}"]
db = ["x509:{NOBODY}", "sha256:{NOBODY}"]
dbx = ["sha256:{NOBODY}"]
authorities = ["x509:{NOBODY}"]
[platform.boot]
applications = ["{NOBODY}"]
files = ["{NOBODY}"]
command_lines = ['/vmlinuz( quiet| ro|root=[^ ]+)*', 'linux /vmlinuz.*']
[platform.ima]
ignore = ["/var/*/log*"]
[[platform.ima.file]]
digest = "sha256:{NOBODY}"
path = "/usr/bin/x"
[platform.clock]
restarts = 0
[[platform.clock.boots]]
origin = "{ORIGIN}"
first = 100
"""
LENIENT = """
[platform]
tolerate = ["no-exit-boot-services", "no-calling-action", "failed-boot-attempts", "no-secure-boot-state"]
[platform.secure_boot]
enabled = false
[platform.boot]
command_lines = ['.*']
[platform.ima]
ignore = ["/u*", "m*"]
violations = true
boot_aggregate = false
"""


@functools.cache
def policies() -> tuple[Policy, Policy]:
    """A policy that nothing can meet, and one that asks for little."""
    return policy(STRICT), policy(LENIENT)


def appraise(data: bytes) -> None:
    """A host whose events and records are these: u16 size, events (as `tcg-events`), then records: u16 size, data."""
    size = int.from_bytes(data[:2], "big")
    records, at = [], 2 + size
    while at + 3 <= len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        records.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    host = tried(evidence, events_of(data[2 : 2 + size]), records, entries=entries_of(records))
    if host is not None:
        strict, lenient = policies()
        assert not accepted(sane(strict, host))
        sane(lenient, host)


def entries_of(records: list[bytes]) -> bytes:
    """The log of these records; an empty one is a violation."""
    return b"".join(ima_entry(data or ng("/violated", b""), violation=not data) for data in records)


def sane(rules: Policy, host: PlatformEvidence) -> Appraisal:
    """Appraise a host; what is said of it is one line each, and can be printed and stored."""
    appraisal = appraise_platform(rules, host, NOW)
    for finding in appraisal.findings:
        assert finding.message.isprintable(), finding
        assert finding.path is None or finding.path.isprintable(), finding
        json.dumps(finding.as_json()).encode("ascii")
    return appraisal


def appraise_seeds() -> Iterator[bytes]:
    """Good boots with a few files that ran, some of them odd."""
    odd = [ng("/var/log/x\x1b[2J", bytes(32)), ng("boot_aggregate", bytes(32)), b""]
    for boot in (good_boot(), good_boot(False)):
        events = as_events(boot)
        for records in ([], [file_data(1), *odd]):
            listed = b"".join(len(data).to_bytes(2, "big") + data for data in records)
            yield len(events).to_bytes(2, "big") + events + listed


@functools.cache
def signer() -> tuple[ed25519.Ed25519PrivateKey, PolicyKey]:
    """The key by which the targets' policies are signed."""
    private = ed25519.Ed25519PrivateKey.from_private_bytes(b"k" * 32)
    return private, policy_key(private.public_key())


def policy_files(data: bytes) -> None:
    """A signed policy, a list, a key, a pattern: each refused by its own error, or read within its own bounds."""
    private, key = signer()
    tried(unverified_signed_policy, data)
    opened = tried(open_signed_policy, data, [key], NOW)
    if opened is not None:
        assert sign_policy(opened[0], key, private.sign) == data  # Ed25519 has one signature a message
    tried(read_policy_key, data)
    try:
        listed = parse_list(data, "list")
        assert sum(map(len, listed.values())) <= data.count(b"\n") + 1
    except PolicyError:
        pass
    text, _, pattern = data[:512].decode("latin-1").partition("\n")
    try:
        compiled = Pattern(pattern)
    except MalformedError:
        return
    compiled.fits(text)
    assert compiled == Pattern(pattern)


def policy_file_seeds() -> Iterator[bytes]:
    """Signed policies, lists, a key, patterns with what they fit."""
    private, key = signer()
    for policy_text in (b"x", b"y" * 100):
        signed = SignedPolicy(policy_text, "fleet", 7, NOW - 60, NOW + 3600)
        yield sign_policy(signed, key, private.sign)
    yield private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for text in ("/x", "/y z"):
        yield f"{NOBODY}  {text}\n\\{NOBODY} *{text}\\n\n# a remark\n".encode()
    yield b"root=UUID=12-ab ro quiet\nroot=UUID=[0-9a-f-]+( ro| quiet){1,3}"
    yield b"aaaaaaaaaaaaaaaaaaaaaa!\n((a|a?)*){2,8}[^\\d_-]"
    yield from corpus_files("tpm/ima", most=2000)


TARGETS = {
    "appraise": Target(appraise, appraise_seeds, most=16_384),
    "policy-files": Target(policy_files, policy_file_seeds, most=2048),
}
CBOR_TARGETS = ("policy-files",)
"""Targets whose inputs are changed inside their encoding."""
