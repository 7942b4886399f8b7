# SPDX-License-Identifier: Apache-2.0
"""A policy learned from two boots of a measured machine that were kept (tests/vectors/vm), and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quotary_cli.main import run

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "vm"
FIRST, SECOND, SECURE = (VECTORS / name for name in ("first-boot", "second-boot", "secure-boot"))


def about(boot: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((boot / "about.json").read_text())
    return said


def learn(boots: list[Path], policy: Path) -> Path:
    origins = {about(boot)["origin"] for boot in boots}
    options = [part for origin in origins for part in ("--pin", origin)]
    options += [part for boot in boots for part in ("--with-logs", str(boot))]
    evidence = [str(boot / "output.attestation") for boot in boots]
    at = str(max(about(boot)["at"] for boot in boots))
    arguments = ["policy", "learn", *options, "--software-tpm", "--at", at, "--out", str(policy), *evidence]
    assert run(arguments) == 0
    return policy


class Check:
    """Holds a boot's evidence against a policy: exit code, and the findings."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, boot: Path, policy: Path) -> tuple[int, list[dict[str, Any]]]:
        self._capsys.readouterr()
        options = ["--policy", policy, "--with-logs", boot, "--at", about(boot)["at"], "--json"]
        code = run(["policy", "check", str(boot / "output.attestation"), *map(str, options)])
        return code, json.loads(self._capsys.readouterr().out)["results"][0]["findings"]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    return Check(capsys)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learn([FIRST, SECOND], tmp_path_factory.mktemp("policy") / "policy.toml")


@pytest.mark.parametrize("boot", [FIRST, SECOND], ids=lambda boot: boot.name)
def test_the_boots_that_it_was_learned_from_are_accepted(boot: Path, policy: Path, check: Check) -> None:
    assert check(boot, policy) == (0, [])


def test_the_first_boot_alone_teaches_what_the_second_needs(tmp_path: Path, check: Check) -> None:
    assert check(SECOND, learn([FIRST], tmp_path / "policy.toml")) == (0, [])


def test_a_machine_that_boots_something_else_is_refused_by_loader_and_kernel(
    policy: Path, check: Check
) -> None:
    other = policy.with_name("other.toml")
    other.write_text(policy.read_text().replace(about(FIRST)["origin"], about(SECURE)["origin"]))
    code, findings = check(SECURE, other)
    assert code == 1
    assert any(one["pcr"] == 4 and "guest.efi" in one["message"] for one in findings), findings


def test_a_policy_for_one_boot_refuses_what_was_attested_before_and_after(policy: Path, check: Check) -> None:
    origin = about(FIRST)["origin"]
    for number, accepted, refused in ((2, FIRST, SECOND), (3, SECOND, FIRST)):
        window = f'[[platform.clock.boots]]\norigin = "{origin}"\nfirst = {number}\nlast = {number}\n'
        narrow = policy.with_name("narrow.toml")
        narrow.write_text(f"{policy.read_text()}\n{window}")
        assert check(accepted, narrow) == (0, [])
        code, (finding,) = check(refused, narrow)
        assert (code, finding["rule"]) == (1, "platform.clock.boots")
