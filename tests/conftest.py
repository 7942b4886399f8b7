# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures that every kind of test may use.

What needs a TPM library is imported where it is used, so that the verifier's tests run without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tpms import Machine, Tpm


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the tests' TPMs run."""
    parser.addoption(
        "--tpm-provider",
        default="process",
        choices=["process", "docker"],
        help="where the tests' TPMs run: processes of this host, or a container (scripts/test --docker)",
    )


@pytest.fixture(scope="session")
def tpm_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State of a manufactured TPM with EK certificates; each test copies it: making it takes a second."""
    from quotary_attest.tpm.emulator import Emulator

    state = tmp_path_factory.mktemp("tpm-template") / "state"
    Emulator(state).manufacture()
    return state


@pytest.fixture(scope="session")
def docker_compose_command() -> str:
    """Debian's docker-compose is a program of its own."""
    return "docker-compose"


@pytest.fixture(scope="session")
def docker_compose_file() -> Iterator[str]:
    """The compose file, with the folder that it mounts made and named to it."""
    from container_tpm import COMPOSE_FILE, shared_folder

    with shared_folder():
        yield str(COMPOSE_FILE)


@pytest.fixture(scope="session")
def docker_setup() -> str:
    """Debian 12's docker-compose knows no `--wait`; the container is ready when its shell answers."""
    return "up --detach"


@pytest.fixture(scope="session")
def tpm_provider(request: pytest.FixtureRequest) -> Iterator[Callable[[Path, Path], Machine]]:
    """What makes the machines that the tests' TPMs run in; a container is started only if asked for."""
    if request.config.getoption("--tpm-provider") == "process":
        from tpms import process_machine

        yield process_machine
        return
    from container_tpm import ContainerMachine, container

    request.getfixturevalue("docker_services")
    with container(request.getfixturevalue("docker_compose_project_name")) as running:
        yield lambda _folder, template: ContainerMachine(running, template)


@pytest.fixture
def tpm(tpm_provider: Callable[[Path, Path], Machine], tmp_path: Path, tpm_template: Path) -> Iterator[Tpm]:
    """A fresh TPM of this test alone."""
    from tpms import Tpm

    made = Tpm(tpm_provider(tmp_path, tpm_template))
    yield made
    made.stop()
