# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures that every kind of test may use.

What needs a TPM library is imported where it is used, so that the verifier's tests run without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tpms import Tpm


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the tests' TPMs run."""
    parser.addoption(
        "--tpm-provider", default="process", help="where the tests' TPMs run: a name of tpms.PROVIDERS"
    )


@pytest.fixture(scope="session")
def tpm_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State of a manufactured TPM with EK certificates; each test copies it: making it takes a second."""
    from quotary_attest.tpm.emulator import Emulator

    state = tmp_path_factory.mktemp("tpm-template") / "state"
    Emulator(state).manufacture()
    return state


@pytest.fixture
def tpm(request: pytest.FixtureRequest, tmp_path: Path, tpm_template: Path) -> Iterator[Tpm]:
    """A fresh TPM of this test alone."""
    from tpms import PROVIDERS, Tpm

    made = Tpm(PROVIDERS[request.config.getoption("--tpm-provider")](tmp_path, tpm_template))
    yield made
    made.stop()
