# SPDX-License-Identifier: Apache-2.0
"""Which roots a machine has, and why not the others: for `attest tee status` and the doctor."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from amd_pki import AmdForge
from tee_devices import FakeNsm, FakeNvml, FakeTsm, failure, made_file, snp_mint

from quotary_attest.doctor import Health
from quotary_attest.doctor_tee import examine_tee, places_of
from quotary_attest.tee.configfs import KernelFiles
from quotary_attest.tee.opening import ROOTS, Places
from quotary_attest.tee.probe import Presence, Probe, probe

USABLE, UNUSABLE, ABSENT = Presence.USABLE, Presence.UNUSABLE, Presence.ABSENT


def places(tmp_path: Path, **given: object) -> Places:
    """A machine with nothing but what is given."""
    nothing = {
        "tsm": FakeTsm(bytes, missing=True),
        "nsm": tmp_path / "dev" / "nsm",
        "nitro_tpm": (str(tmp_path / "no-command"),),
        "nvml": FakeNvml(failing={"nvmlInit": "Driver Not Loaded"}),
        "system": tmp_path,
    }
    return Places(**{**nothing, **given})  # type: ignore[arg-type]


def found(where: Places) -> dict[str, Probe]:
    return {each.root: each for each in probe(where)}


def test_a_machine_without_any_is_told_what_each_takes(tmp_path: Path) -> None:
    seen = found(places(tmp_path))
    assert {each.presence for each in seen.values()} == {ABSENT}
    assert set(ROOTS) | {"azure"} == set(seen)
    assert all(each.hint for root, each in seen.items() if root != "azure")


@pytest.mark.parametrize(
    ("provider", "root"), [("sev_guest", "sev-snp"), ("tdx_guest", "tdx"), ("arm_cca_guest", "cca")]
)
def test_the_driver_that_answers_names_the_one_root_and_leaves_nothing_behind(
    provider: str, root: str, tmp_path: Path
) -> None:
    files = FakeTsm(snp_mint(AmdForge()), provider=provider)
    seen = found(places(tmp_path, tsm=files))
    assert seen[root].presence is USABLE
    others = {"sev-snp", "tdx", "cca"} - {root}
    assert all(seen[other].presence is ABSENT and provider in seen[other].text for other in others)
    assert files.entries == {}
    assert files.asked == []


def test_what_keeps_this_user_or_an_old_kernel_from_reports_is_told(tmp_path: Path) -> None:
    denied = found(places(tmp_path, tsm=FakeTsm(bytes, denied=True)))["sev-snp"]
    assert (denied.presence, denied.text) == (UNUSABLE, "this user may not ask the kernel for reports")
    assert "root" in denied.hint
    made_file(tmp_path / "dev" / "sev-guest")
    old = found(places(tmp_path))["sev-snp"]
    assert (old.presence, old.text) == (
        UNUSABLE,
        "the kernel has no configfs-tsm, but there is /dev/sev-guest",
    )


def test_a_security_module_that_can_be_opened_is_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = made_file(tmp_path / "dev" / "nsm")
    assert found(places(tmp_path))["nitro"].presence is USABLE
    assert found(places(tmp_path, nsm_ask=FakeNsm()))["nitro"].presence is USABLE

    def denied(*_: object) -> int:
        raise failure(errno.EACCES)

    with monkeypatch.context() as patched:
        patched.setattr("os.open", denied)
        seen = found(places(tmp_path))["nitro"]
    assert (seen.presence, seen.text) == (UNUSABLE, f"this user may not open {device}")


def test_awss_command_nvidias_driver_and_azures_mark_are_seen(tmp_path: Path) -> None:
    command = made_file(tmp_path / "nitro-tpm-attest")
    command.chmod(0o700)
    tag = b"7783-7084-3265-9085-8269-3286-77\n"
    made_file(tmp_path / "sys" / "class" / "dmi" / "id" / "chassis_asset_tag", tag)
    nvml = FakeNvml()
    seen = found(places(tmp_path, nitro_tpm=(str(command),), nvml=nvml))
    assert [seen[root].presence for root in ("nitro-tpm", "nvidia", "azure")] == [USABLE] * 3
    assert nvml.running == 0
    assert "attest agent init --ak 0x81000003" in seen["azure"].hint
    denied = FakeNvml(failing={"nvmlInit": "Insufficient Permissions"})
    assert found(places(tmp_path, nvml=denied))["nvidia"].presence is UNUSABLE


# --- the doctor


def test_the_doctor_says_of_a_configured_root_whether_it_can_be_used(tmp_path: Path) -> None:
    files = FakeTsm(snp_mint(AmdForge()))
    findings = {each.what: each for each in examine_tee(["sev-snp", "nvidia"], places(tmp_path, tsm=files))}
    assert set(findings) == {"tee sev-snp", "tee nvidia"}
    assert findings["tee sev-snp"].health is Health.GOOD
    assert findings["tee nvidia"].health is Health.WRONG
    assert "driver" in findings["tee nvidia"].hint


def test_the_doctor_tells_of_a_root_that_no_commit_uses(tmp_path: Path) -> None:
    files = FakeTsm(snp_mint(AmdForge()))
    [finding] = examine_tee([], places(tmp_path, tsm=files))
    assert (finding.what, finding.health) == ("tee sev-snp", Health.GOOD)
    assert "no commit is bound to it" in finding.text
    assert "[[root]]" in finding.hint


def test_the_doctor_says_once_what_keeps_several_roots_from_being_used(tmp_path: Path) -> None:
    [finding] = examine_tee([], places(tmp_path, tsm=FakeTsm(bytes, denied=True)))
    assert finding.what == "tee sev-snp, tdx, cca"
    assert "root" in finding.hint


def test_the_doctor_says_that_there_is_none(tmp_path: Path) -> None:
    [finding] = examine_tee([], places(tmp_path))
    assert finding.what == "tee"
    assert finding.health is Health.GOOD


def test_devices_that_a_configuration_names_are_looked_for_there(tmp_path: Path) -> None:
    where = places_of({"tdx": tmp_path / "reports", "nitro": tmp_path / "nsm", "nvidia": None})
    assert where.tsm == KernelFiles(tmp_path / "reports")
    assert where.nsm == tmp_path / "nsm"
    assert places_of({"cca": tmp_path / "realms"}).tsm == KernelFiles(tmp_path / "realms")
