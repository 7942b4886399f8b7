# SPDX-License-Identifier: Apache-2.0
"""Reading a policy with what belongs to it: a signature, the versions seen before, lists in files beside it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quotary_verifier import Policy, PolicyError, QuotaryError
from quotary_verifier.policy.load import load_policy, policy_lists
from quotary_verifier.policy.signed import (
    MAX_SIGNED_POLICY,
    PolicyKey,
    SignedPolicy,
    is_signed_policy,
    open_signed_policy,
    read_policy_key,
)

STATE_SCHEMA = "quotary-policy-state/v1"
_MAX_STATE = 4 * 1024 * 1024
_MAX_KEY = 64 * 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PolicyTrust:
    """Whose policies are taken, and how old ones may be.

    Attributes:
        keys: Files with the public keys (PEM) of those who may sign policies. With any, a policy must be signed.
        least_version: The least version to take of a signed policy.
        state: Where to keep the highest version seen for each key and name. An older one is then refused, and so is
            another policy under the same version. It protects for as long as the file is kept.
    """

    keys: tuple[str | os.PathLike[str], ...] = ()
    least_version: int = 1
    state: str | os.PathLike[str] | None = None


def load_trusted(data: bytes, trust: PolicyTrust, at: int, folder: Path | None = None) -> Policy:
    """Load a policy from its bytes, signed or not, with the lists that it names in `folder`.

    `at` is the time of verification in seconds since the epoch.

    Raises:
        PolicyError: it cannot be used, is not signed by a key of `trust`, or is older than what was seen.
    """
    if not is_signed_policy(data):
        if trust.keys:
            raise PolicyError("a key for policies was given, and the policy is not signed")
        return load_beside(data, folder)
    if not trust.keys:
        raise PolicyError("the policy is signed, and no key was given to judge the signature by")
    signed, key = verify_signed(data, trust, at)
    policy = _agreeing(load_beside(signed.policy, folder), signed)
    if trust.state is not None:
        remember(Path(trust.state), signed, key)
    return policy


def load_beside(data: bytes, folder: Path | None) -> Policy:
    """Load the TOML of a policy with the lists that it names, which stand in `folder`.

    Raises:
        PolicyError: it cannot be used, or a list is not there or has other bytes than the policy says.
    """
    if folder is None or b"list" not in data:  # without the word it names none, and is parsed only once
        return load_policy(data)
    from quotary_verifier.policy.lists import MAX_LIST

    names = policy_lists(data)
    return load_policy(data, {name.sha256: read_limited(folder / name.file, MAX_LIST) for name in names})


def _agreeing(policy: Policy, signed: SignedPolicy) -> Policy:
    """Return the policy with the signature's version and the earlier of both ends."""
    if policy.version not in (None, signed.version):
        raise PolicyError(f"the policy says version {policy.version}, and its signature {signed.version}")
    expires = signed.expires if policy.expires is None else min(policy.expires, signed.expires)
    return replace(policy, version=signed.version, expires=expires)


def verify_signed(data: bytes, trust: PolicyTrust, at: int) -> tuple[SignedPolicy, PolicyKey]:
    """Verify a signed policy's signature, dates and least version, and nothing of the policy in it.

    Raises:
        PolicyError: it does not verify, or a key cannot be read.
    """
    keys = [_key(Path(path)) for path in trust.keys]
    try:
        return open_signed_policy(data, keys, at, least_version=trust.least_version)
    except QuotaryError as error:
        raise PolicyError(str(error)) from None


def _key(path: Path) -> PolicyKey:
    try:
        return read_policy_key(read_limited(path, _MAX_KEY))
    except QuotaryError as error:
        raise PolicyError(f"{path}: {error}") from None


def read_limited(path: Path, most: int = MAX_SIGNED_POLICY) -> bytes:
    """Read a file, or no more of it than shows that it is too long.

    Raises:
        PolicyError: it cannot be read, or has more than `most` bytes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}".lower()) from None
    if len(data) > most:
        raise PolicyError(f"{path}: more than {most} bytes")
    return data


def remember(state: Path, signed: SignedPolicy, key: PolicyKey) -> None:
    """Refuse a policy that is older than one seen before, and keep its version otherwise.

    Raises:
        PolicyError: it is older, another one had its version, or the file cannot be used.
    """
    import hashlib

    digest, name = hashlib.sha256(signed.policy).hexdigest(), f"{key.kid.hex()}/{signed.name}"
    try:
        with _locked(state):
            seen = _seen(state)
            version, known = seen.get(name, (0, ""))
            if signed.version < version:
                raise PolicyError(
                    f"the policy {signed.name!r} is version {signed.version}, and version {version} was seen before"
                )
            if signed.version == version and digest != known:
                raise PolicyError(
                    f"another policy {signed.name!r} of version {version} was seen before: its author signed two"
                )
            if signed.version > version:
                _write(state, seen | {name: (signed.version, digest)})
    except OSError as error:
        raise PolicyError(f"{error.filename or state}: {error.strerror}".lower()) from None


def _seen(state: Path) -> dict[str, tuple[int, str]]:
    """Read what was seen; a file that is not there has seen nothing."""
    if not state.exists():
        return {}
    try:
        value = json.loads(read_limited(state, _MAX_STATE))
        if value["schema"] == STATE_SCHEMA:
            return {name: _entry(item) for name, item in value["seen"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # an unknown form is refused below like an unknown schema
    raise PolicyError(f"{state}: not a file of policies seen before; it is not replaced")


def _entry(item: Any) -> tuple[int, str]:
    version, digest = item["version"], item["sha256"]
    if type(version) is not int or version < 1 or not _DIGEST.fullmatch(digest):
        raise ValueError
    return version, digest


def _write(state: Path, seen: dict[str, tuple[int, str]]) -> None:
    """Replace the file in one step, so that a crash leaves the old one or the new one."""
    items = {name: {"version": version, "sha256": digest} for name, (version, digest) in sorted(seen.items())}
    temporary = state.with_name(state.name + ".tmp")
    with temporary.open("w") as file:
        json.dump({"schema": STATE_SCHEMA, "seen": items}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(state)


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Keep other processes from reading and writing the file meanwhile, where the system has locks on files."""
    with state.with_name(state.name + ".lock").open("w") as lock:
        try:
            import fcntl
        except (
            ImportError
        ):  # a system without them: two commands at one time may then forget one of two versions
            pass
        else:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
