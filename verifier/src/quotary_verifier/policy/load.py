# SPDX-License-Identifier: Apache-2.0
"""Reads a policy from TOML, strictly: an unknown key is an error, never a rule that is silently not applied."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from quotary_verifier.errors import MalformedError, PolicyError, QuotaryError
from quotary_verifier.pki.chain import TrustAnchors
from quotary_verifier.pki.revocation import read_crl_pem
from quotary_verifier.policy.model import AllowedModel, Authority, Freshness, Policy, Witnesses
from quotary_verifier.tlog.note import TYPE_COSIGNATURE, VerifierKey, parse_vkey
from quotary_verifier.wire.limits import MAX_NONCE, MIN_NONCE
from quotary_verifier.wire.names import check_host, check_origin
from quotary_verifier.wire.records import Link, State

SCHEMA = "quotary-policy/v1"
MAX_POLICY = 1024 * 1024

_LINKS = {"configured": Link.CONFIGURED, "checked": Link.CHECKED, "started": Link.STARTED}
_STATES = {
    "complete": State.COMPLETE,
    "engine-error": State.ENGINE_ERROR,
    "engine-truncated": State.ENGINE_TRUNCATED,
    "client-gone": State.CLIENT_GONE,
}
_RESETTABLE = range(16, 24)
_MAX_KEY_PARTS = 32
_QUOTED = re.compile(r"""\"(?:[^"\\\n]|\\.)*+\"?+|'[^'\n]*+'?+""")
T = TypeVar("T")


def load_policy(data: bytes) -> Policy:
    """Read a policy of the schema `quotary-policy/v1`.

    Raises:
        PolicyError: it does not parse, has an unknown key, trusts nobody, or asks for what cannot be had.
    """
    if len(data) > MAX_POLICY:
        raise PolicyError(f"the policy has {len(data)} bytes, {MAX_POLICY} are allowed")
    try:
        text = data.decode()
        _check_keys(text)
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the reader lets more than its own error out
        raise PolicyError(f"the policy is not TOML: {error}") from None
    top = _Table(table, "")
    if top.take("schema", str) != SCHEMA:
        raise PolicyError(f'the policy does not say schema = "{SCHEMA}"')
    tpm, output = top.table("tpm"), top.table("output")
    platform, workload = top.table("platform"), top.table("workload")
    policy = Policy(
        digest=hashlib.sha256(data).digest(),
        description=top.take("description", str, ""),
        authorities=tuple(_authority(item) for item in top.tables("authority")),
        pins=frozenset(_pin(item) for item in top.tables("pin")),
        software_tpm=tpm.take("software", bool, False),
        unauthenticated_ak=tpm.take("unauthenticated_ak", bool, False),
        safe_clock=tpm.take("safe_clock", bool, False),
        pcrs=_pcrs(platform.table("pcrs")),
        models=tuple(_model(item) for item in top.tables("model")),
        opaque_events=workload.take("opaque", bool, True),
        states=_states(output),
        freshness=_freshness(top.table("freshness")),
        witnesses=_witnesses(top.table("witnesses")),
    )
    for part in (tpm, output, platform, workload, top):
        part.finish()
    return policy


def _check_keys(text: str) -> None:
    """Refuse keys of very many parts, for which the reader takes time and memory by the square of their number."""
    for line in text.split("\n"):
        if line.count(".") > _MAX_KEY_PARTS and _QUOTED.sub("", line).count(".") > _MAX_KEY_PARTS:
            raise PolicyError(
                f"the policy has a line with more than {_MAX_KEY_PARTS} dots outside of strings"
            )


class _Table:
    """One TOML table; `finish` refuses the keys that nobody took."""

    def __init__(self, value: dict[str, Any], path: str) -> None:
        self._left = dict(value)
        self.path = path

    def fail(self, key: str, why: str) -> NoReturn:
        raise PolicyError(f"policy: {self.path}{key} {why}")

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        if key not in self._left:
            if default is None:
                self.fail(key, "is missing")
            return default
        value = self._left.pop(key)
        if type(value) is not kind:
            self.fail(key, f"must be of type {kind.__name__}")
        return value

    def maybe(self, key: str, kind: type[T]) -> T | None:
        return self.take(key, kind) if key in self._left else None

    def texts(self, key: str) -> list[str] | None:
        value = self.maybe(key, list)
        if value is not None and any(type(item) is not str for item in value):
            self.fail(key, "must be a list of strings")
        return value

    def table(self, key: str) -> _Table:
        return _Table(self.take(key, dict, {}), f"{self.path}{key}.")

    def tables(self, key: str) -> list[_Table]:
        items = self.take(key, list, [])
        if any(type(item) is not dict for item in items):
            self.fail(key, f"must be written as [[{key}]]")
        return [_Table(item, f"{self.path}{key}[{number}].") for number, item in enumerate(items)]

    def names(self) -> list[str]:
        return list(self._left)

    def convert(self, key: str, value: str, function: Callable[[str], T]) -> T:
        try:
            return function(value)
        except (QuotaryError, ValueError) as error:
            self.fail(key, f"cannot be used: {error}")

    def finish(self) -> None:
        for key in self._left:
            self.fail(key, "is not a key that this verifier knows")


def _authority(table: _Table) -> Authority:
    name = table.take("name", str)
    pem = table.take("certificates", str)
    hosts = table.texts("hosts") or []
    for host in hosts:
        table.convert("hosts", host.removeprefix("*."), check_host)
    crls = tuple(table.convert("crls", text, read_crl_pem) for text in table.texts("crls") or [])
    required = table.take("revocation_required", bool, False)
    table.finish()
    anchors = table.convert("certificates", pem, TrustAnchors.from_pem)
    return Authority(name, anchors, tuple(hosts), crls, required)


def _pin(table: _Table) -> str:
    origin = table.convert("origin", table.take("origin", str), check_origin)
    table.finish()
    return origin


def _digest(text: str) -> bytes:
    text = text.removeprefix("sha256:")
    digest = bytes.fromhex(text)
    if len(digest) != 32 or digest.hex() != text:
        raise MalformedError("a SHA-256 digest has 64 lower-case hexadecimal digits")
    return digest


def _pcrs(table: _Table) -> dict[int, frozenset[bytes]]:
    pcrs: dict[int, frozenset[bytes]] = {}
    for key in table.names():
        if len(key) > 2 or not key.isdecimal() or key != str(int(key)) or int(key) > 23:
            table.fail(key, "is not a PCR")
        if int(key) in _RESETTABLE:
            table.fail(key, "can be reset without a reboot, so its value proves nothing")
        values = table.texts(key) or []
        if not values:
            table.fail(key, "allows no value")
        pcrs[int(key)] = frozenset(table.convert(key, value, _digest) for value in values)
    return pcrs


def _model(table: _Table) -> AllowedModel:
    weights = table.maybe("weights", str)
    link = table.take("link", str, "configured")
    if link not in _LINKS:
        table.fail("link", f"must be one of {', '.join(_LINKS)}")
    model = AllowedModel(
        name=table.maybe("name", str),
        weights=None if weights is None else table.convert("weights", weights, _digest),
        link=_LINKS[link],
    )
    if model.name is None and model.weights is None:
        table.fail("", "names neither a model nor weights")
    table.finish()
    return model


def _states(table: _Table) -> frozenset[State]:
    names = table.texts("states")
    if names is None:
        return frozenset({State.COMPLETE})
    for name in names:
        if name not in _STATES:
            table.fail("states", f"must be among {', '.join(_STATES)}")
    if not names:
        table.fail("states", "allows no state")
    return frozenset(_STATES[name] for name in names)


def _freshness(table: _Table) -> Freshness:
    expected = table.maybe("expected_nonce", str)
    freshness = Freshness(
        nonce=table.take("nonce", bool, expected is not None),
        expected_nonce=None if expected is None else table.convert("expected_nonce", expected, _nonce),
        max_age=table.maybe("max_age", int),
        trust_host_clock=table.take("trust_host_clock", bool, False),
    )
    if freshness.max_age is not None and freshness.max_age <= 0:
        table.fail("max_age", "must be a positive number of seconds")
    table.finish()
    return freshness


def _nonce(text: str) -> bytes:
    nonce = bytes.fromhex(text)
    if nonce.hex() != text or not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise MalformedError(f"a nonce is {MIN_NONCE} to {MAX_NONCE} bytes in lower-case hexadecimal")
    return nonce


def _witnesses(table: _Table) -> Witnesses:
    keys = tuple(table.convert("keys", text, _witness_key) for text in table.texts("keys") or [])
    threshold = table.take("threshold", int, len(keys))
    if len({key.key for key in keys}) != len(keys):
        table.fail("keys", "names one key twice")
    if not 0 <= threshold <= len(keys) or (keys and not threshold):
        table.fail("threshold", "must be between 1 and the number of keys")
    table.finish()
    return Witnesses(keys, threshold)


def _witness_key(text: str) -> VerifierKey:
    key = parse_vkey(text)
    if key.signature_type != TYPE_COSIGNATURE:
        raise MalformedError("a witness key is of type 0x04, cosignature/v1")
    return key
