# SPDX-License-Identifier: Apache-2.0
"""`attest policy sign` and `verify`: a policy with its author, version and end (docs/spec/signed-policy.md)."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import click

from quotary_cli.enrolment import FILE, json_option, show, write_file
from quotary_cli.moments import parse_time, show_time
from quotary_cli.output import ExitCode, Failure
from quotary_cli.policy_key import opened_key, passphrase_option, tpm_option
from quotary_cli.policyfile import read_bytes, read_policy
from quotary_verifier import Policy
from quotary_verifier.errors import EvidenceError, MalformedError, PolicyError, UnsupportedError
from quotary_verifier.policy.signed import (
    MAX_SIGNED_POLICY,
    PolicyKey,
    SignedPolicy,
    is_signed_policy,
    open_signed_policy,
    read_policy_key,
    sign_policy,
)

SCHEMA = "quotary-policy-signed/v1"
_DAY = 86_400


@click.command()
@click.argument("policy", type=FILE)
@click.option("--key", "-k", required=True, type=FILE, help="The key, made by `attest policy key`.")
@tpm_option
@passphrase_option
@click.option("--name", help="Tells your policies apart; versions count within a name (default: POLICY's).")
@click.option(
    "--policy-version",
    "version",
    type=click.IntRange(1),
    metavar="N",
    help="Must rise with each policy of this name (default: the version that POLICY says).",
)
@click.option(
    "--expires",
    metavar="TIME",
    help="When it ends (default: what POLICY says); RFC 3339 or seconds since 1970.",
)
@click.option("--days", type=click.IntRange(1, 36_500), help="When it ends, in days from now.")
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the signed policy.",
)
@json_option
def sign(
    policy: Path,
    key: Path,
    tpm: str | None,
    passphrase_file: Path | None,
    name: str | None,
    version: int | None,
    expires: str | None,
    days: int | None,
    out: Path,
    as_json: bool,
) -> None:
    """Sign POLICY, so that those who have your public key take it, and take no older one after it.

    The lists that stand beside POLICY are named in it by their SHA-256 and must be handed on with it.
    """
    data = read_bytes(policy)
    if is_signed_policy(data):
        raise Failure(
            f"{policy}: signed already", code=ExitCode.USAGE, hint="sign the TOML that it was made of"
        )
    rules, now = read_policy(policy), int(time.time())
    statement = SignedPolicy(
        policy=data,
        name=policy.stem if name is None else name,
        version=_version(rules, version),
        issued=now,
        expires=_end(rules, now, expires, days),
    )
    with opened_key(key, tpm, passphrase_file) as (public, signer):
        try:
            signed = sign_policy(statement, public, signer)
        except (MalformedError, EvidenceError) as error:
            raise Failure(str(error), code=ExitCode.USAGE) from None
    write_file(out, signed)
    show({"schema": SCHEMA, "signed": str(out), **_describe(statement, public)}, as_json=as_json)


def _version(rules: Policy, given: int | None) -> int:
    if given is None and rules.version is None:
        raise Failure(
            "the policy has no version",
            code=ExitCode.USAGE,
            hint="give one with --policy-version, above that of the policy that this one replaces",
        )
    if None not in (given, rules.version) and given != rules.version:
        raise Failure(
            f"--policy-version {given}: the policy says version {rules.version}", code=ExitCode.USAGE
        )
    return int(given or rules.version or 0)


def _end(rules: Policy, now: int, expires: str | None, days: int | None) -> int:
    if expires is not None and days is not None:
        raise Failure("--expires and --days exclude each other", code=ExitCode.USAGE)
    if expires is None and days is None and rules.expires is None:
        raise Failure(
            "nothing says when the policy ends",
            code=ExitCode.USAGE,
            hint="give --days or --expires: an old policy that never ends can be handed out again",
        )
    end = rules.expires or 0
    if expires is not None:
        end = parse_time(expires, "--expires")
    elif days is not None:
        end = now + days * _DAY
    if end <= now:
        raise Failure(f"the policy would have ended already, at {show_time(end)}", code=ExitCode.USAGE)
    return end


def _describe(statement: SignedPolicy, key: PolicyKey) -> dict[str, Any]:
    return {
        "name": statement.name,
        "version": statement.version,
        "issued": show_time(statement.issued),
        "expires": show_time(statement.expires),
        "policy_sha256": hashlib.sha256(statement.policy).hexdigest(),
        "algorithm": key.name,
        "kid": key.kid.hex(),
    }


@click.command()
@click.argument("signed", type=FILE)
@click.option("--policy-key", required=True, multiple=True, type=FILE, help="Public key (PEM) of its author.")
@click.option(
    "--least-version", type=click.IntRange(1), default=1, metavar="N", help="Take no version below N."
)
@click.option(
    "--policy-state",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the highest version seen in FILE, and refuse older ones.",
)
@click.option("--at", metavar="TIME", help="Verify as of this time (default: now).")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write the policy (TOML) here."
)
@json_option
def verify(
    signed: Path,
    policy_key: tuple[Path, ...],
    least_version: int,
    policy_state: Path | None,
    at: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Verify the signature, dates and version of SIGNED; what the policy in it demands is not looked at."""
    from quotary.policyfile import remember

    data = read_bytes(signed, MAX_SIGNED_POLICY)
    try:
        keys = [read_policy_key(read_bytes(path)) for path in policy_key]
    except (MalformedError, UnsupportedError) as error:
        raise Failure(f"--policy-key: {error}", code=ExitCode.USAGE) from None
    try:
        statement, key = open_signed_policy(data, keys, parse_time(at), least_version=least_version)
        if policy_state is not None:
            remember(policy_state, statement, key)
    except (MalformedError, EvidenceError, PolicyError) as error:
        raise Failure(f"{signed}: {error}", code=ExitCode.REJECTED) from None
    except UnsupportedError as error:
        raise Failure(f"{signed}: {error}", code=ExitCode.NOT_CHECKED) from None
    if out is not None:
        write_file(out, statement.policy)
    show({"schema": SCHEMA, "signed": str(signed), **_describe(statement, key)}, as_json=as_json)
