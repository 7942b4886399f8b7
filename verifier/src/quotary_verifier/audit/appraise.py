# SPDX-License-Identifier: Apache-2.0
"""What a policy says of one period of a history: key, endorsement, kind of TPM, clock, platform and models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from quotary_verifier.audit.bootlogs import ReplayedLogs
from quotary_verifier.audit.boots import OpenPeriod
from quotary_verifier.audit.findings import Code
from quotary_verifier.audit.reading import Absent, Blobs
from quotary_verifier.audit.report import AuditedModel
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tpm_keys import AttestationKey
from quotary_verifier.logs.ima import IMA_PCR
from quotary_verifier.logs.workload import TYPE_ENGINE, TYPE_MODEL, WorkloadLog
from quotary_verifier.policy.appraise import appraise_platform
from quotary_verifier.policy.findings import PlatformEvidence, shown
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.endorsement import Endorsement, endorse
from quotary_verifier.recipe.platform import Host
from quotary_verifier.recipe.software import software_signs
from quotary_verifier.recipe.witness import Witnessed
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_CERTIFICATE
from quotary_verifier.wire.tpm import Attest, parse_attest

FAIL: Final = "fail"
WARN: Final = "warn"
COULD_NOT: Final = "could-not"

_NAMED: Final = 3
"""Models that a message names."""


class Judged(NamedTuple):
    """One thing that the policy says: its rule, how grave it is, and in words what was found."""

    code: Code
    rule: str
    severity: str
    message: str


@frozen
class Appraised:
    """What the policy says of a period."""

    judged: tuple[Judged, ...]
    reference: str | None
    software: str
    endorsed_by: str | None
    epoch: int
    engine: str | None
    models: tuple[AuditedModel, ...]
    tolerances: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """Rejected, could-not, warned or accepted."""
        found = {item.severity for item in self.judged}
        if FAIL in found:
            return "rejected"
        if COULD_NOT in found:
            return "could-not"
        return "warned" if WARN in found else "accepted"


class Appraiser:
    """Applies one policy to the periods of one origin, at one time."""

    __slots__ = ("_at", "_blobs", "_host", "_key", "_policy")

    def __init__(self, policy: Policy, host: Host, key: AttestationKey, blobs: Blobs, at: int) -> None:
        self._policy, self._host, self._key, self._blobs, self._at = policy, host, key, blobs, at

    def appraise(
        self, period: OpenPeriod, log: WorkloadLog | None, logs: ReplayedLogs, seen: Witnessed | None
    ) -> Appraised:
        """Judge a period; `log` is its workload log, `seen` the first quorum that covers it."""
        judged: list[Judged] = []
        attest = parse_attest(period.attest)
        if not self._key.profile.own and not self._policy.unauthenticated_ak:
            said = (
                "any process with access to the TPM can use this AK, and the policy allows none without auth"
            )
            judged.append(Judged(Code.KEY, "ak.attributes", FAIL, said))
        if self._policy.safe_clock and not period.safe:
            said = "the TPM says that its clock may have gone back, and the policy demands a safe one"
            judged.append(Judged(Code.SAFE_CLOCK, "quote.clock", FAIL, said))
        endorsement = self._endorsement(period, seen, judged)
        software = self._software(attest, endorsement, log, judged)
        models: tuple[AuditedModel, ...] = ()
        engine, epoch = None, -1
        if log is not None:
            epoch = log.epoch
            models = tuple(self._models(log, judged))
            self._served(models, judged)
            engines = [
                item.event.name for item in log.current if item.event and item.event.type == TYPE_ENGINE
            ]
            engine = engines[0] if engines else None
        reference, tolerances = self._platform(attest, period, log, logs, judged)
        return Appraised(
            tuple(judged),
            reference,
            software,
            None if endorsement is None else endorsement.authority,
            epoch,
            engine,
            models,
            tolerances,
        )

    def _endorsement(
        self, period: OpenPeriod, seen: Witnessed | None, judged: list[Judged]
    ) -> Endorsement | None:
        host = self._host
        rule, code = "ak.endorsement", Code.ENDORSEMENT
        try:
            certificates = tuple(self._blobs.get(name, MAX_CERTIFICATE) for name in period.certificates)
        except Absent as error:
            judged.append(Judged(code, rule, COULD_NOT, f"a certificate of the AK is missing: {error}"))
            return None
        except (MalformedError, EvidenceError) as error:
            judged.append(Judged(code, rule, FAIL, str(error)))
            return None
        try:
            endorsement = endorse(
                self._policy,
                host.origin,
                host.genesis.host,
                host.spki,
                certificates,
                self._at,
                seen,
            )
        except (MalformedError, EvidenceError) as error:
            judged.append(Judged(code, rule, FAIL, str(error)))
        except UnsupportedError as error:
            judged.append(Judged(code, rule, COULD_NOT, str(error)))
        else:
            if endorsement.problem:
                said = f"the origin is pinned, and its certificate does not hold: {endorsement.problem}"
                judged.append(Judged(code, rule, WARN, said))
            return endorsement
        return None

    def _software(
        self,
        attest: Attest,
        endorsement: Endorsement | None,
        log: WorkloadLog | None,
        judged: list[Judged],
    ) -> str:
        signs = software_signs(attest, endorsement, log)
        if signs and not self._policy.software_tpm:
            said = f"this is a software TPM ({signs[0]}), which the policy does not allow"
            judged.append(Judged(Code.TPM_KIND, "tpm.kind", FAIL, said))
        return "; ".join(signs)

    def _models(self, log: WorkloadLog, judged: list[Judged]) -> Iterator[AuditedModel]:
        """Yield the models of an epoch, any of which may have served in it."""
        if log.unknown:
            judged.append(Judged(Code.WORKLOAD, "workload", COULD_NOT, log.unknown))
        rules = self._policy.models
        for item in log.current:
            event = item.event
            if event is None or event.type != TYPE_MODEL:
                continue
            allowed = None
            if rules:
                allowed = any(
                    rule.name in (None, event.name) and rule.weights in (None, event.digest) for rule in rules
                )
            yield AuditedModel(event.name, event.digest.hex(), allowed)

    def _served(self, models: tuple[AuditedModel, ...], judged: list[Judged]) -> None:
        """Judge what may have served: nobody but the records tells which of the models made an output."""
        others = [shown(model.name) for model in models if model.allowed is False]
        rules = self._policy.workload
        if not others or (rules is not None and rules.only_models):  # those rules say it themselves
            return
        names = f"{', '.join(others[:_NAMED])}{' and others' if len(others) > _NAMED else ''}"
        if len(others) == len(models):
            said = f"none of the models that may have served is one that the policy allows: {names}"
            judged.append(Judged(Code.PLATFORM, "model", FAIL, said))
        else:
            said = f"models may have served beside those that the policy allows: {names}"
            judged.append(Judged(Code.PLATFORM, "model", WARN, said))

    def _platform(
        self,
        attest: Attest,
        period: OpenPeriod,
        log: WorkloadLog | None,
        logs: ReplayedLogs,
        judged: list[Judged],
    ) -> tuple[str | None, tuple[str, ...]]:
        """Hold the quoted values and the boot's logs against the policy; return reference set and tolerances."""
        identity = self._host.identity
        pcrs = dict.fromkeys(range(16), ZERO) | period.pcrs | {IMA_PCR: period.ima}
        firmware, ima, missing = logs.of(pcrs)
        evidence = PlatformEvidence(
            origin=self._host.origin,
            pcrs=pcrs,
            moving=frozenset({identity.chain_pcr, identity.workload_pcr}),
            clock=attest.clock,
            own_key=self._key.profile.own,
            workload=log,
            firmware=firmware,
            ima=ima,
            missing=missing,
        )
        appraisal = appraise_platform(self._policy, evidence, self._at)
        judged += [
            Judged(Code.PLATFORM, item.rule, item.severity, item.message) for item in appraisal.findings
        ]
        return appraisal.reference, appraisal.tolerances
