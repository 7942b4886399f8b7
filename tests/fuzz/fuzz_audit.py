# SPDX-License-Identifier: Apache-2.0
"""Fuzz target for audits: a host's published log in which one file is what an attacker wants it to be."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from fuzz_base import Mutator, Target
from soft_log import SoftLog

from quotary_cli.auditworkers import OwnProcess
from quotary_verifier import load_policy
from quotary_verifier.audit.engine import Audit, cannot_audit, new_state
from quotary_verifier.audit.opening import CannotOpen, open_log
from quotary_verifier.audit.reading import Absent
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.errors import MalformedError
from quotary_verifier.policy.model import Policy

AT = 1_790_000_100
MOST = 16_384


@functools.cache
def published() -> tuple[Mapping[str, bytes], Policy]:
    """What a host with two boots has published, by path, and a policy that pins it."""
    with tempfile.TemporaryDirectory() as folder:
        log = SoftLog(Path(folder))
        log.start()
        log.outputs(260)
        log.reset()
        log.start(models=("llama", "qwen"))
        log.outputs(3)
        root = log.finish()
        files = {
            path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
        }
        rules = f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{log.origin}"\n[tpm]\nsoftware = true\n'
        return files, load_policy(rules.encode())


def names() -> list[str]:
    """The paths that an input can stand for: those of files that are not longer than an input."""
    files, _ = published()
    return sorted(name for name, data in files.items() if len(data) < MOST)


def audit(data: bytes) -> None:
    """The number of a file, and what stands in its place: an audit ends in a report, whatever that is."""
    files, policy = published()
    listed = names()
    name = listed[data[0] % len(listed)] if data else listed[0]
    report = audited({**files, name: data[1:]}, policy)
    assert report.outcome in {"verified", "rejected", "could-not-check"}
    json.dumps(report.as_json()).encode("ascii")
    for finding in report.findings:
        assert finding.message.isprintable(), finding
    if files[name] == data[1:]:
        assert report.outcome == "verified", report.findings
    elif name.startswith("tile/"):
        assert report.outcome != "verified"


def audited(files: Mapping[str, bytes], policy: Policy) -> AuditReport:
    """Audit published files."""

    def read(path: str, most: int) -> bytes:
        found = files.get(path)
        if found is None:
            raise Absent(path)
        if len(found) > most:
            raise MalformedError(f"{path} has {len(found)} bytes, {most} are allowed")
        return found

    try:
        opened = open_log(read)
    except CannotOpen as error:
        return cannot_audit(error.finding, policy, AT)
    workers = OwnProcess(opened.record, read, frozenset())
    running = Audit(opened, policy, new_state(opened, policy, AT), read, workers, AT)
    for _ in running.run():
        pass
    return running.report()


def audit_seeds() -> Iterator[bytes]:
    """Each file as it is."""
    files, _ = published()
    for number, name in enumerate(names()):
        yield bytes((number,)) + files[name]


def wrapped(mutate: Mutator) -> Mutator:
    """A mutator that leaves the first byte alone, nearly always."""

    def changed(data: bytes, most: int, seed: int) -> bytes:
        if seed % 16 == 0 or not data:
            return mutate(data, most, seed)
        return data[:1] + mutate(data[1:], most - 1, seed)

    return changed


TARGETS = {"audit": Target(audit, audit_seeds, most=MOST)}
CBOR_TARGETS = ("audit",)
"""Targets whose inputs are changed inside their encoding."""
