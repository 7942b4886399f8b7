# SPDX-License-Identifier: Apache-2.0
"""The commands on the vTPM of an Azure confidential VM: init, doctor, verify, inspect, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from agents import Naps, running
from amd_pki import NOW, AmdForge
from soft_snp import in_its_time
from tee_defects import LAUNCH, pem
from tpms import Tpm
from vtpm import boot_azure, collateral, put_key

from quotary_attest.config import ConfigError, load_config
from quotary_attest.doctor import Finding, Health
from quotary_attest.doctor_azure import examine_azure
from quotary_attest.engine.endorsing import Endorsing
from quotary_attest.state import read_identity
from quotary_attest.tpm.hcl import HclEndorser
from quotary_cli.main import run
from quotary_verifier.evidence.tee.lines import TeeRoots

AMD = AmdForge()
ROOTS = TeeRoots(amd=AMD.roots())
BODY = b"an answer"
POLICY = f"""schema = "quotary-policy/v1"
[tpm]
software = true
unauthenticated_ak = true
[[pin]]
origin = "ORIGIN"
[tee]
required = ["azure"]
[tee.azure.sev-snp]
generations = ["genoa"]
measurements = ["{LAUNCH}"]
[tee.roots.amd]
genoa = '''
{pem(AMD.ark())}'''
"""


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    capsys.readouterr()
    code = run([str(each) for each in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def init(capsys: pytest.CaptureFixture[str], tpm: Tpm, folder: Path, *more: object) -> tuple[int, str, str]:
    host = ("--host", "vm.example.net", "--tpm", tpm.tcti)
    return command(capsys, "agent", "init", "--state", folder, *host, *more)


async def test_an_origin_made_by_the_command_attests_and_the_verdict_names_azures_part(
    tpm: Tpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge, folder = boot_azure(tpm, amd=AMD), tmp_path / "state"
    code, out, _ = init(capsys, tpm, folder, "--ak", "0x81000003", "--json")
    assert code == 0
    assert json.loads(out)["ak"] == "0x81000003: any process with the tpm can quote"
    endorsing = Endorsing(HclEndorser(collateral(tmp_path / "kept", forge), ROOTS, lambda: NOW), True)
    world = in_its_time(sleep=Naps())
    async with running(tpm, folder, world=world, endorsing=endorsing, tee_roots=ROOTS) as agent:
        encoded = (await agent.attest(BODY)).encoded
    (tmp_path / "out").write_bytes(BODY)
    (tmp_path / "out.attestation").write_bytes(encoded)
    (tmp_path / "policy.toml").write_text(POLICY.replace("ORIGIN", agent.origin))
    code, out, _ = command(
        capsys, "verify", tmp_path / "out", "--attestation", tmp_path / "out.attestation",
        "--policy", tmp_path / "policy.toml", "--at", "2026-06-01T00:00:00Z", "--json",
    )  # fmt: skip
    shown = json.loads(out)
    assert code == 0, shown.keys()
    said = {claim["name"]: claim["value"] for claim in shown["results"][0]["verdict"]["claims"]}
    assert code == 0
    assert said["tee.azure.vm"] == forge.settings["vmUniqueId"]
    code, out, _ = command(capsys, "inspect", tmp_path / "out.attestation", "--json")
    (support,) = json.loads(out)["content"]["supports"]
    assert code == 0
    assert support["endorsements"]["hcl"][0]["report"]["vm"]["vmUniqueId"] == forge.settings["vmUniqueId"]


def test_init_refuses_what_cannot_be_an_origins_key(
    tpm: Tpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_key(tpm, attributes=0x40472)
    (tmp_path / "auth").write_text("secret\n")
    for more, code, why in (
        (("--ak", "0x81000003"), 4, "restricted not set"),
        (("--ak", "0x81000009"), 4, "no key at 0x81000009"),
        (("--ak", "0x01c00002"), 4, "not the handle of a persistent key"),
        (("--ak", "key"), 2, "no handle such as"),
        (("--ak-auth-file", tmp_path / "auth"), 2, "needs --ak"),
    ):
        found, _, err = init(capsys, tpm, tmp_path / "state", *more)
        assert (found, why in err) == (code, True), err
    assert not (tmp_path / "state").exists()


def found_by(
    tpm: Tpm, folder: Path, endorser: HclEndorser, *, required: bool = True, now: Any = NOW
) -> Finding:
    (finding,) = examine_azure(read_identity(folder), tpm.tcti, endorser, required=required, now=now)
    return finding


def test_the_doctor_says_whether_the_key_is_endorsed_and_for_how_long(
    tpm: Tpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge, folder = boot_azure(tpm, amd=AMD), tmp_path / "state"
    assert init(capsys, tpm, folder, "--ak", "0x81000003")[0] == 0
    kept = collateral(tmp_path / "kept", forge)
    good = found_by(tpm, folder, HclEndorser(kept, ROOTS, lambda: NOW))
    assert (good.health, "sev-snp endorses the attestation key" in good.text) == (Health.GOOD, True)
    nothing = HclEndorser(None, ROOTS, lambda: NOW)
    for required, health in ((True, Health.WRONG), (False, Health.WARNING)):
        bad = found_by(tpm, folder, nothing, required=required)
        assert (bad.health, "nothing stored" in bad.text, bool(bad.hint)) == (health, True, True)
    own = tmp_path / "own"
    assert init(capsys, tpm, own)[0] == 0
    other = found_by(tpm, own, HclEndorser(kept, ROOTS, lambda: NOW))
    assert (other.health, "--ak 0x81000003" in other.hint) == (Health.WRONG, True)


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ("every = 3", "root[0].every"),
        ('device = "/dev/tpm0"', "root[0].device"),
        ("privlevel = 1", "root[0].privlevel"),
    ],
)
def test_a_root_that_binds_nothing_has_no_keys_of_one_that_does(more: str, path: str, tmp_path: Path) -> None:
    text = f'[state]\nfolder = "{tmp_path}"\n[[root]]\nkind = "azure"\ncollateral = "{tmp_path}"\n'
    assert load_config(text).root[0].kind == "azure"
    with pytest.raises(ConfigError) as caught:
        load_config(text + more)
    assert [problem.path for problem in caught.value.problems] == [path]
