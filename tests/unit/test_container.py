# SPDX-License-Identifier: Apache-2.0
"""The container file, as far as it can be judged without building it: sources, packages, user, command."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from quotary_attest.config import load_config
from quotary_cli.main import cli

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "attest" / "share" / "container"
MADE = {"dist/*.whl"}
"""What scripts/build makes."""


def steps() -> list[tuple[str, str]]:
    """Instruction and argument of every step."""
    text = (FOLDER / "Containerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines.split("\n") if line)
    ]


def arguments(instruction: str) -> list[str]:
    """Arguments of all steps of one kind."""
    return [rest for name, rest in steps() if name == instruction]


def test_every_source_that_is_copied_is_in_the_repository_or_made_by_the_build() -> None:
    stages = [rest.split(" AS ")[1] for rest in arguments("FROM") if " AS " in rest]
    for rest in arguments("COPY"):
        words = shlex.split(rest)
        if words[0].startswith("--from="):
            assert words[0].removeprefix("--from=") in stages
            continue
        for source in words[:-1]:
            tracked = subprocess.run(
                ["git", "ls-files", "--error-unmatch", source], cwd=ROOT, check=False, capture_output=True
            )
            assert source in MADE or not tracked.returncode, source


def test_python_packages_are_installed_by_the_lock_that_the_project_makes() -> None:
    installs = [step for rest in arguments("RUN") for step in rest.split("&&") if "pip install" in step]
    assert len(installs) == 3
    assert all("--require-hashes" in step or "--no-deps" in step for step in installs)
    assert "requirements-agent.lock" in (ROOT / "scripts" / "lock").read_text()


def test_the_lock_of_the_container_has_what_an_agent_needs_in_the_versions_that_are_tested() -> None:
    pins = {
        name: set(re.findall(r"^([a-z0-9-]+==[^ ;]+)", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("requirements-agent.lock", "requirements.lock")
    }
    agent, tested = pins["requirements-agent.lock"], pins["requirements.lock"]
    assert agent <= tested
    project = tomllib.loads((ROOT / "attest" / "pyproject.toml").read_text())["project"]
    needed = [*project["optional-dependencies"]["tpm"], *project["optional-dependencies"]["serve"]]
    names = {pin.partition("==")[0] for pin in agent}
    assert {re.split(r"[><=\[ ]", requirement)[0] for requirement in needed} <= names
    assert not names & {"pytest", "mypy", "ruff", "hypothesis"}


def packages() -> list[str]:
    """Debian packages of both stages."""
    found: list[str] = []
    for rest in arguments("RUN"):
        for step in rest.split("&&"):
            words = shlex.split(step)
            if words[:2] == ["apt-get", "install"]:
                found += [word for word in words[2:] if not word.startswith("--")]
    return found


def test_every_debian_package_is_known_to_debian() -> None:
    names = packages()
    assert len(names) > 10
    try:
        shown = subprocess.run(
            ["apt-cache", "show", "--no-all-versions", *names], check=False, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("this is not a Debian system")
    known = set(re.findall(r"^Package: (.*)$", shown.stdout, re.MULTILINE))
    if not known:
        pytest.skip("apt knows no packages here")
    assert not sorted(set(names) - known)


def test_the_agent_runs_as_a_user_without_privileges_over_a_volume_for_its_state() -> None:
    last = max(number for number, (name, _) in enumerate(steps()) if name == "FROM")
    final = steps()[last:]
    (user,) = [rest for name, rest in final if name == "USER"]
    assert user == "quotary"
    assert "useradd --system --uid 990 --gid quotary" in " ".join(arguments("RUN"))
    (volume,) = arguments("VOLUME")
    config = load_config((FOLDER / "agent.toml").read_text())
    assert volume in map(str, config.state.folder.parents)
    assert arguments("STOPSIGNAL") == ["SIGTERM"]


def test_the_command_and_the_ports_are_those_of_the_configuration() -> None:
    words = json.loads(arguments("ENTRYPOINT")[0])[1:] + json.loads(arguments("CMD")[0])
    command: click.Command = cli
    context = click.Context(cli, info_name="attest")
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command = found
    command.make_parser(click.Context(command)).parse_args(words)
    config = load_config((FOLDER / "agent.toml").read_text())
    assert config.metrics.listen is not None
    ports = [proxy.listen.port for proxy in config.proxy if proxy.listen] + [config.metrics.listen.port]
    assert arguments("EXPOSE")[0].split() == [str(port) for port in ports]
    assert f"127.0.0.1:{config.metrics.listen.port}/ready" in arguments("HEALTHCHECK")[0]
