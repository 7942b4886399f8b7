# SPDX-License-Identifier: Apache-2.0
"""The roots beside the TPM that a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quotary_cli.output import ExitCode, Failure

if TYPE_CHECKING:
    from pathlib import Path

    from quotary_attest.config import AgentConfig
    from quotary_attest.config.sections import RootSection
    from quotary_attest.engine.endorsing import Endorsing
    from quotary_attest.engine.further import FurtherRoot
    from quotary_verifier.evidence.tee.lines import TeeRoots


def open_roots(config: AgentConfig) -> tuple[FurtherRoot, ...]:
    """Return the configured roots. Whether a device is there shows with its first evidence.

    Raises:
        Failure: a file of platform keys cannot be used.
    """
    from quotary_attest.config.sections import ENDORSING

    return tuple(_open(section) for section in config.root if section.kind != ENDORSING)


def endorsing_section(config: AgentConfig) -> RootSection | None:
    """Return the root that has no line of its own, but endorses the TPM's key; None where none is named."""
    from quotary_attest.config.sections import ENDORSING

    return next((section for section in config.root if section.kind == ENDORSING), None)


def open_endorsing(config: AgentConfig) -> Endorsing | None:
    """Return what finds the endorsements of the TPM's key, where the configuration names it; no I/O."""
    section = endorsing_section(config)
    if section is None:
        return None
    from quotary_attest.engine.endorsing import Endorsing
    from quotary_attest.tpm.hcl import HclEndorser

    return Endorsing(HclEndorser(section.collateral), section.required)


def _open(section: RootSection) -> FurtherRoot:
    from quotary_attest.doctor_tee import places_of
    from quotary_attest.engine.further import FurtherRoot
    from quotary_attest.tee.opening import open_root
    from quotary_attest.tee.root import TeeOptions

    roots = None if section.platform_keys is None else _platform_keys(section.platform_keys)
    options = TeeOptions(deadline=section.seconds, collateral=section.collateral, roots=roots)
    places = places_of({section.kind: section.device})
    root = open_root(section.kind, options, privlevel=section.privlevel, places=places)
    return FurtherRoot(root, section.required, section.every, section.seconds)


def _platform_keys(file: Path) -> TeeRoots:
    from quotary_verifier.errors import QuotaryError
    from quotary_verifier.evidence.tee.cca import platform_keys_pem
    from quotary_verifier.evidence.tee.lines import TeeRoots

    try:
        return TeeRoots(cca=platform_keys_pem(file.read_text("ascii", "replace")))
    except (OSError, QuotaryError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
        raise Failure(
            f"root.platform_keys: {file}: {reason}",
            code=ExitCode.USAGE,
            hint="a file of public keys in pem, as the maker of the platform gives them",
        ) from None


def roots_text(roots: list[Any]) -> str:
    """Say in a line what became of each root, from an agent's status."""
    return "; ".join(_root_text(root) if isinstance(root, dict) else str(root) for root in roots)


def endorsement_text(found: dict[str, Any]) -> str:
    """Say in a line what endorses the TPM's key, from an agent's status."""
    need = "required" if found.get("required") else "not required"
    error = f": {found['error']}" if found.get("error") else ""
    return f"{found.get('what')} ({need}, {found.get('bytes')} bytes in each attestation){error}"


def _root_text(root: dict[str, Any]) -> str:
    need = "required" if root.get("required") else f"every {root.get('every')}"
    counts = f"{root.get('bound')} bound, {root.get('failed')} failed"
    error = f": {root['error']}" if root.get("error") else ""
    return f"{root.get('identifier')} ({need}, {counts}){error}"
