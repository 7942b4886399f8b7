# SPDX-License-Identifier: Apache-2.0
"""Shows policies, plain and signed, as plain values. A signature is not judged here, and it says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quotary_cli.moments import show_time
from quotary_verifier.errors import MalformedError, PolicyError
from quotary_verifier.policy.model import PlatformRules, Policy

if TYPE_CHECKING:
    from quotary_verifier.policy.tee import TeeRules

Content = dict[str, Any]


def policy_view(data: bytes, folder: Path | None = None) -> Content:
    """Show a policy with the lists that it names, which stand in `folder`.

    Raises:
        MalformedError: it is none, or a list is not there.
    """
    from quotary.policyfile import load_beside

    try:
        policy = load_beside(data, folder)
    except PolicyError as error:
        raise MalformedError(str(error)) from None
    return _view(policy)


def signed_policy_view(data: bytes, folder: Path | None = None) -> Content:
    """Show what a signed policy says of itself, and the policy in it."""
    from quotary_verifier.policy.signed import unverified_signed_policy

    signed, algorithm, kid = unverified_signed_policy(data)
    return {
        "name": signed.name,
        "version": signed.version,
        "issued": show_time(signed.issued),
        "expires": show_time(signed.expires),
        "algorithm": algorithm,
        "kid": kid.hex(),
        "policy": policy_view(signed.policy, folder),
    }


def _view(policy: Policy) -> Content:
    return {
        "digest": policy.digest.hex(),
        "description": policy.description,
        "version": policy.version,
        "expires": None if policy.expires is None else show_time(policy.expires),
        "authorities": [
            {"name": item.name, "hosts": list(item.hosts) or "any"} for item in policy.authorities
        ],
        "pins": sorted(policy.pins),
        "software_tpm": policy.software_tpm,
        "unauthenticated_ak": policy.unauthenticated_ak,
        "safe_clock": policy.safe_clock,
        "pcrs": _pcrs(policy.platform),
        **_rules(policy.platform),
        "references": {
            item.name: {"pcrs": _pcrs(item.rules), **_rules(item.rules)} for item in policy.references
        },
        "warnings": {rule: show_time(until) for rule, until in sorted(policy.warnings.items())},
        "models": [
            {
                "name": model.name,
                "weights": None if model.weights is None else model.weights.hex(),
                "link": model.link.name.lower(),
            }
            for model in policy.models
        ],
        "tee": None if policy.tee is None else _tee(policy.tee),
        "opaque_events": policy.opaque_events,
        "states": sorted(state.name.lower() for state in policy.states),
        "freshness": {
            "nonce": policy.freshness.nonce,
            "max_age": policy.freshness.max_age,
            "trust_host_clock": policy.freshness.trust_host_clock,
        },
        "witnesses": {
            "threshold": policy.witnesses.threshold,
            "keys": [key.name for key in policy.witnesses.keys],
        },
    }


def _tee(rules: TeeRules) -> Content:
    """Show rules on TEE lines, by kind; None for a kind of which nothing is asked."""
    roots = {name: root is not None for name, root in _fields(rules.roots) if name != "cca"}
    kinds = {name: _plain(value) for name, value in _fields(rules) if name not in {"required", "roots"}}
    return {
        "required": sorted(rules.required),
        **kinds,
        "own_roots": sorted(name for name in roots if roots[name]),
        "cca_platform_keys": [key.sha256.hex() for key in rules.roots.cca],
    }


def _fields(rules: Any) -> list[tuple[str, Any]]:
    return [(item.name, getattr(rules, item.name)) for item in fields(rules)]


def _plain(value: Any) -> Any:
    """Return rules as plain values: sets sorted, bytes in hexadecimal, enumerations by their names."""
    if is_dataclass(value):
        return {name: _plain(item) for name, item in _fields(value)}
    if isinstance(value, frozenset):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, timedelta):
        return int(value.total_seconds())
    if isinstance(value, Enum):
        return value.name.lower()
    return value.hex() if isinstance(value, bytes) else value


def _pcrs(rules: PlatformRules) -> Content:
    return {str(pcr): sorted(value.hex() for value in values) for pcr, values in sorted(rules.pcrs.items())}


def _rules(rules: PlatformRules) -> Content:
    """Show the rules on logs: keys and patterns whole, digests by their number."""
    found: Content = {}
    if rules.secure_boot is not None:
        state = rules.secure_boot
        found["secure_boot"] = {
            "enabled": state.enabled,
            **{
                name: "any" if values is None else sorted(values)
                for name, values in (
                    ("pk", state.pk),
                    ("kek", state.kek),
                    ("db", state.db),
                    ("authorities", state.authorities),
                )
            },
            "dbx": len(state.dbx),
        }
    if rules.boot is not None:
        boot, lines = rules.boot, rules.boot.command_lines
        found["boot"] = {
            "applications": "any" if boot.applications is None else len(boot.applications),
            "files": "any" if boot.files is None else len(boot.files),
            "command_lines": "any" if lines is None else [line.text for line in lines],
            "pcrs": sorted(boot.pcrs),
        }
    if rules.ima is not None:
        found["ima"] = {
            "digests": len(rules.ima.files),
            "ignore": list(rules.ima.ignore),
            "keys": len(rules.ima.keys),
            "violations": rules.ima.violations,
        }
    if rules.tolerate:
        found["tolerate"] = sorted(rules.tolerate)
    return found
