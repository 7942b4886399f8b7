# SPDX-License-Identifier: Apache-2.0
"""`[[root]]` of the configuration: what `attest agent run`, `status` and `doctor` make of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from agents import make_state
from cca_tokens import RAK, pem_key
from services import service
from tpms import Tpm

from quotary_attest.config import ConfigError, load_config, missing_files
from quotary_attest.config.sections import ENDORSING, ROOT_KINDS
from quotary_attest.tee.opening import ROOTS
from quotary_cli.agent_roots import open_endorsing, open_roots, roots_text
from quotary_cli.main import run
from quotary_cli.output import ExitCode, Failure

STATE = '[state]\nfolder = "/var/lib/quotary/origin"\n'


@pytest.fixture
def state(tpm: Tpm, tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    return folder


def config_file(tpm: Tpm, state: Path, text: str) -> Path:
    file = state.parent / "agent.toml"
    file.write_text(f'[state]\nfolder = "{state}"\n[tpm]\ntcti = "{tpm.tcti}"\n{text}')
    return file


def command(*arguments: str) -> int:
    """Run a command of the agent and return its exit code."""
    try:
        run(["agent", *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def absent(folder: Path, **options: object) -> str:
    """A root whose interface is not there."""
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
    return f'[[root]]\nkind = "sev-snp"\ndevice = "{folder / "tsm"}"\n{lines}'


def test_the_configuration_knows_the_roots_that_there_are() -> None:
    assert (*ROOTS, ENDORSING) == ROOT_KINDS
    for kind in ROOTS:
        text = f'{STATE}[[root]]\nkind = "{kind}"\nevery = 7\nseconds = 2\n'
        (root,) = open_roots(load_config(text))
        assert (root.required, root.every, root.deadline) == (False, 7, 2.0)
        assert root.root.identifier.split("/")[1] == kind.removesuffix("-tpm")


def test_the_root_that_endorses_the_key_has_no_line_and_is_not_among_those_that_bind() -> None:
    config = load_config(f'{STATE}[[root]]\nkind = "azure"\nrequired = true\ncollateral = "/kept"\n')
    assert open_roots(config) == ()
    endorsing = open_endorsing(config)
    assert endorsing is not None
    assert (endorsing.required, endorsing.endorser.describe()) == (
        True,
        "the paravisor's report in nv index 0x01400001",
    )
    assert open_endorsing(load_config(STATE)) is None


@pytest.mark.parametrize(("kind", "shown"), [("sev-snp", "/elsewhere"), ("nitro", "/elsewhere")])
def test_a_device_stands_where_the_configuration_says(kind: str, shown: str) -> None:
    (root,) = open_roots(load_config(f'{STATE}[[root]]\nkind = "{kind}"\ndevice = "{shown}"\n'))
    assert shown in root.root.describe()


async def test_an_agent_goes_on_without_a_root_that_it_does_not_need_and_says_so(
    tpm: Tpm, tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tpm, state, absent(state.parent, every=1))
    async with service(tmp_path, "--config", file) as agent:
        assert "quotary/sev-snp/v1" in await agent.logged("commits go on without")
        assert await asyncio.to_thread(command, "status", "--state", str(state)) == 0
        shown = capsys.readouterr().out
        assert "quotary/sev-snp/v1 (every 1, 0 bound, 1 failed)" in shown


async def test_an_agent_does_not_come_up_without_a_root_that_every_commit_needs(
    tpm: Tpm, tmp_path: Path, state: Path
) -> None:
    file = config_file(tpm, state, absent(state.parent, required=True))
    async with service(tmp_path, "--config", file, wait=False) as agent:
        assert "configfs-tsm" in await agent.logged("quotary/sev-snp/v1, which every commit needs")
        assert await agent.ended() == 4


def test_the_doctor_says_that_a_configured_root_is_not_there(
    tpm: Tpm, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tpm, state, absent(state.parent, required=True))
    assert command("doctor", "--config", str(file), "--json") == 4
    found = {each["what"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert found["tee sev-snp"]["health"] == "wrong"


def test_a_root_that_fails_is_shown_with_its_reason() -> None:
    root = {
        "identifier": "quotary/tdx/v1",
        "required": True,
        "every": 1,
        "bound": 2,
        "failed": 3,
        "error": "gone",
    }
    assert roots_text([root]) == "quotary/tdx/v1 (required, 2 bound, 3 failed): gone"


def test_platform_keys_of_a_realm_are_read_and_a_file_that_has_none_is_told(tmp_path: Path) -> None:
    file = tmp_path / "platform.pem"
    text = f'{STATE}[[root]]\nkind = "cca"\nplatform_keys = "{file}"\n'
    file.write_text(f"the platforms of hall 7\n{pem_key()}{pem_key(RAK)}")
    (root,) = open_roots(load_config(text))
    assert root.root.identifier == "quotary/cca/v1"
    for content, why in (
        ("", "no public key"),
        (pem_key() * 2, "stands there twice"),
        (pem_key()[:-30], "cut off"),
    ):
        file.write_text(content)
        with pytest.raises(Failure, match=why) as error:
            open_roots(load_config(text))
        assert error.value.code is ExitCode.USAGE
        assert str(file) in str(error.value)
    file.unlink()
    assert [problem.path for problem in missing_files(load_config(text))] == ["root[0].platform_keys"]
    with pytest.raises(Failure, match="no such file"):
        open_roots(load_config(text))


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ('kind = "tdx"\nplatform_keys = "/keys"\n', r"root\[0\]\.platform_keys"),
        ('kind = "cca"\ncollateral = "/folder"\n', r"root\[0\]\.collateral"),
        ('kind = "cca"\nprivlevel = 0\n', r"root\[0\]\.privlevel"),
    ],
)
def test_what_a_kind_does_not_have_is_no_setting_of_it(line: str, path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        load_config(f"{STATE}[[root]]\n{line}")
