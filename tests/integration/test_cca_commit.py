# SPDX-License-Identifier: Apache-2.0
"""One commit that a software TPM and a realm bind, through the kernel's interface, and what `attest verify` says of it.

The realm is minted: the interface in memory gives tokens as the driver does, signed by a platform key of the tests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from agents import Naps, running
from cca_tokens import RAK, cca_mint, pem_key, platform_key
from tee_devices import FakeTsm
from tpms import Tpm

from quotary_attest.agent import World
from quotary_attest.engine.further import FurtherRoot
from quotary_attest.tee.root import DeviceRoot, TeeOptions
from quotary_attest.tee.tsm import CcaDevice
from quotary_cli.main import run
from quotary_verifier.evidence.tee.lines import TeeRoots

BODY = b"an answer"
RIM = "01" * 32


@dataclass
class Held:
    """What a consumer has in a folder: an output, its attestation and a policy."""

    folder: Path
    origin: str

    def policy(self, rules: str) -> None:
        """Put a policy beside it, for this origin on a software TPM."""
        text = f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{self.origin}"\n[tpm]\nsoftware = true\n{rules}'
        (self.folder / "policy.toml").write_text(text)

    def verify(self, *options: str) -> int:
        """Run `attest verify`, and return its exit code."""
        return run(
            ["verify", str(self.folder / "answer"), "--policy", str(self.folder / "policy.toml"), *options]
        )


def required(key: str, more: str = f'rim = ["{RIM}"]\n') -> str:
    return f'[tee]\nrequired = ["cca"]\n[tee.cca]\nkeys = ["""\n{key}"""]\n{more}'


@pytest.fixture
async def held(tpm: Tpm, tmp_path: Path) -> Held:
    files = FakeTsm(cca_mint, provider="arm_cca_guest", lost=1, busy=1)
    options = TeeOptions(roots=TeeRoots(cca=(platform_key(),)))
    root = DeviceRoot(CcaDevice(files, lambda _: None), options)
    world = World(sleep=Naps())
    async with running(
        tpm, tmp_path / "state", world=world, roots=[FurtherRoot(root, required=True)]
    ) as agent:
        given = (await agent.attest(BODY)).encoded
        (tmp_path / "answer").write_bytes(BODY)
        (tmp_path / "answer.attestation").write_bytes(given)
        return Held(tmp_path, agent.origin)


async def test_a_commit_of_a_tpm_and_a_realm_is_verified_by_the_command(
    held: Held, capsys: pytest.CaptureFixture[str]
) -> None:
    held.policy(required(pem_key()))
    assert held.verify() == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "root cca: this commit, and the start of the realm that asked for it [hardware]" in shown
    assert "tee.cca accepted by the policy's rules [hardware]" in shown
    assert held.verify("--json") == 0
    report = json.loads(capsys.readouterr().out)
    claims = {claim["name"]: claim for claim in report["results"][0]["verdict"]["claims"]}
    assert claims["tee.cca"]["value"] == "accepted by the policy's rules"
    assert claims["tee.cca.rim"] == {"name": "tee.cca.rim", "value": RIM, "source": "hardware"}
    assert claims["tee.cca.root"]["source"] == "endorsed"
    assert platform_key().sha256.hex() in claims["tee.cca.root"]["value"]


@pytest.mark.parametrize(
    ("rules", "code", "why"),
    [
        (required(pem_key(RAK)), 1, "verifies by no platform key that was given"),
        (required(pem_key(), f'rim = ["{"02" * 32}"]\n'), 1, f"the rim {RIM} is not accepted"),
        ('[tee]\nrequired = ["cca"]\n', 2, "there is no table tee.cca"),
        ("", 0, "brings no key of its platform"),
    ],
    ids=["another platform", "another realm", "no keys", "no rules"],
)
async def test_what_the_policy_says_of_realms_decides(
    held: Held, rules: str, code: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    held.policy(rules)
    assert held.verify() == code
    told = capsys.readouterr()
    assert why in " ".join((told.out + told.err).split())
