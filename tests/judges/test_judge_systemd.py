# SPDX-License-Identifier: Apache-2.0
"""systemd's own programs judge the units, and the sandbox is held against what an agent really asks of the kernel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from agents import make_state
from scripted_engine import Call, completion, scripted_engine
from services import service
from tpms import Tpm

from quotary_attest.config import load_config

pytestmark = pytest.mark.judge

SHARE = Path(__file__).parents[2] / "attest" / "share" / "systemd"
UNIT = SHARE / "quotary-agent.service"
MOST_EXPOSURE = 20
"""Of 100, by `systemd-analyze security`; a service without a sandbox has 96."""

_MDWE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(65, 1, 0, 0, 0) != 0:
    sys.exit(77)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def program(name: str) -> str:
    """A program of the system; skips the test without it."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def setting(name: str) -> list[str]:
    """Every value that the service gives to a setting."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as they would be installed, with a program that is there."""
    for file in SHARE.glob("quotary-*"):
        text = file.read_text().replace("/opt/quotary/bin/attest", "/bin/true")
        (tmp_path / file.name).write_text(text)
    return tmp_path


def test_systemd_has_nothing_to_say_of_the_units(units: Path) -> None:
    files = sorted(units.glob("quotary-*"))
    assert len(files) == 4
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_has_nothing_to_say_of_the_service_without_a_tpm(units: Path) -> None:
    folder = units / "quotary-agent.service.d"
    folder.mkdir()
    dropped = (SHARE / "tee.conf").read_text()

    def said(more: str) -> str:
        (folder / "tee.conf").write_text(dropped + more)
        files = sorted(each for each in units.glob("quotary-*") if each.is_file())
        command = [program("systemd-analyze"), "verify", "--man=no", *files]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    assert said("") == ""
    assert "NoSuchKey" in said("NoSuchKey=1\n"), "the file is not read"
    assert {"AssertPathExists=", "SupplementaryGroups=", "DeviceAllow="} <= set(dropped.splitlines())


def test_the_service_exposes_little_by_systemds_own_measure(units: Path) -> None:
    done = subprocess.run(
        [
            *(program("systemd-analyze"), "security", "--offline=true", "--no-pager"),
            *(f"--threshold={MOST_EXPOSURE}", units / UNIT.name),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:]


def test_the_sockets_of_the_units_are_those_of_the_configuration_beside_them() -> None:
    config = load_config((SHARE / "agent.toml").read_text())
    used = {config.local.socket, config.metrics.socket, *(proxy.socket for proxy in config.proxy)}
    passed = {
        name
        for file in SHARE.glob("*.socket")
        for name in re.findall(r"^FileDescriptorName=(.*)$", file.read_text(), re.MULTILINE)
    }
    assert used == passed
    assert sorted(setting("Sockets")[0].split()) == sorted(file.name for file in SHARE.glob("*.socket"))
    assert str(config.state.folder).startswith("/var/lib/" + setting("StateDirectory")[0] + "/")


def test_systemd_makes_the_user_of_the_units(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "group").write_text("tss:x:109:\n")
    subprocess.run(
        [program("systemd-sysusers"), f"--root={tmp_path}", SHARE / "quotary.sysusers"],
        check=True,
        capture_output=True,
    )
    assert "quotary:" in (tmp_path / "etc" / "passwd").read_text()
    assert "tss:x:109:quotary" in (tmp_path / "etc" / "group").read_text()


def allowed_calls() -> set[str]:
    """System calls that the service's filters let through."""

    def members(group: str) -> set[str]:
        shown = subprocess.run(
            [program("systemd-analyze"), "syscall-filter", "--no-pager", group],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found = set()
        for line in shown.splitlines()[1:]:
            name = line.split("#")[0].strip()
            found |= members(name) if name.startswith("@") else {name} - {""}
        return found

    allowed: set[str] = set()
    for value in setting("SystemCallFilter"):
        names = set().union(*(members(group) for group in value.lstrip("~").split()))
        allowed = allowed - names if value.startswith("~") else allowed | names
    return allowed


@pytest.mark.slow
async def test_an_agent_works_with_the_system_calls_that_the_service_lets_it_make(
    tpm: Tpm, tmp_path: Path
) -> None:
    strace, allowed = program("strace"), allowed_calls()
    state, log = tmp_path / "state", tmp_path / "calls"
    make_state(tpm, state)
    async with scripted_engine(_answer) as engine:
        (tmp_path / "weights").write_bytes(b"weights")
        file = tmp_path / "agent.toml"
        file.write_text(
            f'[state]\nfolder = "{state}"\n[tpm]\ntcti = "{tpm.tcti}"\n'
            f'[[model]]\nname = "m"\nfiles = ["{tmp_path}/weights"]\n[retention]\nkeep_days = 1\n'
            f'[[proxy]]\nupstream = "{engine.url}"\nlisten = "127.0.0.1:0"\n[metrics]\nlisten = "127.0.0.1:0"\n'
        )
        # -D: the agent, not its tracer, is the process that is told to stop
        tracing = [strace, "-D", "-f", "-qq", "-o", str(log), "-e", "signal=none"]
        async with service(tmp_path, "--config", file, through=tracing) as agent:
            await _use(agent.ready["proxy"], agent.ready["metrics"])
    made = set(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE))
    assert {"fdatasync", "accept4", "sendto"} <= made, "the trace is empty"
    of_root = (
        set() if os.geteuid() else {"fchown"}
    )  # SQLite calls it for root alone, which the service is not
    assert not sorted(made - allowed - of_root - {"execve"})


@pytest.fixture
def _forbidding() -> None:
    probe = subprocess.run([sys.executable, "-c", _MDWE, "-c", ""], check=False)
    if probe.returncode == 77:
        pytest.skip("this kernel cannot forbid such memory")


@pytest.mark.slow
@pytest.mark.usefixtures("_forbidding")
async def test_an_agent_works_without_memory_that_can_be_written_and_executed(
    tpm: Tpm, tmp_path: Path
) -> None:
    assert setting("MemoryDenyWriteExecute") == ["yes"]
    state = tmp_path / "state"
    make_state(tpm, state)
    async with scripted_engine(_answer) as engine:
        file = tmp_path / "agent.toml"
        file.write_text(
            f'[state]\nfolder = "{state}"\n[tpm]\ntcti = "{tpm.tcti}"\n[metrics]\nlisten = "127.0.0.1:0"\n'
            f'[[proxy]]\nupstream = "{engine.url}"\nlisten = "127.0.0.1:0"\n'
        )
        (tmp_path / "mdwe.py").write_text(_MDWE)
        through = [sys.executable, str(tmp_path / "mdwe.py")]
        async with service(tmp_path, "--config", file, through=through) as agent:
            await _use(agent.ready["proxy"], agent.ready["metrics"])


async def _answer(call: Call) -> None:
    await call.answer(completion("hello"))


async def _use(proxy: str, metrics: str) -> None:
    """Have an output attested, and look at the figures."""
    async with aiohttp.ClientSession() as session:
        async with session.post(proxy + "/v1/chat/completions", data=b"{}") as response:
            assert "attestation" in json.loads(await response.read())
        async with session.get(metrics) as response:
            assert b"quotary_outputs_total" in await response.read()
