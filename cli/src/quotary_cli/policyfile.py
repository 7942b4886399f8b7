# SPDX-License-Identifier: Apache-2.0
"""The one place where commands read a policy: plain or signed, with the lists that stand beside it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from quotary_cli.output import ExitCode, Failure
from quotary_verifier import Policy, PolicyError
from quotary_verifier.policy.load import MAX_POLICY, load_policy
from quotary_verifier.wire.frozen import frozen

_SIGNED = b"\xd2"
_LISTS = b"list"
_HINT = "docs/spec/policy.md describes every key"
_HINT_ENDED = "to judge as of an earlier time, say which with --at"
_HINT_SIGNED = "docs/spec/signed-policy.md says what is checked of a signed policy"

Command = TypeVar("Command", bound=Callable[..., Any])


@frozen
class PolicyFile:
    """A policy that a command line names, with the keys and the state that a signed one is judged by."""

    path: Path
    keys: tuple[Path, ...] = ()
    state: Path | None = None

    def read(self, at: int | None = None) -> Policy:
        """Read it as of a time in seconds since the epoch (default: now). Failure where it cannot be used."""
        return read_policy(self.path, keys=self.keys, state=self.state, at=at)


def policy_options(command: Command) -> Command:
    """Give a command --policy, --policy-key and --policy-state, and as its argument `policy` a `PolicyFile`."""
    return _with_options(command, required=True)


def optional_policy(command: Command) -> Command:
    """As `policy_options` for a command that can do without: its argument `policy` is then None."""
    return _with_options(command, required=False)


def _with_options(command: Command, *, required: bool) -> Command:
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        policy: Path | None,
        policy_key: tuple[Path, ...],
        policy_state: Path | None,
        **keywords: Any,
    ) -> Any:
        file = None if policy is None else PolicyFile(policy, policy_key, policy_state)
        return command(*args, policy=file, **keywords)

    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    for option in (
        click.option(
            "--policy-state",
            metavar="FILE",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Keep the highest version seen of each signed policy in FILE, and refuse older ones.",
        ),
        click.option(
            "--policy-key",
            multiple=True,
            type=file,
            help="Public key (PEM) that the policy must be signed with. May be given again.",
        ),
        click.option(
            "--policy", "-p", required=required, type=file, help="What you accept (TOML, or signed TOML)."
        ),
    ):
        option(wrapped)
    return wrapped  # type: ignore[return-value]


def read_policy(
    path: Path, *, keys: tuple[Path, ...] = (), state: Path | None = None, at: int | None = None
) -> Policy:
    """Read a policy; with `keys` it must be signed with one of them.

    Failure with exit code 2 where it cannot be used: then nothing was said of any evidence.
    """
    data, moment = read_bytes(path), int(time.time()) if at is None else at
    try:
        if not keys and not data.startswith(_SIGNED) and _LISTS not in data:
            policy = load_policy(data)  # without what is only needed for the others
        else:
            from quotary.policyfile import PolicyTrust, load_trusted

            policy = load_trusted(data, PolicyTrust(keys, state=state), moment, path.parent)
    except PolicyError as error:
        hint = _HINT_SIGNED if keys or data.startswith(_SIGNED) else _HINT
        if data.startswith(_SIGNED) and not keys:
            hint = "name the public key of its author with --policy-key"
        raise Failure(f"{path}: {error}", code=ExitCode.USAGE, hint=hint) from None
    try:
        policy.require_current(moment)
    except PolicyError as error:
        raise Failure(f"{path}: {error}", code=ExitCode.USAGE, hint=_HINT_ENDED) from None
    return policy


def read_bytes(path: Path, most: int = MAX_POLICY + 4096) -> bytes:
    """Read a file, or no more of it than shows that it has over `most` bytes, for which its reader has an error."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}".lower(), code=ExitCode.USAGE) from None
