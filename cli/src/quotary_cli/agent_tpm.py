# SPDX-License-Identifier: Apache-2.0
"""How the agent's commands reach a TPM: the device, a TSS string, or the emulator in the state folder.

`agent init` writes the choice into the state folder, so that the other commands need not be told again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from quotary_cli.output import ExitCode, Failure, note

DEFAULT_TPM = "device:/dev/tpmrm0"
EMULATOR = "emulator"
SOFTWARE_WARNING = (
    "software TPM: what it signs binds to no hardware, and policies refuse it unless they say otherwise"
)
_CHOICE_FILE = "tpm"

tpm_option = click.option(
    "--tpm",
    metavar="TSS",
    help=f"How to reach the TPM, as a TSS string (default: what init was told, else {DEFAULT_TPM}).",
)
emulator_option = click.option(
    "--emulator",
    is_flag=True,
    help="Use a private software TPM beside the state folder, to try things out; it protects nothing.",
)
state_option = click.option(
    "--state",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The agent's state folder.",
)


@contextmanager
def reach_tpm(
    state: Path, tpm: str | None, *, emulator: bool = False, tell: Callable[[str], object] = note
) -> Iterator[str]:
    """Yield the TSS string of the TPM to use, with the emulator running for as long as it is the choice.

    `tell` says to people that a software TPM is none.
    """
    if tpm and emulator:
        raise Failure("--tpm and --emulator exclude each other", code=ExitCode.USAGE)
    choice = EMULATOR if emulator else tpm or read_choice(state)
    if choice != EMULATOR:
        yield choice
        return
    from quotary_attest.tpm.emulator import Emulator

    tell(SOFTWARE_WARNING)
    with Emulator(emulator_folder(state)) as running:
        yield running.tcti


def emulator_folder(state: Path) -> Path:
    """Where the private software TPM of a state folder keeps what it knows: beside it, not in it."""
    return state.with_name(state.name + ".swtpm")


def read_choice(state: Path) -> str:
    """Return what `agent init` was told, or the default."""
    try:
        return (state / _CHOICE_FILE).read_text().strip()
    except OSError:
        return DEFAULT_TPM


def write_choice(state: Path, tpm: str | None, *, emulator: bool) -> None:
    """Remember in the state folder how its TPM is reached."""
    (state / _CHOICE_FILE).write_text((EMULATOR if emulator else tpm or DEFAULT_TPM) + "\n")


@contextmanager
def host_failures() -> Iterator[None]:
    """Turn every error of the host side into a failure with exit code 4, its message and its hint."""
    try:
        yield
    except Failure:
        raise
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"quotary_attest", "tpm2_pytss", "aiohttp"}:
            raise
        raise Failure(
            f"the host side of quotary is not installed ({error.name} is missing)",
            code=ExitCode.FAILURE,
            hint="pip install 'quotary[agent]'",
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        name = f"{error.filename}: " if error.filename else ""
        raise Failure(f"{name}{reason}", code=ExitCode.FAILURE) from None
    except Exception as error:
        if type(error).__module__.split(".")[0] not in {"quotary_attest", "quotary_verifier"}:
            raise
        raise Failure(str(error), code=ExitCode.FAILURE, hint=getattr(error, "hint", "")) from None
