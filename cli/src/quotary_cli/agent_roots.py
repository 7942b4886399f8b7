# SPDX-License-Identifier: Apache-2.0
"""The roots beside the TPM that a configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quotary_attest.config import AgentConfig
    from quotary_attest.config.sections import RootSection
    from quotary_attest.doctor import Finding
    from quotary_attest.engine.further import FurtherRoot
    from quotary_attest.tee.opening import Places


def open_roots(config: AgentConfig) -> tuple[FurtherRoot, ...]:
    """Return the configured roots; no I/O, so whether a device is there shows with its first evidence."""
    return tuple(map(_open, config.root))


def _open(section: RootSection) -> FurtherRoot:
    from quotary_attest.engine.further import FurtherRoot
    from quotary_attest.tee.opening import open_root
    from quotary_attest.tee.root import TeeOptions

    options = TeeOptions(deadline=section.seconds, collateral=section.collateral)
    places = _places(section.kind, section.device)
    root = open_root(section.kind, options, privlevel=section.privlevel, places=places)
    return FurtherRoot(root, section.required, section.every, section.seconds)


def _places(kind: str, device: Path | None) -> Places:
    """Return where the devices are; `device` replaces the kernel's place of this kind."""
    from quotary_attest.tee.configfs import KernelFiles
    from quotary_attest.tee.opening import Places

    if device is None:
        return Places()
    return Places(nsm=device) if kind == "nitro" else Places(tsm=KernelFiles(device))


def examine_roots(config: AgentConfig) -> Iterator[Finding]:
    """Say of each configured root whether this machine has it, for the doctor. Nothing is asked to make evidence."""
    from quotary_attest.doctor import Finding, Health
    from quotary_attest.tee.probe import Presence, probe

    for section in config.root:
        places = _places(section.kind, section.device)
        (found,) = (each for each in probe(places) if each.root == section.kind)
        if found.presence is Presence.USABLE:
            health = Health.GOOD
        else:
            health = Health.WRONG if section.required else Health.WARNING
        yield Finding(f"root {section.kind}", health, found.text, found.hint)


def roots_text(roots: list[Any]) -> str:
    """Say in a line what became of each root, from an agent's status."""
    return "; ".join(_root_text(root) if isinstance(root, dict) else str(root) for root in roots)


def _root_text(root: dict[str, Any]) -> str:
    need = "required" if root.get("required") else f"every {root.get('every')}"
    counts = f"{root.get('bound')} bound, {root.get('failed')} failed"
    error = f": {root['error']}" if root.get("error") else ""
    return f"{root.get('identifier')} ({need}, {counts}){error}"
