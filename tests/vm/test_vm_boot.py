# SPDX-License-Identifier: Apache-2.0
"""One measured boot from end to end, which CI runs too: the agent on `device:/dev/tpmrm0` of a host with IMA."""

from __future__ import annotations

from pathlib import Path

import pytest
from vm_boot_disk import Boot
from vm_cases import check, keep, learn, run_unknown_program
from vm_guest import Machine
from vm_image import Image

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]


def test_a_measured_host_serves_under_a_learned_policy_until_it_runs_an_unknown_program(
    image: Image, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    with Machine(tmp_path / "machine", image, Boot.of(image)).boot() as guest:
        first = keep(guest, tmp_path / "first")
        learn([first], policy, guest.origin)
        accepted = check(keep(guest, tmp_path / "again"), policy)
        assert accepted.code == 0, accepted.words
        path = run_unknown_program(guest)
        refused = check(keep(guest, tmp_path / "after"), policy)
    assert refused.code == 1, refused.words
    assert [finding["path"] for finding in refused.findings] == [path]
