# SPDX-License-Identifier: Apache-2.0
"""Origins without a TPM, as the agent's commands meet them: which roots they live on, and what they cannot have.

`attest agent init --tee` writes its choice into the state folder, so that `attest agent run` need not be told again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quotary_cli.agent_roots import open_roots
from quotary_cli.output import ExitCode, Failure, note

if TYPE_CHECKING:
    from quotary_attest.config import AgentConfig
    from quotary_attest.tee.probe import Probe

KINDS = ("sev-snp", "tdx", "nitro", "nitro-tpm", "cca")
"""Roots that say what a whole machine was started from."""

WEAKER = (
    "an origin without a tpm has no chain and no start counter: only witnesses tell a second history, and nothing "
    "tells a restored state folder"
)
_CHOICE_FILE = "tee"


def write_tees(state: Path, kinds: Sequence[str]) -> None:
    """Remember in the state folder which roots its origin lives on."""
    (state / _CHOICE_FILE).write_text("".join(f"{kind}\n" for kind in kinds))


def read_tees(state: Path) -> tuple[str, ...]:
    """Return what `attest agent init` was told; nothing where the origin has a TPM."""
    try:
        return tuple((state / _CHOICE_FILE).read_text().split())
    except OSError:
        return ()


def has_tpm(state: Path) -> bool:
    """Tell whether the origin of a state folder has keys in a TPM. Raises StateError."""
    from quotary_attest.state import read_identity

    return read_identity(state).tpm is not None


def require_tpm(state: Path) -> None:
    """Raise StateError where the origin of a state folder has no keys in a TPM."""
    from quotary_attest.state import read_identity

    _ = read_identity(state).tpm_keys


def for_origin(config: AgentConfig) -> AgentConfig:
    """Return a configuration as its origin needs it: without a TPM, where `[[root]]` is left out, it is as init was
    told.

    Raises StateError; Failure where it names a TPM for an origin that has none, or none of the roots that it needs.
    """
    from quotary_attest.config.sections import RootSection
    from quotary_attest.engine.further import check_anchored
    from quotary_attest.state import StateError

    if has_tpm(config.state.folder):
        return config
    if config.tpm.tcti is not None or config.tpm.emulator:
        raise Failure(
            "this origin has no tpm, and one is named",
            code=ExitCode.USAGE,
            hint="leave out --tpm, --emulator, [tpm]",
        )
    if not config.root:
        told = read_tees(config.state.folder)
        config = replace(config, root=tuple(RootSection(kind=kind, required=True) for kind in told))
    try:
        check_anchored(open_roots(config))
    except StateError as error:
        raise Failure(str(error), code=ExitCode.USAGE, hint=error.hint) from None
    return config


def usable(kinds: Sequence[str]) -> list[Probe]:
    """Return what is to be said of the roots that this machine has not, or not for this user. Nothing is asked for."""
    from quotary_attest.tee.probe import Presence, probe

    return [each for each in probe() if each.root in kinds and each.presence is not Presence.USABLE]


def init_without_tpm(state: Path, host: str, kinds: Sequence[str]) -> dict[str, str]:
    """Make an origin that lives on roots of these kinds, and return what is to be shown of it.

    A root that is not here is told of and is no error: the machine that the origin is made on may get it later.
    Raises StateError, StoreError, MalformedError.
    """
    from quotary_attest.origin import init_tee_state

    identity = init_tee_state(state, host)
    write_tees(state, kinds)
    note(WEAKER)
    for missing in usable(kinds):
        note(f"{missing.root} cannot be used here: {missing.text}")
        if missing.hint:
            note(f"hint: {missing.hint}")
    return {"origin": identity.origin, "state": str(state), "tpm": "none", "roots": ", ".join(kinds)}
