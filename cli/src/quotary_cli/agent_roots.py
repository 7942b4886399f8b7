# SPDX-License-Identifier: Apache-2.0
"""The roots beside the TPM that a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quotary_attest.config import AgentConfig
    from quotary_attest.config.sections import RootSection
    from quotary_attest.engine.further import FurtherRoot


def open_roots(config: AgentConfig) -> tuple[FurtherRoot, ...]:
    """Return the configured roots; no I/O, so whether a device is there shows with its first evidence."""
    return tuple(map(_open, config.root))


def _open(section: RootSection) -> FurtherRoot:
    from quotary_attest.doctor_tee import places_of
    from quotary_attest.engine.further import FurtherRoot
    from quotary_attest.tee.opening import open_root
    from quotary_attest.tee.root import TeeOptions

    options = TeeOptions(deadline=section.seconds, collateral=section.collateral)
    places = places_of({section.kind: section.device})
    root = open_root(section.kind, options, privlevel=section.privlevel, places=places)
    return FurtherRoot(root, section.required, section.every, section.seconds)


def roots_text(roots: list[Any]) -> str:
    """Say in a line what became of each root, from an agent's status."""
    return "; ".join(_root_text(root) if isinstance(root, dict) else str(root) for root in roots)


def _root_text(root: dict[str, Any]) -> str:
    need = "required" if root.get("required") else f"every {root.get('every')}"
    counts = f"{root.get('bound')} bound, {root.get('failed')} failed"
    error = f": {root['error']}" if root.get("error") else ""
    return f"{root.get('identifier')} ({need}, {counts}){error}"
