# SPDX-License-Identifier: Apache-2.0
"""Holds the records of a replayed IMA log against an allow list.

A log has a hundred thousand records on a busy host, nearly all of which are allowed, so these are told by three slices
and one look-up; what remains is taken apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from heapq import nsmallest
from typing import Final

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs.ima import IMA_PCR, ImaRecord, ReplayedIma
from quotary_verifier.logs.ima_fields import Fields, FileDigest, check_boot_aggregate, decode
from quotary_verifier.logs.ima_signature import verify_ima_signature
from quotary_verifier.policy.findings import Finding, PlatformEvidence, Severity, limited, listed, shown
from quotary_verifier.policy.globs import Globs
from quotary_verifier.policy.rules import ImaRules
from quotary_verifier.wire.attestation import BOOT_LOG_IMA
from quotary_verifier.wire.bindings import ZERO

_RULE: Final = "platform.ima"
_FILES: Final = "platform.ima.files"
_TEMPLATES: Final = "platform.ima.templates"
_AGGREGATE: Final = b"boot_aggregate"
_AGGREGATED: Final = range(8)
_ALSO_AGGREGATED: Final = range(8, 10)
_ALGORITHMS: Final = frozenset({"sha256", "sha384", "sha512"})

_USUAL: Final = frozenset({b"ima-ng", b"ima-sig", b"ima-buf", b"ima-modsig"})
"""Templates whose first fields are a digest and a path."""
_SHA256: Final = b"\x28\0\0\0sha256:\0"
"""How template data with a SHA-256 digest begins: the field's length and its label."""
_DIGEST: Final = slice(12, 44)
_PATH: Final = 48
_UNKNOWN: Final = ()
_NAMED: Final = 64
"""Paths or digests that a finding names as allowed."""


def appraise_ima(rules: ImaRules, evidence: PlatformEvidence, used: list[str]) -> Iterator[Finding]:
    """Yield every record that the rules do not allow; `used` gets what was passed over because they say so."""
    log = evidence.ima
    if evidence.pcrs[IMA_PCR] == ZERO:
        why = "PCR 10 is zero, so the kernel measured none of the files that ran"
        yield Finding(_RULE, why, pcr=IMA_PCR, found=ZERO.hex())
    elif log is None:
        missing = evidence.missing.get(BOOT_LOG_IMA, "it did not come")
        why = f"what ran is known from the IMA log only: {missing}"
        yield Finding(_RULE, why, Severity.COULD_NOT, pcr=IMA_PCR)
    elif IMA_PCR not in log.values:
        why = f"PCR 10 is {evidence.pcrs[IMA_PCR].hex()}, and the IMA log has no record of it"
        yield Finding(_RULE, why, Severity.COULD_NOT, pcr=IMA_PCR)
    else:
        appraiser = _Appraiser(rules, evidence)
        yield from limited(_RULE, appraiser.findings(log))
        used += appraiser.used()


class _Appraiser:
    """Goes through the records once, and counts what it passes over."""

    def __init__(self, rules: ImaRules, evidence: PlatformEvidence) -> None:
        self._rules, self._evidence = rules, evidence
        self._ignore = Globs(rules.ignore)
        self._templates = frozenset(name.encode() for name in rules.templates)
        self._ignored = self._violations = 0
        self._by_path: dict[bytes, list[bytes]] | None = None
        self._paths_of: dict[bytes, list[str]] = {}

    def findings(self, log: ReplayedIma) -> Iterator[Finding]:
        """Yield what is wrong with the proved records of a log, in order."""
        files: Mapping[bytes, Collection[bytes] | None] = self._rules.files
        usual, violations = self._templates & _USUAL, frozenset(log.violations)
        for record in log.records():
            number, _, _, template, data = record
            if number and template in usual and data.startswith(_SHA256) and number not in violations:
                paths = files.get(data[_DIGEST], _UNKNOWN)
                if paths is None:
                    continue
                end = _PATH - 1 + int.from_bytes(data[44:_PATH], "little")
                path = data[_PATH:end]
                if path in paths or (data[end : end + 1] == b"\0" and self._is_ignored(path)):
                    continue
            finding = self._record(record)
            if finding is not None:
                yield finding

    def _is_ignored(self, path: bytes) -> bool:
        """Tell whether the policy leaves a path out, and count it; a boot aggregate's is none."""
        if path == _AGGREGATE or not self._ignore.fit(path):
            return False
        self._ignored += 1
        return True

    def used(self) -> list[str]:
        """Return in words what was passed over."""
        said = []
        if self._ignored:
            said.append(f"IMA log: {self._ignored} records of files at paths that the policy ignores")
        if self._violations:
            said.append(f"IMA log: {self._violations} violations accepted")
        if not self._rules.boot_aggregate:
            said.append("IMA log: the boot aggregate is not asked for")
        return said

    def _record(self, record: ImaRecord) -> Finding | None:
        """Return what is wrong with a record that is not plainly allowed."""
        if record.violation:
            return self._violation(record)
        try:
            fields = decode(record.template, record.data)
        except MalformedError as error:
            return self._finding(record, _FILES, str(error), b"")
        except UnsupportedError as error:
            return self._finding(record, _TEMPLATES, str(error), b"", severity=Severity.COULD_NOT)
        path = fields.path
        if path == _AGGREGATE or not record.number:
            return self._aggregate(record, fields)
        if path is not None and self._is_ignored(path):
            return None
        if record.template not in self._templates or path is None or fields.digest is None:
            why = f"it has the template '{shown(record.template)}', which the policy does not allow"
            return self._finding(record, _TEMPLATES, why, path or b"")
        return self._file(record, path, fields.digest, fields.signature)

    def _violation(self, record: ImaRecord) -> Finding | None:
        """Judge a violation, which extends the same into PCR 10 whatever it is of: its path is what the log says."""
        if self._rules.violations:
            self._violations += 1
            return None
        try:
            path = decode(record.template, record.data).path or b""
        except (MalformedError, UnsupportedError):
            path = b""
        why = "the kernel could not measure it (a violation: it was open for writing while it was read, or the reverse)"
        return self._finding(record, "platform.ima.violations", why, path)

    def _aggregate(self, record: ImaRecord, fields: Fields) -> Finding | None:
        """Judge a boot aggregate: the first record must be one, and any other, as after a kexec, must fit, too."""
        rule = "platform.ima.aggregate"
        if not self._rules.boot_aggregate:
            if not record.number and fields.path == _AGGREGATE:
                return None
            return self._finding(record, rule, "it calls itself a boot aggregate", fields.path or b"")
        evidence, firmware = self._evidence, self._evidence.firmware
        then = dict.fromkeys(_ALSO_AGGREGATED, ZERO)
        then |= {pcr: evidence.pcrs[pcr] for pcr in _AGGREGATED if pcr not in evidence.moving}
        if firmware is not None:
            then |= {pcr: value for pcr, value in firmware.values.items() if pcr in _ALSO_AGGREGATED}
        if not then.keys() >= set(_AGGREGATED):
            why = "it is over a PCR that each commit extends"
            return self._finding(record, rule, why, _AGGREGATE, severity=Severity.COULD_NOT)
        try:
            check_boot_aggregate(fields, then)
        except UnsupportedError as error:
            return self._finding(record, rule, str(error), _AGGREGATE, severity=Severity.COULD_NOT)
        except EvidenceError as error:
            known = firmware is not None and set(_ALSO_AGGREGATED).isdisjoint(firmware.unconfirmed)
            if known or fields.path != _AGGREGATE:
                return self._finding(record, rule, str(error), fields.path or b"")
            why = "no log says what PCR 8 and 9 were at boot"
            return self._finding(record, rule, why, _AGGREGATE, severity=Severity.COULD_NOT)
        return None

    def _file(
        self, record: ImaRecord, path: bytes, digest: FileDigest, signature: bytes | None
    ) -> Finding | None:
        """Judge a file by its digest and path, else by its signature."""
        known: Collection[bytes] | None = _UNKNOWN
        if digest.kind == "ima" and digest.algorithm in _ALGORITHMS:
            known = self._rules.files.get(digest.value, _UNKNOWN)
        if known is None or path in known:
            return None
        problem = ""
        if self._rules.keys:
            try:
                _check_signature(self._rules, digest, signature)
            except UnsupportedError as error:
                why = f"its digest is not allowed, and its signature cannot be judged: {error}"
                return self._finding(record, _FILES, why, path, digest, severity=Severity.COULD_NOT)
            except (EvidenceError, MalformedError) as error:
                problem = f"; {error}"
            else:
                return None
        why, allowed = self._why(path, digest, known)
        return self._finding(record, _FILES, f"{why}{problem}", path, digest, allowed)

    def _why(self, path: bytes, digest: FileDigest, known: Collection[bytes]) -> tuple[str, list[str]]:
        """Say why a file is not allowed, and which digests or paths would be."""
        value = digest.value.hex()
        if known:
            paths = self._paths(digest.value, known)
            more = f"; {len(known)} in all" if len(known) > len(paths) else ""
            return f"the policy knows its digest {value} at other paths only ({listed(paths)}{more})", paths
        if digest.algorithm not in _ALGORITHMS or digest.kind != "ima":
            return f"its {digest.kind} digest by {digest.algorithm} cannot be looked up in an allow list", []
        allowed = self._allowed(path)
        if allowed:
            return f"its digest is {value}, and the policy allows {listed(allowed)} there", allowed
        return f"the policy allows neither its path nor its digest {value}", []

    def _paths(self, digest: bytes, known: Collection[bytes]) -> list[str]:
        """Return the first of the paths at which a digest may lie: a system has thousands of empty files."""
        found = self._paths_of.get(digest)
        if found is None:
            found = self._paths_of[digest] = [shown(path) for path in nsmallest(_NAMED, known)]
        return found

    def _allowed(self, path: bytes) -> list[str]:
        """Return the digests that the policy allows at a path."""
        if self._by_path is None:
            self._by_path = {}
            for digest, paths in self._rules.files.items():
                for known in paths or ():
                    self._by_path.setdefault(known, []).append(digest)
        return [digest.hex() for digest in self._by_path.get(path, [])[:_NAMED]]

    def _finding(
        self,
        record: ImaRecord,
        rule: str,
        why: str,
        path: bytes,
        digest: FileDigest | None = None,
        allowed: Collection[str] = (),
        severity: Severity = Severity.FAIL,
    ) -> Finding:
        return Finding(
            rule,
            f"PCR {record.pcr}, record {record.number} of the IMA log, {shown(path) or 'a file without name'}: {why}",
            severity,
            record.pcr,
            record.number,
            shown(path) or None,
            None if digest is None else digest.value.hex(),
            tuple(sorted(allowed)),
        )


def _check_signature(rules: ImaRules, digest: FileDigest, signature: bytes | None) -> None:
    if signature is None:
        raise EvidenceError("it has no signature")
    verify_ima_signature(signature, digest, rules.keys)
