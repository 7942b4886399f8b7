# SPDX-License-Identifier: Apache-2.0
"""The doctor's look at confidential-computing hardware: what there is, and whether what is configured can be used."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from quotary_attest.doctor import Finding, Health
from quotary_attest.tee.configfs import KernelFiles
from quotary_attest.tee.opening import Places
from quotary_attest.tee.probe import Presence, Probe, probe

_NO_LINE: Final = frozenset({"azure"})


def places_of(devices: Mapping[str, Path | None]) -> Places:
    """Where to look: a configuration may name other devices than the usual ones (root → path or None)."""
    places = Places()
    for root, device in devices.items():
        if device is not None and root in ("sev-snp", "tdx", "cca"):
            places = replace(places, tsm=KernelFiles(device))
        elif device is not None and root == "nitro":
            places = replace(places, nsm=device)
    return places


def examine_tee(configured: Collection[str], places: Places | None = None) -> Iterator[Finding]:
    """Look at every root; `configured`: names of those that commits are to have. No evidence is asked for.

    What is configured has to be usable; what is there and not configured is told of.
    """
    others: dict[str, list[Probe]] = {}
    for each in probe(places):
        if each.root in configured:
            usable = each.presence is Presence.USABLE
            hint = "" if usable else each.hint
            yield Finding(f"tee {each.root}", Health.GOOD if usable else Health.WRONG, each.text, hint)
        elif each.presence is not Presence.ABSENT:
            others.setdefault(each.text, []).append(each)
    for text, alike in others.items():
        roots = ", ".join(each.root for each in alike)
        unused = alike[0].presence is Presence.USABLE and alike[0].root not in _NO_LINE
        hint = "name it as a [[root]] of the configuration (docs/howto/tee.md)" if unused else alike[0].hint
        added = ", and no commit is bound to it" if unused else ""
        yield Finding(f"tee {roots}", Health.GOOD, f"{text}{added}", hint)
    if not configured and not others:
        yield Finding(
            "tee", Health.GOOD, "no confidential-computing hardware is here, and none is configured"
        )
