# SPDX-License-Identifier: Apache-2.0
"""Rules that hold for a verification as a whole: no help from outside, nothing by accident, everything said."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from forge import NOW, Forge

import quotary_verifier
from quotary_verifier import (
    CheckState,
    EvidenceError,
    NotChecked,
    Outcome,
    Question,
    Rejected,
    Report,
    Step,
    UnsupportedError,
    load_policy,
    verify,
)
from quotary_verifier.logs.cel import content_digest
from quotary_verifier.logs.workload import WorkloadEvent, reveal, separator
from quotary_verifier.recipe.run import Run

VECTOR = Path(__file__).parents[2] / "vectors" / "attestation" / "everything_holds.json"


def judge(forge: Forge, data: bytes, policy: str, **question: object) -> Report:
    """Verify, and return the report whatever the outcome."""
    try:
        return verify(
            data, replace(Question(forge.body, at=NOW), **question), load_policy(policy.encode())
        ).report
    except (Rejected, NotChecked) as error:
        return error.report


_ALONE = """
import base64, json, sys, time
case = json.load(open(sys.argv[1]))
from quotary_verifier import Question, load_policy, verify

def refuse(*_, **__):
    raise AssertionError("the verifier asked for the time")

def audit(event, _):
    if event.split(".")[0] in {"open", "socket", "subprocess", "os", "shutil", "urllib"}:
        raise AssertionError(event)

attestation = base64.b64decode(case["attestation"])
question = Question(base64.b64decode(case["output"]), at=case["at"])
policy = load_policy(case["policy"].encode())
verify(attestation, question, policy).report  # once before, so that all modules are loaded
time.time = time.time_ns = time.monotonic = refuse
sys.addaudithook(audit)
report = verify(attestation, question, policy).report
sys.stdout.write(json.dumps(report.as_json()))
"""


def _alone(**environment: str) -> bytes:
    command = [sys.executable, "-c", _ALONE, str(VECTOR)]
    done = subprocess.run(
        command, capture_output=True, env={**os.environ, **environment}, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_verifying_opens_no_file_and_no_connection_and_reads_no_clock_and_is_the_same_anywhere() -> None:
    here = _alone(TZ="UTC", LC_ALL="C", PYTHONHASHSEED="1")
    there = _alone(TZ="Asia/Kathmandu", LC_ALL="tr_TR.UTF-8", PYTHONHASHSEED="2")
    assert here == there
    assert json.loads(here)["outcome"] == "verified"


def test_the_verifier_imports_nothing_that_could_tell_the_time_or_reach_the_network() -> None:
    folder = Path(quotary_verifier.__file__).parent
    for file in folder.rglob("*.py"):
        text = file.read_text()
        for word in (
            "import time\n",
            "import socket",
            "import os\n",
            "import random",
            "import secrets",
            ".now(",
        ):
            assert word not in text, f"{file.name}: {word}"


STEPS = [step for step in Step if step not in {Step.BOOT_LOGS, Step.TEE}]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [EvidenceError, UnsupportedError])
def test_an_error_at_any_step_ends_without_a_verdict(
    step: Step, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    forge, do = Forge(), Run.do

    def failing(run: Run, at: Step, function: Any, *arguments: object) -> Any:
        def fail(*_: object) -> None:
            raise error("injected")

        return do(run, at, fail if at is step else function, *arguments)

    monkeypatch.setattr(Run, "do", failing)
    question = Question(forge.body, at=NOW, request=forge.request, nonce=forge.nonce)
    outcome = Rejected if error is EvidenceError else NotChecked
    with pytest.raises(outcome) as caught:
        verify(forge.attestation().encode(), question, load_policy(forge.policy().encode()))
    assert caught.value.report.failing is step
    assert caught.value.report.claims == ()


def test_there_is_no_verification_without_a_policy() -> None:
    forge = Forge()
    without: Any = verify
    with pytest.raises(TypeError):
        without(forge.attestation().encode(), Question(forge.body, at=NOW))


def test_a_report_says_time_policy_authority_pcrs_and_every_step() -> None:
    forge = Forge()
    policy = load_policy(forge.policy().encode())
    report = judge(forge, forge.attestation().encode(), forge.policy()).as_json()
    said = {claim["name"]: claim["value"] for claim in report["claims"]}
    assert (report["at"], report["policy"]) == (NOW, policy.digest.hex())
    assert said["authority"] == forge.authority.name
    assert {name for name in said if name.startswith("pcr_")} == {f"pcr_{n}" for n in (0, 2, 4, 7, 13, 15)}
    assert [check["code"] for check in report["checks"]] == [str(step) for step in Step]


def test_what_a_policy_tolerates_appears_in_every_verdict() -> None:
    forge = Forge()
    software = forge.attestation(firmware=0x2019_1023_0016_3636, safe=0).encode()
    report = judge(forge, software, forge.policy("[tpm]\nsoftware = true\n"), output=b"Paris.\n")
    said = {claim.name: claim.value for claim in report.claims}
    assert report.outcome is Outcome.VERIFIED
    assert "software TPM" in str(said["tpm_kind"])
    assert said["tpm_clock_safe"] is False
    assert any("newline" in text for text in report.tolerances)
    assert any("fixes no PCR" in text for text in report.notices)


def test_a_pin_of_another_origin_vouches_for_nobody() -> None:
    forge, other = Forge(), Forge()
    policy = f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{other.origin}"\n'
    assert judge(forge, forge.attestation().encode(), policy).failing is Step.AK_ENDORSEMENT


@dataclass
class ForgeOfTwoEpochs(Forge):
    """A host whose log has a second epoch, with the same model."""

    def events(self) -> list[bytes]:
        first = super().events()
        second = WorkloadEvent("model", self.model, self.weights, {}).encode()
        return [*first, second, separator(1, [content_digest(second)])]


def test_a_log_without_its_last_epoch_does_not_reach_the_quoted_value() -> None:
    forge = ForgeOfTwoEpochs()
    attestation = forge.attestation()
    cut = reveal(forge.events()[:4], frozenset({1}))
    support = replace(attestation.supports[0], workload_log=cut)
    report = judge(forge, replace(attestation, supports=(support,)).encode(), forge.policy())
    assert report.failing is Step.QUOTE_PCRS


def _crl(forge: Forge, serial: int) -> str:
    now = dt.datetime.fromtimestamp(NOW, dt.UTC)
    entry = (
        x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - dt.timedelta(hours=1))
    )
    builder = x509.CertificateRevocationListBuilder().issuer_name(forge.authority.certificate.subject)
    builder = builder.last_update(now - dt.timedelta(hours=1)).next_update(now + dt.timedelta(days=1))
    made = builder.add_revoked_certificate(entry.build()).sign(forge.authority.key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


def test_a_revoked_certificate_is_false_and_an_unknown_state_is_never_good() -> None:
    forge = Forge()
    assert forge.certificate is not None
    serial = x509.load_der_x509_certificate(forge.certificate).serial_number
    data = forge.attestation().encode()
    revoked = judge(forge, data, forge.policy(f'crls = ["""{_crl(forge, serial)}"""]\n'))
    good = judge(forge, data, forge.policy(f'crls = ["""{_crl(forge, serial + 1)}"""]\n'))
    unknown = judge(forge, data, forge.policy())
    required = judge(forge, data, forge.policy("revocation_required = true\n"))
    assert (revoked.outcome, revoked.failing) == (Outcome.REJECTED, Step.AK_ENDORSEMENT)
    states = [next(c.value for c in report.claims if c.name == "revocation") for report in (good, unknown)]
    assert states == ["good", "unknown"]
    assert required.outcome is Outcome.COULD_NOT_CHECK
    checks = {check.step: check.state for check in required.checks}
    assert checks[Step.AK_ENDORSEMENT] is CheckState.COULD_NOT_CHECK


@pytest.mark.parametrize(
    "text", ["aa " * 21 + " ", "AA" * 32, "sha256:sha256:" + "aa" * 32, "0x" + "aa" * 31]
)
def test_a_digest_in_a_policy_has_one_spelling(text: str) -> None:
    forge = Forge()
    with pytest.raises(quotary_verifier.PolicyError):
        load_policy(forge.policy(f'[platform.pcrs]\n0 = ["{text}"]\n').encode())
