# SPDX-License-Identifier: Apache-2.0
"""Origins that a realm of Arm CCA alone binds: by platform keys of the policy, and by what was started there."""

from __future__ import annotations

import cca_tokens
import pytest
from alone_forge import AloneForge
from forge import NOW
from tee_makers import outcome, said

from quotary_verifier import ClaimSource, Outcome, Question, Report, Step, load_policy
from quotary_verifier.errors import PolicyError
from quotary_verifier.evidence.tee.shape import report_data
from quotary_verifier.tlog.hardware import IDENTIFIER_CCA
from quotary_verifier.wire.tee_support import TeeSupport

BARE = 'schema = "quotary-policy/v1"\n'
RIM = f'rim = ["{"01" * 32}"]\n'


def realm(digest: bytes, genesis: bytes) -> tuple[bytes, TeeSupport]:
    return cca_tokens.cca_mint(report_data(digest, genesis)), TeeSupport(IDENTIFIER_CCA, {})


def required(more: str = "", key: str | None = None) -> str:
    return f'[tee]\nrequired = ["cca"]\n[tee.cca]\nkeys = ["""{key or cca_tokens.pem_key()}"""]\n{more}'


def judged(forge: AloneForge, policy: str) -> Report:
    return outcome(forge.attestation().encode(), Question(forge.body, NOW), policy)


def test_a_pinned_origin_of_a_realm_verifies_by_the_platforms_key() -> None:
    forge = AloneForge(tees=(realm,))
    report = judged(forge, forge.pinned(required()))
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert said(report, "root") == ["cca: this commit, and the start of the realm that asked for it"]
    report = judged(forge, forge.pinned(required(key=cca_tokens.pem_key(cca_tokens.RAK))))
    assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.TEE)
    report = judged(forge, forge.pinned(""))
    assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.TEE)


def test_an_origin_of_a_realm_that_nobody_pins_is_known_by_its_rim_alone() -> None:
    forge = AloneForge(tees=(realm,))
    assert judged(forge, BARE + required(RIM)).outcome is Outcome.VERIFIED
    other = judged(forge, BARE + required(f'rim = ["{"02" * 32}"]\n'))
    assert (other.outcome, other.failing) == (Outcome.REJECTED, Step.TEE)
    for more in ("", f'devices = ["{"03" * 33}"]\n', RIM + "debug = true\n"):
        with pytest.raises(PolicyError, match="it would accept nothing"):
            load_policy((BARE + required(more)).encode())


def test_a_model_is_measured_where_the_realm_is_an_image_that_serves_its_weights() -> None:
    forge = AloneForge(tees=(realm,))
    weights = said(judged(forge, forge.pinned(required())), "model_weights")[0]
    image = f'[[tee.cca.image]]\nweights = "{weights}"\nregisters = {{ rim = ["{"01" * 32}"] }}\n'
    report = judged(forge, forge.pinned(required(image)))
    assert report.outcome is Outcome.VERIFIED, report.reason
    (model,) = [claim for claim in report.claims if claim.name == "model_weights"]
    assert model.source is ClaimSource.MEASURED
