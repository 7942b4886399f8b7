# SPDX-License-Identifier: Apache-2.0
"""Shows policies, plain and signed, as plain values. A signature is not judged here, and it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quotary_cli.moments import show_time
from quotary_verifier.errors import MalformedError, PolicyError
from quotary_verifier.policy.model import PlatformRules, Policy

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
